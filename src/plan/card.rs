//! The model card of an output: the source's README.md with what changes in its front matter.

use crate::fs::regular::limit;
use crate::model::ModelFolder;
use crate::recipe::Loaded;
use crate::stage::export::Format;
use crate::stage::{Export, Stage};

/// The name of a model's card.
pub(crate) const CARD_FILE_NAME: &str = "README.md";

/// The planned part of a card; what was measured is added when it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The front matter, without its fences.
    pub front: String,
    /// The text below it, as it was.
    pub body: String,
    /// The model that the output was made from, by its name on the Hub. None if it is not known.
    pub base_model: Option<String>,
}

/// Plans the card of an export. None if the recipe wants none or copies nothing, or the source's cannot be read as text: it is carried over as it is then.
pub(super) fn plan(loaded: &Loaded, model: &ModelFolder, export: &Export) -> Option<Card> {
    if !export.card || !export.copy {
        return None;
    }
    let is_there = model.others.iter().any(|file| file.path == CARD_FILE_NAME);
    let text = match is_there {
        true => String::from_utf8(model.source.read(CARD_FILE_NAME, limit::CONFIG).ok()?).ok()?,
        false => String::new(),
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n");
    let (front, body) = divided(&text);
    let own = || value_of(front, "base_model");
    let base_model = export.base_model.clone().or_else(|| of_hub(loaded)).or_else(own);
    let mut front = Front(front.to_owned());
    if let Some(base_model) = &base_model {
        front.set("base_model", &quoted(base_model));
        front.set("base_model_relation", "quantized");
    }
    if !front.has("library_name") {
        front.set("library_name", "transformers");
    }
    let tag = match export.format {
        Format::CompressedTensors => "compressed-tensors",
        Format::Dequantized => "dequantized",
    };
    front.add_tags(&["monoquant", tag]);
    Some(Card { front: front.0, body: body.to_owned(), base_model })
}

/// The name on the Hub of the model that a recipe loads.
fn of_hub(loaded: &Loaded) -> Option<String> {
    let load = loaded.recipe.stages.iter().find_map(|stage| match stage {
        Stage::Load(load) => Some(load),
        _ => None,
    })?;
    // A name with variables is told as it was written, which is no name.
    let name = load.model.strip_prefix("hf://").filter(|_| loaded.written("/stages/0/model").is_none())?;
    Some(name.split_once('@').map_or(name, |(name, _)| name).to_owned())
}

/// The front matter and the text below it.
fn divided(text: &str) -> (&str, &str) {
    let Some(rest) = text.strip_prefix("---\n") else { return ("", text) };
    if let Some(body) = rest.strip_prefix("---\n") {
        return ("", body);
    }
    match rest.split_once("\n---\n") {
        Some((front, body)) => (front, body),
        None => rest.strip_suffix("\n---").map_or(("", text), |front| (front, "")),
    }
}

/// The word behind a key at the first level, if it is one word.
fn value_of(front: &str, key: &str) -> Option<String> {
    let line = front.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let word = line.split(" #").next().unwrap_or(line).trim().trim_matches(['"', '\'']);
    let is_word = !word.is_empty() && !word.starts_with(['[', '{', '|', '>', '&', '*', '-']);
    is_word.then(|| word.to_owned())
}

/// A text as a scalar of YAML.
fn quoted(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.'))
        && text.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E' | 'x' | 'o'));
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// Front matter, changed by lines: nothing else of it is touched.
struct Front(String);

impl Front {
    /// The lines of a key at the first level: its own, and those that follow it and belong to it.
    fn lines_of(&self, key: &str) -> Option<(usize, usize)> {
        let mut at = 0;
        let (mut start, mut end) = (None, 0);
        for line in self.0.split_inclusive('\n') {
            let is_key = line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
            let belongs = line.starts_with([' ', '\t', '-', '\n']);
            match start {
                None if is_key => start = Some(at),
                Some(_) if !belongs => return Some((start?, end)),
                _ => {}
            }
            at += line.len();
            end = at;
        }
        Some((start?, end))
    }

    fn has(&self, key: &str) -> bool {
        self.lines_of(key).is_some()
    }

    fn set(&mut self, key: &str, value: &str) {
        let line = format!("{key}: {value}\n");
        match self.lines_of(key) {
            Some((start, end)) => self.0.replace_range(start..end, &line),
            None => self.append(&line),
        }
    }

    fn append(&mut self, lines: &str) {
        if !self.0.is_empty() && !self.0.ends_with('\n') {
            self.0.push('\n');
        }
        self.0.push_str(lines);
    }

    /// Adds tags to a list of any form. If it is of none that is known, it stays as it is.
    fn add_tags(&mut self, tags: &[&str]) {
        let Some((start, end)) = self.lines_of("tags") else {
            let list: String = tags.iter().map(|tag| format!("- {tag}\n")).collect();
            return self.append(&format!("tags:\n{list}"));
        };
        let block = self.0[start..end].to_owned();
        let has = |tag: &&&str| {
            block
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                .any(|word| word.trim_start_matches('-') == **tag)
        };
        let new: Vec<&str> = tags.iter().filter(|tag| !has(tag)).copied().collect();
        let head = block.lines().next().unwrap_or_default();
        let value = head["tags:".len()..].split(" #").next().unwrap_or_default().trim();
        if let Some(inside) = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
            let all = [inside.trim()].into_iter().filter(|inside| !inside.is_empty()).chain(new);
            let list = format!("tags: [{}]\n", all.collect::<Vec<_>>().join(", "));
            self.0.replace_range(start..end, &list);
        } else if value.is_empty() {
            let indent: String = block
                .lines()
                .find(|line| line.trim_start().starts_with('-'))
                .map_or(String::new(), |line| line.chars().take_while(|c| *c == ' ').collect());
            let list: String = new.iter().map(|tag| format!("{indent}- {tag}\n")).collect();
            let body = block.trim_end();
            self.0.replace_range(start..end, &format!("{body}\n{list}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(front: &str) -> String {
        let mut front = Front(front.to_owned());
        front.add_tags(&["monoquant", "compressed-tensors"]);
        front.0
    }

    #[test]
    fn front_matter_ends_at_its_fence() {
        assert_eq!(divided("---\na: 1\n---\nText\n---\n"), ("a: 1", "Text\n---\n"));
        assert_eq!(divided("---\n---\nText"), ("", "Text"));
        assert_eq!(divided("---\na: 1\n---"), ("a: 1", ""));
        assert_eq!(divided("Text\n---\n"), ("", "Text\n---\n"));
        assert_eq!(divided("---\nno end"), ("", "---\nno end"));
    }

    #[test]
    fn only_what_is_set_is_touched() {
        let mut front = Front("license: mit # so\nbase_model:\n- a/b\n- c/d\nlanguage: [en]".to_owned());
        front.set("base_model", "x/y");
        front.set("new", "1");
        assert_eq!(front.0, "license: mit # so\nbase_model: x/y\nlanguage: [en]\nnew: 1\n");
        assert_eq!(value_of("base_model: 'a/b' # so\n", "base_model").as_deref(), Some("a/b"));
        assert_eq!(value_of("base_model:\n- a/b\n", "base_model"), None);
        assert_eq!(value_of("base_model_relation: x\n", "base_model"), None);
    }

    #[test]
    fn tags_are_added_to_lists_of_any_form() {
        assert_eq!(tagged(""), "tags:\n- monoquant\n- compressed-tensors\n");
        assert_eq!(tagged("tags: [a, b]\nx: 1"), "tags: [a, b, monoquant, compressed-tensors]\nx: 1");
        assert_eq!(tagged("tags: []\n"), "tags: [monoquant, compressed-tensors]\n");
        assert_eq!(
            tagged("tags:\n  - a\n  - monoquant\nx: 1"),
            "tags:\n  - a\n  - monoquant\n  - compressed-tensors\nx: 1"
        );
        assert_eq!(tagged("tags: odd"), "tags: odd");
    }

    #[test]
    fn names_that_yaml_would_read_otherwise_are_quoted() {
        assert_eq!(quoted("meta-llama/Llama-3.1-8B"), "meta-llama/Llama-3.1-8B");
        assert_eq!(quoted("1.5"), "\"1.5\"");
        assert_eq!(quoted("a: b\n- c"), "\"a: b\\n- c\"");
    }
}
