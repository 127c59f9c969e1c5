//! The index, `model.safetensors.index.json`: which file holds which tensor, as the index claims.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::code;
use super::header::READ_AHEAD;
use super::json::named;
use super::name::{Names, Span};
use crate::finding::Finding;

/// The index of a folder with several weight files.
#[derive(Debug)]
pub struct Index {
    /// Its file name.
    pub file: String,
    names: Names,
    /// Tensors and their files, in the order of the text.
    entries: Vec<Entry>,
    /// Entries by the names of their tensors.
    order: Vec<u32>,
    /// The names of the files, in the order in which the text first has them.
    files: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tensor: Span,
    file: u32,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, rename = "metadata")]
    _metadata: Ignored,
    weight_map: Entries,
}

/// An object of which nothing is wanted.
#[derive(Default)]
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Ignored)
    }
}

impl<'de> Visitor<'de> for Ignored {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self)
    }
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// As [`Index::parse`].
    pub fn read(text: impl Read, file: &str) -> Result<Self, Vec<Finding>> {
        Self::check(serde_json::from_reader(BufReader::with_capacity(READ_AHEAD, text)), file)
    }

    /// Parses the text of an index.
    ///
    /// # Errors
    /// If it is not JSON, names a tensor twice, or names a file outside of the model's folder.
    pub fn parse(text: &[u8], file: &str) -> Result<Self, Vec<Finding>> {
        Self::check(serde_json::from_slice(text), file)
    }

    fn check(raw: serde_json::Result<Raw>, file: &str) -> Result<Self, Vec<Finding>> {
        let raw = raw.map_err(|e| {
            vec![
                Finding::error(code::INDEX, format!("`{file}` cannot be read: {e}"))
                    .help("Get it again, or delete it: the files alone say which tensors they hold."),
            ]
        })?;
        let Entries { names, entries, files } = raw.weight_map;
        let name = |index: u32| names.get(entries[index as usize].tensor);
        let mut order: Vec<u32> = (0..entries.len() as u32).collect();
        order.sort_unstable_by_key(|&index| name(index));
        let mut twice: Vec<&str> = order
            .windows(2)
            .filter(|pair| name(pair[0]) == name(pair[1]))
            .map(|pair| name(pair[0]))
            .collect();
        twice.dedup();
        let mut findings: Vec<Finding> = twice
            .into_iter()
            .map(|name| Finding::error(code::DUPLICATE, format!("`{file}` names the tensor `{name}` twice")))
            .collect();
        let mut outside: Vec<(&str, u32)> =
            files.iter().map(String::as_str).zip(0..).filter(|(shard, _)| !is_inside(shard)).collect();
        outside.sort_unstable();
        findings.extend(outside.into_iter().filter_map(|(shard, number)| {
            let first = entries.iter().find(|entry| entry.file == number)?;
            let tensor = names.get(first.tensor);
            let message = format!("`{file}` puts `{tensor}` into `{shard}`, which is no file of this folder");
            Some(Finding::error(code::PATH, message).help(
                "An index may only name files below its own folder. Do not use this model if you do not know \
                 why.",
            ))
        }));
        if findings.is_empty() {
            Ok(Self { file: file.to_owned(), names, entries, order, files })
        } else {
            Err(findings)
        }
    }

    /// Whether it names no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tensors and the files that it says they are in, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .map(|entry| (self.names.get(entry.tensor), self.files[entry.file as usize].as_str()))
    }

    /// Whether it names a tensor.
    #[must_use]
    pub fn names(&self, tensor: &str) -> bool {
        let name = |index: &u32| self.names.get(self.entries[*index as usize].tensor);
        self.order.binary_search_by(|index| name(index).cmp(tensor)).is_ok()
    }

    /// The files it names, each once, ordered.
    #[must_use]
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.files.iter().map(String::as_str).collect();
        files.sort_unstable();
        files
    }
}

/// The entries of an index before they are checked: millions of names, and few different files.
#[derive(Default)]
struct Entries {
    names: Names,
    entries: Vec<Entry>,
    files: Vec<String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut found = Entries::default();
        let mut known: HashMap<String, u32> = HashMap::new();
        while let Some(tensor) = map.next_key_seed(TensorName(&mut found.names))? {
            let file = map
                .next_value_seed(FileName { known: &mut known, files: &mut found.files })
                .map_err(|e| named(found.names.get(tensor), &e))?;
            found.entries.push(Entry { tensor, file });
        }
        Ok(found)
    }
}

struct TensorName<'n>(&'n mut Names);

impl<'de> DeserializeSeed<'de> for TensorName<'_> {
    type Value = Span;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Span, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for TensorName<'_> {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Span, E> {
        self.0.push(name).ok_or_else(|| E::custom("the names are longer than any index"))
    }
}

struct FileName<'f> {
    known: &'f mut HashMap<String, u32>,
    files: &'f mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for FileName<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FileName<'_> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<u32, E> {
        if let Some(number) = self.known.get(name) {
            return Ok(*number);
        }
        let number = self.files.len() as u32;
        self.files.push(name.to_owned());
        self.known.insert(name.to_owned(), number);
        Ok(number)
    }
}

/// Whether a relative name stays below the folder, on every operating system.
fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outside_of_the_folder_are_refused() {
        for bad in ["../x.safetensors", "/etc/passwd", "a/../../b", "C:\\x", "a\\..\\b", "", "a//b", "./a"] {
            let text = serde_json::json!({"weight_map": {"t": bad}}).to_string();
            let findings = Index::parse(text.as_bytes(), "index.json").unwrap_err();
            assert_eq!(findings[0].code, code::PATH, "{bad}");
        }
    }

    #[test]
    fn duplicates_and_nonsense_are_refused() {
        let twice = br#"{"weight_map": {"t": "a.safetensors", "t": "b.safetensors"}}"#;
        assert_eq!(Index::parse(twice, "i").unwrap_err()[0].code, code::DUPLICATE);
        for nonsense in [&b""[..], b"[]", b"{}", b"{\"weight_map\": {\"a\": 1}}", b"\xff\xfe"] {
            assert_eq!(Index::parse(nonsense, "i").unwrap_err()[0].code, code::INDEX);
        }
    }

    #[test]
    fn keeps_order_and_finds_names() {
        let text =
            br#"{"metadata": {"total_size": 8}, "weight_map": {"b": "2.safetensors", "a": "s/1.safetensors"}}"#;
        let index = Index::parse(text, "i").unwrap();
        assert_eq!(index.iter().next(), Some(("b", "2.safetensors")));
        assert_eq!(index.files(), ["2.safetensors", "s/1.safetensors"]);
        assert!(index.names("a") && !index.names("c") && !index.is_empty());
    }
}
