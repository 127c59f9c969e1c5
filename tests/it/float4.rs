//! Floats of four bits through the whole command: what is written, what it means, and what its config says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};

use crate::support::{Model, Stored, Workspace, json, report, tensors};

const MXFP4: &str = "  - stage: quantize-mxfp4\n  - stage: validate\n";

#[test]
fn mxfp4_is_written_as_compressed_tensors_has_it() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(MXFP4)).exits(0);
    let written = tensors(&workspace.path("out"));
    let module = "model.layers.1.mlp.up_proj";
    let (codes, scales) =
        (&written[&format!("{module}.weight_packed")], &written[&format!("{module}.weight_scale")]);
    assert_eq!((codes.dtype.as_str(), &codes.shape[..]), ("U8", &[256, 64][..]));
    assert_eq!((scales.dtype.as_str(), &scales.shape[..]), ("U8", &[256, 4][..]));
    assert!(scales.bytes.iter().all(|exponent| (90..130).contains(exponent)));
    assert!(!written.contains_key(&format!("{module}.weight_shape")));

    let config = &json(&workspace.path("out/config.json"))["quantization_config"];
    let group = &config["config_groups"]["group_0"];
    assert_eq!(
        (&config["format"], &group["format"]),
        (&json!("mxfp4-pack-quantized"), &json!("mxfp4-pack-quantized"))
    );
    let weights = &group["weights"];
    for (key, value) in [
        ("type", json!("float")),
        ("num_bits", json!(4)),
        ("strategy", json!("group")),
        ("group_size", json!(32)),
        ("scale_dtype", json!("torch.uint8")),
        ("symmetric", json!(true)),
    ] {
        assert_eq!(weights[key], value, "{key}");
    }
    assert_eq!(group["input_activations"], Value::Null);
    let told = report(&workspace.path("out"));
    let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.up_proj.weight"));
    let record = record.expect("a record");
    let scheme = record.scheme.as_ref().expect("a scheme");
    assert_eq!((scheme.scale_dtype.as_str(), scheme.storage.as_str()), ("U8", "mxfp4-pack-quantized"));
    assert_eq!(scheme.to_string(), "mxfp4, groups of 32");
    let sqnr = record.metrics.as_ref().and_then(|metrics| metrics.sqnr_db).expect("a ratio");
    assert!((17.5..20.0).contains(&sqnr), "{sqnr}");
    workspace.monoquant(["verify", "out"]).exits(0);
}

/// An output is a source: decoded, it is what `dequantized` writes, bit for bit; re-labelled, it is itself.
#[test]
fn what_is_written_is_read_back_as_what_it_means() {
    let models = [(Model::llama(), false), (Model::llama().in_f32(), true)];
    for ((model, is_f32), stages) in
        models.into_iter().flat_map(|model| [(model.clone(), MXFP4), (model, NVFP4)])
    {
        let workspace = Workspace::with(&model);
        let recipe = workspace.whole_recipe(&format!(
            "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n    target: vllm\n  - stage: export\n    path: plain\n    format: dequantized\n",
        ));
        workspace.run(&recipe).exits(0);
        let plain = tensors(&workspace.path("plain"));
        fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
        fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
        let skips = "  - stage: resolve-skips\n    skip_layer_names: [self_attn]\n  - stage: quantize-int8\n    targets: [mlp]\n";
        workspace.run(&workspace.recipe(skips)).exits(0);
        let again = tensors(&workspace.path("out"));
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(again[name].dtype, "BF16");
        // BF16 holds these numbers.
        let wide: Vec<u8> = match is_f32 {
            true => again[name].bytes.chunks(2).flat_map(|bytes| [0, 0, bytes[0], bytes[1]]).collect(),
            false => again[name].bytes.clone(),
        };
        assert!(wide == plain[name].bytes);
    }
}

#[test]
fn rows_that_are_no_whole_groups_are_named_or_left() {
    let mut model = Model::llama();
    model.add("model.layers.0.mlp.extra_proj.weight", &[64, 48]);
    let workspace = Workspace::with(&model);
    let found = workspace.plan_findings(&workspace.recipe(MXFP4));
    assert!(found.contains("plan::indivisible") && found.contains("extra_proj"), "{found}");
    let skip = "  - stage: quantize-mxfp4\n    indivisible: skip\n";
    workspace.run(&workspace.recipe(skip)).exits(0);
    assert!(tensors(&workspace.path("out")).contains_key("model.layers.0.mlp.extra_proj.weight"));
}

const NVFP4: &str = "  - stage: quantize-nvfp4\n  - stage: validate\n";

