//! Models whose weights are codes already: codes are re-labelled, or decoded on the way to other ones.

use std::collections::BTreeMap;
use std::fs;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::{Model, Stored, Workspace, json, report, root, tensors};

/// Rows and columns of the linear layers of [`Model::llama`].
const LINEARS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 128, 128),
    ("self_attn.k_proj", 64, 128),
    ("self_attn.v_proj", 64, 128),
    ("self_attn.o_proj", 128, 128),
    ("mlp.gate_proj", 256, 128),
    ("mlp.up_proj", 256, 128),
    ("mlp.down_proj", 128, 256),
];

const GROUP: usize = 32;

/// Four bits that look random.
fn draw(seed: usize) -> u32 {
    ((seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 37) as u32 & 15
}

fn code(row: usize, column: usize) -> u32 {
    draw(row * 1009 + column)
}

fn zero_point(is_symmetric: bool, row: usize, group: usize) -> u32 {
    // GPTQ v1 cannot store 0, and engines disagree about 16.
    if is_symmetric { 8 } else { 1 + draw(row * 31 + group) % 15 }
}

fn scale(row: usize, group: usize) -> f16 {
    f16::from_f32(0.001 * (1 + (row + group) % 7) as f32)
}

fn words(lines: usize, per_line: usize, word: impl Fn(usize, usize) -> u32) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| (0..per_line).flat_map(|n| word(line, n).to_le_bytes()).collect::<Vec<u8>>())
        .collect()
}

/// Eight nibbles of a word, low ones first.
fn word(nibble: impl Fn(usize) -> u32) -> u32 {
    (0..8).fold(0, |word, n| word | nibble(n) << (4 * n))
}

/// How a tool stores the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tool {
    GptqSymmetric,
    GptqAsymmetric,
    Awq,
}

impl Tool {
    fn is_symmetric(self) -> bool {
        self == Self::GptqSymmetric
    }

    fn config(self) -> Value {
        match self {
            Self::Awq => {
                json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true, "version": "gemm"})
            }
            _ => json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": self.is_symmetric(),
                "desc_act": false, "checkpoint_format": "gptq"}),
        }
    }

    /// A Llama whose linear layers it has stored.
    fn llama(self) -> Model {
        let mut model = Model::llama().in_f16().with_config("quantization_config", self.config());
        for layer in 0..2 {
            for (name, rows, columns) in LINEARS {
                let module = format!("model.layers.{layer}.{name}");
                model = model.without(&format!("{module}.weight"));
                let groups = columns / GROUP;
                let mut add = |parameter: &str, dtype, shape: [usize; 2], bytes| {
                    model.add_bytes(&format!("{module}.{parameter}"), dtype, &shape, bytes);
                };
                let scales =
                    (0..groups).flat_map(|of| (0..rows).flat_map(move |row| scale(row, of).to_le_bytes()));
                add("scales", Dtype::F16, [groups, rows], scales.collect());
                let zero = |row: usize, of: usize| zero_point(self.is_symmetric(), row, of);
                match self {
                    Self::Awq => {
                        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
                        let codes = words(columns, rows / 8, |c, n| word(|k| code(n * 8 + ORDER[k], c)));
                        add("qweight", Dtype::I32, [columns, rows / 8], codes);
                        let zeros = words(groups, rows / 8, |of, n| word(|k| zero(n * 8 + ORDER[k], of)));
                        add("qzeros", Dtype::I32, [groups, rows / 8], zeros);
                    }
                    _ => {
                        let codes = words(columns / 8, rows, |n, row| word(|k| code(row, n * 8 + k)));
                        add("qweight", Dtype::I32, [columns / 8, rows], codes);
                        let zeros = words(groups, rows / 8, |of, n| word(|k| zero(n * 8 + k, of) - 1));
                        add("qzeros", Dtype::I32, [groups, rows / 8], zeros);
                        let order = (0..columns).flat_map(|c| ((c / GROUP) as i32).to_le_bytes()).collect();
                        model.add_bytes(&format!("{module}.g_idx"), Dtype::I32, &[columns], order);
                    }
                }
            }
        }
        model
    }
}

