//! What engines can load: every rule of transformers and vLLM that would otherwise be found out after publishing.
//!
//! One rule a function. What only the named engine refuses is an error under `target: <engine>`, a warning under `any`, and
//! nothing under the other engine's name. What an engine does not refuse but loads as noise is an error under `any` too.
//! `tests/interop/check_rules.py` tries each rule on the engines themselves, both ways.

use super::layout::{ExportPlan, Piece};
use super::select::{Action, Decision, Item, QuantizeStage, Rule, Treatment};
use crate::finding::{Finding, Severity};
use crate::layer::LayerType;
use crate::model::{Dtype, LayerClass, ModelFolder};
use crate::quant::{Bits, FloatType, Granularity, Scheme, Storage};
use crate::recipe::Loaded;
use crate::stage::export::{Format, Target};
use crate::stage::{ActivationScheme, Stage};

pub(super) mod kept_experts;

/// An engine, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Vllm,
    Transformers,
    All,
}

impl Engine {
    /// How bad it is, for an export with this target; none where it does not matter.
    fn severity(self, target: Target) -> Option<Severity> {
        match (self, target) {
            (Engine::All, _)
            | (Engine::Vllm, Target::Vllm)
            | (Engine::Transformers, Target::Transformers) => Some(Severity::Error),
            (_, Target::Any) => Some(Severity::Warning),
            _ => None,
        }
    }
}

/// What an engine cannot load.
struct Refusal {
    engine: Engine,
    code: &'static str,
    message: String,
    /// The key of the quantize stage to point at.
    key: &'static str,
    help: String,
    /// How the engine takes it.
    manner: Manner,
}

/// How an engine takes what it cannot load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// With an error.
    Loudly,
    /// With random or misread weights in the place of the right ones, and no error.
    Silently,
    /// With an error on some machines only, or with a loss: a warning even under the engine's own name.
    Sometimes,
}

/// A quantized tensor, as the rules see it.
struct Subject<'a> {
    name: &'a str,
    kind: LayerType,
    role: Option<LayerType>,
    source: Dtype,
    treatment: &'a Treatment,
    rows: u64,
    model_type: &'a str,
}

/// Findings for everything in an export that an engine cannot load.
pub(super) fn check(
    loaded: &Loaded,
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
    export: &ExportPlan,
) -> Vec<Finding> {
    if export.format != Format::CompressedTensors {
        return Vec::new();
    }
    // The first tensor of each (stage, rule) carries the finding; the others are counted.
    let mut found: Vec<(usize, Refusal, Vec<&str>)> = Vec::new();
    let model_type = model.config.model_type().unwrap_or_default();
    let mut schemes: Vec<(Scheme, ActivationScheme)> = Vec::new();
    let mut expert_schemes = Vec::new();
    for (index, decision) in decisions.iter().enumerate() {
        let Some(treatment) = super::layout::treatment_at(decision, export.stage) else { continue };
        let tensor = &model.tensors[index];
        let rows = super::select::matrix_shape(tensor).map_or(0, |(rows, _)| rows);
        let name = super::select::subject(tensor);
        let LayerClass { kind, role, .. } = classes[index];
        let subject = Subject { name, kind, role, source: tensor.dtype, treatment, rows, model_type };
        let scheme = (treatment.scheme, treatment.activations);
        let mut refusals: Vec<Refusal> = RULES.iter().filter_map(|rule| rule(&subject)).collect();
        if is_new(&mut schemes, scheme) {
            refusals.extend(second_scheme(&subject, schemes.len()));
        }
        if is_expert(&subject) && is_new(&mut expert_schemes, scheme) {
            refusals.extend(second_scheme_of_experts(expert_schemes.len()));
        }
        for refusal in refusals {
            match found.iter_mut().find(|(stage, known, _)| {
                *stage == treatment.stage && known.code == refusal.code && known.engine == refusal.engine
            }) {
                Some((_, _, names)) => names.push(name),
                None => found.push((treatment.stage, refusal, vec![name])),
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(stage, refusal, names)| {
            let mut severity = refusal.engine.severity(export.target)?;
            match refusal.manner {
                Manner::Loudly => {}
                Manner::Silently => severity = Severity::Error,
                Manner::Sometimes => severity = Severity::Warning,
            }
            let place = super::places::said_or_stage(loaded, stage, refusal.key);
            let others = match names.len() {
                1 => format!("`{}`", names[0]),
                n => format!("`{}` and {} more", names[0], n - 1),
            };
            let mut finding = Finding::error(refusal.code, refusal.message);
            finding.severity = severity;
            Some(
                finding
                    .at_opt(place, format!("asked for here, for {others}"))
                    .at_opt(
                        loaded.stage_place(export.stage),
                        format!("exported for {}", target_name(export.target)),
                    )
                    .help(refusal.help),
            )
        })
        .collect()
}

/// Whether a scheme is the first of its kind; takes note of it.
fn is_new(known: &mut Vec<(Scheme, ActivationScheme)>, scheme: (Scheme, ActivationScheme)) -> bool {
    let is_new = !known.contains(&scheme);
    if is_new {
        known.push(scheme);
    }
    is_new
}

/// Several schemes need targets by name, and in these families transformers renames the last part of names, or fuses modules:
/// nothing would be targeted and the weights be random.
fn second_scheme(subject: &Subject<'_>, schemes: usize) -> Option<Refusal> {
    let is_renamed = ["deepseek_v4", "minimax_m3"].iter().any(|name| subject.model_type.starts_with(name));
    (schemes > 1 && is_renamed).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::several-schemes",
        message: format!("transformers cannot tell several schemes apart in {}", subject.model_type),
        key: "targets",
        help: "Use one scheme for all layers, or export with `target: vllm`.".to_owned(),
        manner: Manner::Silently,
    })
}

