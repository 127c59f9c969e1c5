//! The JSON Schema of recipes: generated from the types, tidied for editors, and compiled for checking.

use std::sync::LazyLock;

use jsonschema::Validator;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::{Map, Value, json};

use crate::layer::file_glob::FileGlob;
use crate::layer::pattern::Pattern;
use crate::recipe::{Recipe, editor};
use crate::stage::export::shards::Shards;

/// The name by which schemas refer to this one.
const ID: &str = "https://monoquant.github.io/schemas/recipe.schema.json";

/// The largest integer that every JSON reader keeps exact: 2^53 - 1.
const MAX_EXACT_INTEGER: u64 = (1 << 53) - 1;

static SCHEMA: LazyLock<Value> = LazyLock::new(generate);

/// The schema with `format` checked: each of ours is what the parser of that type accepts.
static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::options()
        .with_format("layer-pattern", |text: &str| Pattern::parse(text).is_ok())
        .with_format("file-glob", |text: &str| FileGlob::parse(text).is_ok())
        .with_format("shard-size", |text: &str| Shards::try_from(text.to_owned()).is_ok())
        .should_validate_formats(true)
        .build(&SCHEMA)
        .expect("the generated schema is valid, as a test checks")
});

/// The schema of recipes, JSON Schema 2020-12.
#[must_use]
pub fn schema() -> Value {
    SCHEMA.clone()
}

/// The schema as the text that is committed as `schemas/recipe.schema.json`.
#[must_use]
pub fn schema_text() -> String {
    // The alternate form of a JSON value is indented by two spaces.
    format!("{:#}\n", *SCHEMA)
}

pub(super) fn validator() -> &'static Validator {
    &VALIDATOR
}

fn generate() -> Value {
    let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(Tidy));
    let schema = settings.into_generator().into_root_schema_for::<Recipe>();
    let mut root = Map::new();
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("$id".to_owned(), json!(ID));
    if let Value::Object(generated) = schema.to_value() {
        for (key, value) in generated {
            root.entry(key).or_insert(value);
        }
    }
    root.insert("title".to_owned(), json!("monoquant recipe"));
    let mut root = Value::Object(root);
    editor::prepare(&mut root);
    root
}

/// Additions to the derived schema for editors and validators.
#[derive(Debug, Clone)]
struct Tidy;

impl Transform for Tidy {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(Value::String(description)) = object.get_mut("description") {
            // Doc comments are wrapped for the source; a single line break means nothing.
            *description =
                description.split("\n\n").map(|p| p.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
        }
        if let Some(Value::Array(branches)) = object.get_mut("oneOf") {
            branches.iter_mut().for_each(name_branch);
        }
        list_words(object);
        // Formats such as `uint32` are not binding, bounds are.
        let format = object.get("format").and_then(Value::as_str).unwrap_or_default().to_owned();
        let bound = match format.as_str() {
            "uint32" => Some(u64::from(u32::MAX)),
            "uint64" | "uint" => Some(MAX_EXACT_INTEGER),
            "double" | "float" => None,
            _ => return,
        };
        object.remove("format");
        if let Some(bound) = bound.filter(|_| !object.contains_key("const")) {
            object.entry("maximum").or_insert(json!(bound));
        }
        if object.contains_key("const") {
            object.remove("minimum");
        }
    }
}

/// Turns a choice between explained words into one `enum`, with the explanations where editors look for them. With
/// `oneOf`, an editor shows the explanation of the word instead of that of the parameter, and validators report every
/// branch.
fn list_words(object: &mut Map<String, Value>) {
    let Some(Value::Array(branches)) = object.get("oneOf") else { return };
    let mut words = Vec::new();
    let mut explanations = Vec::new();
    for branch in branches {
        let description =
            branch.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
        match (branch.get("const"), branch.get("enum").and_then(Value::as_array)) {
            (Some(word @ Value::String(_)), None) => words.push(word.clone()),
            (None, Some(several)) if several.iter().all(Value::is_string) => {
                words.extend(several.iter().cloned())
            }
            _ => return,
        }
        explanations.resize(words.len(), json!(description));
    }
    object.shift_remove("oneOf");
    object.insert("type".to_owned(), json!("string"));
    object.insert("enum".to_owned(), Value::Array(words));
    object.insert("markdownEnumDescriptions".to_owned(), Value::Array(explanations));
}

/// Editors complete and explain a branch by its title: the stage's name.
fn name_branch(branch: &mut Value) {
    let Some(name) = branch.pointer("/properties/stage/const").cloned() else { return };
    let description = branch.get("description").cloned();
    if let (Some(Value::Object(word)), Some(description)) =
        (branch.pointer_mut("/properties/stage"), description)
    {
        word.insert("description".to_owned(), description);
    }
    if let Value::Object(branch) = branch {
        branch.insert("title".to_owned(), name);
    }
}

/// The branches of stages: name and object schema, in the order of the reference.
pub(super) fn stages() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let branches =
        SCHEMA.pointer("/$defs/Stage/oneOf").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    branches.iter().filter_map(|branch| {
        Some((branch.pointer("/properties/stage/const").and_then(Value::as_str)?, branch))
    })
}

/// The schema of a stage's parameters.
pub(super) fn stage(name: &str) -> Option<&'static Value> {
    stages().find(|(stage, _)| *stage == name).map(|(_, schema)| schema)
}

/// The schema of a type that stages use.
pub(super) fn definition(name: &str) -> Option<&'static Value> {
    SCHEMA.get("$defs")?.get(name)
}

/// The schema of the recipe's own keys.
pub(super) fn root() -> &'static Value {
    &SCHEMA
}

/// The names of an object schema's properties.
pub(super) fn property_names(schema: &Value) -> Vec<&str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .map_or(Vec::new(), |map| map.keys().map(String::as_str).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_valid_and_whole() {
        assert!(jsonschema::meta::is_valid(&SCHEMA));
        assert_eq!(
            stages().map(|(name, _)| name).collect::<Vec<_>>(),
            [
                "load",
                "resolve-skips",
                "calibrate",
                "convert",
                "quantize-int4",
                "quantize-int8",
                "quantize-fp8",
                "quantize-mxfp4",
                "quantize-nvfp4",
                "validate",
                "check-warnings",
                "evaluate",
                "export"
            ]
        );
        let text = schema_text();
        assert!(!text.contains("\"null\"") && !text.contains("uint32") && !text.contains("double"));
    }

    #[test]
    fn every_parameter_and_every_choice_is_explained() {
        fn walk(value: &Value, path: &str) {
            if let Some(properties) = value.get("properties").and_then(Value::as_object) {
                for (key, property) in properties {
                    assert!(property.get("description").is_some(), "{path}/{key}");
                }
            }
            match value {
                Value::Object(map) => {
                    map.iter().for_each(|(key, value)| walk(value, &format!("{path}/{key}")))
                }
                Value::Array(items) => {
                    items.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{path}/{i}")))
                }
                _ => {}
            }
        }
        walk(&SCHEMA, "");
    }
}
