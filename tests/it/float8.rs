//! FP8 weights through the whole command: what is written, what it means, and what its config says.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::{Model, Workspace, json, report, root, tensors};

fn stages(granularity: &str, activations: &str) -> String {
    format!(
        "  - stage: quantize-fp8\n    granularity: {granularity}\n    activations: {activations}\n  - stage: validate\n"
    )
}

#[test]
fn rows_and_blocks_are_written_as_compressed_tensors_has_them() {
    for (granularity, activations, shape, inputs) in [
        ("channel", "dynamic", [256, 1], json!({"type": "float", "strategy": "token", "group_size": null})),
        ("block", "dynamic", [2, 1], json!({"type": "float", "strategy": "group", "group_size": 128})),
        ("channel", "none", [256, 1], Value::Null),
    ] {
        let workspace = Workspace::with(&Model::llama());
        workspace.run(&workspace.recipe(&stages(granularity, activations))).exits(0);
        let written = tensors(&workspace.path("out"));
        let module = "model.layers.1.mlp.up_proj";
        let (codes, scales) =
            (&written[&format!("{module}.weight")], &written[&format!("{module}.weight_scale")]);
        assert_eq!((codes.dtype.as_str(), &codes.shape[..]), ("F8_E4M3", &[256, 128][..]));
        assert_eq!((scales.dtype.as_str(), &scales.shape[..]), ("BF16", &shape[..]));
        assert!(codes.bytes.iter().all(|code| code & 0x7f != 0x7f), "no code is NaN");

        let config = &json(&workspace.path("out/config.json"))["quantization_config"];
        let group = &config["config_groups"]["group_0"];
        assert_eq!(
            (&config["format"], &group["format"]),
            (&json!("float-quantized"), &json!("float-quantized"))
        );
        let weights = &group["weights"];
        assert_eq!((&weights["type"], &weights["num_bits"]), (&json!("float"), &json!(8)));
        assert_eq!(weights["strategy"], granularity);
        let block = if granularity == "block" { json!([128, 128]) } else { Value::Null };
        assert_eq!(weights["block_structure"], block);
        match &inputs {
            Value::Null => assert_eq!(group["input_activations"], Value::Null),
            inputs => {
                for (key, value) in inputs.as_object().expect("an object") {
                    assert_eq!(&group["input_activations"][key], value, "{granularity}: {key}");
                }
                assert_eq!(group["input_activations"]["dynamic"], true);
            }
        }
        let told = report(&workspace.path("out"));
        let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.up_proj.weight"));
        let record = record.expect("a record");
        let scheme = record.scheme.as_ref().expect("a scheme");
        assert_eq!((scheme.granularity.as_str(), scheme.storage.as_str()), (granularity, "float-quantized"));
        assert!(scheme.to_string().starts_with("fp8, "), "{scheme}");
        let sqnr = record.metrics.as_ref().and_then(|metrics| metrics.sqnr_db).expect("a ratio");
        assert!((30.5..33.0).contains(&sqnr), "{granularity}: {sqnr}");
        workspace.monoquant(["verify", "out"]).exits(0);
    }
}

/// An output is a source: decoded, it is what `dequantized` writes, bit for bit, also in the other types.
#[test]
fn what_is_written_is_read_back_as_what_it_means() {
    for model in [Model::llama(), Model::llama().in_f16(), Model::llama().in_f32()] {
        for granularity in ["channel", "block"] {
            let workspace = Workspace::with(&model);
            let recipe = workspace.whole_recipe(&format!(
                "  - stage: load\n    model: model\n{}  - stage: export\n    path: out\n  - stage: export\n    path: plain\n    format: dequantized\n",
                stages(granularity, "dynamic")
            ));
            workspace.run(&recipe).exits(0);
            let plain = tensors(&workspace.path("plain"));
            fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
            fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
            let skips = "  - stage: resolve-skips\n    skip_layer_names: [self_attn]\n  - stage: quantize-int8\n    targets: [mlp]\n";
            workspace.run(&workspace.recipe(skips)).exits(0);
            let again = tensors(&workspace.path("out"));
            let name = "model.layers.0.self_attn.q_proj.weight";
            assert_eq!(again[name].dtype, plain[name].dtype);
            assert!(again[name].bytes == plain[name].bytes, "{granularity}");
        }
    }
}

