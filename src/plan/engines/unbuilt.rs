//! Models that no engine of any target builds.

use super::super::layout::ExportPlan;
use crate::finding::Finding;
use crate::plan::output_tensor::Content;
use crate::stage::export::Format;

/// A model whose config names no class that transformers, vLLM or SGLang could build from compressed tensors: they choose it by
/// `architectures` and `model_type`. Diffusers' models have `_class_name` instead, timm's `architecture`.
pub(in crate::plan) fn unbuilt(content: Content<'_>, export: &ExportPlan) -> Option<Finding> {
    let Content { loaded, model, .. } = content;
    let config = model.config.raw.as_object().filter(|config| !config.is_empty())?;
    let is_named = model.config.model_type().is_some() || !model.config.architectures().is_empty();
    if export.format != Format::CompressedTensors || is_named {
        return None;
    }
    let text = |key: &str| config.get(key).and_then(serde_json::Value::as_str);
    let message = match (text("_class_name"), text("architecture")) {
        (Some(class), _) => {
            format!(
                "no engine of this target builds `{class}`, a model of diffusers, from compressed tensors"
            )
        }
        (_, Some(name)) => format!("no engine of this target builds `{name}` from compressed tensors"),
        _ => "`config.json` names no `model_type` and no `architectures`, so no engine knows what to build"
            .to_owned(),
    };
    Some(
        Finding::warning("plan::unbuilt-model", message)
            .at_opt(
                loaded.stage_place(export.stage),
                format!("exported for {}", super::target_name(export.target)),
            )
            .help("With `format: dequantized` the output loads wherever the model itself does."),
    )
}
