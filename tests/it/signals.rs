//! The first Ctrl-C or SIGTERM ends anything, whatever it is waiting for; what a run has finished stays for the next one.
//!
//! Nothing here ends by itself before the signal. That it ends within a second is measured by `tests/attacks/signals.sh`.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Model, Workspace, json};

const INT4: &str = "  - stage: quantize-int4\n  - stage: validate\n";

/// So long is waited for what ends within a second, or begins soon, on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(60);

/// A process that ends by signals only.
struct Waiting(Child);

impl Waiting {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("the binary runs"))
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(killed.expect("kill").success());
    }

    /// Waits until something is so, which must come before the process ends.
    #[track_caller]
    fn wait_until(&mut self, is_so: impl Fn(&Child) -> bool) {
        let start = Instant::now();
        while !is_so(&self.0) {
            assert!(start.elapsed() < LONG, "it never came to it");
            assert!(self.0.try_wait().expect("a child").is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end.
    #[track_caller]
    fn ends(mut self, what: &str) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < LONG, "{what}: it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a process has a file open, or, where the system does not tell, had time to open it.
fn has_open(child: &Child, path: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{}/fd", child.id())) else {
        std::thread::sleep(Duration::from_secs(1));
        return true;
    };
    let path = path.canonicalize().expect("a file");
    open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// A pipe that is full: who writes to it waits until it is read, which it never is.
fn full_pipe() -> (OwnedFd, Stdio) {
    let (reading, writing) = std::io::pipe().expect("a pipe");
    let writing = OwnedFd::from(writing);
    let flags = rustix::fs::fcntl_getfl(&writing).expect("flags");
    rustix::fs::fcntl_setfl(&writing, flags | rustix::fs::OFlags::NONBLOCK).expect("flags");
    let mut file = File::from(writing);
    while file.write(&[b' '; 512]).is_ok() {}
    while file.write(b" ").is_ok() {}
    rustix::fs::fcntl_setfl(&file, flags).expect("flags");
    (OwnedFd::from(reading), Stdio::from(file))
}

/// An output that cannot be compared with its report before the end of time: it says of a file that it is as long as it is.
fn endless_output(workspace: &Workspace) -> std::path::PathBuf {
    workspace.run(&workspace.recipe(INT4)).exits(0);
    let path = workspace.path("out/monoquant-report.json");
    let mut report: monoquant::report::Report = serde_json::from_value(json(&path)).expect("a report");
    let file = &mut report.outputs[0].files[0];
    let weights = workspace.path("out").join(&file.name);
    // Sparse, and more than any machine can read while a test waits.
    file.bytes = 1 << 43;
    File::options()
        .write(true)
        .open(&weights)
        .and_then(|open| open.set_len(file.bytes))
        .expect("a long file");
    monoquant::report::seal(&mut report);
    let file = File::create(path).expect("the report");
    monoquant::report::write(&report, file).expect("the report");
    weights
}

#[test]
fn comparing_files_with_their_checksums_ends() {
    let workspace = Workspace::with(&Model::llama());
    let weights = endless_output(&workspace);
    for (signal, before) in [("INT", ""), ("TERM", ""), ("INT", "trap '' INT; ")] {
        // A shell has Ctrl-C ignored by what it starts in the background.
        let mut command = Command::new("sh");
        let line = format!("{before}exec \"$0\" verify out");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_monoquant")]).current_dir(workspace.root());
        let mut waiting = Waiting::start(command);
        waiting.wait_until(|child| has_open(child, &weights));
        waiting.signal(signal);
        assert_eq!(waiting.ends(signal).code(), Some(130), "{before}{signal}");
    }
}

#[test]
fn what_nohup_has_started_does_not_end_with_its_terminal() {
    let workspace = Workspace::with(&Model::llama());
    let weights = endless_output(&workspace);
    let mut command = Command::new("sh");
    let line = "trap '' HUP; exec \"$0\" verify out";
    command.args(["-c", line, env!("CARGO_BIN_EXE_monoquant")]).current_dir(workspace.root());
    let mut waiting = Waiting::start(command);
    waiting.wait_until(|child| has_open(child, &weights));
    waiting.signal("HUP");
    std::thread::sleep(Duration::from_secs(1));
    assert!(waiting.0.try_wait().expect("a child").is_none(), "it goes on");
    waiting.signal("TERM");
    assert_eq!(waiting.ends("TERM").code(), Some(130));
}

#[test]
fn a_command_whose_reader_hangs_ends_and_leaves_nothing() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(INT4)).exits(0);
    workspace.write("broken.yaml", "version: 1\nstages: [{stage: lode}]\n");
    let names = workspace.names();
    let commands: [&[&str]; 10] = [
        &["inspect", "model"],
        &["plan", "recipe.yaml"],
        &["run", "recipe.yaml", "--dry-run"],
        &["explain", "recipe.yaml", "lm_head.weight"],
        &["check", "recipe.yaml"],
        &["check", "broken.yaml"],
        &["verify", "out"],
        &["schema"],
        &["run", "recipe.yaml", "--format", "json"],
        &["run", "broken.yaml"],
    ];
    for args in commands {
        for signal in ["INT", "TERM"] {
            let ((_out, stdout), (_err, stderr)) = (full_pipe(), full_pipe());
            let mut command = workspace.command(args);
            command.stdout(stdout).stderr(stderr);
            let mut waiting = Waiting::start(command);
            std::thread::sleep(Duration::from_millis(300));
            assert!(waiting.0.try_wait().expect("a child").is_none(), "{args:?} ended by itself");
            waiting.signal(signal);
            let status = waiting.ends(signal);
            // Before it listens, a signal ends it as it ends any process.
            let is_ended = status.code() == Some(130) || status.code().is_none();
            assert!(is_ended, "{args:?} {signal}: {status}");
        }
    }
    assert_eq!(workspace.names(), names);
    workspace.monoquant(["verify", "out"]).exits(0);
}

#[test]
fn a_run_that_hangs_is_ended_and_the_next_one_goes_on() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    for signal in ["INT", "TERM"] {
        // It cannot say that it has begun to read, and holds the lock meanwhile.
        let (_err, stderr) = full_pipe();
        let mut command = workspace.command(["run", "recipe.yaml"]);
        command.stdout(Stdio::null()).stderr(stderr);
        let mut waiting = Waiting::start(command);
        let lock = workspace.path(".out.monoquant-lock");
        waiting.wait_until(|_| lock.exists());
        std::thread::sleep(Duration::from_millis(300));
        waiting.signal(signal);
        assert_eq!(waiting.ends(signal).code(), Some(130), "{signal}");
        assert!(!workspace.path("out").exists());
        workspace.run(&recipe).exits(0);
        assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
        workspace.monoquant(["verify", "out"]).exits(0);
        fs::remove_dir_all(workspace.path("out")).expect("the output");
        fs::remove_file(workspace.path(".out.monoquant-record")).expect("its record");
    }
}

