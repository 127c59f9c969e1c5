//! The model card of an output, the file with hashes, and paths of the machine that reach neither.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Model, Workspace, files, report};

const CARD: &str =
    "---\nlicense: apache-2.0 # as it was\nlanguage:\n- en\ntags:\n- llama\n---\n# My model\n\nIt answers.\n";

fn recipe(workspace: &Workspace, export: &str) -> std::path::PathBuf {
    workspace.whole_recipe(&format!(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 5\n    sqnr_error_threshold: 1\n  - stage: export\n    path: out\n{export}"
    ))
}

fn card(workspace: &Workspace) -> String {
    fs::read_to_string(workspace.path("out/README.md")).expect("a card")
}

/// The front matter, as YAML.
fn front(card: &str) -> Value {
    let (front, _) = card.strip_prefix("---\n").expect("a fence").split_once("\n---\n").expect("a fence");
    serde_yaml::from_str(front).unwrap_or_else(|error| panic!("{error}: {front}"))
}

#[test]
fn the_sources_card_keeps_its_text_and_tells_how_it_was_quantized() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/README.md", CARD);
    recipe(&workspace, "    base_model: org/model\n");
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    let text = card(&workspace);
    insta::assert_snapshot!(
        "card",
        workspace.filtered(&text).replace(env!("CARGO_PKG_VERSION"), "[version]")
    );
    assert!(
        text.contains("# My model\n\nIt answers.\n") && text.contains("license: apache-2.0 # as it was\n")
    );
    let front = front(&text);
    assert_eq!(
        (&front["base_model"], &front["base_model_relation"]),
        (&"org/model".into(), &"quantized".into())
    );
    assert_eq!(front["tags"], serde_json::json!(["llama", "monoquant", "compressed-tensors"]));
    let report = report(&workspace.path("out"));
    assert!(report.outputs[0].others.iter().any(|file| file.name == "README.md"));
    assert!(!report.outputs[0].copied.contains(&"README.md".to_owned()));
    workspace.monoquant(["verify", "out"]).exits(0);
    // Nothing changes, so nothing is written; another text is another card.
    let before = files(&workspace.path("out"));
    assert!(workspace.monoquant(["run", "recipe.yaml"]).exits(0).stdout.contains("up to date"));
    assert!(before == files(&workspace.path("out")));
    workspace.write("model/README.md", CARD.replace("answers", "asks"));
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    assert!(card(&workspace).contains("It asks."));
    recipe(&workspace, "    card: false\n");
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    assert_eq!(card(&workspace), CARD.replace("answers", "asks"));
}

#[test]
fn the_base_model_is_named_by_the_recipe_the_hub_or_the_sources_card_or_not_at_all() {
    let workspace = Workspace::with(&Model::llama());
    recipe(&workspace, "");
    let said = workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    assert!(said.stderr.contains("base_model"), "it is told: {}", said.stderr);
    assert_eq!(front(&card(&workspace))["base_model"], Value::Null);
    workspace.write("model/README.md", CARD.replace("license", "base_model: up/stream\nlicense"));
    let said = workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    assert!(!said.stderr.contains("base_model"), "{}", said.stderr);
    assert_eq!(front(&card(&workspace))["base_model"], "up/stream");
    // A model of the Hub, in its cache.
    let snapshot = "hub/models--some--one/snapshots/0123456789abcdef";
    Model::llama().write(&workspace.path(snapshot));
    workspace.write("hub/models--some--one/refs/main", "0123456789abcdef");
    let mut command = workspace.command(["run", "recipe.yaml", "-q", "--model", "hf://some/one"]);
    workspace
        .ended(command.env("HF_HUB_CACHE", workspace.path("hub")).output().expect("the binary runs"))
        .exits(0);
    assert_eq!(front(&card(&workspace))["base_model"], "some/one");
    // The lock has its commit.
    let mut command = workspace.command(["lock", "recipe.yaml", "--model", "hf://some/one"]);
    workspace
        .ended(command.env("HF_HUB_CACHE", workspace.path("hub")).output().expect("the binary runs"))
        .exits(0);
    let lock = fs::read_to_string(workspace.path("monoquant.lock")).expect("the lock");
    assert!(lock.contains("\"revision\": \"0123456789abcdef\""), "{lock}");
}

#[cfg(unix)]
#[test]
fn all_files_have_hashes_if_the_recipe_asks_for_them() {
    let workspace = Workspace::with(&Model::llama());
    recipe(&workspace, "    digest: sha256\n");
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    let sums = fs::read_to_string(workspace.path("out/SHA256SUMS")).expect("the file");
    let named: Vec<&str> =
        sums.lines().map(|line| line.split_once("  ").expect("a hash and a name").1).collect();
    let mut all: Vec<String> = files(&workspace.path("out")).into_keys().collect();
    all.retain(|name| name != "SHA256SUMS");
    assert_eq!(named, all);
    for (line, bytes) in sums.lines().zip(
        files(&workspace.path("out"))
            .into_iter()
            .filter(|(name, _)| name != "SHA256SUMS")
            .map(|(_, bytes)| bytes),
    ) {
        use sha2::Digest;
        let hash: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(line.starts_with(&hash), "{line}");
    }
    let mut command = workspace.program("sha256sum");
    command.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(workspace.path("out")).stdout(Stdio::null());
    if let Ok(status) = command.env("PATH", std::env::var_os("PATH").expect("a path")).status() {
        assert!(status.success());
    }
    assert!(workspace.monoquant(["run", "recipe.yaml"]).exits(0).stdout.contains("up to date"));
    // Hashes of other files are not carried over.
    workspace.write("model/SHA256SUMS", "0  nothing\n");
    recipe(&workspace, "");
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    assert!(!workspace.path("out/SHA256SUMS").exists());
}

#[test]
fn paths_of_the_machine_reach_neither_recipe_nor_report_nor_card() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/README.md", CARD);
    let (model, out) = (workspace.path("model"), workspace.path("out"));
    let yaml = format!(
        "version: 1\nname: test\nstages:\n  - stage: load\n    model: {}\n  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 1\n  - stage: export\n    path: {}\n",
        model.display(),
        out.display()
    );
    let recipe = workspace.write("recipe.yaml", yaml);
    workspace
        .monoquant([
            "run",
            &recipe.display().to_string(),
            "-q",
            "--report",
            "all.html",
            "--report",
            "all.json",
        ])
        .exits(0);
    let machine = workspace.root().display().to_string();
    for name in ["monoquant-report.json", "monoquant-recipe.yaml", "README.md"] {
        let text = fs::read_to_string(workspace.path("out").join(name)).expect("a file");
        assert!(!text.contains(&machine), "{name}: {text}");
    }
    for name in ["all.html", "all.json"] {
        let text = fs::read_to_string(workspace.path(name)).expect("a document");
        assert!(!text.contains(&machine), "{name}");
    }
    // It runs again from there, with the model named by a variable.
    let mut command = workspace.command(["run", "out/monoquant-recipe.yaml", "-q", "--output", "again"]);
    workspace.ended(command.env("MODEL", &model).output().expect("the binary runs")).exits(0);
    let weights = |folder: &str| {
        files(&workspace.path(folder))
            .into_iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .collect::<Vec<_>>()
    };
    assert!(weights("out") == weights("again"));
}
