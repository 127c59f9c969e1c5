//! Variables of a recipe are used and never told: what is printed and published holds `${NAME}`.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::statistics::safetensors as statistics;
use crate::support::{Model, Workspace, files, report};

/// What nobody may read: each the value of a variable, and no part of the name of a file that a test looks for.
const SECRETS: [(&str, &str); 6] = [
    ("NAME", "hunter2"),
    ("FOLDER", "swordfish/deep"),
    ("OUT", "opensesame"),
    ("STATISTICS", "xyzzy.safetensors"),
    ("PATTERN", "model.layers.1.self_attn"),
    ("EXPRESSION", "re:.*layers\\.0\\.mlp"),
];

/// Parts of the values that stand for them.
const WORDS: [&str; 6] =
    ["hunter2", "swordfish", "opensesame", "xyzzy", "model.layers.1.self_attn\"", "layers\\.0"];

const RECIPE: &str = r#"version: 1
name: of ${NAME}
description: "${NAME} and $${NAME} and ${NONE:-nothing}"
stages:
  - stage: load
    model: ${FOLDER}/model
  - stage: resolve-skips
    skip_layer_names: ["${EXPRESSION}"]
  - stage: quantize-int8
    targets: ["${PATTERN}"]
    calibration: {file: "${STATISTICS}"}
  - stage: check-warnings
  - stage: export
    path: ${OUT}
"#;

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    Model::tied().write(&workspace.path("swordfish/deep/model"));
    let modules: Vec<String> = ["q_proj", "k_proj", "v_proj", "o_proj"]
        .map(|name| format!("model.layers.1.self_attn.{name}"))
        .into();
    let sums = [1.0; 128];
    let modules: Vec<_> =
        modules.iter().map(|name| (name.as_str(), &[128][..], &sums[..], &[9][..])).collect();
    workspace.write("xyzzy.safetensors", statistics(&modules, Some(600)));
    workspace.write("recipe.yaml", RECIPE);
    workspace
}

fn ended(workspace: &Workspace, args: &[&str]) -> Output {
    workspace.command(args).envs(SECRETS).output().expect("the binary runs")
}

/// Checks that no secret is in a text.
fn check_told(text: &str, what: &str) {
    for word in WORDS {
        assert!(!text.contains(word), "{word} is in {what}:\n{text}");
    }
}

/// Runs a command in every form, and gives what it said to people.
fn said(workspace: &Workspace, args: &[&str], status: i32) -> String {
    let mut all = String::new();
    for format in ["human", "plain", "github", "json"] {
        let args: Vec<&str> = args.iter().copied().chain(["--format", format]).collect();
        let output = ended(workspace, &args);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        check_told(&text, &format!("{args:?}"));
        all.push_str(&text);
    }
    all
}

/// Checks every file below a folder but the model and the statistics.
fn check_files(folder: &Path) {
    for (name, bytes) in files(folder) {
        if !name.starts_with("swordfish") && name != "xyzzy.safetensors" {
            check_told(&String::from_utf8_lossy(&bytes), &name);
        }
    }
}

#[test]
fn what_is_told_and_published_is_the_recipe_as_it_was_written() {
    let workspace = workspace();
    assert!(said(&workspace, &["plan", "recipe.yaml"], 0).contains("of ${NAME}"));
    said(&workspace, &["plan", "recipe.yaml", "--json"], 0);
    let explained = said(&workspace, &["explain", "recipe.yaml", "model.layers.0.mlp.up_proj"], 0);
    assert!(explained.contains("skip_layer_names: ${EXPRESSION}"), "{explained}");
    said(&workspace, &["check", "recipe.yaml"], 0);
    let told = said(&workspace, &["run", "recipe.yaml", "-v"], 0);
    assert!(told.contains("output  ${OUT}") && told.contains("report  ${OUT}/"), "{told}");
    said(&workspace, &["run", "recipe.yaml", "--fresh"], 0);
    check_files(workspace.root());
    let report = report(&workspace.path("opensesame"));
    assert_eq!(report.outputs[0].path, "${OUT}");
    assert_eq!(report.recipe["name"], "of ${NAME}");
    assert_eq!(report.recipe["description"], "${NAME} and $${NAME} and ${NONE:-nothing}");
    assert_eq!(report.recipe["stages"][1]["skip_layer_names"][0], "${EXPRESSION}");
    let stored = workspace.path("opensesame/monoquant-recipe.yaml");
    let text = fs::read_to_string(&stored).expect("a recipe");
    assert!(text.contains("../${OUT}") && text.contains("../${FOLDER}/model"), "{text}");
    // It gives the same output from where it is now.
    let again = ended(&workspace, &["run", "opensesame/monoquant-recipe.yaml"]);
    let out = String::from_utf8_lossy(&again.stdout);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(out.contains("up to date") || out.contains("no weight was touched"), "{out}");
    check_files(workspace.root());
}

