//! `monoquant init`: what it writes is a recipe without findings, and its run passes, for every family and every scheme. And what is
//! said to those who begin in another way.

use std::fmt::Write;
use std::fs;

use monoquant::finding::{Diagnostic, Severity};

use crate::support::{Model, Workspace, headers, root};

const SCHEMES: [&str; 3] = ["int4", "int8", "w8a8"];

#[test]
fn what_is_written_runs_without_a_finding() {
    let tiny = root().join("examples/tiny-llama").display().to_string();
    for scheme in SCHEMES {
        for gate in [false, true] {
            let workspace = Workspace::new();
            let mut args = vec!["init", &tiny, "--scheme", scheme, "-o", "recipe.yaml"];
            args.extend(gate.then_some("--gate"));
            let said = workspace.monoquant(&args).exits(0);
            assert!(said.stdout.starts_with("recipe.yaml is written"), "{}", said.stdout);
            workspace.monoquant(["check", "recipe.yaml", "--deny-warnings"]).exits(0);
            let said = workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
            assert_eq!(said.stderr, "", "{scheme}");
            let output = workspace.path(&format!("tiny-llama-{scheme}"));
            let report = crate::support::report(&output);
            let is_note = |found: &Diagnostic| found.severity == Severity::Note;
            assert!(
                report.verdict.passed && report.warnings.iter().all(is_note),
                "{scheme}: {:?}",
                report.warnings
            );
            if gate {
                // The gate can fail: with this bound nothing passes.
                let bound = "check-warnings.sqnr_error_threshold=60";
                workspace.monoquant(["run", "recipe.yaml", "--set", bound]).exits(1);
            }
        }
    }
}

#[test]
fn the_recipe_says_what_it_does_and_why() {
    let workspace = Workspace::with(&Model::llama());
    for (name, args) in [
        ("init-int4", &["init", "model"][..]),
        ("init-w8a8-gate", &["init", "model", "--scheme", "w8a8", "--gate"]),
    ] {
        let said = workspace.command(args).env("XDG_DATA_HOME", "/data").output().expect("the binary runs");
        let said = workspace.ended(said).exits(0);
        assert!(said.stderr.contains("monoquant schema --install"), "{}", said.stderr);
        insta::assert_snapshot!(name, said.stdout);
    }
    let said = workspace.monoquant(["init", "model", "-q"]).exits(0);
    assert_eq!(said.stderr, "");
}

