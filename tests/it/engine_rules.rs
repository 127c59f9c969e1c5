//! Each rule about engines, under each target: what is refused, what is warned of, what goes through. `tests/interop/check_rules.py`
//! tries the same cases on the engines themselves.

use std::collections::BTreeSet;

use monoquant::finding::{Failure, Finding};
use monoquant::plan::{self, Limits, Plan};
use monoquant::recipe::{self, Overrides};

use tempfile::TempDir;

use crate::support::headers::{self, Fixture};
use crate::support::root;

fn plan_for(target: &str, model: &str, stages: &str) -> Result<Plan, Failure> {
    plan_of(target, &headers::model(model), stages)
}

fn plan_of(target: &str, model: &TempDir, stages: &str) -> Result<Plan, Failure> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yaml");
    let stages = stages.trim_end();
    let text = format!(
        "version: 1\nname: rule\nstages:\n  - stage: load\n    model: model\n{stages}\n  - stage: export\n    target: \
         {target}\n    path: out\n"
    );
    std::fs::write(&path, text).expect("a file in a temporary folder");
    let model = Some(model.path().to_str().expect("a path in UTF-8").to_owned());
    plan::plan(recipe::load(&path, &Overrides { model, ..Overrides::default() })?, Limits::default())
}

/// The code of what is said about engines: `!code` for an error, `code` for a warning, nothing if nothing is.
fn said(planned: &Result<Plan, Failure>) -> String {
    let findings: &[Finding] = match planned {
        Ok(plan) => &plan.warnings,
        Err(failure) => &failure.findings,
    };
    let mut codes: Vec<String> = findings
        .iter()
        .filter_map(|finding| {
            let code = finding.code.strip_prefix("plan::").or(finding.is_error().then_some(finding.code))?;
            Some(if finding.is_error() { format!("!{code}") } else { code.to_owned() })
        })
        .collect();
    codes.sort();
    codes.dedup();
    codes.join(" ")
}

const W8A8: &str = "  - stage: quantize-int8\n    activations: dynamic-token\n";
const INT4: &str = "  - stage: quantize-int4\n";
const INT8: &str = "  - stage: quantize-int8\n";
const FIRST_LAYER_INT8: &str = "  - stage: resolve-skips
    skip_layer_types: [Conv1d]
    on_unmatched: ignore
  - stage: quantize-int8
    targets: [layers.0]
  - stage: quantize-int4
";

/// Model, stages, and what is said with the target `transformers`, `vllm` and `any`.
fn check(model: &str, stages: &str, transformers: &str, vllm: &str, any: &str) {
    for (target, expected) in [("transformers", transformers), ("vllm", vllm), ("any", any)] {
        let planned = plan_for(target, model, stages);
        assert_eq!(said(&planned), expected, "{model}, target {target}\n{stages}");
    }
}

/// The table of rules in `tests/interop/README.md` names every code, a test and cases that are there.
#[test]
fn the_table_of_rules_is_whole() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("a file of the repository");
    let table = read("tests/interop/README.md");
    let cases = read("tests/interop/check_rules.py");
    let tests =
        ["engine_rules", "plan_errors", "served"].map(|name| read(&format!("tests/it/{name}.rs"))).concat();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut codes = BTreeSet::new();
    for row in table.lines().filter(|line| line.contains("| `plan::")) {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, _, code, test, tried, _] = cells[..] else { panic!("five columns: {row}") };
        codes.extend(quoted(code));
        for name in quoted(test).iter().filter(|name| !name.ends_with(".rs")) {
            assert!(tests.contains(&format!("fn {name}()")), "there is no test {name}");
        }
        for case in quoted(tried) {
            let mut starts = case.match_indices('-').map(|(at, _)| format!("{}-{{", &case[..at]));
            let is_there = cases.contains(&format!("\"{case}\""))
                || starts.any(|start| cases.contains(&format!("f\"{start}")));
            assert!(is_there, "there is no case {case}");
        }
    }
    let mut said = BTreeSet::new();
    let mut files = vec![root().join("src/plan/engines.rs")];
    files.extend(
        std::fs::read_dir(root().join("src/plan/engines"))
            .expect("a folder")
            .map(|e| e.expect("an entry").path()),
    );
    for file in files {
        let text = std::fs::read_to_string(file).expect("a file of the repository");
        said.extend(text.split('"').filter(|word| word.starts_with("plan::")).map(str::to_owned));
    }
    assert!(said.len() > 15);
    assert_eq!(said.difference(&codes).collect::<Vec<_>>(), Vec::<&String>::new(), "missing in the table");
}

