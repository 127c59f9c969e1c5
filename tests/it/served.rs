//! What vLLM and SGLang make of an output: schemes and shapes that SGLang does not read, kernels, tensor parallelism, and models that
//! nobody builds.

use monoquant::finding::{Failure, Finding};
use monoquant::plan::{self, Limits, Plan, Served, Server};
use monoquant::recipe::{self, Overrides};
use serde_json::{Value, json};

use crate::support::headers::{FixtureTensor, model, write_sparse};
use crate::support::{Model, Workspace};

const INT4: &str = "  - stage: quantize-int4\n";
const INT8: &str = "  - stage: quantize-int8\n";
const W8A8: &str = "  - stage: quantize-int8\n    activations: dynamic-token\n";

/// Plans a fixture with some stages and an export with some keys.
fn planned(name: &str, stages: &str, export: &str) -> Result<Plan, Failure> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yaml");
    let text = format!(
        "version: 1\nname: served\nstages:\n  - stage: load\n    model: model\n{stages}  - stage: export\n    path: \
         out\n{export}"
    );
    std::fs::write(&path, text).expect("a file in a temporary folder");
    let written = model(name);
    let model = Some(written.path().to_str().expect("a path in UTF-8").to_owned());
    plan::plan(recipe::load(&path, &Overrides { model, ..Overrides::default() })?, Limits::default())
}

fn findings(planned: &Result<Plan, Failure>) -> &[Finding] {
    match planned {
        Ok(plan) => &plan.warnings,
        Err(failure) => &failure.findings,
    }
}

/// Codes: `!code` for an error, `code` for a warning.
fn said(planned: &Result<Plan, Failure>) -> Vec<String> {
    let codes = findings(planned).iter().map(|finding| {
        let code = finding.code.strip_prefix("plan::").unwrap_or(finding.code);
        if finding.is_error() { format!("!{code}") } else { code.to_owned() }
    });
    codes.collect()
}

/// What SGLang refuses, and that the same loads if it is not the target.
fn sglang_refuses(name: &str, stages: &str, code: &str) {
    let own = said(&planned(name, stages, "    target: sglang\n"));
    assert!(own.contains(&code.to_owned()), "{name}: {own:?}\n{stages}");
    let other = said(&planned(name, stages, "    target: transformers\n"));
    assert!(!other.iter().any(|code| code.contains("sglang")), "{name}: {other:?}\n{stages}");
    let other = said(&planned(name, stages, "    target: vllm\n"));
    assert!(!other.iter().any(|code| code.contains("sglang")), "{name}: {other:?}\n{stages}");
}

#[test]
fn schemes_that_sglang_does_not_read() {
    for (stages, code) in [
        (format!("{INT4}    granularity: tensor\n"), "!sglang-tensor-scale"),
        (format!("{INT8}    granularity: tensor\n"), "!sglang-tensor-scale"),
        (format!("{W8A8}    granularity: tensor\n"), "!sglang-w8a8-tensor"),
        (format!("{W8A8}    granularity: group\n"), "!sglang-w8a8-groups"),
        (format!("{W8A8}    symmetric: false\n"), "!sglang-w8a8-asymmetric"),
        (format!("{INT4}    activations: dynamic-token\n"), "!sglang-w4a8"),
        (format!("{INT8}    symmetric: false\n"), "!sglang-int8-asymmetric"),
        (format!("{INT4}    group_size: 16\n"), "!sglang-group-size"),
    ] {
        sglang_refuses("llama", &stages, code);
    }
    for stages in [
        INT4.to_owned(),
        format!("{INT4}    symmetric: false\n"),
        format!("{INT4}    granularity: channel\n"),
        INT8.to_owned(),
        W8A8.to_owned(),
    ] {
        let planned = planned("llama", &stages, "    target: sglang\n");
        assert_eq!(said(&planned), Vec::<String>::new(), "{stages}");
    }
    // Its head is named by a target, so it is taken for quantized.
    let head = format!("  - stage: resolve-skips\n    quantize_anyway: [lm_head]\n{INT4}");
    assert_eq!(said(&planned("llama", &head, "    target: sglang\n")), Vec::<String>::new());
}

