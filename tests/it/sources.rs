//! Models as they are found: links into the Hub's cache, a source in memory, scaled FP8, stacks of experts.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use monoquant::digest::checksum;
use monoquant::finding::Failure;
use monoquant::model;
use monoquant::plan::{self, Limits, Plan};
use monoquant::publish::hidden;
use monoquant::recipe::{self, Overrides};
use monoquant::report::{self, Report};
use monoquant::run::{self, Options, Outcome, Silent};
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::memory::Memory;
use crate::support::{self, Model, Workspace, files, gaussian, json, tensors};

/// Puts a model into a Hub cache as `hf download` does: blobs, and a snapshot of links to them.
#[cfg(unix)]
fn write_to_cache(workspace: &Workspace, model: &Model) {
    model.write(&workspace.path("plain"));
    let repository = workspace.path("cache/models--org--name");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/abc123"));
    for folder in [&blobs, &snapshot, &repository.join("refs")] {
        fs::create_dir_all(folder).expect("a folder");
    }
    for (number, entry) in fs::read_dir(workspace.path("plain")).expect("the model").enumerate() {
        let entry = entry.expect("an entry");
        fs::rename(entry.path(), blobs.join(number.to_string())).expect("a blob");
        let link = snapshot.join(entry.file_name());
        std::os::unix::fs::symlink(format!("../../blobs/{number}"), link).expect("a link");
    }
    fs::write(repository.join("refs/main"), "abc123").expect("a ref");
    fs::remove_dir(workspace.path("plain")).expect("it is empty");
}

#[cfg(unix)]
#[test]
fn a_snapshot_in_the_hubs_cache_is_read_through_its_links() {
    let workspace = Workspace::new();
    write_to_cache(&workspace, &Model::llama());
    let recipe = workspace.recipe("  - stage: quantize-int4\n");
    let run = |name: &str, cache: &str| {
        let mut command = workspace.command(["run", "recipe.yaml", "--model", name]);
        command.env("HF_HUB_CACHE", workspace.path(cache)).output().expect("the binary runs")
    };
    let output = run("hf://org/name", "cache");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What was a link is a file in the output.
    for entry in fs::read_dir(workspace.path("out")).expect("the output") {
        assert!(entry.expect("an entry").file_type().expect("a type").is_file());
    }
    let output = run("hf://org/other", "cache");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hf download org/other"), "{said}");
    Model::llama().write(&workspace.path("model"));
    let from_cache = tensors(&workspace.path("out"));
    workspace.run(&recipe).exits(0);
    assert_eq!(tensors(&workspace.path("out")), from_cache);
}

/// The plan of a recipe whose model is read from a source.
fn plan_from(recipe: &Path, source: &Memory) -> Result<Plan, Failure> {
    let loaded = recipe::load(recipe, &Overrides::default())?;
    plan::compile(plan::draft_from(loaded, Arc::new(source.clone()))?, Limits::default())
}

fn run(plan: &Plan) -> Result<Outcome, Failure> {
    run::run(plan, &Options::default(), &Silent)
}

const STAGES: &str = "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: validate\n  \
                      - stage: export\n    path: out\n    digest: blake3\n";

#[test]
fn a_model_in_memory_is_quantized_as_one_in_a_folder() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/deep/carried.bin", vec![7; 5000]);
    let recipe = workspace.whole_recipe(STAGES);
    let written = || {
        let mut files = files(&workspace.path("out"));
        // Reports have times in them.
        files.retain(|name, _| name != report::FILE_NAME);
        files
    };
    workspace.run(&recipe).exits(0);
    let from_folder = written();
    let hashes = |report: &Report| (report.source.clone(), report.outputs.clone());
    let of_folder = hashes(&support::report(&workspace.path("out")));
    let memory = Memory::of(&workspace.path("model"));
    for folder in ["model", "out"] {
        fs::remove_dir_all(workspace.path(folder)).expect("a folder");
    }
    fs::remove_file(hidden::record(&workspace.path("out"))).expect("a record");
    let first = run(&plan_from(&recipe, &memory).expect("a plan")).expect("a run");
    assert!(written() == from_folder, "other bytes");
    assert_eq!(hashes(&first.report), of_folder);
    // Versions of a source never come back, so nothing is read or made again.
    let again = run(&plan_from(&recipe, &memory).expect("a plan")).expect("a run");
    assert_eq!(hashes(&again.report), of_folder);
    assert!(written() == from_folder);
}

