//! The output's config.json: the source's, key order and all, with a `quantization_config` for the format.

use serde_json::Value;

use super::compressed_tensors::{QuantizedModule, quantization_config};
use crate::layer::LayerType;
use crate::model::{LayerClass, ModelFolder};
use crate::plan::layout::treatment_at;
use crate::plan::select::subject;
use crate::plan::siblings::experts_parent;
use crate::plan::{Decision, Piece};
use crate::stage::export::Format;

/// The text of config.json for an export; none where the source has none.
#[must_use]
pub fn config_text(
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
    pieces: &[Piece],
    export_stage: usize,
    format: Format,
) -> Option<String> {
    // A dequantized scaled-FP8 source is no longer quantized, whatever the source said.
    let Value::Object(mut config) = model.config.without_declarations() else { return None };
    if model.config.is_empty() {
        return None;
    }
    if format == Format::CompressedTensors {
        let modules = quantized_modules(decisions, pieces, export_stage);
        if !modules.is_empty() {
            let left_alone = left_alone(model, classes, decisions, pieces, export_stage);
            let left_alone: Vec<&str> = left_alone.iter().map(String::as_str).collect();
            config.insert("quantization_config".to_owned(), quantization_config(&modules, &left_alone));
        }
    }
    let mut text = serde_json::to_string_pretty(&Value::Object(config)).unwrap_or_default();
    text.push('\n');
    Some(text)
}

/// The modules of an export that hold codes.
#[must_use]
pub fn quantized_modules<'p>(
    decisions: &'p [Decision],
    pieces: &'p [Piece],
    export_stage: usize,
) -> Vec<QuantizedModule<'p>> {
    pieces
        .iter()
        .filter_map(|piece| {
            let treatment = treatment_at(&decisions[piece.tensor], export_stage)?;
            Some(QuantizedModule { name: &piece.module, treatment })
        })
        .collect()
}

/// Linear modules that an export leaves alone: what a `Linear` target would hit in some engine. A stack of experts is also
/// there as the module `experts` that engines make of it, by whatever name the file has it.
#[must_use]
pub fn left_alone(
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
    pieces: &[Piece],
    export_stage: usize,
) -> Vec<String> {
    let mut names = Vec::new();
    for piece in pieces {
        let kind = classes[piece.tensor].kind;
        if !matches!(kind, LayerType::Linear | LayerType::Router | LayerType::Experts)
            || treatment_at(&decisions[piece.tensor], export_stage).is_some()
        {
            continue;
        }
        if piece.matrix.is_some() {
            // An expert that is written as a module of its own.
            names.push(piece.module.clone());
            continue;
        }
        let name = subject(&model.tensors[piece.tensor]);
        names.push(name.to_owned());
        if kind == LayerType::Experts
            && experts_parent(name).is_none()
            && let Some((parent, stack)) = name.rsplit_once('.')
        {
            names.push(format!("{parent}.experts.{stack}"));
        }
    }
    names
}
