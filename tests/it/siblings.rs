//! The hidden names beside an output, and what is replaced: nothing of somebody else is followed, emptied, overwritten or lost.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use monoquant::exit::Exit;
use monoquant::run::{Event, Options, run};

use crate::support::{Ended, Model, Workspace, files, json};

const INT4: &str = "  - stage: quantize-int4\n";
const INT8: &str = "  - stage: quantize-int8\n";

/// Folders beside an output `out`, and files beside it.
const FOLDERS: [&str; 3] = [".out.monoquant-staging", ".out.monoquant-interrupted", ".out.monoquant-old"];
const FILES: [&str; 6] = [
    ".out.monoquant-journal",
    ".out.monoquant-record",
    ".out.monoquant-new",
    ".out.monoquant-lock",
    ".out.monoquant-unlock",
    "out.failed-report.json",
];

/// What somebody puts in the place of a sibling.
const STRANGERS: [&str; 6] =
    ["link to a file", "link to a folder", "link to nothing", "pipe", "folder", "file"];

fn put(what: &str, workspace: &Workspace, name: &str) {
    let path = workspace.path(name);
    match what {
        "link to a file" => symlink("outside/precious.txt", path).expect("a link"),
        "link to a folder" => symlink("outside", path).expect("a link"),
        "link to nothing" => symlink("outside/absent", path).expect("a link"),
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success()),
        "folder" => drop(workspace.write(&format!("{name}/precious.txt"), "keep")),
        "file" => drop(workspace.write(name, "keep")),
        _ => unreachable!("{what}"),
    }
}

/// Removes what `put` has put there; it must still be there.
fn take_away(what: &str, workspace: &Workspace, name: &str) {
    let path = workspace.path(name);
    let kind = fs::symlink_metadata(&path).expect("it is still there").file_type();
    assert_eq!(kind.is_symlink(), what.starts_with("link"), "{what} at {name}");
    if kind.is_dir() {
        assert_eq!(fs::read_to_string(path.join("precious.txt")).expect("what was in it"), "keep");
        fs::remove_dir_all(path).expect("a folder");
    } else {
        if kind.is_file() {
            assert_eq!(fs::read_to_string(&path).expect("what was in it"), "keep");
        }
        fs::remove_file(path).expect("no folder");
    }
}

#[test]
fn whatever_is_in_a_siblings_place_stays_and_is_not_followed() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("outside/precious.txt", "keep");
    let recipe = workspace.recipe(INT4);
    let failing = "  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 90\n";
    for is_there in [false, true] {
        let expected = is_there.then(|| {
            workspace.run(&recipe).exits(0);
            workspace.recipe(INT8);
            files(&workspace.path("out"))
        });
        for name in FOLDERS.into_iter().chain(FILES) {
            let record = fs::read(workspace.path(name)).ok();
            if record.is_some() {
                fs::remove_file(workspace.path(name)).expect("a file");
            }
            for what in STRANGERS {
                // Monoquant's own are of this kind.
                if what == if FOLDERS.contains(&name) { "folder" } else { "file" } {
                    continue;
                }
                put(what, &workspace, name);
                let said = workspace.run(&recipe).exits(4);
                assert!(said.stderr.contains("export::sibling"), "{what} at {name}: {}", said.stderr);
                assert!(said.stderr.contains(name), "{what} at {name}: {}", said.stderr);
                take_away(what, &workspace, name);
                let outside = files(&workspace.path("outside"));
                assert_eq!(outside, BTreeMap::from([("precious.txt".to_owned(), b"keep".to_vec())]));
                match &expected {
                    Some(expected) => {
                        assert_eq!(&files(&workspace.path("out")), expected, "{what} at {name}")
                    }
                    None => assert!(!workspace.path("out").exists(), "{what} at {name}"),
                }
            }
            if let Some(record) = record {
                workspace.write(name, record);
            }
        }
    }
    // A report that is to be kept goes through no link either, and replaces no file of somebody else.
    workspace.recipe(failing);
    workspace.write("out.failed-report.json", "{\"mine\": true}");
    workspace.run(&recipe).exits(4);
    assert_eq!(fs::read_to_string(workspace.path("out.failed-report.json")).expect("it"), "{\"mine\": true}");
}

#[test]
fn what_a_sibling_shares_with_a_file_outside_is_not_written_to() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    for name in FILES.into_iter().filter(|name| name.starts_with('.')) {
        let outside = workspace.write("outside.txt", "keep");
        fs::hard_link(&outside, workspace.path(name)).expect("a second name");
        let ended = workspace.run(&recipe);
        assert_eq!(fs::read_to_string(&outside).expect("the file outside"), "keep", "{name}");
        ended.exits(0);
        for left in [name, ".out.monoquant-record"] {
            let _ = fs::remove_file(workspace.path(left));
        }
        fs::remove_dir_all(workspace.path("out")).expect("the output");
    }
}

