//! Patterns over module names, as recipes write them.
//!
//! A module's name is a tensor's name without its last part. There are three ways to name modules, distinguished by
//! their text: a plain name (whole segments, anywhere), a glob (the whole name from its start), and `re:` with a
//! regular expression (anchored at the start only, as llm-compressor's ignore lists are). A pattern that names a
//! module names everything below it.
//!
//! Globs over modules are translated to regular expressions here, because segments end at dots. Globs over file names
//! are [another type](super::file_glob::FileGlob).

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use regex::{Regex, RegexBuilder};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::LayerType;

mod glob_regex;

/// Compiled size in bytes that one regular expression may have; the patterns in use need a few KiB, `\w` of Unicode 30.
const REGEX_SIZE_LIMIT: usize = 1 << 18;

/// Longest pattern in bytes. Names of modules are shorter by far.
pub(super) const MAX_PATTERN_BYTES: usize = 4096;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    /// The fault of the pattern, short enough for a label.
    pub message: String,
    /// The advice on how to write it instead.
    pub help: String,
}

impl PatternError {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PatternError {}

/// A pattern over module names. Equal when their texts are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    written: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Whole, consecutive segments anywhere in the name.
    Name,
    /// `exact` matches the whole name, `covering` the name or the name of a module above it.
    Glob { exact: Regex, covering: Regex },
    /// A regular expression anchored at the start of the name.
    Regex(Regex),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If the text is empty, a segment is empty, a glob does not close what it opens, or the regular expression is
    /// not supported.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            let message = format!("this pattern is longer than {MAX_PATTERN_BYTES} bytes");
            return Err(PatternError::new(message, "Write several shorter patterns."));
        }
        let kind = match text.strip_prefix("re:") {
            Some(expression) => Kind::Regex(parse_regex(expression)?),
            None if text.contains(['*', '?', '[', '{', '\\']) => {
                let body = glob_regex::translate(text)?;
                Kind::Glob {
                    exact: compile(&format!("^(?:{body})$"))?,
                    covering: compile(&format!(r"^(?:{body})(?:\.|$)"))?,
                }
            }
            None => {
                check_name(text)?;
                Kind::Name
            }
        };
        Ok(Self { text: text.to_owned(), written: None, kind })
    }

    /// The pattern whose text is the type's name.
    #[must_use]
    pub fn of_type(layer_type: LayerType) -> Self {
        Self { text: layer_type.name().to_owned(), written: None, kind: Kind::Name }
    }

    /// The text that was parsed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text as it was written, before variables were replaced. Messages and reports show this text.
    #[must_use]
    pub fn written(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }

    /// Says how the text was written.
    pub fn set_written(&mut self, text: String) {
        self.written = Some(text);
    }

    /// The layer type whose name the text is, exactly.
    #[must_use]
    pub fn layer_type(&self) -> Option<LayerType> {
        LayerType::from_name(&self.text)
    }

    /// Whether the text is a plain name: neither a glob nor a regular expression.
    #[must_use]
    pub fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Name)
    }

    /// Whether the pattern names `module` or a module above it; recipes use patterns in this sense. Plain names and
    /// regular expressions reach below by themselves, because neither is anchored at the end.
    #[must_use]
    pub fn matches(&self, module: &str) -> bool {
        match &self.kind {
            Kind::Glob { covering, .. } => covering.is_match(module),
            _ => self.matches_module(module),
        }
    }

    /// As [`Pattern::matches`], but a glob has to match the whole of `module`.
    #[must_use]
    pub fn matches_module(&self, module: &str) -> bool {
        match &self.kind {
            Kind::Name => has_segments(module, &self.text),
            Kind::Glob { exact, .. } => exact.is_match(module),
            Kind::Regex(regex) => regex.is_match(module),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.written())
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A pattern over module names: a plain name (whole segments, anywhere in the name: `lm_head`, \
                `layers.1`), a glob (`*` and `?` within a segment, `**` across, `[…]`, `{a,b}`, `{4..27}`), or `re:` and a regular \
                expression anchored at the start. A pattern that names a module names everything below it.",
            "type": "string",
            "minLength": 1,
            "format": "layer-pattern",
            "examples": ["lm_head", "model.layers.*.mlp", "re:.*\\.down_proj$"]
        })
    }
}