#[test]
fn a_blob_that_is_exchanged_after_its_header_was_read_is_never_used() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.whole_recipe(STAGES);
    let memory = Memory::of(&workspace.path("model"));
    let plan = plan_from(&recipe, &memory).expect("a plan");
    let shard = plan.model.shards.first().expect("a shard").name.clone();
    memory.put(&shard, fs::read(workspace.path("model").join(&shard)).expect("a shard"));
    let failure = run(&plan).expect_err("it changed");
    assert_eq!(failure.findings[0].code, model::code::CHANGED, "{failure}");
    // The same if the weights were asked for ahead.
    let memory = memory.remote();
    let plan = plan_from(&recipe, &memory).expect("a plan");
    memory.put(&shard, memory.get(&shard).expect("a shard").0.to_vec());
    let failure = run(&plan).expect_err("it changed");
    assert_eq!(failure.findings[0].code, model::code::CHANGED, "{failure}");
    memory.put("config.json", b"{".to_vec());
    let failure = plan_from(&recipe, &memory).expect_err("a broken configuration");
    assert_eq!(failure.findings[0].code, model::code::CONFIG, "{failure}");
}

/// Models whose weights are read in every way that there is, each with stages for them.
fn models_to_read() -> Vec<(Model, &'static str)> {
    let fp8 = {
        const UP: &str = "model.layers.0.mlp.up_proj";
        let bytes = (0..256 * 128_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8 & 0xBF).collect();
        let config = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
        let mut model =
            Model::llama().without(&format!("{UP}.weight")).with_config("quantization_config", config);
        model.add_bytes(&format!("{UP}.weight"), Dtype::F8_E4M3, &[256, 128], bytes);
        let scales = [0.01_f32, 0.03].iter().flat_map(|scale| scale.to_le_bytes()).collect();
        model.add_bytes(&format!("{UP}.weight_scale_inv"), Dtype::F32, &[2, 1], scales);
        model
    };
    let int4 = "  - stage: quantize-int4\n";
    vec![
        (Model::llama(), int4),
        (Model::llama(), "  - stage: quantize-int8\n    granularity: tensor\n    observer: mse\n"),
        (Model::llama().in_f64(), int4),
        (experts("qwen3_5_moe", "model.layers.0.mlp.experts", false).stacked, int4),
        (experts("llama4", "model.layers.0.feed_forward.experts", true).stacked, int4),
        (fp8, "  - stage: quantize-int8\n"),
    ]
}

#[test]
fn weights_behind_a_network_are_asked_for_ahead_and_no_byte_otherwise() {
    for (number, (model, stage)) in models_to_read().into_iter().enumerate() {
        let workspace = Workspace::with(&model);
        let stages = format!(
            "  - stage: load\n    model: model\n{stage}  - stage: validate\n  - stage: export\n    path: out\n    digest: blake3\n"
        );
        let recipe = workspace.whole_recipe(&stages);
        let written = || {
            let mut files = files(&workspace.path("out"));
            files.retain(|name, _| name != report::FILE_NAME);
            files
        };
        workspace.run(&recipe).exits(0);
        let from_folder = written();
        let memory = Memory::of(&workspace.path("model")).remote();
        for folder in ["model", "out"] {
            fs::remove_dir_all(workspace.path(folder)).expect("a folder");
        }
        fs::remove_file(hidden::record(&workspace.path("out"))).expect("a record");
        let plan = plan_from(&recipe, &memory).expect("a plan");
        assert!(plan.budget.ahead > 0 && plan.budget.bound > plan.budget.ahead);
        memory.traffic();
        run(&plan).expect("a run");
        let [at_once, ahead] = memory.traffic();
        assert!(written() == from_folder, "other bytes of model {number}");
        let weights: u64 = plan.model.shards.iter().map(|shard| shard.len).sum();
        let others: u64 = plan.model.others.iter().map(|file| file.len).sum();
        assert!(ahead >= weights, "{ahead} of {weights} of model {number}");
        // What is carried over is read to be looked at, and to be copied.
        assert!(at_once <= 2 * others, "{at_once} of model {number} were read at once");
    }
}

