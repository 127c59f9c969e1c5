//! `monoquant run --watch`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::RunArgs;
use super::keys::{Keys, Pressed};
use super::output::Output;
use super::recipe_args::{Trust, instruction_set, limits, loaded};
use super::signals::Signals;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::format::source;
use crate::model::folder::arriving::{Arriving, arriving};
use crate::model::header;
use crate::plan::Plan;
use crate::publish::lock::Lock;
use crate::publish::staging;
use crate::recipe::{self, Loaded};
use crate::run::{Cancel, Listener, Options, Outcome, Silent};
use crate::show::progress::Bar;
use crate::stage::Stage;
use crate::watch::changes::{Asked, Inputs, Remote, Told, Watch};
use crate::watch::cycle::Cycles;

use screen::Screen;

mod screen;

/// The result of a cycle.
struct Ended {
    /// The recipe's text, if it could be read.
    text: Option<String>,
    result: Result<(Plan, Outcome), Failure>,
    /// What is still to come of a model that is being copied.
    arriving: Option<Arriving>,
}

pub(super) fn watch(args: &RunArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let isa = args.isa.as_deref().map(instruction_set).transpose()?;
    let poll = args.poll.map(|seconds| Duration::from_secs(seconds.into()));
    let watch = Watch::new(poll);
    let remote = watch.remote();
    signals.tell(move || remote.interrupt());
    let keys = listen(output, watch.remote());
    let is_first = AtomicBool::new(true);
    let cycle = |inputs: &Inputs, cancel: &Cancel| {
        let text = recipe::text_of(&args.recipe.recipe);
        let is_first = is_first.swap(false, Ordering::Relaxed);
        let _running = signals.running(cancel);
        let options = Options { isa, cancel: cancel.clone(), durable: args.durable, ..Options::default() };
        let mut result = carry_out(args, output, inputs, options.clone(), is_first);
        let mut arriving = None;
        if let Err(failure) = &result
            && failure.exit == Exit::BadModel
        {
            arriving = still_arriving(args);
            // A file that was cut off when it was read, and is whole now: its last bytes have just come.
            if arriving.is_none() && failure.findings.iter().any(|finding| header::is_cut_off(finding.code)) {
                result = carry_out(args, output, inputs, options, is_first);
            }
        }
        Ended { text, result, arriving }
    };
    let mut screen = Screen::new(output, keys.is_some());
    let mut cycles = Cycles::default();
    let mut unpublished: Vec<PathBuf> = Vec::new();
    let done = watch.run(&args.recipe.recipe, cycle, |told| match told {
        Told::Asked(Asked::Again) => cycles.want(),
        Told::Asked(Asked::Redraw) => screen.draw(&cycles),
        Told::Asked(Asked::Pin) => {
            if screen.cycle.as_ref().is_some_and(|cycle| cycles.pin(cycle)) {
                screen.draw(&cycles);
            }
        }
        Told::Ended(Ended { arriving: Some(arriving), .. }, _) => {
            cycles.want();
            screen.wait(&arriving);
        }
        Told::Ended(ended, took) => {
            let of = match &ended.result {
                Ok((_, outcome)) => Ok(outcome),
                Err(failure) => Err((failure.findings.as_slice(), failure.exit)),
            };
            let cycle = cycles.next(ended.text, of, took);
            if let Ok((plan, outcome)) = &ended.result {
                unpublished = match outcome.exit {
                    Exit::Done => Vec::new(),
                    _ => plan.exports.iter().map(|export| export.path.clone()).collect(),
                };
            }
            match cycle {
                Some(cycle) => screen.show(cycle, ended.result, &cycles),
                None => screen.waited(&cycles),
            }
        }
    });
    drop(keys);
    // An output that a failed gate held back was kept for the next cycle only.
    for path in unpublished {
        if let Ok(lock) = Lock::take(&path) {
            staging::clear(&path);
            drop(lock);
        }
    }
    done.map(|()| Exit::Interrupted)
}

/// Listens to the keys of a screen.
fn listen<T: Send + 'static>(output: &Output, remote: Remote<T>) -> Option<Keys> {
    if !output.is_screen() {
        return None;
    }
    Keys::listen(move |pressed| match pressed {
        Pressed::Key(b'q' | b'Q') => remote.interrupt(),
        Pressed::Key(b'r' | b'R') => remote.ask(Asked::Again),
        Pressed::Key(b'b' | b'B') => remote.ask(Asked::Pin),
        Pressed::Resized => remote.ask(Asked::Redraw),
        Pressed::Key(_) => {}
    })
}

/// What is missing of the model of a recipe that cannot be read, because it is being copied.
fn still_arriving(args: &RunArgs) -> Option<Arriving> {
    let loaded = loaded(&args.recipe).ok()?;
    let load = loaded.recipe.stages.iter().find_map(|stage| match stage {
        Stage::Load(load) => Some(load),
        _ => None,
    })?;
    let model = source::open(&load.model, &loaded.base_of(&load.model), &loaded.follow_links).ok()?;
    arriving(&*model)
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
    let bar = output.is_interactive().then(|| Bar::new(output.error_width())).flatten();
    let listener = bar.map_or_else(|| Box::new(Silent) as Box<dyn Listener>, |bar| Box::new(bar));
    let trust = Trust::of(args);
    if let Some(note) = trust.note(&plan).filter(|_| !output.is_quiet() && is_first) {
        output.say(note);
    }
    let options = Options {
        fresh: args.fresh && is_first || trust != Trust::Trusted,
        keep_unpublished: trust == Trust::Trusted,
        ..options
    };
    crate::run::prepare::prepare(&mut plan, &options, listener.as_ref())?;
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
                if folder.is_none() {
                    others.extend(source::arrives(&load.model));
                }
            }
            Stage::Calibrate(stage) => {
                others.extend(stage.text.iter().chain(&stage.moments).map(|file| loaded.resolve_path(file)));
            }
            Stage::Evaluate(stage) => others.extend(stage.text.iter().map(|text| loaded.resolve_path(text))),
            Stage::Export(export) => outputs.push(loaded.output_path(&export.path)),
            _ => {}
        }
    }
    inputs.set(folder, others, outputs);
}
