//! Which tensors a recipe quantizes: defaults, lists, thresholds, targets, siblings, and who said so.

use std::collections::{BTreeMap, BTreeSet};

use monoquant::plan::Plan;
use serde_json::json;

use crate::support::headers::{self, FixtureTensor, write_sparse};
use crate::support::{Model, Workspace};

fn plan(workspace: &Workspace, stages: &str) -> Plan {
    workspace.plan(&workspace.recipe(stages)).unwrap_or_else(|failure| panic!("{stages}\n{failure}"))
}

/// Per reason or scheme, the modules that have it, layer numbers as `N`.
fn outcome(plan: &Plan) -> BTreeMap<String, BTreeSet<String>> {
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, decision) in plan.model.tensors.iter().zip(&plan.decisions) {
        let what = match decision.spec() {
            Some(spec) => spec.scheme.to_string(),
            None => decision.rule.reason.to_string(),
        };
        let module = tensor.name.trim_end_matches(".weight").trim_start_matches("model.");
        let module = module.replace("layers.0.", "layers.N.").replace("layers.1.", "layers.N.");
        out.entry(what).or_default().insert(module);
    }
    out
}

/// Whether a tensor is quantized, and to how many bits.
fn bits(plan: &Plan, name: &str) -> Option<usize> {
    let index = plan.model.find(name).unwrap_or_else(|| panic!("no tensor {name}"));
    plan.decisions[index].spec().map(|spec| spec.scheme.bits.count())
}

/// The names of the quantized tensors, ordered.
fn quantized(plan: &Plan) -> Vec<&str> {
    let decided = plan.model.tensors.iter().zip(&plan.decisions);
    let quantized = decided.filter(|(_, decision)| decision.spec().is_some());
    let mut names: Vec<&str> = quantized.map(|(tensor, _)| tensor.name.as_str()).collect();
    names.sort_unstable();
    names
}

const LINEAR: [&str; 7] = [
    "layers.N.self_attn.q_proj",
    "layers.N.self_attn.k_proj",
    "layers.N.self_attn.v_proj",
    "layers.N.self_attn.o_proj",
    "layers.N.mlp.gate_proj",
    "layers.N.mlp.up_proj",
    "layers.N.mlp.down_proj",
];

const NORMS: [&str; 3] = ["layers.N.input_layernorm", "layers.N.post_attention_layernorm", "norm"];

fn set(modules: &[&str]) -> BTreeSet<String> {
    modules.iter().map(|module| (*module).to_owned()).collect()
}

fn expect(list: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    list.iter().map(|(what, modules)| ((*what).to_owned(), set(modules))).collect()
}

#[test]
fn the_defaults_leave_embeddings_norms_and_the_head_alone() {
    let workspace = Workspace::with(&Model::llama());
    let expected = expect(&[
        ("int4 symmetric, groups of 128", &LINEAR),
        ("embedding", &["embed_tokens"]),
        ("norm", &NORMS),
        ("output head", &["lm_head"]),
    ]);
    for stages in [
        "  - stage: quantize-int4\n",
        "  - stage: resolve-skips\n  - stage: quantize-int4\n",
        "  - stage: resolve-skips\n    defaults: int4\n  - stage: quantize-int4\n",
        "  - stage: resolve-skips\n    defaults: int8\n  - stage: quantize-int4\n",
    ] {
        assert_eq!(outcome(&plan(&workspace, stages)), expected, "{stages}");
    }
    let int8 = plan(&workspace, "  - stage: quantize-int8\n");
    assert_eq!(outcome(&int8)["int8 symmetric, one scale per row"], set(&LINEAR));
}

#[test]
fn without_defaults_the_targets_alone_decide() {
    let workspace = Workspace::with(&Model::llama());
    let none = plan(&workspace, "  - stage: resolve-skips\n    defaults: none\n  - stage: quantize-int4\n");
    assert_eq!(bits(&none, "lm_head.weight"), Some(4));
    assert_eq!(bits(&none, "model.embed_tokens.weight"), None);
    let stages =
        "  - stage: resolve-skips\n    defaults: none\n  - stage: quantize-int4\n    targets: [lm_head]\n";
    let named = plan(&workspace, stages);
    assert_eq!(quantized(&named), ["lm_head.weight"]);
}

