//! Wording for values and types in findings.

use serde_json::Value;

use crate::finding::nearest;
use crate::recipe::tree::segments;
pub(super) use crate::text::units::number;

/// Longest value that is quoted in full.
const MAX_SHOWN: usize = 60;

/// A list of names, as in "a, b, c".
pub(super) fn list(names: &[&str]) -> String {
    names.join(", ")
}

/// A word in back quotes, shortened if it is long.
pub(super) fn shown(word: &str) -> String {
    let mut text: String = word.chars().take(MAX_SHOWN).collect();
    if word.chars().nth(MAX_SHOWN).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

/// A readable name for a JSON Schema type.
pub(super) fn expected(json_type: &str, is_root: bool) -> &'static str {
    match json_type {
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "string" => "text",
        "array" => "a list",
        "object" if is_root => "a mapping, with `version` and `stages`",
        "object" => "a mapping",
        _ => "another kind of value",
    }
}

/// A readable name for the type of a value.
pub(super) fn actual(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The help for turning a value of the wrong type into one of the right type, if there is any.
pub(super) fn type_help(value: &Value, wanted: &str, name: &str) -> Option<String> {
    match (value, wanted) {
        (Value::Null, _) => Some("Write a value after the colon, or remove the key.".to_owned()),
        (Value::String(word), "boolean")
            if ["yes", "no", "on", "off"].contains(&word.to_lowercase().as_str()) =>
        {
            Some("YAML 1.2 has `true` and `false` only.".to_owned())
        }
        (Value::String(word), "integer" | "number") if word.parse::<f64>().is_ok_and(f64::is_finite) => Some(
            "A quoted value or the value of a variable is text. Write the number itself, or give it with `--set`."
                .to_owned(),
        ),
        (Value::String(word), "integer" | "number")
            if word.parse::<f64>().is_ok() || word.starts_with('.') =>
        {
            Some("Only finite numbers are allowed.".to_owned())
        }
        (Value::Number(_) | Value::Bool(_), "string" | "text") => {
            Some(format!("Put it in quotes if it is meant as text: \"{value}\"."))
        }
        (Value::String(word), "array") if word.len() <= MAX_SHOWN => {
            Some(format!("Write it as a list: `{name}: [{word}]`."))
        }
        (Value::String(word), _) if name == "calibration" && word.len() <= MAX_SHOWN => {
            Some(format!("Write it as a mapping: `{name}: {{file: {word}}}`."))
        }
        (Value::String(word), "mapping") if word.len() <= MAX_SHOWN => {
            Some(format!("Write `- stage: {}`.", word.trim_end_matches(':')))
        }
        _ => None,
    }
}

/// As [`type_help`], of a value with variables.
pub(super) fn variable_help(wanted: &str) -> Option<&'static str> {
    match wanted {
        "integer" | "number" | "boolean" => Some(
            "A quoted value or the value of a variable is text. Write the value itself, or give it with `--set`.",
        ),
        _ => None,
    }
}

/// The multiples on both sides of a number.
pub(super) fn multiples(value: &Value, step: f64) -> String {
    let number = value.as_f64().unwrap_or_default();
    let below = (number / step).floor() * step;
    if below < step {
        return format!("the least is {step}");
    }
    format!("{below} and {} are", below + step)
}

/// The name of a value: the last key of its pointer, without list positions.
pub(super) fn parameter(pointer: &str) -> String {
    let names: Vec<String> = segments(pointer).collect();
    match names.as_slice() {
        [.., list, item] if item.parse::<usize>().is_ok() && list != "stages" => format!("{list}[{item}]"),
        [.., map, pattern] if map == "layer_types" => format!("layer_types.{pattern}"),
        [.., list, item] if list == "stages" => format!("stages[{item}]"),
        [.., last] => last.clone(),
        [] => "recipe".to_owned(),
    }
}

pub(super) fn description<'s>(schema: &'s Value, key: &str) -> Option<&'s str> {
    schema.get("properties")?.get(key)?.get("description")?.as_str()
}

pub(super) fn example(key: &str) -> &'static str {
    match key {
        "version" => "1",
        "model" => "PATH",
        "path" => "FOLDER",
        _ => "…",
    }
}

/// The stage that a word clearly means, with its index: the nearest one, if no other is as near.
pub(super) fn meant_stage<'w>(word: &str, stages: &[&'w str]) -> Option<(usize, &'w str)> {
    let near = nearest_word(word, stages)?;
    let others: Vec<&str> = stages.iter().copied().filter(|stage| *stage != near).collect();
    let is_tied = nearest_word(word, &others)
        .is_some_and(|other| strsim::levenshtein(word, other) <= strsim::levenshtein(word, near));
    let index = stages.iter().position(|stage| *stage == near)?;
    (!is_tied).then_some((index, near))
}

/// The nearest word; one that differs in case or in `_` and `-` only is nearest of all.
pub(super) fn nearest_word<'w>(word: &str, candidates: &[&'w str]) -> Option<&'w str> {
    let plain = |text: &str| text.to_lowercase().replace('_', "-");
    let same = candidates.iter().copied().find(|candidate| plain(candidate) == plain(word));
    same.or_else(|| nearest(word, candidates.iter().copied()))
}
