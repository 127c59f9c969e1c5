//! `run --watch`, driven from outside: edits as editors make them, broken recipes, deletions, changes in the middle of a run.
//! A watch is ended by a signal, as from a terminal.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::headers::{FixtureTensor, write_sparse};
use crate::support::statistics::{Module, safetensors};
use crate::support::{Model, Workspace, files, report, symlink};

const INT4: &str = "  - stage: quantize-int4\n  - stage: validate\n";

/// Nothing here takes so long, unless it never ends.
const FOR_EVER: Duration = Duration::from_secs(120);

/// A watch that goes on.
struct Watching {
    child: Child,
    lines: Receiver<String>,
    /// Everything said so far.
    said: Vec<String>,
}

impl Watching {
    /// Starts a watch whose standard output is a pipe.
    fn start(workspace: &Workspace, more: &[&str]) -> Self {
        let mut args = vec!["run", "recipe.yaml", "--watch", "--threads", "2"];
        args.extend(more);
        let mut child = workspace
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let output = child.stdout.take().expect("a pipe");
        Self::follow(child, output)
    }

    /// Starts a watch on a pseudo-terminal of this size, whose foreground it has.
    #[cfg(target_os = "linux")]
    fn spawn_on_a_terminal(workspace: &Workspace, columns: u16, rows: u16) -> (Child, File) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        use rustix::termios::{Winsize, tcsetwinsize};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal");
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .expect("a size");
        let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
        let open =
            || OwnedFd::from(File::options().read(true).write(true).open(&name).expect("its other end"));
        // `setsid --ctty` of Linux gives it a session with this terminal.
        let mut command = workspace.program("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_monoquant")]);
        let child = command
            .args(["run", "recipe.yaml", "--watch", "--threads", "2"])
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()))
            .spawn()
            .expect("the binary runs");
        (child, File::from(master))
    }

    fn follow(child: Child, output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, said: Vec::new() }
    }

    /// The next line that holds a text; all lines before it are passed by.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(FOR_EVER);
            let line = line.unwrap_or_else(|_| panic!("`{text}` was never said: {:#?}", self.said));
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn interrupt(mut self) {
        let killed = std::process::Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(killed.expect("kill").success());
        assert_eq!(self.child.wait().expect("a child").code(), Some(130), "{:#?}", self.said);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Saves as vim, VS Code, JetBrains and `sed -i` do: a new file, renamed over the old one.
fn save(path: &Path, text: &str) {
    let new = path.with_extension("swp");
    fs::write(&new, text).expect("a file");
    fs::rename(new, path).expect("a file");
}

fn edit(workspace: &Workspace, from: &str, to: &str) {
    let path = workspace.path("recipe.yaml");
    let text = fs::read_to_string(&path).expect("the recipe");
    assert!(text.contains(from), "{text}");
    save(&path, &text.replace(from, to));
}

#[test]
fn a_recipe_behind_links_is_followed() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    let text = fs::read_to_string(&recipe).expect("the recipe");
    // A link to a link to a file, in folders of their own; what is named in it is named from the link's folder.
    for folder in ["first", "second", "links"] {
        fs::create_dir(workspace.path(folder)).expect("a folder");
    }
    let (first, second) = (workspace.path("first/recipe.yaml"), workspace.path("second/recipe.yaml"));
    fs::write(&first, &text).expect("a recipe");
    fs::write(&second, text.replace("quantize-int4", "quantize-int4\n    group_size: 64")).expect("a recipe");
    symlink("../first/recipe.yaml", workspace.path("links/current"));
    fs::remove_file(&recipe).expect("the recipe");
    symlink("links/current", &recipe);
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    save(&first, &text.replace("quantize-int4", "quantize-int4\n    group_size: 16"));
    assert!(watching.wait_for("cycle 2").contains("✓ passed"), "the file is edited");
    symlink("../second/recipe.yaml", workspace.path("links/new"));
    fs::rename(workspace.path("links/new"), workspace.path("links/current")).expect("a link");
    assert!(watching.wait_for("cycle 3").contains("✓ passed"), "a link is switched");
    save(&second, &text.replace("quantize-int4", "quantize-int4\n    group_size: 32"));
    assert!(watching.wait_for("cycle 4").contains("✓ passed"), "the new file is edited");
}

