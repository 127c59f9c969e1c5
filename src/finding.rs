//! Findings: one diagnostic as data, with its message, its place and its help. Renderers live in the files below this
//! module.
//!
//! A finding carries the text it points into, so it can be rendered anywhere without the parser that made it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;

pub mod codes;
mod diagnostic;

pub use diagnostic::{Diagnostic, PlaceRecord, all as diagnostics};

/// A named text that findings point into: a recipe file, or an override from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The name that is shown to the reader: a path, or `--set`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl SourceText {
    /// Line and column of a byte, both from 1. Columns count characters. A byte beyond the end, or inside a
    /// character, counts as the next valid position.
    #[must_use]
    pub fn line_column(&self, byte: usize) -> (usize, usize) {
        let byte =
            (byte..self.text.len()).find(|at| self.text.is_char_boundary(*at)).unwrap_or(self.text.len());
        let before = &self.text[..byte];
        let line = before.matches('\n').count() + 1;
        // A byte-order mark does not count as a character of the first line.
        let column =
            before.rsplit('\n').next().unwrap_or("").trim_start_matches('\u{feff}').chars().count() + 1;
        (line, column)
    }
}

/// A byte range in a [`SourceText`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The text pointed into.
    pub source: Arc<SourceText>,
    /// First byte.
    pub start: usize,
    /// One past the last byte; equal to `start` for a position without extent.
    pub end: usize,
}

impl Place {
    /// Whether the place is a position without extent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Line and column of the first byte, both from 1; columns count characters.
    #[must_use]
    pub fn line_column(&self) -> (usize, usize) {
        self.source.line_column(self.start)
    }

    /// Line and column of the position after the last byte, counted alike.
    #[must_use]
    pub fn end_line_column(&self) -> (usize, usize) {
        self.source.line_column(self.end)
    }
}

/// A place with what is to be said of it. The text adds to the message, it does not repeat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The place that the label points at.
    pub place: Place,
    /// The label's text; may be empty.
    pub text: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing, and no reason to change anything.
    Note,
    /// Legal but doubtful; never changes the exit status.
    Warning,
    /// The command cannot go on, or its result must not be used. Reports before version 2 say `critical`.
    #[serde(alias = "critical")]
    Error,
}

/// One diagnostic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable name for scripts and documentation, such as `recipe::unknown-key`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One short sentence that stands alone, lower case at the start, no full stop at the end.
    pub message: String,
    /// The labelled places; the first is the primary one. May be empty.
    pub labels: Vec<Label>,
    /// Instructions in full sentences, one line each.
    pub help: Vec<String>,
}

impl Finding {
    /// Creates an error with a code and a message.
    #[must_use]
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            labels: Vec::new(),
            help: Vec::new(),
        }
    }

    /// Creates a warning with a code and a message.
    #[must_use]
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Adds a labelled place.
    #[must_use]
    pub fn at(mut self, place: Place, text: impl Into<String>) -> Self {
        self.labels.push(Label { place, text: text.into() });
        self
    }

    /// Adds a labelled place, if there is one.
    #[must_use]
    pub fn at_opt(self, place: Option<Place>, text: impl Into<String>) -> Self {
        match place {
            Some(place) => self.at(place, text),
            None => self,
        }
    }

    /// Adds an instruction, as one line. A second call adds another line.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Adds lines to what there is to do.
    #[must_use]
    pub fn help_lines(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.help.extend(lines);
        self
    }

    /// All instructions as one text, if there are any.
    #[must_use]
    pub fn help_text(&self) -> Option<String> {
        (!self.help.is_empty()).then(|| self.help.join("\n"))
    }

    /// Whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Why a command did not succeed: the exit status and everything there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit status.
    pub exit: Exit,
    /// All findings, errors and warnings, in the order in which they are to be read.
    pub findings: Vec<Finding>,
}

impl Failure {
    /// A failure with one finding.
    #[must_use]
    pub fn new(exit: Exit, finding: Finding) -> Self {
        Self { exit, findings: vec![finding] }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, finding) in self.findings.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {}", finding.code, finding.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The nearest of `candidates` to `word`, if one is near enough to be the intended word.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn two_findings() -> Vec<Finding> {
        let source =
            Arc::new(SourceText { name: "r.yaml".into(), text: "a: 1\nb: é\n".replace("b: ", "é: ") });
        let place = Place { source, start: 9, end: 11 };
        vec![
            Finding::error("recipe::bad-value", "`é` is not allowed")
                .at(place, "did you mean `e`?")
                .help("Allowed: e.")
                .help("Or f."),
            Finding::warning("plan::slow", "this takes long"),
        ]
    }

    #[test]
    fn places_outside_the_text_are_its_end() {
        let source = Arc::new(SourceText { name: "r".into(), text: "é\n".into() });
        assert_eq!(Place { source: Arc::clone(&source), start: 99, end: 99 }.line_column(), (2, 1));
        assert_eq!(Place { source, start: 1, end: 1 }.line_column(), (1, 2));
    }

    #[test]
    fn near_words_are_found() {
        assert_eq!(nearest("group_sise", ["granularity", "group_size"]), Some("group_size"));
        assert_eq!(nearest("xyz", ["granularity", "group_size"]), None);
    }
}
