//! The workflows of the forge: every step is a script of the repository, so that what they check can be checked without the forge.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::root;

/// The files of a folder of the repository.
fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("a folder of the repository");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Each job of each workflow, with its name.
fn jobs() -> Vec<(String, Value)> {
    let mut jobs = Vec::new();
    for path in entries(".github/workflows") {
        let text = fs::read_to_string(&path).expect("a workflow");
        let workflow: Value = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        for (job, value) in workflow["jobs"].as_object().unwrap_or_else(|| panic!("{name} has no jobs")) {
            jobs.push((format!("{name}: {job}"), value.clone()));
        }
    }
    jobs
}

/// The commands of a job, and that nothing but commands and actions of a fixed version are its steps.
fn commands(name: &str, job: &Value) -> Vec<String> {
    assert!(job["timeout-minutes"].is_u64(), "{name} may hang for hours");
    let steps = job["steps"].as_array().unwrap_or_else(|| panic!("{name} has no steps"));
    let action = regex::Regex::new(r"^actions/[a-z-]+@v\d+$").expect("a pattern");
    let mut out = Vec::new();
    for step in steps {
        match (step["run"].as_str(), step["uses"].as_str()) {
            (Some(run), None) => out.push(run.to_owned()),
            (None, Some(uses)) => assert!(action.is_match(uses), "{name} uses {uses}"),
            _ => panic!("{name} has a step that is neither a command nor an action: {step}"),
        }
    }
    out
}

/// The scripts that the workflows run.
fn scripts() -> BTreeSet<String> {
    let mut scripts = BTreeSet::new();
    // One script with plain words or values of the forge after it: no second command, no redirection, no variable of a shell.
    let command =
        regex::Regex::new(r"^(\.ci/[a-z-]+)( [a-z0-9-]+| \$\{\{ [a-z_.]+ \}\})*$").expect("a pattern");
    for (name, job) in jobs() {
        let commands = commands(&name, &job);
        assert!(!commands.is_empty(), "{name} does nothing");
        for run in commands {
            let found =
                command.captures(&run).unwrap_or_else(|| panic!("{name} runs `{run}`, which is no script"));
            scripts.insert(found[1].to_owned());
        }
    }
    scripts
}

#[test]
fn each_step_of_the_workflows_is_a_script_that_can_be_run() {
    for script in scripts() {
        let path = root().join(&script);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{script}: {error}"));
        assert!(text.starts_with("#!/usr/bin/env bash\n# "), "{script} does not say what it is");
        assert!(text.contains("set -euo pipefail\n"), "{script} goes on after a failure");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).expect("a script").permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
        }
    }
}

#[test]
fn each_script_is_run_by_a_workflow_or_by_another_script() {
    let run = scripts();
    let all: Vec<String> = entries(".ci")
        .iter()
        .map(|path| format!(".ci/{}", path.file_name().expect("a name").to_string_lossy()))
        .collect();
    assert!(all.len() >= run.len());
    for script in &all {
        let by_another = || {
            all.iter().filter(|other| *other != script).any(|other| {
                let text = fs::read_to_string(root().join(other)).expect("a script");
                text.lines().any(|line| line.trim_start().starts_with(script.as_str()))
            })
        };
        assert!(run.contains(script) || by_another(), "nothing runs {script}");
    }
}

#[test]
fn scripts_are_bash() {
    for path in entries(".ci") {
        // If there is no bash there is nothing to ask.
        let Ok(output) = Command::new("bash").arg("-n").arg(&path).output() else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_workflows_cover_what_is_promised() {
    let jobs = jobs();
    let text: String = jobs.iter().map(|(name, job)| format!("{name} {job}\n")).collect();
    for promised in [
        "ubuntu-latest",
        "ubuntu-24.04-arm",
        "macos-latest",
        "windows-latest",
        ".ci/msrv",
        ".ci/deny",
        ".ci/engines",
        "x86_64-unknown-linux-musl",
        "aarch64-unknown-linux-musl",
        "aarch64-apple-darwin",
        "x86_64-apple-darwin",
        "x86_64-pc-windows-msvc",
    ] {
        assert!(text.contains(promised), "no job has {promised}");
    }
}

#[test]
fn what_a_property_has_failed_on_is_kept() {
    let ignored = fs::read_to_string(root().join(".gitignore")).expect("the list");
    assert!(!ignored.contains("regressions"), "{ignored}");
    let mut files = Vec::new();
    for folder in ["src", "tests/it"] {
        crate::architecture::sources(&root().join(folder), &mut files);
    }
    let properties: Vec<PathBuf> = files
        .into_iter()
        .filter(|path| !path.ends_with("workflows.rs"))
        .filter(|path| fs::read_to_string(path).expect("a source").contains("failure_persistence"))
        .collect();
    assert!(properties.is_empty(), "{properties:?} keep their failures otherwise, or not at all");
}
