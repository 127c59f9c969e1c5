//! What becomes of the files beside the weights: carried over, left behind and told, or an error before anything is read.

use std::fs;

use serde_json::json;

use crate::support::{Model, Workspace, files, json as read_json, report, tensors};

const INT4: &str = "  - stage: quantize-int4\n";

/// A workspace with a model and side files, of which two stay behind.
fn workspace() -> Workspace {
    let workspace = Workspace::with(&Model::llama().in_shards(1));
    for (name, text) in [
        ("speakers.pt", "voices"),
        ("tok/model.bin", "a tokenizer"),
        ("optimizer.pt", "a training"),
        ("checkpoint-10/trainer_state.json", "{}"),
    ] {
        workspace.write(&format!("model/{name}"), text);
    }
    workspace
}

#[test]
fn what_stays_behind_is_told_by_plan_summary_and_report() {
    let workspace = workspace();
    let recipe = workspace.recipe(INT4);
    let recipe_text = recipe.to_str().expect("UTF-8");
    let plan = workspace.monoquant(["plan", recipe_text]).exits(0).stdout;
    for words in ["speakers.pt", "tok/model.bin", "checkpoint-10/", "optimizer.pt", "state of a training"] {
        assert!(plan.contains(words), "{words}:\n{plan}");
    }
    let plan = workspace.monoquant(["plan", recipe_text, "--json"]).exits(0).json();
    let left = json!([
        {"name": "checkpoint-10/", "bytes": 2, "reason": "checkpoint of a training"},
        {"name": "optimizer.pt", "bytes": 10, "reason": "state of a training"},
    ]);
    assert_eq!(plan["exports"][0]["left"], left);
    let carried: Vec<&str> = plan["exports"][0]["carried"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|file| file["name"].as_str())
        .collect();
    assert_eq!(carried, ["generation_config.json", "speakers.pt", "tok/model.bin", "tokenizer.json"]);

    let said = workspace.run(&recipe).exits(0).stdout;
    assert!(said.contains("left behind  2 paths, 12 B: checkpoint-10/, optimizer.pt"), "{said}");
    let out = workspace.path("out");
    assert_eq!(serde_json::to_value(&report(&out).outputs[0].left).expect("JSON"), left);
    let written = files(&out);
    assert_eq!(written["speakers.pt"], b"voices");
    assert_eq!(written["tok/model.bin"], b"a tokenizer");
    assert!(
        !written.contains_key("optimizer.pt") && !written.contains_key("checkpoint-10/trainer_state.json")
    );

    let off = workspace.whole_recipe(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: export\n    path: off\n    copy: false\n",
    );
    workspace.run(&off).exits(0);
    assert_eq!(report(&workspace.path("off")).outputs[0].left.len(), 6);
}

