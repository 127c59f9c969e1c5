//! Chat templates: Jinja as transformers sets it up, in a sandbox with a bounded amount of work.

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use crate::finding::Finding;

/// Steps that a template may take for one conversation: thousands of times what real ones do.
const FUEL: u64 = 20_000_000;

/// Templates that ask for the date always get this day, so that a text has the same tokens whenever it is read.
const TODAY: (u32, u32, i32) = (1, 1, 2025);

/// A model's chat template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
    /// `bos_token`, `eos_token` and others, by name.
    tokens: Map<String, Value>,
}

fn wrong(what: String) -> Finding {
    Finding::error("tokens::chat-template", what).help(
        "Give the text as `text` instead of `messages`, already in the form that the model was trained on.",
    )
}

impl Template {
    /// The template of a model: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`. None if there is none.
    ///
    /// # Errors
    /// It is no template.
    pub fn new(config: &Value, file: Option<&str>) -> Result<Option<Self>, Finding> {
        let inline = match config.get("chat_template") {
            Some(Value::String(source)) => Some(source.as_str()),
            // Several by name; the one for plain conversations is called default.
            Some(Value::Array(list)) => list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str()),
            _ => None,
        };
        let Some(source) = file.or(inline) else { return Ok(None) };
        let tokens = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        let text =
            |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let tokens = tokens.filter_map(|(key, value)| Some((key.clone(), json!(text(value)?)))).collect();
        let template = Self { source: plain_blocks(source), tokens };
        template.environment()?;
        Ok(Some(template))
    }

    fn environment(&self) -> Result<Environment<'_>, Finding> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| strftime(format));
        environment.add_filter("tojson", to_json);
        environment
            .add_template("chat", &self.source)
            .map_err(|error| wrong(format!("the model's chat template cannot be read: {error}")))?;
        Ok(environment)
    }

    /// A conversation as the model was trained on it; `line` has `messages` and may have `tools` and others.
    ///
    /// # Errors
    /// The template refuses it.
    pub fn render(&self, line: &Map<String, Value>) -> Result<String, Finding> {
        let environment = self.environment()?;
        let mut context = self.tokens.clone();
        for (key, value) in
            [("add_generation_prompt", json!(false)), ("tools", Value::Null), ("documents", Value::Null)]
        {
            context.insert(key.to_owned(), value);
        }
        context.extend(
            line.iter().filter(|(key, _)| *key != "text").map(|(key, value)| (key.clone(), value.clone())),
        );
        let template = environment.get_template("chat").map_err(|error| wrong(error.to_string()))?;
        template
            .render(Jinja::from_serialize(&context))
            .map_err(|error| wrong(format!("the model's chat template refuses a conversation: {error}")))
    }
}

/// `generation` blocks mark what a trainer learns from; they change no text.
fn plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, block) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = block.find("%}") else { break };
        let inner = &block[2..end];
        let word = inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match word {
            "generation" | "endgeneration" => {
                let by = if word == "generation" { "if true" } else { "endif" };
                out.push_str(&format!("{{%{}%}}", inner.replace(word, by)));
            }
            _ => out.push_str(&block[..end + 2]),
        }
        rest = &block[end + 2..];
    }
    out.push_str(rest);
    out
}

/// JSON as Python writes it, which is what models were trained on: spaces after colons and commas, nothing escaped for HTML.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, Error> {
    let value: Value = serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "a value cannot be written as JSON").with_source(error)
    })?;
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Jinja> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&value, indent, 0, &mut out);
    Ok(out)
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(list) if !list.is_empty() => {
            out.push('[');
            for (index, value) in list.iter().enumerate() {
                out.push_str(if index > 0 { between } else { "" });
                line(out, depth + 1);
                write_json(value, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(object) if !object.is_empty() => {
            out.push('{');
            for (index, (key, value)) in object.iter().enumerate() {
                out.push_str(if index > 0 { between } else { "" });
                line(out, depth + 1);
                out.push_str(&format!("{}: ", Value::String(key.clone())));
                write_json(value, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// A date as `strftime` writes it.
fn strftime(format: &str) -> String {
    let (day, month, year) = TODAY;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('-') => {
                let _ = letters.next();
                out.push_str(&day.to_string());
            }
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('b') => out.push_str("Jan"),
            Some('B') => out.push_str("January"),
            Some('a') => out.push_str("Wed"),
            Some('A') => out.push_str("Wednesday"),
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('H' | 'M' | 'S') => out.push_str("00"),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, line: &Value) -> Result<String, String> {
        let config = json!({"chat_template": source, "bos_token": "<s>", "eos_token": {"content": "</s>"}});
        let template = Template::new(&config, None).map_err(|e| e.message)?.expect("a template");
        template.render(line.as_object().expect("an object")).map_err(|e| e.message)
    }

    #[test]
    fn what_templates_of_real_models_use_works() {
        let line = json!({"messages": [{"role": "system", "content": " be kind "}, {"role": "user", "content": "hi"}],
            "tools": [{"name": "f", "arguments": {"a": [1, 2.5], "b": null}}]});
        let source = "{{ bos_token }}{%- set ns = namespace(found=false) %}\n\
            {%- for message in messages %}\n\
            {%- if message['role'] == 'system' %}{% set ns.found = true %}{% continue %}{% endif %}\n    \
            {% generation %}\n[{{ message.role | upper }}] {{ message.content.strip() }}{{ eos_token }}\n{% endgeneration %}\n\
            {%- endfor %}\n\
            {{- ns.found }} {{ tools | tojson }} {{ strftime_now('%d %b %Y') }} {{ messages[0].content.strip().split(' ')[1] }}\
            {{ loop_is_gone is defined }}{{ message.get('x', 'none') if message is defined }}";
        assert_eq!(
            render(source, &line).expect("rendered"),
            "<s>[USER] hi</s>\nTrue [{\"name\": \"f\", \"arguments\": {\"a\": [1, 2.5], \"b\": null}}] 01 Jan 2025 kindFalse"
        );
        assert_eq!(
            render("{{ {'a': [1]} | tojson(indent=2) }}", &line).expect("json"),
            "{\n  \"a\": [\n    1\n  ]\n}"
        );
    }

    #[test]
    fn refusals_and_endless_work_are_errors() {
        let line = json!({"messages": [{"role": "user", "content": "hi"}]});
        let refused = render("{{ raise_exception('roles must alternate') }}", &line).expect_err("refused");
        assert!(refused.contains("roles must alternate"), "{refused}");
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(endless, &line).expect_err("stopped").contains("refuses"));
        assert!(render("{% if %}", &line).expect_err("no template").contains("cannot be read"));
    }
}
