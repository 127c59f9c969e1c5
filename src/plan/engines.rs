//! Engine compatibility: every rule of transformers, vLLM and SGLang that would otherwise be found out after
//! publishing.
//!
//! One rule per function. If only the named engine refuses a thing, that is an error under `target: <engine>`, a
//! warning under `any`, and nothing under the other engine's name. If an engine does not refuse a thing but loads
//! wrong weights, that is an error under `any`, too. `tests/interop/check_rules.py` tries each rule on the engines
//! themselves, both ways. SGLang's rules are the exception: they were read in its source (`tests/interop/README.md`
//! says where).

use super::layout::ExportPlan;
use super::output_tensor::Content;
use super::select::QuantSpec;
use crate::finding::{Finding, Severity};
use crate::ids::StageId;
use crate::layer::LayerType;
use crate::model::{Dtype, LayerClass};
use crate::plan::fused_modules::FusedModules;
use crate::quant::{Scheme, Storage};
use crate::recipe::Loaded;
use crate::stage::export::{Format, Target};
use crate::stage::{ActivationScheme, Stage};

mod experts;
mod floats;
pub(super) mod kept_experts;
mod kernels;
mod modules;
mod notes;
pub(crate) mod parallel;
mod schemes;
pub(crate) mod served;
mod sglang;
mod unbuilt;

pub(super) use experts::{leave_unloadable_experts, splits_kept_experts};
pub(super) use notes::notes;
pub(super) use unbuilt::unbuilt;

/// An engine, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Vllm,
    Transformers,
    Sglang,
    /// vLLM and SGLang.
    Servers,
    All,
}

impl Engine {
    /// The severity for an export with this target. None if the target is not affected.
    fn severity(self, target: Target) -> Option<Severity> {
        match (self, target) {
            (Engine::All, _)
            | (Engine::Vllm | Engine::Servers, Target::Vllm)
            | (Engine::Sglang | Engine::Servers, Target::Sglang)
            | (Engine::Transformers, Target::Transformers) => Some(Severity::Error),
            (_, Target::Any) => Some(Severity::Warning),
            _ => None,
        }
    }
}

/// A property of an export that an engine cannot load.
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
    spec: &'a QuantSpec,
    rows: u64,
    /// Whether an engine makes one module of it and others.
    is_fused: bool,
    model_type: &'a str,
    target: Target,
    /// Whether the export has packed codes and plain ones.
    has_both_storages: bool,
    /// Whether all that is quantized is quantized alike.
    has_one_scheme: bool,
}

