//! Small models in the layouts of published ones that are quantized already: planned, run, and what comes out.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::headers::Fixture;
use crate::support::{Model, Stored, Workspace, json, report, root, tensors};

/// Bytes that are numbers in every type: 4.4e-5 as BF16 and F32, 1 as E4M3, 2^−71 as E8M0, −0 and 1½ as E2M1.
fn bytes(name: &str, count: usize) -> Vec<u8> {
    let seed = name.bytes().fold(7_usize, |sum, byte| sum * 31 % 1009 + usize::from(byte));
    (0..count).map(|at| if at % 2 == 0 { (seed + at / 2) as u8 % 0x60 } else { 0x38 }).collect()
}

/// The model of a fixture. `stored` gives the tensors, with name, type and shape, that a weight is stored as; none if it stays as it
/// is.
fn model(
    fixture: &Fixture,
    stored: impl Fn(&str, &[usize]) -> Option<Vec<(String, Dtype, Vec<usize>)>>,
) -> Model {
    let Value::Object(config) = fixture.config.clone() else { panic!("an object") };
    let mut model = Model::empty(config);
    for tensor in fixture.tensors() {
        let shape: Vec<usize> = tensor.shape.iter().map(|size| *size as usize).collect();
        let plain = || {
            let dtype = match tensor.dtype.as_str() {
                "BF16" => Dtype::BF16,
                "I64" => Dtype::I64,
                _ => Dtype::F32,
            };
            vec![(tensor.name.clone(), dtype, shape.clone())]
        };
        for (name, dtype, shape) in stored(&tensor.name, &shape).unwrap_or_else(plain) {
            let count: usize = shape.iter().product();
            let contents = match (name.ends_with("weight_shape"), dtype) {
                (true, _) => {
                    let [rows, columns] = tensor.shape[..] else { panic!("{name}") };
                    [rows as i32, columns as i32].into_iter().flat_map(i32::to_le_bytes).collect()
                }
                (_, Dtype::BF16) => bytes(&name, count * 2),
                (_, Dtype::I64) => bytes(&name, count * 8),
                (_, Dtype::I32 | Dtype::F32) => bytes(&name, count * 4),
                // Exponents and codes.
                (_, Dtype::F8_E8M0) => bytes(&name, count).iter().map(|byte| 100 + byte % 8).collect(),
                _ => bytes(&name, count),
            };
            model.add_bytes(&name, dtype, &shape, contents);
        }
    }
    model
}

/// DeepSeek-V4: routed experts in MXFP4, most other linear layers in FP8 by blocks, exponents as scales of both.
#[test]
fn deepseek_v4_is_converted_whole() {
    let mut fixture = Fixture::load("deepseek-v4");
    fixture.config["expert_dtype"] = json!("fp4");
    fixture.config["quantization_config"] = json!({"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic", "weight_block_size": [128, 128]});
    let is_fp8 = |name: &str| {
        let linear = [".wq_a.", ".wq_b.", ".wkv.", ".wo_b."].iter().any(|part| name.contains(part));
        linear && !name.contains("compressor") && !name.contains("indexer")
            || name.contains(".shared_experts.")
    };
    let model = model(&fixture, |name, shape| {
        let module = name.strip_suffix(".weight")?;
        let scale = format!("{module}.scale");
        match *shape {
            [rows, columns] if name.contains(".ffn.experts.") => Some(vec![
                (name.to_owned(), Dtype::I8, vec![rows, columns / 2]),
                (scale, Dtype::F8_E8M0, vec![rows, columns / 32]),
            ]),
            [rows, columns] if is_fp8(name) => Some(vec![
                (name.to_owned(), Dtype::F8_E4M3, vec![rows, columns]),
                (scale, Dtype::F8_E8M0, vec![rows.div_ceil(128), columns.div_ceil(128)]),
            ]),
            _ => None,
        }
    });
    let workspace = Workspace::with(&model);
    let source = tensors(&workspace.path("model"));
    let stages = "  - stage: load\n    model: model\n  - stage: convert\n  - stage: validate\n  - stage: export\n    path: out\n    target: vllm\n";
    workspace.run(&workspace.whole_recipe(stages)).exits(0);
    let written = tensors(&workspace.path("out"));
    let (mut experts, mut blocks) = (0, 0);
    for (name, tensor) in &source {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let part = |of: &BTreeMap<String, Stored>, name: &str| of.get(&format!("{module}.{name}")).cloned();
        match tensor.dtype.as_str() {
            "I8" => {
                let (codes, scales) = (part(&written, "weight_packed"), part(&written, "weight_scale"));
                assert_eq!(codes.expect("codes").bytes, tensor.bytes, "{name}");
                let own = part(&source, "scale").expect("exponents");
                assert_eq!(scales.expect("exponents").bytes, own.bytes, "{name}");
                experts += 1;
            }
            "F8_E4M3" => {
                assert_eq!(written[name].bytes, tensor.bytes, "{name}");
                assert_eq!(part(&written, "weight_scale").expect("scales").dtype, "BF16");
                blocks += 1;
            }
            _ => assert_eq!(written[name].bytes, tensor.bytes, "{name}"),
        }
    }
    assert_eq!((experts, blocks), (36, 21));
    let config = &json(&workspace.path("out/config.json"));
    assert_eq!(config["quantization_config"]["format"], "mixed-precision");
    let groups = config["quantization_config"]["config_groups"].as_object().expect("groups");
    let formats: Vec<&str> = groups.values().filter_map(|group| group["format"].as_str()).collect();
    assert!(formats.contains(&"mxfp4-pack-quantized") && formats.contains(&"float-quantized"), "{formats:?}");
    let told = report(&workspace.path("out"));
    assert!(told.balance.balanced && told.balance.quantized == 57, "{:?}", told.balance);
}

