//! GitLab's code quality report: one entry a finding, shown in merge requests.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::Document;
use crate::finding::Severity;
use crate::text::visible;

/// Writes the entries.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut entries: Vec<Value> = Vec::new();
    for finding in document.findings() {
        // Every entry has to name a line of a file in the repository.
        let line = document.place(finding).map_or(1, |place| place.line);
        // It has to be the same for the same finding, and to differ between others: not by line, which moves.
        let mut hasher = blake3::Hasher::new();
        for part in [document.recipe_path, &finding.code, &finding.message] {
            hasher.update(part.as_bytes()).update(b"\0");
        }
        entries.push(json!({
            "description": visible(&finding.message),
            "check_name": finding.code,
            "fingerprint": hasher.finalize().to_hex().as_str()[..32],
            "severity": match finding.severity {
                Severity::Error => "critical",
                Severity::Warning => "minor",
                Severity::Note => "info",
            },
            "location": {"path": document.recipe_path, "lines": {"begin": line}},
        }));
    }
    serde_json::to_writer_pretty(&mut *out, &entries)?;
    out.write_all(b"\n")
}
