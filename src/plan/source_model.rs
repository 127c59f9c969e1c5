//! The model that a recipe loads, with the layer types that the recipe corrects.

use indexmap::IndexMap;

use crate::calibration;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::layer::LayerType;
use crate::model::{self, Because, LayerClass, ModelFolder};
use crate::recipe::Loaded;
use crate::stage::Stage;

use super::select;

pub(super) type LayerTypes = IndexMap<crate::layer::pattern::Pattern, LayerType>;

pub(super) fn open_model(loaded: &Loaded) -> Result<(ModelFolder, LayerTypes), Failure> {
    let Some((index, load)) =
        loaded.recipe.stages.iter().enumerate().find_map(|(index, stage)| match stage {
            Stage::Load(load) => Some((index, load)),
            _ => None,
        })
    else {
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
    let path = model::resolve(&load.model, &loaded.base_of(&load.model)).map_err(point)?;
    if calibration::is_statistics(&path) && calibration::read(&path).is_ok() {
        let written = loaded.written(&format!("/stages/{index}/model"));
        let message =
            format!("`{}` holds activation statistics, not weights", written.unwrap_or(&load.model));
        let finding = Finding::error(model::code::NOT_A_MODEL, message);
        return Err(point(Failure::new(
            Exit::BadModel,
            finding.help("`model` is the folder with the weights. Statistics are named by `calibration` of the stage that quantizes."),
        )));
    }
    let globs = |globs: &[crate::layer::file_glob::FileGlob]| -> Vec<String> {
        globs.iter().map(|glob| glob.as_str().to_owned()).collect()
    };
    let (include, exclude) = (globs(&load.include), globs(&load.exclude));
    let include: Vec<&str> = include.iter().map(String::as_str).collect();
    let exclude: Vec<&str> = exclude.iter().map(String::as_str).collect();
    let model = model::open_following(&path, &include, &exclude, &loaded.follow_links).map_err(point)?;
    Ok((model, load.layer_types.clone()))
}

pub(super) fn correct_classes(model: &ModelFolder, layer_types: &LayerTypes, classes: &mut [LayerClass]) {
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