#[test]
fn experts_that_sglang_does_not_read() {
    sglang_refuses("mixtral", W8A8, "!sglang-experts-activations");
    sglang_refuses("mixtral", &format!("{INT4}    symmetric: false\n"), "!sglang-experts-asymmetric");
    let mixed = format!("{W8A8}    targets: [self_attn]\n{INT4}");
    sglang_refuses("mixtral", &mixed, "!sglang-mixed-experts");
    let alone = said(&planned("mixtral", INT4, "    target: sglang\n"));
    assert_eq!(alone, Vec::<String>::new());
    let mixed_without_experts =
        said(&planned("llama", &format!("{W8A8}    targets: [self_attn]\n{INT4}"), "    target: sglang\n"));
    assert_eq!(mixed_without_experts, Vec::<String>::new());
}

fn served(plan: &Plan, server: Server) -> &Served {
    plan.served.iter().find(|served| served.server == server).expect("looked at")
}

fn takers(plan: &Plan, server: Server) -> Vec<&'static str> {
    let kernels = served(plan, server).kernels.iter();
    kernels.filter(|kernel| kernel.takes == kernel.of).map(|kernel| kernel.name).collect()
}

/// A Llama of one layer: widths, heads, heads of keys and values.
fn llama(hidden: u64, intermediate: u64, heads: u64, keys: u64) -> Workspace {
    let workspace = Workspace::new();
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": keys, "vocab_size": 64, "tie_word_embeddings": false});
    workspace.write("model/config.json", config.to_string());
    let narrow = hidden / heads * keys;
    let tensor = |name: &str, rows: u64, cols: u64| FixtureTensor {
        name: format!("{name}.weight"),
        dtype: "BF16".to_owned(),
        shape: vec![rows, cols],
        class: "?".to_owned(),
    };
    let layer = |name: &str, rows, cols| tensor(&format!("model.layers.0.{name}"), rows, cols);
    let tensors = [
        tensor("model.embed_tokens", 64, hidden),
        tensor("lm_head", 64, hidden),
        layer("self_attn.q_proj", hidden, hidden),
        layer("self_attn.k_proj", narrow, hidden),
        layer("self_attn.v_proj", narrow, hidden),
        layer("self_attn.o_proj", hidden, hidden),
        layer("mlp.gate_proj", intermediate, hidden),
        layer("mlp.up_proj", intermediate, hidden),
        layer("mlp.down_proj", hidden, intermediate),
    ];
    write_sparse(&workspace.path("model/model.safetensors"), &tensors);
    workspace
}

fn plan_of(workspace: &Workspace, stages: &str, export: &str) -> Result<Plan, Failure> {
    let text =
        format!("  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n{export}");
    workspace.plan(&workspace.whole_recipe(&text))
}

#[test]
fn kernels_that_take_the_output_are_named() {
    let plan = planned("llama", INT4, "").expect("it plans");
    assert_eq!(takers(&plan, Server::Vllm), ["Machete", "Marlin", "Triton", "CPU"]);
    assert_eq!(takers(&plan, Server::Sglang), ["Marlin"]);
    let plan = planned("llama", W8A8, "").expect("it plans");
    assert_eq!(takers(&plan, Server::Vllm), ["scaled int8"]);
    let plan = planned("llama", &format!("{INT4}    group_size: 32\n"), "").expect("it plans");
    assert_eq!(takers(&plan, Server::Vllm), ["Marlin", "Triton", "CPU"]);
    // Experts have kernels of their own, attention beside them has others, so that none takes all but Marlin.
    let plan = planned("mixtral", INT4, "").expect("it plans");
    assert_eq!(takers(&plan, Server::Vllm), ["Marlin"]);
    let triton =
        served(&plan, Server::Vllm).kernels.iter().find(|kernel| kernel.name == "Triton for experts");
    assert!(triton.is_some_and(|kernel| kernel.takes > 0 && kernel.takes < kernel.of));
    // What is for transformers is for no kernel.
    assert_eq!(planned("llama", INT4, "    target: transformers\n").expect("it plans").served, []);
    assert_eq!(planned("llama", INT4, "    format: dequantized\n").expect("it plans").served, []);
}

