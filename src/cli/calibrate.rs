//! `monoquant calibrate`.

use std::io::Write;

use serde_json::json;

use super::output::Output;
use super::recipe_args::{Trust, limits, loaded};
use super::run::listener;
use super::signals::Signals;
use super::{CalibrateArgs, Format};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::publish::{files, hidden};
use crate::run::Options;
use crate::run::calibrate::{stage_of, statistics_file};
use crate::text::units::{bytes, counted};
use crate::text::visible;

pub(super) fn calibrate(args: &CalibrateArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let plan = crate::plan::plan(loaded(&args.recipe)?, limits(&args.recipe))?;
    let Some((stage, run)) = stage_of(&plan).and_then(|stage| Some((stage, plan.runs.as_ref()?.of(stage)?)))
    else {
        let finding = Finding::error("cli::no-calibrate", "the recipe has no `calibrate` stage")
            .help("Put `- stage: calibrate` before the stages that quantize.");
        return Err(Failure::new(Exit::BadRecipe, finding));
    };
    output.findings(&plan.warnings);
    let fresh = args.fresh || Trust::of_environment() != Trust::Trusted;
    let options = Options { fresh, ..Options::default() };
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let statistics = statistics_file(&plan, stage, &options, listener.as_ref())?;
    drop(listener);
    drop(running);
    files::replace(&args.to, &hidden::new(&args.to), |file| file.write_all(&statistics))?;
    if output.format() == Format::Json {
        output.json(&json!({"file": args.to.display().to_string(), "tokens": run.tokens(), "bytes": statistics.len()}));
    } else if !output.is_quiet() {
        let to = args.to.display().to_string();
        let of = counted(run.tokens(), "token");
        output.result(&format!("{}: statistics of {of}, {}", visible(&to), bytes(statistics.len() as u64)));
    }
    Ok(Exit::Done)
}
