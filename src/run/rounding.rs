//! Rounding with calibration: the model runs layer by layer, and codes are chosen before the weights are streamed.
//!
//! Codes of each layer are kept in a file of a key that holds all that decides them. If an earlier run has some, their layers are
//! only run: the streams before a layer that is missing are made of the layers before it, with the codes that these have.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::chosen_codes::{self, Codes, Errors, Layer, LayerFiles, NewFile};
use super::event::{Event, Listener};
use super::model_pass::{Places, Progress, Watched, failed};
use super::outcome::Options;
use super::preflight::before_the_model_runs;
use crate::cancel::Cancel;
use crate::finding::{Failure, Finding};
use crate::ids::TaskId;
use crate::network::{
    Checkpoint, Hidden, LayerWeights, Linear, MeanSquares, Moments, MomentsFile, Part, Pass, Program, Round,
    Rounding, Sequence, StageMoments, round_stage, stage_parts,
};
use crate::plan::parts::Unit;
use crate::plan::rounding::{LayerMatrix, Rounded, of_layer};
use crate::plan::{ModelRun, ModelRuns, Plan, Roundings};
use crate::publish::files;
use crate::publish::lock::Lock;
use crate::quant::Isa;
use crate::text::units::counted;
use crate::threads::Pool;

mod gradients;
mod in_parts;
mod keys;
mod values;

pub(super) use in_parts::round_units;

use gradients::{GradientFiles, Walk};
use keys::Keys;
use values::Values;

/// Chooses the codes of all matrices that a plan rounds with calibration, or takes them from the last run, and gives them to the
/// plan. A plan without such matrices stays as it is. A join takes the codes of its parts.
///
/// # Errors
/// If an output cannot be written later, the model cannot be read or its activations stop being finite, or the run is cancelled;
/// and if the codes of some part of a join are not there yet.
pub fn round(plan: &mut Plan, options: &Options, listener: &dyn Listener) -> Result<(), Failure> {
    round_and_measure(plan, None, options, listener).map(|_| ())
}

/// [`round`], which on its way measures the inputs of the unquantized model's matrices, if it is asked to. Whether it has: if all
/// codes are known, nothing runs.
pub(super) fn round_and_measure(
    plan: &mut Plan,
    statistics: Option<&mut MeanSquares>,
    options: &Options,
    listener: &dyn Listener,
) -> Result<bool, Failure> {
    if !plan.awaits_rounding() {
        return Ok(false);
    }
    if options.join {
        return in_parts::join(plan).map(|()| false);
    }
    before_the_model_runs(plan)?;
    let (layers, is_measured) = {
        let (Some(runs), Some(roundings)) = (&plan.runs, &plan.roundings) else { return Ok(false) };
        let (Some(run), Some(export)) = (roundings.run(runs), plan.exports.first()) else { return Ok(false) };
        files::create_dir_all(export.path.parent().unwrap_or(&export.path))?;
        let lock = Lock::take(&export.path)?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let work = Work::new(plan, (runs, run, roundings), (&export.path, None), (isa, &options.cancel))?;
        let done = work.layers(statistics, options.fresh, listener)?;
        drop(lock);
        done
    };
    give(plan, layers);
    Ok(is_measured)
}

/// Whether a matrix is rounded with moments, and is one of a unit if that is asked for.
fn is_wanted(roundings: &Roundings, unit: Option<&Unit>, matrix: &LayerMatrix<'_>) -> bool {
    matrix.spec.is_calibrated()
        && !matrix.tasks.is_empty()
        && matrix.tasks.iter().all(|rows| roundings.of(rows.task).is_none())
        && unit.is_none_or(|unit| unit.tensors.binary_search(&matrix.tensor).is_ok())
}

/// Gives a plan what has come of its matrices.
fn give(plan: &mut Plan, layers: Vec<Layer>) {
    let by_name: HashMap<String, Rounded> = layers.into_iter().flat_map(|layer| layer.matrices).collect();
    let tasks = plan.tasks.numbered();
    let results = tasks.filter_map(|(number, task)| {
        // A module of another tensor may have the name, as a bias has.
        task.matrix(&plan.model)?;
        Some((number, by_name.get(task.module(&plan.model))?.clone()))
    });
    let results: BTreeMap<_, _> = results.collect();
    plan.round_by(results);
}

