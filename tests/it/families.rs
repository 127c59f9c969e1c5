//! Plans of 40 families with one short recipe that names none of them: what is quantized, what is skipped and why, and the
//! config that engines are told, against a golden file. `INSTA_UPDATE=always` writes it anew for the review.
//!
//! `tests/interop` opens the outputs of the same plans in transformers and vLLM; this is what of it needs no Python.

use std::collections::BTreeMap;
use std::fmt::Write;

use monoquant::finding::Failure;
use monoquant::ids::{ExportId, TensorId};
use monoquant::plan::compressed_tensors::contradictions;
use monoquant::plan::config::{left_alone, quantized_modules};
use monoquant::plan::{self, Action, ExportPlan, Limits, Plan};
use monoquant::quant::Role;
use monoquant::recipe::{self, Overrides};
use serde_json::Value;

use crate::support::{Model, Workspace, assert_reviewed, headers, tensors};

/// The recipe of `tests/interop/check_models.py`.
const RECIPE: &str = "\
version: 1
name: any-model
stages:
  - stage: load
    model: model
  - stage: quantize-int4
    group_size: 32
  - stage: export
    path: out
";

/// Plans the fixture `name` with the recipe and some `--set`.
fn plan_with(name: &str, set: &[&str]) -> Result<Plan, Failure> {
    plan_text(name, RECIPE, set)
}

fn plan_text(name: &str, recipe: &str, set: &[&str]) -> Result<Plan, Failure> {
    let model = headers::model(name);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yaml");
    std::fs::write(&path, recipe).expect("a file in a temporary folder");
    let overrides = Overrides {
        set: set.iter().map(|&text| text.to_owned()).collect(),
        model: Some(model.path().to_str().expect("a path in UTF-8").to_owned()),
        ..Overrides::default()
    };
    plan::plan(recipe::load(&path, &overrides)?, Limits::default())
}

fn config(export: &ExportPlan) -> Value {
    let text = export.config.as_deref().expect("every fixture has a config");
    serde_json::from_str::<Value>(text).expect("config.json is JSON")["quantization_config"].clone()
}

/// Codes of the findings, the worst first where severities differ.
fn codes(failure: &Failure) -> Vec<&'static str> {
    failure.findings.iter().filter(|finding| finding.is_error()).map(|finding| finding.code).collect()
}

/// What must hold for every family, whatever is quantized.
fn check(name: &str, plan: &Plan) {
    for export in &plan.exports {
        let stage = export.stage;
        let modules = quantized_modules(plan.content(), stage);
        let kept = left_alone(plan.content(), stage);
        let found = contradictions(&config(export), &modules, &kept);
        assert!(found.is_empty(), "{name}: {found:?}");

        // Every tensor leaves, and every byte of the files is a header's or some tensor's.
        for (index, tensor) in plan.model.tensors.numbered() {
            let parts: Vec<_> =
                export.tensors.iter().filter(|out| out.tensor(plan.content()) == index).collect();
            let is_quantized = plan.decisions[index].spec().is_some();
            assert!(!parts.is_empty(), "{name}: {} does not leave", tensor.name);
            let has_codes = parts.iter().any(|part| part.role(plan.content()) == Role::Codes);
            assert_eq!(has_codes, is_quantized, "{name}: {}", tensor.name);
            if !is_quantized {
                assert_eq!(
                    parts.iter().map(|part| part.bytes(plan.content())).sum::<u64>(),
                    tensor.bytes,
                    "{name}: {}",
                    tensor.name
                );
            }
        }
        let tensors: u64 = export.tensors.iter().map(|tensor| tensor.bytes(plan.content())).sum();
        let headers: u64 = export.files.iter().map(|file| file.header_len).sum();
        assert_eq!(tensors + headers, export.weight_bytes(), "{name}: bytes of tensors, headers and files");
    }
    for group in &plan.fused_modules {
        let spec = |member: TensorId| plan.decisions[member].spec();
        let first = group.members().next().and_then(spec).map(|spec| spec.scheme);
        for member in group.members() {
            let own = spec(member).map(|spec| spec.scheme);
            assert_eq!(
                own, first,
                "{name}: {} with {} is split",
                group.fused, plan.model.tensors[member].name
            );
        }
    }
}

