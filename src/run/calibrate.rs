//! The `calibrate` stages of a plan: the model runs on text, layer by layer, and the plan gets the statistics.

use std::collections::BTreeMap;
use std::path::Path;

use super::event::{Event, Listener};
use super::kept;
use super::model_pass::{Places, Progress, Watched, facts, failed};
use super::outcome::Options;
use super::preflight::before_the_model_runs;
use crate::calibration::{self, Format, ModuleStatistics, Statistics};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::ids::StageId;
use crate::network::{
    Checkpoint, LayerWeights, Linear, MeanSquares, Moments, MomentsLayout, MomentsWriter, Part, Pass, Program,
};
use crate::plan::rounding::GivenMoments;
use crate::plan::{ModelRun, ModelRuns, Plan};
use crate::publish::lock::Lock;
use crate::publish::{files, hidden};
use crate::stage::{Stage, statistics_of};
use crate::text::units::{bytes, counted};
use crate::threads::Pool;

/// Runs the `calibrate` stage that quantize stages of a plan wait for, and gives the plan its statistics. They are taken from the last
/// run if the weights, the tokens and the build are those of now, and from the moments that the stage names if layers are rounded with
/// these. A plan without such a stage stays as it is.
///
/// # Errors
/// If an output cannot be written later, the model cannot be read or its activations stop being finite, or the run is cancelled.
pub fn calibrate(plan: &mut Plan, options: &Options, listener: &dyn Listener) -> Result<(), Failure> {
    if !plan.is_pending() {
        return Ok(());
    }
    let mut measured = BTreeMap::new();
    for &quantize in &plan.weighing.pending {
        let Some(stage) = statistics_of(&plan.recipe().stages, quantize) else { continue };
        if let std::collections::btree_map::Entry::Vacant(entry) = measured.entry(stage) {
            let given = plan.roundings.as_ref().filter(|of| of.calibrate == stage);
            entry.insert(match given.and_then(|of| of.moments.as_ref()) {
                Some(given) => of_moments(plan, given).map_err(|finding| failed(&options.cancel, finding))?,
                None => {
                    before_the_model_runs(plan)?;
                    parse(&statistics_file(plan, stage, options, listener)?)?
                }
            });
        }
    }
    plan.weigh_by(&measured)
}

fn parse(bytes: &[u8]) -> Result<Statistics, Failure> {
    calibration::parse(bytes).map_err(|finding| Failure::new(Exit::BadModel, finding))
}

/// The statistics of all matrices of layers that a file has moments of: mean squares are the diagonals.
fn of_moments(plan: &Plan, given: &GivenMoments) -> Result<Statistics, Finding> {
    let file = given.open_again()?;
    let mut modules: BTreeMap<&str, ModuleStatistics> = BTreeMap::new();
    let layers = plan.runs.iter().flat_map(|runs| &runs.description.layers);
    for matrix in layers.flat_map(Program::matrices) {
        let name = matrix.module();
        if modules.contains_key(name) && matrix.part == Part::Whole {
            continue;
        }
        let found = file.mean_squares(matrix)?;
        if found.is_none() && matrix.part == Part::Whole {
            continue;
        }
        let (squares, rows) = found.unwrap_or_else(|| (vec![0.0; matrix.columns], 0));
        let empty = || ModuleStatistics { name: name.to_owned(), sums: Vec::new(), counts: Vec::new() };
        let module = modules.entry(name).or_insert_with(empty);
        module.sums.extend(squares.iter().map(|square| square * rows as f32));
        module.counts.push(rows as f64);
    }
    let number = |what| file.metadata(what).and_then(|text| text.parse().ok());
    Ok(Statistics {
        format: Format::Safetensors,
        modules: modules.into_values().collect(),
        samples: number("samples"),
        tokens: number("tokens"),
        sources: file.metadata("source").map(str::to_owned).into_iter().collect(),
    })
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
    let Some((runs, run)) = of_stage(plan, stage) else { return Ok(Vec::new()) };
    if let Some(kept) = known(plan, run, options) {
        let text = format!("the statistics of {} are those of the last run", counted(run.tokens(), "token"));
        listener.on_event(&Event::Note { text });
        return Ok(kept);
    }
    let measured = measure((plan, runs, run), options, listener, None)?;
    keep(plan, run, &measured)?;
    Ok(measured)
}

fn of_stage(plan: &Plan, stage: StageId) -> Option<(&ModelRuns, &ModelRun)> {
    let runs = plan.runs.as_ref()?;
    Some((runs, runs.of(stage)?))
}

