//! One pass over the weights: each tile is read, quantized and measured, written to the places in the plan, and read
//! back.
//!
//! A worker takes the next tile when it is done with the last, so memory is the buffers of one tile per worker. No
//! tile waits for another. Sums are merged in tile order, so no result depends on the number of workers.

pub(crate) mod collector;
mod sink;
pub(crate) mod solvers;
pub(crate) mod tiles;
pub(crate) mod weights;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use super::event::Event;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::encoding::{self, unquantized};
use crate::ids::{ExportId, IdVec, OutputTensorId, TaskId};
use crate::model::{Dtype, MatrixRows};
use crate::plan::{Plan, Task, TaskOutput, shared_scales};
use crate::quant::{
    BadValue, BadWeight, Distortion, FloatType, Integers, Quantized, Scratch, Solver, Storage, Survey,
    TensorParams,
};
use crate::run::context::Context;
use crate::run::incremental::record::Finished;
use crate::run::stream::sink::Sink;
use crate::run::stream::solvers::Solvers;
use crate::run::stream::tiles::{Cut, Queue, Span, Tile};
use crate::run::stream::weights::{WeightBuffers, Weights};
use crate::run::workers::Workers;
use crate::sync::lock;

/// A run, with the results that were found before its one pass.
struct Pass<'a> {
    run: &'a Context<'a>,
    solvers: &'a Solvers<'a>,
    params: &'a IdVec<TaskId, Option<TensorParams>>,
}

impl<'a> std::ops::Deref for Pass<'a> {
    type Target = Context<'a>;

    fn deref(&self) -> &Context<'a> {
        self.run
    }
}

/// The buffers of a worker, reused for each tile.
#[derive(Default)]
struct Buffers {
    source: WeightBuffers,
    quantized: Quantized,
    integers: Integers,
    dequantized: Vec<u8>,
    converted: Vec<u8>,
    read_back: Vec<u8>,
    scratch: Scratch,
}

/// Streams the weights of some of the plan's tasks into the staged files.
///
/// # Errors
/// If a weight cannot be quantized, a file cannot be read or written, or the run is cancelled.
pub(super) fn stream(run: &Context<'_>, tasks: Vec<TaskId>) -> Result<(), Failure> {
    let solvers = Solvers::new(run.plan, &tasks, run.isa);
    let reading = Reading { plan: run.plan, source: run.source, workers: run.workers };
    let params = survey(&reading, &solvers, &tasks)?;
    let pass = Pass { run, solvers: &solvers, params: &params };
    let _ahead = run.source.read_ahead(&tasks, run.workers.cancel());
    let queue = Queue::new(run.plan, tasks);
    run.workers.each(|| queue.next(), |tile, buffers| pass.tile(tile, buffers))
}

/// The weights of a plan, and who reads them.
pub(crate) struct Reading<'a> {
    pub plan: &'a Plan,
    pub source: &'a Weights<'a>,
    pub workers: &'a Workers,
}

/// Looks at the tensors that have one scale for all of their weights, before that scale can be used; and at those that share it
/// with them.
pub(crate) fn survey(
    run: &Reading<'_>,
    solvers: &Solvers<'_>,
    tasks: &[TaskId],
) -> Result<IdVec<TaskId, Option<TensorParams>>, Failure> {
    let plan = run.plan;
    let mut out = plan.tasks.map(|_| None);
    let groups = shared_scales::groups(plan.content());
    let group_of: HashMap<TaskId, &[TaskId]> =
        groups.iter().flat_map(|group| group.iter().map(|task| (*task, group.as_slice()))).collect();
    for &index in tasks {
        let task = &plan.tasks[index];
        let is_relabelled = plan.decisions[task.tensor()].spec().is_some_and(|spec| spec.is_relabelled);
        let Some(solver) = solvers.of(index).filter(|_| !is_relabelled && out[index].is_none()) else {
            continue;
        };
        if solver.survey_passes() == 0 {
            continue;
        }
        let together = group_of.get(&index).copied().unwrap_or(std::slice::from_ref(&index));
        let mut survey = solver.begin_survey();
        for _ in 0..solver.survey_passes() {
            for &task in together {
                let Some(solver) = solvers.of(task) else { continue };
                survey_pass(run, task, &*solver, &mut survey)?;
            }
            solver.end_pass(&mut survey);
            if solver.is_settled(&survey) {
                break;
            }
        }
        let params = solver
            .tensor_params(&survey)
            .map_err(|what| bad_weight(plan, task, 0, BadWeight { row: 0, col: 0, what }))?;
        together.iter().for_each(|&task| out[task] = Some(params));
    }
    Ok(out)
}

