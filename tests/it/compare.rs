//! `compare`, `sweep` and `fix`.

use std::fs;

use serde_json::Value;

use crate::support::{Model, Workspace, json, report, root};

/// A workspace with an int4 output `int4` and an int8 output `int8` of one model.
fn outputs() -> Workspace {
    let workspace = Workspace::with(&Model::heavy());
    for name in ["int4", "int8"] {
        workspace.recipe(&format!("  - stage: quantize-{name}\n  - stage: validate\n"));
        workspace.monoquant(["run", "recipe.yaml", "--output", name, "-q"]).exits(0);
    }
    workspace
}

fn compared(workspace: &Workspace, args: &[&str]) -> Value {
    workspace.monoquant([&["compare"], args, &["--format", "json"]].concat()).exits(0).json()
}

#[test]
fn reports_are_compared_layer_by_layer() {
    let workspace = outputs();
    let said = workspace.monoquant(["compare", "int8", "int4"]).exits(0);
    insta::assert_snapshot!("compare-reports", said.stdout);
    let said = workspace.monoquant(["compare", "int8", "int4", "--markdown"]).exits(0);
    insta::assert_snapshot!("compare-markdown", said.stdout);
    let found = compared(&workspace, &["int8/monoquant-report.json", "int4"]);
    assert_eq!(found["layers"].as_array().map(Vec::len), Some(14));
    assert_eq!(found["only_in_a"], Value::Array(Vec::new()));
    let said = workspace.monoquant(["compare", "int8", "int4", "--fail-on-drop", "10"]).exits(1);
    assert!(said.stderr.contains("compare::drop"), "{}", said.stderr);
    workspace.monoquant(["compare", "int4", "int8", "--fail-on-drop", "0"]).exits(0);
    workspace.monoquant(["compare", "int4", "int4", "--fail-on-drop", "0"]).exits(0);
    assert!(workspace.monoquant(["compare", "int4", "nowhere"]).exits(3).stderr.contains("nowhere"));
}

#[test]
fn weights_are_measured_as_the_run_has_measured_them() {
    let workspace = outputs();
    let reports = ["int4", "int8"].map(|name| report(&workspace.path(name)));
    let own = |at: usize| reports[at].quality.as_ref().and_then(|quality| quality.sqnr_db).expect("an SQNR");
    for name in ["int4", "int8"] {
        fs::remove_file(workspace.path(name).join("monoquant-report.json")).expect("the report");
    }
    let near = |found: &Value, wanted: f64| {
        let found = found.as_f64().expect("a number");
        assert!((found - wanted).abs() < 1e-6, "{found} and {wanted}");
    };
    // With the source, as the outputs of any tool.
    let found = compared(&workspace, &["int4", "int8", "--source", "model"]);
    near(&found["a"]["sqnr_db"], own(0));
    near(&found["b"]["sqnr_db"], own(1));
    near(&found["sqnr_change_db"], own(1) - own(0));
    for layer in found["layers"].as_array().expect("layers") {
        let name = layer["name"].as_str().expect("a name");
        let tensor = reports[0].tensors.iter().find(|tensor| tensor.name == name).expect("the tensor");
        near(&layer["a"]["sqnr_db"], tensor.metrics.as_ref().and_then(|of| of.sqnr_db).expect("an SQNR"));
    }
    // One against its source, and two without a source by their difference.
    let found = compared(&workspace, &["model", "int4"]);
    near(&found["b"]["sqnr_db"], own(0));
    assert_eq!((&found["a"]["quantized"], &found["a"]["sqnr_db"]), (&0.into(), &Value::Null));
    let found = compared(&workspace, &["int8", "int4"]);
    assert_eq!(found["a"]["sqnr_db"], Value::Null);
    assert!((found["difference_db"].as_f64().expect("a difference") - own(0)).abs() < 0.5);
    assert_eq!(compared(&workspace, &["int4", "int4"])["layers"], Value::Array(Vec::new()));
}

