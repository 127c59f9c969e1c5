//! YAML text as a located tree: every key and every value knows its bytes. This is the only file that uses the YAML
//! reader.
//!
//! Aliases and merge keys arrive expanded, with the place where they are used and the place where they are defined.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::finding::{Finding, Place, SourceText};

mod read;
mod syntax;

use read::Raw;

/// Findings after which the rest of the text is not looked at.
const MAX_FINDINGS: usize = 100;

/// A value, the place where it is used, and the place where it is defined if that is elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub content: Content,
    /// The text as it was written, if variables were replaced in it.
    pub written: Option<String>,
    pub used: Place,
    pub defined: Option<Place>,
}

/// The content of a value.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_place: Place,
    pub key_defined: Option<Place>,
    pub value: Node,
}

/// Reads the part `region` of a text as one YAML document.
///
/// # Errors
/// The findings: one for a syntax error, all of them for duplicate keys and keys that are not text.
pub(super) fn parse(source: &Arc<SourceText>, region: Range<usize>) -> Result<Node, Vec<Finding>> {
    let text = &source.text[region.clone()];
    // The byte-order mark is not part of the document, but places count from the start of the file.
    let skipped = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[skipped..];
    let mut build = Build { source, text, offset: region.start + skipped, findings: Vec::new() };
    match read::document(text) {
        Ok(raw) => {
            let node = build.node(raw);
            if build.findings.is_empty() { Ok(node) } else { Err(build.findings) }
        }
        Err(error) => Err(vec![syntax::finding(&error, &build)]),
    }
}

struct Build<'a> {
    source: &'a Arc<SourceText>,
    text: &'a str,
    offset: usize,
    findings: Vec<Finding>,
}

