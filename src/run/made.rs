//! The files that monoquant makes beside the weights: configuration, index and recipe.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::card;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::Folder;
use crate::fs::paths;
use crate::fs::regular::Same;
use crate::ids::ExportId;
use crate::plan::card::CARD_FILE_NAME;
use crate::plan::layout::RECIPE_FILE_NAME;
use crate::plan::{ExportPlan, Plan};
use crate::recipe::{Recipe, public_path};
use crate::stage::Stage;

/// A file that monoquant makes beside the weights. Some have a line a tensor, so they are written anew instead of being held.
pub(super) struct MadeFile<'p> {
    pub name: String,
    pub write: Box<Writes<'p>>,
}

/// Writes what a file holds.
type Writes<'p> = dyn Fn(&mut dyn Write) -> io::Result<()> + 'p;

impl MadeFile<'_> {
    /// Whether it is in a folder, as it would be made.
    pub(super) fn is_in(&self, folder: &Folder) -> bool {
        let Ok(file) = folder.open_file(Path::new(&self.name), false) else { return false };
        let mut same = Same::new(file);
        (self.write)(&mut same).is_ok() && same.reached_end()
    }
}

/// The files that are made for an export, except the report.
pub(super) fn made_files<'p>(
    plan: &'p Plan,
    id: ExportId,
    results: &card::Measured<'_>,
) -> Result<Vec<MadeFile<'p>>, Failure> {
    let export = &plan.exports[id];
    let mut out: Vec<MadeFile<'p>> = Vec::new();
    if let Some(config) = &export.config {
        let write = |out: &mut dyn Write| out.write_all(config.as_bytes());
        out.push(MadeFile { name: "config.json".to_owned(), write: Box::new(write) });
    }
    if export.has_index {
        let name = plan.model.index.as_deref().unwrap_or("model.safetensors.index.json");
        let write = |out: &mut dyn Write| export.write_index(plan.content(), out);
        out.push(MadeFile { name: name.to_owned(), write: Box::new(write) });
    }
    let recipe = recipe_text(plan, export)?;
    if let Some(card) = &export.card {
        let text = card::text(plan, id, card, results, &recipe);
        let write = move |out: &mut dyn Write| out.write_all(text.as_bytes());
        out.push(MadeFile { name: CARD_FILE_NAME.to_owned(), write: Box::new(write) });
    }
    let write = move |out: &mut dyn Write| out.write_all(recipe.as_bytes());
    out.push(MadeFile { name: RECIPE_FILE_NAME.to_owned(), write: Box::new(write) });
    Ok(out)
}

/// The text of the recipe that an output holds.
///
/// # Errors
/// If it cannot be written as YAML.
pub(super) fn recipe_text(plan: &Plan, export: &ExportPlan) -> Result<String, Failure> {
    let (recipe, written) = stored_recipe(plan, export);
    crate::recipe::emit_with(&recipe, &written).map_err(|error| {
        let finding = Finding::error("publish::recipe", format!("cannot write the recipe down: {error}"));
        Failure::new(Exit::Internal, finding)
    })
}

/// The recipe as an output holds it: relative paths are relative to the output, so that it runs from there to the same result.
/// With it the values with variables, at their JSON pointers, as they are written then.
fn stored_recipe(plan: &Plan, export: &ExportPlan) -> (Recipe, Vec<(String, String)>) {
    let mut recipe = plan.recipe().clone();
    let from = absolute(&export.path);
    let moved = |path: &str| {
        // No way leads from an object store to this machine.
        let is_relative = export.store.is_none() && !paths::is_address(path) && Path::new(path).is_relative();
        is_relative.then(|| relative(&from, &absolute(&plan.loaded.resolve_path(path))))
    };
    let way = relative(&from, &absolute(&plan.loaded.base));
    let mut written: Vec<(String, String)> = plan
        .loaded
        .written_values()
        .iter()
        .map(|value| (value.pointer.clone(), value.text.clone()))
        .collect();
    for (index, stage) in recipe.stages.iter_mut().enumerate() {
        let mut found: Vec<(String, &mut String)> = Vec::new();
        let named = |key: &str| key.to_owned();
        match stage {
            Stage::Load(load) => {
                found.push((named("model"), &mut load.model));
                found.extend(load.calibration.as_mut().map(|of| (named("calibration/file"), &mut of.file)));
            }
            Stage::Export(export) => found.push((named("path"), &mut export.path)),
            Stage::Calibrate(stage) => found.extend(texts(&mut stage.text)),
            Stage::Evaluate(stage) => found.extend(texts(&mut stage.text)),
            other => {
                found.extend(other.calibration_mut().map(|of| (named("calibration/file"), &mut of.file)));
            }
        }
        for (key, path) in found {
            let pointer = format!("/stages/{index}/{key}");
            let is_written = written.iter().any(|(known, _)| *known == pointer);
            let whole = Path::new(path).is_absolute().then(|| path.clone());
            if let Some(whole) = whole.filter(|_| !is_written && !paths::is_address(path)) {
                match key.as_str() {
                    // The way to an output beside this one; `.` for this one.
                    "path" if export.store.is_none() => *path = relative(&from, &absolute(Path::new(&whole))),
                    key => written.extend(public_path(key, &whole).map(|public| (pointer, public))),
                }
                continue;
            }
            let Some(moved) = moved(path) else { continue };
            *path = moved;
            if let Some((_, text)) = written.iter_mut().find(|(known, _)| *known == pointer) {
                *text = format!("{way}/{text}");
            }
        }
    }
    (recipe, written)
}

/// The files of text of a stage, each with its key.
fn texts(files: &mut [String]) -> impl Iterator<Item = (String, &mut String)> {
    files.iter_mut().enumerate().map(|(index, file)| (format!("text/{index}"), file))
}

/// A path from the root, without `..`, whether or not it exists.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    crate::plan::normalized(&path)
}

/// The way from one absolute folder to a path.
fn relative(from: &Path, to: &Path) -> String {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let mut way: Vec<String> = from.components().skip(shared).map(|_| "..".to_owned()).collect();
    way.extend(to.components().skip(shared).map(|part| part.as_os_str().to_string_lossy().into_owned()));
    if way.is_empty() { ".".to_owned() } else { way.join("/") }
}
