//! The reference of stages and parameters as Markdown, made from the schema: one doc comment feeds help, editor and page.

use std::fmt::Write;

use serde_json::Value;

use super::schema::schema;

/// The text of `docs/reference.md`.
#[must_use]
pub fn reference_text() -> String {
    let schema = schema();
    let mut out = String::from(
        "# Reference\n\nMade from the types by `INSTA_UPDATE=always cargo test --release`; see [recipes.md](recipes.md) for how recipes are written.\n\n\
         ## The recipe\n\n",
    );
    table(&schema, &schema, &mut out);
    for stage in schema["$defs"]["Stage"]["oneOf"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "\n## `{}`\n\n{}\n", text(&stage["title"]), text(&stage["description"]));
        table(&schema, stage, &mut out);
    }
    let _ = writeln!(out, "\n## Words\n");
    for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
        let words = words(definition);
        if words.is_empty() {
            continue;
        }
        let _ = writeln!(out, "### {name}\n\n{}\n", text(&definition["description"]));
        let _ = writeln!(out, "| word | meaning |\n| --- | --- |");
        for (word, meaning) in words {
            let _ = writeln!(out, "| `{word}` | {} |", cell(meaning));
        }
        let _ = writeln!(out);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Text that fits into a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// The words of an enumeration with what they mean.
fn words(definition: &Value) -> Vec<(&str, &str)> {
    let words = definition["enum"].as_array().into_iter().flatten().map(text);
    let meanings = definition["markdownEnumDescriptions"].as_array().into_iter().flatten().map(text);
    words.zip(meanings).collect()
}

fn table(schema: &Value, object: &Value, out: &mut String) {
    let required: Vec<&str> = object["required"].as_array().into_iter().flatten().map(text).collect();
    let _ = writeln!(out, "| parameter | value | default | meaning |\n| --- | --- | --- | --- |");
    for (name, property) in object["properties"].as_object().into_iter().flatten() {
        if name == "stage" {
            continue;
        }
        let default = match &property["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => "–".to_owned(),
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => {
                items.iter().map(|item| format!("`{}`", plain(item))).collect::<Vec<_>>().join(", ")
            }
            value => format!("`{}`", plain(value)),
        };
        let _ = writeln!(
            out,
            "| `{name}` | {} | {default} | {} |",
            kind(schema, property),
            cell(text(&property["description"]))
        );
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The allowed values, in a few words.
fn kind(schema: &Value, property: &Value) -> String {
    if let Some(reference) = property["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let definition = &schema["$defs"][name];
        let words = words(definition);
        return match words.len() {
            0 => name.to_lowercase(),
            1..=6 => words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            _ => format!("[{name}](#{})", name.to_lowercase()),
        };
    }
    let bounds = || {
        let minimum = property.get("minimum").map(|value| format!(" from {}", plain(value)));
        let above = property.get("exclusiveMinimum").map(|value| format!(" above {}", plain(value)));
        // Bounds of the JSON number type say nothing to a person.
        let maximum =
            property.get("maximum").filter(|value| value.as_f64().is_some_and(|number| number < 1e12));
        let maximum = maximum.map(|value| format!(" to {}", plain(value)));
        [minimum, above, maximum].into_iter().flatten().collect::<String>()
    };
    match text(&property["type"]) {
        "array" => format!("list of {}", kind(schema, &property["items"])),
        "object" => format!("pattern → {}", kind(schema, &property["additionalProperties"])),
        "integer" => match &property["const"] {
            Value::Null => format!("whole number{}", bounds()),
            only => plain(only),
        },
        "number" => format!("number{}", bounds()),
        "boolean" => "`true`, `false`".to_owned(),
        "string" => "text".to_owned(),
        other => other.to_owned(),
    }
}