#[test]
fn a_shape_that_no_kernel_takes_is_told() {
    // 8256 = 64 · 129: no multiple of 128.
    let workspace = llama(128, 8256, 2, 1);
    let stages = format!("{INT4}    group_size: 64\n");
    let plan = plan_of(&workspace, &stages, "").expect("it plans");
    let expected = "`model.layers.0.mlp.down_proj` has 128 rows and 8256 columns, no multiples of 64 and 128; kernels that take \
                    it: vLLM's Machete, Marlin, Triton, CPU; SGLang's Marlin";
    assert!(plan.notes.iter().any(|note| note == expected), "{:?}", plan.notes);
    // 129 whole groups in three equal parts of 43.
    assert_eq!(served(&plan, Server::Vllm).parallel.sizes, [1]);

    // Neither 64 and 128 nor 128 and 64.
    let workspace = llama(192, 320, 3, 3);
    let refused = plan_of(&workspace, &stages, "    target: sglang\n").expect_err("no kernel takes it");
    let finding = &refused.findings[0];
    assert_eq!(finding.code, "plan::sglang-shape");
    let message =
        "no kernel of SGLang takes `model.layers.0.self_attn.o_proj` and 2 more: 192 rows and 192 columns";
    assert!(finding.message.starts_with(message), "{}", finding.message);
    let plan = plan_of(&workspace, &stages, "").expect("vLLM pads");
    assert!(plan.notes.iter().any(|note| note.contains("none of SGLang's")), "{:?}", plan.notes);
    assert_eq!(served(&plan, Server::Sglang).parallel.up_to, None);
    assert_eq!(served(&plan, Server::Vllm).parallel.up_to, Some(1));
}

#[test]
fn every_gpu_has_whole_heads_groups_and_words() {
    let up_to = |workspace: &Workspace, stages: &str| {
        let plan = plan_of(workspace, stages, "    target: vllm\n").expect("it plans");
        let parallel = &served(&plan, Server::Vllm).parallel;
        let why = parallel.limit.as_ref().map(ToString::to_string).unwrap_or_default();
        (parallel.sizes.clone(), why)
    };
    // 8 heads, of keys 2, which are doubled; 512 columns are whole groups of 128 up to 4.
    let (sizes, why) = up_to(&llama(512, 1024, 8, 2), INT4);
    assert_eq!(sizes, [1, 2, 4]);
    assert!(
        why.starts_with("`model.layers.0.self_attn.o_proj`: 64 columns per GPU are not a multiple"),
        "{why}"
    );
    // Smaller groups go further, rows on their own as far as there are heads.
    assert_eq!(up_to(&llama(512, 1024, 8, 2), &format!("{INT4}    group_size: 32\n")).0, [1, 2, 4, 8]);
    let (sizes, why) = up_to(&llama(512, 1024, 8, 2), &format!("{INT4}    granularity: channel\n"));
    assert_eq!((sizes, why.as_str()), (vec![1, 2, 4, 8], "8 attention heads are no multiple of 16"));
    // 3 heads of keys can be neither shared between 2 nor doubled.
    assert_eq!(up_to(&llama(384, 768, 6, 3), &format!("{INT4}    granularity: channel\n")).0, [1, 3, 6]);
    // 12 columns per GPU do not fill whole words of codes.
    let (sizes, why) = up_to(&llama(256, 192, 16, 16), &format!("{INT4}    granularity: channel\n"));
    assert_eq!(sizes, [1, 2, 4, 8]);
    assert_eq!(why, "`model.layers.0.mlp.down_proj`: 12 columns per GPU do not fill whole words of 8 codes");
    // Codes of their own bytes have no words.
    assert_eq!(up_to(&llama(256, 192, 16, 16), W8A8).0, [1, 2, 4, 8, 16]);
}

