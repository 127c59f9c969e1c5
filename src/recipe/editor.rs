//! Additions to the schema of recipes for editors: what completion inserts is valid, hovers tell defaults and ranges, and lists
//! that take layer types offer them.

use serde_json::{Map, Value, json};

use crate::text::units::number;

/// Values that completion inserts for numbers without a default: without one, editors insert 0.
const EXAMPLES: [(&str, f64); 18] = [
    ("gap_error", 6.0),
    ("gap_warning", 3.0),
    ("gradient_samples", 24.0),
    ("grid", 100.0),
    ("max_kl", 0.02),
    ("max_perplexity_ratio", 1.03),
    ("maxshrink", 0.2),
    ("min_cosine", 0.99),
    ("min_top1_agreement", 0.9),
    ("norm", 2.4),
    ("percentile", 99.9),
    ("samples", 128.0),
    ("seed", 0.0),
    ("skip_param_threshold", 512.0),
    ("sqnr_error_threshold", 12.0),
    ("sqnr_warning_threshold", 16.0),
    ("tensor_parallel", 2.0),
    ("version", 1.0),
];

/// Lists of patterns that take layer types as well.
const TAKE_LAYER_TYPES: [&str; 2] = ["targets", "quantize_anyway"];

/// Adds to the whole schema of recipes what editors read.
pub(super) fn prepare(root: &mut Value) {
    let types = layer_types(root);
    if let Some(properties) = root.get_mut("properties").and_then(Value::as_object_mut) {
        explain(properties, &types);
    }
    let stages = root.pointer_mut("/$defs/Stage/oneOf").and_then(Value::as_array_mut);
    for stage in stages.into_iter().flatten() {
        if let Some(properties) = stage.get_mut("properties").and_then(Value::as_object_mut) {
            explain(properties, &types);
        }
    }
    if let Some(properties) = root.pointer_mut("/$defs/Calibration/properties").and_then(Value::as_object_mut)
    {
        explain(properties, &types);
    }
}

/// The layer types as an editor offers them, each with its explanation.
fn layer_types(root: &Value) -> Vec<Value> {
    let list = |key: &str| root["$defs"]["LayerType"][key].as_array().cloned().unwrap_or_default();
    let words = list("enum").into_iter().zip(list("markdownEnumDescriptions"));
    words.map(|(word, meaning)| json!({"label": word, "body": word, "description": meaning})).collect()
}

fn explain(properties: &mut Map<String, Value>, types: &[Value]) {
    for (name, property) in properties {
        let Some(property) = property.as_object_mut() else { continue };
        let is_bare = |key: &str| !property.contains_key(key);
        if is_bare("default")
            && is_bare("examples")
            && is_bare("const")
            && let Some(example) = example(name, property)
        {
            property.insert("examples".to_owned(), json!([example]));
        }
        if TAKE_LAYER_TYPES.contains(&name.as_str())
            && let Some(Value::Object(items)) = property.get_mut("items")
        {
            items.insert("defaultSnippets".to_owned(), json!(types));
        }
        if let Some(text) = hover(property) {
            property.insert("markdownDescription".to_owned(), json!(text));
        }
    }
}

/// The example of a number, in its type.
fn example(name: &str, property: &Map<String, Value>) -> Option<Value> {
    let (_, example) = EXAMPLES.iter().find(|(known, _)| *known == name)?;
    match property.get("type")?.as_str()? {
        // A whole number has none of a fraction.
        "integer" => Some(json!(*example as u64)),
        "number" => Some(json!(example)),
        _ => None,
    }
}

/// The description with the default and the range. None if there is nothing to add.
fn hover(property: &Map<String, Value>) -> Option<String> {
    let description = property.get("description")?.as_str()?;
    let code = |value: &Value| match value {
        Value::String(text) => format!("`{text}`"),
        other => format!("`{}`", number(other)),
    };
    let mut facts = Vec::new();
    match property.get("default") {
        Some(Value::Array(items)) if items.is_empty() => facts.push("Default: none.".to_owned()),
        Some(Value::Array(items)) => {
            facts.push(format!("Default: {}.", items.iter().map(code).collect::<Vec<_>>().join(", ")));
        }
        Some(value) => facts.push(format!("Default: {}.", code(value))),
        None => {}
    }
    let bound = |key: &str| property.get(key).and_then(Value::as_f64);
    // Bounds of the number type say nothing to a person.
    let most = bound("maximum").filter(|most| *most < 1e9);
    match (bound("minimum"), bound("exclusiveMinimum"), most) {
        (Some(least), _, Some(most)) => facts.push(format!("From {least} to {most}.")),
        (Some(least), _, None) => facts.push(format!("At least {least}.")),
        (None, Some(above), Some(most)) => facts.push(format!("More than {above}, at most {most}.")),
        (None, Some(above), None) => facts.push(format!("More than {above}.")),
        (None, None, Some(most)) => facts.push(format!("At most {most}.")),
        (None, None, None) => {}
    }
    if let Some(step) = bound("multipleOf") {
        facts.push(format!("A multiple of {step}."));
    }
    (!facts.is_empty()).then(|| format!("{description}\n\n{}", facts.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::schema::{schema, stages};

    #[test]
    fn every_number_that_is_inserted_is_allowed() {
        let root = schema();
        for (stage, branch) in stages() {
            for (name, property) in branch["properties"].as_object().into_iter().flatten() {
                if !matches!(property["type"].as_str(), Some("number" | "integer")) {
                    continue;
                }
                let offered: Vec<&Value> = property
                    .get("default")
                    .into_iter()
                    .chain(property["examples"].as_array().into_iter().flatten())
                    .collect();
                assert!(!offered.is_empty(), "{stage}: {name} has neither a default nor an example");
                let mut alone = property.clone();
                alone["$defs"] = root["$defs"].clone();
                let validator = jsonschema::validator_for(&alone).unwrap();
                assert!(
                    offered.iter().all(|value| validator.is_valid(value)),
                    "{stage}: {name}: {offered:?}"
                );
            }
        }
    }

    #[test]
    fn hovers_tell_defaults_and_ranges() {
        let of = |stage: &str, name: &str| {
            let branch = crate::recipe::schema::stage(stage).unwrap();
            branch["properties"][name]["markdownDescription"].as_str().unwrap_or_default().to_owned()
        };
        let text = of("quantize-int4", "group_size");
        assert!(text.ends_with("Default: `128`. From 8 to 65536. A multiple of 8."), "{text}");
        let text = of("quantize-int4", "observer");
        assert!(text.ends_with("Default: `minmax`."), "{text}");
        let text = of("quantize-int4", "targets");
        assert!(text.ends_with("Default: `Linear`, `Experts`."), "{text}");
        let offered = crate::recipe::schema::stage("quantize-int4").unwrap();
        let offered = offered.pointer("/properties/targets/items/defaultSnippets").and_then(Value::as_array);
        assert!(offered.is_some_and(|offered| offered.len() == crate::layer::LayerType::ALL.len()));
    }
}
