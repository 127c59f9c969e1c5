//! The files that monoquant makes beside the weights: configuration, index and recipe.

use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::export;
use crate::finding::{Failure, Finding};
use crate::plan::{ExportPlan, Plan};
use crate::recipe::Recipe;
use crate::stage::Stage;

/// Names and contents of the files that monoquant makes beside the weights.
pub(super) type MadeFiles = Vec<(String, Vec<u8>)>;

/// The files that are made for an export, the report aside.
pub(super) fn made_files(plan: &Plan, export: &ExportPlan) -> Result<MadeFiles, Failure> {
    let mut out: MadeFiles = Vec::new();
    if let Some(config) = &export.config {
        out.push(("config.json".to_owned(), config.clone().into_bytes()));
    }
    if export.has_index {
        let name =
            plan.model.index.as_ref().map_or("model.safetensors.index.json", |index| index.file.as_str());
        out.push((name.to_owned(), export.index_text().into_bytes()));
    }
    let (recipe, written) = stored_recipe(plan, export);
    let recipe = crate::recipe::emit_with(&recipe, &written).map_err(|error| {
        let finding = Finding::error("export::recipe", format!("cannot write the recipe down: {error}"));
        Failure::new(Exit::Internal, finding)
    })?;
    out.push((export::RECIPE_FILE_NAME.to_owned(), recipe.into_bytes()));
    Ok(out)
}

/// The recipe as an output holds it: relative paths are relative to the output, so that it runs from there to the same result.
/// With it the values with variables, at their JSON pointers, as they are written then.
fn stored_recipe(plan: &Plan, export: &ExportPlan) -> (Recipe, Vec<(String, String)>) {
    let mut recipe = plan.recipe().clone();
    let from = absolute(&export.path);
    let moved = |path: &str| {
        let is_relative = !path.starts_with("hf://") && Path::new(path).is_relative();
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
        let mut paths: Vec<(&str, &mut String)> = Vec::new();
        match stage {
            Stage::Load(load) => {
                paths.push(("model", &mut load.model));
                paths.extend(load.calibration.as_mut().map(|named| ("calibration/file", &mut named.file)));
            }
            Stage::Export(export) => paths.push(("path", &mut export.path)),
            other => {
                paths.extend(other.calibration_mut().map(|named| ("calibration/file", &mut named.file)));
            }
        }
        for (key, path) in paths {
            let Some(moved) = moved(path) else { continue };
            *path = moved;
            let pointer = format!("/stages/{index}/{key}");
            if let Some((_, text)) = written.iter_mut().find(|(known, _)| *known == pointer) {
                *text = format!("{way}/{text}");
            }
        }
    }
    (recipe, written)
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
