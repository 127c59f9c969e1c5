//! `monoquant check`.

use super::output::Output;
use super::{CheckArgs, Format};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::recipe;
use crate::text::units::counted;

pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<Exit, Failure> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut bad = 0;
    let overrides = args.overrides.overrides();
    for path in &args.recipes {
        match recipe::load(path, &overrides) {
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
        let verb = if args.recipes.len() == 1 { "is" } else { "are" };
        output.result(&format!("{} {verb} fine", counted(args.recipes.len(), "recipe")));
    } else if output.format() == Format::Json && findings.is_empty() {
        output.result("[]");
    }
    Ok(Exit::Done)
}
