//! What must hold of an export as laid out: a name is used once, and the config says of every module what the file holds.

use std::collections::HashMap;

use serde_json::Value;

use super::copies;
use super::layout::{ExportPlan, Piece};
use super::select::Decision;
use crate::export::{compressed_tensors, config};
use crate::finding::Finding;
use crate::model::{LayerClass, ModelFolder};
use crate::recipe::Loaded;
use crate::stage::Stage;
use crate::stage::export::Format;

/// Findings for everything in the exports that would make a broken directory.
pub(super) fn check(
    loaded: &Loaded,
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
    pieces: &[Piece],
    exports: &[ExportPlan],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !loaded.recipe.stages.iter().any(|stage| matches!(stage, Stage::Export(_))) {
        findings.push(
            Finding::warning("plan::no-export", "the recipe has no `export` stage, so nothing is written")
                .help("Everything is quantized and judged, and thrown away. Add `- stage: export` with a `path`."),
        );
    }
    for export in exports {
        findings.extend(clashing_names(loaded, model, export));
        if matches!(&loaded.recipe.stages[export.stage], Stage::Export(stage) if stage.copy) {
            findings.extend(copies::broken(loaded, model, export.stage));
        }
        if export.format == Format::CompressedTensors {
            findings.extend(config_findings(loaded, model, classes, decisions, pieces, export));
        }
    }
    findings
}

/// Two tensors of one name: a source that holds a tensor called as one that quantizing makes.
fn clashing_names(loaded: &Loaded, model: &ModelFolder, export: &ExportPlan) -> Option<Finding> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(export.tensors.len());
    export.tensors.iter().find_map(|tensor| {
        let other = seen.insert(&tensor.name, tensor.tensor)?;
        let (a, b) = (&model.tensors[other].name, &model.tensors[tensor.tensor].name);
        Some(
            Finding::error(
                "plan::clashing-names",
                format!("two tensors of the output would be called `{}`", tensor.name),
            )
            .at_opt(loaded.stage_place(export.stage), "written here")
            .help(format!(
                "They come from `{a}` and `{b}`. Leave the module alone with `modules_to_not_convert`."
            )),
        )
    })
}

fn config_findings(
    loaded: &Loaded,
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
    pieces: &[Piece],
    export: &ExportPlan,
) -> Vec<Finding> {
    let modules = config::quantized_modules(decisions, pieces, export.stage);
    let place = loaded.stage_place(export.stage);
    let Some(text) = &export.config else {
        let message = "the model has no config.json, so no engine can know that its weights are packed";
        let mut help = "Put the model's config.json beside its weights (`hf download org/name config.json` gets it), or export with \
                        `format: dequantized`, which needs none."
            .to_owned();
        if model.others.iter().any(|file| file.path == "params.json") {
            help.push_str(
                " The `params.json` here belongs to the model's own format; weights of that format have other names than those in \
                 the Hugging Face format, for which a config.json is written.",
            );
        }
        return vec![Finding::error("plan::no-config", message).at_opt(place, "needs one").help(help)];
    };
    let written: Value = serde_json::from_str(text).unwrap_or_default();
    let left_alone = config::left_alone(model, classes, decisions, pieces, export.stage);
    let left_alone: Vec<&str> = left_alone.iter().map(String::as_str).collect();
    let found = compressed_tensors::contradictions(&written["quantization_config"], &modules, &left_alone);
    let Some(first) = found.first() else { return Vec::new() };
    let more = if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
    vec![
        Finding::error("plan::config-contradiction", format!("no config can say this of the model: {first}{more}"))
            .at_opt(place, "the config of this export")
            .help(
                "Modules of two stacks have the same names below their layers. Leave one of the stacks alone as a whole, use one \
                 scheme for both, or export with `format: dequantized`.",
            ),
    ]
}
