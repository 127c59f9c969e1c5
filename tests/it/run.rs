//! The main job end to end: every shipped recipe, and what each command says.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use monoquant::digest::checksum;

use crate::support::{Ended, Model, Workspace, json, report, root, tensors};

/// The recipes of the repository.
pub fn shipped() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root().join("recipes"))
        .expect("recipes")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 7, "only {} recipes", paths.len());
    paths
}

/// Runs a command on a shipped recipe, with its output in the workspace.
fn on_shipped(workspace: &Workspace, command: &str, recipe: &str, more: &[&str]) -> Ended {
    let recipe = root().join("recipes").join(recipe).display().to_string();
    let mut args = vec![command, &recipe, "--output", "out", "--threads", "2"];
    args.extend(more);
    workspace.monoquant(args)
}

#[test]
fn every_shipped_recipe_runs_as_planned_and_without_a_warning() {
    let source = tensors(&root().join("examples/tiny-llama"));
    let mut schemes = BTreeSet::new();
    // Models of recipes that ask for one are no examples of the repository: `prequantized.rs` and `published.rs` make them.
    let needs_none = |path: &PathBuf| !fs::read_to_string(path).expect("a recipe").contains("${MODEL");
    for recipe in shipped().into_iter().filter(needs_none) {
        let workspace = Workspace::new();
        let name = recipe.file_name().expect("a name").to_string_lossy().into_owned();
        let plan = on_shipped(&workspace, "plan", &name, &["--json"]).exits(0).json();
        let said = on_shipped(&workspace, "run", &name, &[]).exits(0);
        assert!(!said.stderr.contains('⚠'), "{name}: {}", said.stderr);
        assert!(said.stdout.starts_with("✓ "), "{name}: {}", said.stdout);

        let out = workspace.path("out");
        let export = &plan["exports"][0];
        let mut total = 0;
        for file in export["files"].as_array().expect("files") {
            let path = out.join(file["name"].as_str().expect("a name"));
            let len = fs::metadata(&path).expect("a planned file is there").len();
            assert_eq!(Some(len), file["bytes"].as_u64(), "{name}: {}", path.display());
            total += len;
        }
        assert_eq!(Some(total), export["bytes"].as_u64(), "{name}");
        assert_eq!(plan["warnings"], serde_json::json!([]), "{name}");

        let written = tensors(&out);
        let planned = export["tensors"].as_array().expect("tensors");
        assert_eq!(written.len(), planned.len(), "{name}");
        for tensor in planned {
            let found = &written[tensor["name"].as_str().expect("a name")];
            assert_eq!(tensor["dtype"].as_str(), Some(found.dtype.as_str()), "{name}: {tensor}");
            assert_eq!(tensor["file"].as_str(), Some(found.file.as_str()), "{name}: {tensor}");
            assert_eq!(tensor["shape"], serde_json::json!(found.shape), "{name}: {tensor}");
        }

        let report = report(&out);
        let mut reported: Vec<&str> = report.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        reported.sort_unstable();
        assert_eq!(reported, source.keys().map(String::as_str).collect::<Vec<_>>(), "{name}");
        assert!(report.balance.balanced && report.verdict.passed, "{name}");
        assert_eq!(report.balance.quantized + report.balance.kept, source.len(), "{name}");
        assert_eq!(report.sizes.outputs, [total], "{name}");
        assert!(
            report.warnings.iter().all(|warning| warning.severity == monoquant::finding::Severity::Note),
            "{name}: {:?}",
            report.warnings
        );
        for (record, file) in report.outputs[0].files.iter().zip(export["files"].as_array().expect("files")) {
            assert_eq!(Some(record.name.as_str()), file["name"].as_str());
            let bytes = fs::read(out.join(&record.name)).expect("a file");
            assert_eq!(record.crc64nvme, checksum::text(checksum::of(&bytes)), "{name}: {}", record.name);
        }
        for record in &report.source {
            let bytes = fs::read(root().join("examples/tiny-llama").join(&record.name)).expect("a file");
            assert_eq!(record.crc64nvme, checksum::text(checksum::of(&bytes)), "{name}: {}", record.name);
        }

        let (before, after) =
            (json(&root().join("examples/tiny-llama/config.json")), json(&out.join("config.json")));
        let config = &after["quantization_config"];
        assert_eq!(config["quant_method"], "compressed-tensors", "{name}");
        for (key, value) in before.as_object().expect("an object") {
            assert_eq!(&after[key], value, "{name}: {key}");
        }
        for group in config["config_groups"].as_object().expect("groups").values() {
            schemes.insert(format!("{} {} {}", config["format"], group["format"], group["weights"]));
        }
        let index = json(&out.join("model.safetensors.index.json"));
        for (tensor, file) in index["weight_map"].as_object().expect("a map") {
            assert_eq!(file.as_str(), Some(written[tensor].file.as_str()), "{name}: {tensor}");
        }
        assert_eq!(index["weight_map"].as_object().map(serde_json::Map::len), Some(written.len()), "{name}");
        for kept in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            let source = fs::read(root().join("examples/tiny-llama").join(kept)).expect("a source file");
            assert_eq!(fs::read(out.join(kept)).expect("it was carried over"), source, "{name}: {kept}");
        }
        let card = fs::read_to_string(out.join("README.md")).expect("a card");
        assert!(card.contains("\n# tiny-llama\n") && card.contains("\n## Quantization\n"), "{name}: {card}");
    }
    // ci-gate has the scheme of llama-int4, and the mixed recipe has those of two others.
    assert_eq!(schemes.len(), 6, "{schemes:#?}");
}

