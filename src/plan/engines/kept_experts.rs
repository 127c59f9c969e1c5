//! Skipped experts beside quantized layers.

use super::Engine;
use super::experts::MERGED_EXPERTS;
use crate::finding::Finding;
use crate::ids::TensorId;
use crate::layer::LayerType;
use crate::plan::fused_modules::experts_parent;
use crate::plan::layout::{ExportPlan, has_codes, spec_at};
use crate::plan::output_tensor::Content;
use crate::plan::select;
use crate::stage::export::{Format, Target};

/// With any compressed-tensors config, transformers merges experts by their packed names only. Skipped experts that
/// are stored as one tensor each are reported as unexpected, and the stacks are random. Skipped stacks load. So does
/// Llama 4, which then has one module per expert.
pub(in crate::plan) fn check(content: Content<'_>, export: &ExportPlan) -> Option<Finding> {
    let Content { loaded, model, classes, decisions, .. } = content;
    let family = model.config.model_type().unwrap_or_default();
    let is_merged =
        MERGED_EXPERTS.iter().any(|name| family.starts_with(name)) && !family.starts_with("llama4");
    let is_concerned = export.format == Format::CompressedTensors
        && Engine::Transformers.severity(export.target).is_some()
        && is_merged
        && has_codes(decisions, export.stage);
    if !is_concerned {
        return None;
    }
    let kept: Vec<TensorId> = decisions
        .ids()
        .filter(|&index| {
            let tensor = &model.tensors[index];
            tensor.shape.len() == 2
                && tensor.parameter() == "weight"
                // transformers has no extra prediction layers.
                && classes[index].role != Some(LayerType::MTP)
                && spec_at(&decisions[index], export.stage).is_none()
                && experts_parent(select::subject(tensor)).is_some()
        })
        .collect();
    let first = *kept.first()?;
    let rule = &decisions[first].rule;
    let place = rule.pointer.as_deref().and_then(|pointer| loaded.place(pointer));
    let help = match export.target {
        Target::Transformers => "Quantize the experts as well, or export with `format: dequantized`.",
        _ => {
            "Quantize the experts as well, or export with `target: vllm`, which loads them, or with `format: dequantized`."
        }
    };
    let name = select::subject(&model.tensors[first]);
    let which = match kept.len() {
        1 => format!("`{name}` is skipped by this"),
        count => format!("`{name}` and {} more are skipped by this", count - 1),
    };
    Some(
        Finding::error(
            "plan::kept-experts",
            format!("transformers loads random numbers for experts of {family} that are skipped beside quantized layers"),
        )
        .at_opt(place, which)
        .at_opt(loaded.stage_place(export.stage), format!("exported for {}", super::target_name(export.target)))
        .help(help),
    )
}
