//! The `calibrate` stages of a plan: the model runs on text, layer by layer, and the plan gets the statistics.

use std::collections::BTreeMap;

use super::event::{Event, Listener};
use super::executor::preflight;
use super::kept;
use super::model_pass::{Places, Progress, Watched, facts, failed};
use super::outcome::Options;
use crate::calibration::{self, Statistics};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::ids::StageId;
use crate::network::{Checkpoint, LayerWeights, MeanSquares, Part, Pass, Program};
use crate::plan::{ModelRun, ModelRuns, Plan};
use crate::publish::lock::Lock;
use crate::publish::{files, hidden};
use crate::stage::{Stage, statistics_of};
use crate::text::units::counted;
use crate::threads::Pool;

/// Runs the `calibrate` stage that quantize stages of a plan wait for, and gives the plan its statistics. They are taken from the last
/// run if the weights, the tokens and the build are those of now. A plan without such a stage stays as it is.
///
/// # Errors
/// If an output cannot be written later, the model cannot be read or its activations stop being finite, or the run is cancelled.
pub fn calibrate(plan: &mut Plan, options: &Options, listener: &dyn Listener) -> Result<(), Failure> {
    if !plan.is_pending() {
        return Ok(());
    }
    preflight(plan)?;
    let mut measured = BTreeMap::new();
    for &quantize in &plan.weighing.pending {
        let Some(stage) = statistics_of(&plan.recipe().stages, quantize) else { continue };
        if let std::collections::btree_map::Entry::Vacant(entry) = measured.entry(stage) {
            let bytes = statistics_file(plan, stage, options, listener)?;
            entry.insert(parse(&bytes)?);
        }
    }
    plan.weigh_by(&measured)
}

fn parse(bytes: &[u8]) -> Result<Statistics, Failure> {
    calibration::parse(bytes).map_err(|finding| Failure::new(Exit::BadModel, finding))
}

/// The statistics file of a `calibrate` stage: kept by an earlier run, or measured now.
///
/// # Errors
/// As [`calibrate`].
pub fn statistics_file(
    plan: &Plan,
    stage: StageId,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Vec<u8>, Failure> {
    let Some((runs, run)) = plan.runs.as_ref().and_then(|runs| Some((runs, runs.of(stage)?))) else {
        return Ok(Vec::new());
    };
    let shards = plan.model.shards.iter().map(|shard| format!("{} {:?}", shard.name, shard.identity));
    let key = kept::key(facts(plan, run).into_iter().chain(shards));
    let export = plan.exports.first().filter(|_| !options.fresh);
    if let Some(known) = export.and_then(|export| kept::read(&hidden::statistics(&export.path), &key)) {
        let text = format!("the statistics of {} are those of the last run", counted(run.tokens(), "token"));
        listener.on_event(&Event::Note { text });
        return Ok(known);
    }
    let measured = measure(plan, runs, run, options, listener)?;
    keep(plan, &key, &measured)?;
    Ok(measured)
}

/// Runs the model, and gives the file.
fn measure(
    plan: &Plan,
    runs: &ModelRuns,
    run: &ModelRun,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Vec<u8>, Failure> {
    let cancel = &options.cancel;
    let checkpoint = Checkpoint::open(&plan.model)?;
    let target = plan.exports.first().map(|export| export.path.as_path());
    let mut places = Places::new(runs, run, plan.budget.workers, plan.limits.memory, target)?;
    let progress = Progress::new("calibrate", runs, run, listener);
    let pool = Pool::start(plan.budget.workers, usize::try_from(runs.thread_bytes()).unwrap_or(usize::MAX));
    let mut squares = MeanSquares::default();
    // A stack has a row for each expert, also for those that no token is sent to.
    let matrices = runs.description.layers.iter().flat_map(Program::matrices);
    squares.prepare(matrices.filter(|matrix| matrix.part != Part::Whole));
    let mut watched = Watched { inner: squares, progress: &progress, cancel };
    let walk = || {
        let pass = Pass::new(&runs.description, &run.windows)?;
        let mut hidden = pass.embed(&checkpoint, places.take())?;
        for (layer, program) in runs.description.layers.iter().enumerate() {
            progress.layer(layer);
            let weights = LayerWeights::read(program, &checkpoint)?;
            pass.layer(layer, &weights, &mut hidden, &mut watched)?;
        }
        Ok(())
    };
    pool.install(walk).map_err(|finding| failed(cancel, finding))?;
    checkpoint.check_unchanged()?;
    let metadata = [
        ("samples", run.windows.len().to_string()),
        ("tokens", run.tokens().to_string()),
        ("source", run.texts.join(", ")),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    Ok(watched.inner.to_bytes(&metadata))
}

/// Keeps statistics for the next run, unless another one is at work on the output or a weight file is so new that a later change
/// might not show in its identity.
fn keep(plan: &Plan, key: &str, statistics: &[u8]) -> Result<(), Failure> {
    let Some(export) = plan.exports.first() else { return Ok(()) };
    files::create_dir_all(export.path.parent().unwrap_or(&export.path))?;
    let is_settled = plan.model.shards.iter().all(|shard| shard.identity.is_settled());
    let Ok(lock) = Lock::take(&export.path) else { return Ok(()) };
    if is_settled {
        kept::write(&export.path, &hidden::statistics(&export.path), key, statistics)?;
    }
    drop(lock);
    Ok(())
}

/// The `calibrate` stage of a plan's recipe.
#[must_use]
pub fn stage_of(plan: &Plan) -> Option<StageId> {
    plan.recipe()
        .stages
        .numbered()
        .find(|(_, stage)| matches!(stage, Stage::Calibrate(_)))
        .map(|(index, _)| index)
}