#[test]
fn the_resolved_recipe_runs_to_the_same_result() {
    let workspace = Workspace::with(&Model::llama());
    let stages =
        "  - stage: quantize-int4\n    group_size: 64\n  - stage: quantize-int8\n    targets: [down_proj]\n";
    let recipe =
        workspace.recipe(&stages.replace("    group_size", "    targets: [self_attn]\n    group_size"));
    workspace.run(&recipe).exits(0);
    let first = tensors(&workspace.path("out"));
    let resolved =
        fs::read_to_string(workspace.path("out/monoquant-recipe.yaml")).expect("the resolved recipe");
    assert!(resolved.contains("granularity: channel"), "defaults are filled in:\n{resolved}");
    // Run where it lies, it makes its own folder again, from the workspace or from within.
    workspace.run(&workspace.path("out/monoquant-recipe.yaml")).exits(0);
    assert_eq!(tensors(&workspace.path("out")), first);
    let mut within = workspace.command(["run", "monoquant-recipe.yaml"]);
    let output = within.current_dir(workspace.path("out")).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    assert_eq!(tensors(&workspace.path("out")), first);
}

#[test]
fn a_run_ends_with_a_table() {
    let workspace = Workspace::new();
    let said = on_shipped(&workspace, "run", "llama-int4.yaml", &[]).exits(0);
    insta::assert_snapshot!("run-llama-int4", said.stdout);
}

#[test]
fn progress_goes_to_standard_error_and_quiet_says_nothing() {
    let workspace = Workspace::new();
    let said = on_shipped(&workspace, "run", "llama-int4.yaml", &["-q"]).exits(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""));
    let said = on_shipped(&workspace, "run", "llama-int4.yaml", &["-v", "--fresh"]).exits(0);
    assert!(said.stderr.contains("published [work]/out"), "{}", said.stderr);
    let said = on_shipped(&workspace, "run", "llama-int4.yaml", &["--format", "json"]).exits(0);
    assert_eq!(said.json()["report_version"], 2);
    let colored =
        on_shipped(&workspace, "run", "llama-int4.yaml", &["--set", "name=5", "--color", "always"]).exits(2);
    assert!(colored.stderr.contains("\u{1b}["), "{}", colored.stderr);
    let plain = on_shipped(&workspace, "run", "llama-int4.yaml", &["--set", "name=5"]).exits(2);
    assert!(!plain.stderr.contains("\u{1b}["), "{}", plain.stderr);
}