fn survey_pass(
    run: &Reading<'_>,
    index: TaskId,
    solver: &dyn Solver,
    survey: &mut Survey,
) -> Result<(), Failure> {
    let (plan, task) = (run.plan, &run.plan.tasks[index]);
    let _ahead = run.source.read_ahead(&[index], run.workers.cancel());
    let queue = Queue::new(plan, vec![index]);
    // Parts are merged in tile order as they come, so that no more of them wait than there are workers.
    let so_far = survey.clone();
    let merged = Mutex::new((0_u64, BTreeMap::new(), survey));
    run.workers.each(
        || queue.next(),
        |tile, buffers: &mut Buffers| {
            run.source.read(&tile, &mut buffers.source, None)?;
            let Span::Rows(rows) = &tile.span else { return Ok(()) };
            let part = solver
                .survey(&so_far, &buffers.source.weights, rows.count() as usize)
                .map_err(|bad| bad_weight(plan, task, rows.range.start, bad))?;
            let mut merged = lock(&merged);
            let (next, waiting, survey) = &mut *merged;
            waiting.insert(tile.number, part);
            while let Some(part) = waiting.remove(next) {
                survey.merge(part);
                *next += 1;
            }
            Ok(())
        },
    )
}

/// A weight that cannot be quantized; its row counts from `first_row`.
pub(crate) fn bad_weight(plan: &Plan, task: &Task, first_row: u64, bad: BadWeight) -> Failure {
    let tensor = &plan.model.tensors[task.tensor()];
    let (row, column) = (first_row + bad.row as u64, bad.col);
    let message = match bad.what {
        BadValue::ScaleOverflow => {
            format!("the scale of a group of `{}` is too large for its type", tensor.name)
        }
        _ => format!("`{}` holds {}", tensor.name, bad.what),
    };
    let mut finding = Finding::error("model::bad-weight", message);
    let pointer = plan.decisions[task.tensor()].rule.pointer.as_deref();
    finding = finding.at_opt(
        pointer.and_then(|pointer| plan.loaded.place(pointer)),
        format!("quantized by this rule; row {row}, column {column}"),
    );
    let file = &plan.model.shards[tensor.shard].name;
    Failure::new(
        Exit::BadModel,
        finding.help(format!(
            "Row {row}, column {column} of the matrix, in {file}. No integer stands for it: mend the checkpoint, or leave the \
             module alone with `modules_to_not_convert`."
        )),
    )
}

/// A block of MXFP4 that is no longer what the plan has seen; its row counts from `first_row`.
fn too_wide(plan: &Plan, task: &Task, first_row: u64, (row, column): (usize, usize)) -> Failure {
    let name = &plan.model.tensors[task.tensor()].name;
    let row = first_row + row as u64;
    let message =
        format!("exponents of `{name}` lie more than 14 apart, from row {row} and column {column} on");
    let finding = Finding::error("model::mxfp4", message);
    let help = "They did not when the plan was made: something else writes to the model's folder. Run again when it is done.";
    Failure::new(Exit::BadModel, finding.help(help))
}

