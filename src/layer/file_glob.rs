//! Globs over the names of files.

use std::borrow::Cow;
use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::pattern::{MAX_PATTERN_BYTES, PatternError};

/// A glob over the names of files in a model directory, such as `model-*.safetensors`. Equal when their texts are.
///
/// The check of the recipe and the choice of the files share this type, and with it the grammar of the `glob` crate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileGlob {
    text: String,
    /// One per segment of the path; `**` stands for any number of them.
    segments: Vec<glob::Pattern>,
}

impl FileGlob {
    /// Reads a glob.
    ///
    /// # Errors
    /// If the text is empty, is not a glob, or uses braces, which file globs do not have.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::new(
                "an empty glob matches no file",
                "Remove it, or write a file's name.",
            ));
        }
        if text.len() > MAX_PATTERN_BYTES {
            let message = format!("this glob is longer than {MAX_PATTERN_BYTES} bytes");
            return Err(PatternError::new(message, "Write several shorter globs."));
        }
        if text.contains(['{', '}']) {
            let help =
                "File globs have `*`, `?`, `**` and `[…]`. List the alternatives as entries of their own.";
            return Err(PatternError::new("file globs have no braces", help));
        }
        // As a whole as well: only so is the place of `**` checked.
        let segments =
            glob::Pattern::new(text).and_then(|_| text.split('/').map(glob::Pattern::new).collect());
        segments.map(|segments| Self { text: text.to_owned(), segments }).map_err(|error| {
            PatternError::new(
                error.msg,
                "File globs have `*`, `?`, `**` and `[…]`; write `[*]` for a literal `*`.",
            )
        })
    }

    /// The text that was parsed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches the name of a file, relative to the model directory and with `/` between folders.
    #[must_use]
    pub fn matches(&self, file: &str) -> bool {
        // One segment at a time: over a whole path, the time of several `*` would grow with a power of its length.
        let names: Vec<&str> = file.split('/').collect();
        // How many names the segments so far can have matched.
        let mut matched = BTreeSet::from([0]);
        for (at, segment) in self.segments.iter().enumerate() {
            let Some(&fewest) = matched.first() else { return false };
            matched = if segment.as_str() == "**" {
                // Any number of folders; at the end of the glob, whatever is in them.
                let is_last = at + 1 == self.segments.len();
                (fewest + usize::from(is_last)..=names.len()).collect()
            } else {
                let fits = |count: &usize| names.get(*count).is_some_and(|name| segment.matches(name));
                matched.into_iter().filter(fits).map(|count| count + 1).collect()
            };
        }
        matched.contains(&names.len())
    }
}

impl TryFrom<String> for FileGlob {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<FileGlob> for String {
    fn from(glob: FileGlob) -> Self {
        glob.as_str().to_owned()
    }
}

impl JsonSchema for FileGlob {
    fn schema_name() -> Cow<'static, str> {
        "FileGlob".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A glob over file names: `*`, `?`, `**` and `[…]`.",
            "type": "string",
            "minLength": 1,
            "format": "file-glob",
            "examples": ["model-*.safetensors"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::FileGlob;

    #[test]
    fn file_globs() {
        assert!(FileGlob::parse("model-*.safetensors").unwrap().matches("model-00001-of-2.safetensors"));
        assert!(!FileGlob::parse("*.safetensors").unwrap().matches("original/x.safetensors"));
        let is_match = |glob: &str, file: &str| FileGlob::parse(glob).unwrap().matches(file);
        for (glob, file, want) in [
            ("**/x.safetensors", "x.safetensors", true),
            ("**/x.safetensors", "a/b/x.safetensors", true),
            ("a/**/x.safetensors", "a/x.safetensors", true),
            ("a/**/x.safetensors", "b/x.safetensors", false),
            ("a/**/c/**/x", "a/b/c/d/e/x", true),
            ("a/**/c/**/x", "a/b/d/e/x", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("**", "a/b", true),
            ("*/x", "a/b/x", false),
            ("a?b", "a/b", false),
            ("[!x]/[ab].safetensors", "y/b.safetensors", true),
            ("model[*].safetensors", "model1.safetensors", false),
        ] {
            assert_eq!(is_match(glob, file), want, "{glob} {file}");
            let whole = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
            assert_eq!(glob::Pattern::new(glob).unwrap().matches_with(file, whole), want, "{glob} {file}");
        }
        // It ends, although each star could stand for anything.
        let (glob, file) = ("*a".repeat(100) + "b/x", "a".repeat(200) + "/a/x");
        assert!(!is_match(&glob, &file));
        assert!(FileGlob::parse("{a,b}").is_err());
        assert!(FileGlob::parse("a[").is_err());
        assert!(FileGlob::parse("a[!/]b").is_err());
        assert!(FileGlob::parse("a**").is_err());
        assert!(FileGlob::parse("").is_err());
    }
}