/// The value of an FP8 byte (E4M3, without infinities).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn scaled_fp8_is_dequantized_on_the_way() {
    const UP: &str = "model.layers.0.mlp.up_proj";
    // 0x7F and 0xFF are NaN.
    let bytes: Vec<u8> =
        (0..256 * 128_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8 & 0xBF).collect();
    let scales = [0.01_f32, 0.03];
    let config = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let mut model =
        Model::llama().without(&format!("{UP}.weight")).with_config("quantization_config", config);
    model.add_bytes(&format!("{UP}.weight"), Dtype::F8_E4M3, &[256, 128], bytes.clone());
    let stored = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    model.add_bytes(&format!("{UP}.weight_scale_inv"), Dtype::F32, &[2, 1], stored);
    let workspace = Workspace::with(&model);

    workspace.run(&workspace.recipe("  - stage: quantize-int8\n  - stage: validate\n")).exits(0);
    let (written, told) = (tensors(&workspace.path("out")), support::report(&workspace.path("out")));
    assert!(!written.contains_key(&format!("{UP}.weight_scale_inv")));
    assert_eq!(written[&format!("{UP}.weight_packed")].shape, [256, 32]);
    let action =
        |name: &str| told.tensors.iter().find(|tensor| tensor.name == name).map(|t| t.action.as_str());
    assert_eq!(action(&format!("{UP}.weight")), Some("quantized"));
    assert_eq!(action(&format!("{UP}.weight_scale_inv")), Some("consumed"));
    assert!(told.balance.balanced);
    for file in &told.source {
        let bytes = fs::read(workspace.path("model").join(&file.name)).expect("a shard");
        assert_eq!(file.crc64nvme, checksum::text(checksum::of(&bytes)), "{}", file.name);
    }
    let config = json(&workspace.path("out/config.json"));
    assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors");

    // Left alone, it is written as what it means.
    let stages = "  - stage: resolve-skips\n    skip_layer_names: [mlp]\n  - stage: quantize-int8\n  - stage: validate\n";
    workspace.run(&workspace.recipe(stages)).exits(0);
    let kept = &tensors(&workspace.path("out"))[&format!("{UP}.weight")];
    assert_eq!((kept.dtype.as_str(), kept.shape.as_slice()), ("BF16", &[256, 128][..]));
    let meant = bytes.iter().enumerate().map(|(i, byte)| bf16::from_f32(e4m3(*byte) * scales[i / 128 / 128]));
    let meant: Vec<u8> = meant.flat_map(bf16::to_le_bytes).collect();
    assert!(kept.bytes == meant);
}

/// Experts of one layer: their matrices [out, in], as separate tensors and as two stacks.
struct Experts {
    separate: Model,
    stacked: Model,
}

const EXPERTS: usize = 2;
const HIDDEN: usize = 128;
const INNER: usize = 256;

fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])).collect()
}

fn experts(family: &str, module: &str, is_transposed: bool) -> Experts {
    let config = |model: Model| {
        model
            .with_config("model_type", json!(family))
            .with_config("moe_intermediate_size", json!(INNER))
            .with_config("num_experts", json!(EXPERTS))
            .with_config("num_local_experts", json!(EXPERTS))
    };
    let (mut separate, mut stacked) = (config(Model::llama()), config(Model::llama()));
    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
    for expert in 0..EXPERTS {
        let mut part = |part: &str, rows: usize, columns: usize| {
            let values = gaussian(&format!("{part} of {expert}"), rows * columns);
            let name = format!("model.layers.0.mlp.experts.{expert}.{part}.weight");
            separate.add_values(&name, &[rows, columns], &values);
            values
        };
        let mut both = part("gate_proj", INNER, HIDDEN);
        both.extend(part("up_proj", INNER, HIDDEN));
        let back = part("down_proj", HIDDEN, INNER);
        if is_transposed {
            gate_up.extend(transpose(&both, 2 * INNER, HIDDEN));
            down.extend(transpose(&back, HIDDEN, INNER));
        } else {
            gate_up.extend(both);
            down.extend(back);
        }
    }
    let order = |a: usize, b: usize| if is_transposed { [EXPERTS, b, a] } else { [EXPERTS, a, b] };
    stacked.add_values(&format!("{module}.gate_up_proj"), &order(2 * INNER, HIDDEN), &gate_up);
    stacked.add_values(&format!("{module}.down_proj"), &order(HIDDEN, INNER), &down);
    Experts { separate, stacked }
}