/// A module's name without the numbers of layers and experts.
fn numberless(name: &str) -> String {
    let segments =
        name.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "N" } else { part });
    segments.collect::<Vec<_>>().join(".")
}

/// What is done with a family, a few lines: the modules that hold codes, how many tensors are skipped for which reason, the
/// ignore list.
pub fn summary(plan: &Plan) -> String {
    let mut text = String::new();
    let export = &plan.exports[ExportId::new(0)];
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for module in quantized_modules(plan.content(), export.stage) {
        *codes.entry(numberless(module.name)).or_default() += 1;
    }
    for (module, count) in codes {
        writeln!(text, "  int4  {count:3}  {module}").expect("text grows");
    }
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    for decision in plan.decisions.iter().filter(|decision| decision.action == Action::Keep) {
        *kept.entry(&decision.rule.reason).or_default() += 1;
    }
    for (reason, count) in kept {
        writeln!(text, "  kept  {count:3}  {reason}").expect("text grows");
    }
    let config = config(export);
    let groups = config["config_groups"].as_object().expect("groups by name");
    for group in groups.values() {
        writeln!(text, "  targets    {}", group["targets"]).expect("text grows");
    }
    for entry in config["ignore"].as_array().expect("a list") {
        writeln!(text, "  ignore     {}", entry.as_str().expect("text")).expect("text grows");
    }
    for finding in &plan.warnings {
        writeln!(text, "  warning    {}: {}", finding.code, finding.message).expect("text grows");
    }
    for note in &plan.notes {
        writeln!(text, "  note       {note}").expect("text grows");
    }
    text
}

#[test]
fn one_short_recipe_plans_every_family() {
    let mut found = String::new();
    for name in headers::names() {
        writeln!(found, "{name}").expect("text grows");
        match plan_with(&name, &[]) {
            Ok(plan) => {
                check(&name, &plan);
                found.push_str(&summary(&plan));
            }
            Err(failure) => {
                writeln!(found, "  refused    {}", codes(&failure).join(", ")).expect("text grows")
            }
        }
    }
    assert_reviewed("tests/fixtures/plans.txt", &found);
}

#[test]
fn only_gpt2_is_refused() {
    let refused: Vec<String> =
        headers::names().into_iter().filter(|name| plan_with(name, &[]).is_err()).collect();
    assert_eq!(refused, ["gpt2"]);
    let failure = plan_with("gpt2", &[]).expect_err("nothing to quantize");
    assert_eq!(codes(&failure), ["plan::nothing-to-quantize"]);
    assert!(failure.findings.iter().any(|finding| format!("{finding:?}").contains("Conv1D")), "{failure:?}");
    let failure = plan_with("gpt2", &["quantize-int4.targets=[Conv1D]"]).expect_err("no engine has it");
    assert_eq!(codes(&failure), ["plan::not-loadable-kind"]);
    // As plain numbers every tool takes it: groups run along the inputs, which GPT-2 has as rows.
    let plan = plan_with("gpt2", &["quantize-int4.targets=[Conv1D]", "export.format=dequantized"]);
    let plan = plan.expect("dequantized can always be written");
    let is_wanted = |name: &str| name.ends_with("h.0.mlp.c_fc.weight");
    let task = plan.tasks.iter().find(|task| is_wanted(&plan.model.tensors[task.tensor()].name));
    let task = task.expect("it is there");
    let view = task.matrix(&plan.model).expect("a matrix");
    let shape = &plan.model.tensors[task.tensor()].shape;
    assert_eq!((&[view.cols, view.rows][..], view.row_stride), (&shape[..], 1));
}

