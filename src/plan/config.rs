//! The output's config.json: the source's, with the same key order, and a `quantization_config` for the format.

use std::borrow::Cow;

use serde_json::Value;

use crate::ids::StageId;
use crate::layer::LayerType;
use crate::plan::Content;
use crate::plan::compressed_tensors::{QuantizedModule, quantization_config};
use crate::plan::fused_modules::experts_parent;
use crate::plan::kv_cache;
use crate::plan::layout::spec_at;
use crate::plan::select::subject;
use crate::stage::export::Format;

/// The text of config.json for an export. None if the source has none.
#[must_use]
pub fn config_text(content: Content<'_>, export_stage: StageId, format: Format) -> Option<String> {
    // A dequantized scaled-FP8 source is no longer quantized, whatever the source said.
    let Value::Object(mut config) = content.model.config.without_declarations() else { return None };
    if content.model.config.is_empty() {
        return None;
    }
    if format == Format::CompressedTensors {
        let modules = quantized_modules(content, export_stage);
        if !modules.is_empty() {
            let left_alone = left_alone(content, export_stage);
            let mut declaration = quantization_config(&modules, &left_alone);
            if let Some(scheme) = kv_cache::scheme(content.model) {
                declaration["kv_cache_scheme"] = scheme;
            }
            config.insert("quantization_config".to_owned(), declaration);
        }
    }
    Some(format!("{:#}\n", Value::Object(config)))
}

/// The modules of an export that hold codes.
#[must_use]
pub fn quantized_modules(content: Content<'_>, export_stage: StageId) -> Vec<QuantizedModule<'_>> {
    content
        .tasks
        .iter()
        .filter_map(|task| {
            let spec = spec_at(&content.decisions[task.tensor()], export_stage)?;
            Some(QuantizedModule { name: task.module(content.model), spec })
        })
        .collect()
}

/// Linear modules that an export skips: those that a `Linear` target would match in some engine. A stack of experts
/// is also listed under the module `experts` that engines make of it, for any name in the file.
#[must_use]
pub fn left_alone<'p>(content: Content<'p>, export_stage: StageId) -> Vec<Cow<'p, str>> {
    let Content { model, classes, decisions, tasks, .. } = content;
    let (mut names, mut before) = (Vec::new(), None);
    for task in tasks {
        let kind = classes[task.tensor()].kind;
        if !matches!(kind, LayerType::Linear | LayerType::Router | LayerType::Experts)
            || spec_at(&decisions[task.tensor()], export_stage).is_some()
        {
            continue;
        }
        let is_whole = model.tensors[task.tensor()].plain_is_transposed();
        if task.matrix(model).is_some() && !is_whole {
            // An expert that is written as a module of its own.
            names.push(task.module(model).into());
            continue;
        }
        let name = subject(&model.tensors[task.tensor()]);
        if is_whole && before.replace(task.tensor()) == Some(task.tensor()) {
            // One of several tasks of a stack.
            continue;
        }
        names.push(name.into());
        if kind == LayerType::Experts
            && experts_parent(name).is_none()
            && let Some((parent, stack)) = name.rsplit_once('.')
        {
            names.push(format!("{parent}.experts.{stack}").into());
        }
    }
    names
}
