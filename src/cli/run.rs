//! `monoquant run`.

use std::time::{Duration, Instant};

use super::ci::Ci;
use super::output::Output;
use super::recipe_args::{Trust, instruction_set, limits, loaded, tell_failed_reports};
use super::signals::Signals;
use super::{Format, RunArgs};
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::report::GateOutcome;
use crate::run::{Listener, Options, Silent};
use crate::show::progress::{Bar, Lines, Noted};
use crate::show::summary::{Told, summary};

/// The pause between two looks for missing files.
const PAUSE: Duration = Duration::from_secs(2);

/// What shows the progress of a command.
pub(super) fn listener(output: &Output) -> Box<dyn Listener> {
    if output.is_quiet() || output.format() != Format::Human {
        return Box::new(Silent);
    }
    let bar = output.is_interactive().then(|| Bar::new(output.error_width())).flatten();
    bar.map_or_else(|| Box::new(Lines::new(output.is_verbose())) as Box<dyn Listener>, |bar| Box::new(bar))
}

/// Runs a recipe, and tells CI of it.
pub(super) fn run(args: &RunArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let mut ci = Ci::of(args)?;
    let ended = ci.read_conditions().and_then(|()| carry_out(args, &ci, output, signals));
    ended.or_else(|failure| ci.tell_failure(failure, output))
}

fn carry_out(args: &RunArgs, ci: &Ci<'_>, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let start = Instant::now();
    let loaded = loaded(&args.recipe)?;
    crate::run::restore(&loaded)?;
    let isa = args.isa.as_deref().map(instruction_set).transpose()?;
    let mut plan = crate::plan::plan(loaded, limits(&args.recipe))?;
    if args.join {
        crate::run::parts::check(&plan)?;
    }
    ci.check(&plan)?;
    // As JSON there is one result, the report, and it holds every warning.
    let is_json = output.format() == Format::Json;
    if !is_json {
        output.findings(&plan.warnings);
    }
    let trust = Trust::of(args);
    if let Some(note) = trust.note(&plan).filter(|_| !output.is_quiet() && !args.fresh) {
        output.say(note);
    }
    let fresh = args.fresh || trust != Trust::Trusted;
    let conditions = ci.conditions();
    let options =
        Options { isa, durable: args.durable, fresh, join: args.join, conditions, ..Options::default() };
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let warnings = plan.warnings.len();
    let until = args.wait.map(|wait| Instant::now() + wait);
    let prepare = || crate::run::prepare::prepare(&mut plan, &options, listener.as_ref());
    waiting(until, &options.cancel, prepare)?;
    if !is_json {
        output.findings(&plan.warnings[warnings..]);
    }
    let noted = Noted::new(listener.as_ref());
    let join = || crate::run::run(&plan, &options, &noted);
    let mut outcome = waiting(until, &options.cancel, join)?;
    let read = noted.read();
    drop(listener);
    drop(running);
    ci.tell_outcome(&plan, &mut outcome)?;
    if is_json {
        tell_failed_reports(&plan, &outcome, output);
        output.json(&outcome.report);
        return Ok(outcome.exit);
    }
    // A failed gate is an error, even if the recipe continues.
    let has_failed = outcome.report.gates.iter().any(|gate| gate.outcome == GateOutcome::FailedAndIgnored);
    output.findings_if(has_failed || !output.is_quiet(), &outcome.findings);
    tell_failed_reports(&plan, &outcome, output);
    if !output.is_quiet() {
        let (width, all) = (output.width(), output.is_verbose());
        let told = Told { width, all, took: start.elapsed(), read };
        output.summary(&summary(&plan, &outcome, &told));
    }
    Ok(outcome.exit)
}

/// Tries a step of a join again as long as files are missing, until the time is over.
fn waiting<T>(
    until: Option<Instant>,
    cancel: &Cancel,
    mut join: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    loop {
        match join() {
            Err(failure)
                if failure.exit == Exit::TryAgain && until.is_some_and(|until| Instant::now() < until) =>
            {
                let next = Instant::now() + PAUSE;
                while Instant::now() < next {
                    cancel.check()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            ended => return ended,
        }
    }
}
