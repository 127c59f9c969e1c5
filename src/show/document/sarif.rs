//! SARIF 2.1.0, for code scanning: findings as results at their lines, their codes as rules.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::Document;
use crate::finding::codes::find;
use crate::finding::{Diagnostic, PlaceRecord, Severity};
use crate::text::visible;

/// The page that tells what findings mean.
const HELP: &str = "https://github.com/monoquant/monoquant/blob/main/docs/findings.md";

/// Writes the log.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let report = document.report;
    let codes: BTreeSet<&str> = report.warnings.iter().map(|finding| finding.code.as_str()).collect();
    let codes: Vec<&str> = codes.into_iter().collect();
    let rules: Vec<Value> = codes.iter().map(|code| rule(code)).collect();
    let results: Vec<Value> =
        report.warnings.iter().map(|finding| result(document, &codes, finding)).collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "monoquant",
                "version": report.monoquant,
                "informationUri": "https://github.com/monoquant/monoquant",
                "rules": rules,
            }},
            // One recipe is one category, so that several uploads of a commit do not replace each other.
            "automationDetails": {"id": format!("monoquant/{}/", document.recipe_path)},
            "invocations": [{
                // A gate that failed is a result of a tool that worked.
                "executionSuccessful": report.verdict.exit_status <= 1,
                "exitCode": report.verdict.exit_status,
            }],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    serde_json::to_writer_pretty(&mut *out, &log)?;
    out.write_all(b"\n")
}

fn result(document: &Document<'_>, codes: &[&str], finding: &Diagnostic) -> Value {
    let mut text = visible(&finding.message).into_owned();
    for line in finding.help.iter().flat_map(|help| help.lines()) {
        text.push('\n');
        text.push_str(&visible(line));
    }
    let mut artifact = json!({"artifactLocation": {"uri": uri(document.recipe_path)}});
    if let Some(place) = document.place(finding) {
        artifact["region"] = region(place);
    }
    json!({
        "ruleId": finding.code,
        "ruleIndex": codes.iter().position(|code| *code == finding.code),
        "level": match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        },
        "message": {"text": text},
        "locations": [{"physicalLocation": artifact}],
    })
}

/// The rule of a code, with what the page says of it.
fn rule(code: &str) -> Value {
    let mut rule = json!({"id": code, "helpUri": format!("{HELP}#{}", anchor(code))});
    if let Some(known) = find(code) {
        rule["shortDescription"] = json!({"text": known.cause});
        rule["help"] = json!({"text": known.remedy});
    }
    rule
}

fn region(place: &PlaceRecord) -> Value {
    json!({
        "startLine": place.line,
        "startColumn": place.column,
        "endLine": place.end_line,
        "endColumn": place.end_column,
    })
}

/// The anchor of a code in the page: GitHub leaves out the colons of a heading.
fn anchor(code: &str) -> String {
    code.replace(':', "")
}

/// A relative path as a URI reference.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