/// A workspace with an output that has a carried folder, and a recipe that makes another one of it.
fn replaceable() -> Workspace {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/assets/deep/picture.png", [0x89, b'P']);
    workspace.run(&workspace.recipe(INT4)).exits(0);
    workspace.recipe(INT8);
    workspace
}

fn run_again(workspace: &Workspace) -> Ended {
    workspace.monoquant(["run", "recipe.yaml"])
}

#[track_caller]
fn stays_as_it_is(workspace: &Workspace, why: &str) {
    let before = files(&workspace.path("out"));
    let said = run_again(workspace).exits(4);
    assert!(said.stderr.contains("export::occupied") && said.stderr.contains(why), "{why}: {}", said.stderr);
    assert_eq!(files(&workspace.path("out")), before, "{why}");
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"], "{why}");
}

#[test]
fn a_report_that_is_not_as_it_was_written_makes_a_folder_foreign() {
    let workspace = replaceable();
    let path = workspace.path("out/monoquant-report.json");
    let text = fs::read_to_string(&path).expect("the report");
    let edits: [(&str, String); 9] = [
        ("cannot be understood", text[..text.len() / 2].to_owned()),
        ("cannot be understood", String::new()),
        ("cannot be understood", "\0".repeat(text.len())),
        ("a newer monoquant", text.replacen("\"report_version\": 2", "\"report_version\": 3", 1)),
        ("no version", text.replacen("\"report_version\": 2", "\"report_version\": 0", 1)),
        ("was edited", text.replacen("\"copied\": [", "\"copied\": [\n\"notes.txt\",", 1)),
        ("was edited", text.replacen("\"passed\": true", "\"passed\": false", 1)),
        ("was edited", text.replacen("\n  ", "\n", 1)),
        ("was edited", format!("{text}\n")),
    ];
    for (why, edited) in edits {
        assert_ne!(edited, text, "{why}");
        fs::write(&path, edited).expect("the report");
        stays_as_it_is(&workspace, why);
        // Nor is it if nothing is recorded of it.
        let record = workspace.path(".out.monoquant-record");
        let aside = workspace.path("aside.monoquant-record");
        fs::rename(&record, &aside).expect("the record");
        stays_as_it_is(&workspace, why);
        fs::rename(&aside, &record).expect("the record");
    }
    // One that was kept of a failed run neither.
    fs::write(&path, &text).expect("the report");
    let kept =
        workspace.write("out.failed-report.json", text.replacen("\"passed\": true", "\"passed\": false", 1));
    let said = run_again(&workspace).exits(4);
    assert!(said.stderr.contains("out.failed-report.json was edited"), "{}", said.stderr);
    fs::write(&kept, &text).expect("a report as it was written");
    run_again(&workspace).exits(0);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn a_report_of_another_kind_of_file_makes_a_folder_foreign() {
    let workspace = replaceable();
    let path = workspace.path("out/monoquant-report.json");
    let text = fs::read(&path).expect("the report");
    workspace.write("elsewhere.json", &text);
    for what in ["link", "pipe", "folder"] {
        fs::remove_file(&path).expect("the report");
        match what {
            "link" => symlink("../elsewhere.json", &path).expect("a link"),
            "pipe" => assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success()),
            _ => fs::create_dir(&path).expect("a folder"),
        }
        let said = run_again(&workspace).exits(4);
        assert!(said.stderr.contains("was not written by monoquant"), "{what}: {}", said.stderr);
        if what == "folder" { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("it is there");
        fs::write(&path, &text).expect("the report");
    }
    run_again(&workspace).exits(0);
}

#[test]
fn what_somebody_put_into_an_output_at_any_depth_is_not_lost() {
    let workspace = replaceable();
    for name in
        ["notes.txt", "assets/notes.txt", "assets/deep/notes.txt", "assets/deep/deeper/notes.txt", "a/b"]
    {
        let path = workspace.write(&format!("out/{name}"), "mine");
        stays_as_it_is(&workspace, name);
        fs::remove_file(&path).expect("the file");
        // Nor is a folder that is empty, a link, or a second folder where a file was.
        if fs::read_dir(path.parent().expect("a folder")).expect("a folder").count() == 0 {
            stays_as_it_is(&workspace, Path::new(name).parent().expect("a folder").to_str().expect("text"));
            fs::remove_dir(path.parent().expect("a folder")).expect("an empty folder");
        }
    }
    let picture = workspace.path("out/assets/deep/picture.png");
    fs::rename(&picture, workspace.path("picture.png")).expect("a file");
    symlink("../../../picture.png", &picture).expect("a link");
    let said = run_again(&workspace).exits(4);
    assert!(said.stderr.contains("picture.png"), "{}", said.stderr);
    fs::remove_file(&picture).expect("a link");
    fs::create_dir(&picture).expect("a folder");
    let said = run_again(&workspace).exits(4);
    assert!(said.stderr.contains("picture.png"), "{}", said.stderr);
    // What is missing is no reason to stay.
    fs::remove_dir(&picture).expect("a folder");
    run_again(&workspace).exits(0);
    assert!(workspace.path("picture.png").exists());
}

/// Something that somebody does in a workspace.
type Change = fn(&Workspace);

#[test]
fn an_output_that_changes_during_a_run_is_not_replaced() {
    let changes: [(&str, Change); 6] = [
        ("a file is written", |workspace| drop(workspace.write("out/config.json", "{\"mine\": 1}"))),
        ("a file is added to", |workspace| {
            let path = workspace.path("out/tokenizer.json");
            let text = fs::read(&path).unwrap_or_default();
            fs::write(&path, [text, b" ".to_vec()].concat()).expect("a file");
        }),
        ("a file is put there", |workspace| drop(workspace.write("out/assets/mine.txt", "mine"))),
        ("a file is removed", |workspace| fs::remove_file(workspace.path("out/config.json")).expect("it")),
        ("another output is put there", |workspace| {
            fs::rename(workspace.path("out"), workspace.path("moved")).expect("the output");
            let copy =
                Command::new("cp").arg("-a").args([workspace.path("moved"), workspace.path("out")]).status();
            assert!(copy.expect("cp").success());
        }),
        ("somebody's folder is put there", |workspace| {
            fs::rename(workspace.path("out"), workspace.path("moved")).expect("the output");
            workspace.write("out/mine.txt", "mine");
        }),
    ];
    for (what, change) in changes {
        let workspace = replaceable();
        let plan = workspace.plan(&workspace.path("recipe.yaml")).expect("a plan");
        let as_changed = std::sync::Mutex::new(None);
        let listener = |event: &Event| {
            if matches!(event, Event::Written { .. }) {
                change(&workspace);
                *as_changed.lock().expect("a lock") = Some(files(&workspace.path("out")));
            }
        };
        let failure = run(&plan, &Options::default(), &listener).expect_err(what);
        assert_eq!(
            (failure.exit, failure.findings[0].code),
            (Exit::CannotWrite, "export::occupied"),
            "{what}"
        );
        let now = files(&workspace.path("out"));
        assert_eq!(Some(now), as_changed.into_inner().expect("a lock"), "{what}");
        let left: Vec<String> = workspace.names().into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
    // One that is moved away meanwhile is in nobody's way.
    let workspace = replaceable();
    let plan = workspace.plan(&workspace.path("recipe.yaml")).expect("a plan");
    let listener = |event: &Event| {
        if matches!(event, Event::Written { .. }) {
            fs::rename(workspace.path("out"), workspace.path("moved")).expect("the output");
        }
    };
    run(&plan, &Options::default(), &listener).expect("a run");
    assert_eq!(workspace.names(), ["model", "moved", "out", "recipe.yaml"]);
}

#[test]
fn an_output_that_was_aside_when_a_run_was_killed_is_put_back() {
    let workspace = replaceable();
    let before = files(&workspace.path("out"));
    let aside = workspace.path(".out.monoquant-old");
    let (good, model) =
        (fs::read_to_string(workspace.path("recipe.yaml")).expect("it"), workspace.path("model"));
    let moved = || fs::rename(workspace.path("out"), &aside).expect("the output");
    let is_back = |why: &str| {
        assert_eq!(files(&workspace.path("out")), before, "{why}");
        assert!(!aside.exists(), "{why}");
    };
    for (why, args, status) in [
        ("the model is not there", ["--model", "nowhere"], 3),
        ("nothing is matched", ["--set", "quantize-int8.targets=[nothing.like.it]"], 2),
        ("there is no such instruction set", ["--isa", "abacus"], 2),
    ] {
        moved();
        workspace.write(".out.monoquant-staging/model.safetensors", "half of it");
        let ended = workspace.monoquant(["run", "recipe.yaml"].into_iter().chain(args));
        is_back(why);
        ended.exits(status);
    }
    moved();
    fs::create_dir(workspace.path("out")).expect("an empty folder");
    fs::rename(&model, workspace.path("away")).expect("the model");
    run_again(&workspace).exits(3);
    is_back("there is no model");
    fs::rename(workspace.path("away"), &model).expect("the model");
    // The gate of a run that is done all the same fails.
    moved();
    workspace.recipe(&format!(
        "{INT8}  - stage: check-warnings\n    sqnr_error_threshold: 90\n    on_failure: error\n"
    ));
    run_again(&workspace).exits(1);
    is_back("a gate fails");
    workspace.write("recipe.yaml", good);
    moved();
    run_again(&workspace).exits(0);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn an_output_that_is_aside_goes_only_where_another_of_ours_is_in_its_place() {
    let workspace = replaceable();
    let before = files(&workspace.path("out"));
    let aside = workspace.path(".out.monoquant-old");
    fs::rename(workspace.path("out"), &aside).expect("the output");
    workspace.write("out/mine.txt", "mine");
    run_again(&workspace).exits(4);
    assert_eq!((files(&aside), workspace.path("out/mine.txt").exists()), (before.clone(), true));
    fs::remove_dir_all(workspace.path("out")).expect("somebody's folder");
    let copy = Command::new("cp").arg("-a").args([&aside, &workspace.path("out")]).status();
    assert!(copy.expect("cp").success());
    // What somebody has put into it stays, too.
    fs::write(aside.join("mine.txt"), "mine").expect("a file");
    let said = run_again(&workspace).exits(4);
    assert!(said.stderr.contains("mine.txt"), "{}", said.stderr);
    fs::remove_file(aside.join("mine.txt")).expect("the file is still there");
    run_again(&workspace).exits(0);
    assert!(!aside.exists());
    assert_ne!(files(&workspace.path("out")), before);
}

#[test]
fn an_output_that_was_published_and_not_recorded_is_replaced_all_the_same() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let record = workspace.path(".out.monoquant-record");
    let old = fs::read(&record).expect("a record");
    // Weight files stay the same ones, and the report becomes another.
    workspace.recipe(&format!("{INT4}  - stage: validate\n"));
    workspace.run(&recipe).exits(0);
    assert_ne!(fs::read(&record).expect("a record"), old);
    fs::write(&record, old).expect("the record that a killed run leaves");
    workspace.run(&recipe).exits(0);
    workspace.recipe(INT8);
    workspace.run(&recipe).exits(0);
}

#[test]
fn outputs_have_names_as_long_as_their_disk_allows() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    for name in ["n".repeat(237), "ä".repeat(120), "n".repeat(254), format!("{}漢", "x".repeat(252))] {
        let args = ["run", "recipe.yaml", "--output", &name];
        workspace.monoquant(args).exits(0);
        let before = files(&workspace.path(&name));
        assert!(workspace.monoquant(args).exits(0).stdout.contains("up to date"), "{name}");
        let failing = ["--set", "quantize-int4.group_size=32", "--set", "export.overwrite=refuse"];
        workspace.monoquant(args.into_iter().chain(failing)).exits(4);
        assert_eq!(files(&workspace.path(&name)), before);
        workspace.monoquant(args.into_iter().chain(["--set", "quantize-int4.group_size=32"])).exits(0);
        assert_ne!(files(&workspace.path(&name)), before);
        assert_eq!(workspace.names().len(), 3, "{name}: {:?}", workspace.names());
        fs::remove_dir_all(workspace.path(&name)).expect("the output");
    }
    let too_long = "n".repeat(256);
    let said = workspace.monoquant(["run", "recipe.yaml", "--output", &too_long]).exits(2);
    assert!(said.stderr.contains("export::name-too-long"), "{}", said.stderr);
}

#[test]
fn what_an_interrupted_run_of_another_user_left_is_told_and_stays() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    for name in [".out.monoquant-staging", ".out.monoquant-interrupted"] {
        let path = workspace.write(&format!("{name}/model.safetensors"), "theirs");
        let folder = path.parent().expect("a folder");
        if std::os::unix::fs::chown(folder, Some(54321), None).is_err() {
            return; // Only root may give a folder away.
        }
        let said = workspace.run(&recipe).exits(4);
        assert!(
            said.stderr.contains("export::not-yours") && said.stderr.contains("54321"),
            "{}",
            said.stderr
        );
        assert_eq!(fs::read_to_string(&path).expect("their file"), "theirs");
        assert!(!workspace.path(".out.monoquant-lock").exists());
        fs::remove_dir_all(folder).expect("their folder");
    }
    workspace.run(&recipe).exits(0);
}

#[test]
fn the_report_holds_the_hash_of_itself() {
    let workspace = replaceable();
    let path = workspace.path("out/monoquant-report.json");
    let (text, report) = (fs::read_to_string(&path).expect("the report"), json(&path));
    let digest = report["digest"].as_str().expect("a digest");
    assert_eq!(text.matches(digest).count(), 1);
    let without = text.replace(digest, "");
    assert_eq!(blake3::hash(without.as_bytes()).to_hex().as_str(), digest);
}
