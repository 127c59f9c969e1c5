//! `model.safetensors.index.json`: which file holds which tensor, as the index claims.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::code;
use super::json::Entries;
use crate::finding::Finding;

/// The index of a folder with several weight files.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// Its file name.
    pub file: String,
    /// Its `metadata`, as written.
    pub metadata: serde_json::Map<String, Value>,
    /// Tensor name → file name, in the order of the text.
    pub weight_map: IndexMap<String, String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: serde_json::Map<String, Value>,
    weight_map: Entries<String>,
}

impl Index {
    /// Reads the text of an index.
    ///
    /// # Errors
    /// It is no JSON, names a tensor twice, or names a file outside of the model's folder.
    pub fn parse(text: &[u8], file: &str) -> Result<Self, Vec<Finding>> {
        let raw: Raw = serde_json::from_slice(text).map_err(|e| {
            vec![
                Finding::error(code::INDEX, format!("`{file}` cannot be read: {e}"))
                    .help("Get it again, or delete it: the files alone say which tensors they hold."),
            ]
        })?;
        let mut findings: Vec<Finding> = raw
            .weight_map
            .duplicates()
            .into_iter()
            .map(|name| Finding::error(code::DUPLICATE, format!("`{file}` names the tensor `{name}` twice")))
            .collect();
        let weight_map: IndexMap<String, String> = raw.weight_map.0.into_iter().collect();
        let mut outside: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in weight_map.iter().filter(|(_, shard)| !is_inside(shard)) {
            outside.entry(shard).or_insert(tensor);
        }
        findings.extend(outside.into_iter().map(|(shard, tensor)| {
            let message = format!("`{file}` puts `{tensor}` into `{shard}`, which is no file of this folder");
            Finding::error(code::PATH, message).help(
                "An index may only name files below its own folder. Do not use this model if you do not know \
                 why.",
            )
        }));
        if findings.is_empty() {
            Ok(Self { file: file.to_owned(), metadata: raw.metadata, weight_map })
        } else {
            Err(findings)
        }
    }

    /// The files it names, each once, ordered.
    #[must_use]
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        // Neighbours are mostly of one file, so that little is left to sort.
        files.dedup();
        files.sort_unstable();
        files.dedup();
        files
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
    fn keeps_order_and_metadata() {
        let text =
            br#"{"metadata": {"total_size": 8}, "weight_map": {"b": "2.safetensors", "a": "s/1.safetensors"}}"#;
        let index = Index::parse(text, "i").unwrap();
        assert_eq!(index.weight_map.get_index(0).unwrap().0, "b");
        assert_eq!(index.files(), ["2.safetensors", "s/1.safetensors"]);
        assert_eq!(index.metadata["total_size"], 8);
    }
}
