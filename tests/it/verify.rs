//! `verify`: what it says it has looked at, what it does not read, and that its advice mends.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Model, Workspace, files, json as json_of, symlink};

const REPORT: &str = "out/monoquant-report.json";

/// An output with weights in two files, and files carried over at two depths.
fn published() -> Workspace {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/assets/picture.png", "picture");
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n  - stage: validate\n")).exits(0);
    workspace
}

/// Edits the report.
fn edit(workspace: &Workspace, change: impl FnOnce(&mut Value)) {
    let mut report = json_of(&workspace.path(REPORT));
    change(&mut report);
    // Whoever edits a report with care gives it its digest, too.
    report["digest"] = "".into();
    let text = serde_json::to_string_pretty(&report).expect("JSON") + "\n";
    let digest = blake3::hash(text.as_bytes()).to_hex();
    workspace.write(REPORT, text.replace("\"digest\": \"\"", &format!("\"digest\": \"{digest}\"")));
}

#[test]
fn a_report_without_its_digest_was_edited() {
    let workspace = published();
    edit(&workspace, |report| report["verdict"]["summary"] = "edited with care".into());
    workspace.monoquant(["verify", "out"]).exits(0);
    let mut report = json_of(&workspace.path(REPORT));
    for without in [None, Some(Value::Null), Some("".into()), Some("0".repeat(64).into())] {
        match &without {
            None => drop(report.as_object_mut().expect("an object").shift_remove("digest")),
            Some(digest) => report["digest"] = digest.clone(),
        }
        workspace.write(REPORT, serde_json::to_string_pretty(&report).expect("JSON") + "\n");
        let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
        assert!(
            said.contains("monoquant-report.json was edited since it was written"),
            "{without:?}: {said}"
        );
        let before = files(&workspace.path("out"));
        let said =
            workspace.monoquant(["run", "recipe.yaml", "--set", "quantize-int4.group_size=64"]).exits(4);
        assert!(said.stderr.contains("was edited"), "{without:?}: {}", said.stderr);
        assert_eq!(files(&workspace.path("out")), before);
    }
}

#[test]
fn it_says_what_it_has_looked_at() {
    let workspace = published();
    let said = workspace.monoquant(["verify", "out"]).exits(0).stdout;
    assert_eq!(
        said,
        "out is as it was written: 14 of 21 tensors quantized\n\
         \x20 weights  2 files with the checksums of the report\n\
         \x20 carried over  3 files with the checksums of the report\n\
         \x20 made  4 files with the checksums of the report\n\
         \x20 report  with its own digest\n"
    );
    workspace.write("out/notes.txt", "mine");
    let said = workspace.monoquant(["verify", "out"]).exits(0).stdout;
    assert!(said.ends_with("not checked  notes.txt: the report has no checksum of them\n"), "{said}");
    let found = workspace.monoquant(["verify", "out", "--format", "json"]).exits(0).json();
    assert_eq!(
        found["checked"]["carried"],
        json!(["assets/picture.png", "generation_config.json", "tokenizer.json"])
    );
    assert_eq!(found["checked"]["weights"].as_array().map(Vec::len), Some(2));
    assert_eq!(found["unchecked"], json!(["notes.txt"]));
}