#[test]
fn a_watch_between_two_cycles_ends() {
    for (signal, poll) in [("INT", false), ("TERM", false), ("TERM", true)] {
        let workspace = Workspace::with(&Model::llama());
        workspace.recipe(INT4);
        let poll = if poll { &["--poll", "3600"][..] } else { &[] };
        let mut command = workspace.command([&["run", "recipe.yaml", "--watch"], poll].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut waiting = Waiting::start(command);
        let mut lines = BufReader::new(waiting.0.stdout.take().expect("a pipe")).lines();
        assert!(lines.any(|line| line.expect("text").contains("cycle 1: ✓ passed")));
        waiting.signal(signal);
        assert_eq!(waiting.ends(signal).code(), Some(130), "{signal}");
        assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    }
}

#[test]
fn a_watch_whose_reader_hangs_ends() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let (_out, stdout) = full_pipe();
    let mut command = workspace.command(["run", "recipe.yaml", "--watch"]);
    command.stdout(stdout).stderr(Stdio::null());
    let mut waiting = Waiting::start(command);
    let out = workspace.path("out");
    waiting.wait_until(|_| out.exists());
    waiting.signal("TERM");
    assert_eq!(waiting.ends("TERM").code(), Some(130));
    workspace.monoquant(["verify", "out"]).exits(0);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}
