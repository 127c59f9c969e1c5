//! Files of activation statistics from strangers, and how their names and rows find the matrices of a model: experts, fused
//! projections, towers.

use std::path::{Path, PathBuf};

use crate::support::statistics::{Module, safetensors};
use crate::support::{Model, Workspace, report, root};
use monoquant::calibration::{self, ModuleStatistics};
use monoquant::exit::Exit;
use monoquant::finding::Finding;
use monoquant::plan::Plan;
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/calibration").join(name)
}

fn code(bytes: &[u8]) -> &'static str {
    calibration::parse(bytes).expect_err("no statistics").code
}

/// A tensor of a GGUF file: name, shape (fastest axis first), offset and values.
struct Entry {
    name: String,
    shape: Vec<u64>,
    offset: u64,
    values: Vec<f32>,
}

/// Sums and counts of modules, one after another in the data; the matrices of a module have `sums.len() / counts.len()` columns.
fn entries(modules: &[(&str, &[f32], &[f32])]) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    for (name, sums, counts) in modules {
        let columns = (sums.len() / counts.len()) as u64;
        let matrices = counts.len() as u64;
        for (part, shape, values) in
            [("in_sum2", [columns, matrices], sums), ("counts", [1, matrices], counts)]
        {
            let offset = out
                .last()
                .map_or(0, |last| (last.offset + 4 * last.values.len() as u64).next_multiple_of(32));
            let name = format!("{name}.weight.{part}");
            out.push(Entry { name, shape: shape.to_vec(), offset, values: values.to_vec() });
        }
    }
    out
}

/// An importance matrix as GGUF.
fn gguf(entries: &[Entry]) -> Vec<u8> {
    let mut data = Vec::new();
    for entry in entries {
        data.resize(data.len().max(entry.offset as usize), 0);
        data.extend(entry.values.iter().flat_map(|value| value.to_le_bytes()));
    }
    with_header(entries, &data)
}

