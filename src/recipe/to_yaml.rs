//! The recipe as YAML again, with every default spelled out.

use serde_json::Value;

use crate::recipe::Recipe;
use crate::recipe::environment::escape;
use crate::recipe::{unused_parameters, written};

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
