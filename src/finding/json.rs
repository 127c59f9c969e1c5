//! Findings as JSON, for other programs.

use serde_json::{Value, json};

use super::{Finding, Label, plain};

/// An array with one object a finding: `code`, `severity`, `message`, `help` (or null) and `labels`. A label has `file`, `line`,
/// `column`, `end_line` and `end_column` (from 1, columns in characters), `start` and `end` (bytes) and `text`.
#[must_use]
pub fn to_value(findings: &[Finding]) -> Value {
    findings.iter().map(finding_value).collect()
}

/// [`to_value`] as text.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    // The alternate form of a JSON value is indented by two spaces.
    format!("{:#}\n", to_value(findings))
}

fn finding_value(finding: &Finding) -> Value {
    json!({
        "code": finding.code,
        "severity": plain::severity(finding.severity),
        "message": finding.message,
        "help": finding.help_text(),
        "labels": finding.labels.iter().map(label_value).collect::<Vec<_>>(),
    })
}

fn label_value(label: &Label) -> Value {
    let place = &label.place;
    let (line, column) = place.line_column();
    let (end_line, end_column) = place.end_line_column();
    json!({
        "file": place.source.name,
        "line": line,
        "column": column,
        "end_line": end_line,
        "end_column": end_column,
        "start": place.start,
        "end": place.end,
        "text": label.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_lines_and_in_bytes() {
        let value = to_value(&super::super::tests::two_findings());
        assert_eq!(value[0]["labels"][0]["column"], 4);
        assert_eq!(value[0]["labels"][0]["end_column"], 5);
        assert_eq!(value[0]["labels"][0]["start"], 9);
        assert_eq!(value[0]["labels"][0]["end"], 11);
        assert_eq!(value[1]["help"], Value::Null);
        assert_eq!(value[1]["severity"], "warning");
    }
}
