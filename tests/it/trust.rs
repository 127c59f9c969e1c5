//! What an earlier run has left is taken over only if it is known to be what that run left, and not at all by `--untrusted`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use monoquant::publish::hidden;
use monoquant::run::{Options, Outcome, Silent, run, sealed_record};
use serde_json::{Value, json};

use crate::support::{Model, Workspace, files, symlink};

const STAGES: &str = "  - stage: quantize-int4\n  - stage: validate\n  - stage: check-warnings\n";

/// Longer than the coarsest clock of a file system: a file that was left alone for so long is believed by its times.
const SETTLED: Duration = Duration::from_millis(2100);

fn carry_out(workspace: &Workspace) -> Outcome {
    let plan = workspace.plan(&workspace.recipe(STAGES)).expect("a plan");
    run(&plan, &Options::default(), &Silent).expect("an outcome")
}

/// What a run from nothing makes, in another folder.
fn from_nothing(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    let fresh = Workspace::new();
    for (name, bytes) in files(&workspace.path("model")) {
        fresh.write(&format!("model/{name}"), bytes);
    }
    carry_out(&fresh);
    files(&fresh.path("out"))
}

/// The lines of a record, without their hashes.
fn record(workspace: &Workspace) -> Vec<Value> {
    let text = fs::read_to_string(hidden::record(&workspace.path("out"))).expect("a record");
    let unsealed = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        line.as_object_mut().expect("an object").remove("hash").expect("a hash");
        line
    };
    text.lines().map(unsealed).collect()
}

/// Writes a record whose hashes are right, whatever it says.
fn forge(workspace: &Workspace, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(hidden::record(&workspace.path("out")), sealed_record(&lines)).expect("a record");
}

/// Flips a bit in the middle of a file, whose time stays as it was.
fn damage(path: &Path) {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).expect("its time");
    let mut bytes = fs::read(path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("a file");
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.set_modified(modified)).expect("its time");
}

#[test]
fn shards_that_got_other_names_are_published_under_them() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace);
    let index = workspace.path("model/model.safetensors.index.json");
    let mut text = fs::read_to_string(&index).expect("the index");
    for (old, new) in [("model-00001-of-00002", "first"), ("model-00002-of-00002", "second")] {
        let path = |name: &str| workspace.path(&format!("model/{name}.safetensors"));
        fs::rename(path(old), path(new)).expect("a shard");
        text = text.replace(old, new);
    }
    fs::write(&index, text).expect("the index");
    let outcome = carry_out(&workspace);
    assert!(!outcome.is_up_to_date && outcome.work.redone == 0, "{:?}", outcome.work);
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace));
    assert!(carry_out(&workspace).is_up_to_date);
    workspace.monoquant(["verify", "out"]).exits(0);
}

#[test]
fn bytes_that_changed_are_noticed_whatever_the_time_says() {
    let workspace = Workspace::with(&Model::llama());
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"];
    std::thread::sleep(SETTLED);
    carry_out(&workspace);
    // Now everything is known by its times.
    assert!(carry_out(&workspace).is_up_to_date);
    let good = files(&workspace.path("out"));
    for name in names.into_iter().chain(["config.json"]) {
        damage(&workspace.path("out").join(name));
        assert!(!carry_out(&workspace).is_up_to_date, "{name}");
        assert_eq!(files(&workspace.path("out")), good, "{name}");
        assert!(carry_out(&workspace).is_up_to_date, "{name}");
    }
    std::thread::sleep(SETTLED);
    for name in names {
        damage(&workspace.path("model").join(name));
        assert!(!carry_out(&workspace).is_up_to_date, "{name}");
        assert_eq!(files(&workspace.path("out")), from_nothing(&workspace), "{name}");
    }
}

#[test]
fn an_output_with_more_or_other_than_files_is_not_up_to_date() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/assets/picture.png", "picture");
    carry_out(&workspace);
    let good = files(&workspace.path("out"));
    fs::remove_file(workspace.path("out/assets/picture.png")).expect("a file");
    assert!(!carry_out(&workspace).is_up_to_date);
    assert_eq!(files(&workspace.path("out")), good);
    // What is not ours is neither taken over nor removed.
    workspace.write("out/assets/more.txt", "mine");
    workspace.run(&workspace.recipe(STAGES)).exits(4);
    fs::remove_file(workspace.path("out/assets/more.txt")).expect("a file");
    let (weights, elsewhere) =
        (workspace.path("out/model-00001-of-00002.safetensors"), workspace.path("elsewhere"));
    fs::rename(&weights, &elsewhere).expect("a file");
    symlink(&elsewhere, &weights);
    workspace.run(&workspace.recipe(STAGES)).exits(4);
    fs::remove_file(&weights).expect("the link");
    assert!(!carry_out(&workspace).is_up_to_date);
    assert_eq!(files(&workspace.path("out")), good);
}

