//! What is wrong with a recipe in view of its model: the reports as they are drawn. Nothing is read but headers, nothing is
//! written.

use std::fs;

use monoquant::exit::Exit;
use monoquant::finding::Failure;
use monoquant::plan::{Limits, Plan};
use monoquant::recipe::Overrides;
use serde_json::json;

use crate::support::headers::{FixtureTensor, write_sparse};
use crate::support::{Model, Workspace, plan_with, root};

const INT4: &str = "  - stage: quantize-int4\n";

#[track_caller]
fn failure(workspace: &Workspace, stages: &str) -> Failure {
    workspace.plan(&workspace.recipe(stages)).err().unwrap_or_else(|| panic!("no error in\n{stages}"))
}

/// Checks the exit status and holds the drawn report.
macro_rules! assert_report {
    ($name:literal, $exit:ident, $workspace:expr, $stages:expr) => {
        let workspace = &$workspace;
        let failure = failure(workspace, $stages);
        assert_eq!(failure.exit, Exit::$exit, "{failure}");
        insta::assert_snapshot!($name, workspace.drawn(&failure.findings));
    };
}

#[test]
fn a_pattern_that_matches_nothing_names_the_nearest() {
    let workspace = Workspace::with(&Model::llama());
    assert_report!(
        "unmatched-patterns",
        BadRecipe,
        workspace,
        "  - stage: resolve-skips\n    modules_to_not_convert: [self_attn.q_prj, \"model.layers.{5,6}.**\", \"re:.*mlp.gate$\"]\n    quantize_anyway: [lm_haed]\n  - stage: quantize-int4\n    targets: [mpl]\n"
    );
}

#[test]
fn a_group_size_that_divides_no_row_names_all_layers() {
    let workspace = Workspace::with(&Model::sized(192, 320));
    assert_report!("indivisible", BadRecipe, workspace, "  - stage: quantize-int4\n    group_size: 128\n");
}

#[test]
fn siblings_with_different_decisions_are_told_once_for_all_layers() {
    let workspace = Workspace::with(&Model::llama());
    assert_report!(
        "split-siblings-kept",
        BadRecipe,
        workspace,
        "  - stage: resolve-skips\n    skip_layer_names: [k_proj]\n  - stage: quantize-int4\n"
    );
    assert_report!(
        "split-siblings-schemes",
        BadRecipe,
        workspace,
        "  - stage: quantize-int4\n    targets: [q_proj, gate_proj]\n  - stage: quantize-int8\n"
    );
}

#[test]
fn a_stage_that_claims_nothing_is_an_error() {
    let workspace = Workspace::with(&Model::llama());
    assert_report!(
        "nothing-to-quantize",
        BadRecipe,
        workspace,
        "  - stage: quantize-int4\n  - stage: quantize-int8\n    targets: [mlp]\n"
    );
}

#[test]
fn a_recipe_cannot_want_a_module_and_leave_it_alone() {
    let workspace = Workspace::with(&Model::llama());
    assert_report!(
        "contradicting-skips",
        BadRecipe,
        workspace,
        "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n    quantize_anyway: [Head]\n  - stage: quantize-int4\n"
    );
}

#[test]
fn a_model_that_is_stored_in_an_unknown_way_is_refused() {
    let mut model = Model::llama();
    model.add_bytes("model.layers.0.mlp.extra.weight.absmax", safetensors::Dtype::F32, &[4], vec![0; 16]);
    let workspace = Workspace::with(&model);
    assert_report!("already-quantized", BadModel, workspace, INT4);
    let config = json!({"quant_method": "gptq", "bits": 4});
    let workspace = Workspace::with(&Model::llama().with_config("quantization_config", config));
    assert_report!("already-quantized-elsewhere", BadModel, workspace, INT4);
}

#[test]
fn what_is_no_model_is_told_apart() {
    let workspace = Workspace::new();
    assert_report!("no-model", BadModel, workspace, INT4);
    fs::create_dir(workspace.path("model")).expect("a folder");
    assert_report!("empty-model", BadModel, workspace, INT4);
    workspace.write("model/pytorch_model.bin", "pickle");
    assert_report!("pickled-model", BadModel, workspace, INT4);
    fs::remove_dir_all(workspace.path("model")).expect("a folder");
    workspace.write("model", "a file");
    assert_report!("file-for-model", BadModel, workspace, INT4);
    let statistics = root().join("tests/fixtures/calibration/tiny-llama.imatrix.gguf");
    fs::copy(statistics, workspace.path("model")).expect("a file of statistics");
    assert_report!("statistics-for-model", BadModel, workspace, INT4);
}

#[test]
fn a_damaged_model_is_told_with_its_file() {
    let workspace = Workspace::with(&Model::llama());
    let path = workspace.path("model/model-00002-of-00002.safetensors");
    let bytes = fs::read(&path).expect("a shard");
    fs::write(&path, &bytes[..bytes.len() - 100]).expect("a shard");
    assert_report!("truncated-shard", BadModel, workspace, INT4);
    fs::remove_file(&path).expect("a shard");
    assert_report!("missing-shard", BadModel, workspace, INT4);
}

