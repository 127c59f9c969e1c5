//! Whatever is in the place of a file that is read: a pipe, a device, a link to somewhere, more than fits into memory. Each is
//! refused at once by a finding that names the file, says what it is and what to do; nothing is written.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;

use crate::support::statistics::safetensors;
use crate::support::{Model, Workspace};

/// So long is waited for what takes no time, on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(60);

/// The user that reads what nobody may read, where the tests are root's: nobody.
const NOBODY: u32 = 65534;

/// What is put in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    Device,
    Socket,
    Folder,
    /// A link to nothing.
    Dangling,
    /// A link to the file itself, outside of the model's folder.
    Outside,
    /// A link to itself.
    Loop,
    /// Zeros, longer than any memory.
    Endless,
    /// One that the account may not read.
    Unreadable,
    Empty,
}

use Kind::{Dangling, Device, Empty, Endless, Folder, Loop, Outside, Pipe, Socket, Unreadable};

const KINDS: [Kind; 10] = [Pipe, Device, Socket, Folder, Dangling, Outside, Loop, Endless, Unreadable, Empty];

impl Kind {
    /// Puts it at a path, in place of the file that is there.
    fn put(self, root: &Path, path: &Path) -> Option<UnixListener> {
        let aside = root.join("aside");
        fs::create_dir(&aside).expect("a folder");
        let kept = aside.join(path.file_name().expect("a name"));
        if path.symlink_metadata().is_err() {
            fs::write(path, "{}").expect("something like it");
        }
        fs::rename(path, &kept).expect("what was there");
        match self {
            Pipe => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a pipe"),
            Device => {
                let mode = Mode::from_raw_mode(0o666);
                // Only root makes devices, and not in every container: a link to one is as bad.
                if mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(1, 5)).is_err() {
                    symlink("/dev/zero", path).expect("a link");
                }
            }
            // Its path must be short.
            Socket => {
                let listener = UnixListener::bind(root.join("s")).expect("a socket");
                fs::rename(root.join("s"), path).expect("a socket");
                return Some(listener);
            }
            Folder => fs::create_dir(path).expect("a folder"),
            Dangling => symlink("nowhere", path).expect("a link"),
            Outside => symlink(&kept, path).expect("a link"),
            Loop => symlink(path.file_name().expect("a name"), path).expect("a link"),
            Endless => {
                File::create(path).and_then(|file| file.set_len(1 << 43)).expect("a sparse file");
            }
            Unreadable => {
                if kept.is_dir() {
                    copy(&kept, path)
                } else {
                    fs::copy(&kept, path).map(drop).expect("a copy")
                }
                fs::set_permissions(path, fs::Permissions::from_mode(0o0)).expect("permissions");
            }
            Empty => drop(File::create(path).expect("a file")),
        }
        None
    }

    /// One of these words says what it is; nothing is asked of what is said of an empty file.
    fn words(self) -> &'static [&'static str] {
        match self {
            Pipe => &["a pipe"],
            Device => &["a device", "a pipe, socket or device", "link"],
            Socket => &["a socket", "a pipe, socket or device"],
            Folder => &["a folder", "a directory", "is empty", "No such file"],
            Dangling => &["does not exist", "No such file", "link"],
            Outside => &["a link", "a symbolic link"],
            Loop => &["symbolic link", "a link"],
            Endless => &[
                "longer than",
                "larger than",
                "too large",
                "bytes and not",
                "header of",
                "needs",
                "is not a",
                "is a file",
            ],
            Unreadable => &["ermission denied"],
            Empty => &[""],
        }
    }
}