/// What is done with the experts under each target, and under `quantize_anyway: [Experts]`.
#[test]
fn stacked_experts_are_left_alone_where_an_engine_would_load_noise() {
    const ANYWAY: &str = "\
version: 1
name: any-model
stages:
  - stage: load
    model: model
  - stage: resolve-skips
    quantize_anyway: [Experts]
  - stage: quantize-int4
    group_size: 32
  - stage: export
    path: out
";
    let experts_quantized = |plan: &Plan| {
        plan.tasks.iter().any(|task| {
            plan.decisions[task.tensor()].spec().is_some() && task.module(&plan.model).contains(".experts.")
        })
    };
    // (family, whether vLLM takes its experts)
    for (name, vllm) in
        [("gemma4-moe", true), ("qwen3-vl-moe", true), ("gpt-oss", false), ("granite-moe-hybrid", false)]
    {
        for (target, quantized) in [("any", false), ("transformers", false), ("vllm", vllm)] {
            let set = format!("export.target={target}");
            let plan =
                plan_with(name, &[&set]).unwrap_or_else(|failure| panic!("{name}, {target}: {failure}"));
            assert_eq!(experts_quantized(&plan), quantized, "{name}, {target}");
            let warned = plan.warnings.iter().any(|finding| finding.code == "plan::experts-left-alone");
            assert_eq!(warned, !quantized, "{name}, {target}");
            check(name, &plan);

            match plan_text(name, ANYWAY, &[&set]) {
                Ok(plan) => assert!(quantized && experts_quantized(&plan), "{name}, {target}: let through"),
                Err(failure) => {
                    assert!(!quantized, "{name}, {target}: {failure}");
                    assert_eq!(codes(&failure), ["plan::stacked-experts"], "{name}, {target}");
                }
            }
        }
        let plain = plan_text(name, ANYWAY, &["export.format=dequantized"]).expect("can always be written");
        assert!(experts_quantized(&plain), "{name}");
    }
    for name in ["qwen3-5-moe", "qwen3-6-moe", "llama4"] {
        let plan = plan_with(name, &["export.target=transformers"]).expect("transformers merges them");
        assert!(experts_quantized(&plan), "{name}");
    }
}

/// transformers builds Llama 4 with a module an expert beside any config, so its stacks are split whatever becomes of them.
#[test]
fn experts_of_llama_4_are_always_split() {
    let recipe = RECIPE.replace(
        "  - stage: quant",
        "  - stage: resolve-skips\n    skip_layer_types: [Experts]\n  - stage: quant",
    );
    let plan = plan_text("llama4", &recipe, &[]).expect("it plans");
    check("llama4", &plan);
    let content = plan.content();
    let shapes: BTreeMap<String, monoquant::model::Shape> = plan.exports[ExportId::new(0)]
        .tensors
        .iter()
        .map(|tensor| (tensor.name(content), tensor.shape(content)))
        .collect();
    let experts = "language_model.model.layers.1.feed_forward.experts";
    assert_eq!(shapes[format!("{experts}.3.gate_proj.weight").as_str()], [384, 256]);
    assert_eq!(shapes[format!("{experts}.0.down_proj.weight").as_str()], [256, 384]);
    assert!(!shapes.contains_key(format!("{experts}.gate_up_proj").as_str()));
    let ignore = config(&plan.exports[ExportId::new(0)])["ignore"].to_string();
    assert!(ignore.contains(r"\\.experts\\..*$"), "{ignore}");

    let plain = plan_text("llama4", &recipe, &["export.format=dequantized"]).expect("it plans");
    assert!(
        plain.exports[ExportId::new(0)]
            .tensors
            .iter()
            .any(|tensor| tensor.name(plain.content()) == format!("{experts}.gate_up_proj"))
    );
}

/// vLLM calls a part of these layers otherwise than the file, and matches entries against its own names.
#[test]
fn what_vllm_renames_is_ignored_by_both_names() {
    let recipe = RECIPE.replace(
        "  - stage: quant",
        "  - stage: resolve-skips\n    skip_layer_names: [mamba]\n  - stage: quant",
    );
    let plan = plan_text("granite-moe-hybrid", &recipe, &[]).expect("it plans");
    check("granite-moe-hybrid", &plan);
    let config = config(&plan.exports[ExportId::new(0)]);
    let ignore = config["ignore"].as_array().expect("a list");
    let entries: Vec<&str> = ignore.iter().filter_map(Value::as_str).collect();
    assert!(entries.contains(&r"re:.*\.(mamba|mixer)\.in_proj$"), "{entries:?}");
    // A stack that is skipped is looked up as its first expert.
    assert!(entries.contains(&r"re:.*\.block_sparse_moe\.experts\..*$"), "{entries:?}");
}