#[test]
fn a_plan_says_everything_before_a_weight_is_read() {
    let workspace = Workspace::new();
    let said = on_shipped(&workspace, "plan", "mixed-int4-int8.yaml", &[]).exits(0);
    assert_eq!(said.stderr, "");
    insta::assert_snapshot!("plan-mixed", said.stdout);
    let dry = on_shipped(&workspace, "run", "mixed-int4-int8.yaml", &["--dry-run"]).exits(0);
    assert_eq!(dry.stdout, said.stdout);
    assert_eq!(workspace.names(), [""; 0]);
}

#[test]
fn explain_names_every_rule_and_its_line() {
    let workspace = Workspace::new();
    let mut text = String::new();
    for tensor in [
        "model.layers.1.self_attn.k_proj.weight",
        "lm_head.weight",
        "model.norm",
        "model.layers.0.mlp.up_proj",
    ] {
        text += &on_shipped(&workspace, "explain", "mixed-int4-int8.yaml", &[tensor]).exits(0).stdout;
    }
    insta::assert_snapshot!("explain-mixed", text);
    let said =
        on_shipped(&workspace, "explain", "llama-int4.yaml", &["model.layers.1.self_attn.k_prj.weight"])
            .exits(2);
    insta::assert_snapshot!("explain-unknown", said.stderr);
    let said = on_shipped(&workspace, "explain", "llama-int4.yaml", &["lm_hed"]).exits(2);
    assert!(said.stderr.contains("The nearest name is `lm_head.weight`."), "{}", said.stderr);
    let said =
        on_shipped(&workspace, "explain", "llama-int4.yaml", &["lm_head", "--format", "json"]).exits(0);
    assert_eq!(said.json()[0]["decided_by"]["line"], 11);
}

#[test]
fn inspect_shows_a_model_and_its_quantization() {
    let workspace = Workspace::with(&Model::llama());
    let said = workspace.monoquant(["inspect", "model"]).exits(0);
    insta::assert_snapshot!("inspect-model", said.stdout);
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n")).exits(0);
    let said = workspace.monoquant(["inspect", "out", "--json"]);
    let value = said.exits(0).json();
    assert_eq!(value["quantization_config"]["quant_method"], "compressed-tensors");
    assert_eq!(value["tensors"].as_array().map(Vec::len), Some(tensors(&workspace.path("out")).len()));
    // Codes and what belongs to them are the layers that they stand for.
    let original = workspace.monoquant(["inspect", "model", "--json"]).exits(0).json();
    assert_eq!(value["parameters"], original["parameters"]);
    let class = |value: &serde_json::Value, name: &str| {
        let all = value["tensors"].as_array().expect("a list");
        let found = all.iter().find(|tensor| tensor["name"] == name).expect("a tensor of this name");
        (found["kind"].clone(), found["role"].clone())
    };
    let module = "model.layers.0.self_attn.q_proj";
    let expected = class(&original, &format!("{module}.weight"));
    for part in ["weight_packed", "weight_scale", "weight_shape"] {
        assert_eq!(class(&value, &format!("{module}.{part}")), expected, "{part}");
    }
}

#[test]
fn inspect_counts_codes_of_a_byte_and_what_is_damaged() {
    let workspace = Workspace::with(&Model::llama());
    let original = workspace.monoquant(["inspect", "model", "--json"]).exits(0).json();
    let stages = "  - stage: quantize-int8\n    activations: dynamic-token\n";
    workspace.run(&workspace.recipe(stages)).exits(0);
    let value = workspace.monoquant(["inspect", "out", "--json"]).exits(0).json();
    assert_eq!(value["parameters"], original["parameters"]);
    let kinds = |value: &serde_json::Value| {
        let all = value["tensors"].as_array().expect("a list").clone();
        all.iter().filter(|tensor| tensor["kind"] == "Linear").count()
    };
    assert!(kinds(&value) > kinds(&original), "scales are of their layers");
    // Shapes that cannot be those of the codes are not believed.
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n")).exits(0);
    let stored = tensors(&workspace.path("out"));
    let (file, shape) = stored
        .iter()
        .find_map(|(name, tensor)| name.ends_with(".weight_shape").then_some((&tensor.file, &tensor.bytes)))
        .expect("a shape");
    let path = workspace.path("out").join(file);
    let mut bytes = std::fs::read(&path).expect("a file");
    while let Some(at) = bytes.windows(16).position(|window| window == &shape[..]) {
        bytes[at..at + 16].fill(0x7f);
    }
    std::fs::write(&path, bytes).expect("a file");
    let value = workspace.monoquant(["inspect", "out", "--json"]).exits(0).json();
    assert!(value["parameters"].as_u64() < original["parameters"].as_u64());
}

