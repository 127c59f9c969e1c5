//! `monoquant plan`.

use super::output::Output;
use super::recipe_args::planned;
use super::{Format, RecipeArgs};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::show::plan;

pub(super) fn plan(args: &RecipeArgs, json: bool, output: &Output) -> Result<Exit, Failure> {
    let plan = planned(args)?;
    if json || output.format() == Format::Json {
        output.json(&plan::json(&plan)?);
    } else {
        output.findings(&plan.warnings);
        output.result(&plan::text_at(&plan, output.width(), output.is_verbose()));
    }
    crate::run::preflight(&plan)?;
    Ok(Exit::Done)
}