/// A file that is read.
struct Place {
    path: &'static str,
    /// Who reads it, and the exit status if it cannot be read.
    readers: &'static [(&'static [&'static str], i32)],
    /// The status with some kinds, if it is another; 0 where all is well.
    but: &'static [(Kind, i32)],
}

const INSPECT: &[&str] = &["inspect", "model"];
const RUN: &[&str] = &["run", "recipe.yaml"];
const RUN_OTHER: &[&str] = &["run", "other.yaml"];
const PLAN: &[&str] = &["plan", "recipe.yaml"];
const EXPLAIN: &[&str] = &["explain", "recipe.yaml", "lm_head.weight"];
const CHECK: &[&str] = &["check", "recipe.yaml"];
const VERIFY: &[&str] = &["verify", "out"];

/// With these a file cannot be carried over, which the recipe may leave out; too long a one has no room.
const CARRIED: &[(Kind, i32)] =
    &[(Pipe, 2), (Device, 2), (Socket, 2), (Dangling, 2), (Loop, 2), (Folder, 0), (Empty, 0), (Endless, 4)];

/// In an output, files of another length are replaced like any other.
const REPLACED: &[(Kind, i32)] = &[(Endless, 0), (Unreadable, 0), (Empty, 0)];

const PLACES: &[Place] = &[
    Place {
        path: "recipe.yaml",
        readers: &[(RUN, 2), (PLAN, 2), (CHECK, 2), (EXPLAIN, 2)],
        but: &[(Outside, 0)],
    },
    Place { path: "model/config.json", readers: &[(RUN, 3), (PLAN, 3), (INSPECT, 3)], but: &[] },
    Place {
        path: "model/model.safetensors.index.json",
        readers: &[(RUN, 3), (INSPECT, 3), (EXPLAIN, 3)],
        but: &[],
    },
    Place {
        path: "model/model-00001-of-00002.safetensors",
        readers: &[(RUN, 3), (INSPECT, 3), (EXPLAIN, 3)],
        but: &[],
    },
    Place { path: "model/tokenizer.json", readers: &[(RUN, 3)], but: CARRIED },
    Place { path: "model/generation_config.json", readers: &[(RUN, 3)], but: CARRIED },
    Place { path: "model/assets/deep/picture.png", readers: &[(RUN, 3)], but: CARRIED },
    Place { path: "model", readers: &[(RUN, 3), (INSPECT, 3)], but: &[(Outside, 0)] },
    Place {
        path: "stats.safetensors",
        readers: &[(&["run", "weighed.yaml"], 3), (&["inspect", "stats.safetensors"], 3)],
        but: &[(Outside, 0)],
    },
    Place {
        path: "hub/models--org--tiny/refs/main",
        readers: &[(&["inspect", "hf://org/tiny"], 3)],
        but: &[(Outside, 0)],
    },
    Place { path: "out", readers: &[(VERIFY, 3)], but: &[(Outside, 0)] },
    Place { path: "out/monoquant-report.json", readers: &[(RUN_OTHER, 4), (VERIFY, 3)], but: &[] },
    Place { path: "out/model-00001-of-00002.safetensors", readers: &[(VERIFY, 5)], but: &[] },
    Place { path: "out/model.safetensors.index.json", readers: &[(VERIFY, 5)], but: &[] },
    Place { path: "out/config.json", readers: &[(VERIFY, 5)], but: &[] },
    Place { path: "out/tokenizer.json", readers: &[(VERIFY, 5)], but: &[] },
    Place { path: "out/model-00002-of-00002.safetensors", readers: &[(RUN_OTHER, 4)], but: REPLACED },
    Place { path: "out/tokenizer.json", readers: &[(RUN_OTHER, 4)], but: REPLACED },
    Place { path: "out/model.safetensors.index.json", readers: &[(RUN_OTHER, 4)], but: REPLACED },
    Place { path: ".out.monoquant-record", readers: &[(RUN_OTHER, 4)], but: REPLACED },
    Place { path: ".out.monoquant-journal", readers: &[(RUN_OTHER, 4)], but: REPLACED },
    Place { path: ".out.monoquant-lock", readers: &[(RUN_OTHER, 4)], but: &[(Endless, 0), (Empty, 0)] },
    Place { path: "out.failed-report.json", readers: &[(RUN_OTHER, 4)], but: &[] },
];

/// A workspace with everything that can be read.
fn everything() -> Workspace {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/assets/deep/picture.png", "picture");
    let recipe = |stages: &str| {
        format!(
            "version: 1\nname: test\nstages:\n  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n"
        )
    };
    workspace.write("recipe.yaml", recipe("  - stage: quantize-int4\n"));
    workspace.write("other.yaml", recipe("  - stage: quantize-int4\n    group_size: 64\n"));
    let weighed = "  - stage: quantize-int4\n    observer: imatrix-mse\n    calibration: {file: stats.safetensors, on_missing: warn}\n";
    workspace.write("weighed.yaml", recipe(weighed));
    let sums = [1.0; 128];
    let module = ("model.layers.0.self_attn.q_proj", &[128][..], &sums[..], &[7][..]);
    workspace.write("stats.safetensors", safetensors(&[module], None));
    let snapshot = workspace.path("hub/models--org--tiny/snapshots/abc");
    fs::create_dir_all(&snapshot).expect("a folder");
    Model::llama().write(&snapshot);
    workspace.write("hub/models--org--tiny/refs/main", "abc");
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    workspace
}

/// Copies all files of a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).expect("a copy") }
    }
}

