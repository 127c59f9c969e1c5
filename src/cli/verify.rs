//! `monoquant verify`.

use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use super::Format;
use super::output::Output;
use crate::exit::Exit;
use crate::finding::{self, Failure};
use crate::run::verify::Verified;
use crate::text::units::counted;
use crate::text::visible;

/// Names of files that were not checked that are told.
const NAMED: usize = 5;

pub(super) fn verify(directory: &Path, output: &Output) -> Result<Exit, Failure> {
    let verified = crate::run::verify::verify(directory);
    if output.format() == Format::Json {
        let (findings, exit) = match &verified {
            Ok(_) => (&[][..], Exit::Done),
            Err(failure) => (failure.findings.as_slice(), failure.exit),
        };
        let found = json!({
            "directory": directory.display().to_string(),
            "verified": verified.is_ok(),
            "verdict": verified.as_ref().ok().map(|found| &found.report.verdict),
            "checked": verified.as_ref().ok().map(|found| json!({
                "weights": found.weights,
                "carried": found.carried,
                "made": found.made,
            })),
            "unchecked": verified.as_ref().ok().map(|found| &found.unchecked),
            "findings": finding::diagnostics(findings),
        });
        output.json(&found);
        return Ok(exit);
    }
    let found = verified?;
    if !output.is_quiet() {
        output.result(&text(directory, &found));
    }
    Ok(Exit::Done)
}

fn text(directory: &Path, found: &Verified) -> String {
    let shown = visible(&directory.display().to_string()).into_owned();
    let summary = visible(&found.report.verdict.summary).into_owned();
    let mut out = format!("{shown} is as it was written: {summary}");
    let kinds = [("weights", &found.weights), ("carried over", &found.carried), ("made", &found.made)];
    for (kind, names) in kinds.iter().filter(|(_, names)| !names.is_empty()) {
        let _ = write!(out, "\n  {kind}  {} with the checksums of the report", counted(names.len(), "file"));
    }
    out.push_str("\n  report  with its own digest");
    if !found.unchecked.is_empty() {
        let names: Vec<_> = found.unchecked.iter().take(NAMED).map(|name| visible(name)).collect();
        let more = found.unchecked.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ =
            write!(out, "\n  not checked  {}{more}: the report has no checksum of them", names.join(", "));
    }
    out
}
