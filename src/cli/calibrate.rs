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
use crate::network::MomentsLayout;
use crate::publish::{files, hidden};
use crate::run::Options;
use crate::run::calibrate::{stage_of, statistics_file, with_moments};
use crate::text::units::{bytes, counted};
use crate::text::visible;

pub(super) fn calibrate(args: &CalibrateArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let plan = crate::plan::plan(loaded(&args.recipe)?, limits(&args.recipe))?;
    let found = stage_of(&plan).and_then(|stage| {
        let runs = plan.runs.as_ref()?;
        Some((stage, runs, runs.of(stage)?))
    });
    let Some((stage, runs, run)) = found else {
        let finding = Finding::error("cli::no-calibrate", "the recipe has no `calibrate` stage")
            .help("Put `- stage: calibrate` before the stages that quantize.");
        return Err(Failure::new(Exit::BadRecipe, finding));
    };
    if args.moments.as_ref().is_some_and(|moments| *moments == args.to) {
        let finding = Finding::error("cli::same-file", "`-o` and `--moments` name the same file")
            .help("Statistics and second moments are two files.");
        return Err(Failure::new(Exit::BadRecipe, finding));
    }
    output.findings(&plan.warnings);
    let fresh = args.fresh || Trust::of_environment() != Trust::Trusted;
    let options = Options { fresh, ..Options::default() };
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let statistics = match &args.moments {
        Some(path) => with_moments(&plan, stage, path, &options, listener.as_ref())?,
        None => statistics_file(&plan, stage, &options, listener.as_ref())?,
    };
    drop(listener);
    drop(running);
    files::replace(&args.to, &hidden::new(&args.to), |file| file.write_all(&statistics))?;
    if output.format() == Format::Json {
        let mut value =
            json!({"file": args.to.display().to_string(), "tokens": run.tokens(), "bytes": statistics.len()});
        if let Some(path) = &args.moments {
            value["moments"] = json!(path.display().to_string());
        }
        output.json(&value);
    } else if !output.is_quiet() {
        let to = args.to.display().to_string();
        let of = counted(run.tokens(), "token");
        output.result(&format!("{}: statistics of {of}, {}", visible(&to), bytes(statistics.len() as u64)));
        if let Some(path) = &args.moments {
            let layout = MomentsLayout::new(&runs.description.layers);
            let path = path.display().to_string();
            output.result(&format!("{}: second moments, {}", visible(&path), bytes(layout.bytes())));
        }
    }
    Ok(Exit::Done)
}
