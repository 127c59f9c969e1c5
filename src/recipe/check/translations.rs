//! The words of other tools, and what they are called here.

use std::fmt::Write;

use serde_json::Value;

use crate::finding::Finding;
use crate::recipe::tree::Node;

/// The translation of a key that a stage or a recipe does not have.
pub(super) fn of_key(owner: Option<&str>, key: &str, value: &Value) -> Option<String> {
    let is_quantize = owner.is_some_and(|owner| owner.starts_with("quantize-"));
    match (owner, key) {
        (None, "bits" | "num_bits" | "w_bit" | "wbits" | "scheme" | "sym" | "group_size" | "ignore")
        | (Some("load" | "resolve-skips" | "export" | "calibrate"), "bits" | "num_bits" | "scheme" | "sym") => {
            Some(of_value(key, value).unwrap_or_else(|| {
                "It belongs to the stage that quantizes: `quantize-int4` or `quantize-int8`.".to_owned()
            }))
        }
        (_, "ignore" | "exclude" | "skip" | "modules_to_not_convert") if is_quantize => Some(format!(
            "Write it as `modules_to_not_convert: {}` in a `- stage: resolve-skips` before this stage.",
            flow(value)
        )),
        (
            _,
            "bits" | "num_bits" | "w_bit" | "wbits" | "scheme" | "sym" | "is_symmetric" | "zero_point"
            | "asymmetric",
        ) if is_quantize => of_value(key, value),
        (_, "strategy") if is_quantize => Some(format!("Here it is called `granularity: {}`.", plain(value))),
        (_, "groupsize" | "q_group_size" | "block_size") if is_quantize => {
            Some(format!("Here it is called `group_size: {}`.", plain(value)))
        }
        (_, "input_activations") if is_quantize => {
            Some("INT8 activations are `activations: dynamic-token` of `quantize-int8`.".to_owned())
        }
        (_, "type" | "dtype") if is_quantize => {
            Some("The stage's name says it: `quantize-int4` or `quantize-int8`.".to_owned())
        }
        (Some("resolve-skips"), "ignore" | "exclude" | "skip") => {
            Some(format!("Here it is called `modules_to_not_convert: {}`.", flow(value)))
        }
        (
            Some("load"),
            "path" | "model_id" | "model_path" | "model_name_or_path" | "name_or_path" | "repo_id" | "source",
        ) => Some(format!("Here it is called `model: {}`.", plain(value))),
        (
            Some("export"),
            "output" | "output_dir" | "output_path" | "save_path" | "out" | "dir" | "directory",
        ) => Some(format!("Here it is called `path: {}`.", plain(value))),
        _ => None,
    }
}

/// What a word of other tools, with its value, is here.
fn of_value(key: &str, value: &Value) -> Option<String> {
    match key {
        "bits" | "num_bits" | "w_bit" | "wbits" => Some(match value.as_u64() {
            Some(bits @ (4 | 8)) => format!("The stage's name says it: `- stage: quantize-int{bits}`."),
            _ => "There are 4 and 8 bits: `- stage: quantize-int4` and `- stage: quantize-int8`.".to_owned(),
        }),
        "sym" | "is_symmetric" => {
            Some(format!("Here it is called `symmetric: {}`.", value.as_bool().unwrap_or(true)))
        }
        "zero_point" | "asymmetric" => {
            Some(format!("Here it is called `symmetric: {}`.", !value.as_bool().unwrap_or(true)))
        }
        "group_size" => Some("It belongs to the stage that quantizes.".to_owned()),
        "ignore" => Some(format!(
            "Write it as `modules_to_not_convert: {}` in `- stage: resolve-skips`.",
            flow(value)
        )),
        "scheme" => {
            let word = value.as_str()?;
            Some(match stage_of(word) {
                Some(stage) => format!("`{word}` is `{}`.", stage.inline()),
                None => format!("`{word}` is not available; there are {}.", AVAILABLE),
            })
        }
        _ => None,
    }
}

const AVAILABLE: &str = "W4A16, W4A16_ASYM, W8A16 and W8A8 (INT8)";