#[test]
fn every_damage_is_found_and_its_advice_mends() {
    let workspace = published();
    let good = files(&workspace.path("out"));
    let run_again = || workspace.monoquant(["run", "recipe.yaml", "--fresh"]);
    for name in good.keys().filter(|name| *name != "monoquant-report.json") {
        let path = workspace.path("out").join(name);
        for damage in ["changed", "shorter", "missing"] {
            let mut bytes = good[name].clone();
            let middle = bytes.len() / 2;
            match damage {
                "changed" => bytes[middle] ^= 1,
                "shorter" => bytes.truncate(middle),
                _ => fs::remove_file(&path).expect("a file"),
            }
            if damage != "missing" {
                fs::write(&path, bytes).expect("a file");
            }
            let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
            assert!(
                said.contains(name.as_str()) && said.contains("Run the recipe again"),
                "{damage}: {said}"
            );
            run_again().exits(0);
            workspace.monoquant(["verify", "out"]).exits(0);
            assert_eq!(files(&workspace.path("out")), good, "{name} {damage}");
        }
    }
    // What is no longer monoquant's is moved away first.
    let link = workspace.path("out/tokenizer.json");
    fs::remove_file(&link).expect("a file");
    symlink(workspace.path("model/tokenizer.json"), &link);
    let mut report = json_of(&workspace.path(REPORT));
    for damage in ["a link", "an edited report"] {
        if damage == "an edited report" {
            report["verdict"]["summary"] = json!("all is well");
            workspace.write(REPORT, report.to_string());
        }
        let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
        assert!(said.contains("move it") && said.contains("away first"), "{damage}: {said}");
        run_again().exits(4);
        fs::rename(workspace.path("out"), workspace.path(damage)).expect("a move");
        run_again().exits(0);
        workspace.monoquant(["verify", "out"]).exits(0);
        assert_eq!(files(&workspace.path("out")), good);
    }
}

#[test]
fn a_report_with_nothing_in_it_proves_nothing() {
    type Change = (&'static str, fn(&mut Value));
    let changes: [Change; 6] = [
        ("no weight files", |report| report["outputs"] = json!([])),
        ("no weight files", |report| report["outputs"][0]["files"] = json!([])),
        ("no weight files", |report| {
            report["outputs"][0]["files"] = json!([]);
            report["outputs"][0]["copied"] = json!([]);
            report["outputs"][0]["others"] = json!([]);
        }),
        ("did not publish", |report| report["outputs"][0]["published"] = json!(false)),
        ("does not add up", |report| {
            report["outputs"][0]["files"].as_array_mut().expect("files").remove(0);
        }),
        ("does not add up", |report| report["sizes"]["outputs"] = json!([])),
    ];
    for (what, change) in changes {
        let workspace = published();
        edit(&workspace, change);
        let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn nothing_outside_of_the_folder_is_read() {
    for of in ["files", "others"] {
        for name in
            ["../model/tokenizer.json", "/etc/hostname", "linked/tokenizer.json", "./config.json", "pipe", ""]
        {
            let workspace = published();
            symlink(workspace.path("model"), workspace.path("out/linked"));
            let made = std::process::Command::new("mkfifo").arg(workspace.path("out/pipe")).status();
            assert!(made.expect("mkfifo").success());
            edit(&workspace, |report| report["outputs"][0][of][0]["name"] = json!(name));
            let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
            let is_told = said.contains("is no name of a file in the folder")
                || said.contains("and outputs have files")
                || said.contains("it is not there");
            assert!(is_told, "{of} {name}: {said}");
        }
    }
    // Nor is the report itself, if it is a link.
    let workspace = published();
    fs::rename(workspace.path(REPORT), workspace.path("elsewhere.json")).expect("the report");
    symlink(workspace.path("elsewhere.json"), workspace.path(REPORT));
    workspace.monoquant(["verify", "out"]).exits(3);
    // A folder that is itself behind a link is what was asked for.
    let workspace = published();
    symlink(workspace.path("out"), workspace.path("latest"));
    workspace.monoquant(["verify", "latest"]).exits(0);
}

#[test]
fn of_a_report_without_checksums_of_other_files_it_says_what_it_could_not_check() {
    let workspace = published();
    edit(&workspace, |report| {
        report["outputs"][0].as_object_mut().expect("an object").remove("others");
    });
    let said = workspace.monoquant(["verify", "out"]).exits(0).stdout;
    assert!(!said.contains("carried over"), "{said}");
    assert!(
        said.contains("not checked  README.md, assets/picture.png, config.json, generation_config.json"),
        "{said}"
    );
    fs::remove_file(workspace.path("out/tokenizer.json")).expect("a file");
    let said = workspace.monoquant(["verify", "out"]).exits(5).stderr;
    assert!(said.contains("tokenizer.json cannot be read: it is not there"), "{said}");
}