#[test]
fn a_number_of_gpus_is_a_rule_where_the_recipe_asks() {
    let workspace = llama(512, 1024, 8, 2);
    for target in ["vllm", "sglang", "any"] {
        let export = |gpus: u64| format!("    target: {target}\n    tensor_parallel: {gpus}\n");
        let codes = said(&plan_of(&workspace, INT4, &export(4)));
        assert_eq!(codes, Vec::<String>::new(), "{target}");
        let failure = plan_of(&workspace, INT4, &export(8)).expect_err("no multiple of the group size");
        let drawn = workspace.drawn(&failure.findings);
        assert_eq!(failure.findings.len(), 1, "{drawn}");
        assert_eq!(failure.findings[0].code, "plan::tensor-parallel");
        let word = failure.findings[0].labels.first().expect("a place").place.clone();
        assert_eq!(&word.source.text[word.start..word.end], "8", "{drawn}");
        let flat = drawn.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in ["o_proj", "not a multiple of the group size 128", "Numbers that work: 1, 2, 4."] {
            assert!(flat.contains(words), "{words}: {drawn}");
        }
    }
    // All that is in the way is named, not only the first.
    let failure = plan_of(&workspace, INT4, "    tensor_parallel: 16\n").expect_err("8 heads");
    let help = failure.findings[0].help_text().expect("help");
    assert!(
        help.contains("8 attention heads") && help.contains("o_proj") && help.contains("down_proj"),
        "{help}"
    );
    // One engine that can is enough for any: vLLM pads 96 rows per GPU, SGLang does not.
    let workspace = llama(384, 384, 4, 4);
    let stages = format!("{INT4}    granularity: channel\n");
    let planned = plan_of(&workspace, &stages, "    tensor_parallel: 4\n");
    assert_eq!(said(&planned), ["tensor-parallel"]);
    assert!(findings(&planned)[0].message.starts_with("SGLang cannot"));
}

#[test]
fn a_plan_and_a_report_say_what_engines_make_of_the_output() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe("  - stage: quantize-int4\n    group_size: 32\n");
    let path = recipe.to_str().expect("a path in UTF-8");
    let text = workspace.monoquant(["plan", path]).exits(0).stdout;
    assert!(text.contains("kernels") && text.contains("tensor parallel"), "{text}");
    let engines =
        workspace.monoquant(["plan", path, "--format", "json"]).exits(0).json()["exports"][0]["engines"]
            .clone();
    assert_eq!(engines[0]["engine"], "vLLM");
    assert_eq!(engines[1]["engine"], "SGLang");
    assert_eq!(engines[0]["tensor_parallel"]["sizes"], json!([1, 2]));
    assert_eq!(engines[0]["tensor_parallel"]["limit"]["size"], json!(4));
    workspace.run(&recipe).exits(0);
    let report: Value = crate::support::json(&workspace.path("out/monoquant-report.json"));
    assert_eq!(report["outputs"][0]["engines"], engines);
}

#[test]
fn a_model_that_no_engine_builds_is_a_warning() {
    let unbuilt = |config: Value, export: &str| {
        let workspace = llama(256, 512, 4, 4);
        workspace.write("model/config.json", config.to_string());
        let planned = plan_of(&workspace, INT4, export);
        let found = findings(&planned).iter().find(|finding| finding.code == "plan::unbuilt-model");
        found.map(|finding| finding.message.clone())
    };
    let diffusers = json!({"_class_name": "FluxTransformer2DModel", "num_attention_heads": 4});
    for target in ["any", "vllm", "sglang", "transformers"] {
        let message = unbuilt(diffusers.clone(), &format!("    target: {target}\n"));
        assert!(message.is_some_and(|text| text.contains("`FluxTransformer2DModel`")), "{target}");
    }
    assert!(unbuilt(json!({"architecture": "vit_base"}), "").is_some_and(|text| text.contains("`vit_base`")));
    assert!(unbuilt(json!({"hidden_size": 256}), "").is_some());
    assert_eq!(unbuilt(diffusers, "    format: dequantized\n"), None);
    assert_eq!(unbuilt(json!({"model_type": "llama", "hidden_size": 256}), ""), None);
    assert_eq!(unbuilt(json!({"architectures": ["LlamaForCausalLM"]}), ""), None);
}