impl Pass<'_> {
    fn tile(&self, tile: Tile, buffers: &mut Buffers) -> Result<(), Failure> {
        let task = &self.plan.tasks[tile.task];
        self.source.read(&tile, &mut buffers.source, Some(self.collector))?;
        let of_matrix = match &tile.span {
            Span::Rows(rows) => rows.range.start as usize..rows.range.end as usize,
            Span::Bytes(_) => 0..0,
        };
        match (self.solvers.of_rows(tile.task, of_matrix)?, &tile.span) {
            (Some(solver), Span::Rows(rows)) => self.quantize(&tile, rows, &*solver, buffers)?,
            _ => self.keep(&tile, buffers)?,
        }
        let bytes = buffers.source.weights.len() as u64;
        self.listener.on_event(&Event::Tile { tensor: task.tensor(), bytes });
        if let Some(link) = self.source.link() {
            self.listener.on_event(&Event::Link(link));
        }
        if self.collector.tile_done(task.tensor()) {
            let distortion = self.collector.distortion_of(tile.task);
            for (export, journal) in self.journals.numbered() {
                if let Some(finished) =
                    Finished::of(self.plan, self.prints, export, task.tensor(), self.collector)
                {
                    journal.add(&finished)?;
                }
            }
            let name = self.plan.model.tensors[task.tensor()].name.to_string();
            self.listener.on_event(&Event::Tensor { tensor: task.tensor(), name, distortion });
        }
        Ok(())
    }

    fn sink(&self, export: ExportId, tensor: OutputTensorId) -> Sink<'_> {
        Sink { run: self.run, export, tensor }
    }

    /// Writes a tile of a tensor that is kept.
    fn keep(&self, tile: &Tile, buffers: &mut Buffers) -> Result<(), Failure> {
        let Buffers { source, read_back, .. } = buffers;
        let index = self.plan.tasks[tile.task].tensor();
        let tensor = &self.plan.model.tensors[index];
        let bytes = &source.weights;
        let (element, source_tensor) = (tensor.dtype.bits().div_ceil(8), tensor);
        if self.checks.finite
            && let Some(n) = unquantized::first_not_finite(tensor.dtype, bytes)
        {
            let at = match &tile.span {
                Span::Rows(rows) => rows.element_at(n),
                Span::Bytes(range) => range.start / element + n,
            };
            self.collector.not_finite(index, at);
        }
        for export in self.plan.exports.ids() {
            match (self.plan.exports[export].tasks[tile.task], &tile.span) {
                (TaskOutput::InPlace { tensor }, Span::Rows(rows)) => {
                    let rows = rows.written(source_tensor);
                    self.sink(export, tensor).write_rows(&rows, element, bytes, read_back)?;
                }
                (TaskOutput::Copy { tensor } | TaskOutput::InPlace { tensor }, span) => {
                    let start = match span {
                        Span::Rows(rows) => rows.start_alone(element),
                        Span::Bytes(range) => range.start,
                    };
                    self.sink(export, tensor).write_and_check(start, bytes, read_back)?;
                }
                (TaskOutput::Encoded { .. } | TaskOutput::Dequantized { .. }, _) => {}
            }
        }
        Ok(())
    }

    /// Quantizes, measures, writes and reads back a tile of a matrix.
    fn quantize(
        &self,
        tile: &Tile,
        rows: &MatrixRows,
        solver: &dyn Solver,
        buffers: &mut Buffers,
    ) -> Result<(), Failure> {
        let distortion = self.encode(tile, rows, solver, buffers)?;
        let scheme = solver.scheme();
        let parts = encoding::of(scheme).parts(scheme, rows.view.rows, rows.view.cols);
        let source = &self.plan.model.tensors[self.plan.tasks[tile.task].tensor()];
        let element = source.dtype.bits().div_ceil(8);
        for export in self.plan.exports.ids() {
            match self.plan.exports[export].tasks[tile.task] {
                TaskOutput::Copy { .. } => {}
                TaskOutput::InPlace { tensor } => {
                    let Buffers { source: read, read_back, .. } = &mut *buffers;
                    let rows = rows.written(source);
                    self.sink(export, tensor).write_rows(&rows, element, read.exact(source), read_back)?;
                }
                TaskOutput::Encoded { tensors } => {
                    let Buffers { quantized, read_back, .. } = &mut *buffers;
                    for (tensor, part) in tensors.iter().zip(&parts) {
                        let of_part = part.of_tile(rows.range.start, quantized.part(part.role));
                        if let Some((start, bytes)) = of_part {
                            self.sink(export, tensor).write_and_check(start, bytes, read_back)?;
                        }
                    }
                }
                TaskOutput::Dequantized { tensor } => {
                    dequantize(solver, rows, source.dtype, buffers);
                    let Buffers { dequantized, read_back, .. } = &mut *buffers;
                    self.sink(export, tensor).write_rows(
                        &rows.written(source),
                        element,
                        dequantized,
                        read_back,
                    )?;
                }
            }
        }
        if let Some(distortion) = distortion {
            self.collector.distortion(tile.task, tile.number, distortion, rows.range.start);
        }
        Ok(())
    }

    /// Whether the weights of a task are stored as MXFP4.
    fn is_mxfp4(&self, task: &Task) -> bool {
        let encoded = self.plan.model.tensors[task.tensor()].encoded.as_ref();
        let exact = encoded.and_then(|encoded| encoded.matrix.exact().ok());
        exact.is_some_and(|exact| exact.scheme.storage == Storage::Mxfp4)
    }

    /// Puts the codes of a tile into the buffers, and measures it if the checks ask for it.
    fn encode(
        &self,
        tile: &Tile,
        rows: &MatrixRows,
        solver: &dyn Solver,
        buffers: &mut Buffers,
    ) -> Result<Option<Distortion>, Failure> {
        let Buffers { source, quantized, scratch, integers, .. } = buffers;
        let weights = &source.weights;
        let (count, params) = (rows.count() as usize, self.params[tile.task].as_ref());
        let of_matrix = rows.range.start as usize..rows.range.end as usize;
        let task = &self.plan.tasks[tile.task];
        if self.plan.decisions[task.tensor()].spec().is_some_and(|spec| spec.is_relabelled) {
            self.source.integers(task.tensor(), rows, integers)?;
            let (scheme, columns) = (solver.scheme(), rows.view.cols as usize);
            match scheme.storage {
                Storage::Float8 if self.is_mxfp4(task) => {
                    integers
                        .write_blocks(scheme, columns, quantized)
                        .map_err(|at| too_wide(self.plan, task, rows.range.start, at))?
                }
                _ => integers.write(scheme, columns, quantized),
            }
            let measure = || solver.measure(weights, quantized.view(), count, scratch);
            return Ok(self.checks.measure.then(measure));
        }
        let bad = |bad| bad_weight(self.plan, task, rows.range.start, bad);
        if !self.checks.measure {
            solver.solve(params, weights, of_matrix, quantized, scratch).map_err(bad)?;
            return Ok(None);
        }
        let measured =
            solver.solve_and_measure(params, weights, of_matrix, quantized, scratch).map_err(bad)?;
        if tile.number == 0 && self.solvers.is_first(tile.task) {
            // The measurement of codes in registers must agree with the meaning of the bytes. One tile of each kind
            // is enough to see that kernels which agree on other machines also agree on this one.
            let meant = solver.measure(weights, quantized.view(), count, scratch);
            check_measured(&self.plan.model.tensors[task.tensor()].name, &measured, &meant)?;
        }
        let faint = solver.faint_signal(weights, quantized.view(), count);
        Ok(Some(Distortion { faint, ..measured }))
    }
}