/// An importance matrix as GGUF whose header is that of the entries, whatever the data.
fn with_header(entries: &[Entry], data: &[u8]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.bytes());
    };
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(2_u64.to_le_bytes());
    text(&mut out, "general.type");
    out.extend(8_u32.to_le_bytes());
    text(&mut out, "imatrix");
    text(&mut out, "imatrix.chunk_count");
    out.extend(4_u32.to_le_bytes());
    out.extend(64_u32.to_le_bytes());
    for entry in entries {
        text(&mut out, &entry.name);
        out.extend((entry.shape.len() as u32).to_le_bytes());
        out.extend(entry.shape.iter().flat_map(|axis| axis.to_le_bytes()));
        out.extend(0_u32.to_le_bytes());
        out.extend(entry.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// Different numbers for every column and seed.
fn sums(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|column| 1.0 + ((column * 7 + seed * 5) % 13) as f32).collect()
}

#[test]
fn sizes_from_a_stranger_allocate_nothing() {
    let plain = || entries(&[("blk.0.attn_q", &[1.0, 2.0, 3.0, 4.0], &[8.0])]);
    let read = calibration::parse(&gguf(&plain())).expect("statistics");
    assert_eq!(read.modules[0].sums, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!((read.samples, read.tokens), (Some(64), None));
    // More than the file holds, and more than a number holds.
    for shape in [vec![100, 1], vec![u64::MAX, 1], vec![1 << 40, 1 << 40], vec![1 << 62, 1]] {
        let mut claimed = plain();
        claimed[0].shape = shape;
        assert_eq!(code(&gguf(&claimed)), "calibration::truncated");
    }
    let mut beyond = plain();
    beyond[1].offset = u64::MAX - 7;
    assert_eq!(code(&with_header(&beyond, &[0; 64])), "calibration::truncated");
    // A hundred tensors, each of them all of the data.
    let names: Vec<String> = (0..100).map(|number| format!("blk.{number}.attn_q")).collect();
    let values = vec![1.0_f32; 1000];
    let all = names.iter().flat_map(|name| entries(&[(name.as_str(), &values, &[1.0])]));
    let overlapping: Vec<Entry> = all.map(|entry| Entry { offset: 0, ..entry }).collect();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(code(&with_header(&overlapping, &data)), "calibration::truncated");
    // Entries of the older file that it cannot hold.
    let mut many = i32::MAX.to_le_bytes().to_vec();
    many.extend(4_i32.to_le_bytes());
    many.extend(b"blk0");
    assert_eq!(code(&many), "calibration::bad-count");
    let mut wide = 1_i32.to_le_bytes().to_vec();
    wide.extend(4_i32.to_le_bytes());
    wide.extend(b"blk0");
    wide.extend(1_i32.to_le_bytes());
    wide.extend(i32::MAX.to_le_bytes());
    wide.extend([0; 16]);
    assert_eq!(code(&wide), "calibration::bad-count");
}

#[test]
fn statistics_of_nothing_and_twice_the_same_are_refused() {
    let workspace = Workspace::new();
    for (shape, sums, counts) in
        [(&[0, 4][..], &[][..], &[][..]), (&[0], &[], &[1]), (&[2, 0], &[], &[1, 1]), (&[3], &[1.0; 3], &[])]
    {
        let bytes = safetensors(&[("model.layers.0.mlp.up_proj", shape, sums, counts)], None);
        assert_eq!(code(&bytes), "calibration::wrong-shape", "{shape:?}");
        // Nor does showing such a file end otherwise.
        workspace.write("empty", &bytes);
        workspace.monoquant(["inspect", "empty"]).exits(3);
    }
    let twice = entries(&[("blk.0.attn_q", &[1.0], &[1.0]), ("blk.0.attn_q", &[2.0], &[1.0])]);
    assert_eq!(code(&gguf(&twice)), "calibration::same-name");
    let mut older = 2_i32.to_le_bytes().to_vec();
    for _ in 0..2 {
        older.extend(4_i32.to_le_bytes());
        older.extend(b"blk0");
        older.extend([1_i32.to_le_bytes(), 1_i32.to_le_bytes(), 3.0_f32.to_le_bytes()].concat());
    }
    assert_eq!(code(&older), "calibration::same-name");
}

#[test]
fn what_bad_numbers_are_called_does_not_depend_on_the_format() {
    let of = |sums: &[f32], count: f32| {
        let dat = |sums: &[f32], count: i32| {
            let mut out = 1_i32.to_le_bytes().to_vec();
            out.extend(4_i32.to_le_bytes());
            out.extend(b"blk0");
            out.extend(count.to_le_bytes());
            out.extend((sums.len() as i32).to_le_bytes());
            out.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
            out
        };
        let shape = [sums.len()];
        [
            code(&gguf(&entries(&[("blk.0.attn_q", sums, &[count])]))),
            code(&safetensors(&[("a", &shape, sums, &[count as i64])], None)),
            code(&dat(sums, count as i32)),
        ]
    };
    for sums in [[1.0, f32::NAN], [f32::INFINITY, 1.0], [1.0, -1.0], [0.0, 0.0]] {
        assert_eq!(of(&sums, 4.0), ["calibration::bad-value"; 3], "{sums:?}");
    }
    for count in [0.0, -3.0] {
        assert_eq!(of(&[1.0, 2.0], count), ["calibration::bad-count"; 3], "{count}");
    }
    // Figures beside the sums may be anything: those of the first layer are NaN in a real file.
    let real = std::fs::read(fixture("tiny-llama.imatrix.gguf")).expect("a fixture");
    assert!(real.as_chunks::<4>().0.iter().any(|bytes| f32::from_le_bytes(*bytes).is_nan()));
    assert_eq!(calibration::parse(&real).expect("statistics").modules.len(), 28);
}

#[test]
fn equal_inputs_have_equal_numbers_in_an_importance_matrix() {
    for name in ["tiny-llama.imatrix.gguf", "tiny-llama.imatrix.dat"] {
        let read = calibration::read(&fixture(name)).expect("statistics");
        let of = |part: &str| -> &ModuleStatistics {
            read.modules.iter().find(|module| module.name == part).expect("a module")
        };
        for layer in 0..4 {
            let sums = |part: &str| &of(&format!("blk.{layer}.{part}")).sums;
            assert_eq!(sums("attn_q"), sums("attn_k"));
            assert_eq!(sums("attn_q"), sums("attn_v"));
            assert_eq!(sums("ffn_gate"), sums("ffn_up"));
        }
    }
}

#[test]
fn another_collector_gives_nearly_the_same_importance() {
    // Other first tokens of the samples: single columns differ by much, the importances of a module by little.
    let own = calibration::read(&root().join("examples/calibration/tiny-llama.stats.safetensors"));
    let (own, other) = (own.expect("statistics"), calibration::read(&fixture("tiny-llama.imatrix.gguf")));
    let other = other.expect("statistics");
    for module in &own.modules {
        let (names, _) = calibration::names::in_importance_matrix(&module.name);
        let same = other.modules.iter().find(|other| names.contains(&other.name)).expect("a module");
        let columns = module.sums.len() as u64;
        let a = module.importance(columns, None).expect("columns").expect("data");
        let b = same.importance(columns, None).expect("columns").expect("data");
        let apart: f32 = a.columns().iter().zip(b.columns()).map(|(a, b)| (a - b).abs()).sum();
        assert!(apart / columns as f32 <= 0.035, "{}: {apart}", module.name);
    }
}

/// The model of the fixtures called `tiny-moe`: one layer, hidden size 32, inner size 64, 4 experts.
pub fn mixtral(is_stacked: bool) -> Model {
    let mut model = Model::sized(32, 64).with_config("model_type", "mixtral".into());
    for (key, value) in [("num_hidden_layers", 1), ("num_local_experts", 4)] {
        model = model.with_config(key, value.into());
    }
    for layer in 0..2 {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            model = model.without(&format!("model.layers.{layer}.mlp.{part}.weight"));
        }
    }
    let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    for part in attention.iter().chain(&["input_layernorm", "post_attention_layernorm"]) {
        model = model.without(&format!("model.layers.1.{part}.weight"));
    }
    if is_stacked {
        model.add("model.layers.0.mlp.experts.gate_up_proj", &[4, 128, 32]);
        model.add("model.layers.0.mlp.experts.down_proj", &[4, 32, 64]);
        model.add("model.layers.0.mlp.gate.weight", &[4, 32]);
        return model;
    }
    for expert in 0..4 {
        for (part, rows, columns) in [("w1", 64, 32), ("w3", 64, 32), ("w2", 32, 64)] {
            let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight");
            model.add(&name, &[rows, columns]);
        }
    }
    model.add("model.layers.0.block_sparse_moe.gate.weight", &[4, 32]);
    model
}

fn weighed(workspace: &Workspace, file: &str, on_missing: &str) -> Result<Plan, Finding> {
    let stages = format!(
        "  - stage: load\n    model: model\n    calibration: {{file: {file}, on_missing: {on_missing}}}\n  - stage: quantize-int4\n    \
         observer: mse\n    group_size: 32\n  - stage: validate\n  - stage: export\n    path: out\n    format: dequantized\n"
    );
    workspace.plan(&workspace.whole_recipe(&stages)).map_err(|failure| {
        let finding = failure.findings.into_iter().find(Finding::is_error).expect("an error");
        assert!(!finding.labels.is_empty(), "{} has a place", finding.code);
        if finding.code.starts_with("calibration::") {
            assert_eq!(failure.exit, Exit::BadModel);
        }
        finding
    })
}

/// The importance of a module's columns in a plan.
fn columns<'p>(plan: &'p Plan, module: &str) -> Option<&'p [f32]> {
    let mut tasks = plan.tasks.numbered();
    let found =
        tasks.find(|(_, task)| task.module(&plan.model) == module && task.matrix(&plan.model).is_some());
    plan.weighing.of(found.expect("a matrix").0).map(monoquant::quant::Importance::columns)
}