#[test]
fn int4_weights_load_everywhere_in_groups_and_rows() {
    for more in ["", "    group_size: 32\n", "    granularity: channel\n", "    symmetric: false\n"] {
        check("llama", &format!("{INT4}{more}"), "", "", "");
    }
    check("llama", INT8, "", "", "");
    check("llama", W8A8, "", "", "");
    check("llama", FIRST_LAYER_INT8, "", "", "");
}

#[test]
fn floats_load_by_rows_and_in_blocks() {
    const FP8: &str = "  - stage: quantize-fp8\n";
    check("llama", FP8, "", "", "");
    check("llama", &format!("{FP8}    activations: none\n"), "", "", "");
    check("qwen3-moe", FP8, "", "", "");
    let blocks = format!("{FP8}    granularity: block\n");
    check("llama", &blocks, "", "", "");
    let experts = "    targets: [\"re:.*mlp\\\\.experts\\\\..*\"]\n";
    let planned = plan_for("transformers", "qwen3-moe", &format!("{blocks}{experts}"));
    assert_eq!(said(&planned), "!transformers-fp8-experts");
    check(
        "qwen3-moe",
        &format!("{FP8}    activations: none\n{experts}"),
        "",
        "!vllm-fp8-experts",
        "vllm-fp8-experts",
    );
}

#[test]
fn floats_of_four_bits_load_in_bf16() {
    const MXFP4: &str = "  - stage: quantize-mxfp4\n";
    let both = "sglang-mxfp4 vllm-mxfp4-activations";
    check("llama", MXFP4, "", "vllm-mxfp4-activations", both);
    check("qwen3-moe", MXFP4, "", "vllm-mxfp4-activations", both);
    assert_eq!(said(&plan_for("sglang", "llama", MXFP4)), "!sglang-mxfp4");
    // SGLang has a loader of its own for the experts of one family, if nothing else is quantized.
    let experts = format!("{MXFP4}    targets: [\"re:.*mlp\\\\.experts\\\\..*\"]\n");
    let mut kimi = Fixture::load("qwen3-moe");
    kimi.config["model_type"] = "kimi_k3".into();
    let model = tempfile::tempdir().expect("a temporary folder");
    kimi.write(model.path());
    assert_eq!(said(&plan_of("sglang", &model, &experts)), "");
    assert_eq!(said(&plan_of("sglang", &model, MXFP4)), "!sglang-mxfp4");
    assert_eq!(said(&plan_for("sglang", "qwen3-moe", &experts)), "!sglang-mxfp4");
    const NVFP4: &str = "  - stage: quantize-nvfp4\n";
    check("llama", NVFP4, "", "", "");
    check("qwen3-moe", NVFP4, "!transformers-nvfp4-experts", "", "!transformers-nvfp4-experts");
    assert_eq!(said(&plan_for("sglang", "qwen3-moe", NVFP4)), "");
    for (dtype, transformers, vllm) in [
        ("F16", "!transformers-fp4-type", "vllm-mxfp4-activations vllm-mxfp4-f16"),
        ("F32", "!transformers-fp4-type", "vllm-mxfp4-activations"),
    ] {
        let mut other = Fixture::load("llama");
        let tensors = other.shards.iter_mut().flat_map(|(_, tensors)| tensors);
        tensors.for_each(|tensor| tensor.dtype = dtype.to_owned());
        let model = tempfile::tempdir().expect("a temporary folder");
        other.write(model.path());
        assert_eq!(said(&plan_of("transformers", &model, MXFP4)), transformers, "{dtype}");
        assert_eq!(said(&plan_of("vllm", &model, MXFP4)), vllm, "{dtype}");
    }
}

#[test]
fn integers_with_fp8_activations_are_for_hopper() {
    let fp8 = "    activations: dynamic-token-fp8\n";
    let both = "sglang-fp8-activations vllm-fp8-activations";
    check("llama", &format!("{INT4}{fp8}"), "", "vllm-fp8-activations", both);
    check("llama", &format!("{INT4}{fp8}    group_size: 32\n"), "", "!vllm-fp8-activations", both);
    check("llama", &format!("{INT8}{fp8}"), "", "!vllm-fp8-activations", both);
    let experts = format!("{INT4}{fp8}    targets: [\"re:.*mlp\\\\.experts\\\\..*\"]\n");
    assert_eq!(said(&plan_for("sglang", "qwen3-moe", &experts)), "sglang-fp8-activations");
    assert_eq!(
        said(&plan_for("sglang", "qwen3-moe", &format!("{experts}{INT8}"))),
        "!sglang-fp8-activations"
    );
}