#[test]
fn absolute_values_and_recipes_in_other_folders_are_told_alike() {
    let workspace = workspace();
    let absolute = |name: &str| workspace.path(name).display().to_string();
    let variables = [
        ("FOLDER", absolute("swordfish/deep")),
        ("OUT", absolute("swordfish/opensesame")),
        ("STATISTICS", absolute("xyzzy.safetensors")),
    ];
    let moved =
        RECIPE.replace("model: ${FOLDER}", "model: ../${FOLDER}").replace("path: ${", "path: ../x/../${");
    workspace.write("recipes/moved.yaml", moved.replace("${STATISTICS}", "../${STATISTICS}"));
    for (recipe, is_absolute) in [("recipe.yaml", true), ("recipes/moved.yaml", false)] {
        for (format, status) in
            ["human", "plain", "github", "json"].into_iter().flat_map(|f| [(f, 0), (f, 3)])
        {
            let model = workspace.path("swordfish/deep/model");
            let kept = workspace.path("swordfish/deep/models");
            if status == 3 {
                fs::rename(&model, &kept).expect("a folder");
            }
            let mut command = workspace.command(["run", recipe, "--fresh", "-v", "--format", format]);
            command.envs(SECRETS);
            if is_absolute {
                command.envs(variables.iter().map(|(name, value)| (name, value)));
            }
            let output = command.output().expect("the binary runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{text}");
            check_told(&text, &format!("{recipe} as {format}"));
            if status == 3 {
                fs::rename(&kept, &model).expect("a folder");
            }
        }
    }
    check_files(workspace.root());
    check_files(&workspace.path("swordfish/opensesame"));
    let stored = workspace.path("swordfish/opensesame/monoquant-recipe.yaml");
    assert!(fs::read_to_string(stored).expect("a recipe").contains("path: ${OUT}"));
}

#[test]
fn what_goes_wrong_names_paths_as_they_were_written() {
    // The model is not there, nor the folder that it should be in.
    let gone = workspace();
    fs::rename(gone.path("swordfish/deep/model"), gone.path("swordfish/deep/models")).expect("a folder");
    assert!(said(&gone, &["run", "recipe.yaml"], 3).contains("${FOLDER}/model"));
    fs::remove_dir_all(gone.path("swordfish")).expect("a folder");
    said(&gone, &["plan", "recipe.yaml"], 3);
    // It is damaged.
    let damaged = workspace();
    damaged.write("swordfish/deep/model/config.json", "{");
    damaged.write("swordfish/deep/model/x.bin", "{");
    said(&damaged, &["plan", "recipe.yaml"], 3);
    fs::remove_file(damaged.path("swordfish/deep/model/model-00001-of-00002.safetensors")).expect("a file");
    said(&damaged, &["plan", "recipe.yaml"], 3);
}