#[test]
fn a_record_that_was_edited_counts_for_nothing() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace);
    let path = hidden::record(&workspace.path("out"));
    let text = fs::read_to_string(&path).expect("a record");
    let tensors = text.lines().count() - 1;
    let edits =
        [text.replacen("\"noise\":", "\"noise\":0.", 1), text.replacen("\"offset\":", "\"offset\":1", 1)];
    for edited in edits {
        assert_ne!(edited, text);
        fs::write(&path, edited).expect("a record");
        let outcome = carry_out(&workspace);
        assert_eq!((outcome.work.taken_over, outcome.work.redone), (0, tensors));
    }
}

/// A pointer into a line, and what makes the lie that is put there.
type Lie = (&'static str, fn() -> Value);

/// What a record could say though its hashes are right: numbers of its lines, by pointer.
const LIES: &[Lie] = &[
    ("/parts/0/file", || json!(999)),
    ("/parts/0/file", || json!(1)),
    ("/parts/0/offset", || json!(0)),
    ("/parts/0/offset", || json!(5000)),
    ("/parts/0/offset", || json!(u64::MAX)),
    ("/parts/0/bytes", || json!(0)),
    ("/parts/0/bytes", || json!(u64::MAX)),
    ("/parts", || json!([])),
    ("/source", || json!([])),
    ("/source", || json!([1, 2, 3])),
    ("/pieces", || json!([])),
    ("/pieces/0", || Value::Null),
    ("/pieces/0/count", || json!(u64::MAX)),
    ("/pieces/0/clipped", || json!(u64::MAX)),
    ("/pieces/0/signal", || json!(-1.0)),
    ("/pieces/0/noise", || json!(-1.0)),
    ("/pieces/0/max_abs_error_at", || json!([u64::MAX, 0])),
    ("/pieces/0/worst_group/row", || json!(u64::MAX)),
    ("/pieces/0/worst_group/group", || json!(1_u64 << 40)),
    ("/not_finite", || json!(u64::MAX)),
    ("/name", || json!("model.norm.weight")),
];

#[test]
fn numbers_of_a_record_that_do_not_fit_the_plan_are_not_believed() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace);
    let good = files(&workspace.path("out"));
    let lines = record(&workspace);
    // Lines come as tensors were finished; each lie is one of a tensor of the first file.
    let is_meant = |line: &Value| line["pieces"][0].is_object() && line["parts"][0]["file"] == 0;
    let quantized = lines.iter().position(is_meant).expect("a quantized tensor");
    for (pointer, lie) in LIES {
        let mut lines = lines.clone();
        *lines[quantized].pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = lie();
        forge(&workspace, &lines);
        let outcome = carry_out(&workspace);
        let (what, work) = (format!("{pointer} {}", lie()), outcome.work);
        assert!(work.redone >= 1, "{what}: {work:?}");
        assert_eq!(files(&workspace.path("out")), good, "{what}");
    }
    // Names of files lead nowhere.
    for name in ["../elsewhere", "/etc/passwd", "", ".", "model/../../x"] {
        let mut lines = lines.clone();
        lines[0]["files"][0]["name"] = json!(name);
        forge(&workspace, &lines);
        assert!(carry_out(&workspace).work.redone > 0, "{name}");
        assert_eq!(files(&workspace.path("out")), good, "{name}");
    }
}

// Elsewhere no file is believed by its times, since nothing tells one start of the system from another.
#[cfg(target_os = "linux")]
#[test]
fn what_was_believed_before_a_restart_is_summed_up() {
    let workspace = Workspace::with(&Model::llama());
    std::thread::sleep(SETTLED);
    carry_out(&workspace);
    let good = files(&workspace.path("out"));
    for pointer in ["/source/0", "/parts/0/checksum"] {
        for (boot, redone) in [(None, 0), (Some("another"), 1), (Some(""), 1)] {
            let mut lines = record(&workspace);
            let quantized = lines.iter().position(|line| line["pieces"][0].is_object());
            *lines[quantized.expect("a quantized tensor")].pointer_mut(pointer).expect(pointer) = json!(7);
            if let Some(boot) = boot {
                lines[0]["boot"] = json!(boot);
            }
            forge(&workspace, &lines);
            let plan = workspace.plan(&workspace.recipe(STAGES)).expect("a plan");
            let outcome = run(&plan, &Options::default(), &Silent).expect("an outcome");
            assert_eq!(outcome.work.redone, redone, "{pointer} {boot:?}");
            // Begin again from files that are known by their times.
            fs::remove_dir_all(workspace.path("out")).expect("the output");
            carry_out(&workspace);
            assert_eq!(files(&workspace.path("out")), good);
        }
    }
}

#[test]
fn builds_of_one_version_are_not_mixed() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(STAGES);
    workspace.run(&recipe).exits(0);
    let mut lines = record(&workspace);
    let build = lines[0]["build"].as_str().expect("a build").to_owned();
    lines[0]["build"] = json!(build.chars().rev().collect::<String>());
    assert_ne!(lines[0]["build"], json!(build));
    forge(&workspace, &lines);
    let said = workspace.monoquant(["run", "recipe.yaml", "-v"]).exits(0);
    let version = env!("CARGO_PKG_VERSION");
    let why = format!("everything is made anew: the last output is of another build of version {version}");
    assert!(said.stderr.contains(&why), "{}", said.stderr);
    assert!(!said.stdout.contains("up to date") && !said.stdout.contains("reused"), "{}", said.stdout);
}