/// A stage that does what a scheme or a config group of llm-compressor says.
struct Quantize {
    bits: u64,
    parameters: Vec<(&'static str, String)>,
}

impl Quantize {
    fn inline(&self) -> String {
        let parameters: Vec<String> =
            self.parameters.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("- {{stage: quantize-int{}, {}}}", self.bits, parameters.join(", "))
    }
}

/// The stage for a scheme's name.
fn stage_of(scheme: &str) -> Option<Quantize> {
    let (bits, parameters): (u64, &[(&'static str, &str)]) = match scheme.to_ascii_uppercase().as_str() {
        "W4A16" => (4, &[("group_size", "128")]),
        "W4A16_ASYM" => (4, &[("group_size", "128"), ("symmetric", "false")]),
        "W8A16" => (8, &[("granularity", "channel")]),
        "W8A8" | "INT8" => (8, &[("granularity", "channel"), ("activations", "dynamic-token")]),
        _ => return None,
    };
    Some(Quantize {
        bits,
        parameters: parameters.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
    })
}

/// The stage for the `weights` of a config group.
fn stage_of_group(group: &Value) -> Option<Quantize> {
    let weights = &group["weights"];
    let bits = weights["num_bits"].as_u64().filter(|bits| matches!(bits, 4 | 8))?;
    if weights["type"].as_str().is_some_and(|word| word != "int") {
        return None;
    }
    let mut parameters = Vec::new();
    match weights["strategy"].as_str() {
        Some(strategy @ ("channel" | "tensor")) => parameters.push(("granularity", strategy.to_owned())),
        _ => {
            if let Some(size) = weights["group_size"].as_u64() {
                parameters.push(("group_size", size.to_string()));
            }
        }
    }
    if weights["symmetric"].as_bool() == Some(false) {
        parameters.push(("symmetric", "false".to_owned()));
    }
    if group["input_activations"].is_object() {
        parameters.push(("activations", "dynamic-token".to_owned()));
    }
    Some(Quantize { bits, parameters })
}

/// What a modifier of llm-compressor does that has no counterpart, or another one.
fn note(modifier: &str) -> Option<&'static str> {
    match modifier {
        "QuantizationModifier" => None,
        "GPTQModifier" | "AWQModifier" => Some(
            "Calibration on text is `- stage: calibrate` before the quantize stage, with `observer: mse` in that.",
        ),
        "SmoothQuantModifier" => {
            Some("SmoothQuant changes the weights before they are quantized, which no stage does.")
        }
        _ => Some("Other modifiers have no counterpart."),
    }
}

/// The finding for a recipe of llm-compressor, with the same recipe in the words that are known here. None if it is none.
pub(super) fn of_recipe(tree: &Node, root: &Value) -> Option<Finding> {
    let mut modifiers = Vec::new();
    if root.get("stages").is_some() {
        return None;
    }
    collect(root, &mut modifiers);
    let first = tree.entries().first()?;
    if modifiers.is_empty() {
        return None;
    }
    let mut ignored: Vec<&str> = Vec::new();
    let (mut stages, mut notes) = (Vec::new(), Vec::new());
    for (name, modifier) in &modifiers {
        let names = modifier["ignore"].as_array().into_iter().flatten().filter_map(Value::as_str);
        ignored.extend(names);
        let groups = modifier["config_groups"].as_object().into_iter().flat_map(|groups| groups.values());
        let found: Vec<Option<Quantize>> =
            modifier["scheme"].as_str().map(stage_of).into_iter().chain(groups.map(stage_of_group)).collect();
        if found.iter().any(Option::is_none) {
            notes.push(format!("A scheme of `{name}` is not available; there are {AVAILABLE}."));
        }
        stages.extend(found.into_iter().flatten());
        notes.extend(note(name).map(str::to_owned));
    }
    notes.dedup();
    let mut text = String::from("version: 1\nstages:\n  - stage: load\n    model: MODEL\n");
    if !ignored.is_empty() {
        ignored.dedup();
        let _ =
            writeln!(text, "  - stage: resolve-skips\n    modules_to_not_convert: {}", Value::from(ignored));
    }
    for stage in &stages {
        let _ = writeln!(text, "  - stage: quantize-int{}", stage.bits);
        stage.parameters.iter().for_each(|(key, value)| {
            let _ = writeln!(text, "    {key}: {value}");
        });
    }
    text.push_str("  - stage: validate\n  - stage: export\n    path: OUTPUT");
    let finding = Finding::error("recipe::llm-compressor", "this is a recipe of llm-compressor")
        .at(first.key_place.clone(), "a stage of modifiers");
    let finding = match stages.is_empty() {
        true => finding,
        false => finding
            .help("The same in monoquant's words:")
            .help_lines(text.lines().map(|line| format!("  {line}"))),
    };
    let more = "`monoquant init MODEL` writes one with thresholds that the scheme can reach.";
    Some(finding.help_lines(notes).help(more))
}

/// The modifiers in a recipe, wherever they are.
fn collect<'v>(value: &'v Value, modifiers: &mut Vec<(&'v str, &'v Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key.ends_with("Modifier") {
                    modifiers.push((key, value));
                } else {
                    collect(value, modifiers);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, modifiers)),
        _ => {}
    }
}

/// A value as a list of YAML in one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) if items.len() <= 8 => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(text) if text.len() <= 60 => format!("[{}]", plain(value)),
        _ => "[…]".to_owned(),
    }
}

/// A short value as it is written in YAML.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 60 && !text.is_empty() => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
            if text.chars().all(is_plain) { text.clone() } else { value.to_string() }
        }
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => "…".to_owned(),
    }
}