fn copy(workspace: &Workspace, name: &str) {
    std::fs::copy(fixture(name), workspace.path(name)).expect("a copy");
}

#[test]
fn experts_take_their_own_row_whatever_the_file_and_the_checkpoint() {
    for is_stacked in [false, true] {
        let workspace = Workspace::with(&mixtral(is_stacked));
        let module = |expert: usize, part: &str, stacked: &str| {
            if is_stacked {
                format!("model.layers.0.mlp.experts.{expert}.{stacked}")
            } else {
                format!("model.layers.0.block_sparse_moe.experts.{expert}.{part}")
            }
        };
        let mut rows: Vec<Vec<Vec<f32>>> = Vec::new();
        for name in ["tiny-moe.imatrix.gguf", "tiny-moe.imatrix.dat", "tiny-moe.from-dat.gguf"] {
            copy(&workspace, name);
            // Expert 3 never got a token, whether the file marks it or holds ones.
            let refused = weighed(&workspace, name, "error").expect_err("an expert without data");
            assert_eq!(refused.code, "plan::missing-statistics", "{name}");
            let help = refused.help.join("\n");
            assert!(help.contains(&module(3, "w2", "down_proj")), "{help}");
            let plan = weighed(&workspace, name, "warn").expect("a plan");
            assert!(plan.warnings.iter().any(|finding| finding.code == "plan::missing-statistics"));
            assert!(!plan.warnings.iter().any(|finding| finding.code == "plan::unknown-statistics"));
            let used = plan.weighing.of_stage(monoquant::ids::StageId::new(1)).expect("statistics");
            assert_eq!((used.missing.len(), used.matrices), (3, 13), "{name}");
            assert_eq!(used.thin, []);
            let mut found = Vec::new();
            for (part, stacked) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
                assert_eq!(columns(&plan, &module(3, part, stacked)), None, "{name}");
                for expert in 0..3 {
                    let row = columns(&plan, &module(expert, part, stacked)).expect("a row");
                    assert_eq!(row.len(), if part == "w2" { 64 } else { 32 });
                    found.push(row.to_vec());
                }
            }
            // Experts see different tokens, and w1 and w3 of one the same.
            assert_ne!(found[0], found[1]);
            assert_eq!(found[0], found[3]);
            rows.push(found);
        }
        for (a, b) in rows[0].iter().flatten().zip(rows[1].iter().chain(&rows[2]).flatten()) {
            assert!((a - b).abs() <= 2e-6 * b, "{a} {b}");
        }
    }
}