/// Findings for everything in an export that an engine cannot load.
pub(super) fn check(content: Content<'_>, export: &ExportPlan) -> Vec<Finding> {
    let Content { loaded, model, classes, decisions, fused_modules: groups, .. } = content;
    if export.format != Format::CompressedTensors {
        return Vec::new();
    }
    // The first tensor of each (stage, rule) carries the finding; the others are counted.
    let mut found: Vec<(StageId, Refusal, &str, usize)> = Vec::new();
    let model_type = model.config.model_type().unwrap_or_default();
    let specs = || decisions.iter().filter_map(|decision| super::layout::spec_at(decision, export.stage));
    let has = |storage: Storage| specs().any(|spec| spec.scheme.storage == storage);
    let has_both_storages = has(Storage::Packed) && has(Storage::Plain);
    let of_first = specs().next().map(|spec| (spec.scheme, spec.activations));
    let has_one_scheme = specs().all(|spec| Some((spec.scheme, spec.activations)) == of_first);
    let mut known_schemes: Vec<(Scheme, ActivationScheme)> = Vec::new();
    let mut expert_schemes = Vec::new();
    let mut fused = decisions.map(|_| false);
    groups.iter().flat_map(FusedModules::members).for_each(|member| fused[member] = true);
    for (index, decision) in decisions.numbered() {
        let Some(spec) = super::layout::spec_at(decision, export.stage) else { continue };
        let tensor = &model.tensors[index];
        let rows = super::select::matrix_shape(tensor).map_or(0, |(rows, _)| rows);
        let name = super::select::subject(tensor);
        let LayerClass { kind, role, .. } = classes[index];
        let is_fused = fused[index];
        let subject = Subject {
            name,
            kind,
            role,
            source: tensor.dtype,
            spec,
            rows,
            is_fused,
            model_type,
            target: export.target,
            has_both_storages,
            has_one_scheme,
        };
        let scheme = (spec.scheme, spec.activations);
        let mut refusals: Vec<Refusal> = RULES.iter().filter_map(|rule| rule(&subject)).collect();
        if is_new(&mut known_schemes, scheme) {
            refusals.extend(schemes::second_scheme(&subject, known_schemes.len()));
        }
        if is_expert(&subject) && is_new(&mut expert_schemes, scheme) {
            refusals.extend(experts::second_scheme_of_experts(expert_schemes.len()));
        }
        for refusal in refusals {
            match found.iter_mut().find(|(stage, known, ..)| {
                *stage == spec.stage
                    && (known.code, known.engine, known.manner, &known.help)
                        == (refusal.code, refusal.engine, refusal.manner, &refusal.help)
            }) {
                Some((.., others)) => *others += 1,
                None => found.push((spec.stage, refusal, name, 0)),
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(stage, refusal, name, others)| {
            let mut severity = refusal.engine.severity(export.target)?;
            match refusal.manner {
                Manner::Loudly => {}
                Manner::Silently => severity = Severity::Error,
                Manner::Sometimes => severity = Severity::Warning,
            }
            let place = crate::recipe::places::said_or_stage(loaded, stage, refusal.key);
            let others = match others {
                0 => format!("`{name}`"),
                others => format!("`{name}` and {others} more"),
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

fn target_name(target: Target) -> &'static str {
    match target {
        Target::Vllm => "vllm",
        Target::Transformers => "transformers",
        Target::Sglang => "sglang",
        Target::Any => "any engine",
    }
}

const RULES: &[fn(&Subject<'_>) -> Option<Refusal>] = &[
    modules::not_linear,
    modules::router,
    modules::built_plain,
    schemes::tensor_scale,
    schemes::activations_with_groups,
    schemes::activations_with_zero_points,
    schemes::int4_with_activations,
    schemes::int4_groups_with_activations,
    schemes::int8_with_zero_points,
    schemes::unusual_group,
    schemes::zero_point_words,
    schemes::rounded_scales,
    experts::experts_with_zero_points_or_activations,
    experts::stacked_experts,
    floats::blocks_of_fused_modules,
    floats::experts_without_activations,
    floats::experts_in_blocks,
    floats::integers_with_fp8_activations,
    floats::integers_with_fp8_activations_in_sglang,
    floats::four_bits_in_another_type,
    floats::mxfp4_in_f16,
    floats::mxfp4_with_activations,
    floats::mxfp4_in_sglang,
    floats::nvfp4_experts,
    sglang::experts_with_activations,
    sglang::experts_with_zero_points,
    sglang::experts_beside_plain_codes,
    sglang::tensor_scale_with_activations,
];

/// A clause that says what the servers (vLLM and SGLang) that a target covers do not do: `vLLM does not load …`.
fn servers_do_not(target: Target, verb: &str) -> String {
    match target {
        Target::Vllm => format!("vLLM does not {verb}"),
        Target::Sglang => format!("SGLang does not {verb}"),
        _ => format!("vLLM and SGLang do not {verb}"),
    }
}

/// The engine that fuses modules, among those that the exports are for, as the start of a sentence.
pub(super) fn fuser(loaded: &Loaded) -> &'static str {
    let mut exports = loaded.recipe.stages.iter().filter_map(|stage| match stage {
        Stage::Export(export) => Some(export.target),
        _ => None,
    });
    if exports.all(|target| target == Target::Sglang) { "SGLang makes" } else { "vLLM makes" }
}

fn is_expert(subject: &Subject<'_>) -> bool {
    subject.kind == LayerType::Experts || crate::plan::fused_modules::experts_parent(subject.name).is_some()
}
