//! Rules about mixtures of experts. transformers merges them into stacks, but only for some families and schemes.

use super::{Engine, Manner, Refusal, Subject, is_expert};
use crate::finding::Finding;
use crate::layer::LayerType;
use crate::model::ModelFolder;
use crate::plan::phases::{Classified, Deciding};
use crate::plan::select::{Action, Decision, Rule};
use crate::quant::Storage;
use crate::recipe::Loaded;
use crate::stage::Stage;
use crate::stage::export::Format;

/// transformers takes one scheme for the experts of all layers ("issues during automatic conversion").
pub(super) fn second_scheme_of_experts(schemes: usize) -> Option<Refusal> {
    (schemes > 1).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::several-expert-schemes",
        message: "transformers loads quantized experts only if all layers' share one scheme".to_owned(),
        key: "targets",
        help: "Use one scheme for the experts of all layers, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// transformers merges quantized experts back into a stack, and knows how for symmetric packed codes alone ("issues during
/// automatic conversion").
pub(super) fn experts_with_zero_points_or_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    (is_expert(subject) && (!scheme.symmetric || scheme.storage == Storage::Plain)).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::transformers-experts-scheme",
        message: "transformers loads quantized experts only if they are symmetric and packed".to_owned(),
        key: if scheme.symmetric { "activations" } else { "symmetric" },
        help: "Use `symmetric: true` without `activations` for experts, or export with `target: vllm`."
            .to_owned(),
        manner: Manner::Loudly,
    })
}

/// Families in which transformers 5 merges experts stored as one tensor each into the stacks that it computes with,
/// or which have one module per expert (Llama 4). In any other family, quantized experts would be reported as
/// unexpected, and the stacks would be random.
pub(super) const MERGED_EXPERTS: &[&str] = &[
    "afmoe",
    "axk1",
    "axk2",
    "cohere2_moe",
    "deepseek",
    "dots1",
    "ernie4_5",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4v_moe",
    "glm5_next",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "hy_v3",
    "jamba",
    "kimi",
    "laguna",
    "lfm2_moe",
    "llama4",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_omni_moe",
    "qwen4_exp",
    "solar_open",
];

/// Families whose experts no engine takes quantized: vLLM's loaders of them know stacks only.
const STACKS_ONLY: &[&str] = &["gpt_oss", "granitemoe"];

/// The engine that cannot load a family's stacked experts once they are split and quantized. None if every engine
/// can.
fn stack_refused_by(family: &str) -> Option<Engine> {
    let is_one_of = |names: &[&str]| names.iter().any(|name| family.starts_with(name));
    match family {
        _ if is_one_of(STACKS_ONLY) => Some(Engine::All),
        _ if is_one_of(MERGED_EXPERTS) => None,
        _ => Some(Engine::Transformers),
    }
}

/// The problem with quantized experts of a family, as a sentence without its end.
fn stack_refusal(family: &str, engine: Engine) -> String {
    let family = if family.is_empty() { "an unknown family" } else { family };
    match engine {
        Engine::All => format!("no engine loads quantized experts of {family}"),
        _ => format!("transformers does not load quantized experts of {family}"),
    }
}

/// A stack of experts that would be random numbers in an engine, with nothing but missing keys reported.
pub(super) fn stacked_experts(subject: &Subject<'_>) -> Option<Refusal> {
    let engine = stack_refused_by(subject.model_type).filter(|_| subject.kind == LayerType::Experts)?;
    let mut help =
        "Leave them alone with `skip_layer_types: [Experts]`: the stack is then copied as it is.".to_owned();
    if engine == Engine::Transformers {
        help.push_str(" Or export with `target: vllm`.");
    }
    Some(Refusal {
        engine,
        code: "plan::stacked-experts",
        message: stack_refusal(subject.model_type, engine),
        key: "targets",
        help,
        manner: Manner::Silently,
    })
}

/// Skips stacks of experts that an engine of an export could not load, unless the recipe overrides that default. The
/// format is not considered, so that a recipe gives the same weights in every format.
pub(in crate::plan) fn leave_unloadable_experts(deciding: &mut Deciding<'_>) -> Option<Finding> {
    let Deciding { of: Classified { loaded, model, .. }, items, stages, decisions, .. } = deciding;
    let family = model.config.model_type().unwrap_or_default();
    let engine = stack_refused_by(family)?;
    let is_for_it =
        |stage: &Stage| matches!(stage, Stage::Export(export) if engine.severity(export.target).is_some());
    let (export, _) = loaded.recipe.stages.numbered().find(|(_, stage)| is_for_it(stage))?;
    let rule = Rule {
        pointer: None,
        text: "built-in: experts that an engine cannot load".into(),
        reason: stack_refusal(family, engine).into(),
        origin: crate::plan::select::Origin::BuiltIn,
    };
    let (left, mut bytes) = (Decision::new(Action::Keep, rule), 0);
    for (item, decision) in items.iter().zip(decisions.iter_mut()) {
        let Some(spec) = decision.spec().filter(|_| item.class.kind == LayerType::Experts) else {
            continue;
        };
        let keeps_defaults =
            stages.iter().any(|stage| stage.index == spec.stage && stage.has_default_skips_for(item));
        if keeps_defaults {
            bytes += item.tensor.bytes;
            *decision = left.clone();
        }
    }
    let all: u64 = model.tensors.iter().map(|tensor| tensor.bytes).sum();
    let share = bytes as f64 / all.max(1) as f64 * 100.0;
    let mut finding = Finding::warning(
        "plan::experts-left-alone",
        format!("the experts, {share:.0} % of the model, are skipped: {}", stack_refusal(family, engine)),
    )
    .at_opt(loaded.stage_place(export), "exported for it");
    if engine == Engine::Transformers {
        finding = finding.help("With `target: vllm` they are quantized.");
    }
    (bytes > 0).then_some(finding)
}

/// Whether stacks of experts are split even if they are skipped. With any compressed-tensors config, transformers
/// builds Llama 4 with one module per expert.
pub(in crate::plan) fn splits_kept_experts(loaded: &Loaded, model: &ModelFolder) -> bool {
    let exported =
        loaded.recipe.stages.iter().any(
            |stage| matches!(stage, Stage::Export(export) if export.format == Format::CompressedTensors),
        );
    exported && model.config.model_type().is_some_and(|family| family.starts_with("llama4"))
}