#[test]
fn quantize_anyway_takes_back_defaults() {
    let workspace = Workspace::with(&Model::llama());
    for entry in ["lm_head", "Head", "\"re:lm_.*\"", "lm_*"] {
        let stages =
            format!("  - stage: resolve-skips\n    quantize_anyway: [{entry}]\n  - stage: quantize-int4\n");
        let plan = plan(&workspace, &stages);
        assert_eq!(bits(&plan, "lm_head.weight"), Some(4), "{entry}");
        assert_eq!(quantized(&plan).len(), 15, "{entry}");
    }
    // On a tied model there is no head; its default name never counts as unmatched.
    let tied = Workspace::with(&Model::tied());
    let stages =
        "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n  - stage: quantize-int4\n";
    assert_eq!(quantized(&plan(&tied, stages)).len(), 14);
}

#[test]
fn the_sources_of_skips_are_a_union() {
    let workspace = Workspace::with(&Model::llama());
    let stages = "  - stage: resolve-skips\n    modules_to_not_convert: [layers.1]\n    skip_layer_names: [\"model.layers.*.mlp.down_proj\", \"re:.*o_proj\"]\n    skip_param_threshold: 10000\n  - stage: quantize-int4\n    siblings: ignore\n";
    let plan = plan(&workspace, stages);
    let rest = [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ];
    assert_eq!(quantized(&plan), rest);
    let outcome = outcome(&plan);
    // k and v have 64·128 = 8192 parameters.
    assert_eq!(outcome["fewer than 10000 parameters"].len(), 7, "{outcome:?}");
    assert_eq!(outcome["skip_layer_names: re:.*o_proj"], set(&["layers.N.self_attn.o_proj"]));
}

#[test]
fn the_threshold_is_strict_and_counts_the_bias() {
    let mut model = Model::llama();
    model.add("model.layers.0.mlp.small.weight", &[4, 128]);
    model.add("model.layers.0.mlp.smaller.weight", &[3, 128]);
    model.add("model.layers.0.mlp.biased.weight", &[3, 128]);
    model.add("model.layers.0.mlp.biased.bias", &[128]);
    let workspace = Workspace::with(&model);
    let int4 = plan(&workspace, "  - stage: quantize-int4\n");
    // 512 parameters are not fewer than 512.
    assert_eq!(bits(&int4, "model.layers.0.mlp.small.weight"), Some(4));
    assert_eq!(bits(&int4, "model.layers.0.mlp.smaller.weight"), None);
    assert_eq!(bits(&int4, "model.layers.0.mlp.biased.weight"), Some(4));
    let int8 = plan(&workspace, "  - stage: quantize-int8\n");
    assert_eq!(bits(&int8, "model.layers.0.mlp.smaller.weight"), Some(8));
    let lower = plan(
        &workspace,
        "  - stage: resolve-skips\n    skip_param_threshold: 384\n  - stage: quantize-int4\n",
    );
    assert_eq!(bits(&lower, "model.layers.0.mlp.smaller.weight"), Some(4));
}

#[test]
fn names_are_whole_segments() {
    let mut model = Model::llama();
    model.add("model.layers.10.mlp.up_proj.weight", &[64, 128]);
    model.add("model.layers.10.mlp.gate.weight", &[64, 128]);
    let workspace = Workspace::with(&model);
    let skipping = |pattern: &str| {
        let stages = format!(
            "  - stage: resolve-skips\n    defaults: none\n    modules_to_not_convert: [\"{pattern}\"]\n    on_unmatched: ignore\n  - stage: quantize-int4\n    siblings: ignore\n"
        );
        plan(&workspace, &stages)
    };
    let one = skipping("layers.1");
    assert_eq!(bits(&one, "model.layers.1.mlp.up_proj.weight"), None);
    assert_eq!(bits(&one, "model.layers.10.mlp.up_proj.weight"), Some(4));
    let gate = skipping("mlp.gate");
    assert_eq!(bits(&gate, "model.layers.10.mlp.gate.weight"), None);
    assert_eq!(bits(&gate, "model.layers.0.mlp.gate_proj.weight"), Some(4));
    let glob = skipping("model.layers.{0,10}.**");
    assert_eq!(bits(&glob, "model.layers.10.mlp.up_proj.weight"), None);
    assert_eq!(bits(&glob, "model.layers.1.mlp.up_proj.weight"), Some(4));
    // `*` stays within a segment.
    let star = skipping("model.*.mlp.up_proj*");
    assert_eq!(bits(&star, "model.layers.0.mlp.up_proj.weight"), Some(4));
}

