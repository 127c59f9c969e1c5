//! `monoquant lock`.

use clap::Args;
use serde_json::json;

use super::output::Output;
use super::recipe_args::{limits, loaded};
use super::signals::Signals;
use super::{Format, RecipeArgs};
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::run::lockfile;
use crate::text::units::counted;
use crate::text::visible;

#[derive(Debug, Args)]
pub(super) struct LockArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
}

pub(super) fn lock(args: &LockArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let plan = crate::plan::plan(loaded(&args.recipe)?, limits(&args.recipe))?;
    let cancel = Cancel::default();
    let running = signals.running(&cancel);
    let entry = lockfile::locked(&plan, &cancel).map_err(|failure| plan.loaded.tell_failure(failure))?;
    drop(running);
    let files: usize = entry.outputs.iter().map(Vec::len).sum();
    let sources = entry.source.len();
    let path = lockfile::write(&args.recipe.recipe, entry)?.display().to_string();
    if output.format() == Format::Json {
        output.json(&json!({"lock": path, "source_files": sources, "output_files": files}));
    } else if !output.is_quiet() {
        let (sources, files) = (counted(sources, "source file"), counted(files, "output file"));
        output.result(&format!("{}: {sources} and {files} locked", visible(&path)));
    }
    Ok(Exit::Done)
}