#[test]
fn an_output_of_llm_compressor_is_measured_as_its_own_decoder_measures_it() {
    let workspace = Workspace::new();
    let folder = root().join("tests/golden/llm-compressor");
    let [source, made] = ["source", "W4A16"].map(|name| folder.join(name).display().to_string());
    let wanted = json(&folder.join("sqnr.json"));
    let near = |found: &Value, wanted: &Value| {
        let (found, wanted) = (found.as_f64().expect("a number"), wanted.as_f64().expect("a number"));
        assert!((found - wanted).abs() < 1e-3, "{found} and {wanted}");
    };
    let found = compared(&workspace, &[&source, &made]);
    near(&found["b"]["sqnr_db"], &wanted["model"]);
    let matrices = wanted["matrices"].as_object().expect("matrices");
    let layers = found["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), matrices.len());
    for layer in layers {
        near(&layer["b"]["sqnr_db"], &matrices[layer["name"].as_str().expect("a name")]);
        assert!(layer["b"]["scheme"].as_str().is_some_and(|scheme| scheme.starts_with("int4 symmetric")));
    }
    // Beside what monoquant makes of the same model.
    let yaml = format!(
        "version: 1\nname: x\nstages:\n  - stage: load\n    model: {source}\n  - stage: quantize-int4\n    observer: mse\n  - stage: validate\n  - stage: export\n    path: out\n"
    );
    workspace.write("recipe.yaml", yaml);
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    let found = compared(&workspace, &[&made, "out", "--source", &source]);
    near(&found["a"]["sqnr_db"], &wanted["model"]);
    assert!(found["sqnr_change_db"].as_f64().expect("a change") > 0.0, "{found}");
    assert_eq!(
        (&found["only_in_a"], &found["only_in_b"]),
        (&Value::Array(Vec::new()), &Value::Array(Vec::new()))
    );
}

#[test]
fn an_output_of_a_model_elsewhere_is_compared_with_it() {
    let workspace = Workspace::new();
    let folder = root().join("tests/golden/model_free_ptq/tiny-llama");
    let model = folder.to_str().expect("a path");
    let yaml = format!(
        "version: 1\nname: x\nstages:\n  - stage: load\n    model: {model}\n  - stage: quantize-int4\n  - stage: validate\n  - stage: export\n    path: out\n"
    );
    workspace.write("recipe.yaml", yaml);
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    let before = report(&workspace.path("out"));
    // Another tool leaves no report and has other files beside.
    for name in ["monoquant-report.json", "monoquant-recipe.yaml"] {
        fs::remove_file(workspace.path("out").join(name)).expect("a file");
    }
    let found = compared(&workspace, &[model, "out"]);
    let own = before.quality.and_then(|quality| quality.sqnr_db).expect("an SQNR");
    assert!((found["b"]["sqnr_db"].as_f64().expect("an SQNR") - own).abs() < 1e-6);
}

#[test]
fn a_sweep_measures_what_runs_measure() {
    let workspace = Workspace::with(&Model::heavy());
    workspace.recipe("  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 16\n    sqnr_warning_threshold: 16\n");
    let sets = ["--set", "quantize-int4.group_size=32,128,96", "--set", "quantize-int4.observer=minmax,mse"];
    let said = workspace.monoquant([&["sweep", "recipe.yaml"][..], &sets].concat()).exits(0);
    insta::assert_snapshot!("sweep", said.stdout);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
    let found = workspace
        .monoquant([&["sweep", "recipe.yaml", "--format", "json"][..], &sets].concat())
        .exits(0)
        .json();
    let settings = found["settings"].as_array().expect("settings");
    assert_eq!((settings.len(), found["not_possible"].as_array().map(Vec::len)), (4, Some(2)));
    for setting in settings {
        let mut args = vec!["run", "recipe.yaml", "-q", "--fresh"];
        for set in setting["set"].as_array().expect("values") {
            args.extend(["--set", set.as_str().expect("a value")]);
        }
        workspace.monoquant(args).exits(0);
        let own = report(&workspace.path("out"));
        // To the last bit: the same tiles, in the same order.
        assert_eq!(setting["quality"], serde_json::to_value(&own.quality).expect("JSON"));
        assert_eq!(setting["bytes"], own.sizes.outputs[0]);
        let passes = own.gates[0].outcome != monoquant::report::GateOutcome::FailedAndIgnored;
        assert_eq!(setting["gates_pass"], passes);
    }
    workspace.monoquant(["sweep", "recipe.yaml", "--set", "quantize-int4.group_size=7,9"]).exits(2);
}

/// A recipe whose gate fails if the threshold is high enough.
const FAILING: &str = "# The head of the file.\nversion: 1\nname: test\nstages:\n  - stage: load\n    model: model # here\n\n  # Four bits.\n  - stage: quantize-int4\n    group_size: 128   # as everybody\n  - stage: check-warnings\n    sqnr_error_threshold: ERROR\n    sqnr_warning_threshold: 5\n    on_failure: error\n  - stage: export\n    path: out\n";

#[test]
fn a_mend_is_a_patch_with_which_the_gate_passes() {
    let workspace = Workspace::with(&Model::heavy());
    workspace.write("recipe.yaml", FAILING.replace("ERROR", "1"));
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    assert_eq!(workspace.monoquant(["fix", "recipe.yaml"]).exits(0).stdout, "");
    let least =
        report(&workspace.path("out")).quality.and_then(|quality| quality.min_sqnr_db).expect("an SQNR");
    for (more, name) in [(0.3, "fix-little"), (2.5, "fix-more"), (9.0, "fix-all")] {
        let before = FAILING.replace("ERROR", &format!("{:.2}", least + more));
        workspace.write("recipe.yaml", &before);
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(1);
        let said = workspace.monoquant(["fix", "recipe.yaml"]).exits(0);
        insta::assert_snapshot!(name, format!("{}{}", said.stderr, said.stdout));
        assert_eq!(fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe"), before);
        workspace.write("recipe.yaml", applied(&before, &said.stdout));
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
        assert_eq!(workspace.monoquant(["fix", "recipe.yaml"]).exits(0).stdout, "");
    }
    workspace.write("recipe.yaml", FAILING.replace("ERROR", "90"));
    let said = workspace.monoquant(["fix", "recipe.yaml"]).exits(1);
    assert!(said.stderr.contains("fix::none") && said.stderr.contains("check::"), "{}", said.stderr);
}

#[test]
fn layers_that_nothing_else_mends_are_left_as_they_are() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let workspace = Workspace::with(&Model::llama().with_value(name, 3, 1e6));
    let yaml = |skips: &str| {
        format!(
            "version: 1\nname: test\nstages:\n  - stage: load\n    model: model\n{skips}  - stage: quantize-int8\n  - stage: validate # the largest weight\n  - stage: export\n    path: out\n"
        )
    };
    let skips = [
        "",
        "  - stage: resolve-skips\n    on_unmatched: error\n",
        "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]  # as everybody\n",
        "  - {stage: resolve-skips, modules_to_not_convert: ['lm_head']}\n",
        "  - stage: resolve-skips\n    modules_to_not_convert:\n      - lm_head # the head\n    defaults: int8\n",
    ];
    let mut patches = String::new();
    for skips in skips {
        workspace.write("recipe.yaml", yaml(skips));
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(1);
        let said = workspace.monoquant(["fix", "recipe.yaml"]).exits(0);
        assert!(said.stderr.contains("left as they are"), "{}", said.stderr);
        let patched = applied(&yaml(skips), &said.stdout);
        patches.push_str(&patched);
        workspace.write("recipe.yaml", &patched);
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
        assert_eq!(workspace.monoquant(["fix", "recipe.yaml"]).exits(0).stdout, "");
    }
    insta::assert_snapshot!("fix-skips", patches);
}

#[test]
fn a_mend_is_tried_where_answers_are_judged() {
    let workspace = Workspace::new();
    let text = fs::read_to_string(root().join("examples/calibration/held-out.txt")).expect("the text");
    workspace.write("held-out.txt", text.chars().take(4000).collect::<String>());
    for entry in fs::read_dir(root().join("examples/tiny-llama")).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        workspace.write(&format!("model/{name}"), fs::read(&path).expect("a file"));
    }
    let yaml = |observer: &str, most: f64| {
        format!(
            "version: 1\nname: test\nstages:\n  - stage: load\n    model: model\n  - stage: quantize-int4 # four bits\n{observer}  - stage: evaluate\n    text: [held-out.txt]\n    samples: 4\n    sequence_length: 64\n    max_kl: {most}\n  - stage: export\n    path: out\n"
        )
    };
    let kl = |observer: &str| {
        workspace.write("recipe.yaml", yaml(observer, 1.0));
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
        let found = json(&workspace.path("out/monoquant-report.json"));
        found["evaluations"][0]["kl"]["mean"].as_f64().expect("a KL")
    };
    let (positive, signed) = (kl(""), kl("    scales: signed\n"));
    assert!(signed < positive, "{signed} {positive}");
    // A gate that one change passes which costs no bytes, and one that takes eight bits.
    for (most, change) in [(f64::midpoint(positive, signed), "`scales: signed`"), (positive / 4.0, "int8")] {
        let before = yaml("", most);
        workspace.write("recipe.yaml", &before);
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(1);
        let said = workspace.monoquant(["fix", "recipe.yaml"]).exits(0);
        assert!(said.stderr.contains(change), "{}", said.stderr);
        workspace.write("recipe.yaml", applied(&before, &said.stdout));
        workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
        assert_eq!(workspace.monoquant(["fix", "recipe.yaml"]).exits(0).stdout, "");
        assert!(!workspace.path(".out.monoquant-trial").exists());
    }
    workspace.write("recipe.yaml", yaml("", 0.0));
    let said = workspace.monoquant(["fix", "recipe.yaml"]).exits(1);
    assert!(
        said.stderr.contains("evaluate::threshold") && said.stderr.contains("fix::none"),
        "{}",
        said.stderr
    );
}

/// A text with a patch applied that `fix` has printed.
fn applied(text: &str, patch: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (mut out, mut at) = (String::new(), 0);
    let take = |out: &mut String, at: &mut usize, until: usize| {
        while *at < until {
            out.push_str(lines[*at]);
            out.push('\n');
            *at += 1;
        }
    };
    for line in patch.lines().skip(2) {
        if let Some(place) = line.strip_prefix("@@ -") {
            let first = place.split([',', ' ']).next().and_then(|first| first.parse::<usize>().ok());
            take(&mut out, &mut at, first.expect("a line").saturating_sub(1));
        } else if let Some(new) = line.strip_prefix('+') {
            out.push_str(new);
            out.push('\n');
        } else {
            let old = line.get(1..).expect("a line");
            assert_eq!(lines[at], old);
            if line.starts_with(' ') {
                out.push_str(old);
                out.push('\n');
            }
            at += 1;
        }
    }
    take(&mut out, &mut at, lines.len());
    out
}