/// What decides statistics.
fn key(plan: &Plan, run: &ModelRun) -> String {
    let shards = plan.model.shards.iter().map(|shard| format!("{} {:?}", shard.name, shard.identity));
    kept::key(facts(plan, run).into_iter().chain(shards))
}

/// The statistics that an earlier run has kept.
fn known(plan: &Plan, run: &ModelRun, options: &Options) -> Option<Vec<u8>> {
    let export = plan.exports.first().filter(|_| !options.fresh)?;
    kept::read(&hidden::statistics(&export.path), &key(plan, run))
}

/// Whether an earlier run has kept the statistics of a stage.
pub(super) fn is_kept(plan: &Plan, stage: StageId, options: &Options) -> bool {
    of_stage(plan, stage).is_some_and(|(_, run)| known(plan, run, options).is_some())
}

/// Statistics of a plan's model, of no token yet. None if no model runs.
pub(super) fn begin(plan: &Plan) -> Option<MeanSquares> {
    let layers = &plan.runs.as_ref()?.description.layers;
    let mut squares = MeanSquares::default();
    // A stack has a row for each expert, also for those that no token is sent to.
    squares.prepare(layers.iter().flat_map(Program::matrices).filter(|matrix| matrix.part != Part::Whole));
    Some(squares)
}

/// Gives a plan the statistics of a `calibrate` stage, which have heard all its tokens, and keeps them for the next run.
///
/// # Errors
/// If they cannot be kept, or lack a module and the stage does not allow that.
pub(super) fn finish(plan: &mut Plan, stage: StageId, measured: &MeanSquares) -> Result<(), Failure> {
    let Some((_, run)) = of_stage(plan, stage) else { return Ok(()) };
    let measured = measured.to_bytes(&metadata(run));
    let statistics = BTreeMap::from([(stage, parse(&measured)?)]);
    keep(plan, run, &measured)?;
    plan.weigh_by(&statistics)
}

/// Measures the statistics of a `calibrate` stage as [`statistics_file`] does, but always anew; and writes second moments of the
/// inputs of all matrices to a file beside them.
///
/// # Errors
/// As [`calibrate`]; if the moments of a matrix do not fit into memory, or the file cannot be written.
pub fn with_moments(
    plan: &Plan,
    stage: StageId,
    path: &Path,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Vec<u8>, Failure> {
    let Some((runs, run)) = of_stage(plan, stage) else { return Ok(Vec::new()) };
    let layout = MomentsLayout::new(&runs.description.layers);
    let bound = moments_bound(plan, runs, &layout)?;
    let mut measured = Ok(Vec::new());
    let written = files::replace(path, &hidden::new(path), |file| {
        let mut writer = MomentsWriter::new(file, &layout, &metadata(run))?;
        let mut made = Made { layout: &layout, bound, writer: &mut writer, error: None };
        measured = measure((plan, runs, run), options, listener, Some(&mut made));
        match (made.error.take(), &measured) {
            (Some(error), _) => {
                measured = Ok(Vec::new());
                Err(error)
            }
            (None, Ok(_)) => writer.finish(),
            // Told below, in its own words.
            (None, Err(_)) => Err(std::io::Error::other("the run has failed")),
        }
    });
    let measured = measured?;
    written.map(|_| measured)
}

/// Moments that are made beside statistics.
struct Made<'a, 'f> {
    layout: &'a MomentsLayout,
    /// Bytes of sums in memory at once, if several matrices could have them together.
    bound: u64,
    writer: &'a mut MomentsWriter<'f>,
    /// Why the file could not be written.
    error: Option<std::io::Error>,
}

impl<'a> Made<'a, '_> {
    /// The matrices of a layer, in groups whose sums are in memory together.
    fn groups(&self, layer: usize) -> Vec<&'a [Linear]> {
        let (mut groups, mut rest) = (Vec::new(), self.layout.layers[layer].as_slice());
        while !rest.is_empty() {
            let mut total = 0;
            let fits = rest.iter().take_while(|matrix| {
                total += sum_bytes(matrix);
                total <= self.bound
            });
            let (group, others) = rest.split_at(fits.count().max(1));
            groups.push(group);
            rest = others;
        }
        groups
    }

    fn add(&mut self, sums: &Moments, matrices: &[Linear]) -> Result<(), Finding> {
        let added = matrices.iter().try_for_each(|matrix| self.writer.add(sums, matrix));
        added.map_err(|error| {
            let message = format!("moments cannot be written: {error}");
            self.error = Some(error);
            Finding::error(files::code::CANNOT_WRITE, message)
        })
    }
}