#[test]
fn a_default_never_splits_siblings() {
    // One of three fused modules is too small for int4: the whole group is skipped, and the reason says why.
    let mut model = Model::llama();
    model.add("model.layers.0.self_attn.k_proj.weight", &[2, 128]);
    let workspace = Workspace::with(&model);
    let plan = plan(&workspace, "  - stage: quantize-int4\n");
    for part in ["q_proj", "k_proj", "v_proj"] {
        assert_eq!(bits(&plan, &format!("model.layers.0.self_attn.{part}.weight")), None, "{part}");
        assert_eq!(bits(&plan, &format!("model.layers.1.self_attn.{part}.weight")), Some(4), "{part}");
    }
    let outcome = outcome(&plan);
    assert_eq!(
        outcome["fused with a skipped module: fewer than 512 parameters"],
        set(&["layers.N.self_attn.q_proj", "layers.N.self_attn.v_proj"])
    );
}

#[test]
fn indivisible_rows_are_treated_as_asked_and_siblings_alike() {
    // 192 columns in attention and gate/up, 320 in down.
    let workspace = Workspace::with(&Model::sized(192, 320));
    let with = |policy: &str| {
        let stages = format!("  - stage: quantize-int4\n    indivisible: {policy}\n");
        outcome(&plan(&workspace, &stages))
    };
    assert_eq!(with("shrink")["int4 symmetric, groups of 64"], set(&LINEAR));
    assert_eq!(with("channel")["int4 symmetric, one scale per row"], set(&LINEAR));
    let stages = "  - stage: quantize-int4\n    indivisible: skip\n    group_size: 128\n";
    let failure = workspace.plan(&workspace.recipe(stages)).expect_err("nothing is left");
    assert!(failure.findings.iter().any(|finding| finding.code == "plan::nothing-to-quantize"), "{failure}");
    let workspace = Workspace::with(&Model::sized(256, 320));
    let plan = plan(&workspace, stages);
    assert_eq!(outcome(&plan)["320 columns are no multiple of 128"], set(&["layers.N.mlp.down_proj"]));
}

#[test]
fn on_unmatched_says_what_a_pattern_without_a_match_is() {
    let workspace = Workspace::with(&Model::llama());
    let with = |policy: &str| {
        let stages = format!(
            "  - stage: resolve-skips\n    modules_to_not_convert: [vision_tower, lm_head]\n    on_unmatched: {policy}\n  - stage: quantize-int4\n"
        );
        workspace.plan(&workspace.recipe(&stages))
    };
    assert_eq!(with("error").expect_err("it matches nothing").findings.len(), 1);
    let warned = with("warn").expect("a warning");
    assert_eq!(warned.warnings.iter().map(|w| w.code).collect::<Vec<_>>(), ["plan::unmatched-pattern"]);
    assert!(with("ignore").expect("nothing").warnings.is_empty());
}

#[test]
fn layer_types_correct_what_is_inferred() {
    let mut model = Model::llama();
    model.add("model.layers.0.blob.weight", &[64, 128]);
    let workspace = Workspace::with(&model);
    let corrected = |types: &str| {
        let stages = format!(
            "  - stage: load\n    model: model\n    layer_types:\n{types}  - stage: quantize-int4\n  - stage: export\n    path: out\n"
        );
        workspace.plan(&workspace.whole_recipe(&stages)).unwrap_or_else(|failure| panic!("{failure}"))
    };
    let before = plan(&workspace, "  - stage: quantize-int4\n");
    assert_eq!(bits(&before, "model.layers.0.blob.weight"), Some(4));
    let kind = corrected("      blob: Router\n");
    assert_eq!(bits(&kind, "model.layers.0.blob.weight"), None);
    let role = corrected("      layers.1: Tower\n");
    assert_eq!(bits(&role, "model.layers.1.mlp.up_proj.weight"), None);
    assert_eq!(bits(&role, "model.layers.0.mlp.up_proj.weight"), Some(4));
    assert_eq!(outcome(&role)["tower"].len(), 7);
}

