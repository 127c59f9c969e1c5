//! Pages that are generated or whose commands are run: findings, the quickstart, the files for CI.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use monoquant::finding::codes;
use serde_json::Value;

use crate::architecture::sources;
use crate::readme::{clone, commands};
use crate::support::{Workspace, assert_reviewed, json, root};

#[test]
fn every_code_has_a_cause_and_a_remedy() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let code = regex::Regex::new(r#""([a-z]+::[a-z0-9-]+)""#).expect("a pattern");
    let test = regex::Regex::new(
        r"(?m)^#\[cfg\([^\n]*test[^\n]*\)\]\n(?:#\[[^\n]*\]\n)*(?:pub\([a-z]+\) )?mod \w+ \{",
    )
    .expect("a pattern");
    let mut used: BTreeSet<String> = BTreeSet::new();
    for file in files {
        let name = file.display().to_string();
        if name.ends_with("finding/codes.rs") || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        let end = test.find(&text).map_or(text.len(), |found| found.start());
        used.extend(code.captures_iter(&text[..end]).map(|found| found[1].to_owned()));
    }
    assert!(used.len() > 150, "{} codes", used.len());
    let known: Vec<&str> = codes::CODES.iter().map(|code| code.code).collect();
    assert!(known.is_sorted(), "the codes are in order");
    let missing: Vec<&String> = used.iter().filter(|code| codes::find(code).is_none()).collect();
    assert!(missing.is_empty(), "without a cause and a remedy: {missing:?}");
    let dead: Vec<&&str> = known.iter().filter(|code| !used.contains(**code)).collect();
    assert!(dead.is_empty(), "in the table and nowhere else: {dead:?}");
    for code in codes::CODES {
        assert!(code.cause.ends_with('.') && code.remedy.ends_with('.'), "{}", code.code);
    }
    assert_reviewed("docs/findings.md", &codes::page());
}

/// A clone with `monoquant` on the path.
fn clone_with_program() -> (Workspace, String) {
    let workspace = clone();
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_monoquant")).parent().expect("a folder");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a path"));
    (workspace, path)
}

#[cfg(unix)]
#[test]
fn the_commands_of_the_quickstart_work() {
    let text = fs::read_to_string(root().join("docs/quickstart.md")).expect("the page");
    let (workspace, path) = clone_with_program();
    let all = commands(&text);
    assert!(all.len() > 15, "{all:?}");
    let mut shell = workspace.program("sh");
    let has_jq = shell.args(["-c", "command -v jq"]).env("PATH", &path).stdout(Stdio::null()).status();
    let has_jq = has_jq.is_ok_and(|status| status.success());
    for command in all {
        if command.starts_with("jq ") && !has_jq {
            continue;
        }
        let mut shell = workspace.program("sh");
        let output = shell.args(["-c", &command]).env("PATH", &path).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {said}");
        let is_answer = command.starts_with("jq ") && !command.contains(".warnings");
        assert!(!is_answer || !output.stdout.is_empty(), "{command} says nothing");
    }
    for name in ["reports/run.html", "junit.xml", "recipes/monoquant.lock"] {
        assert!(workspace.path(name).is_file(), "{name}");
    }
}

/// The commands and the keys of a workflow that are written in its YAML.
fn yaml(name: &str) -> Value {
    let text = fs::read_to_string(root().join("examples/ci").join(name)).expect("a workflow");
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[cfg(unix)]
#[test]
fn the_workflows_for_ci_run() {
    let (workspace, path) = clone_with_program();
    let gate = fs::read(root().join("examples/ci/gate.sh")).expect("the script");
    workspace.write("ci/gate.sh", gate);
    let recipe = fs::read_to_string(root().join("recipes/llama-int4.yaml")).expect("a recipe");
    workspace.write("recipes/model.yaml", &recipe);
    let github = yaml("github.yml");
    let steps = github["jobs"]["gate"]["steps"].as_array().expect("steps");
    let step =
        |name: &str| steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let gate = step("Quantize and judge")["run"].as_str().expect("a command");
    let gitlab = yaml("gitlab-ci.yml")["quantize"].clone();
    assert_eq!(gitlab["script"][0], gate, "both run one script");
    let summary = workspace.path("summary.md");
    let run = |status: i32| {
        let mut shell = workspace.program("sh");
        shell.args(["-c", &format!("sh {gate}")]).env("PATH", &path).env("CI", "true");
        shell.env("GITHUB_ACTIONS", "true").env("GITHUB_WORKSPACE", workspace.root());
        shell.env("GITHUB_STEP_SUMMARY", &summary);
        workspace.ended(shell.output().expect("a shell")).exits(status)
    };
    run(0);
    // Everything that the workflows take from the job is there.
    let sarif = steps.last().expect("a step")["with"]["sarif_file"].as_str().expect("a file");
    let reports = &gitlab["artifacts"]["reports"];
    for name in
        [sarif, reports["junit"].as_str().expect("a file"), reports["codequality"].as_str().expect("a file")]
    {
        assert!(workspace.path(name).is_file(), "{name}");
    }
    assert!(fs::read_to_string(&summary).expect("a summary").starts_with("## ✅"));
    // The baseline and the lock are taken as soon as they are there.
    fs::copy(workspace.path("reports/monoquant.json"), workspace.path("baseline.json")).expect("a copy");
    workspace.monoquant(["lock", "recipes/model.yaml"]).exits(0);
    run(0);
    assert_eq!(json(&workspace.path("reports/monoquant.json"))["baseline"]["sqnr_change_db"], 0.0);
    workspace.write("recipes/model.yaml", recipe.replace("group_size: 128", "group_size: 32"));
    assert!(run(2).stdout.contains("lock%3A%3Adiffers"));
    fs::remove_file(workspace.path("recipes/monoquant.lock")).expect("the lock");
    let said = run(1);
    assert!(
        said.stdout.contains("::error") && said.stdout.contains("baseline%3A%3Agrowth"),
        "{}",
        said.stdout
    );
}

#[test]
fn the_image_copies_what_it_builds() {
    let text = fs::read_to_string(root().join("examples/ci/Dockerfile")).expect("the file");
    let known = ["FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"];
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.iter().all(|line| known.contains(&line.split(' ').next().expect("a word"))), "{text}");
    let built = lines.iter().find(|line| line.contains("cargo build")).expect("a build");
    assert!(built.contains("--locked") && built.ends_with("target/release/monoquant /monoquant"), "{built}");
    assert!(text.contains("COPY --from=build /monoquant /monoquant") && text.contains("[\"/monoquant\"]"));
}