/// Sums of moments that are in memory at once, without a bound of memory.
const MOMENTS_BYTES: u64 = 4 << 30;

fn sum_bytes(matrix: &Linear) -> u64 {
    (matrix.columns * matrix.columns) as u64 * 8
}

/// How many bytes of sums may be in memory at once.
fn moments_bound(plan: &Plan, runs: &ModelRuns, layout: &MomentsLayout) -> Result<u64, Failure> {
    let Some(memory) = plan.limits.memory else { return Ok(MOMENTS_BYTES) };
    let bound = memory.saturating_sub(runs.least_memory(plan.budget.workers));
    let widest = layout.layers.iter().flatten().max_by_key(|matrix| matrix.columns);
    match widest {
        Some(widest) if sum_bytes(widest) > bound => {
            let message = format!(
                "the memory bound of {} is too small for the second moments of `{}`",
                bytes(memory),
                widest.module()
            );
            let needed = memory - bound + sum_bytes(widest);
            let help = format!("Its {} columns need {} in all here.", widest.columns, bytes(needed));
            Err(Failure::new(Exit::BadRecipe, Finding::error("plan::memory", message).help(help)))
        }
        _ => Ok(bound),
    }
}

fn metadata(run: &ModelRun) -> BTreeMap<String, String> {
    let metadata = [
        ("samples", run.windows.len().to_string()),
        ("tokens", run.tokens().to_string()),
        ("source", run.texts.join(", ")),
    ];
    metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// Runs the model, and gives the file.
fn measure(
    (plan, runs, run): (&Plan, &ModelRuns, &ModelRun),
    options: &Options,
    listener: &dyn Listener,
    mut moments: Option<&mut Made<'_, '_>>,
) -> Result<Vec<u8>, Failure> {
    let cancel = &options.cancel;
    let checkpoint = Checkpoint::open(&plan.model)?;
    let target = plan.exports.first().map(|export| export.path.as_path());
    let mut places = Places::new(runs, run, plan.budget.workers, plan.limits.memory, target)?;
    let progress = Progress::new("calibrate", runs, run, listener);
    let pool = Pool::start(plan.budget.workers, usize::try_from(runs.thread_bytes()).unwrap_or(usize::MAX));
    let mut squares = begin(plan).unwrap_or_default();
    let walk = || {
        let pass = Pass::new(&runs.description, &run.windows)?;
        let mut hidden = pass.embed(&checkpoint, places.take())?;
        for (layer, program) in runs.description.layers.iter().enumerate() {
            progress.layer(layer);
            let weights = LayerWeights::read(program, &checkpoint)?;
            let Some(made) = &mut moments else {
                let mut watched = Watched { inner: &mut squares, progress: Some(&progress), cancel };
                pass.layer(layer, &weights, &mut hidden, &mut watched)?;
                continue;
            };
            let groups = made.groups(layer);
            let none: &[Linear] = &[];
            let (last, before) = groups.split_last().unwrap_or((&none, &[]));
            for some in before {
                let mut sums = Moments::of(some.iter());
                let mut watched = Watched { inner: &mut sums, progress: None, cancel };
                pass.listen(layer, &weights, &hidden, &mut watched)?;
                made.add(&sums, some)?;
            }
            let mut sums = Moments::of(last.iter());
            let inner = (&mut squares, &mut sums);
            let mut watched = Watched { inner, progress: Some(&progress), cancel };
            pass.layer(layer, &weights, &mut hidden, &mut watched)?;
            made.add(&sums, last)?;
        }
        Ok(())
    };
    pool.install(walk).map_err(|finding| failed(cancel, finding))?;
    checkpoint.check_unchanged()?;
    Ok(squares.to_bytes(&metadata(run)))
}

/// Keeps statistics for the next run, unless another one is at work on the output or a weight file is so new that a later change
/// might not show in its identity.
fn keep(plan: &Plan, run: &ModelRun, statistics: &[u8]) -> Result<(), Failure> {
    let Some(export) = plan.exports.first() else { return Ok(()) };
    files::create_dir_all(export.path.parent().unwrap_or(&export.path))?;
    let is_settled = plan.model.shards.iter().all(|shard| shard.identity.is_settled());
    let Ok(lock) = Lock::take(&export.path) else { return Ok(()) };
    if is_settled {
        kept::write(&export.path, &hidden::statistics(&export.path), &key(plan, run), statistics)?;
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