/// Whether the segments of `name` occur in `module`, one after another. Segments are few and mostly differ in their first byte,
/// so looking at each one's start is faster than a search for a substring.
fn has_segments(module: &str, name: &str) -> bool {
    let mut rest = module.as_bytes();
    loop {
        if let Some(after) = rest.strip_prefix(name.as_bytes())
            && after.first().is_none_or(|byte| *byte == b'.')
        {
            return true;
        }
        match rest.iter().position(|byte| *byte == b'.') {
            Some(dot) => rest = &rest[dot + 1..],
            None => return false,
        }
    }
}

fn check_name(text: &str) -> Result<(), PatternError> {
    if text.is_empty() {
        return Err(PatternError::new(
            "an empty pattern matches nothing",
            "Remove it, or write a module's name.",
        ));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let help = "Module names have no white space. Write several patterns as several list entries.";
        return Err(PatternError::new("a name with white space matches no module", help));
    }
    if text.split('.').any(str::is_empty) {
        let help = "Segments are separated by single dots, as in `model.layers.0`.";
        return Err(PatternError::new("this name has an empty segment", help));
    }
    Ok(())
}

fn parse_regex(expression: &str) -> Result<Regex, PatternError> {
    if expression.is_empty() {
        let help = "Write the expression after `re:`, as in `re:.*\\.down_proj$`.";
        return Err(PatternError::new("an empty regular expression matches everything", help));
    }
    for (mark, what) in
        [("(?=", "look-ahead"), ("(?!", "look-ahead"), ("(?<=", "look-behind"), ("(?<!", "look-behind")]
    {
        if expression.contains(mark) {
            let help = format!(
                "Rewrite it without `{mark}…)`; several patterns, or `quantize_anyway`, often say the same."
            );
            return Err(PatternError::new(format!("{what} is not supported in regular expressions"), help));
        }
    }
    // Python's match: anchored at the start, not at the end.
    let expression = expression.replace("\\Z", "\\z");
    compile(&format!("^(?:{expression})")).or_else(|error| {
        // In verbose mode, a comment at the end runs to a line break, which has to come before the added parenthesis.
        compile(&format!("^(?:{expression}\n)")).ok().filter(|_| expression.contains("(?x")).ok_or(error)
    })
}

