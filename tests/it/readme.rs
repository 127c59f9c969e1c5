//! The README's commands, the recipes' comments, and the report's schema: what is promised is what happens.

use std::fs;

use monoquant::plan::{self, Limits};
use monoquant::recipe::{Overrides, from_text};
use monoquant::report;

use crate::run::shipped;
use crate::support::{Model, Workspace, assert_reviewed, json, root};

/// The commands in a document's console blocks, without the prompt.
pub fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_console = false;
    for line in text.lines() {
        match line.trim_end() {
            "```console" => in_console = true,
            "```" => in_console = false,
            line if in_console => commands.extend(line.strip_prefix("$ ").map(str::to_owned)),
            _ => {}
        }
    }
    commands
}

/// The arguments of a command that runs monoquant; none of one that does something else.
fn arguments(command: &str) -> Option<Vec<&str>> {
    let command = command.split(" #").next().unwrap_or(command);
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["monoquant", rest @ ..] => Some(rest.to_vec()),
        ["cargo", "run", rest @ ..] => {
            let end = rest.iter().position(|word| *word == "--").map_or(rest.len(), |at| at + 1);
            (!rest[..end].contains(&"--example")).then(|| rest[end..].to_vec())
        }
        _ => None,
    }
}

/// A workspace that looks like a clone of the repository.
pub fn clone() -> Workspace {
    let workspace = Workspace::new();
    for folder in ["recipes", "examples/tiny-llama"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            workspace.write(&format!("{folder}/{name}"), fs::read(&path).expect("a file"));
        }
    }
    workspace
}

#[test]
fn the_readmes_commands_work() {
    let mut ran = 0;
    for document in ["README.md", "docs/recipes.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).expect("a document");
        let workspace = clone();
        for command in commands(&text) {
            let Some(arguments) = arguments(&command) else { continue };
            let said = workspace.monoquant(&arguments).exits(0);
            assert!(!said.stderr.contains('⚠'), "{document}: {command}: {}", said.stderr);
            ran += 1;
        }
    }
    assert!(ran >= 1, "the README shows no command");
}

/// The YAML blocks of a document, each with the number of its first line, without the indentation that a list around it gives.
fn yaml_blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let mut indentation = None;
    for (at, line) in text.lines().enumerate() {
        match (line.trim(), indentation) {
            ("```yaml" | "```yml", None) => {
                indentation = Some(line.len() - line.trim_start().len());
                blocks.push((at + 2, String::new()));
            }
            ("```", Some(_)) => indentation = None,
            (_, Some(indentation)) => {
                let (_, block) = blocks.last_mut().expect("the block that was begun");
                *block += line.get(indentation..).unwrap_or_default();
                block.push('\n');
            }
            _ => {}
        }
    }
    assert_eq!(indentation, None, "a block has no end");
    blocks
}

/// A recipe around a block that is only some stages of one.
fn whole(block: &str) -> String {
    if block.lines().any(|line| line.starts_with("stages:")) {
        return block.to_owned();
    }
    let first = block.lines().find(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
    assert!(
        first.is_some_and(|line| line.trim().starts_with("- stage: ")),
        "neither a recipe nor stages:\n{block}"
    );
    let indented: String = if block.starts_with("  ") {
        block.to_owned()
    } else {
        block.lines().map(|line| format!("  {line}\n")).collect()
    };
    let has = |stage: &str| block.contains(&format!("- stage: {stage}"));
    let load = if has("load") { "" } else { "  - stage: load\n    model: ../examples/tiny-llama\n" };
    let quantize = if has("quantize-") { "" } else { "  - stage: quantize-int4\n" };
    let export = if has("export") { "" } else { "  - stage: export\n    path: ../out/block\n" };
    format!("version: 1\nname: block\nstages:\n{load}{indented}{quantize}{export}")
}

#[test]
fn the_recipes_in_the_documents_are_recipes() {
    let mut documents = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let docs = fs::read_dir(root().join("docs")).expect("the documents");
    documents.extend(
        docs.map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|end| end == "md")),
    );
    let mut loaded = 0;
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        for (line, block) in yaml_blocks(&text) {
            let at = format!("{}:{line}", document.display());
            let base = root().join("recipes");
            let recipe = from_text(&at, &whole(&block), &base, &Overrides::default(), &|_| None)
                .unwrap_or_else(|failure| panic!("{at}: {failure}"));
            assert!(recipe.warnings.is_empty(), "{at}: {:?}", recipe.warnings);
            // The model that it names is in the repository.
            plan::plan(recipe, Limits { threads: Some(1), memory: None })
                .unwrap_or_else(|failure| panic!("{at}: {failure}"));
            loaded += 1;
        }
    }
    assert!(loaded >= 2, "{loaded} blocks");
}