#[test]
fn a_saved_recipe_runs_again_and_an_unchanged_one_does_not() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    let first = report(&workspace.path("out"));
    // Written in place, renamed over, and touched without a change: one cycle for each change and none for the rest.
    edit(&workspace, "quantize-int4", "quantize-int4\n    group_size: 64");
    assert!(watching.wait_for("cycle 2").contains("✓ passed"));
    assert_ne!(report(&workspace.path("out")).quality, first.quality);
    let text = fs::read_to_string(&recipe).expect("the recipe");
    save(&recipe, &text);
    for file in files(&workspace.path("model")).keys() {
        let file = File::options().append(true).open(workspace.path("model").join(file)).expect("a file");
        file.set_modified(std::time::SystemTime::now()).expect("a time");
    }
    fs::write(&recipe, text.replace("64", "32")).expect("the recipe");
    assert!(watching.wait_for("cycle").contains("cycle 3: ✓ passed"));
    fs::write(&recipe, format!("{}# a comment\n", text.replace("64", "32"))).expect("the recipe");
    let said = watching.wait_for("cycle 4");
    assert!(said.contains("✓ up to date") && said.contains("no weight touched"), "{said}");
    // A burst of saves ends with the last of them, in no more cycles than saves.
    for size in [64, 128, 64, 128, 32, 64, 128, 64] {
        save(&recipe, &text.replace("64", &size.to_string()));
    }
    edit(&workspace, "group_size: 64", "group_size: 16");
    let last = loop {
        let said = watching.wait_for("cycle");
        if report(&workspace.path("out")).recipe["stages"][1]["group_size"] == 16 {
            break said;
        }
    };
    let number: usize = last.split([' ', ':']).nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!((5..=13).contains(&number), "{last}");
    watching.interrupt();
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn a_broken_recipe_keeps_the_last_good_result_and_a_mended_one_goes_on() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let mut watching = Watching::start(&workspace, &[]);
    watching.wait_for("cycle 1");
    let good = files(&workspace.path("out"));
    edit(&workspace, "quantize-int4", "quantize-int4\n    grup_size: 64");
    let said = watching.wait_for("cycle 2");
    assert!(
        said.contains("✗ broken: recipe.yaml:7:5: `quantize-int4` has no parameter `grup_size`"),
        "{said}"
    );
    assert!(said.contains("the last good output stays"), "{said}");
    assert_eq!(files(&workspace.path("out")), good);
    edit(&workspace, "\n    grup_size: 64", "");
    assert!(watching.wait_for("cycle 3").contains("✓ up to date"));
    // Deleted, and back again.
    fs::rename(workspace.path("recipe.yaml"), workspace.path("away")).expect("the recipe");
    assert!(watching.wait_for("cycle 4").contains("✗ broken"));
    fs::rename(workspace.path("away"), workspace.path("recipe.yaml")).expect("the recipe");
    assert!(watching.wait_for("cycle 5").contains("✓ up to date"));
    fs::rename(workspace.path("model"), workspace.path("away")).expect("the model");
    assert!(watching.wait_for("cycle 6").contains("✗ broken"));
    fs::rename(workspace.path("away"), workspace.path("model")).expect("the model");
    assert!(watching.wait_for("cycle 7").contains("✓ up to date"));
    // A weight that changes is noticed, in the new folder.
    Model::llama().with_value("model.layers.1.mlp.up_proj.weight", 3, 0.5).write(&workspace.path("model"));
    loop {
        // Files are written one after another: a cycle may see them half done.
        if watching.wait_for("cycle").contains("1 of 21 tensors redone") {
            break;
        }
    }
    watching.interrupt();
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn a_gate_that_fails_is_mended_without_touching_a_weight() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe("  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 40\n    sqnr_warning_threshold: 41\n    on_failure: error\n");
    let mut watching = Watching::start(&workspace, &["--format", "json"]);
    let said: serde_json::Value = serde_json::from_str(&watching.wait_for("cycle")).expect("JSON");
    assert_eq!(
        (&said["cycle"], &said["outcome"], &said["exit_status"]),
        (&1.into(), &"failed".into(), &1.into())
    );
    assert!(!workspace.path("out").exists());
    edit(&workspace, "sqnr_error_threshold: 40", "sqnr_error_threshold: 10");
    let said: serde_json::Value = serde_json::from_str(&watching.wait_for("cycle")).expect("JSON");
    assert_eq!((&said["outcome"], &said["tensors_redone"]), (&"passed".into(), &0.into()));
    let changed = said["changed_lines"].as_array().expect("lines");
    assert_eq!(changed.len(), 2, "{changed:?}");
    assert!(workspace.path("out").exists());
    // What a gate does not let out is gone with the watch.
    edit(&workspace, "sqnr_error_threshold: 10", "sqnr_error_threshold: 50");
    watching.wait_for("failed");
    watching.interrupt();
    let names = workspace.names();
    assert_eq!(names, ["model", "out", "out.failed-report.json", "recipe.yaml"]);
}