impl Build<'_> {
    fn node(&mut self, raw: Spanned<Raw>) -> Node {
        let (mut used, defined) = self.places(&raw.referenced, &raw.defined);
        if used.is_empty() && matches!(raw.value, Raw::List(_) | Raw::Map(_)) {
            // The reader reports only the start of a block, without its extent. Its first character can be marked.
            let first = self.source.text[used.start..].chars().next().filter(|c| !c.is_whitespace());
            used.end += first.map_or(0, char::len_utf8);
        }
        let content = match raw.value {
            Raw::Null => Content::Null,
            Raw::Bool(value) => Content::Bool(value),
            Raw::Integer(value) => Content::Number(value),
            Raw::Float(value) => match float(value) {
                Some(number) => Content::Number(number),
                None => Content::Text(value.to_string()),
            },
            Raw::Text(value) => Content::Text(value),
            Raw::List(items) => Content::List(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(entries) => Content::Map(self.entries(entries)),
        };
        Node { content, written: None, used, defined }
    }

    fn entries(&mut self, raw: Vec<(Spanned<Raw>, Spanned<Raw>)>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::with_capacity(raw.len());
        let mut index = std::collections::HashMap::new();
        for (key, value) in raw {
            let (key_place, key_defined) = self.places(&key.referenced, &key.defined);
            let word = key_defined.as_ref().unwrap_or(&key_place);
            let key = match key.value {
                Raw::Text(text) => text,
                // A key such as `1` or `true` is meant as the text it is written as.
                Raw::Bool(_) | Raw::Integer(_) | Raw::Float(_) => {
                    self.source.text[word.start..word.end].to_owned()
                }
                Raw::Null | Raw::List(_) | Raw::Map(_) => {
                    let finding = Finding::error("recipe::key-not-text", "a key has to be text")
                        .at(key_place, "this key is no text")
                        .help("Keys are names, as in `group_size: 128`; quote a name that YAML reads as something else.");
                    self.findings.push(finding);
                    continue;
                }
            };
            if self.findings.len() > MAX_FINDINGS {
                return entries;
            }
            let value = self.node(value);
            if let Some(first) = index.get(&key) {
                let first: &Entry = &entries[*first];
                let finding = Finding::error(
                    "recipe::duplicate-key",
                    format!("the key `{key}` occurs twice"),
                )
                .at(key_place, "here again")
                .at(first.key_place.clone(), "first here")
                .help(
                    "Keep one of them. For two stages write two list entries, each with its own `- stage:`.",
                );
                self.findings.push(finding);
                continue;
            }
            index.insert(key.clone(), entries.len());
            entries.push(Entry { key, key_place, key_defined, value });
        }
        entries
    }

    fn places(&self, used: &Location, defined: &Location) -> (Place, Option<Place>) {
        let used = self.place(used);
        let defined = self.place(defined);
        let elsewhere = (used.start != defined.start).then_some(defined);
        (used, elsewhere)
    }

    /// The reader's place as bytes of the source, always on character boundaries and within the text.
    fn place(&self, location: &Location) -> Place {
        let span = location.span();
        let (start, len) = match (span.byte_offset(), span.byte_len()) {
            (Some(start), Some(len)) => (usize::try_from(start).ok(), usize::try_from(len).unwrap_or(0)),
            _ => (None, 1),
        };
        let start = start.unwrap_or_else(|| syntax::byte_of(self.text, location.line(), location.column()));
        let start = floor(self.text, start);
        let end = ceil(self.text, start.saturating_add(len));
        // A block scalar's place extends to the next line. The line break is not part of the word.
        let end = start + self.text[start..end].trim_end().len();
        self.at(start..end)
    }

    fn at(&self, range: Range<usize>) -> Place {
        Place {
            source: Arc::clone(self.source),
            start: self.offset + range.start,
            end: self.offset + range.end,
        }
    }
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// A float as JSON has it. Whole numbers become integers, so that `128.0` is what `128` is, as in JSON Schema.
fn float(value: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

impl Node {
    /// A text that came from the command line, which is its own place.
    pub(super) fn text(name: &str, text: &str) -> Self {
        let source = Arc::new(SourceText { name: name.to_owned(), text: text.to_owned() });
        let used = Place { source, start: 0, end: text.len() };
        Node { content: Content::Text(text.to_owned()), written: None, used, defined: None }
    }

    /// The value as JSON, without places.
    pub(super) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(value) => Value::Number(value.clone()),
            Content::Text(value) => Value::String(value.clone()),
            Content::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Content::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect(),
            ),
        }
    }

    /// The items of a list; of anything else, none.
    pub(super) fn items(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// The entries of a mapping; of anything else, none.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry with this key.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The text, if the value is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The text as it is told: with variables as they were written.
    pub(super) fn told(&self) -> Option<&str> {
        self.written.as_deref().or_else(|| self.as_text())
    }

    fn child(&self, segment: &str) -> Option<&Node> {
        match &self.content {
            Content::List(items) => items.get(segment.parse::<usize>().ok()?),
            Content::Map(_) => self.entry(segment).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The value at a JSON pointer, or the nearest one above it; and whether it is the value itself.
    pub(super) fn nearest(&self, pointer: &str) -> (&Node, bool) {
        let mut node = self;
        for segment in segments(pointer) {
            match node.child(&segment) {
                Some(child) => node = child,
                None => return (node, false),
            }
        }
        (node, true)
    }

    /// The value at a JSON pointer.
    pub(super) fn at(&self, pointer: &str) -> Option<&Node> {
        match self.nearest(pointer) {
            (node, true) => Some(node),
            _ => None,
        }
    }

    /// The entry whose value is at a JSON pointer.
    pub(super) fn entry_at(&self, pointer: &str) -> Option<&Entry> {
        let (parent, _) = pointer.rsplit_once('/')?;
        self.at(parent)?.entry(&segments(pointer).last()?)
    }

    /// Whether one of the values was written around a place.
    pub(super) fn has_value_at(&self, place: &Place) -> bool {
        match &self.content {
            Content::List(items) => items.iter().any(|item| item.has_value_at(place)),
            Content::Map(entries) => entries.iter().any(|entry| entry.value.has_value_at(place)),
            _ => {
                let word = self.defined.as_ref().unwrap_or(&self.used);
                Arc::ptr_eq(&word.source, &place.source) && word.start <= place.start && place.end <= word.end
            }
        }
    }

    /// The place of the first glob or regular expression beyond `limit` of them, keys included; `count` is how many were met.
    pub(super) fn expression_beyond(&self, limit: usize, count: &mut usize) -> Option<&Place> {
        match &self.content {
            Content::Text(text) => is_beyond(text, limit, count).then_some(&self.used),
            Content::List(items) => items.iter().find_map(|item| item.expression_beyond(limit, count)),
            Content::Map(entries) => entries.iter().find_map(|entry| {
                if is_beyond(&entry.key, limit, count) {
                    return Some(&entry.key_place);
                }
                entry.value.expression_beyond(limit, count)
            }),
            _ => None,
        }
    }

    /// The word that represents the value: a scalar itself, a stage's name, a mapping's first key, a list's first
    /// character.
    pub(super) fn word(&self) -> &Place {
        match &self.content {
            Content::Map(entries) => match (self.entry("stage"), entries.first()) {
                (Some(stage), _) if !stage.value.used.is_empty() => &stage.value.used,
                (_, Some(first)) => &first.key_place,
                (_, None) => &self.used,
            },
            _ => &self.used,
        }
    }
}

/// Counts a text that may be a glob or a regular expression; whether there are more than `limit` with it.
fn is_beyond(text: &str, limit: usize, count: &mut usize) -> bool {
    *count += usize::from(text.starts_with("re:") || text.contains(['*', '?', '[', '{', '\\']));
    *count > limit
}

/// The unescaped segments of a JSON pointer.
pub(super) fn segments(pointer: &str) -> impl Iterator<Item = String> {
    pointer.split('/').skip(1).map(|segment| segment.replace("~1", "/").replace("~0", "~"))
}

/// A key as a segment of a JSON pointer.
pub(super) fn segment(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Result<Node, Vec<Finding>> {
        let source = Arc::new(SourceText { name: "recipe.yaml".into(), text: text.into() });
        parse(&source, 0..text.len())
    }

    fn word(text: &str, pointer: &str) -> String {
        let node = tree(text).unwrap();
        let place = node.at(pointer).unwrap().word().clone();
        text[place.start..place.end].to_owned()
    }

    #[test]
    fn every_value_knows_its_bytes() {
        let text = "\u{feff}é: [1, \"zwei\"] # 漢\nb:\n  - stage: load\n    c~/d: 2.5\n";
        assert_eq!(word(text, "/é/1"), "\"zwei\"");
        assert_eq!(word(text, "/b/0"), "load");
        assert_eq!(word(text, "/b/0/c~0~1d"), "2.5");
        assert_eq!(word(text, "/é"), "[");
        assert_eq!(word(text, "/b"), "-");
    }

    #[test]
    fn aliases_and_merges_have_two_places() {
        let text = "base: &b\n  x: 1\nuse:\n  <<: *b\nvalue: &v 3\nalias: *v\n";
        let node = tree(text).unwrap();
        let slice = |place: &Place| text[place.start..place.end].to_owned();
        let merged = node.entry_at("/use/x").unwrap();
        assert_eq!(slice(&merged.key_place), "*b");
        assert_eq!(slice(merged.key_defined.as_ref().unwrap()), "x");
        assert_eq!(slice(node.at("/alias").unwrap().defined.as_ref().unwrap()), "3");
    }

    #[test]
    fn all_duplicate_keys_are_told() {
        let findings = tree("a: 1\na: 2\nb:\n  c: 1\n  c: 2\n").unwrap_err();
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[0].labels[0].place.line_column(), (2, 1));
    }

    #[test]
    fn numbers_are_what_json_schema_calls_them() {
        assert_eq!(
            tree("[128.0, 0o17, 0x10, 1e3, 2.5]").unwrap().to_json().to_string(),
            "[128,15,16,1000,2.5]"
        );
        assert_eq!(
            tree("[.nan, .inf, yes, no, on]").unwrap().to_json().to_string(),
            r#"[".nan",".inf","yes","no","on"]"#
        );
        assert_eq!(tree("99999999999999999999999").unwrap().to_json().to_string(), "1e+23");
    }
}