/// The scales for all weights, by module.
fn global_scales(workspace: &Workspace) -> BTreeMap<String, f32> {
    let scale = |(name, tensor): (String, Stored)| {
        let module = name.strip_suffix(".weight_global_scale")?.to_owned();
        assert_eq!((tensor.dtype.as_str(), &tensor.shape[..]), ("F32", &[1][..]));
        Some((module, f32::from_le_bytes(tensor.bytes.try_into().expect("four bytes"))))
    };
    tensors(&workspace.path("out")).into_iter().filter_map(scale).collect()
}

#[test]
fn nvfp4_is_written_as_compressed_tensors_has_it() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(NVFP4)).exits(0);
    let written = tensors(&workspace.path("out"));
    let module = "model.layers.1.mlp.up_proj";
    let part = |name: &str| &written[&format!("{module}.{name}")];
    let (codes, scales) = (part("weight_packed"), part("weight_scale"));
    assert_eq!((codes.dtype.as_str(), &codes.shape[..]), ("U8", &[256, 64][..]));
    assert_eq!((scales.dtype.as_str(), &scales.shape[..]), ("F8_E4M3", &[256, 8][..]));
    let config = &json(&workspace.path("out/config.json"))["quantization_config"];
    let group = &config["config_groups"]["group_0"];
    assert_eq!(group["format"], "nvfp4-pack-quantized");
    let weights = &group["weights"];
    for (key, value) in [
        ("type", json!("float")),
        ("num_bits", json!(4)),
        ("strategy", json!("tensor_group")),
        ("group_size", json!(16)),
        ("scale_dtype", json!("torch.float8_e4m3fn")),
    ] {
        assert_eq!(weights[key], value, "{key}");
    }
    let told = report(&workspace.path("out"));
    let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.up_proj.weight"));
    let record = record.expect("a record");
    assert_eq!(record.scheme.as_ref().expect("a scheme").to_string(), "nvfp4, groups of 16");
    let sqnr = record.metrics.as_ref().and_then(|metrics| metrics.sqnr_db).expect("a ratio");
    assert!((19.0..22.5).contains(&sqnr), "{sqnr}");
    workspace.monoquant(["verify", "out"]).exits(0);

    // What is fused has one scale; what is not has its own.
    let scales = global_scales(&workspace);
    assert_eq!(scales.len(), 14);
    let of = |name: &str| scales[&format!("model.layers.0.{name}")].to_bits();
    let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(of);
    assert!(qkv.iter().all(|scale| *scale == qkv[0]));
    assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
    let distinct: BTreeSet<u32> = scales.values().map(|scale| scale.to_bits()).collect();
    assert!(distinct.len() > 4, "{scales:?}");
}

/// Experts share the scale of their gate and up projections, whether they are tensors of their own or a stack.
#[test]
fn each_expert_has_one_scale_for_gate_and_up() {
    let mut single = Model::llama()
        .with_config("model_type", json!("qwen3_moe"))
        .with_config("architectures", json!(["Qwen3MoeForCausalLM"]))
        .with_config("num_experts", json!(2));
    let mut stack = single.clone();
    for layer in 0..2 {
        let experts = format!("model.layers.{layer}.mlp.experts");
        for expert in 0..2 {
            single.add(&format!("{experts}.{expert}.gate_proj.weight"), &[96, 128]);
            single.add(&format!("{experts}.{expert}.up_proj.weight"), &[96, 128]);
            single.add(&format!("{experts}.{expert}.down_proj.weight"), &[128, 96]);
        }
        stack.add(&format!("{experts}.gate_up_proj"), &[2, 192, 128]);
        stack.add(&format!("{experts}.down_proj"), &[2, 128, 96]);
    }
    for model in [single, stack] {
        let workspace = Workspace::with(&model);
        let target = "  - stage: load\n    model: model\n  - stage: quantize-nvfp4\n    targets: [\"re:.*mlp\\\\.experts.*\"]\n  - stage: export\n    path: out\n    target: vllm\n";
        workspace.run(&workspace.whole_recipe(target)).exits(0);
        let scales = global_scales(&workspace);
        assert_eq!(scales.len(), 12, "{scales:?}");
        let of = |name: &str| scales[&format!("model.layers.1.mlp.experts.{name}")].to_bits();
        assert_eq!(of("0.gate_proj"), of("0.up_proj"));
        assert_eq!(of("1.gate_proj"), of("1.up_proj"));
        let distinct: BTreeSet<u32> = scales.values().map(|scale| scale.to_bits()).collect();
        assert!(distinct.len() > 4, "{scales:?}");
    }
}

