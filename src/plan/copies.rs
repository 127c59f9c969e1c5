//! The model's other files: which are carried over, and which stay behind and why.

use super::Plan;
use super::card::CARD_FILE_NAME;
use super::layout::{Left, RECIPE_FILE_NAME, REPORT_FILE_NAME};
use crate::finding::Finding;
use crate::ids::StageId;
use crate::model::{Fate, ModelFolder, OtherFile};
use crate::recipe::Loaded;

/// The name of the file with hashes of all files.
pub(crate) const SUMS_FILE_NAME: &str = "SHA256SUMS";

/// The fate of the model's other files in an export.
pub(super) struct Copies {
    /// Indices of the files that are carried over.
    pub(super) carried: Vec<usize>,
    /// Files that stay behind, by path.
    pub(super) left: Vec<Left>,
}

/// Sorts the model's other files; `copies` is what the recipe says of them all, and a card that is made anew is not carried over.
pub(super) fn sort(model: &ModelFolder, copies: bool, has_card: bool) -> Copies {
    let mut out = Copies { carried: Vec::new(), left: Vec::new() };
    for (index, file) in model.others.iter().enumerate() {
        let reason = match &file.fate {
            Fate::Left(reason) => reason,
            _ if has_card && file.path == CARD_FILE_NAME => continue,
            _ if !copies => "`copy: false`",
            _ if is_ours(file) => "of an earlier output, whose own are written",
            Fate::Broken { .. } => continue,
            Fate::Carried => {
                out.carried.push(index);
                continue;
            }
        };
        out.left.push(Left { name: file.path.clone(), bytes: file.len, reason: reason.to_owned() });
    }
    out
}

/// Whether an export writes a file with this name.
fn is_ours(file: &OtherFile) -> bool {
    [REPORT_FILE_NAME, RECIPE_FILE_NAME, SUMS_FILE_NAME].contains(&file.path.as_str())
}

/// Files that an export would carry over and cannot.
pub(super) fn broken(loaded: &Loaded, model: &ModelFolder, stage: StageId) -> Vec<Finding> {
    let broken = model.others.iter().filter_map(|file| match &file.fate {
        Fate::Broken { what, help } => Some(
            Finding::error(
                "plan::cannot-carry",
                format!("`{}` {what}", file.path.replace(char::is_control, "?")),
            )
            .at_opt(loaded.stage_place(stage), "would carry it over")
            .help(help.clone()),
        ),
        _ => None,
    });
    broken.collect()
}

/// Says which quantization declarations in the source's config, for parts within it, do not reach an output.
pub(super) fn stale_declarations(model: &ModelFolder) -> Option<String> {
    let places: Vec<String> = model
        .config
        .declarations()
        .into_iter()
        .filter(|(place, value)| !value.is_null() && place != "quantization_config")
        .map(|(place, _)| format!("`{}`", place.escape_debug()))
        .collect();
    let are = if places.len() == 1 { "is" } else { "are" };
    (!places.is_empty())
        .then(|| format!("{} of the source's config.json {are} not carried over", places.join(", ")))
}

/// Files that are carried over although they hold weights, which may be unexpected: no export makes codes of them.
#[must_use]
pub(crate) fn carried_weights(plan: &Plan, export: &super::ExportPlan) -> Vec<(String, u64)> {
    const EXTENSIONS: &[&str] = &["safetensors", "bin", "pt", "pth", "ckpt", "onnx", "h5", "msgpack", "npz"];
    let files = export.copies.iter().map(|&index| &plan.model.others[index]);
    let is_weights =
        |file: &&OtherFile| file.path.rsplit_once('.').is_some_and(|(_, end)| EXTENSIONS.contains(&end));
    files.filter(is_weights).map(|file| (file.path.clone(), file.len)).collect()
}