#[test]
fn every_family_has_a_recipe_or_a_reason() {
    let mut text = String::new();
    for name in headers::names() {
        let model = headers::model(&name);
        let model = model.path().to_str().expect("a path in UTF-8");
        for scheme in SCHEMES {
            let workspace = Workspace::new();
            let said = workspace.monoquant(["init", model, "--scheme", scheme, "-o", "recipe.yaml"]);
            if !workspace.path("recipe.yaml").exists() {
                let said =
                    workspace.command(["init", model, "--scheme", scheme, "--format", "plain"]).output();
                let said = String::from_utf8(said.expect("the binary runs").stderr).expect("text");
                let code = said.split_once('[').and_then(|(_, rest)| rest.split_once(']')).expect("a code").0;
                let _ = writeln!(text, "{name} {scheme}: {code}");
                continue;
            }
            said.exits(0);
            workspace.monoquant(["check", "recipe.yaml", "--deny-warnings"]).exits(0);
            let plan = workspace.monoquant(["plan", "recipe.yaml", "--json"]).exits(0).json();
            let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
            let lines = ["    group_size", "    granularity", "    indivisible", "    sqnr_warning"];
            let parameters: Vec<&str> = recipe
                .lines()
                .filter(|line| lines.iter().any(|start| line.starts_with(start)))
                .map(str::trim)
                .collect();
            let warnings: Vec<&str> = plan["warnings"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(|w| w["code"].as_str())
                .collect();
            let _ = writeln!(
                text,
                "{name} {scheme}: {}{}{}",
                parameters.join(", "),
                if warnings.is_empty() { "" } else { "; " },
                warnings.join(", ")
            );
            // Weights that are not there read as zeros, which every scheme holds.
            if scheme == "int4" && plan["source_bytes"].as_u64().is_some_and(|bytes| bytes < 32 << 20) {
                workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
                text.insert_str(text.len() - 1, "; runs");
            }
        }
    }
    insta::assert_snapshot!("init-families", text);
}

#[test]
fn rows_that_do_not_divide_get_smaller_groups() {
    for (hidden, wanted) in [(192, "group_size: 64"), (160, "group_size: 32"), (144, "indivisible: channel")]
    {
        let workspace = Workspace::with(&Model::sized(hidden, 256));
        workspace.monoquant(["init", "model", "-o", "recipe.yaml"]).exits(0);
        let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
        assert!(recipe.contains(wanted), "{recipe}");
        workspace.monoquant(["check", "recipe.yaml", "--deny-warnings"]).exits(0);
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    }
}

#[test]
fn paths_are_those_of_the_recipes_folder() {
    let workspace = Workspace::new();
    Model::llama().write(&workspace.path("models/my model"));
    fs::create_dir_all(workspace.path("recipes/new")).expect("a folder");
    workspace.monoquant(["init", "models/my model", "-o", "recipes/new/r.yaml"]).exits(0);
    workspace.monoquant(["run", "recipes/new/r.yaml", "-q"]).exits(0);
    assert!(workspace.path("recipes/new/my-model-int4/config.json").exists());
    // An output is never put into the model.
    workspace.monoquant(["init", "models/my model", "-o", "models/my model/r.yaml"]).exits(0);
    workspace.monoquant(["run", "models/my model/r.yaml", "-q"]).exits(0);
    assert!(workspace.path("models/my-model-int4/config.json").exists());
    // What is there is not overwritten.
    let said = workspace.monoquant(["init", "models/my model", "-o", "recipes/new/r.yaml"]).exits(4);
    assert!(said.stderr.contains("`recipes/new/r.yaml` is there already"), "{}", said.stderr);
    // From within, and of one file.
    let mut within = workspace.command(["init", "."]);
    let said = workspace
        .ended(within.current_dir(workspace.path("models/my model")).output().expect("it runs"))
        .exits(0);
    assert!(
        said.stdout.contains("model: \".\"\n") && said.stdout.contains("path: ../my-model-int4"),
        "{}",
        said.stdout
    );
    workspace.monoquant(["init", "no/model"]).exits(3);
}

#[test]
fn schemas_are_installed_for_editors() {
    let workspace = Workspace::with(&Model::llama());
    let with_home = |args: &[&str]| {
        let mut command = workspace.command(args);
        command.env("HOME", workspace.root()).env("XDG_DATA_HOME", workspace.path("my data"));
        workspace.ended(command.output().expect("the binary runs")).exits(0)
    };
    let said = with_home(&["schema", "--install"]);
    let line = said.stdout.lines().last().expect("a line").to_owned();
    assert!(
        line.starts_with("# yaml-language-server: $schema=file://") && line.contains("my%20data"),
        "{line}"
    );
    let schema =
        fs::read_to_string(workspace.path("my data/monoquant/recipe.schema.json")).expect("the schema");
    assert_eq!(schema, monoquant::recipe::schema_text());
    assert!(workspace.path("my data/monoquant/report.schema.json").exists());
    let said = with_home(&["init", "model"]);
    assert_eq!(said.stdout.lines().next(), Some(line.as_str()));
    assert_eq!(said.stderr, "", "they are installed");
    let mut command = workspace.command(["schema", "--install"]);
    let said = workspace.ended(command.output().expect("the binary runs")).exits(4);
    assert!(said.stderr.contains("Set `HOME`"), "{}", said.stderr);
}

#[test]
fn who_begins_otherwise_is_told_how() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/tokenizer/vocab.json", "{}");
    workspace.write("models/llama/config.json", "{}");
    Model::llama().write(&workspace.path("models/llama/original"));
    let says = |args: &[&str], status: i32, words: &str| {
        let said = workspace.monoquant(args).exits(status).stderr;
        let flat = said.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(flat.contains(words), "{args:?}: {said}");
    };
    says(&["run", "model"], 2, "`monoquant init model -o recipe.yaml` writes a recipe that fits it.");
    says(&["run", "hf://org/name"], 2, "`monoquant init hf://org/name -o recipe.yaml`");
    workspace.recipe("  - stage: quantize-int4\n");
    says(
        &["plan", "recipe.yaml", "--model", "meta-llama/Llama-3-8B"],
        3,
        "write `hf://meta-llama/Llama-3-8B`.",
    );
    let recipe = "version: 1\nstages:\n  - stage: load\n    model: NAME\n  - stage: quantize-int4\n  - stage: export\n    path: out\n";
    for (model, words) in [
        ("meta-llama/Llama-3-8B", "If it is a model of the Hub, write `hf://meta-llama/Llama-3-8B`."),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "write `hf://Qwen/Qwen3-0.6B`."),
        ("models/llama", "Give the folder that has: `[work]/models/llama/original`."),
        ("model/tokenizer", "Give the folder above, which has: `[work]/model`."),
        ("model/llama", "`[work]/model` is itself the folder of a model: give that."),
    ] {
        workspace.write("named.yaml", recipe.replace("NAME", model));
        let path = workspace.path("named.yaml").display().to_string();
        says(&["plan", &path], 3, words);
    }
}

#[test]
fn the_home_folder_is_found_as_a_shell_finds_it() {
    let workspace = Workspace::with(&Model::llama());
    workspace.whole_recipe(
        "  - stage: load\n    model: ~/model\n  - stage: quantize-int4\n  - stage: export\n    path: $HOME/outputs/llama\n",
    );
    let mut command =
        workspace.command([std::ffi::OsStr::new("run"), workspace.path("recipe.yaml").as_os_str()]);
    command.env("HOME", workspace.root());
    let said = workspace.ended(command.output().expect("the binary runs")).exits(0);
    assert!(said.stdout.contains("$HOME/outputs/llama"), "told as it was written: {}", said.stdout);
    let written =
        fs::read_to_string(workspace.path("outputs/llama/monoquant-recipe.yaml")).expect("the recipe");
    assert!(written.contains("~/model"), "{written}");
    assert_eq!(workspace.names(), ["model", "outputs", "recipe.yaml"], "no folder is called ~");
    // On the command line too, where the shell has left it.
    workspace.recipe("  - stage: quantize-int4\n");
    let mut command = workspace.command(["run", "recipe.yaml", "--output=~/elsewhere"]);
    command.env("HOME", workspace.root());
    workspace.ended(command.output().expect("the binary runs")).exits(0);
    assert!(workspace.path("elsewhere/config.json").exists());
    let said = workspace.monoquant(["run", "recipe.yaml", "--output=~/elsewhere"]).exits(2);
    assert!(said.stderr.contains("`HOME` is not set"), "{}", said.stderr);
}