/// transformers takes one scheme for the experts of all layers ("issues during automatic conversion").
fn second_scheme_of_experts(schemes: usize) -> Option<Refusal> {
    (schemes > 1).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::several-expert-schemes",
        message: "transformers loads quantized experts only if all layers' share one scheme".to_owned(),
        key: "targets",
        help: "Use one scheme for the experts of all layers, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

fn target_name(target: Target) -> &'static str {
    match target {
        Target::Vllm => "vllm",
        Target::Transformers => "transformers",
        Target::Any => "any engine",
    }
}

const RULES: &[fn(&Subject<'_>) -> Option<Refusal>] = &[
    not_linear,
    router,
    built_plain,
    tensor_scale,
    activations_with_groups,
    activations_with_zero_points,
    int4_with_activations,
    int8_with_zero_points,
    unusual_group,
    zero_point_words,
    rounded_scales,
    experts_with_zero_points_or_activations,
    stacked_experts,
];

fn is_expert(subject: &Subject<'_>) -> bool {
    subject.kind == LayerType::Experts || super::siblings::experts_parent(subject.name).is_some()
}

/// transformers merges quantized experts back into a stack, and knows how for symmetric packed codes alone ("issues during
/// automatic conversion").
fn experts_with_zero_points_or_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.treatment.scheme;
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

/// Families in which transformers 5 merges experts, one tensor each, into the stacks that it computes with, or that have a
/// module an expert (Llama 4). In any other family quantized experts would be reported as unexpected and the stacks be random.
const MERGED_EXPERTS: &[&str] = &[
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

/// Who cannot load a family's stacked experts once they are split and quantized; none where every engine can.
fn stack_refused_by(family: &str) -> Option<Engine> {
    let is_one_of = |names: &[&str]| names.iter().any(|name| family.starts_with(name));
    match family {
        _ if is_one_of(STACKS_ONLY) => Some(Engine::All),
        _ if is_one_of(MERGED_EXPERTS) => None,
        _ => Some(Engine::Transformers),
    }
}

/// What is wrong with quantized experts of a family, as a sentence without its end.
fn stack_refusal(family: &str, engine: Engine) -> String {
    let family = if family.is_empty() { "an unknown family" } else { family };
    match engine {
        Engine::All => format!("no engine loads quantized experts of {family}"),
        _ => format!("transformers does not load quantized experts of {family}"),
    }
}

/// A stack of experts that would be random numbers in an engine, with nothing but missing keys reported.
fn stacked_experts(subject: &Subject<'_>) -> Option<Refusal> {
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

/// Leaves stacks of experts alone that an engine of an export could not load, unless the recipe takes that default back. The
/// format does not count, so that a recipe gives the same weights in every format.
pub(super) fn leave_unloadable_experts(
    loaded: &Loaded,
    model: &ModelFolder,
    stages: &[QuantizeStage<'_>],
    items: &[Item<'_>],
    decisions: &mut [Decision],
) -> Option<Finding> {
    let family = model.config.model_type().unwrap_or_default();
    let engine = stack_refused_by(family)?;
    let export = loaded.recipe.stages.iter().position(
        |stage| matches!(stage, Stage::Export(export) if engine.severity(export.target).is_some()),
    )?;
    let mut bytes = 0;
    for (item, decision) in items.iter().zip(decisions.iter_mut()) {
        let Some(treatment) = decision.treatment().filter(|_| item.class.kind == LayerType::Experts) else {
            continue;
        };
        let keeps_defaults =
            stages.iter().any(|stage| stage.index == treatment.stage && stage.has_default_skips_for(item));
        if keeps_defaults {
            bytes += item.tensor.bytes;
            *decision = Decision {
                action: Action::Keep,
                rule: Rule {
                    pointer: None,
                    text: "built-in: experts that an engine cannot load".to_owned(),
                    reason: stack_refusal(family, engine),
                    is_default_skip: true,
                },
            };
        }
    }
    let all: u64 = model.tensors.iter().map(|tensor| tensor.bytes).sum();
    let share = bytes as f64 / all.max(1) as f64 * 100.0;
    let mut finding = Finding::warning(
        "plan::experts-left-alone",
        format!("the experts, {share:.0} % of the model, are left alone: {}", stack_refusal(family, engine)),
    )
    .at_opt(loaded.stage_place(export), "exported for it");
    if engine == Engine::Transformers {
        finding = finding.help("With `target: vllm` they are quantized.");
    }
    (bytes > 0).then_some(finding)
}

/// Whether stacks of experts are split even where they are left alone: beside any compressed-tensors config, transformers
/// builds Llama 4 with a module an expert.
pub(super) fn splits_kept_experts(loaded: &Loaded, model: &ModelFolder) -> bool {
    let exported =
        loaded.recipe.stages.iter().any(
            |stage| matches!(stage, Stage::Export(export) if export.format == Format::CompressedTensors),
        );
    exported && model.config.model_type().is_some_and(|family| family.starts_with("llama4"))
}

fn weights_only(subject: &Subject<'_>) -> bool {
    subject.treatment.activations == ActivationScheme::None
}

/// Only modules of class Linear, and experts, have a quantized form that loaders know.
fn not_linear(subject: &Subject<'_>) -> Option<Refusal> {
    let kind = subject.kind;
    (!matches!(kind, LayerType::Linear | LayerType::Experts | LayerType::Router)).then(|| Refusal {
        engine: Engine::All,
        code: "plan::not-loadable-kind",
        message: format!("no engine loads a quantized {}", kind.name()),
        key: "targets",
        help: format!(
            "Leave it alone with `skip_layer_types: [{}]` on a `resolve-skips` stage, or export with `format: dequantized`.",
            kind.name()
        ),
        manner: Manner::Loudly,
    })
}

/// Routers are parameters of their own class: codes beside them would be reported as unexpected and the router be random. The few
/// that transformers builds as a Linear are still plain in vLLM.
fn router(subject: &Subject<'_>) -> Option<Refusal> {
    let is_linear = subject.name.ends_with(".shared_expert_gate") || subject.name.ends_with(".router.proj");
    (subject.kind == LayerType::Router).then(|| Refusal {
        engine: if is_linear { Engine::Vllm } else { Engine::All },
        code: "plan::quantized-router",
        message: format!(
            "{} a quantized router",
            if is_linear { "vLLM does not load" } else { "no engine loads" }
        ),
        key: "targets",
        help: "Leave it alone with `skip_layer_types: [Router]`: it is small, and chooses the experts."
            .to_owned(),
        manner: if is_linear { Manner::Loudly } else { Manner::Silently },
    })
}

/// Modules that vLLM's models build without a quantization config, so that the file must hold plain weights.
fn built_plain(subject: &Subject<'_>) -> Option<Refusal> {
    let last = subject.name.rsplit('.').next().unwrap_or_default();
    let has_segment = |wanted: &str| subject.name.split('.').any(|segment| segment == wanted);
    let family = |names: &[&str]| names.iter().any(|name| subject.model_type.starts_with(name));
    let is_plain = match subject.role {
        Some(LayerType::Head) => {
            family(&["gpt_oss", "qwen3_next", "opt", "deepseek_v4", "qwen4_exp", "bert", "whisper"])
        }
        Some(LayerType::Indexer) => has_segment("compressor") || matches!(last, "wk" | "weights_proj"),
        Some(LayerType::Hyper) => true,
        Some(LayerType::MTP) => last == "eh_proj" && !family(&["nemotron_h"]),
        _ => has_segment("pooler") || last == "merging_layer" || has_segment("cls") && family(&["bert"]),
    };
    is_plain.then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-plain-module",
        message: format!("vLLM builds `{last}` of this family without quantization"),
        key: "targets",
        help: "Leave it alone with `modules_to_not_convert`, or export with `target: transformers`."
            .to_owned(),
        manner: Manner::Loudly,
    })
}

/// Loaders hold scales in the model's type: finer ones are rounded a second time, after the codes were chosen.
fn rounded_scales(subject: &Subject<'_>) -> Option<Refusal> {
    let scales = subject.treatment.scheme.scale_type;
    let is_rounded = match subject.source {
        Dtype::Bf16 => scales != FloatType::Bf16,
        Dtype::F16 => scales != FloatType::F16,
        _ => false,
    };
    is_rounded.then(|| Refusal {
        engine: Engine::All,
        code: "plan::rounded-scales",
        message: format!("engines round {} scales to the model's {}", scales.name(), subject.source.name()),
        key: "scale_dtype",
        help: "Use `scale_dtype: auto`: codes are then chosen for the scales that engines use.".to_owned(),
        manner: Manner::Sometimes,
    })
}

/// vLLM has no weights-only scheme with one scale a tensor ("No compressed-tensors compatible scheme").
fn tensor_scale(subject: &Subject<'_>) -> Option<Refusal> {
    (weights_only(subject) && subject.treatment.scheme.granularity == Granularity::Tensor).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-tensor-scale",
        message: "vLLM does not load weights-only integers with one scale a tensor".to_owned(),
        key: "granularity",
        help: "Use `granularity: channel` or `group`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// vLLM's W8A8 takes a scale a channel or a tensor.
fn activations_with_groups(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.treatment.scheme;
    let grouped = matches!(scheme.granularity, Granularity::Group(_));
    (!weights_only(subject) && scheme.bits == Bits::Eight && grouped).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-w8a8-groups",
        message: "vLLM does not load int8 weights in groups together with int8 activations".to_owned(),
        key: "granularity",
        help: "Use `granularity: channel` or `tensor`, or drop `activations`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// vLLM's W8A8 has no zero points for weights.
fn activations_with_zero_points(subject: &Subject<'_>) -> Option<Refusal> {
    (!weights_only(subject) && !subject.treatment.scheme.symmetric).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-w8a8-asymmetric",
        message: "vLLM does not load asymmetric weights together with int8 activations".to_owned(),
        key: "symmetric",
        help: "Use `symmetric: true`, or drop `activations`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// vLLM runs int4 weights with int8 activations on CPUs and XPUs alone; on x86 it ends now and then in an illegal instruction.
fn int4_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    (!weights_only(subject) && subject.treatment.scheme.bits == Bits::Four).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-w4a8",
        message: "vLLM runs int4 weights with int8 activations on some CPUs and on XPUs only".to_owned(),
        key: "activations",
        help: "Use `quantize-int8` with `activations: dynamic-token`: it is as small, one byte a code."
            .to_owned(),
        manner: Manner::Sometimes,
    })
}

/// Asymmetric weights-only int8 needs Machete (Hopper) or an extra package.
fn int8_with_zero_points(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.treatment.scheme;
    (weights_only(subject) && scheme.bits == Bits::Eight && !scheme.symmetric).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-int8-asymmetric",
        message: "vLLM runs asymmetric weights-only int8 on Hopper GPUs or with an extra package only"
            .to_owned(),
        key: "symmetric",
        help: "Use `symmetric: true`; at 8 bits the difference is below 0.5 dB.".to_owned(),
        manner: Manner::Sometimes,
    })
}

/// Group sizes that every WNA16 kernel takes are 32, 64 and 128.
fn unusual_group(subject: &Subject<'_>) -> Option<Refusal> {
    let Granularity::Group(size) = subject.treatment.scheme.granularity else { return None };
    (weights_only(subject) && !matches!(size, 32 | 64 | 128)).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-group-size",
        message: format!("vLLM's fastest kernels do not take groups of {size}"),
        key: "group_size",
        help: "Groups of 32, 64 and 128 run on every kernel.".to_owned(),
        manner: Manner::Sometimes,
    })
}