#[test]
fn changed_statistics_redo_the_tensor_that_they_weigh() {
    let workspace = Workspace::with(&Model::llama());
    let put = |sum: f32| {
        let (mut narrow, wide) = (vec![1.0; 128], vec![1.0; 256]);
        (0..64).for_each(|column| narrow[column] = 2.0);
        let mut changed = narrow.clone();
        changed[5] = sum;
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let parts = parts.iter().chain(&["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        let names: Vec<String> = (0..2)
            .flat_map(|layer| parts.clone().map(move |part| format!("model.layers.{layer}.{part}")))
            .collect();
        let modules: Vec<Module<'_>> = names
            .iter()
            .map(|name| match name.as_str() {
                "model.layers.1.mlp.up_proj" => (name.as_str(), &[128][..], &changed[..], &[100][..]),
                name if name.ends_with("down_proj") => (name, &[256][..], &wide[..], &[100][..]),
                name => (name, &[128][..], &narrow[..], &[100][..]),
            })
            .collect();
        let new = workspace.write("new", safetensors(&modules, Some(100)));
        fs::rename(new, workspace.path("stats")).expect("a file");
    };
    put(1.0);
    workspace.whole_recipe(
        "  - stage: load\n    model: model\n    calibration:\n      file: stats\n      on_missing: error\n\
         \x20 - stage: quantize-int4\n    observer: mse\n  - stage: export\n    path: out\n",
    );
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    put(300.0);
    let said = watching.wait_for("cycle 2");
    assert!(said.contains("1 of 21 tensors redone"), "{said}");
    edit(&workspace, "on_missing: error", "on_missing: warn");
    let said = watching.wait_for("cycle 3");
    assert!(said.contains("no weight touched"), "{said}");
    // A bad file keeps the last good output, and a good one goes on.
    save(&workspace.path("stats"), "no statistics");
    let said = watching.wait_for("cycle 4");
    assert!(said.contains("✗ broken") && said.contains("the last good output stays"), "{said}");
    put(300.0);
    assert!(watching.wait_for("cycle 5").contains("✓ up to date"));
    watching.interrupt();
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml", "stats"]);
}

#[test]
fn a_change_during_a_run_cancels_it() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("model")).expect("a folder");
    workspace.write("model/config.json", r#"{"model_type": "llama"}"#);
    // Zeros that take no disk: so many that the run cannot end before the edit.
    let tensors: Vec<FixtureTensor> = (0..24)
        .map(|layer| FixtureTensor {
            name: format!("model.layers.{layer}.mlp.down_proj.weight"),
            dtype: "BF16".to_owned(),
            shape: if layer == 0 { vec![256, 256] } else { vec![16384, 16384] },
            class: "Linear".to_owned(),
        })
        .collect();
    write_sparse(&workspace.path("model/model.safetensors"), &tensors);
    workspace.recipe(INT4);
    let mut watching = Watching::start(&workspace, &[]);
    while !workspace.path(".out.monoquant-staging/model.safetensors").exists() {
        assert!(watching.lines.try_recv().is_err(), "the run ended by itself");
        std::thread::yield_now();
    }
    // What is left is broken at once.
    edit(&workspace, "quantize-int4", "quantize-int5");
    let said = watching.wait_for("cycle");
    assert!(said.contains("cycle 1: ✗ broken"), "{said}");
    watching.interrupt();
    assert!(!workspace.path("out").exists());
}

#[test]
fn files_can_be_looked_at_instead_of_waiting_for_events() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let mut watching = Watching::start(&workspace, &["--poll"]);
    watching.wait_for("cycle 1");
    edit(&workspace, "quantize-int4", "quantize-int8");
    assert!(watching.wait_for("cycle 2").contains("✓ passed"));
    watching.interrupt();
}