#[test]
fn one_scale_a_tensor_needs_activations_in_vllm() {
    let tensor = "    granularity: tensor\n";
    check("llama", &format!("{INT4}{tensor}"), "", "!vllm-tensor-scale", "vllm-tensor-scale");
    check("llama", &format!("{INT8}{tensor}"), "", "!vllm-tensor-scale", "vllm-tensor-scale");
    check("llama", &format!("{W8A8}{tensor}"), "", "", "sglang-w8a8-tensor");
}

#[test]
fn w8a8_is_symmetric_and_by_rows_in_vllm() {
    check("llama", &format!("{W8A8}    granularity: group\n"), "", "!vllm-w8a8-groups", "vllm-w8a8-groups");
    check(
        "llama",
        &format!("{W8A8}    symmetric: false\n"),
        "",
        "!vllm-w8a8-asymmetric",
        "vllm-w8a8-asymmetric",
    );
}

#[test]
fn what_some_machines_run_is_a_warning() {
    check("llama", &format!("{INT4}    group_size: 16\n"), "", "vllm-group-size", "vllm-group-size");
    check(
        "llama",
        &format!("{INT8}    symmetric: false\n"),
        "",
        "vllm-int8-asymmetric",
        "vllm-int8-asymmetric",
    );
    let scales = format!("{INT4}    scale_dtype: f32\n");
    check("llama", &scales, "rounded-scales", "rounded-scales", "rounded-scales");
    assert_eq!(plan_for("vllm", "llama", INT8).expect("it plans").notes.len(), 1, "no kernel on vLLM's CPU");
}

#[test]
fn int4_with_activations_is_for_some_machines_and_schemes() {
    let w4a8 = |more: &str| format!("{INT4}    activations: dynamic-token\n{more}");
    for more in ["", "    group_size: 32\n", "    granularity: channel\n"] {
        check("llama", &w4a8(more), "", "vllm-w4a8", "vllm-w4a8");
    }
    for (more, code) in [
        ("    group_size: 16\n", "vllm-w4a8-groups"),
        ("    granularity: tensor\n", "vllm-tensor-scale"),
        ("    symmetric: false\n", "vllm-w8a8-asymmetric"),
    ] {
        // Codes are told in the order of the alphabet, errors first.
        let any = if code < "vllm-w4a8" { format!("{code} vllm-w4a8") } else { format!("vllm-w4a8 {code}") };
        check("llama", &w4a8(more), "", &format!("!{code} vllm-w4a8"), &any);
    }
}