/// Packed zero points are sliced in whole words along the output.
fn zero_point_words(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.treatment.scheme;
    let a_word = 32 / scheme.bits.count() as u64;
    let packed =
        !scheme.symmetric && scheme.storage == Storage::Packed && scheme.granularity != Granularity::Tensor;
    (packed && subject.kind == LayerType::Linear && !subject.rows.is_multiple_of(a_word)).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-zero-point-words",
        message: format!(
            "vLLM cannot cut the zero points of `{}`: {} rows are no multiple of {a_word}",
            subject.name, subject.rows
        ),
        key: "symmetric",
        help: "Use `symmetric: true` for it, or leave it alone.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// What is worth knowing and no reason to change a recipe: kernels that are missing on some machine.
pub(super) fn notes(
    model: &ModelFolder,
    pieces: &[Piece],
    decisions: &[Decision],
    exports: &[ExportPlan],
) -> Vec<String> {
    let mut notes: Vec<String> = not_loaded(model).into_iter().collect();
    let formatted = exports
        .iter()
        .any(|export| export.format == Format::CompressedTensors && export.target != Target::Transformers);
    if !formatted {
        return notes;
    }
    let packed = |piece: &Piece, bits: Bits| {
        decisions[piece.tensor]
            .treatment()
            .is_some_and(|t| t.scheme.bits == bits && t.activations == ActivationScheme::None)
    };
    if pieces.iter().any(|piece| packed(piece, Bits::Eight)) {
        notes.push("weights-only int8 runs on vLLM's GPUs, not on its CPU backend".to_owned());
    }
    let odd = pieces.iter().filter(|piece| packed(piece, Bits::Four)).find_map(|piece| {
        let view = piece.matrix.filter(|view| view.rows % 32 != 0 || view.cols % 32 != 0)?;
        Some((piece, view))
    });
    if let Some((piece, view)) = odd {
        notes.push(format!(
            "vLLM's CPU backend needs rows and columns in multiples of 32: `{}` has {} and {}",
            piece.module, view.rows, view.cols
        ));
    }
    notes
}

/// Gemma 4's published files hold keys and values of layers that use another layer's; they are treated like any other.
fn not_loaded(model: &ModelFolder) -> Option<String> {
    let shared = model.config.text().get("num_kv_shared_layers")?.as_u64()?;
    let first = model.config.num_hidden_layers()?.checked_sub(shared)?;
    let mut names = model.tensors.iter().map(|tensor| tensor.name.as_str()).filter(|name| {
        let Some((_, rest)) = name.split_once("language_model.layers.") else { return false };
        let Some((layer, rest)) = rest.split_once('.') else { return false };
        let is_shared = ["self_attn.k_", "self_attn.v_"].iter().any(|start| rest.starts_with(start));
        is_shared && layer.parse::<u64>().is_ok_and(|layer| layer >= first)
    });
    let (example, more) = (names.next()?, names.count());
    Some(format!(
        "no engine loads `{example}` and {more} more: these layers use another layer's keys and values"
    ))
}
