//! `monoquant run --watch`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::output::Output;
use super::recipe_args::{Trust, instruction_set, limits, loaded, tell_failed_reports};
use super::signals::Signals;
use super::{Format, RunArgs};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::format::source;
use crate::plan::Plan;
use crate::publish::lock::Lock;
use crate::publish::staging;
use crate::recipe::{self, Loaded};
use crate::run::{Cancel, Listener, Options, Outcome, Silent};
use crate::show::progress::Bar;
use crate::show::summary::summary;
use crate::stage::Stage;
use crate::watch::changes::{Inputs, Watch};
use crate::watch::cycle::{Cycle, Cycles};

/// The result of a cycle.
struct Ended {
    /// The recipe's text, if it could be read.
    text: Option<String>,
    result: Result<(Plan, Outcome), Failure>,
}

pub(super) fn watch(args: &RunArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let isa = args.isa.as_deref().map(instruction_set).transpose()?;
    let poll = args.poll.map(|seconds| Duration::from_secs(seconds.into()));
    let watch = Watch::new(poll);
    let interrupt = watch.interrupt();
    signals.tell(move || interrupt.interrupt());
    let is_first = AtomicBool::new(true);
    let cycle = |inputs: &Inputs, cancel: &Cancel| {
        let text = recipe::text_of(&args.recipe.recipe);
        let is_first = is_first.swap(false, Ordering::Relaxed);
        let _running = signals.running(cancel);
        let options = Options { isa, cancel: cancel.clone(), durable: args.durable, ..Options::default() };
        let result = carry_out(args, output, inputs, options, is_first);
        Ended { text, result }
    };
    let mut cycles = Cycles::default();
    let mut last_good: Option<String> = None;
    let mut unpublished: Vec<PathBuf> = Vec::new();
    let done = watch.run(&args.recipe.recipe, cycle, |ended: Ended, took| {
        let of = match &ended.result {
            Ok((_, outcome)) => Ok(outcome),
            Err(failure) => Err((failure.findings.as_slice(), failure.exit)),
        };
        let Some(cycle) = cycles.next(ended.text, of, took) else { return };
        if let Ok((plan, outcome)) = &ended.result {
            unpublished = match outcome.exit {
                Exit::Done => Vec::new(),
                _ => plan.exports.iter().map(|export| export.path.clone()).collect(),
            };
        }
        show(output, &cycle, &ended.result, &mut last_good);
    });
    // An output that a failed gate held back was kept for the next cycle only.
    for path in unpublished {
        if let Ok(lock) = Lock::take(&path) {
            staging::clear(&path);
            drop(lock);
        }
    }
    done.map(|()| Exit::Interrupted)
}

fn carry_out(
    args: &RunArgs,
    output: &Output,
    inputs: &Inputs,
    options: Options,
    is_first: bool,
) -> Result<(Plan, Outcome), Failure> {
    let loaded = loaded(&args.recipe)?;
    tell_inputs(&loaded, inputs);
    crate::run::restore(&loaded)?;
    let mut plan = crate::plan::plan(loaded, limits(&args.recipe))?;
    let listener: Box<dyn Listener> =
        if output.is_interactive() { Box::new(Bar::new()) } else { Box::new(Silent) };
    let trust = Trust::of(args);
    if let Some(note) = trust.note(&plan).filter(|_| !output.is_quiet() && is_first) {
        output.say(note);
    }
    let options = Options {
        fresh: args.fresh && is_first || trust != Trust::Trusted,
        keep_unpublished: trust == Trust::Trusted,
        ..options
    };
    crate::run::calibrate::calibrate(&mut plan, &options, listener.as_ref())?;
    let outcome = crate::run::run(&plan, &options, listener.as_ref())?;
    Ok((plan, outcome))
}

/// Says what is read and written, before it is.
fn tell_inputs(loaded: &Loaded, inputs: &Inputs) {
    let mut outputs = Vec::new();
    let (mut folder, mut others) = (None, Vec::new());
    for stage in &loaded.recipe.stages {
        others.extend(stage.calibration().map(|calibration| loaded.resolve_path(&calibration.file)));
        match stage {
            Stage::Load(load) => {
                folder = source::path(&load.model, &loaded.base_of(&load.model)).ok().flatten();
            }
            Stage::Calibrate(stage) => others.extend(stage.text.iter().map(|text| loaded.resolve_path(text))),
            Stage::Evaluate(stage) => others.extend(stage.text.iter().map(|text| loaded.resolve_path(text))),
            Stage::Export(export) => outputs.push(loaded.resolve_path(&export.path)),
            _ => {}
        }
    }
    if let Some(folder) = folder {
        inputs.set(folder, others, outputs);
    }
}

/// Shows a cycle: on a screen the whole result, elsewhere one line or one JSON object.
fn show(
    output: &Output,
    cycle: &Cycle,
    result: &Result<(Plan, Outcome), Failure>,
    last_good: &mut Option<String>,
) {
    if output.format() == Format::Json {
        output.json_line(&cycle.json());
        return;
    }
    if !output.is_screen() {
        if let Err(failure) = result {
            output.findings(&failure.findings);
        }
        if let Ok((plan, outcome)) = result {
            tell_failed_reports(plan, outcome, output);
        }
        output.result(&cycle.line());
        return;
    }
    output.clear();
    match result {
        Ok((plan, outcome)) => {
            output.findings(&plan.warnings);
            output.findings(&outcome.findings);
            let text = summary(plan, outcome);
            output.result(&text);
            *last_good = (outcome.exit == Exit::Done).then_some(text).or_else(|| last_good.take());
        }
        Err(failure) => {
            output.findings(&failure.findings);
            if let Some(good) = last_good {
                output.result(&format!("── the last good result, which stays published ──\n{good}"));
            }
        }
    }
    output.result(&cycle.text());
    output.result("waiting for a change of the recipe or the model; Ctrl-C ends");
}
