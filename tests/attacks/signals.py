#!/usr/bin/env python3
# Takes several minutes: `.ci/attacks` runs it, `.ci/run` does not.
"""A signal ends every command within a second, whatever call on whatever file it hangs in, as on a network share whose server is gone.

A file system that hangs on demand (FUSE, root only) is mounted, each command is run on it once to see what it asks for, and then once
more for each of these requests, which is never answered. After the first signal the command must end within a second. Only the moment
in which an output is published is waited for, until a second signal. The next run makes the output as if nothing had been.
"""

import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

MAIN = os.environ.get("MAIN") or os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
BIN = os.environ.get("BIN") or os.path.join(MAIN, "target/release/monoquant")
LIBC = ctypes.CDLL(None, use_errno=True)

OPS = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 8: "MKNOD", 9: "MKDIR", 10: "UNLINK", 11: "RMDIR",
    12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 35: "CREATE", 36: "INTERRUPT",
    42: "BATCH_FORGET", 45: "RENAME2",
}  # fmt: skip
# Nobody waits for the answer to these.
SILENT = ("FORGET", "BATCH_FORGET", "INTERRUPT", "RELEASE", "RELEASEDIR", "INIT")


class Hanging:
    """A folder, shown at another place, where requests of one kind for one name are not answered."""

    def __init__(self, real, shown):
        self.shown = shown
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,default_permissions"
        if LIBC.mount(b"hanging", shown.encode(), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        self.nodes = {1: os.open(real, os.O_PATH | os.O_DIRECTORY)}
        self.numbers = {self.key(os.fstat(self.nodes[1])): 1}
        self.files, self.next_file = {}, 1
        self.seen = []
        self.rule, self.held, self.has_hung = None, {}, False
        # In a process of its own: who starts a command waits for it to find its folder, which is here.
        self.control, control = multiprocessing.Pipe()
        self.server = os.fork()
        if self.server == 0:
            threading.Thread(target=self.obey, args=(control,), daemon=True).start()
            self.serve()
            os._exit(0)
        os.close(self.device)

    def close(self):
        LIBC.umount2(self.shown.encode(), 2)
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)

    def ask(self, *message):
        self.control.send(message)
        return self.control.recv()

    def obey(self, control):
        while True:
            what, *rest = control.recv()
            if what == "hang":
                self.rule, self.has_hung = rest[0] and tuple(rest[0]), False
                for unique in list(self.held):
                    self.reply(unique, -errno.EINTR)
                control.send(None)
            elif what == "hangs":
                control.send(self.has_hung)
            else:
                seen, self.seen = self.seen, []
                control.send(seen)

    @staticmethod
    def key(status):
        return (status.st_dev, status.st_ino)

    def path(self, node):
        return f"/proc/self/fd/{self.nodes[node]}"

    def hang(self, rule):
        """From now on requests of this kind are not answered; those that were not are given up."""
        self.ask("hang", rule)

    def reply(self, unique, error, body=b""):
        self.held.pop(unique, None)
        try:
            os.write(self.device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
        except OSError as failed:
            # Who asked may be gone.
            if failed.errno != errno.ENOENT:
                print("wrong: the file system's own answer:", failed)

    def serve(self):
        while True:
            try:
                request = os.read(self.device, 1 << 21)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, code, unique, node = struct.unpack_from("<IIQQ", request)
            body, op = request[40:], OPS.get(code)
            if op == "INTERRUPT":
                interrupted = struct.unpack_from("<Q", body)[0]
                if interrupted in self.held:
                    self.reply(interrupted, -errno.EINTR)
                continue
            if op in ("FORGET", "BATCH_FORGET"):
                continue
            if op is None:
                self.reply(unique, -errno.ENOSYS)
                continue
            name = self.name_of(op, node, body)
            if op not in SILENT:
                self.seen.append((op, name))
                if (op, name) == self.rule:
                    self.held[unique] = True
                    self.has_hung = True
                    continue
            try:
                self.reply(unique, 0, getattr(self, op)(node, body))
            except OSError as error:
                self.reply(unique, -error.errno)
            except Exception as error:  # noqa: BLE001
                print("wrong: the file system itself:", op, repr(error))
                self.reply(unique, -errno.EIO)

    def name_of(self, op, node, body):
        skip = {"LOOKUP": 0, "UNLINK": 0, "RMDIR": 0, "MKDIR": 8, "MKNOD": 16, "CREATE": 16, "LINK": 8, "RENAME": 8, "RENAME2": 16}
        if op in skip:
            return body[skip[op] :].split(b"\0")[0].decode()
        return os.path.basename(os.readlink(self.path(node)).removesuffix(" (deleted)")) if node in self.nodes else ""

    def entry(self, parent, name):
        opened = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.nodes[parent])
        status = os.fstat(opened)
        number = self.numbers.get(self.key(status))
        if number is None:
            number = len(self.nodes) + 1
            self.nodes[number], self.numbers[self.key(status)] = opened, number
        else:
            os.close(opened)
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self.attributes(status)

    @staticmethod
    def attributes(s):
        seconds = [int(t // 10**9) for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
        rest = [int(t % 10**9) for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
        numbers = [s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, 4096, 0]
        return struct.pack("<6Q10I", s.st_ino, s.st_size, s.st_blocks, *seconds, *rest, *numbers)

    def opened(self, descriptor):
        number, self.next_file = self.next_file, self.next_file + 1
        self.files[number] = descriptor
        return struct.pack("<QII", number, 0, 0)

    def INIT(self, node, body):
        ahead = struct.unpack_from("<III", body)[2]
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, ahead, 0, 12, 9, 1 << 17, 1, 0, 0, 0, *[0] * 7)

    def LOOKUP(self, node, body):
        return self.entry(node, body.split(b"\0")[0])

    def GETATTR(self, node, body):
        return struct.pack("<QII", 0, 0, 0) + self.attributes(os.fstat(self.nodes[node]))

    def SETATTR(self, node, body):
        valid, _, _, size, _, at, mt, _, an, mn, _, mode, _, _, _, _ = struct.unpack_from("<IIQQQQQQ8I", body)
        if valid & 1:
            os.chmod(self.path(node), stat.S_IMODE(mode))
        if valid & 8:
            os.truncate(self.path(node), size)
        if valid & 0x1B0:
            now = time.time_ns()
            given = (at * 10**9 + an if valid & 16 and not valid & 128 else now, mt * 10**9 + mn if valid & 32 and not valid & 256 else now)
            os.utime(self.path(node), ns=given)
        return self.GETATTR(node, body)

    def READLINK(self, node, body):
        return os.readlink("", dir_fd=self.nodes[node]).encode()

    def MKNOD(self, node, body):
        os.mknod(body[16:].split(b"\0")[0], struct.unpack_from("<I", body)[0], dir_fd=self.nodes[node])
        return self.entry(node, body[16:].split(b"\0")[0])

    def MKDIR(self, node, body):
        os.mkdir(body[8:].split(b"\0")[0], 0o755, dir_fd=self.nodes[node])
        return self.entry(node, body[8:].split(b"\0")[0])

    def UNLINK(self, node, body):
        os.unlink(body.split(b"\0")[0], dir_fd=self.nodes[node])
        return b""

    def RMDIR(self, node, body):
        os.rmdir(body.split(b"\0")[0], dir_fd=self.nodes[node])
        return b""

    def rename(self, node, to, flags, names):
        old, new = names.split(b"\0")[:2]
        if LIBC.renameat2(self.nodes[node], old, self.nodes[to], new, flags) != 0:
            raise OSError(ctypes.get_errno(), "rename")
        return b""

    def RENAME(self, node, body):
        return self.rename(node, struct.unpack_from("<Q", body)[0], 0, body[8:])

    def RENAME2(self, node, body):
        return self.rename(node, *struct.unpack_from("<QI", body), body[16:])

    def LINK(self, node, body):
        new = body[8:].split(b"\0")[0]
        os.link(self.path(struct.unpack_from("<Q", body)[0]), new, dst_dir_fd=self.nodes[node], follow_symlinks=True)
        return self.entry(node, new)

    def OPEN(self, node, body):
        flags = struct.unpack_from("<I", body)[0] & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        return self.opened(os.open(self.path(node), flags))

    def CREATE(self, node, body):
        flags, mode = struct.unpack_from("<II", body)
        name = body[16:].split(b"\0")[0]
        descriptor = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, stat.S_IMODE(mode), dir_fd=self.nodes[node])
        return self.entry(node, name) + self.opened(descriptor)

    def READ(self, node, body):
        number, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(self.files[number], size, offset)

    def WRITE(self, node, body):
        number, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(self.files[number], body[40 : 40 + size], offset), 0)

    def STATFS(self, node, body):
        s = os.statvfs(self.path(node))
        counts = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        return struct.pack("<5Q4I6I", *counts, s.f_bsize, 255, s.f_frsize, 0, *[0] * 6)

    def RELEASE(self, node, body):
        os.close(self.files.pop(struct.unpack_from("<Q", body)[0]))
        return b""

    def FSYNC(self, node, body):
        return b""

    FLUSH = FSYNCDIR = FSYNC

    def OPENDIR(self, node, body):
        return self.opened(os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY))

    RELEASEDIR = RELEASE

    def READDIR(self, node, body):
        number, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        names = sorted(os.listdir(self.files[number]))
        for at, name in list(enumerate(names))[offset:]:
            raw = name.encode()
            kind = stat.S_IFMT(os.lstat(name, dir_fd=self.files[number]).st_mode) >> 12
            one = struct.pack("<QQII", 1, at + 1, len(raw), kind) + raw
            one += b"\0" * (-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return out


WRONG = []


def wrong(text):
    WRONG.append(text)
    print("wrong:", text)


RECIPE = """version: 1
stages:
  - stage: load
    model: model
  - stage: quantize-int4
  - stage: validate
  - stage: export
    path: out
"""


def tree(folder):
    found = {}
    for below, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(below, name), "rb") as file:
                found[os.path.relpath(os.path.join(below, name), folder)] = file.read()
    return found