/// What is in a folder, at any depth: what it is, and how long or where it leads.
fn listed(folder: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let metadata = path.symlink_metadata().expect("an entry");
        let what = format!("{:?} {} {:?}", metadata.file_type(), metadata.len(), fs::read_link(&path).ok());
        if metadata.is_dir() {
            out.extend(listed(&path));
        } else {
            out.insert(path.display().to_string(), what);
        }
    }
    out
}

/// Gives everything in a folder to nobody.
fn give_away(path: &Path) {
    lchown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("a folder") {
            give_away(&entry.expect("an entry").path());
        }
    }
}

/// Runs a command; its exit status and its findings. None if it does not end.
fn carry_out(mut command: Command) -> Option<(Option<i32>, Vec<Value>)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let said = folder.path().join("said");
    command.stdout(File::create(&said).expect("a file")).stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary runs");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if start.elapsed() > LONG {
            child.kill().and_then(|()| child.wait()).expect("it is ended");
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let said: Value = serde_json::from_slice(&fs::read(&said).expect("what it said")).unwrap_or_default();
    // A list, an object with one, or the report of a run.
    let findings = [&said, &said["findings"], &said["warnings"]].into_iter().find_map(Value::as_array);
    Some((status.code(), findings.cloned().unwrap_or_default()))
}

/// What is wrong with what a command makes of something in the place of a file.
fn complaint(
    base: &Path,
    binary: &Path,
    place: &Place,
    kind: Kind,
    (args, exit): (&[&str], i32),
) -> Option<String> {
    let folder = TempDir::new().expect("a temporary folder");
    let root = folder.path().join("work");
    copy(base, &root);
    let path = root.join(place.path);
    let _listener = kind.put(&root, &path);
    let is_nobody = kind == Unreadable && rustix::process::geteuid().is_root();
    let mut command = Command::new(binary);
    command.args(args).args(["--format", "json"]).current_dir(&root).env_clear().stdin(Stdio::null());
    command.env("HF_HUB_CACHE", root.join("hub"));
    if is_nobody {
        give_away(folder.path());
        command.uid(NOBODY).gid(NOBODY);
    }
    let before = listed(&root);
    let Some((status, findings)) = carry_out(command) else { return Some("it does not end".to_owned()) };
    let exit = place.but.iter().find(|(other, _)| *other == kind).map_or(exit, |(_, status)| *status);
    if status != Some(exit) {
        return Some(format!("status {status:?} and not {exit}: {findings:?}"));
    }
    if exit == 0 {
        return None;
    }
    if listed(&root) != before {
        return Some(format!("something was written: {:?}", listed(&root)));
    }
    let name = path.file_name().expect("a name").to_str().expect("text");
    // A stranger in an output is told by its name alone.
    let is_stranger = place.path.starts_with("out/") && args == RUN_OTHER;
    let is_told = findings.iter().any(|finding| {
        let message = finding["message"].as_str().expect("a message");
        let says_what = is_stranger || kind.words().iter().any(|word| message.contains(word));
        // Of what has no room only the output is named.
        let names_it = message.contains(name) || finding["labels"].to_string().contains(name);
        (names_it || exit == 4 && kind == Endless) && says_what && !finding["help"].is_null()
    });
    (!is_told).then(|| format!("what it is and what to do is not told: {findings:?}"))
}

#[test]
fn whatever_is_in_the_place_of_a_file_is_told_and_nothing_is_written() {
    let everything = everything();
    // Where the checkout is, a user who may read little may not look.
    let shared = TempDir::new().expect("a temporary folder");
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let binary = shared.path().join("monoquant");
    fs::copy(env!("CARGO_BIN_EXE_monoquant"), &binary).expect("a copy");
    let mut wrong = Vec::new();
    for place in PLACES {
        for kind in KINDS {
            for (args, exit) in place.readers {
                if let Some(complaint) = complaint(everything.root(), &binary, place, kind, (args, *exit)) {
                    wrong.push(format!("{kind:?} as {}, {}: {complaint}", place.path, args.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