/// If one of several modules with a common scale changes, all of them are made anew: the output is that of a fresh run.
#[test]
fn a_common_scale_is_never_that_of_an_earlier_model() {
    let first = Model::llama();
    let name = "model.layers.0.self_attn.k_proj.weight";
    let mut second = first.clone().without(name);
    let bytes: Vec<u8> =
        (0..64 * 128).flat_map(|n: u32| half::bf16::from_f32((n % 37) as f32).to_le_bytes()).collect();
    second.add_bytes(name, safetensors::Dtype::BF16, &[64, 128], bytes);
    let workspace = Workspace::with(&first);
    let recipe = workspace.recipe(NVFP4);
    workspace.run(&recipe).exits(0);
    let before = global_scales(&workspace);
    fs::remove_dir_all(workspace.path("model")).expect("the model");
    second.write(&workspace.path("model"));
    workspace.run(&recipe).exits(0);
    let after = global_scales(&workspace);
    assert_ne!(before["model.layers.0.self_attn.q_proj"], after["model.layers.0.self_attn.q_proj"]);
    assert_eq!(before["model.layers.1.self_attn.q_proj"], after["model.layers.1.self_attn.q_proj"]);
    let fresh = Workspace::with(&second);
    fresh.run(&fresh.recipe(NVFP4)).exits(0);
    assert!(tensors(&fresh.path("out")) == tensors(&workspace.path("out")));
}

/// The E2M1 codes and exponents of a module of a model in MXFP4.
fn mxfp4_parts(stored: &BTreeMap<String, Stored>, module: &str) -> (Stored, Stored) {
    (stored[&format!("{module}.weight_packed")].clone(), stored[&format!("{module}.weight_scale")].clone())
}

/// Names and types under which MXFP4 is published.
const NAMINGS: [(&str, safetensors::Dtype, &str, safetensors::Dtype); 3] = [
    ("weight", safetensors::Dtype::I8, "scale", safetensors::Dtype::F8_E8M0),
    ("weight", safetensors::Dtype::I8, "weight_scale_inv", safetensors::Dtype::U8),
    ("weight_packed", safetensors::Dtype::U8, "weight_scale", safetensors::Dtype::U8),
];