#[test]
fn statistics_of_a_stack_serve_experts_that_lie_one_by_one() {
    for is_stacked in [false, true] {
        let workspace = Workspace::with(&mixtral(is_stacked));
        let (inward, outward) = (sums(4 * 32, 1), sums(4 * 64, 2));
        let attention = sums(32, 3);
        let names: Vec<String> = ["q_proj", "k_proj", "v_proj", "o_proj"]
            .map(|part| format!("model.layers.0.self_attn.{part}"))
            .into();
        let mut modules: Vec<Module<'_>> =
            names.iter().map(|name| (name.as_str(), &[32][..], &attention[..], &[1000][..])).collect();
        let counts = [1000, 1000, 1000, 20];
        modules.push(("model.layers.0.mlp.experts.gate_up_proj", &[4, 32], &inward, &counts));
        modules.push(("model.layers.0.mlp.experts.down_proj", &[4, 64], &outward, &counts));
        workspace.write("stats", safetensors(&modules, Some(100)));
        let plan = weighed(&workspace, "stats", "error").expect("a plan");
        let module = if is_stacked { "mlp.experts.2.down_proj" } else { "block_sparse_moe.experts.2.w2" };
        let row = columns(&plan, &format!("model.layers.0.{module}")).expect("a row");
        let mean = outward[128..192].iter().sum::<f32>() / 64.0;
        for (found, sum) in row.iter().zip(&outward[128..192]) {
            assert!((found - sum / mean).abs() <= 1e-6 * found, "{found}");
        }
        // An expert that hardly any token was routed to is named.
        let thin = &plan.weighing.of_stage(monoquant::ids::StageId::new(1)).expect("statistics").thin;
        assert_eq!(thin.len(), 3);
        assert!(thin.iter().all(|(module, tokens)| module.contains("experts.3.") && *tokens == 20));

        // Five experts where the model has four, and three.
        for experts in [5, 3] {
            let (sums, counts) = (sums(experts * 32, 1), vec![9; experts]);
            let last = modules.len() - 2;
            let shape = [experts, 32];
            let mut others = modules.clone();
            others[last] = ("model.layers.0.mlp.experts.gate_up_proj", &shape, &sums, &counts);
            workspace.write("stats", safetensors(&others, Some(100)));
            let refused = weighed(&workspace, "stats", "error").expect_err("another number of experts");
            assert_eq!(refused.code, "calibration::wrong-length");
            let words = format!("{} numbers, and the 4 experts", experts * 32);
            assert!(refused.message.contains(&words), "{}", refused.message);
        }
    }
}