#[test]
fn the_shipped_recipe_runs() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = root().join("recipes/llama-fp8.yaml").display().to_string();
    workspace.monoquant(["run", &recipe, "--model", "model", "--output", "out"]).exits(0);
    let told = report(&workspace.path("out"));
    assert!(told.verdict.passed && told.balance.quantized == 14, "{:?}", told.balance);
}

/// A model in blocks of FP8 as DeepSeek's are, with scales of a type: code by code that of `quantize-fp8`.
fn deepseek(stored: &std::collections::BTreeMap<String, crate::support::Stored>, exponents: bool) -> Model {
    let mut model = Model::llama().with_config(
        "quantization_config",
        json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
    );
    for (name, tensor) in stored {
        let Some(module) = name.strip_suffix(".weight").filter(|_| tensor.dtype == "F8_E4M3") else {
            continue;
        };
        model = model.without(name);
        model.add_bytes(name, Dtype::F8_E4M3, &tensor.shape, tensor.bytes.clone());
        let scales = &stored[&format!("{module}.weight_scale")];
        match exponents {
            true => {
                let exponent =
                    |bytes: &[u8]| (f32::from_le_bytes(bytes.try_into().expect("F32")).to_bits() >> 23) as u8;
                let bytes = scales.bytes.chunks(4).map(exponent).collect();
                model.add_bytes(&format!("{module}.scale"), Dtype::F8_E8M0, &scales.shape, bytes);
            }
            false => {
                let name = format!("{module}.weight_scale_inv");
                model.add_bytes(&name, Dtype::F32, &scales.shape, scales.bytes.clone());
            }
        }
    }
    model
}

#[test]
fn blocks_of_other_namings_are_re_labelled() {
    let first = Workspace::with(&Model::llama());
    let float =
        stages("block", "dynamic").replace("    activations", "    scale_dtype: f32\n    activations");
    first.run(&first.recipe(&float)).exits(0);
    let stored = tensors(&first.path("out"));
    for exponents in [false, true] {
        let workspace = Workspace::with(&deepseek(&stored, exponents));
        workspace.run(&workspace.recipe("  - stage: convert\n  - stage: validate\n")).exits(0);
        let written = tensors(&workspace.path("out"));
        assert_eq!(written.len(), stored.len());
        for (name, tensor) in &stored {
            let found = &written[name];
            if name.ends_with(".weight_scale") && exponents {
                // The exponent alone, in BF16.
                let power =
                    |bytes: &[u8]| (u32::from_le_bytes(bytes.try_into().expect("F32")) & 0x7f80_0000) >> 16;
                let meant: Vec<u8> =
                    tensor.bytes.chunks(4).flat_map(|bytes| (power(bytes) as u16).to_le_bytes()).collect();
                assert_eq!((found.dtype.as_str(), &found.bytes), ("BF16", &meant), "{name}");
            } else {
                assert_eq!((&found.dtype, &found.shape), (&tensor.dtype, &tensor.shape), "{name}");
                assert!(found.bytes == tensor.bytes, "{name}");
            }
        }
        let config = &json(&workspace.path("out/config.json"))["quantization_config"];
        let group = &config["config_groups"]["group_0"];
        assert_eq!(
            (&group["weights"]["strategy"], &group["input_activations"]["type"]),
            (&json!("block"), &json!("float"))
        );
        let told = report(&workspace.path("out"));
        assert!(told.balance.quantized == 14 && told.balance.balanced);
        // What is written is a source that is re-labelled, to the last byte.
        fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
        fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
        workspace.run(&workspace.recipe("  - stage: convert\n")).exits(0);
        assert!(tensors(&workspace.path("out")) == written);
    }
}