/// A model whose linear layers are MXFP4 under some names, as `quantize-mxfp4` makes them of [`Model::llama`], with exponents changed.
fn published(
    stored: &BTreeMap<String, Stored>,
    (codes_name, codes_type, scales_name, scales_type): (&str, safetensors::Dtype, &str, safetensors::Dtype),
    exponent: impl Fn(usize, u8) -> u8,
) -> Model {
    let declared = match codes_name {
        "weight" => json!({"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}),
        _ => {
            json!({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {
            "group_0": {"targets": ["Linear"], "input_activations": null,
                        "weights": {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group"}}}})
        }
    };
    let mut model = Model::llama().with_config("quantization_config", declared);
    for name in stored.keys() {
        let Some(module) = name.strip_suffix(".weight_packed") else { continue };
        let (codes, scales) = mxfp4_parts(stored, module);
        model = model.without(&format!("{module}.weight"));
        let bytes = scales.bytes.iter().enumerate().map(|(at, byte)| exponent(at, *byte)).collect();
        model.add_bytes(&format!("{module}.{codes_name}"), codes_type, &codes.shape, codes.bytes);
        model.add_bytes(&format!("{module}.{scales_name}"), scales_type, &scales.shape, bytes);
    }
    model
}

#[test]
fn mxfp4_of_every_naming_is_re_labelled() {
    let first = Workspace::with(&Model::llama());
    first.run(&first.recipe(MXFP4)).exits(0);
    let stored = tensors(&first.path("out"));
    let config = json(&first.path("out/config.json"));
    for naming in NAMINGS {
        let workspace = Workspace::with(&published(&stored, naming, |_, byte| byte));
        workspace.run(&workspace.recipe("  - stage: convert\n  - stage: validate\n")).exits(0);
        let written = tensors(&workspace.path("out"));
        let bytes = |of: &BTreeMap<String, Stored>| -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
            let tensor = |(name, tensor): (&String, &Stored)| {
                (name.clone(), (tensor.dtype.clone(), tensor.shape.clone(), tensor.bytes.clone()))
            };
            of.iter().map(tensor).collect()
        };
        assert!(bytes(&written) == bytes(&stored), "{naming:?}");
        let told = json(&workspace.path("out/config.json"));
        assert_eq!(told["quantization_config"], config["quantization_config"]);
        let told = report(&workspace.path("out"));
        let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.up_proj.weight"));
        let record = record.expect("a record");
        assert_eq!(record.action, "re-labelled");
        assert_eq!(record.reason, "re-labelled: codes and exponents copied");
        let metrics = record.metrics.as_ref().expect("metrics");
        assert_eq!((metrics.max_abs_error, metrics.sqnr_note.as_deref()), (0.0, Some("nothing was lost")));
        // Quantized again it is a warning.
        let said = workspace.run(&workspace.recipe("  - stage: quantize-int8\n")).exits(0);
        assert!(said.stderr.contains("codes of 4 bits (mxfp4) already"), "{}", said.stderr);
    }
}

#[test]
fn nvfp4_of_compressed_tensors_is_re_labelled() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(NVFP4)).exits(0);
    let stored = tensors(&workspace.path("out"));
    fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
    fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
    workspace.run(&workspace.recipe("  - stage: convert\n  - stage: validate\n")).exits(0);
    assert!(tensors(&workspace.path("out")) == stored);
}

#[test]
fn mxfp4_becomes_fp8_in_blocks_if_exponents_are_near_enough() {
    let first = Workspace::with(&Model::llama());
    first.run(&first.recipe(MXFP4)).exits(0);
    let stored = tensors(&first.path("out"));
    let convert = "  - stage: convert\n    mxfp4: fp8-block\n  - stage: validate\n";
    let near = |at: usize, byte: u8| byte.clamp(110, 122) + (at % 3) as u8;
    let workspace = Workspace::with(&published(&stored, NAMINGS[0], near));
    // What the model means, as numbers.
    let plain = "  - stage: load\n    model: model\n  - stage: convert\n  - stage: export\n    path: plain\n    format: dequantized\n";
    workspace.run(&workspace.whole_recipe(plain)).exits(0);
    let meant = tensors(&workspace.path("plain"));
    workspace.run(&workspace.recipe(convert)).exits(0);
    let module = "model.layers.1.mlp.up_proj";
    let written = tensors(&workspace.path("out"));
    let (codes, scales) =
        (&written[&format!("{module}.weight")], &written[&format!("{module}.weight_scale")]);
    assert_eq!((codes.dtype.as_str(), &codes.shape[..]), ("F8_E4M3", &[256, 128][..]));
    assert_eq!((scales.dtype.as_str(), &scales.shape[..]), ("BF16", &[2, 1][..]));
    let config = &json(&workspace.path("out/config.json"))["quantization_config"];
    let group = &config["config_groups"]["group_0"];
    assert_eq!(
        (&group["weights"]["strategy"], &group["input_activations"]["type"]),
        (&json!("block"), &json!("float"))
    );
    let told = report(&workspace.path("out"));
    let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.up_proj.weight"));
    let record = record.expect("a record");
    assert!(record.reason.contains("within 14 of each other"), "{}", record.reason);
    assert_eq!(record.metrics.as_ref().expect("metrics").max_abs_error, 0.0);
    // Decoded, it means the same numbers.
    fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
    fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
    workspace.run(&workspace.whole_recipe(plain)).exits(0);
    let again = tensors(&workspace.path("plain"));
    assert!(again[&format!("{module}.weight")].bytes == meant[&format!("{module}.weight")].bytes);

    // One exponent far from the others, of a group that is not zero.
    let far = move |at: usize, byte: u8| if at == 5 { 90 } else { near(at, byte) };
    let wide = Workspace::with(&published(&stored, NAMINGS[0], far));
    let found = wide.plan_findings(&wide.recipe(convert));
    assert!(found.contains("plan::inexact") && found.contains("14 of 14 tensors"), "{found}");
    assert!(found.contains("the exponents of 1 of 2 blocks of 128 × 128"), "{found}");
}

#[test]
fn a_kv_cache_scheme_is_carried_over_with_its_scales() {
    let first = Workspace::with(&Model::llama());
    first.run(&first.recipe(MXFP4)).exits(0);
    let stored = tensors(&first.path("out"));
    let scheme =
        json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor", "dynamic": false});
    let model = |layers: usize| {
        let mut model = published(&stored, NAMINGS[2], |_, byte| byte);
        let mut declared = model.config["quantization_config"].clone();
        declared["kv_cache_scheme"] = scheme.clone();
        model = model.with_config("quantization_config", declared);
        for layer in 0..layers {
            for name in ["k_scale", "v_scale"] {
                model.add_values(&format!("model.layers.{layer}.self_attn.{name}"), &[1], &[0.5]);
            }
        }
        model
    };
    let carried = |layers: usize| {
        let workspace = Workspace::with(&model(layers));
        let recipe = workspace.recipe("  - stage: convert\n");
        let path = recipe.display().to_string();
        let said = workspace.monoquant(["plan", &path]).exits(0).stdout;
        workspace.run(&recipe).exits(0);
        let config = json(&workspace.path("out/config.json"));
        let scales = tensors(&workspace.path("out")).into_keys().filter(|name| name.ends_with("_scale"));
        let kept = scales.filter(|name| name.ends_with(".k_scale") || name.ends_with(".v_scale")).count();
        (config["quantization_config"]["kv_cache_scheme"].clone(), kept, said)
    };
    let (found, kept, said) = carried(2);
    assert_eq!((found, kept), (scheme.clone(), 4));
    assert!(!said.contains("kv_cache_scheme"), "{said}");
    let (found, kept, said) = carried(1);
    assert_eq!((found, kept), (Value::Null, 2));
    assert!(said.contains("`kv_cache_scheme` is left out"), "{said}");
}