#[test]
fn stacks_of_experts_become_one_matrix_an_expert() {
    let families = [
        ("qwen3_5_moe", "model.layers.0.mlp.experts", false),
        ("llama4", "model.layers.0.feed_forward.experts", true),
    ];
    for (family, module, is_transposed) in families {
        let Experts { separate, stacked } = experts(family, module, is_transposed);
        let quantize = |model: &Model| {
            let workspace = Workspace::with(model);
            let stages = "  - stage: load\n    model: model\n  - stage: quantize-int4\n    symmetric: true\n  - stage: validate\n\
                          \x20 - stage: export\n    path: out\n    target: vllm\n    digest: blake3\n\
                          \x20 - stage: export\n    path: plain\n    format: dequantized\n";
            workspace.run(&workspace.whole_recipe(stages)).exits(0);
            // Checksums and hashes are taken on the way, also of what is read across.
            let report =
                monoquant::report::read(&workspace.path("out/monoquant-report.json")).expect("a report");
            for (folder, files) in [
                ("model", &report.source),
                ("out", &report.outputs[0].files),
                ("plain", &report.outputs[1].files),
            ] {
                for file in files {
                    let bytes =
                        std::fs::read(workspace.path(folder).join(&file.name)).expect("a weight file");
                    let name = &file.name;
                    assert_eq!(file.crc64nvme, checksum::text(checksum::of(&bytes)), "{folder}: {name}");
                    let hash = blake3::hash(&bytes).to_hex().to_string();
                    assert_eq!(file.blake3, Some(hash), "{folder}: {name}");
                }
            }
            (tensors(&workspace.path("out")), tensors(&workspace.path("plain")))
        };
        let (one_by_one, one_by_one_plain) = quantize(&separate);
        let (split, plain) = quantize(&stacked);
        for expert in 0..EXPERTS {
            for part in ["gate_proj", "up_proj", "down_proj"] {
                for tensor in ["weight_packed", "weight_scale", "weight_shape"] {
                    let found = &split[&format!("{module}.{expert}.{part}.{tensor}")];
                    let meant = &one_by_one[&format!("model.layers.0.mlp.experts.{expert}.{part}.{tensor}")];
                    assert_eq!(found.shape, meant.shape, "{family}: {expert} {part} {tensor}");
                    assert!(found.bytes == meant.bytes, "{family}: {expert} {part} {tensor}");
                }
            }
        }
        // Written out as numbers, a stack is a stack, in its own order.
        let down = &plain[&format!("{module}.down_proj")];
        let shape = if is_transposed { [EXPERTS, INNER, HIDDEN] } else { [EXPERTS, HIDDEN, INNER] };
        assert_eq!(down.shape, shape, "{family}");
        let meant: Vec<u8> = (0..EXPERTS)
            .flat_map(|expert| {
                let name = format!("model.layers.0.mlp.experts.{expert}.down_proj.weight");
                let pairs = one_by_one_plain[&name].bytes.chunks_exact(2);
                let matrix: Vec<f32> = pairs.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
                if is_transposed { transpose(&matrix, HIDDEN, INNER) } else { matrix }
            })
            .flat_map(|value| bf16::from_f32(value).to_le_bytes())
            .collect();
        assert!(down.bytes == meant, "{family}");
    }
}

#[test]
fn an_export_before_the_stage_that_quantizes_keeps_every_bit_of_f64() {
    let llama4 = experts("llama4", "model.layers.0.feed_forward.experts", true);
    for model in [Model::llama().in_f64(), llama4.stacked.in_f64()] {
        let workspace = Workspace::with(&model);
        let stages = "  - stage: load\n    model: model\n  - stage: quantize-int8\n    targets: ['**.o_proj']\n  - stage: validate\n\
                      \x20 - stage: export\n    path: early\n  - stage: quantize-int4\n    symmetric: true\n  - stage: export\n    path: out\n";
        workspace.run(&workspace.whole_recipe(stages)).exits(0);
        let [source, early, out] = ["model", "early", "out"].map(|folder| tensors(&workspace.path(folder)));
        let mut quantized_later = 0;
        for (name, tensor) in &source {
            let Some(kept) = early.get(name) else { continue };
            assert_eq!(tensor.dtype, "F64");
            assert!(tensor.bytes == kept.bytes, "{name}");
            quantized_later += usize::from(!out.contains_key(name));
        }
        assert!(quantized_later >= 10, "{quantized_later}");
    }
}