fn compile(expression: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(expression).size_limit(REGEX_SIZE_LIMIT).dfa_size_limit(REGEX_SIZE_LIMIT).build().map_err(|error| {
        match error {
            regex::Error::CompiledTooBig(_) => PatternError::new(
                "this regular expression is too large",
                "Use smaller repetition counts; names of modules need none.",
            ),
            // The last line of the message is the reason; those before it draw the expression again.
            other => {
                let text = other.to_string();
                let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
                let help = "The syntax is that of Rust's regex crate: Python's, without look-around and back-references.";
                PatternError::new(reason, help)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_layers_are_numbers() {
        let matched = |pattern: &str| -> Vec<u32> {
            let pattern = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{error}"));
            (0..120).filter(|n| pattern.matches(&format!("model.layers.{n}.mlp.up_proj"))).collect()
        };
        assert_eq!(matched("model.layers.{4..11}"), (4..=11).collect::<Vec<_>>());
        assert_eq!(matched("model.layers.{0..2,9,20..21}.**"), [0, 1, 2, 9, 20, 21]);
        assert_eq!(matched("**.layers.{99..101}.mlp"), [99, 100, 101]);
        assert_eq!(matched("model.layers.{7..7}"), [7]);
        assert!(Pattern::parse("a.{x..y}").unwrap().matches("a.x..y"), "no range of numbers is what it was");
        for (bad, why) in
            [("l.{9..4}", "the range `9..4` is empty"), ("l.{0..5000}", "more than 1000 numbers")]
        {
            let error = Pattern::parse(bad).unwrap_err();
            assert!(error.message.contains(why), "{error}");
        }
        Pattern::parse("l.{0..").unwrap_err();
    }

    fn matches(pattern: &str, module: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(module)
    }

    #[test]
    fn names_match_whole_segments_anywhere() {
        assert!(matches("lm_head", "lm_head"));
        assert!(matches("lm_head", "model.lm_head"));
        assert!(matches("layers.1", "model.layers.1.mlp.up_proj"));
        assert!(!matches("layers.1", "model.layers.10.mlp.up_proj"));
        assert!(matches("gate", "model.layers.0.mlp.gate"));
        assert!(!matches("gate", "model.layers.0.mlp.gate_proj"));
        assert!(!matches("gate", "model.layers.0.mlp.up_gate"));
        assert!(matches("a.a.b", "a.a.a.b"));
        assert!(matches("x", "xx.x"));
        assert!(!matches("é", "éé.bé"));
        assert!(!matches("lm_head", ""));
    }

    #[test]
    fn globs_stay_within_segments() {
        assert!(matches("model.layers.*.mlp.*", "model.layers.3.mlp.up_proj"));
        assert!(!matches("model.*.mlp", "model.layers.3.mlp"));
        assert!(matches("model.layers.{0,1,31}.**", "model.layers.31.mlp.up_proj"));
        assert!(!matches("model.layers.{0,1,31}.**", "model.layers.3.mlp.up_proj"));
        assert!(matches("**.down_proj", "down_proj"));
        assert!(matches("**.down_proj", "model.layers.0.mlp.down_proj"));
        assert!(!matches("**.down_proj", "model.layers.0.mlp.my_down_proj"));
        assert!(matches("model.**.mlp", "model.layers.0.mlp"));
        assert!(matches("model.**.mlp", "model.mlp"));
        assert!(matches("layer?.[ab]", "layer1.b"));
        assert!(!matches("layer?.[!ab]", "layer1.b"));
        assert!(matches("**.layers.[0-3].**", "model.layers.2.x"));
        assert!(!matches("layers?0", "layers.0"));
    }

    #[test]
    fn a_glob_covers_everything_below_what_it_names() {
        assert!(matches("model.layers.*", "model.layers.3.mlp.up_proj"));
        assert!(!matches("model.layers.1", "model.layers.13"));
        assert!(!matches("model.layers.1*.mlp", "model.layers.2.mlp"));
        let glob = Pattern::parse("model.layers.*").unwrap();
        assert!(glob.matches_module("model.layers.3") && !glob.matches_module("model.layers.3.mlp"));
    }

    #[test]
    fn regular_expressions_are_anchored_at_the_start_only() {
        assert!(matches("re:.*lm_head", "model.lm_head"));
        assert!(!matches("re:lm_head", "model.lm_head"));
        assert!(matches("re:model.layers.1", "model.layers.10"));
        assert!(matches("re:a|b", "bc") && !matches("re:a|b", "cb"));
        assert!(matches(r"re:.*\.(?P<which>q|k)_proj$", "model.layers.0.self_attn.q_proj"));
        assert!(matches("re:(?x) a b # a comment", "abc"));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (text, part) in [
            ("", "empty"),
            ("a..b", "empty segment"),
            ("a b", "white space"),
            ("re:", "empty regular"),
            ("re:(", "unclosed"),
            ("re:a(?!b)", "look-ahead"),
            ("re:(?<=a)b", "look-behind"),
            (r"re:(a)\1", "backreference"),
            ("re:((a{1000}){1000}){1000}", "too large"),
            ("model.[ab", "`[`"),
            ("model.{a,b", "`{`"),
            ("model.a}*", "`}`"),
        ] {
            let error = Pattern::parse(text).expect_err(text);
            assert!(error.message.contains(part), "{text}: {error}");
            assert!(error.help.ends_with('.'), "{text}: {}", error.help);
        }
    }

    #[test]
    fn types_are_names() {
        for layer_type in LayerType::ALL {
            let pattern = Pattern::of_type(*layer_type);
            assert_eq!(pattern, Pattern::parse(layer_type.name()).unwrap());
            assert_eq!(pattern.layer_type(), Some(*layer_type));
        }
        assert_eq!(Pattern::parse("linear").unwrap().layer_type(), None);
    }

    #[test]
    fn patterns_go_round_through_json() {
        let pattern: Pattern = serde_json::from_str(r#""re:a.b""#).unwrap();
        assert_eq!(serde_json::to_string(&pattern).unwrap(), r#""re:a.b""#);
        assert!(serde_json::from_str::<Pattern>(r#""a..b""#).is_err());
    }
}
