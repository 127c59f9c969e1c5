//! The programs in `examples/`: the library does what the binary does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Model, Workspace, tensors};

/// An example that cargo built beside this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent).expect("the folder of the build profile");
    profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

fn run(workspace: &Workspace, name: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let path = example(name);
    let output = Command::new(&path).args(args).current_dir(workspace.root()).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo test` without `--test` builds it", path.display())
    });
    let text = |bytes: &[u8]| workspace.filtered(&String::from_utf8_lossy(bytes));
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_plan_can_be_made_without_running_it() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe("  - stage: quantize-int4\n");
    let (status, stdout, stderr) = run(&workspace, "plan_without_running", &["recipe.yaml"]);
    assert_eq!(status, Some(0), "{stderr}");
    insta::assert_snapshot!("example-plan", stdout);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
    workspace.recipe("  - stage: quantize-int4\n    targets: [nothing]\n");
    let (status, stdout, stderr) = run(&workspace, "plan_without_running", &["recipe.yaml"]);
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("matches no module"), "{stderr}");
}

#[test]
fn a_recipe_can_be_run_in_process() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe("  - stage: quantize-int4\n  - stage: validate\n");
    let (status, stdout, stderr) = run(&workspace, "quantize_in_process", &["recipe.yaml"]);
    assert_eq!(status, Some(0), "{stderr}");
    insta::assert_snapshot!("example-run", stdout);
    assert_eq!(tensors(&workspace.path("out")).len(), 49);
}

#[test]
fn the_warnings_of_a_report_can_be_read() {
    let workspace = Workspace::with(&Model::llama());
    let gate = "  - stage: check-warnings\n    sqnr_warning_threshold: 25\n    scope: layer\n";
    workspace.run(&workspace.recipe(&format!("  - stage: quantize-int4\n{gate}"))).exits(0);
    let (status, stdout, stderr) = run(&workspace, "report_warnings", &["out"]);
    assert_eq!(status, Some(0), "{stderr}");
    insta::assert_snapshot!("example-warnings", stdout);
    let (status, _, stderr) = run(&workspace, "report_warnings", &["model"]);
    assert_eq!(status, Some(3), "{stderr}");
}
