//! `monoquant verify`.

use std::path::Path;

use serde_json::json;

use super::Format;
use super::output::Output;
use crate::exit::Exit;
use crate::finding::Failure;

pub(super) fn verify(directory: &Path, output: &Output) -> Result<Exit, Failure> {
    let report = crate::run::verify::verify(directory)?;
    if output.format() == Format::Json {
        let found = json!({
            "directory": directory.display().to_string(),
            "verified": true,
            "verdict": report.verdict,
        });
        output.result(&serde_json::to_string_pretty(&found).unwrap_or_default());
    } else if !output.is_quiet() {
        output.result(&format!(
            "the weights in {} are as they were written: {}",
            directory.display(),
            report.verdict.summary
        ));
    }
    Ok(Exit::Done)
}
