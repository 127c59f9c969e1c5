//! Parts of a run, on one machine or many, give what one run gives; whatever is killed, repeated or missing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Ended, Model, Workspace, files};

const GATED: &str = "  - stage: quantize-int4\n  - stage: validate\n  - stage: check-warnings\n";
const PARTS: &str = ".out.monoquant-parts";

fn part(workspace: &Workspace, part: &str) -> Ended {
    workspace.monoquant(["run", "recipe.yaml", "--part", part])
}

fn join(workspace: &Workspace) -> Ended {
    workspace.monoquant(["run", "recipe.yaml", "--join"])
}

/// A model in several files, and what one run makes of it.
fn workspace(model: &Model, stages: &str) -> (Workspace, BTreeMap<String, Vec<u8>>) {
    let workspace = Workspace::with(model);
    workspace.recipe(stages);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let whole = files(&workspace.path("out"));
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    for name in workspace.names().iter().filter(|name| name.contains(".monoquant-")) {
        let _ = fs::remove_file(workspace.path(name));
    }
    fs::remove_file(workspace.path(".out.monoquant-record")).expect("the record");
    (workspace, whole)
}

/// The folder in which the parts' files are.
fn folder(workspace: &Workspace) -> PathBuf {
    let mut entries = fs::read_dir(workspace.path(PARTS)).expect("the parts' folder");
    entries.next().expect("a plan's folder").expect("an entry").path()
}

fn names(folder: &Path) -> Vec<String> {
    files(folder).into_keys().collect()
}

#[test]
fn parts_in_any_number_and_order_give_the_bytes_of_one_run() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(5), GATED);
    for count in [1, 2, 3, 7] {
        for index in (0..count).rev() {
            part(&workspace, &format!("{index}/{count}")).exits(0);
            assert!(!workspace.path("out").exists(), "a part publishes nothing");
        }
        let said = join(&workspace).exits(0).stdout;
        assert!(said.contains("no weight was touched"), "{said}");
        assert_eq!(files(&workspace.path("out")), whole, "{count} parts");
        assert!(!workspace.path(PARTS).exists(), "the join sweeps");
        fs::remove_dir_all(workspace.path("out")).expect("the output");
        fs::remove_file(workspace.path(".out.monoquant-record")).expect("the record");
    }
}

#[test]
fn whatever_decides_about_the_files_is_in_the_parts_too() {
    let mut stacked = Model::llama().in_shards(4);
    stacked.add("model.layers.0.extra.weight", &[7]);
    let per_tensor = "  - stage: quantize-int8\n    granularity: tensor\n  - stage: validate\n";
    let two =
        format!("{GATED}  - stage: export\n    path: also\n    format: dequantized\n    digest: blake3\n");
    let first = "  - stage: quantize-int4\n    observer: mse\n    symmetric: false\n  - stage: validate\n    checks: [finite, round-trip, size]\n";
    for stages in [per_tensor, two.as_str(), first] {
        let workspace = Workspace::with(&stacked);
        let recipe = workspace.recipe(stages);
        if workspace.plan(&recipe).is_err() {
            panic!("{}", workspace.plan_findings(&recipe));
        }
        workspace.monoquant(["run", "recipe.yaml"]).exits(0);
        let both = |workspace: &Workspace| {
            ["out", "also"].map(|name| workspace.path(name)).map(|path| path.exists().then(|| files(&path)))
        };
        let whole = both(&workspace);
        for name in ["out", "also", ".out.monoquant-record", ".also.monoquant-record"] {
            let path = workspace.path(name);
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(&path);
        }
        for index in 0..3 {
            part(&workspace, &format!("{index}/3")).exits(0);
        }
        join(&workspace).exits(0);
        assert!(both(&workspace) == whole, "{stages}");
    }
}

#[test]
fn what_is_missing_is_named_and_can_be_waited_for() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(4), GATED);
    let said = join(&workspace).exits(75).stderr;
    assert!(said.contains("4 of 4 files are not there yet"), "{said}");
    part(&workspace, "0/4").exits(0);
    part(&workspace, "2/4").exits(0);
    let said = join(&workspace).exits(75).stderr;
    assert!(said.contains("parts::missing") && said.contains("2 of 4 files are not there yet"), "{said}");
    assert!(said.contains("model-0000") && !workspace.path("out").exists(), "{said}");
    let waits = |time: &str| {
        let mut command = workspace.command(["run", "recipe.yaml", "--join", "--wait", time]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the binary runs")
    };
    workspace.ended(waits("0s").wait_with_output().expect("it ends")).exits(75);
    let waiting = waits("1h");
    // The others may be of another number of parts.
    for index in 0..2 {
        part(&workspace, &format!("{index}/2")).exits(0);
    }
    workspace.ended(waiting.wait_with_output().expect("it ends")).exits(0);
    assert_eq!(files(&workspace.path("out")), whole);
}

