//! `monoquant verify`.

use std::path::Path;

use serde_json::json;

use super::Format;
use super::output::Output;
use crate::exit::Exit;
use crate::finding::{self, Failure};
use crate::text::visible;

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
            "verdict": verified.as_ref().ok().map(|report| &report.verdict),
            "findings": finding::json::to_value(findings),
        });
        output.json(&found);
        return Ok(exit);
    }
    let report = verified?;
    if !output.is_quiet() {
        output.result(&format!(
            "the weights in {} are as they were written: {}",
            visible(&directory.display().to_string()),
            visible(&report.verdict.summary)
        ));
    }
    Ok(Exit::Done)
}