/// The stack [experts, in, out] with gate and up side by side becomes matrices [out, in], value by value; in `dequantized` it stays
/// what it is.
#[test]
fn a_kept_stack_of_llama_4_is_cut_and_turned() {
    let (experts, hidden, inner) = (2, 128, 32);
    let stack = "model.layers.0.feed_forward.experts.gate_up_proj";
    let mut model = Model::llama()
        .with_config("model_type", "llama4".into())
        .with_config("num_local_experts", experts.into());
    model.add(stack, &[experts, hidden, 2 * inner]);
    let workspace = Workspace::with(&model);
    let recipe = workspace.whole_recipe(
        "  - stage: load
    model: model
  - stage: resolve-skips
    skip_layer_types: [Experts]
  - stage: quantize-int4
  - stage: export
    path: out
  - stage: export
    path: plain
    format: dequantized
",
    );
    workspace.run(&recipe).exits(0);
    let source = tensors(&workspace.path("model"));
    let (cut, plain) = (tensors(&workspace.path("out")), tensors(&workspace.path("plain")));
    assert_eq!(plain[stack].bytes, source[stack].bytes);
    assert!(!cut.contains_key(stack));
    let value = |bytes: &[u8], index: usize| [bytes[2 * index], bytes[2 * index + 1]];
    for expert in 0..experts {
        for (half, part) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let name = format!("model.layers.0.feed_forward.experts.{expert}.{part}.weight");
            assert_eq!(cut[&name].shape, [inner, hidden]);
            for (row, column) in (0..inner).flat_map(|row| (0..hidden).map(move |column| (row, column))) {
                let at = (expert * hidden + column) * 2 * inner + half * inner + row;
                let found = value(&cut[&name].bytes, row * hidden + column);
                assert_eq!(found, value(&source[stack].bytes, at), "{name} [{row}, {column}]");
            }
        }
    }
}

/// The page of supported families is written from these plans, and from the models that are compared with transformers.
#[test]
fn the_page_of_families_says_what_the_plans_say() {
    let mut page = String::from(
        "# Families and engines\n\nEach row is a model of this family whose plan the tests hold: int4 in groups of 32, with a recipe that \
         names none of them.\nA cell says whether the plan lets the output go to the engine, by its rules; or the codes of what speaks against \
         it, which\n[findings.md](findings.md) explains. Models of other families are planned by their shapes and names, with a warning if \
         no\nengine builds them. The page is generated.\n\n| family | `model_type` | vLLM | SGLang | transformers |\n| --- | --- | --- | --- | --- |\n",
    );
    for name in headers::names() {
        let config = &headers::Fixture::load(&name).config;
        let model_type = config["model_type"].as_str().unwrap_or("–");
        let cell = |target: &str| match plan_with(&name, &[&format!("export.target={target}")]) {
            Ok(_) => "yes".to_owned(),
            Err(failure) => {
                let mut codes = codes(&failure);
                codes.dedup();
                codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ")
            }
        };
        let cells = ["vllm", "sglang", "transformers"].map(cell).join(" | ");
        writeln!(page, "| {name} | `{model_type}` | {cells} |").expect("memory takes everything");
    }
    let folder = crate::support::root().join("tests/fixtures/network");
    let mut run: Vec<String> = std::fs::read_dir(folder)
        .expect("the fixtures")
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string().expect("a name");
            name.strip_suffix(".safetensors").map(|name| format!("`{name}`"))
        })
        .collect();
    run.sort();
    writeln!(
        page,
        "\n## Models that can be run\n\n`calibrate` and `evaluate` run these, held to transformers by the tests:\n{}.",
        run.join(", ")
    )
    .expect("memory takes everything");
    assert_reviewed("docs/families.md", &page);
}