fn weights(is_symmetric: bool, rows: usize, columns: usize) -> Vec<f16> {
    let weight = |row: usize, column: usize| {
        let group = column / GROUP;
        let difference = code(row, column) as f32 - zero_point(is_symmetric, row, group) as f32;
        f16::from_f32(difference * scale(row, group).to_f32())
    };
    (0..rows * columns).map(|n| weight(n / columns, n % columns)).collect()
}

fn bytes_of(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn gptq_and_awq_become_compressed_tensors_without_a_change_of_a_number() {
    for tool in [Tool::GptqSymmetric, Tool::GptqAsymmetric, Tool::Awq] {
        let workspace = Workspace::with(&tool.llama());
        // A declaration of its own, as older tools write it.
        workspace.write("model/quantize_config.json", tool.config().to_string());
        let recipe = root().join("recipes/convert-gptq.yaml").display().to_string();
        let args = ["--model", "model", "--output", "out"];
        let plan = workspace.monoquant(["plan", &recipe].iter().chain(&args)).exits(0);
        assert!(plan.stdout.contains(", re-labelled"), "{}", plan.stdout);
        let said = workspace.monoquant(["run", &recipe].iter().chain(&args)).exits(0);
        assert!(!said.stderr.contains('⚠'), "{tool:?}: {}", said.stderr);

        let (source, written) = (tensors(&workspace.path("model")), tensors(&workspace.path("out")));
        for layer in 0..2 {
            for (name, rows, columns) in LINEARS {
                let module = format!("model.layers.{layer}.{name}");
                let part = |parameter: &str| &written[&format!("{module}.{parameter}")];
                let codes = words(rows, columns / 8, |row, n| word(|k| code(row, n * 8 + k)));
                assert!(part("weight_packed").bytes == codes, "{tool:?} {module}");
                assert_eq!(part("weight_packed").shape, [rows, columns / 8]);
                let scales = (0..rows).flat_map(|row| (0..columns / GROUP).map(move |of| scale(row, of)));
                assert_eq!(part("weight_scale").bytes, bytes_of(&scales.collect::<Vec<f16>>()));
                assert_eq!(part("weight_scale").dtype, "F16");
                let zeros = written.get(&format!("{module}.weight_zero_point"));
                if tool.is_symmetric() {
                    assert_eq!(zeros, None);
                } else {
                    let meant =
                        words(rows / 8, columns / GROUP, |n, of| word(|k| zero_point(false, n * 8 + k, of)));
                    assert_eq!(zeros.expect("zero points").bytes, meant);
                }
            }
        }
        assert_eq!(
            written["lm_head.weight"],
            Stored { file: written["lm_head.weight"].file.clone(), ..source["lm_head.weight"].clone() }
        );
        assert!(
            written.keys().all(|name| !name.contains(".q") || name.contains("q_proj")),
            "{:?}",
            written.keys()
        );
        assert!(!workspace.path("out/quantize_config.json").exists());

        let config = &json(&workspace.path("out/config.json"))["quantization_config"];
        let group = &config["config_groups"]["group_0"];
        assert_eq!(config["quant_method"], "compressed-tensors");
        assert_eq!((&group["format"], &group["weights"]["num_bits"]), (&json!("pack-quantized"), &json!(4)));
        assert_eq!(group["weights"]["group_size"], GROUP);
        assert_eq!(group["weights"]["symmetric"], tool.is_symmetric());

        let told = report(&workspace.path("out"));
        let record = told.tensors.iter().find(|tensor| tensor.name.ends_with("0.mlp.up_proj.weight"));
        let record = record.expect("a record");
        assert_eq!(record.action, "re-labelled");
        assert!(record.reason.starts_with("re-labelled: "), "{}", record.reason);
        let metrics = record.metrics.as_ref().expect("metrics");
        assert_eq!((metrics.max_abs_error, metrics.sqnr_note.as_deref()), (0.0, Some("nothing was lost")));
        assert!(told.balance.balanced);

        // What is written is a source that is re-labelled, to the last byte.
        fs::rename(workspace.path("model"), workspace.path("first")).expect("the model");
        fs::rename(workspace.path("out"), workspace.path("model")).expect("the output");
        workspace.run(&workspace.recipe("  - stage: convert\n  - stage: validate\n")).exits(0);
        assert!(tensors(&workspace.path("out")) == written, "{tool:?}");
        let again = &json(&workspace.path("out/config.json"))["quantization_config"];
        assert_eq!(again, config);
    }
}

#[test]
fn codes_are_decoded_to_be_quantized_again_with_a_warning() {
    let workspace = Workspace::with(&Tool::GptqAsymmetric.llama());
    let recipe = workspace.recipe("  - stage: quantize-int8\n  - stage: validate\n");
    let said = workspace.run(&recipe).exits(0);
    assert!(said.stderr.contains("codes of 4 bits (gptq) already"), "{}", said.stderr);
    let told = report(&workspace.path("out"));
    let record =
        told.tensors.iter().find(|tensor| tensor.name.ends_with("0.mlp.up_proj.weight")).expect("a record");
    assert_eq!(record.action, "quantized");
    assert!(record.metrics.as_ref().and_then(|metrics| metrics.sqnr_db).is_some_and(|sqnr| sqnr > 35.0));

    // Left alone, they are written as what they mean.
    let skips = "  - stage: resolve-skips\n    skip_layer_names: [mlp]\n  - stage: quantize-int8\n";
    workspace.run(&workspace.recipe(skips)).exits(0);
    let written = tensors(&workspace.path("out"));
    for (name, rows, columns) in &LINEARS[4..] {
        let kept = &written[&format!("model.layers.1.{name}.weight")];
        assert_eq!((kept.dtype.as_str(), &kept.shape), ("F16", &vec![*rows, *columns]));
        assert!(kept.bytes == bytes_of(&weights(false, *rows, *columns)), "{name}");
    }
}

#[test]
fn only_the_rest_is_quantized_beside_codes_that_are_re_labelled() {
    let mut model = Tool::GptqSymmetric.llama();
    model.add("model.layers.0.mlp.extra_proj.weight", &[128, 128]);
    let workspace = Workspace::with(&model);
    let said = workspace.run(&workspace.recipe("  - stage: convert\n  - stage: quantize-int8\n")).exits(0);
    assert!(!said.stderr.contains("already"), "{}", said.stderr);
    let written = tensors(&workspace.path("out"));
    assert_eq!(written["model.layers.0.mlp.extra_proj.weight_packed"].shape, [128, 32]);
    assert_eq!(written["model.layers.0.mlp.up_proj.weight_packed"].shape, [256, 16]);
    let config = &json(&workspace.path("out/config.json"))["quantization_config"];
    assert_eq!(config["config_groups"].as_object().expect("groups").len(), 2);
}

#[test]
fn an_order_of_columns_cannot_be_converted_and_can_be_left() {
    let mut model = Tool::GptqSymmetric.llama();
    let module = "model.layers.1.mlp.down_proj";
    model = model.without(&format!("{module}.g_idx"));
    let order = (0..256).flat_map(|column: usize| ((column % 8) as i32).to_le_bytes()).collect();
    model.add_bytes(&format!("{module}.g_idx"), Dtype::I32, &[256], order);
    let workspace = Workspace::with(&model);
    let found = workspace.plan_findings(&workspace.recipe("  - stage: convert\n"));
    assert!(found.contains("plan::inexact") && found.contains("g_idx"), "{found}");
    assert!(found.contains("1 of 14 tensors"), "{found}");

    let leave = "  - stage: convert\n    inexact: leave\n  - stage: validate\n";
    workspace.run(&workspace.recipe(leave)).exits(0);
    let kept = &tensors(&workspace.path("out"))[&format!("{module}.weight")];
    let meant = (0..128 * 256).map(|n| {
        let (row, column) = (n / 256, n % 256);
        f16::from_f32((code(row, column) as f32 - 8.0) * scale(row, column % 8).to_f32())
    });
    assert!(kept.bytes == bytes_of(&meant.collect::<Vec<f16>>()));

    let plain = Workspace::with(&Model::llama());
    let found = plain.plan_findings(&plain.recipe("  - stage: convert\n"));
    assert!(found.contains("plan::nothing-to-convert"), "{found}");
}

#[test]
fn inspect_tells_how_tensors_are_stored() {
    let mut model = Tool::Awq.llama();
    model.add_bytes("model.layers.0.odd.weight", Dtype::U32, &[4, 4], vec![0; 64]);
    let workspace = Workspace::with(&model);
    let value = workspace.monoquant(["inspect", "model", "--json"]).exits(0).json();
    let tensors = value["tensors"].as_array().expect("tensors");
    let of = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).expect("the tensor");
    let up = "model.layers.0.mlp.up_proj";
    assert_eq!(of("model.layers.0.odd.weight")["encoding"], "unknown");
    assert_eq!(of(&format!("{up}.qweight"))["encoding"], "awq");

    let workspace = Workspace::with(&Tool::Awq.llama());
    let value = workspace.monoquant(["inspect", "model", "--json"]).exits(0).json();
    let tensors = value["tensors"].as_array().expect("tensors");
    let of = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).expect("the tensor");
    assert_eq!(of(&format!("{up}.qweight"))["encoding"], "awq");
    assert_eq!(of(&format!("{up}.scales"))["part_of"], format!("{up}.qweight"));
    assert_eq!(of("lm_head.weight")["encoding"], "unquantized");
    assert_eq!(value["parameters"], workspace_parameters());
    let text = workspace.monoquant(["inspect", "model"]).exits(0).stdout;
    assert!(text.contains("awq"), "{text}");
}