/// Puts the tile's weights as an engine would see them, in the type in which they are written, into the buffers.
fn dequantize(solver: &dyn Solver, rows: &MatrixRows, written: Dtype, buffers: &mut Buffers) {
    let Buffers { quantized, dequantized, converted, scratch, .. } = buffers;
    solver.dequantize(quantized.view(), rows.count() as usize, dequantized, scratch);
    let scale_type = solver.scheme().scale_type;
    if scale_type.name() != written.name() {
        convert(scale_type, written, dequantized, converted);
        std::mem::swap(dequantized, converted);
    }
}

/// Compares the measurement of a tile during quantization with the meaning of its bytes.
///
/// # Errors
/// If they differ: by a mistake of this program, or of the processor.
fn check_measured(tensor: &str, measured: &Distortion, meant: &Distortion) -> Result<(), Failure> {
    // As text, because NaN is NaN there.
    let [measured, meant] = [measured, meant].map(|distortion| format!("{distortion:?}"));
    if measured == meant {
        return Ok(());
    }
    let finding = Finding::error(
        "run::kernels-disagree",
        format!("what was measured of `{tensor}` is not what its codes mean"),
    );
    Err(Failure::new(
        Exit::Internal,
        finding.help(format!(
            "This is a mistake of monoquant, or of this machine's processor; please report it. `--isa portable` may avoid it.\n\
             measured: {measured}\nmeant: {meant}"
        )),
    ))
}

/// Dequantized weights in another floating-point type: that of the source, if its scales have another.
fn convert(from: FloatType, to: Dtype, bytes: &[u8], out: &mut Vec<u8>) {
    out.clear();
    unquantized::write(&from.widen(bytes), to, out);
}

/// Source bytes of all tiles of some tasks of a plan.
pub(super) fn total_bytes(plan: &Plan, tasks: &[TaskId]) -> u64 {
    tasks
        .iter()
        .map(|&index| {
            let tensor = &plan.model.tensors[plan.tasks[index].tensor()];
            let cut = Cut::of(plan, index);
            match cut.view {
                Some(view) => view.rows * view.cols * tensor.working_dtype().bits() / 8,
                None => cut.total,
            }
        })
        .sum()
}

#[cfg(test)]
mod tests;
