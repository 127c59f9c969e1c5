//! Findings as data: the one form in which `check`, `plan`, `run`, `verify`, `watch` and reports give them to
//! programs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Finding, Label, Severity};

/// A problem or a doubt, its place, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnostic {
    /// A stable name, such as `check::low-sqnr`.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence.
    pub message: String,
    /// The line of the first label, from 1; none if there is no place.
    pub line: Option<usize>,
    /// The remedy.
    pub help: Option<String>,
    /// The places; the first is the primary one. Empty in reports before version 2.
    #[serde(default)]
    pub labels: Vec<PlaceRecord>,
}

/// A place in a recipe. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlaceRecord {
    /// The file as it was named on the command line, in reports without its folder; or the flag that holds the text, such as `--set`.
    pub file: String,
    /// Line of the first character.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Line of the position after the last character.
    pub end_line: usize,
    /// Column of the position after the last character.
    pub end_column: usize,
    /// The first byte, from 0.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// The remark about the place. It may be empty.
    pub text: String,
}

impl Diagnostic {
    /// The data of a finding.
    #[must_use]
    pub fn of(finding: &Finding) -> Self {
        let labels: Vec<PlaceRecord> = finding.labels.iter().map(PlaceRecord::of).collect();
        Self {
            code: finding.code.to_owned(),
            severity: finding.severity,
            message: finding.message.clone(),
            line: labels.first().map(|label| label.line),
            help: finding.help_text(),
            labels,
        }
    }

    /// A note: nothing is wrong.
    #[must_use]
    pub fn note(code: &str, message: &str) -> Self {
        Self {
            code: code.to_owned(),
            severity: Severity::Note,
            message: message.to_owned(),
            line: None,
            help: None,
            labels: Vec::new(),
        }
    }

    /// The same without the folders of the machine, as reports hold it.
    #[must_use]
    pub fn without_folders(mut self) -> Self {
        for label in &mut self.labels {
            if let Some(at) = label.file.rfind(['/', '\\']) {
                label.file.drain(..=at);
            }
        }
        self
    }
}

impl PlaceRecord {
    fn of(label: &Label) -> Self {
        let place = &label.place;
        let ((line, column), (end_line, end_column)) = (place.line_column(), place.end_line_column());
        Self {
            file: place.source.name.clone(),
            line,
            column,
            end_line,
            end_column,
            start: place.start,
            end: place.end,
            text: label.text.clone(),
        }
    }
}

/// The data of some findings.
#[must_use]
pub fn all(findings: &[Finding]) -> Vec<Diagnostic> {
    findings.iter().map(Diagnostic::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_lines_and_in_bytes() {
        let found = all(&super::super::tests::two_findings());
        let label = &found[0].labels[0];
        assert_eq!((found[0].line, label.column, label.end_column), (Some(2), 4, 5));
        assert_eq!((label.start, label.end), (9, 11));
        assert_eq!((found[1].line, found[1].help.as_deref()), (None, None));
        assert_eq!(serde_json::to_value(found[1].severity).unwrap(), "warning");
    }

    #[test]
    fn severities_of_older_reports_are_understood() {
        let severity: Severity = serde_json::from_str("\"critical\"").unwrap();
        assert_eq!(severity, Severity::Error);
    }

    #[test]
    fn reports_hold_no_folders() {
        let mut found = all(&super::super::tests::two_findings()).remove(0);
        found.labels[0].file = "/home/someone/recipes/r.yaml".to_owned();
        assert_eq!(found.without_folders().labels[0].file, "r.yaml");
    }
}
