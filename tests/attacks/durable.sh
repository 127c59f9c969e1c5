#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # --durable: every file written, and every folder made or renamed in, is flushed afterwards
need_strace
mkdir model/assets; echo x > model/assets/x.txt; mkdir model/assets/deep; echo y > model/assets/deep/y.txt
cat > flushed.py <<'P'
import os, re, sys
at, pending, calls = {}, {}, []
for line in open(sys.argv[1], errors="replace"):
    pid, text = line.rstrip("\n").split(None, 1)
    if text.endswith("<unfinished ...>"):
        pending[pid] = text[: -len("<unfinished ...>")]
        continue
    resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", text)
    if resumed:
        text = pending.pop(pid, "") + resumed[1]
    calls.append(text)
path = lambda folder, name: os.path.normpath(os.path.join(folder, name))
cwd = os.getcwd()
def named(text):
    """The paths that a call names, in order: `AT_FDCWD</folder>, "name"`, or `"name"` alone."""
    out = []
    for folder, name in re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"', text):
        out.append(path(folder or cwd, name))
    return out
needed = {}     # a folder: the call after which it is to be flushed
files = {}
for number, text in enumerate(calls):
    if not re.search(r"\) += \d+", text):
        continue
    call = text.split("(", 1)[0]
    if call in ("mkdir", "mkdirat"):
        needed[os.path.dirname(named(text)[-1])] = (number, text)
    elif call in ("rename", "renameat", "renameat2", "linkat"):
        for name in named(text) if call != "linkat" else named(text)[-1:]:
            needed[os.path.dirname(name)] = (number, text)
        if call != "linkat":
            # What was known under the old names is known under the new ones.
            old, new = named(text)
            swap = "EXCHANGE" in text
            def moved(name):
                for a, b in [(old, new)] + ([(new, old)] if swap else []):
                    if name == a or name.startswith(a + "/"):
                        return b + name[len(a):]
                return name
            needed = {moved(k): v for k, v in needed.items()}
            files = {moved(k): v for k, v in files.items()}
    elif call == "openat" and "O_CREAT" in text:
        files[named(text)[-1]] = (number, text)
        needed[os.path.dirname(named(text)[-1])] = (number, text)
    elif call in ("fsync", "fdatasync"):
        done = re.search(r"<([^>]*)>", text)[1]
        if call == "fsync":
            needed.pop(done, None)
        files.pop(done, None)
passing = lambda name: any(mark in name for mark in ("monoquant-lock", "monoquant-journal", "monoquant-new"))
# Only what is still there counts.
for name, (_, text) in sorted(files.items()):
    if os.path.isfile(name) and not passing(name):
        print("not flushed:", name, "after", text[:160])
for name, (_, text) in sorted(needed.items()):
    # The lock comes and goes last; a folder with nothing but it needs no flush.
    if os.path.isdir(name) and not passing(text):
        print("not flushed:", name, "after", text[:160])
P
try() {
    rm -f tr
    strace -f -y -qq -o tr -e trace=mkdir,mkdirat,rename,renameat,renameat2,linkat,openat,fsync,fdatasync "$MQ" run r.yaml -q --durable "$@" >/dev/null 2>&1
    rc=$?; [ $rc = 0 ] || wrong "$*: status $rc"
    out=$(python3 flushed.py tr); [ -z "$out" ] || wrong "$* (${out})"
    grep -q fsync tr || wrong "$*: nothing was flushed"
}
try; try; try --set quantize-int4.group_size=64; try --set quantize-int4.group_size=64 --fresh
try --set validate.on_failure=warn
try --output new/deep/out; try --output new/deep/out; try --output "$W/absolute/out"; try --output ./new/other
"$MQ" run r.yaml -q --output later
grep -q later tr 2>/dev/null; try --output later
grep -q "fsync([0-9]*<$(realpath .)>)" tr || wrong "up to date: the folder that the output is in was not flushed"
for file in $(find later -type f); do
    grep -q "fsync([0-9]*<$(realpath "$file")>)" tr || wrong "up to date: $file was not flushed"
done
conclude
