//! The recipe as YAML again, with every default spelled out.

use serde_json::Value;

use crate::recipe::Recipe;
use crate::recipe::environment::escape;
use crate::recipe::{unused_parameters, written};
use crate::stage::{ObserverChoice, OnFailure, Quantize, Stage};

/// The recipe with every default filled in that has an effect and does not depend on the model.
#[must_use]
pub fn resolve(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    let wide = recipe.on_failure;
    for stage in &mut recipe.stages {
        match stage {
            Stage::Validate(stage) => {
                stage.on_failure = stage.on_failure.or(wide).or(Some(OnFailure::Error));
            }
            Stage::CheckWarnings(stage) => {
                stage.on_failure = stage.on_failure.or(wide).or(Some(OnFailure::Warn));
            }
            Stage::QuantizeInt4(stage) => {
                let [maxshrink, grid, norm, percentile] = observer_defaults(stage);
                (stage.maxshrink, stage.grid) = (maxshrink, grid);
                (stage.norm, stage.percentile) = (norm, percentile);
            }
            Stage::QuantizeInt8(stage) => {
                let [maxshrink, grid, norm, percentile] = observer_defaults(stage);
                (stage.maxshrink, stage.grid) = (maxshrink, grid);
                (stage.norm, stage.percentile) = (norm, percentile);
            }
            Stage::Load(_) | Stage::ResolveSkips(_) | Stage::Export(_) => {}
        }
    }
    recipe
}

/// `maxshrink`, `grid`, `norm` and `percentile` as the observer uses them.
fn observer_defaults(stage: &dyn Quantize) -> [Option<f64>; 4] {
    let mse = |value: Option<f64>, default: f64| match stage.observer() {
        ObserverChoice::Mse => value.or(Some(default)),
        _ => value,
    };
    let percentile = match stage.observer() {
        ObserverChoice::Percentile => stage.percentile().or(Some(99.9)),
        _ => stage.percentile(),
    };
    [mse(stage.maxshrink(), 0.2), mse(stage.grid(), 100.0), mse(stage.norm(), 2.4), percentile]
}

/// The recipe as YAML. Read again, it gives an equal recipe: paths stay as they are, and text that looks like a
/// variable is escaped. Defaults without effect are left out, since writing them would be a warning.
///
/// # Errors
/// If the writer fails. No recipe is known to cause that.
pub fn emit(recipe: &Recipe) -> Result<String, serde_yaml::Error> {
    emit_with(recipe, &[])
}

/// As [`emit`], with what was written at some JSON pointers, variables and all.
///
/// # Errors
/// As [`emit`].
pub fn emit_with(recipe: &Recipe, written: &[(String, String)]) -> Result<String, serde_yaml::Error> {
    let mut value = serde_json::to_value(recipe).map_err(<serde_yaml::Error as serde::ser::Error>::custom)?;
    if let Some(Value::Array(stages)) = value.get_mut("stages") {
        for (value, stage) in stages.iter_mut().zip(&recipe.stages) {
            let Value::Object(parameters) = value else { continue };
            for idle in unused_parameters::idle(stage).iter().filter(|idle| idle.is_default) {
                parameters.shift_remove(idle.key);
            }
        }
    }
    escape_all(&mut value);
    written::put(&mut value, written.iter().map(|(pointer, text)| (pointer.as_str(), text.as_str())));
    serde_yaml::to_string(&value)
}

fn escape_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = escape(text),
        Value::Array(items) => items.iter_mut().for_each(escape_all),
        Value::Object(map) => map.values_mut().for_each(escape_all),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