#[test]
fn zero_points_of_fused_modules_fill_whole_words() {
    let with_rows = |modules: &[&str], rows: u64| {
        let mut fixture = Fixture::load("llama");
        for (_, tensors) in &mut fixture.shards {
            for tensor in tensors {
                if modules.iter().any(|module| tensor.name.ends_with(&format!("{module}.weight"))) {
                    tensor.shape[0] = rows;
                }
            }
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        fixture.write(folder.path());
        folder
    };
    let code = "vllm-zero-point-words";
    let error = format!("!{code}");
    let asymmetric = |stage: &str| format!("{stage}    symmetric: false\n    granularity: channel\n");
    let cases: [(&[&str], u64, String, [&str; 3]); 8] = [
        // vLLM makes one module of these two, and misreads what follows the first.
        (&["gate_proj", "up_proj"], 764, asymmetric(INT4), ["", &error, &error]),
        (&["gate_proj", "up_proj"], 760, asymmetric(INT4), ["", "", ""]),
        (&["v_proj"], 100, asymmetric(INT4), ["", &error, &error]),
        // A module of its own is cut by tensor parallelism only.
        (&["o_proj"], 764, asymmetric(INT4), ["", code, code]),
        // Without zero points, or with one for all, or where four of them are a word.
        (&["gate_proj", "up_proj"], 764, format!("{INT4}    granularity: channel\n"), ["", "", ""]),
        (&["gate_proj", "up_proj"], 762, format!("{INT4}    granularity: channel\n"), ["", "", ""]),
        (
            &["gate_proj", "up_proj"],
            764,
            asymmetric(INT8),
            ["", "vllm-int8-asymmetric", "vllm-int8-asymmetric"],
        ),
        (
            &["gate_proj", "up_proj"],
            762,
            asymmetric(INT8),
            ["", &format!("{error} vllm-int8-asymmetric"), &format!("{error} vllm-int8-asymmetric")],
        ),
    ];
    for (modules, rows, stages, expected) in cases {
        let model = with_rows(modules, rows);
        for (target, expected) in ["transformers", "vllm", "any"].into_iter().zip(expected) {
            let planned = plan_of(target, &model, &stages);
            assert_eq!(said(&planned), expected, "{modules:?} of {rows} rows, target {target}\n{stages}");
        }
        let planned = said(&plan_of("sglang", &model, &stages));
        let is_told = planned.contains("sglang-zero-point-words");
        assert_eq!(is_told, expected[1].contains(code), "{modules:?} of {rows} rows: {planned}");
    }
}

#[test]
fn transformers_wants_experts_packed_symmetric_and_alike() {
    let (refused, warned) = ("!transformers-experts-scheme", "transformers-experts-scheme");
    check("mixtral", INT4, "", "", "");
    let warned_of_two = format!("sglang-experts-asymmetric {warned}");
    check("mixtral", &format!("{INT4}    symmetric: false\n"), refused, "", &warned_of_two);
    check("mixtral", W8A8, refused, "", &format!("sglang-experts-activations {warned}"));
    check("mixtral", FIRST_LAYER_INT8, "!several-expert-schemes", "", "several-expert-schemes");
    let attention = "  - stage: quantize-int8\n    targets: [self_attn]\n  - stage: quantize-int4\n";
    check("mixtral", attention, "", "", "");
}

#[test]
fn experts_left_alone_beside_quantized_layers_are_noise_in_transformers() {
    let kept = "  - stage: resolve-skips\n    on_unmatched: ignore\n    skip_layer_types: [Experts]\n    skip_layer_names: [experts]\n\
                \x20 - stage: quantize-int4\n    indivisible: shrink\n";
    for model in ["mixtral", "qwen3-moe", "qwen2-moe", "glm4-moe", "deepseek-v3"] {
        let planned = |target: &str| said(&plan_for(target, model, kept));
        assert!(planned("transformers").contains("!kept-experts"), "{model}: {}", planned("transformers"));
        assert!(planned("any").contains("!kept-experts"), "{model}: {}", planned("any"));
        assert!(!planned("vllm").contains("kept-experts"), "{model}: {}", planned("vllm"));
    }
    // A stack that is skipped is loaded as it is, and Llama 4 has a module an expert.
    for model in ["llama4", "qwen3-5-moe"] {
        assert!(!said(&plan_for("any", model, kept)).contains("kept-experts"), "{model}");
    }
}

#[test]
fn several_schemes_would_be_noise_where_transformers_renames_modules() {
    let outputs = "  - stage: quantize-int8\n    targets: [wo_b]\n  - stage: quantize-int4\n";
    for (model, stages) in [("deepseek-v4", outputs), ("minimax-m3", FIRST_LAYER_INT8)] {
        check(model, stages, "!several-schemes", "", "!several-schemes");
        check(model, INT4, "", "", "");
    }
}

#[test]
fn modules_that_engines_build_plain_are_refused() {
    let routers = "  - stage: resolve-skips
    quantize_anyway: [Router]
  - stage: quantize-int4
    targets: [Linear, Router]
";
    check("mixtral", routers, "!quantized-router", "!quantized-router", "!quantized-router");
    let gate = "  - stage: resolve-skips
    quantize_anyway: [shared_expert_gate]
    skip_param_threshold: 1
  - stage: quantize-int4
    targets: [Linear, shared_expert_gate]
";
    check("qwen2-moe", gate, "", "!quantized-router", "quantized-router");
    let plain = |types: &str| {
        format!("  - stage: resolve-skips\n    quantize_anyway: [{types}]\n{INT4}    granularity: channel\n")
    };
    for (model, types) in
        [("gpt-oss", "lm_head"), ("deepseek-v32", "Indexer"), ("glm4-moe", "MTP"), ("qwen4-exp", "Hyper")]
    {
        let planned = plan_for("vllm", model, &plain(types));
        assert!(said(&planned).contains("!vllm-plain-module"), "{model}: {}", said(&planned));
        let planned = plan_for("transformers", model, &plain(types));
        assert!(!said(&planned).contains("vllm"), "{model}: {}", said(&planned));
    }
    check("llama", &plain("lm_head"), "", "", "");
    check(
        "lfm2",
        "  - stage: quantize-int8\n    targets: [Conv1d]\n",
        "!not-loadable-kind",
        "!not-loadable-kind",
        "!not-loadable-kind",
    );
}

#[test]
fn what_vllm_fuses_is_not_split() {
    let skip = "  - stage: resolve-skips\n    skip_layer_names: [v_proj]\n  - stage: quantize-int4\n";
    check("llama", skip, "", "!split-siblings", "!split-siblings");
    let two = "  - stage: quantize-int8\n    targets: [up_proj]\n  - stage: quantize-int4\n";
    check("llama", two, "", "!split-siblings", "!split-siblings");
    check("llama", &format!("{skip}    siblings: warn\n"), "", "split-siblings", "split-siblings");
}