#[test]
fn two_exports_to_one_folder_are_refused() {
    let workspace = Workspace::with(&Model::llama());
    let stages = format!(
        "  - stage: load\n    model: model\n{INT4}  - stage: export\n    path: out\n  - stage: export\n    path: ./x/../out/\n"
    );
    let failure = workspace.plan(&workspace.whole_recipe(&stages)).expect_err("one would replace the other");
    insta::assert_snapshot!("one-folder-twice", workspace.drawn(&failure.findings));
    let stages = format!("  - stage: load\n    model: model\n{INT4}  - stage: export\n    path: model\n");
    let failure = workspace.plan(&workspace.whole_recipe(&stages)).expect_err("the model is there");
    insta::assert_snapshot!("output-is-model", workspace.drawn(&failure.findings));
}

#[test]
fn a_memory_bound_that_no_worker_fits_is_refused() {
    let workspace = Workspace::with(&Model::sized(128, 256));
    let recipe = workspace.recipe(INT4);
    let limits = |mib: u64| Limits { threads: Some(8), memory: Some(mib << 20) };
    let failure = plan_with(&recipe, &Overrides::default(), limits(24)).expect_err("no worker fits");
    assert_eq!(failure.exit, Exit::BadRecipe);
    insta::assert_snapshot!("memory", workspace.drawn(&failure.findings));
    let plan = plan_with(&recipe, &Overrides::default(), limits(40)).expect("some workers fit");
    assert!(plan.budget.workers >= 1 && plan.budget.bound <= 40 << 20, "{:?}", plan.budget);
}

/// The codes of a plan's findings for each target: errors with `!`.
fn verdicts(workspace: &Workspace, stages: &str) -> [Vec<String>; 3] {
    ["any", "vllm", "transformers"].map(|target| {
        let text = format!(
            "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n    target: {target}\n"
        );
        let (findings, is_error) = match workspace.plan(&workspace.whole_recipe(&text)) {
            Ok(Plan { warnings, .. }) => (warnings, false),
            Err(failure) => {
                assert_eq!(failure.exit, Exit::BadRecipe, "{failure}");
                (failure.findings, true)
            }
        };
        assert_eq!(findings.iter().any(monoquant::finding::Finding::is_error), is_error);
        findings
            .iter()
            .filter(|finding| finding.code.starts_with("plan::"))
            .map(|finding| format!("{}{}", finding.code, if finding.is_error() { "!" } else { "" }))
            .collect()
    })
}

fn stage(name: &str, parameters: &[&str]) -> String {
    let lines: String = parameters.iter().map(|line| format!("    {line}\n")).collect();
    format!("  - stage: {name}\n{lines}")
}

#[track_caller]
fn assert_refused(workspace: &Workspace, stages: &str, any: &[&str], vllm: &[&str], transformers: &[&str]) {
    assert_eq!(verdicts(workspace, stages), [any, vllm, transformers], "{stages}");
}

#[test]
fn engines_one_scale_a_tensor() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int8", &["granularity: tensor"]);
    assert_refused(&workspace, &stages, &["plan::vllm-tensor-scale"], &["plan::vllm-tensor-scale!"], &[]);
    // With activations vLLM takes it, and SGLang does not.
    let stages = stage("quantize-int8", &["granularity: tensor", "activations: dynamic-token"]);
    assert_refused(&workspace, &stages, &["plan::sglang-w8a8-tensor"], &[], &[]);
}

#[test]
fn engines_activations_with_groups() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int8", &["granularity: group", "activations: dynamic-token"]);
    assert_refused(&workspace, &stages, &["plan::vllm-w8a8-groups"], &["plan::vllm-w8a8-groups!"], &[]);
}

#[test]
fn engines_activations_with_zero_points() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int8", &["symmetric: false", "activations: dynamic-token"]);
    assert_refused(
        &workspace,
        &stages,
        &["plan::vllm-w8a8-asymmetric"],
        &["plan::vllm-w8a8-asymmetric!"],
        &[],
    );
}

#[test]
fn engines_fp8_blocks_of_fused_modules() {
    // 64 rows of k and v.
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-fp8", &["granularity: block"]);
    assert_refused(&workspace, &stages, &["plan::vllm-fp8-blocks"], &["plan::vllm-fp8-blocks!"], &[]);
    // The last part may end within a block.
    let stages = stage("quantize-fp8", &["granularity: block", "targets: [v_proj]", "siblings: ignore"]);
    assert_refused(&workspace, &stages, &[], &[], &[]);
}

#[test]
fn engines_int4_with_activations() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int4", &["activations: dynamic-token"]);
    assert_refused(&workspace, &stages, &["plan::vllm-w4a8"], &["plan::vllm-w4a8"], &[]);
}