#[test]
fn outputs_and_statistics_that_are_wrong_are_named_as_they_were_written() {
    let workspace = workspace();
    // Something else is in the output's place.
    workspace.write("opensesame/mine.txt", "x");
    assert!(said(&workspace, &["run", "recipe.yaml"], 4).contains("${OUT}"));
    fs::remove_dir_all(workspace.path("opensesame")).expect("a folder");
    workspace.write("opensesame.failed-report.json", "mine");
    assert!(said(&workspace, &["run", "recipe.yaml"], 4).contains("${OUT}.failed-report.json"));
    fs::remove_file(workspace.path("opensesame.failed-report.json")).expect("a file");
    // A gate fails, and its report is kept.
    let gate =
        "check-warnings\n    sqnr_error_threshold: 90\n    sqnr_warning_threshold: 95\n    on_failure: error";
    workspace.write("gate.yaml", RECIPE.replace("check-warnings", gate));
    let failed = ended(&workspace, &["run", "gate.yaml"]);
    assert_eq!(failed.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(stderr.contains("${OUT}.failed-report.json"), "{stderr}");
    said(&workspace, &["run", "gate.yaml"], 1);
    check_files(workspace.root());
    // The output would replace the model, or lie in it.
    let inside = RECIPE.replace("path: ${OUT}", "path: ${FOLDER}/model/x");
    workspace.write("inside.yaml", inside);
    said(&workspace, &["plan", "inside.yaml"], 2);
    // Statistics of another model, of nothing, and missing ones.
    workspace.write("xyzzy.safetensors", statistics(&[("other", &[128], &[1.0; 128], &[9])], Some(3)));
    said(&workspace, &["plan", "recipe.yaml"], 3);
    workspace.write("xyzzy.safetensors", "nonsense");
    said(&workspace, &["plan", "recipe.yaml"], 3);
    fs::remove_file(workspace.path("xyzzy.safetensors")).expect("a file");
    assert!(said(&workspace, &["plan", "recipe.yaml"], 3).contains("${STATISTICS}"));
}

#[test]
fn words_that_variables_give_are_not_told() {
    let workspace = workspace();
    for (old, new) in [
        ("stage: check-warnings", "stage: ${NAME}"),
        ("calibration: ", "observer: ${NAME}\n    calibration: "),
        ("calibration: ", "group_size: ${NAME}\n    calibration: "),
        ("targets: [\"${PATTERN}\"]", "targets: ${NAME}"),
        ("[\"${EXPRESSION}\"]", "[\"re:(${NAME}\", \"${NAME}[\"]"),
        ("path: ${OUT}", "path: ${OUT}\n    shards: ${NAME}"),
        ("version: 1", "version: ${NAME}"),
        ("model: ${FOLDER}/model", "model: ${FOLDER}/model\n    include: [\"${NAME}[\"]"),
    ] {
        workspace.write("bad.yaml", RECIPE.replace(old, new));
        said(&workspace, &["check", "bad.yaml"], 2);
        said(&workspace, &["check", "bad.yaml", "--set", "nothing.x=1"], 2);
    }
    for (old, new, status) in [
        ("[\"${EXPRESSION}\"]", "[\"${NAME}\"]", 2),
        ("[\"${EXPRESSION}\"]", "[\"${NAME}\"]\n    on_unmatched: warn", 0),
        ("model: ${FOLDER}/model", "model: hf://${NAME}/m", 3),
        ("model: ${FOLDER}/model", "model: ${FOLDER}/model\n    include: [\"${NAME}.*\"]", 3),
    ] {
        workspace.write("bad.yaml", RECIPE.replace(old, new));
        said(&workspace, &["plan", "bad.yaml"], status);
    }
}

#[cfg(unix)]
#[test]
fn folders_that_cannot_be_written_are_named_as_they_were_written() {
    use std::os::unix::fs::PermissionsExt;
    let workspace = workspace();
    let folder = workspace.path("hunter2/x");
    fs::create_dir_all(&folder).expect("a folder");
    workspace.write("bad.yaml", RECIPE.replace("path: ${OUT}", "path: ${NAME}/x/y/z"));
    workspace.write("hunter2/x/y", "a file");
    assert!(said(&workspace, &["run", "bad.yaml"], 4).contains("${NAME}"));
    fs::remove_file(folder.join("y")).expect("a file");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).expect("permissions");
    let output = ended(&workspace, &["run", "bad.yaml"]);
    check_told(&String::from_utf8_lossy(&output.stderr), "stderr");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("permissions");
}

#[test]
fn short_values_garble_nothing() {
    let workspace = Workspace::with(&Model::tied());
    let told = |recipe: &str, variables: &[(&str, &str)]| {
        workspace.write("recipe.yaml", recipe);
        let mut command = workspace.command(["run", "recipe.yaml", "--fresh"]);
        let output = command.envs(variables.iter().copied()).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        workspace.filtered(&String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let recipe = |name: &str, model: &str, path: &str| {
        format!(
            "version: 1\nname: {name}\nstages:\n  - stage: load\n    model: {model}\n  - stage: quantize-int4\n  - stage: \
             validate\n  - stage: export\n    path: {path}\n    overwrite: replace\n"
        )
    };
    let plain = told(&recipe("m", "model", "o"), &[]);
    for (name, model, path) in [("1", "model", "o"), ("m", "model", "1"), ("int4", "model", "tensors")] {
        let variables = [("N", name), ("M", model), ("O", path)];
        let shown = told(&recipe("${N}", "${M}", "${O}"), &variables);
        let expected = plain.replace("✓ m:", "✓ ${N}:").replace("output  o\n", "output  ${O}\n");
        let expected = expected.replace("report  o/", "report  ${O}/");
        assert_eq!(shown, expected, "{variables:?}");
    }
}