/// Parameters of [`Model::llama`].
fn workspace_parameters() -> u64 {
    let workspace = Workspace::with(&Model::llama());
    workspace.monoquant(["inspect", "model", "--json"]).exits(0).json()["parameters"]
        .as_u64()
        .expect("a number")
}

const EXPERTS: usize = 2;
const HIDDEN: usize = 128;
const INNER: usize = 64;

/// The values of E2M1.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Weight (row, column) of an expert's matrix [out, in], as MXFP4 stores it.
fn mx_weight(seed: usize, row: usize, column: usize) -> f32 {
    let nibble = code(seed + row, column);
    let magnitude = E2M1[(nibble & 7) as usize];
    let exponent = i32::from(exponent(seed, row, column / 32)) - 127;
    (if nibble & 8 == 0 { magnitude } else { -magnitude }) * 2_f32.powi(exponent)
}

fn exponent(seed: usize, row: usize, group: usize) -> u8 {
    (118 + (seed + row * 5 + group) % 5) as u8
}

/// A model of gpt-oss's family whose experts are MXFP4.
pub fn gpt_oss() -> Model {
    let mut model = Model::llama()
        .with_config("model_type", json!("gpt_oss"))
        .with_config("architectures", json!(["GptOssForCausalLM"]))
        .with_config("num_local_experts", json!(EXPERTS))
        .with_config("quantization_config", json!({"quant_method": "mxfp4"}));
    for layer in 0..2 {
        for name in ["gate_proj", "up_proj", "down_proj"] {
            model = model.without(&format!("model.layers.{layer}.mlp.{name}.weight"));
        }
        let experts = format!("model.layers.{layer}.mlp.experts");
        for (name, rows, columns) in [("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)] {
            let (mut blocks, mut scales) = (Vec::new(), Vec::new());
            for expert in 0..EXPERTS {
                let seed = seed(name, expert);
                for row in 0..rows {
                    blocks.extend(
                        (0..columns / 2)
                            .map(|n| (code(seed + row, 2 * n) | code(seed + row, 2 * n + 1) << 4) as u8),
                    );
                    scales.extend((0..columns / 32).map(|group| exponent(seed, row, group)));
                }
            }
            model.add_bytes(
                &format!("{experts}.{name}_blocks"),
                Dtype::U8,
                &[EXPERTS, rows, columns / 32, 16],
                blocks,
            );
            model.add_bytes(
                &format!("{experts}.{name}_scales"),
                Dtype::U8,
                &[EXPERTS, rows, columns / 32],
                scales,
            );
            model.add(&format!("{experts}.{name}_bias"), &[EXPERTS, rows]);
        }
        model.add(&format!("model.layers.{layer}.mlp.router.weight"), &[EXPERTS, HIDDEN]);
    }
    model
}

fn seed(name: &str, expert: usize) -> usize {
    expert * 100 + if name == "down_proj" { 50_000 } else { 0 }
}

fn bf16_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
}