/// What all layers share.
struct Work<'p> {
    plan: &'p Plan,
    runs: &'p ModelRuns,
    roundings: &'p Roundings,
    /// With the models that run: two if layers are rounded one after another.
    run: ModelRun,
    target: &'p Path,
    /// Whose matrices are rounded; none if all are.
    unit: Option<&'p Unit>,
    isa: Isa,
    values: Values<'p>,
    cancel: &'p Cancel,
    checkpoint: Checkpoint<'p>,
}

/// A matrix by its place in the checkpoint.
type Place = (String, Part);

fn place(linear: &Linear) -> Place {
    (linear.tensor.clone(), linear.part)
}

impl<'p> Work<'p> {
    fn new(
        plan: &'p Plan,
        (runs, run, roundings): (&'p ModelRuns, &'p ModelRun, &'p Roundings),
        (target, unit): (&'p Path, Option<&'p Unit>),
        (isa, cancel): (Isa, &'p Cancel),
    ) -> Result<Self, Failure> {
        let models = if roundings.is_sequential { 2 } else { 1 };
        Ok(Self {
            plan,
            runs,
            roundings,
            run: ModelRun { models, ..run.clone() },
            target,
            unit,
            isa,
            values: Values::new(plan, isa, cancel)?,
            cancel,
            checkpoint: Checkpoint::open(&plan.model)?,
        })
    }

    /// Whether a matrix is rounded with moments.
    fn is_wanted(&self, matrix: &LayerMatrix<'_>) -> bool {
        is_wanted(self.roundings, self.unit, matrix)
    }

    /// Where codes are kept.
    fn files(&self) -> LayerFiles<'p> {
        LayerFiles { target: self.target, unit: self.unit.map(|unit| unit.name(self.plan)) }
    }

    /// The codes of all layers, and whether `statistics` have heard them all.
    fn layers(
        &self,
        statistics: Option<&mut MeanSquares>,
        is_fresh: bool,
        listener: &dyn Listener,
    ) -> Result<(Vec<Layer>, bool), Failure> {
        let programs = &self.runs.description.layers;
        let matrices: Vec<Vec<LayerMatrix<'_>>> =
            programs.iter().map(|program| of_layer(self.plan.content(), program)).collect();
        let Keys { layers: keys, gradients } = match self.unit {
            None => keys::of(self.plan, &self.run, self.roundings, &matrices, self.isa),
            Some(_) => Keys {
                layers: keys::anywhere(self.plan, self.roundings, &matrices, self.isa),
                gradients: None,
            },
        };
        let guides = self.roundings.gradients.zip(gradients).map(|(gradients, facts)| {
            GradientFiles::new(self.target, gradients, &facts, &matrices, |matrix| self.is_wanted(matrix))
        });
        let mut known: Vec<Option<Layer>> = matrices
            .iter()
            .zip(&keys)
            .enumerate()
            .map(|(layer, (matrices, key))| {
                if !matrices.iter().any(|matrix| self.is_wanted(matrix)) {
                    return Some(Layer::empty());
                }
                if is_fresh { None } else { Layer::read(&self.files(), layer, key, Codes::AreRead) }
            })
            .collect();
        let missing = known.iter().filter(|layer| layer.is_none()).count();
        if missing < known.len() && known.iter().flatten().any(|layer| !layer.matrices.is_empty()) {
            let text = match missing {
                0 => "the codes of all layers are those of the last run".to_owned(),
                _ => format!(
                    "the codes of {} are those of the last run",
                    counted(known.len() - missing, "layer")
                ),
            };
            listener.on_event(&Event::Note { text });
        }
        let last = known.iter().rposition(Option::is_none);
        let is_measured = last.is_some() && statistics.is_some();
        if let Some(last) = last {
            let all = All { matrices: &matrices, keys: &keys, guides: guides.as_ref(), last };
            let end = if is_measured { known.len() } else { last + 1 };
            self.walk(&mut known[..end], &all, statistics, (is_fresh, listener))?;
            self.checkpoint.check_unchanged()?;
        }
        let layers: Vec<Layer> = known.into_iter().flatten().collect();
        if self.unit.is_some() {
            return Ok((layers, is_measured));
        }
        let has_some = |(layer, of): (usize, &Layer)| (!of.matrices.is_empty()).then_some(layer);
        let kept: Vec<usize> = layers.iter().enumerate().filter_map(has_some).collect();
        chosen_codes::remove_others(self.target, &kept);
        Ok((layers, is_measured))
    }

    /// Goes through layers and rounds those that are missing.
    fn walk(
        &self,
        known: &mut [Option<Layer>],
        all: &All<'_>,
        mut statistics: Option<&mut MeanSquares>,
        (is_fresh, listener): (bool, &dyn Listener),
    ) -> Result<(), Failure> {
        let All { matrices, keys, guides, last } = *all;
        let (threads, memory) = (self.plan.budget.workers, self.plan.limits.memory);
        let least = self.roundings.least_memory(self.runs, threads);
        let cost = &self.roundings.cost;
        let fits = memory.is_none_or(|memory| least.saturating_add(cost.stream_bytes) <= memory);
        let mut places = Places::with(self.run.models, fits, Some(self.target))?;
        let taken = least + if fits { cost.stream_bytes } else { 0 };
        let holds = cost.holds(memory.map(|memory| memory.saturating_sub(taken)));
        let programs = &self.runs.description.layers;
        let through = |(layer, known): (usize, &Option<Layer>)| match known {
            None if self.roundings.is_sequential => {
                let wanted: Vec<&Linear> = matrices[layer]
                    .iter()
                    .filter(|matrix| self.is_wanted(matrix))
                    .map(|matrix| matrix.linear)
                    .collect();
                let stages = stage_parts(&programs[layer]);
                let stops = stages
                    .iter()
                    .filter(|(stage, _)| stage.iter().flatten().any(|linear| wanted.contains(linear)));
                1 + stops.count()
            }
            _ if self.roundings.moments.is_some() => usize::from(known.is_none()),
            _ if layer > last => 1,
            _ => self.run.models,
        };
        let passes: usize = known.iter().enumerate().map(through).sum();
        let progress =
            Progress::new("round", self.runs, &self.run, listener).of_tokens(passes * self.run.tokens());
        let pool = Pool::start(threads, usize::try_from(self.runs.thread_bytes()).unwrap_or(usize::MAX));
        let missing: Vec<usize> =
            known.iter().enumerate().filter_map(|(layer, known)| known.is_none().then_some(layer)).collect();
        let walk = || {
            if let (Some(guides), Some(gradients)) = (guides, self.roundings.gradients) {
                let least = self.roundings.least_memory_of_gradients(self.runs, threads);
                let backwards = Walk {
                    runs: self.runs,
                    run: &self.run,
                    checkpoint: &self.checkpoint,
                    holds: gradients.hold_streams(least, memory),
                    cancel: self.cancel,
                    listener,
                };
                guides.take(&missing, &backwards, is_fresh)?;
            }
            let pass = Pass::new(&self.runs.description, &self.run.windows)
                .map_err(|finding| self.failed(finding))?;
            let mut embedded =
                || pass.embed(&self.checkpoint, places.take()).map_err(|finding| self.failed(finding));
            let mut streams = match &self.roundings.moments {
                Some(given) => Streams::None(given.open_again().map_err(|finding| self.failed(finding))?),
                None if self.roundings.is_sequential => Streams::Two(embedded()?, embedded()?),
                None => Streams::One(embedded()?),
            };
            let count = known.len();
            for (layer, known) in known.iter_mut().enumerate() {
                progress.layer(layer);
                let (program, matrices) = (&programs[layer], &matrices[layer]);
                let goes_on = [layer + 1 < count, layer < last];
                let at = At { layer, program, matrices, pass: &pass, guides, goes_on };
                let statistics = statistics.as_deref_mut();
                match known {
                    Some(known) => self.pass_by(&at, known, (&mut streams, statistics), &progress)?,
                    None => {
                        let file = self.round(&at, (&mut streams, statistics), (&progress, holds))?;
                        *known = Some(file.write(&self.files(), layer, &keys[layer])?);
                    }
                }
            }
            Ok(())
        };
        pool.install(walk)
    }

    fn failed(&self, finding: Finding) -> Failure {
        failed(self.cancel, finding)
    }

    /// Takes the streams through a layer whose codes are known.
    fn pass_by(
        &self,
        at: &At<'_>,
        known: &Layer,
        (streams, mut statistics): (&mut Streams, Option<&mut MeanSquares>),
        progress: &Progress<'_>,
    ) -> Result<(), Failure> {
        let (first, second) = match streams {
            Streams::Two(first, second) => (first, Some(second)),
            Streams::One(first) => (first, None),
            Streams::None(_) => return Ok(()),
        };
        let mut weights =
            LayerWeights::read(at.program, &self.checkpoint).map_err(|finding| self.failed(finding))?;
        let mut run = |weights: &LayerWeights, hidden: &mut Hidden| {
            let inner = statistics.take();
            let mut watched = Watched { inner, progress: Some(progress), cancel: self.cancel };
            at.pass.layer(at.layer, weights, hidden, &mut watched).map_err(|finding| self.failed(finding))
        };
        run(&weights, first)?;
        // After the last layer that is rounded, only the first one is listened to.
        let Some(second) = second.filter(|_| at.goes_on[1]) else { return Ok(()) };
        let by_name: HashMap<&str, &Rounded> =
            known.matrices.iter().map(|(module, rounded)| (module.as_str(), rounded)).collect();
        for matrix in at.matrices {
            let of_task = |task: TaskId| match by_name.get(self.plan.tasks[task].module(&self.plan.model)) {
                Some(Rounded::Chosen(codes)) if self.is_wanted(matrix) => Some(codes),
                _ => None,
            };
            let values = self.values.of(matrix, weights.matrix(matrix.linear), of_task)?;
            weights.replace(matrix.linear, values);
        }
        run(&weights, second)
    }

    /// Rounds a layer, and takes the streams through it.
    fn round(
        &self,
        at: &At<'_>,
        (streams, statistics): (&mut Streams, Option<&mut MeanSquares>),
        (progress, holds): (&Progress<'_>, bool),
    ) -> Result<NewFile, Failure> {
        let own = LayerWeights::read(at.program, &self.checkpoint).map_err(|finding| self.failed(finding))?;
        let wanted = at.matrices.iter().filter(|matrix| self.is_wanted(matrix));
        let by_place: HashMap<Place, &LayerMatrix<'_>> =
            wanted.map(|matrix| (place(matrix.linear), matrix)).collect();
        let mut file = NewFile::default();
        let mut round = |moments: StageMoments<'_>, own: &LayerWeights| {
            self.round_together(at, moments, own, (&by_place, &mut file))
        };
        let parts = || {
            let stages = stage_parts(at.program).into_iter();
            let mut parts: Vec<Vec<&Linear>> = stages.flat_map(|(parts, _)| parts).collect();
            parts.iter_mut().for_each(|part| part.retain(|linear| by_place.contains_key(&place(linear))));
            parts.retain(|part| !part.is_empty());
            parts
        };
        let done = match streams {
            Streams::Two(first, second) => {
                let mut rounded = own.clone();
                for matrix in
                    at.matrices.iter().filter(|matrix| !by_place.contains_key(&place(matrix.linear)))
                {
                    let values = self.values.of(matrix, own.matrix(matrix.linear), |_| None)?;
                    rounded.replace(matrix.linear, values);
                }
                let tell = |windows| progress.through(windows, self.cancel);
                let (layer, goes_on) = ((at.layer, at.program), at.goes_on);
                let streams = [first, second];
                let mut sequence =
                    Sequence { pass: at.pass, layer, streams, holds, goes_on, statistics, tell: &tell };
                let wants = |linear: &Linear| by_place.contains_key(&place(linear));
                sequence.run(&own, &mut rounded, &wants, &mut round)
            }
            Streams::One(stream) => {
                let parts = parts();
                let moments = Moments::of(parts.iter().map(|part| part[0]));
                let inner = (statistics, moments);
                let mut watched = Watched { inner, progress: Some(progress), cancel: self.cancel };
                at.pass.layer(at.layer, &own, stream, &mut watched).and_then(|()| {
                    let mean = |linear: &Linear| Ok(watched.inner.1.mean(linear));
                    self.round_alone(parts, &mean, &own, &mut round)
                })
            }
            Streams::None(given) => self
                .round_alone(parts(), &|linear| given.mean(linear), &own, &mut round)
                .and_then(|()| progress.through(self.run.windows.len(), self.cancel)),
        };
        done.map_err(|finding| self.failed(finding))?;
        Ok(file)
    }

    /// Rounds matrices of a layer, in parts with the same inputs, with moments of the unquantized model.
    fn round_alone(
        &self,
        parts: Vec<Vec<&Linear>>,
        mean: &Mean<'_>,
        own: &LayerWeights,
        round: &mut Round<'_>,
    ) -> Result<(), Finding> {
        for matrices in parts {
            let Some((squares, rows)) = mean(matrices[0])? else { continue };
            let squares = squares.into_iter().map(|x| x as f32).collect();
            round(StageMoments { matrices, rows, squares, cross: None, residual: None }, own)?;
            self.cancel.check().map_err(super::model_pass::first)?;
        }
        Ok(())
    }

    /// Rounds matrices with the same inputs: keeps their codes, and gives what they stand for.
    fn round_together(
        &self,
        at: &At<'_>,
        moments: StageMoments<'_>,
        own: &LayerWeights,
        (by_place, file): (&HashMap<Place, &LayerMatrix<'_>>, &mut NewFile),
    ) -> Result<Vec<(usize, Vec<f32>)>, Finding> {
        let outputs = match at.guides {
            Some(guides) => guides.read(at.layer, &moments.matrices).map_err(super::model_pass::first)?,
            None => HashMap::new(),
        };
        let how = |linear: &Linear| Rounding {
            nearest: self.values.quantizer(by_place[&place(linear)]),
            is_signed: by_place[&place(linear)].spec.observer.is_signed(),
            outputs: outputs.get(&place(linear)),
        };
        let (matrices, tokens) = (moments.matrices.clone(), moments.rows);
        let mut rounded = round_stage(moments, own, &how);
        let mut out = Vec::with_capacity(matrices.len());
        for (index, linear) in matrices.into_iter().enumerate() {
            let matrix = by_place[&place(linear)];
            let found = match &mut rounded {
                Err(unusable) => Err(unusable.to_string()),
                // Weights that no integer stands for are told with their place when they are streamed.
                Ok(all) => all[index].as_mut().map_err(|bad| format!("its target holds {}", bad.what)),
            };
            let module = |task: TaskId| self.plan.tasks[task].module(&self.plan.model);
            match found {
                Ok(found) => {
                    let (scheme, columns) = (&matrix.spec.scheme, linear.columns);
                    for (part, rows) in matrix.tasks.iter().enumerate() {
                        let codes = values::some_rows(&found.matrix, rows, scheme, columns);
                        let is_first = part == 0;
                        let errors = Errors {
                            tokens,
                            error: if is_first { found.error } else { 0.0 },
                            error_of_nearest: if is_first { found.error_of_nearest } else { 0.0 },
                            is_guided: found.is_guided,
                        };
                        file.chosen(module(rows.task), &codes, (scheme, columns), errors);
                    }
                    out.push((index, std::mem::take(&mut found.values)));
                }
                Err(why) => {
                    matrix.tasks.iter().for_each(|rows| file.nearest(module(rows.task), why.clone()));
                    let values = self.values.of(matrix, own.matrix(linear), |_| None);
                    out.push((index, values.map_err(super::model_pass::first)?));
                }
            }
        }
        Ok(out)
    }
}

/// The moments of a matrix's inputs, and how many rows they are of; none if there are none.
type Mean<'m> = dyn Fn(&Linear) -> Result<Option<(Vec<f64>, u64)>, Finding> + 'm;

/// What goes through the layers while they are rounded.
enum Streams {
    /// The unquantized model's, and that of the model whose earlier matrices are rounded.
    Two(Hidden, Hidden),
    /// The unquantized model's.
    One(Hidden),
    /// Nothing: moments were made before.
    None(MomentsFile),
}

/// What is known of all layers.
#[derive(Clone, Copy)]
struct All<'a> {
    matrices: &'a [Vec<LayerMatrix<'a>>],
    keys: &'a [String],
    guides: Option<&'a GradientFiles<'a>>,
    /// The last layer that is rounded.
    last: usize,
}

/// A layer, and how it runs.
struct At<'a> {
    layer: usize,
    program: &'a Program,
    matrices: &'a [LayerMatrix<'a>],
    pass: &'a Pass<'a>,
    guides: Option<&'a GradientFiles<'a>>,
    /// Whether the stream of each model is needed after it.
    goes_on: [bool; 2],
}