#[test]
fn a_part_that_is_repeated_makes_nothing_again_and_a_late_one_does_no_harm() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(3), GATED);
    let said = part(&workspace, "0/1").exits(0).stdout;
    assert!(said.contains("3 made, 0 there before"), "{said}");
    let before = files(&folder(&workspace));
    let said = part(&workspace, "1/2").exits(0).stdout;
    assert!(said.contains("0 made"), "{said}");
    assert_eq!(files(&folder(&workspace)), before);
    // One that begins anew while the first is done, as a machine that was taken for lost does.
    workspace.monoquant(["run", "recipe.yaml", "--part", "0/1", "--fresh"]).exits(0);
    join(&workspace).exits(0);
    // After the join there is nothing to do for a part, and nothing is left behind.
    let said = part(&workspace, "1/2").exits(0).stdout;
    assert!(said.contains("0 made"), "{said}");
    assert!(!workspace.path(PARTS).exists());
    assert!(join(&workspace).exits(0).stdout.contains("up to date"));
    assert_eq!(files(&workspace.path("out")), whole);
}

#[test]
fn damaged_files_and_records_are_made_again_and_remains_are_swept() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(3), GATED);
    part(&workspace, "0/1").exits(0);
    let at = folder(&workspace);
    let weights = names(&at).into_iter().find(|name| name.ends_with(".safetensors")).expect("a weight file");
    let record = names(&at).into_iter().find(|name| name.ends_with(".record")).expect("a record");
    // What a killed part leaves, and a part that was killed between its files and its record.
    fs::create_dir(at.join("work-0123456789abcdef")).expect("a folder");
    fs::write(at.join("work-0123456789abcdef/model-00001-of-00003.safetensors"), "half").expect("a file");
    let damages: [&dyn Fn(); 4] = [
        &|| fs::remove_file(at.join(&record)).expect("the record"),
        &|| {
            let mut bytes = fs::read(at.join(&weights)).expect("the file");
            *bytes.last_mut().expect("a byte") ^= 1;
            fs::write(at.join(&weights), bytes).expect("the file");
        },
        &|| fs::write(at.join(&weights), "short").expect("the file"),
        &|| {
            let text = fs::read_to_string(at.join(&record)).expect("the record");
            fs::write(at.join(&record), text.replacen("\"bytes\":", "\"bytes\":1", 1)).expect("the record");
        },
    ];
    for damage in damages {
        damage();
        join(&workspace).exits(75);
        assert!(part(&workspace, "0/1").exits(0).stdout.contains("1 made, 2 there before"));
    }
    join(&workspace).exits(0);
    assert_eq!(files(&workspace.path("out")), whole);
    assert!(!workspace.path(PARTS).exists());
}

#[test]
fn parts_of_another_plan_are_never_taken() {
    let (workspace, _) = workspace(&Model::llama().in_shards(3), GATED);
    part(&workspace, "0/1").exits(0);
    workspace.recipe(&GATED.replace("int4", "int4\n    group_size: 64"));
    join(&workspace).exits(75);
    // The same recipe for a model with other weights of the same shapes.
    workspace.recipe(GATED);
    Model::llama().in_shards(3).scaled("lm_head.weight", 2.0).write(&workspace.path("model"));
    join(&workspace).exits(75);
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    assert!(!workspace.path(PARTS).exists());
}

#[test]
fn two_joins_at_once_publish_one_output() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(3), GATED);
    for _ in 0..3 {
        part(&workspace, "0/1").exits(0);
        let joins = [0, 1].map(|_| {
            let mut command = workspace.command(["run", "recipe.yaml", "--join"]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
            command.spawn().expect("the binary runs")
        });
        // The second one finds the output locked, up to date, or the parts gone.
        let ended = joins.map(|join| join.wait_with_output().expect("it ends").status.code());
        assert!(
            ended.contains(&Some(0)) && ended.iter().all(|code| [Some(0), Some(4)].contains(code)),
            "{ended:?}"
        );
        assert_eq!(files(&workspace.path("out")), whole);
        fs::remove_dir_all(workspace.path("out")).expect("the output");
        fs::remove_file(workspace.path(".out.monoquant-record")).expect("the record");
    }
}

#[test]
fn a_failed_gate_keeps_the_parts_and_a_mended_one_touches_no_weight() {
    let (workspace, _) = workspace(&Model::llama().in_shards(3), GATED);
    let strict = "  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 90\n    sqnr_warning_threshold: 90\n    on_failure: error\n";
    workspace.recipe(strict);
    part(&workspace, "0/2").exits(0);
    part(&workspace, "1/2").exits(0);
    join(&workspace).exits(1);
    assert!(!workspace.path("out").exists() && workspace.path(PARTS).exists());
    workspace.recipe(&strict.replace("90", "5"));
    let said = join(&workspace).exits(0).stdout;
    assert!(said.contains("no weight was touched"), "{said}");
    assert!(!workspace.path(PARTS).exists());
}