/// A terminal of so many columns and lines, on which a watch goes on.
#[cfg(target_os = "linux")]
fn on_a_terminal(workspace: &Workspace, columns: u16, rows: u16) -> (Watching, File) {
    let (child, master) = Watching::spawn_on_a_terminal(workspace, columns, rows);
    let keys = master.try_clone().expect("a handle");
    (Watching::follow(child, master), keys)
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_shows_what_is_wrong_alone_with_the_last_good_result_in_a_line() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let (mut watching, _keys) = on_a_terminal(&workspace, 100, 50);
    watching.wait_for("14 of 21 tensors quantized");
    watching.wait_for("waiting for a change · q quit");
    edit(&workspace, "quantize-int4", "quantize-int4\n    group_size: 64");
    watching.wait_for("cycle 2: ✓ passed");
    watching.wait_for("+     group_size: 64");
    watching.wait_for("waiting for a change");
    let before = watching.said.len();
    edit(&workspace, "group_size", "grup_size");
    watching.wait_for("has no parameter `grup_size`");
    watching.wait_for("cycle 3: ✗ broken");
    watching.wait_for("last good result, still published: cycle 2, SQNR");
    let shown = watching.said[before..].join("\n");
    assert!(!shown.contains("worst layers"), "{shown}");
    watching.interrupt();
}