class Attack:
    def __init__(self, work):
        self.real, self.shown = os.path.join(work, "real"), os.path.join(work, "shown")
        os.mkdir(self.real)
        os.mkdir(self.shown)
        shutil.copytree(os.path.join(MAIN, "examples/tiny-llama"), os.path.join(self.real, "model"))
        with open(os.path.join(self.real, "r.yaml"), "w") as file:
            file.write(RECIPE)
        self.disk = Hanging(self.real, self.shown)
        self.environment = {key: value for key, value in os.environ.items() if key != "CI"}
        self.tried = 0

    def start(self, args, rule=None):
        """Starts a command in the folder that is shown; what it asks for by the rule is not answered."""
        quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
        line = 'cd "$0" && echo there && read -r go && exec "$@"'
        line = ["sh", "-c", line, self.shown, BIN, *args]
        process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=quiet, env=self.environment)
        process.stdout.readline()
        self.disk.hang(rule)
        process.stdin.write(b"go\n")
        process.stdin.close()
        # What is said is short, and nobody waits for it.
        return process

    def run(self, args):
        return self.start(args).wait(120)

    def clear(self):
        for name in os.listdir(self.real):
            if name not in ("model", "r.yaml", "kept"):
                path = os.path.join(self.real, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    def requests(self, args, prepare):
        """What a command asks for, in the order of the first time."""
        self.clear()
        prepare()
        self.disk.ask("seen")
        process = self.start(args)
        self.disk.ask("seen")
        if "--watch" in args:
            time.sleep(3)
            process.send_signal(signal.SIGINT)
        if process.wait(120) not in (0, 130):
            wrong(f"{args} ends with {process.returncode} where nothing hangs")
        return [tuple(one) for one in self.disk.ask("seen")]

    def try_on(self, args, rule, prepare, may_publish, good):
        # A machine that has other things to do may be late once, and again, but hardly three times for one request.
        for last in (False, False, True):
            if self.ends_in_time(args, rule, prepare, may_publish, good, last):
                return

    def ends_in_time(self, args, rule, prepare, may_publish, good, last):
        self.clear()
        prepare()
        self.tried += 1
        one = (signal.SIGINT, signal.SIGTERM)[self.tried % 2]
        what = f"{' '.join(args)}: {rule[0]} {rule[1]}: {one.name}"
        process = self.start(args, rule)
        while not self.disk.ask("hangs"):
            time.sleep(0.01)
            if process.poll() is not None:
                # Which threads read what differs from time to time.
                self.disk.hang(None)
                return True
        time.sleep(0.1)
        start = time.monotonic()
        process.send_signal(one)
        took = self.wait(process, start, 1.0)
        if took is None and may_publish:
            process.send_signal(one)
            took = self.wait(process, start, 2.0)
        in_time = took is not None
        if not in_time:
            if last:
                wrong(f"{what}: it does not end: {self.waits(process)}")
            process.kill()
            self.disk.hang(None)
            process.wait(60)
        elif process.returncode != 130 and not (may_publish and process.returncode == 0):
            wrong(f"{what}: it ends with {process.returncode}")
        self.disk.hang(None)
        if args[0] != "run":
            if tree(self.real) != self.before:
                wrong(f"{what}: it has left something behind")
            return in_time
        if self.run(["run", "r.yaml", "-q"]) != 0:
            wrong(f"{what}: the next run fails")
        if tree(os.path.join(self.real, "out")) != good:
            wrong(f"{what}: the next run makes something else")
        left = [name for name in os.listdir(self.real) if name not in ("model", "r.yaml", "out", "kept", ".out.monoquant-record")]
        if left:
            wrong(f"{what}: left {left}")
        return in_time

    @staticmethod
    def waits(process):
        """What the threads of a process wait for in the kernel."""
        try:
            tasks = os.listdir(f"/proc/{process.pid}/task")
            return sorted(open(f"/proc/{process.pid}/task/{task}/wchan").read() for task in tasks)
        except OSError:
            return "it has just ended"

    @staticmethod
    def wait(process, start, most):
        """Seconds that a process took to end, if it did in time."""
        while time.monotonic() - start < most:
            if process.poll() is not None:
                return time.monotonic() - start
            time.sleep(0.002)
        return None

    def attack(self):
        self.run(["run", "r.yaml", "-q"])
        good = tree(os.path.join(self.real, "out"))
        if not good:
            wrong("nothing is published where nothing hangs")
            return
        kept = os.path.join(self.real, "kept")
        os.mkdir(kept)
        for name in ("out", ".out.monoquant-record"):
            os.rename(os.path.join(self.real, name), os.path.join(kept, name))

        def with_output():
            shutil.copytree(os.path.join(kept, "out"), os.path.join(self.real, "out"))
            shutil.copy2(os.path.join(kept, ".out.monoquant-record"), self.real)

        def nothing():
            pass

        for args, prepare in [
            (["check", "r.yaml"], nothing),
            (["inspect", "model"], nothing),
            (["plan", "r.yaml"], nothing),
            (["explain", "r.yaml", "lm_head.weight"], nothing),
            (["verify", "out"], with_output),
            (["run", "r.yaml", "--durable"], nothing),
            (["run", "r.yaml"], with_output),
            (["run", "r.yaml", "--set", "quantize-int4.group_size=64"], with_output),
            (["run", "r.yaml", "--watch"], nothing),
        ]:
            asked = self.requests(args, prepare)
            self.clear()
            prepare()
            self.before = tree(self.real)
            # What is asked for first when all is written into the staging folder and it is moved is part of publishing.
            moves = [at for at, (op, name) in enumerate(asked) if op.startswith("RENAME") and name.endswith("staging")]
            written = [at for at, (op, _) in enumerate(asked) if moves and at < moves[0] and op in ("CREATE", "WRITE", "FSYNC", "LINK")]
            # For the answer to FLUSH, which is asked for when a file is closed, the kernel waits whatever happens.
            for rule in dict.fromkeys(one for one in asked if one[0] != "FLUSH"):
                may_publish = bool(moves) and asked.index(rule) > written[-1]
                self.try_on(args, rule, prepare, may_publish, good)
            print(f"{' '.join(args)}: {len(set(asked))} requests")


def main():
    if os.geteuid() != 0:
        print("skipped: needs root")
        return
    with tempfile.TemporaryDirectory() as work:
        try:
            attack = Attack(work)
        except OSError as error:
            print("skipped: a file system that hangs cannot be mounted here:", error)
            return
        try:
            attack.attack()
        finally:
            attack.disk.close()
    print("FOUND" if WRONG else "not found")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