#[test]
fn the_first_stage_that_claims_a_tensor_keeps_it() {
    let workspace = Workspace::with(&Model::llama());
    let mixed = "  - stage: quantize-int4\n    targets: [mlp]\n  - stage: quantize-int8\n";
    let mixed = plan(&workspace, mixed);
    assert_eq!(bits(&mixed, "model.layers.0.mlp.down_proj.weight"), Some(4));
    assert_eq!(bits(&mixed, "model.layers.0.self_attn.o_proj.weight"), Some(8));
    // A `resolve-skips` governs the stages after it, until the next one.
    let stages = "  - stage: resolve-skips\n    skip_layer_names: [self_attn]\n  - stage: quantize-int4\n  - stage: resolve-skips\n    skip_layer_names: [layers.0]\n  - stage: quantize-int8\n";
    let governed = plan(&workspace, stages);
    assert_eq!(bits(&governed, "model.layers.0.mlp.down_proj.weight"), Some(4));
    assert_eq!(bits(&governed, "model.layers.0.self_attn.q_proj.weight"), None);
    assert_eq!(bits(&governed, "model.layers.1.self_attn.q_proj.weight"), Some(8));
}

#[test]
fn explain_shows_rules_with_their_lines() {
    let workspace = Workspace::with(&Model::llama());
    workspace.whole_recipe(
        "  - stage: load\n    model: model\n  - stage: resolve-skips\n    modules_to_not_convert:\n      - layers.0\n    skip_layer_types: [Head]\n    quantize_anyway: [embed_tokens]\n  - stage: quantize-int4\n    targets: [mlp, Embedding]\n  - stage: resolve-skips\n  - stage: quantize-int8\n    targets:\n      - self_attn\n  - stage: export\n    path: out\n    format: dequantized\n",
    );
    let mut text = String::new();
    for name in [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj",
        "model.layers.0.self_attn.q_proj",
        "model.embed_tokens.weight",
        "lm_head",
    ] {
        text += &workspace.monoquant(["explain", "recipe.yaml", name]).exits(0).stdout;
    }
    insta::assert_snapshot!("explain-lines", text);
}

#[test]
fn towers_projectors_and_routers_of_real_models_are_left_alone() {
    for name in headers::names() {
        let folder = headers::model(&name);
        let workspace = Workspace::new();
        let stages = format!(
            "  - stage: load\n    model: {}\n  - stage: quantize-int8\n    siblings: warn\n  - stage: export\n    path: out\n    format: dequantized\n",
            folder.path().display()
        );
        let plan = match workspace.plan(&workspace.whole_recipe(&stages)) {
            Ok(plan) => plan,
            // A model that has nothing but what the defaults leave alone says so.
            Err(failure) => {
                let codes: Vec<&str> =
                    failure.findings.iter().filter(|f| f.is_error()).map(|f| f.code).collect();
                assert!(
                    codes == ["plan::nothing-to-quantize"] || codes == ["model::quantized"],
                    "{name}: {failure}"
                );
                continue;
            }
        };
        for (tensor, (class, decision)) in
            plan.model.tensors.iter().zip(plan.classes.iter().zip(&plan.decisions))
        {
            if decision.spec().is_some() {
                let role = class.role.map(monoquant::layer::LayerType::name);
                let is_fair = matches!(role, None | Some("Mamba" | "LinearAttention"));
                assert!(is_fair, "{name}: {} of role {role:?} is quantized", tensor.name);
            }
        }
    }
}

#[test]
fn experts_of_one_layer_share_one_decision() {
    let workspace = Workspace::new();
    workspace.write("model/config.json", json!({"model_type": "qwen3_moe", "hidden_size": 256}).to_string());
    let tensors: Vec<FixtureTensor> = (0..4)
        .flat_map(|expert| ["gate_proj", "up_proj", "down_proj"].map(|part| (expert, part)))
        .map(|(expert, part)| FixtureTensor {
            name: format!("model.layers.0.mlp.experts.{expert}.{part}.weight"),
            dtype: "BF16".to_owned(),
            shape: vec![256, 256],
            class: "Linear".to_owned(),
        })
        .collect();
    write_sparse(&workspace.path("model/model.safetensors"), &tensors);
    let stages = "  - stage: resolve-skips\n    skip_layer_names: [experts.3]\n  - stage: quantize-int4\n";
    let failure = workspace.plan(&workspace.recipe(stages)).expect_err("experts are split");
    insta::assert_snapshot!("split-experts", workspace.drawn(&failure.findings));
    assert_eq!(quantized(&plan(&workspace, "  - stage: quantize-int4\n")).len(), 12);
}