#[cfg(target_os = "linux")]
#[test]
fn the_screen_is_as_large_as_the_terminal_and_what_was_on_it_stays() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let escapes = regex::Regex::new("\u{1b}\\[[0-9;]*[A-Za-z]").expect("a pattern");
    for (columns, rows) in [(60, 12), (80, 24), (120, 60)] {
        let (mut watching, _keys) = on_a_terminal(&workspace, columns, rows);
        watching.wait_for("waiting for a change");
        let said = watching.said.join("\n");
        // Home, and only from there on is anything cleared: neither the screen before nor what can be scrolled back to.
        let (before, drawn) = said.rsplit_once("\u{1b}[H").expect("the cursor goes home");
        assert!(before.matches('\n').count() >= usize::from(rows), "it moves up: {before:?}");
        assert!(!said.contains("[3J") && !said.contains("[2J"), "{said}");
        let plain = escapes.replace_all(drawn, "").into_owned();
        let lines: Vec<&str> = plain.lines().map(|line| line.trim_end_matches('\r')).collect();
        assert!(lines.len() < usize::from(rows), "{columns}x{rows}: {plain}");
        let widest = lines.iter().map(|line| unicode_width::UnicodeWidthStr::width(*line)).max();
        assert!(widest.is_some_and(|widest| widest <= usize::from(columns)), "{columns}x{rows}: {plain}");
        assert_eq!(lines.iter().any(|line| line.contains("more lines")), rows < 60, "{plain}");
        watching.interrupt();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn keys_run_again_pin_a_result_and_quit() {
    use std::io::Write;
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let (mut watching, mut keys) = on_a_terminal(&workspace, 200, 50);
    watching.wait_for("waiting for a change");
    keys.write_all(b"r").expect("a key");
    watching.wait_for("cycle 2: ✓ up to date");
    watching.wait_for("pin this result");
    keys.write_all(b"b").expect("a key");
    watching.wait_for("pin this result instead of cycle 2");
    edit(&workspace, "quantize-int4", "quantize-int4\n    group_size: 64");
    watching.wait_for("cycle 3: ✓ passed");
    edit(&workspace, "group_size: 64", "group_size: 32");
    let said = watching.wait_for("cycle 4: ✓ passed");
    // Against cycle 3 it would be less than half a decibel.
    let gain = said.split_once("dB (+").and_then(|(_, rest)| rest.split_once(')')).expect("a gain").0;
    assert!(gain.parse::<f64>().is_ok_and(|gain| gain > 1.0), "{said}");
    assert!(said.contains("compared with cycle 2"), "{said}");
    watching.wait_for("waiting for a change");
    keys.write_all(b"q").expect("a key");
    assert_eq!(watching.child.wait().expect("a child").code(), Some(130), "{:#?}", watching.said);
}

#[test]
fn a_repaired_model_is_seen_whatever_failed_before() {
    let good = Model::llama();
    let workspace = Workspace::with(&good);
    workspace.recipe(INT4);
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    // A gate fails: the output of before stays, and the model as it was is up to date.
    let name = "model.layers.1.mlp.up_proj.weight";
    let replace = |model: &Model| {
        model.write(&workspace.path("new"));
        for file in files(&workspace.path("new")).keys() {
            fs::rename(workspace.path("new").join(file), workspace.path("model").join(file)).expect("a file");
        }
    };
    replace(&good.clone().with_value(name, 3, 1e6));
    while !watching.wait_for("cycle").contains("✗ failed") {}
    assert!(workspace.path("out.failed-report.json").exists());
    replace(&good);
    while !watching.wait_for("cycle").contains("✓ up to date") {}
    assert!(!workspace.path("out.failed-report.json").exists(), "it is about nothing that is there");
    watching.interrupt();
}

#[test]
fn a_model_that_is_being_copied_is_waited_for() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let (first, second) = (
        workspace.path("model/model-00001-of-00002.safetensors"),
        workspace.path("model/model-00002-of-00002.safetensors"),
    );
    let whole = fs::read(&second).expect("a file");
    fs::remove_file(&second).expect("a file");
    let mut watching = Watching::start(&workspace, &[]);
    let said = watching.wait_for("waiting");
    assert!(said.contains("`model-00002-of-00002.safetensors` is not complete"), "{said}");
    // As `cp` does it: piece by piece.
    for end in [whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&second, &whole[..end]).expect("a file");
    }
    fs::write(&second, &whole).expect("a file");
    let said = watching.wait_for("cycle");
    assert!(said.contains("cycle 1: ✓ passed"), "{said}");
    // In place over the old one.
    let whole = fs::read(&first).expect("a file");
    fs::write(&first, &whole[..whole.len() / 2]).expect("a file");
    let said = watching.wait_for("waiting");
    assert!(
        said.contains("`model-00001-of-00002.safetensors` is not complete") && said.contains(" %) of"),
        "{said}"
    );
    assert!(workspace.path("out").exists());
    fs::write(&first, &whole).expect("a file");
    assert!(watching.wait_for("cycle").contains("cycle 2: ✓ up to date"));
    watching.interrupt();
    // Damage is none of that.
    fs::write(&first, vec![0xff; whole.len()]).expect("a file");
    let mut watching = Watching::start(&workspace, &["--format", "json"]);
    let said: serde_json::Value = serde_json::from_str(&watching.wait_for("outcome")).expect("JSON");
    assert_eq!(said["outcome"], "broken");
    fs::remove_file(&first).expect("a file");
    let said: serde_json::Value = serde_json::from_str(&watching.wait_for("outcome")).expect("JSON");
    assert_eq!(
        (&said["outcome"], &said["files"][0]),
        (&"waiting".into(), &"model-00001-of-00002.safetensors".into())
    );
    watching.interrupt();
}

#[test]
fn a_model_that_arrives_in_the_hub_cache_is_seen() {
    let workspace = Workspace::new();
    workspace.whole_recipe(&format!(
        "  - stage: load\n    model: hf://some/one\n{INT4}  - stage: export\n    path: out\n"
    ));
    let cache = workspace.path("cache/hub");
    let mut command = workspace.command(["run", "recipe.yaml", "--watch", "--threads", "2"]);
    command.env("HF_HUB_CACHE", &cache).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary runs");
    let output = child.stdout.take().expect("a pipe");
    let mut watching = Watching::follow(child, output);
    assert!(watching.wait_for("cycle 1").contains("✗"));
    // As a download puts it there: the reference, the contents, and links to them, one after another.
    let repository = cache.join("models--some--one");
    let make = |path: &Path| fs::create_dir_all(path).expect("a folder");
    make(&repository.join("refs"));
    fs::write(repository.join("refs/main"), "0123456789abcdef").expect("a file");
    make(&repository.join("blobs"));
    Model::llama().write(&workspace.path("model"));
    let snapshot = repository.join("snapshots/0123456789abcdef");
    make(&snapshot);
    for (number, name) in files(&workspace.path("model")).keys().enumerate() {
        let blob = repository.join(format!("blobs/{number}"));
        fs::copy(workspace.path("model").join(name), &blob).expect("a file");
        symlink(format!("../../blobs/{number}"), snapshot.join(name));
    }
    while !watching.wait_for("cycle").contains("✓ passed") {}
    watching.interrupt();
    assert!(workspace.path("out").exists());
}

