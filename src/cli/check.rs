//! `monoquant check`.

use std::path::PathBuf;

use super::Format;
use super::output::Output;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::recipe::{self, Overrides};
use crate::report::units::counted;

pub(super) fn check(recipes: &[PathBuf], output: &Output) -> Result<Exit, Failure> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut bad = 0;
    for path in recipes {
        match recipe::load(path, &Overrides::default()) {
            Ok(loaded) => findings.extend(loaded.warnings),
            Err(failure) => {
                bad += 1;
                findings.extend(failure.findings);
            }
        }
    }
    output.findings(&findings);
    if bad > 0 {
        return Ok(Exit::BadRecipe);
    }
    if !output.is_quiet() && output.format() == Format::Human {
        let verb = if recipes.len() == 1 { "is" } else { "are" };
        output.result(&format!("{} {verb} fine", counted(recipes.len(), "recipe")));
    } else if output.format() == Format::Json && findings.is_empty() {
        output.result("[]");
    }
    Ok(Exit::Done)
}