#[test]
fn fused_projections_find_the_statistics_of_their_parts_and_the_other_way_round() {
    // A model that fuses, and a file that does not.
    let mut model = Model::llama();
    for layer in 0..2 {
        for part in
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
        {
            model = model.without(&format!("model.layers.{layer}.{part}.weight"));
        }
        model.add(&format!("model.layers.{layer}.self_attn.qkv_proj.weight"), &[256, 128]);
        model.add(&format!("model.layers.{layer}.mlp.gate_up_proj.weight"), &[512, 128]);
    }
    let fused = Workspace::with(&model.with_config("model_type", "phi3".into()));
    let plain = Workspace::with(&Model::llama());
    let (narrow, wide) = (sums(128, 1), sums(256, 2));
    let names = |parts: &[&str]| -> Vec<String> {
        (0..2).flat_map(|layer| parts.iter().map(move |part| format!("blk.{layer}.{part}"))).collect()
    };
    let file = |names: &[String]| {
        let modules: Vec<(&str, &[f32], &[f32])> = names
            .iter()
            .map(|name| {
                (name.as_str(), if name.ends_with("down") { &wide[..] } else { &narrow[..] }, &[8.0][..])
            })
            .collect();
        gguf(&entries(&modules))
    };
    let split =
        file(&names(&["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]));
    let joined = file(&names(&["attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]));
    let phi = file(&names(&["attn_qkv", "attn_output", "ffn_up", "ffn_down"]));
    for (workspace, bytes, matrices) in
        [(&fused, &split, 8), (&fused, &phi, 8), (&plain, &joined, 14), (&plain, &split, 14)]
    {
        workspace.write("stats.gguf", bytes);
        let plan = weighed(workspace, "stats.gguf", "error").expect("a plan");
        assert_eq!(
            plan.weighing.of_stage(monoquant::ids::StageId::new(1)).expect("statistics").matrices,
            matrices
        );
    }
}

#[test]
fn what_maps_to_nothing_is_listed_and_towers_take_nothing() {
    let mut model = Model::llama();
    model.add("vision_tower.encoder.layers.0.self_attn.q_proj.weight", &[128, 128]);
    let workspace = Workspace::with(&model);
    let (narrow, wide) = (sums(128, 1), sums(256, 2));
    let parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"];
    let names: Vec<String> = (0..2)
        .flat_map(|layer| parts.map(|part| format!("blk.{layer}.{part}")))
        .chain((2..9).map(|layer| format!("blk.{layer}.ssm_in")))
        .collect();
    let mut modules: Vec<(&str, &[f32], &[f32])> =
        names.iter().map(|name| (name.as_str(), &narrow[..], &[8.0][..])).collect();
    modules.push(("blk.0.ffn_down", &wide, &[8.0]));
    modules.push(("blk.1.ffn_down", &wide, &[8.0]));
    workspace.write("stats.gguf", gguf(&entries(&modules)));
    let stages = "  - stage: load\n    model: model\n    calibration: {file: stats.gguf, on_missing: warn}\n\
                  \x20 - stage: resolve-skips\n    quantize_anyway: [Tower]\n  - stage: quantize-int4\n    observer: mse\n\
                  \x20 - stage: export\n    path: out\n    format: dequantized\n";
    let plan = workspace.plan(&workspace.whole_recipe(stages)).expect("a plan");
    let said = |code: &str| {
        let finding = plan.warnings.iter().find(|finding| finding.code == code).expect("a warning");
        format!("{}\n{}", finding.message, finding.help.join("\n"))
    };
    let unknown = said("plan::unknown-statistics");
    assert!(unknown.contains("7 of the 21 modules") && unknown.contains("`blk.2.ssm_in`"), "{unknown}");
    assert!(unknown.contains("and 2 more"), "{unknown}");
    assert!(said("plan::missing-statistics").contains("`vision_tower.encoder.layers.0.self_attn.q_proj`"));

    // Names that all fit nothing are another model's.
    let strange = entries(&[("blk.0.nothing", &narrow, &[8.0])]);
    workspace.write("stats.gguf", gguf(&strange));
    let refused = weighed(&workspace, "stats.gguf", "ignore").expect_err("nothing fits");
    assert_eq!(refused.code, "calibration::unknown-module");
}

#[test]
fn files_are_told_apart_by_content() {
    let workspace = Workspace::new();
    let is = |name: &str, bytes: &[u8]| calibration::is_statistics(&workspace.write(name, bytes));
    for (from, to) in [
        ("tiny-llama.imatrix.gguf", "a.bin"),
        ("tiny-llama.imatrix.dat", "b"),
        ("tiny-llama.bos-stats.safetensors", "c.safetensors"),
    ] {
        let bytes = std::fs::read(fixture(from)).expect("a fixture");
        assert!(is(to, &bytes), "{to}");
        workspace.monoquant(["inspect", to]).exits(0);
    }
    let example = root().join("examples/tiny-llama");
    let weights = std::fs::read(example.join("model-00002-of-00002.safetensors")).expect("weights");
    assert!(!is("d.gguf", &weights));
    assert!(!is("e.safetensors", b"damaged"));
    assert!(!calibration::is_statistics(&example));
    assert!(!calibration::is_statistics(Path::new("/no/such/file.gguf")));
    // What is named as an importance matrix and is none is said to be none.
    assert!(is("f.imatrix", b"x"));
    workspace.monoquant(["inspect", "f.imatrix"]).exits(3);
}

#[test]
fn a_layer_without_statistics_is_measured_without() {
    let workspace = Workspace::with(&mixtral(false));
    copy(&workspace, "tiny-moe.imatrix.gguf");
    let plan = weighed(&workspace, "tiny-moe.imatrix.gguf", "ignore").expect("a plan");
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    monoquant::run::run(&plan, &monoquant::run::Options::default(), &monoquant::run::Silent).expect("a run");
    let told = report(&workspace.path("out"));
    for tensor in told.tensors.iter().filter(|tensor| tensor.action == "quantized") {
        let metrics = tensor.metrics.as_ref().expect("metrics");
        assert!(metrics.sqnr_db.is_some());
        assert_eq!(metrics.weighted_sqnr_db.is_none(), tensor.name.contains("experts.3."), "{}", tensor.name);
    }
    assert!(told.quality.expect("quality").weighted_sqnr_db.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// What is written as GGUF is read as it was, whatever the shapes.
    #[test]
    fn an_importance_matrix_is_read_as_it_was_written(columns in 1..40_usize, matrices in 1..5_usize, seed in 0..100_usize) {
        let values = sums(columns * matrices, seed);
        let counts: Vec<f32> = (0..matrices).map(|matrix| (matrix + 1) as f32).collect();
        let read = calibration::parse(&gguf(&entries(&[("blk.0.ffn_down_exps", &values, &counts)]))).expect("statistics");
        prop_assert_eq!(&read.modules[0].sums, &values);
        for matrix in 0..matrices {
            let row = &values[matrix * columns..][..columns];
            let importance = read.modules[0].importance(columns as u64, Some(matrix)).expect("a row");
            let mean = row.iter().sum::<f32>() / columns as f32;
            // Columns that are all as their count are what the older format has of no data.
            if row.iter().any(|&sum| sum != counts[matrix]) {
                for (found, sum) in importance.expect("data").columns().iter().zip(row) {
                    prop_assert!((found - sum / mean).abs() <= 1e-5 * found);
                }
            }
            prop_assert!(read.modules[0].importance(columns as u64 + 1, Some(matrix)).is_err());
            prop_assert!(read.modules[0].importance(columns as u64, Some(matrices)).is_err() || matrices == 1);
        }
    }

    /// Numbers in the header of a GGUF file that are anything end as an error or as statistics that the file holds.
    #[test]
    fn no_number_in_a_header_makes_a_reader_panic(at in 8..260_usize, value in any::<u64>(), shift in 0..64_u32) {
        let mut bytes = gguf(&entries(&[("blk.0.attn_q", &sums(40, 1), &[8.0]), ("blk.0.ffn_down_exps", &sums(40, 2), &[8.0, 4.0])]));
        let at = at.min(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&(value >> shift).to_le_bytes());
        if let Ok(read) = calibration::parse(&bytes) {
            let held: usize = read.modules.iter().map(|module| 4 * module.sums.len()).sum();
            prop_assert!(held <= bytes.len());
        }
    }
}