#[cfg(unix)]
#[test]
fn modes_of_written_files_are_those_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let workspace = workspace();
    for (name, mode) in [("speakers.pt", 0o400), ("tokenizer.json", 0o755), ("tok/model.bin", 0o600)] {
        let path = workspace.path(&format!("model/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
    }
    workspace.run(&workspace.recipe(INT4)).exits(0);
    let mode = |name: &str| {
        fs::metadata(workspace.path("out").join(name)).expect("written").permissions().mode() & 0o777
    };
    for name in ["speakers.pt", "tokenizer.json", "tok/model.bin", "model.safetensors"] {
        assert_eq!(mode(name), mode("config.json"), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_refused_before_anything_is_read() {
    use std::os::unix::ffi::OsStrExt;
    let workspace = workspace();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
    fs::write(workspace.path("model").join(name), "x").expect("a file");
    let recipe = workspace.recipe(INT4);
    let said = workspace.run(&recipe).exits(2).stderr;
    assert!(said.contains("`caf\\xE9.txt` has a name that is not UTF-8"), "{said}");
    assert!(!workspace.path("out").exists());
    let off = workspace.recipe(INT4).with_file_name("off.yaml");
    let text = fs::read_to_string(&recipe).expect("the recipe") + "    copy: false\n";
    fs::write(&off, text).expect("a recipe");
    workspace.run(&off).exits(0);
}

/// Declarations of other quantizations do not reach the output, wherever the config has them.
#[test]
fn stale_declarations_stay_behind() {
    let fp8 = json!({"quant_method": "fp8"});
    let model = Model::llama()
        .in_shards(1)
        .with_config("quantization_config", json!(null))
        .with_config("text_config", json!({"inner_config": {"quantization_config": null, "a": 1}}))
        .with_config("vision_config", json!({"compression_config": null, "hidden_size": 8}));
    let workspace = Workspace::with(&model);
    workspace.write("model/hf_quant_config.json", r#"{"quantization": {"quant_algo": "FP8"}}"#);
    workspace
        .write("model/recipe.yaml", "default_stage:\n  default_modifiers:\n    QuantizationModifier: {}\n");
    workspace.write("model/theirs.json", json!({"quantization_config": fp8}).to_string());
    workspace.run(&workspace.recipe(INT4)).exits(0);
    let out = workspace.path("out");
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors");
    assert_eq!(config["text_config"], json!({"inner_config": {"a": 1}}));
    assert_eq!(config["vision_config"], json!({"hidden_size": 8}));
    let names: Vec<String> = files(&out).into_keys().collect();
    assert!(
        !names
            .iter()
            .any(|name| ["hf_quant_config.json", "recipe.yaml", "theirs.json"].contains(&name.as_str()))
    );
}

/// What was wrapped is published by the names that engines know, with the same weights.
#[test]
fn wrapped_names_are_published_without_the_wrapper() {
    let plain = Workspace::with(&Model::llama().in_shards(1));
    plain.run(&plain.recipe(INT4)).exits(0);
    let source = tensors(&plain.path("model"));
    let mut model = Model::llama().in_shards(1);
    for name in source.keys() {
        model = model.without(name);
    }
    for (name, tensor) in &source {
        let dtype = safetensors::Dtype::BF16;
        model.add_bytes(&format!("_orig_mod.{name}"), dtype, &tensor.shape, tensor.bytes.clone());
    }
    let wrapped = Workspace::with(&model);
    let said = wrapped.run(&wrapped.recipe(INT4)).exits(0).stderr;
    assert!(said.contains("model::wrapped-names"), "{said}");
    assert_eq!(tensors(&wrapped.path("out")), tensors(&plain.path("out")));
    assert_eq!(read_json(&wrapped.path("out/config.json")), read_json(&plain.path("out/config.json")));
}

#[test]
fn an_output_without_a_config_is_refused_for_every_target() {
    let workspace = Workspace::with(&Model::llama().in_shards(1));
    fs::remove_file(workspace.path("model/config.json")).expect("it is there");
    for target in ["any", "vllm", "transformers"] {
        let recipe = workspace.whole_recipe(&format!(
            "  - stage: load\n    model: model\n{INT4}  - stage: export\n    path: out\n    target: {target}\n"
        ));
        let said = workspace.run(&recipe).exits(2).stderr;
        assert!(said.contains("plan::no-config") && said.contains("format: dequantized"), "{said}");
    }
    let recipe = workspace.whole_recipe(&format!(
        "  - stage: load\n    model: model\n{INT4}  - stage: export\n    path: out\n    format: dequantized\n"
    ));
    workspace.run(&recipe).exits(0);
}

#[test]
fn explain_answers_when_the_plan_ends_with_errors() {
    let workspace = Workspace::with(&Model::llama());
    // Errors that recommend it, and some that come later.
    for stages in [
        "  - stage: quantize-int4\n    targets: [Embedding]\n  - stage: resolve-skips\n    skip_layer_types: [Embedding]\n",
        "  - stage: resolve-skips\n    skip_layer_names: [k_proj]\n  - stage: quantize-int4\n",
        "  - stage: quantize-int4\n    group_size: 48\n",
    ] {
        let recipe = workspace.recipe(stages);
        let args = ["explain", recipe.to_str().expect("UTF-8"), "model.layers.0.self_attn.k_proj"];
        let plan = workspace.monoquant(["plan", args[1]]);
        let error = plan.exits(2).stderr;
        let said = workspace.monoquant(args).exits(0);
        assert!(said.stdout.contains("decided by"), "{stages}:\n{}", said.stdout);
        assert!(
            said.stderr.contains("::"),
            "{stages}: the plan says\n{error}\nexplain says\n{}",
            said.stderr
        );
        let answer = workspace.monoquant([&args[..], &["--format", "json"]].concat()).exits(0).json();
        assert_eq!(answer[0]["tensor"], "model.layers.0.self_attn.k_proj.weight");
    }
}