#[test]
fn a_block_of_stages_becomes_a_recipe_and_a_wrong_one_is_found() {
    let text = "1. So:\n\n   ```yaml\n   - stage: quantize-int8\n     group_sise: 8\n   ```\n";
    let blocks = yaml_blocks(text);
    assert_eq!(blocks, [(4, "- stage: quantize-int8\n  group_sise: 8\n".to_owned())]);
    let read = |text: &str| from_text("block", text, root(), &Overrides::default(), &|_| None);
    let failure = read(&whole(&blocks[0].1)).expect_err("a misspelt parameter");
    assert!(failure.to_string().contains("group_sise"), "{failure}");
    assert!(read(&whole("- stage: quantize-int8\n")).is_ok());
}

#[test]
fn the_readme_starts_with_two_commands() {
    let text = fs::read_to_string(root().join("README.md")).expect("the README");
    let commands = commands(&text);
    assert_eq!(commands[0], "cargo run --release -- run recipes/llama-int4.yaml");
    assert!(commands[1].starts_with("cargo test --release"), "{}", commands[1]);
    let script = fs::read_to_string(root().join(".ci/run")).expect("the script of the checks");
    assert!(
        script.contains(&commands[1].replace("--release", "--release --locked"))
            || script.contains(&commands[1])
    );
}

#[test]
fn every_shipped_recipe_says_when_to_choose_it() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    for path in shipped() {
        let text = fs::read_to_string(&path).expect("a recipe");
        let comment: Vec<&str> = text.lines().skip(1).take_while(|line| line.starts_with("# ")).collect();
        let words = comment.join(" ").split_whitespace().count();
        assert!(words >= 15, "{} says little about when to choose it", path.display());
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(readme.contains(&stem), "the README does not name {stem}");
        // A threshold is a number that wants a reason.
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in
            lines.iter().enumerate().filter(|(_, line)| line.contains("sqnr_warning_threshold:"))
        {
            assert!(lines[at - 1].trim_start().starts_with("# "), "{}: {line} has no reason", path.display());
        }
    }
}

#[test]
fn the_committed_report_schema_is_up_to_date() {
    assert_reviewed("schemas/report.schema.json", &report::schema_text());
    assert_eq!(Workspace::new().monoquant(["schema", "report"]).exits(0).stdout, report::schema_text());
}

#[test]
fn reports_satisfy_their_schema() {
    let schema = json(&root().join("schemas/report.schema.json"));
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let zeros = {
        let mut model = Model::llama();
        model.add_values("model.layers.0.mlp.up_proj.weight", &[256, 128], &[0.0; 256 * 128]);
        model.with_value("lm_head.weight", 3, f32::INFINITY)
    };
    let workspace = Workspace::with(&zeros);
    let gate = "  - stage: check-warnings\n    sqnr_error_threshold: 25\n    sqnr_warning_threshold: 25\n";
    for stages in [
        "  - stage: quantize-int4\n  - stage: validate\n    on_failure: warn\n".to_owned() + gate,
        "  - stage: quantize-int8\n".to_owned(),
        "  - stage: quantize-int4\n  - stage: validate\n    on_failure: warn\n".to_owned()
            + gate
            + "    on_failure: error\n",
    ] {
        let is_failing = stages.ends_with("error\n");
        workspace.run(&workspace.recipe(&stages)).exits(i32::from(is_failing));
        let path = if is_failing { "out.failed-report.json" } else { "out/monoquant-report.json" };
        let report = json(&workspace.path(path));
        let errors: Vec<String> = validator.iter_errors(&report).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let mut broken = report.clone();
        broken["tensors"][0]["bytes_in"] = "many".into();
        assert!(!validator.is_valid(&broken));
        // One of each kind: a run that warns, one that only publishes, and one that fails.
        let has_gates = stages.contains("validate");
        assert_eq!(report["verdict"]["exit_status"], i32::from(is_failing), "{stages}");
        assert_eq!(report["gates"].as_array().map(Vec::len), Some(if has_gates { 3 } else { 1 }), "{stages}");
        assert!(!has_gates || report["warnings"].as_array().is_some_and(|all| !all.is_empty()), "{stages}");
    }
}
