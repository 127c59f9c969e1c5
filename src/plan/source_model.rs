//! The model that a recipe loads, with the layer types that the recipe corrects.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::calibration;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::{self, Source};
use crate::ids::{IdVec, TensorId};
use crate::layer::LayerType;
use crate::model::{self, Because, LayerClass, ModelFolder};
use crate::recipe::Loaded;
use crate::stage::Stage;

use super::select;

pub(super) type LayerTypes = IndexMap<crate::layer::pattern::Pattern, LayerType>;

/// Opens the model of a recipe: the one that its `load` names, unless a source is given.
pub(super) fn open_model(
    loaded: &Loaded,
    source: Option<Arc<dyn Source>>,
) -> Result<(ModelFolder, LayerTypes), Failure> {
    let Some((index, load)) = loaded.recipe.stages.numbered().find_map(|(index, stage)| match stage {
        Stage::Load(load) => Some((index, load)),
        _ => None,
    }) else {
        let finding = Finding::error("recipe::stage-order", "the recipe has no `load` stage");
        return Err(Failure::new(Exit::BadRecipe, finding));
    };
    let place = loaded.place(&format!("/stages/{index}/model"));
    // A problem of the model as a whole points at the word that named it.
    let point = |mut failure: Failure| {
        for finding in &mut failure.findings {
            if finding.labels.is_empty() {
                *finding = finding.clone().at_opt(place.clone(), "named here");
            }
        }
        failure
    };
    let source = match source {
        Some(source) => source,
        None => {
            let base = loaded.base_of(&load.model);
            let path = source::path(&load.model, &base).map_err(point)?;
            if path.is_some_and(|path| calibration::is_statistics(&path) && calibration::read(&path).is_ok())
            {
                let written = loaded.written(&format!("/stages/{index}/model"));
                return Err(point(statistics(written.unwrap_or(&load.model))));
            }
            source::open(&load.model, &base, &loaded.follow_links).map_err(point)?
        }
    };
    let globs = |globs: &[crate::layer::file_glob::FileGlob]| -> Vec<String> {
        globs.iter().map(|glob| glob.as_str().to_owned()).collect()
    };
    let (include, exclude) = (globs(&load.include), globs(&load.exclude));
    let include: Vec<&str> = include.iter().map(String::as_str).collect();
    let exclude: Vec<&str> = exclude.iter().map(String::as_str).collect();
    let model = model::open(source, &include, &exclude).map_err(point)?;
    Ok((model, load.layer_types.clone()))
}

fn statistics(written: &str) -> Failure {
    let message = format!("`{written}` holds activation statistics, not weights");
    let finding = Finding::error(model::code::NOT_A_MODEL, message);
    Failure::new(
        Exit::BadModel,
        finding.help("`model` is the folder with the weights. Statistics are named by `calibration` of the stage that quantizes."),
    )
}

pub(super) fn correct_classes(
    model: &ModelFolder,
    layer_types: &LayerTypes,
    classes: &mut IdVec<TensorId, LayerClass>,
) {
    for (tensor, class) in model.tensors.iter().zip(classes) {
        let subject = select::subject(tensor);
        for (pattern, layer_type) in layer_types {
            if !pattern.matches(subject) {
                continue;
            }
            if layer_type.is_role() {
                class.role = Some(*layer_type);
                class.role_rule = Some(Because::Recipe);
            } else if tensor.shape.len() >= 2 || tensor.parameter() == "weight" {
                class.kind = *layer_type;
                class.kind_rule = Because::Recipe;
            }
        }
    }
}