/// Kimi-K2: routed experts in int4, the rest in BF16, of which the linear layers become int8.
#[test]
fn of_kimi_k2_the_experts_are_carried_over_and_the_rest_is_quantized() {
    let mut fixture = Fixture::load("deepseek-v3");
    fixture.config["model_type"] = json!("kimi_k2");
    fixture.config["num_nextn_predict_layers"] = json!(0);
    fixture.config["quantization_config"] = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null, "weights": {"num_bits": 4, "type": "int",
        "group_size": 32, "strategy": "group", "symmetric": true}}}, "ignore": ["lm_head", "re:.*self_attn.*"]});
    for (_, tensors) in &mut fixture.shards {
        tensors.retain(|tensor| !tensor.name.starts_with("model.layers.2."));
    }
    let model = model(&fixture, |name, shape| {
        let module = name.strip_suffix(".weight").filter(|_| name.contains(".mlp.experts."))?;
        let &[rows, columns] = shape else { return None };
        Some(vec![
            (format!("{module}.weight_packed"), Dtype::I32, vec![rows, columns / 8]),
            (format!("{module}.weight_scale"), Dtype::BF16, vec![rows, columns / 32]),
            (format!("{module}.weight_shape"), Dtype::I32, vec![2]),
        ])
    });
    let workspace = Workspace::with(&model);
    let source = tensors(&workspace.path("model"));
    let stages = "  - stage: load\n    model: model\n  - stage: convert\n  - stage: quantize-int8\n  - stage: validate\n  - stage: export\n    path: out\n    target: vllm\n";
    let said = workspace.run(&workspace.whole_recipe(stages)).exits(0);
    assert!(!said.stderr.contains("already"), "{}", said.stderr);
    let written = tensors(&workspace.path("out"));
    let experts: Vec<&String> =
        source.keys().filter(|name| name.ends_with("experts.0.up_proj.weight_packed")).collect();
    assert_eq!(experts.len(), 1);
    for (name, tensor) in source.iter().filter(|(name, _)| name.contains(".mlp.experts.")) {
        match name.ends_with("weight_shape") {
            // It is I64 in the output.
            true => assert_eq!(written[name].dtype, "I64"),
            false => assert_eq!(written[name].bytes, tensor.bytes, "{name}"),
        }
    }
    let attention = &written["model.layers.1.self_attn.o_proj.weight_packed"];
    assert_eq!((attention.dtype.as_str(), &attention.shape[..]), ("I32", &[256, 64][..]));
    let told = report(&workspace.path("out"));
    let action = |end: &str| {
        let record = told.tensors.iter().find(|tensor| tensor.name.ends_with(end)).expect("a record");
        record.action.clone()
    };
    assert_eq!(action("experts.0.up_proj.weight"), "re-labelled");
    assert_eq!(action("shared_experts.up_proj.weight"), "quantized");
}

/// gpt-oss: the shipped recipe on a model of two layers.
#[test]
fn the_recipe_for_gpt_oss_makes_int4_experts() {
    let workspace = Workspace::with(&super::prequantized::gpt_oss());
    let recipe = root().join("recipes/gpt-oss-int4.yaml").display().to_string();
    workspace.monoquant(["run", &recipe, "--model", "model", "--output", "out"]).exits(0);
    let told = report(&workspace.path("out"));
    assert!(told.verdict.passed && told.balance.quantized == 4, "{:?}", told.balance);
    let written = tensors(&workspace.path("out"));
    let stack = &written["model.layers.1.mlp.experts.gate_up_proj"];
    assert_eq!((stack.dtype.as_str(), stack.shape.len()), ("BF16", 3));
    let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("1.mlp.experts.gate_up_proj"));
    let scheme = record.and_then(|record| record.scheme.as_ref()).expect("a scheme");
    assert_eq!(scheme.to_string(), "int4 symmetric, groups of 32");
    assert!(json(&workspace.path("out/config.json")).get("quantization_config").is_none());
}