#[test]
fn an_edit_of_a_threshold_needs_no_pass_and_one_of_the_text_does() {
    use std::os::unix::fs::MetadataExt;
    let workspace = Workspace::new();
    for entry in fs::read_dir(crate::support::root().join("examples/tiny-llama")).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        workspace.write(&format!("model/{name}"), fs::read(&path).expect("a file"));
    }
    workspace.recipe(
        "  - stage: calibrate\n    samples: 4\n    sequence_length: 64\n  - stage: resolve-skips\n    defaults: auto\n  \
         - stage: quantize-int4\n    observer: mse\n  - stage: evaluate\n    text: [text.txt]\n    sequence_length: 64\n    max_kl: 0.5\n",
    );
    let text = fs::read_to_string(crate::support::root().join("examples/calibration/held-out.txt"));
    workspace.write("text.txt", text.expect("a text").chars().take(2_000).collect::<String>());
    // Nothing is kept of a model that is newer.
    std::thread::sleep(Duration::from_millis(2100));
    let kept = || {
        let inode = |name: &str| fs::metadata(workspace.path(name)).expect("kept").ino();
        [".out.monoquant-statistics", ".out.monoquant-evaluation"].map(inode)
    };
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    let first = kept();
    edit(&workspace, "max_kl: 0.5", "max_kl: 0.0000001");
    assert!(!watching.wait_for("cycle 2").contains("✓ passed"));
    edit(&workspace, "max_kl: 0.0000001", "max_kl: 0.4");
    assert!(watching.wait_for("cycle 3").contains("✓ passed"));
    assert_eq!(kept(), first, "neither was measured again");
    edit(&workspace, "samples: 4", "samples: 5");
    assert!(watching.wait_for("cycle 4").contains("✓ passed"));
    let again = kept();
    assert!(again[0] != first[0], "the statistics are of other samples");
    workspace.write("text.txt", "Another text. ".repeat(200));
    assert!(watching.wait_for("cycle 5").contains("✓ passed"), "a text is watched");
    let last = kept();
    assert!(last[0] == again[0] && last[1] != again[1]);
    watching.interrupt();
}

#[test]
fn an_edit_chooses_the_codes_of_later_layers_anew_and_a_threshold_none() {
    let workspace = Workspace::new();
    let example = crate::support::root().join("examples/tiny-llama");
    for entry in fs::read_dir(example).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        workspace.write(&format!("model/{name}"), fs::read(&path).expect("a file"));
    }
    std::thread::sleep(Duration::from_millis(2100));
    let stages = "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n  - stage: calibrate\n    samples: 4\n    \
                  sequence_length: 128\n  - stage: quantize-int4\n    targets: ['model.layers.3']\n    group_size: 64\n    \
                  rounding: gptq\n  - stage: quantize-int4\n    rounding: gptq\n  - stage: check-warnings\n    \
                  sqnr_error_threshold: 1\n    sqnr_warning_threshold: 2\n";
    workspace.recipe(stages);
    let layer = |number: usize| fs::read(workspace.path(&format!(".out.monoquant-rounding/layer-{number}")));
    let mut watching = Watching::start(&workspace, &[]);
    assert!(watching.wait_for("cycle 1").contains("✓ passed"));
    let before: Vec<Vec<u8>> = (0..4).map(|number| layer(number).expect("codes")).collect();
    edit(&workspace, "sqnr_warning_threshold: 2", "sqnr_warning_threshold: 3");
    let line = watching.wait_for("cycle 2");
    assert!(line.contains("no weight touched"), "{line}");
    assert!((0..4).all(|number| layer(number).expect("codes") == before[number]));
    edit(&workspace, "group_size: 64", "group_size: 32");
    let line = watching.wait_for("cycle 3");
    assert!(line.contains("7 of 39 tensors redone"), "{line}");
    assert!((0..4).all(|number| (layer(number).expect("codes") == before[number]) == (number < 3)));
    watching.interrupt();
}