#[test]
fn check_needs_no_model() {
    let workspace = Workspace::new();
    let good = workspace.recipe("  - stage: quantize-int4\n");
    let bad = workspace.write("bad.yaml", "version: 1\nname: bad\nstages:\n  - stage: laod\n    model: m\n");
    let said = workspace.monoquant(["check", "recipe.yaml"]).exits(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("1 recipe is fine\n", ""));
    workspace.monoquant(["check", "recipe.yaml", "--set", "quantize-int4.group_size=64"]).exits(0);
    workspace.monoquant(["check", "recipe.yaml", "--set", "quantize-int4.group_size=63"]).exits(2);
    workspace.monoquant(["check", "recipe.yaml", "--model", "m", "--output", "o"]).exits(0);
    workspace.monoquant(["check", "recipe.yaml", "--output", ""]).exits(2);
    let said =
        workspace.monoquant([std::ffi::OsStr::new("check"), good.as_os_str(), bad.as_os_str()]).exits(2);
    insta::assert_snapshot!("check-bad", said.stderr);
    assert_eq!(said.stdout, "");
}

#[test]
fn every_command_has_help_worth_reading() {
    let workspace = Workspace::new();
    let mut text = workspace.monoquant(["--help"]).exits(0).stdout;
    for command in ["run", "plan", "explain", "check", "inspect", "verify", "schema", "completions", "man"] {
        let said = workspace.monoquant([command, "--help"]).exits(0);
        assert_eq!(said.stderr, "");
        text += &format!("\n\n$ monoquant {command} --help\n{}", said.stdout);
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn completions_and_the_manual_page_are_generated() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let said = workspace.monoquant(["completions", shell]).exits(0);
        assert!(said.stdout.contains("explain") && said.stdout.contains("dry-run"), "{shell}");
    }
    assert!(workspace.monoquant(["man"]).exits(0).stdout.starts_with(".ie"));
    let schema = workspace.monoquant(["schema"]).exits(0);
    assert_eq!(
        schema.stdout,
        fs::read_to_string(root().join("schemas/recipe.schema.json")).expect("the schema")
    );
}