/// The experts' stacks as an unquantized model holds them: [experts, in, out].
fn unquantized_stack(name: &str, rows: usize, columns: usize) -> Vec<u8> {
    let all = (0..EXPERTS).flat_map(|expert| {
        (0..columns)
            .flat_map(move |column| (0..rows).map(move |row| mx_weight(seed(name, expert), row, column)))
    });
    bf16_bytes(all)
}

#[test]
fn experts_of_gpt_oss_are_written_as_its_own_files_hold_them() {
    let workspace = Workspace::with(&gpt_oss());
    // Attention alone is quantized; the experts are kept.
    let skips = "  - stage: resolve-skips\n    skip_layer_types: [Experts]\n  - stage: quantize-int8\n  - stage: validate\n";
    workspace.run(&workspace.recipe(skips)).exits(0);
    let written: BTreeMap<String, Stored> = tensors(&workspace.path("out"));
    for (name, rows, columns) in [("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)] {
        let stack = &written[&format!("model.layers.1.mlp.experts.{name}")];
        assert_eq!((stack.dtype.as_str(), &stack.shape), ("BF16", &vec![EXPERTS, columns, rows]), "{name}");
        assert!(stack.bytes == unquantized_stack(name, rows, columns), "{name}");
    }
    let told = report(&workspace.path("out"));
    assert!(told.balance.balanced);
}

#[test]
fn gate_and_up_of_gpt_oss_are_taken_apart() {
    // The same weights as an unquantized model of the family gives the same codes.
    let mut plain = gpt_oss();
    plain.config.remove("quantization_config");
    for layer in 0..2 {
        let experts = format!("model.layers.{layer}.mlp.experts");
        for (name, rows, columns) in [("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)] {
            plain = plain
                .without(&format!("{experts}.{name}_blocks"))
                .without(&format!("{experts}.{name}_scales"));
            let bytes = unquantized_stack(name, rows, columns);
            plain.add_bytes(&format!("{experts}.{name}"), Dtype::BF16, &[EXPERTS, columns, rows], bytes);
        }
    }
    let quantized = |model: &Model| {
        let workspace = Workspace::with(model);
        // No engine loads experts of this family that are taken apart, so they are written as floating-point numbers.
        let stages = "  - stage: load\n    model: model\n  - stage: resolve-skips\n    quantize_anyway: [Experts]\n\
                      \x20 - stage: quantize-int4\n    group_size: 32\n  - stage: validate\n\
                      \x20 - stage: export\n    path: out\n    format: dequantized\n";
        workspace.run(&workspace.whole_recipe(stages)).exits(0);
        let told = report(&workspace.path("out"));
        assert!(
            told.tensors.iter().any(|t| t.name.ends_with("experts.gate_up_proj") && t.action == "quantized")
        );
        let written = tensors(&workspace.path("out")).into_iter();
        written.map(|(name, tensor)| (name, (tensor.shape, tensor.bytes))).collect::<BTreeMap<_, _>>()
    };
    assert!(quantized(&gpt_oss()) == quantized(&plain));
}