#[test]
fn engines_int8_with_zero_points() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int8", &["symmetric: false"]);
    assert_refused(
        &workspace,
        &stages,
        &["plan::vllm-int8-asymmetric"],
        &["plan::vllm-int8-asymmetric"],
        &[],
    );
}

#[test]
fn engines_unusual_groups() {
    let workspace = Workspace::with(&Model::llama());
    let stages = stage("quantize-int4", &["group_size: 16"]);
    assert_refused(&workspace, &stages, &["plan::vllm-group-size"], &["plan::vllm-group-size"], &[]);
}

#[test]
fn engines_zero_points_are_cut_in_words() {
    let mut model = Model::llama();
    model.add("model.layers.0.mlp.down_proj.weight", &[100, 256]);
    let workspace = Workspace::with(&model);
    let stages = stage("quantize-int4", &["symmetric: false"]);
    // A module of its own is cut on several GPUs only.
    let code = "plan::vllm-zero-point-words";
    assert_refused(&workspace, &stages, &[code], &[code], &[]);
}

#[test]
fn engines_only_linear_modules_are_loaded_quantized() {
    let mut model = Model::llama();
    model.add("model.layers.0.conv.weight", &[32, 64, 4]);
    let workspace = Workspace::with(&model);
    let stages = stage("quantize-int4", &["targets: [Conv1d]", "group_size: 32"]);
    let code = "plan::not-loadable-kind!";
    assert_refused(&workspace, &stages, &[code], &[code], &[code]);
    // Written out as floating-point numbers any tool loads it.
    let plain = format!(
        "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n    format: dequantized\n"
    );
    assert_eq!(workspace.plan_findings(&workspace.whole_recipe(&plain)), "");
    workspace.run(&workspace.path("recipe.yaml")).exits(0);
}

/// A model of experts, headers only.
fn experts(model_type: &str, is_stacked: bool) -> Workspace {
    let tensor = |name: String, shape: &[u64]| FixtureTensor {
        name,
        dtype: "BF16".to_owned(),
        shape: shape.to_vec(),
        class: "?".to_owned(),
    };
    let workspace = Workspace::new();
    let config = json!({"model_type": model_type, "hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 2,
        "num_local_experts": 2, "num_hidden_layers": 1});
    workspace.write("model/config.json", config.to_string());
    let at = "model.layers.0.mlp.experts";
    let tensors = if is_stacked {
        vec![
            tensor(format!("{at}.gate_up_proj"), &[2, 256, 256]),
            tensor(format!("{at}.down_proj"), &[2, 128, 256]),
        ]
    } else {
        (0..2)
            .flat_map(|expert| {
                [("gate_proj", [128, 256]), ("up_proj", [128, 256]), ("down_proj", [256, 128])]
                    .map(|(part, shape)| tensor(format!("{at}.{expert}.{part}.weight"), &shape))
            })
            .collect()
    };
    write_sparse(&workspace.path("model/model.safetensors"), &tensors);
    workspace
}

#[test]
fn engines_experts_with_zero_points_or_activations() {
    let workspace = experts("qwen3_moe", false);
    let code = "plan::transformers-experts-scheme";
    let stages = stage("quantize-int4", &["symmetric: false"]);
    assert_refused(
        &workspace,
        &stages,
        &[code, "plan::sglang-experts-asymmetric"],
        &[],
        &[&format!("{code}!")],
    );
    let stages = stage("quantize-int8", &["activations: dynamic-token"]);
    assert_refused(
        &workspace,
        &stages,
        &[code, "plan::sglang-experts-activations"],
        &[],
        &[&format!("{code}!")],
    );
    assert_refused(&workspace, &stage("quantize-int4", &[]), &[], &[], &[]);
}

#[test]
fn engines_stacked_experts() {
    // By default experts that an engine cannot load are skipped, and here nothing else is there to quantize.
    let stages = stage("quantize-int4", &[]);
    let left_alone = ["plan::experts-left-alone", "plan::nothing-to-quantize!"];
    assert_refused(&experts("qwen3_vl_moe", true), &stages, &left_alone, &[], &left_alone);
    assert_refused(&experts("gpt_oss", true), &stages, &left_alone, &left_alone, &left_alone);
    // A recipe that insists is told.
    let stages = stage("resolve-skips", &["defaults: none"]) + &stages;
    let fatal = "plan::stacked-experts!".to_owned();
    // Random weights would go unnoticed, so that `any` is no excuse.
    assert_refused(&experts("qwen3_vl_moe", true), &stages, &[&fatal], &[], &[&fatal]);
    assert_refused(&experts("gpt_oss", true), &stages, &[&fatal], &[&fatal], &[&fatal]);
}

#[test]
fn an_engines_rule_is_told_with_both_places() {
    let workspace = Workspace::with(&Model::llama());
    let stages = "  - stage: load\n    model: model\n  - stage: quantize-int8\n    granularity: tensor\n  - stage: export\n    path: out\n    target: vllm\n";
    insta::assert_snapshot!("engine-rule", workspace.plan_findings(&workspace.whole_recipe(stages)));
}