#[test]
fn verify_finds_a_flipped_byte() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n")).exits(0);
    let said = workspace.monoquant(["verify", "out"]).exits(0);
    assert!(said.stdout.starts_with("out is as it was written: 14 of 21 tensors quantized\n"));
    let path = workspace.path("out/model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&path).expect("a weight file");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    fs::write(&path, &bytes).expect("a weight file");
    let said = workspace.monoquant(["verify", "out"]).exits(5);
    assert!(
        said.stderr.contains("model-00002-of-00002.safetensors has other bytes than were written"),
        "{}",
        said.stderr
    );
    bytes.pop();
    fs::write(&path, &bytes).expect("a weight file");
    assert!(workspace.monoquant(["verify", "out"]).exits(5).stderr.contains(" bytes and not "));
    fs::remove_file(&path).expect("a weight file");
    assert!(workspace.monoquant(["verify", "out"]).exits(5).stderr.contains("cannot be read"));
    let found = workspace.monoquant(["verify", "out", "--format", "json"]).exits(5).json();
    assert_eq!((&found["verified"], &found["verdict"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(found["findings"][0]["severity"], "error");
    workspace.monoquant(["verify", "model"]).exits(3);
}

#[test]
fn explain_takes_the_end_of_a_name() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe("  - stage: quantize-int4\n");
    let of = |name: &str| workspace.monoquant(["explain", "recipe.yaml", name]);
    let said = of("mlp.down_proj").exits(0).stdout;
    assert!(
        ["model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"]
            .iter()
            .all(|name| said.contains(name))
    );
    assert!(!of("layers.1.mlp.down_proj").exits(0).stdout.contains("layers.0"));
    of("own_proj").exits(2);
}

#[cfg(unix)]
#[test]
fn an_output_is_readable_by_everyone() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n")).exits(0);
    for name in crate::support::files(&workspace.path("out")).keys() {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(workspace.path("out").join(name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{name} has mode {mode:o}");
    }
}

#[test]
fn scales_have_the_type_of_the_weights_unless_the_recipe_says_otherwise() {
    let workspace = Workspace::with(&Model::llama().in_f32());
    for (line, dtype) in [("", "F32"), ("    scale_dtype: f16\n", "F16"), ("    scale_dtype: bf16\n", "BF16")]
    {
        workspace
            .run(&workspace.recipe(&format!("  - stage: quantize-int4\n{line}  - stage: validate\n")))
            .exits(0);
        let written = tensors(&workspace.path("out"));
        assert_eq!(written["model.layers.0.mlp.up_proj.weight_scale"].dtype, dtype);
        assert_eq!(written["model.norm.weight"], tensors(&workspace.path("model"))["model.norm.weight"]);
    }
}

#[test]
fn odd_shapes_are_padded_and_read_back() {
    // 100 and 76 columns, and rows that no word of codes divides.
    let workspace = Workspace::with(&Model::sized(100, 76));
    for (stage, per_word) in [("quantize-int4", 8), ("quantize-int8", 4)] {
        // vLLM cuts zero points of fused modules at whole words.
        let recipe = workspace.whole_recipe(&format!(
            "  - stage: load\n    model: model\n  - stage: {stage}\n    granularity: channel\n    symmetric: false\n  \
             - stage: validate\n  - stage: export\n    path: out\n    target: transformers\n"
        ));
        workspace.run(&recipe).exits(0);
        let written = tensors(&workspace.path("out"));
        for (module, rows, columns) in [("0.self_attn.k_proj", 50, 100_usize), ("1.mlp.down_proj", 100, 76)] {
            let part = |part: &str| &written[&format!("model.layers.{module}.{part}")];
            assert_eq!(part("weight_packed").shape, [rows, columns.div_ceil(per_word)], "{stage}: {module}");
            assert_eq!(part("weight_scale").shape, [rows, 1], "{stage}: {module}");
            assert_eq!(part("weight_zero_point").shape, [rows.div_ceil(per_word), 1], "{stage}: {module}");
            let shape: Vec<u8> = [rows as i64, columns as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
            assert_eq!(part("weight_shape").bytes, shape, "{stage}: {module}");
        }
        let report = report(&workspace.path("out"));
        let least = report.quality.and_then(|quality| quality.min_sqnr_db).expect("it was measured");
        assert!(least > if per_word == 8 { 16.0 } else { 40.0 }, "{stage}: {least}");
    }
}

#[test]
fn the_report_tells_in_which_matrix_of_a_stack_the_worst_weights_are() {
    let stack = "model.layers.0.mlp.experts.down_proj";
    // In row 5 of expert 2, one weight that leaves no code for the others of its group.
    let model = crate::statistics_files::mixtral(true).with_value(stack, (2 * 32 + 5) * 64 + 40, 0.3);
    let workspace = Workspace::with(&model);
    let recipe = workspace.whole_recipe(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n    group_size: 32\n  - stage: validate\n  \
         - stage: export\n    path: out\n    format: dequantized\n",
    );
    workspace.run(&recipe).exits(0);
    let report = report(&workspace.path("out"));
    let of = |name: &str| {
        let tensor = report.tensors.iter().find(|tensor| tensor.name == name).expect("the tensor");
        tensor.metrics.clone().expect("it was measured")
    };
    let metrics = of(stack);
    let worst = metrics.worst_group.expect("a worst group");
    let module = Some("model.layers.0.mlp.experts.2.down_proj");
    assert_eq!((worst.module.as_deref(), worst.row, worst.column), (module, 5, 32));
    assert_eq!((metrics.max_abs_error_module.as_deref(), metrics.max_abs_error_at[0]), (module, 5));
    let plain = of("model.layers.0.self_attn.q_proj.weight");
    assert_eq!((plain.max_abs_error_module, plain.worst_group.and_then(|worst| worst.module)), (None, None));
}