/// Runs a recipe with a gate that the model cannot pass, on top of what a contributor has made to pass it.
fn status(committed: &Workspace, args: &[&str], ci: Option<&str>) -> Option<i32> {
    let workspace = Workspace::new();
    let copied =
        std::process::Command::new("cp").arg("-a").arg(committed.path(".")).arg(workspace.root()).status();
    assert!(copied.expect("cp").success());
    // The copies are other files than the record tells of, and are summed up.
    let mut command = workspace.command(["run", "recipe.yaml", "-q"].iter().chain(args));
    if let Some(ci) = ci {
        command.env("CI", ci);
    }
    command.output().expect("the binary runs").status.code()
}

#[test]
fn nothing_that_a_contributor_commits_passes_a_gate() {
    let gated = format!(
        "{STAGES}    sqnr_error_threshold: 30\n    sqnr_warning_threshold: 31\n    on_failure: error\n"
    );
    let committed = Workspace::with(&Model::llama());
    let recipe = committed.recipe(&gated.replace("on_failure: error", "on_failure: warn"));
    committed.run(&recipe).exits(0);
    committed.recipe(&gated);
    let mut lines = record(&committed);
    for line in &mut lines[1..] {
        for task in line["pieces"].as_array_mut().expect("pieces").iter_mut().filter(|task| task.is_object())
        {
            task["noise"] = json!(1e-9);
        }
    }
    forge(&committed, &lines);
    // The lie is good: who trusts it is deceived.
    for (args, ci) in [
        (&[][..], None),
        (&["--trusted"], Some("true")),
        (&["--untrusted", "--trusted"], None),
        (&[], Some("")),
        (&[], Some("false")),
    ] {
        assert_eq!(status(&committed, args, ci), Some(0), "{args:?} {ci:?}");
    }
    for (args, ci) in [
        (&["--untrusted"][..], None),
        (&["--untrusted"], Some("false")),
        (&["--trusted", "--untrusted"], None),
        (&[], Some("true")),
        (&[], Some("1")),
        (&[], Some("0")),
        (&["--fresh", "--trusted"], Some("true")),
    ] {
        assert_eq!(status(&committed, args, ci), Some(1), "{args:?} {ci:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_untrusted_run_makes_everything_and_is_told_why() {
    use std::os::unix::fs::MetadataExt;
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(STAGES);
    workspace.run(&recipe).exits(0);
    let good = files(&workspace.path("out"));
    let inode = |name: &str| fs::metadata(workspace.path("out").join(name)).expect("a file").ino();
    let names = ["model-00001-of-00002.safetensors", "tokenizer.json"];
    let before = names.map(inode);
    let output = workspace.command(["run", "recipe.yaml"]).env("CI", "true").output().expect("it runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!stdout.contains("up to date") && !stdout.contains("reused"), "{stdout}");
    assert!(stderr.contains("CI is set") && stderr.contains("--trusted"), "{stderr}");
    // The files are new ones, and hold the same.
    let after = names.map(inode);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    assert_eq!(files(&workspace.path("out")), good);
    let said = workspace.run(&recipe).exits(0);
    assert!(said.stdout.contains("up to date") && !said.stderr.contains("CI"), "{}", said.stderr);
}

#[test]
fn a_file_that_changes_while_it_is_carried_over_is_never_published() {
    use monoquant::run::Event;
    let workspace = Workspace::with(&Model::llama());
    let plan = workspace.plan(&workspace.recipe(STAGES)).expect("a plan");
    // When the gates are told of, everything was looked at and nothing is in its place.
    let once = std::sync::Once::new();
    let listener = |event: &Event| {
        if matches!(event, Event::Stage { .. }) {
            once.call_once(|| damage(&workspace.path("model/tokenizer.json")));
        }
    };
    let failure = run(&plan, &Options::default(), &listener).map(drop).expect_err("it has changed");
    assert_eq!((failure.exit, failure.findings[0].code), (monoquant::exit::Exit::BadModel, "model::changed"));
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn a_shard_that_changes_while_it_is_read_is_never_published() {
    use monoquant::run::Event;
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let workspace = Workspace::with(&Model::llama());
        let plan = workspace.plan(&workspace.recipe(STAGES)).expect("a plan");
        let path = workspace.path("model").join(name);
        // Changed and restored, bytes and time: what was read between is of neither.
        let listener = |event: &Event| {
            if matches!(event, Event::Started { .. } | Event::Written { .. }) {
                damage(&path);
            }
        };
        let failure = run(&plan, &Options::default(), &listener).expect_err("it has changed");
        assert_eq!(
            (failure.exit, failure.findings[0].code),
            (monoquant::exit::Exit::BadModel, "model::changed")
        );
        assert_eq!(workspace.names(), ["model", "recipe.yaml"], "{name}");
    }
}
