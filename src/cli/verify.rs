//! `monoquant verify`.

use std::path::Path;

use super::output::Output;
use crate::exit::Exit;
use crate::finding::Failure;

pub(super) fn verify(directory: &Path, output: &Output) -> Result<Exit, Failure> {
    let report = crate::run::verify::verify(directory)?;
    if !output.is_quiet() {
        output.result(&format!(
            "the weights in {} are as they were written: {}",
            directory.display(),
            report.verdict.summary
        ));
    }
    Ok(Exit::Done)
}