#[test]
fn in_ci_parts_are_joined_and_nothing_else_is_taken_over() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(3), GATED);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let in_ci = |args: &[&str]| {
        let mut command = workspace.command(args);
        workspace.ended(command.env("CI", "true").output().expect("the binary runs"))
    };
    // What is published is not believed here.
    in_ci(&["run", "recipe.yaml", "--join"]).exits(75);
    in_ci(&["run", "recipe.yaml", "--part", "0/2"]).exits(0);
    in_ci(&["run", "recipe.yaml", "--part", "1/2"]).exits(0);
    in_ci(&["run", "recipe.yaml", "--join"]).exits(0);
    assert_eq!(files(&workspace.path("out")), whole);
}

/// A machine that sees the files has other numbers for them, and has begun at another time.
#[cfg(unix)]
#[test]
fn a_join_on_another_machine_takes_files_by_length_and_time() {
    let (workspace, whole) = workspace(&Model::llama().in_shards(3), GATED);
    // Sources that have just been written are not known by their times.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    for name in names(&workspace.path("model")) {
        let file = fs::File::options().write(true).open(workspace.path("model").join(name)).expect("a file");
        file.set_modified(old).expect("a time");
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    part(&workspace, "0/1").exits(0);
    let other = Workspace::new();
    let copied = std::process::Command::new("cp")
        .args(["-a", &format!("{}/.", workspace.root().display()), &other.root().display().to_string()])
        .status();
    assert!(copied.expect("cp").success());
    let said = other.monoquant(["run", "recipe.yaml", "--join", "--format", "json"]).exits(0);
    assert_eq!(said.json()["verdict"]["passed"], true);
    assert_eq!(files(&other.path("out")), whole);
    // Reading is what a join there does not do: with weights that cannot be read, it gives the same.
    let unread = Workspace::new();
    let copied = std::process::Command::new("cp")
        .args(["-a", &format!("{}/.", workspace.root().display()), &unread.root().display().to_string()])
        .status();
    assert!(copied.expect("cp").success());
    for name in names(&unread.path("model")).iter().filter(|name| name.ends_with(".safetensors")) {
        let path = unread.path("model").join(name);
        let mut bytes = fs::read(&path).expect("a file");
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time");
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        bytes[header..].fill(0);
        fs::write(&path, &bytes).expect("a file");
        let file = fs::File::options().write(true).open(&path).expect("a file");
        file.set_modified(modified).expect("a time");
    }
    unread.monoquant(["run", "recipe.yaml", "--join"]).exits(0);
    assert_eq!(files(&unread.path("out")), whole);
}

#[test]
fn a_wrong_part_is_refused_before_any_work() {
    let (workspace, _) = workspace(&Model::llama().in_shards(3), GATED);
    for wrong in ["4/4", "1", "auto", "a/b"] {
        let said = part(&workspace, wrong).exits(2).stderr;
        assert!(said.contains("cli::part") && said.contains(wrong), "{said}");
    }
    workspace.monoquant(["run", "recipe.yaml", "--part", "0/2", "--join"]).exits(2);
    workspace.monoquant(["run", "recipe.yaml", "--wait", "6h"]).exits(2);
    workspace.recipe("  - stage: calibrate\n  - stage: quantize-int4\n    observer: mse\n");
    assert!(!workspace.path(PARTS).exists());
}

#[test]
fn a_recipe_that_runs_the_model_has_no_parts() {
    let workspace = Workspace::new();
    let recipe = crate::support::root().join("recipes/llama-int4-gptq.yaml").display().to_string();
    let output = workspace.path("out").display().to_string();
    for parts in [&["--part", "0/2"][..], &["--join"]] {
        let args = [&["run", recipe.as_str(), "--output", output.as_str()], parts].concat();
        let said = workspace.monoquant(args).exits(2).stderr;
        assert!(said.contains("parts::model-runs") && said.contains("monoquant calibrate"), "{said}");
    }
}

#[test]
fn the_plan_shows_what_parts_have_to_do() {
    let (workspace, _) = workspace(&Model::llama().in_shards(5), GATED);
    let said = workspace.monoquant(["plan", "recipe.yaml", "--parts", "2"]).exits(0).stdout;
    assert!(said.contains("of a fair share"), "{said}");
    let json = workspace.monoquant(["plan", "recipe.yaml", "--parts", "2", "--json"]).exits(0).json();
    let parts = json["parts"].as_array().expect("a list");
    let files: u64 = parts.iter().filter_map(|part| part["files"].as_u64()).sum();
    assert_eq!((parts.len(), files), (2, 5));
    assert!(workspace.monoquant(["plan", "recipe.yaml", "--json"]).exits(0).json().get("parts").is_none());
}
