//! One pass over the weights: each tile is read, quantized and measured, written to the places in the plan, and read
//! back.
//!
//! A worker takes the next tile when it is done with the last, so memory is the buffers of one tile per worker. No
//! tile waits for another. Sums are merged in tile order, so no result depends on the number of workers.

pub mod collector;
pub mod solvers;
pub mod source;
pub mod tiles;
use std::collections::BTreeMap;
use std::sync::Mutex;

use super::event::Event;
use super::workers::Workers;
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::encoding;
use crate::plan::{Plan, Task, TaskOutput};
use crate::publish::files;
use crate::quant::{
    BadValue, BadWeight, Distortion, FloatType, Quantized, Scratch, Solver, Survey, TensorParams,
};
use crate::run::context::Context;
use crate::run::incremental::record::Finished;
use crate::run::stream::solvers::Solvers;
use crate::run::stream::source::SourceBuffers;
use crate::run::stream::tiles::{Cut, Queue, Tile};
use crate::sync::lock;

/// A run, with the results that were found before its one pass.
struct Pass<'a> {
    run: &'a Context<'a>,
    solvers: &'a Solvers<'a>,
    params: &'a [Option<TensorParams>],
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
    source: SourceBuffers,
    quantized: Quantized,
    dequantized: Vec<u8>,
    converted: Vec<u8>,
    read_back: Vec<u8>,
    scratch: Scratch,
}

/// Streams the weights of some of the plan's tasks into the staged files.
///
/// # Errors
/// If a weight cannot be quantized, a file cannot be read or written, or the run is cancelled.
pub(super) fn stream(
    run: &Context<'_>,
    tasks: Vec<usize>,
    workers: &Workers,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let solvers = Solvers::new(run.plan, &tasks, run.isa);
    let params = survey(run, &solvers, &tasks, workers, cancel)?;
    let pass = Pass { run, solvers: &solvers, params: &params };
    let queue = Queue::new(run.plan, tasks);
    workers.each(cancel, || queue.next(), |tile, buffers| pass.tile(tile, buffers))
}

/// Looks at the tensors that have one scale for all of their weights, before that scale can be used.
fn survey(
    run: &Context<'_>,
    solvers: &Solvers<'_>,
    tasks: &[usize],
    workers: &Workers,
    cancel: &Cancel,
) -> Result<Vec<Option<TensorParams>>, Failure> {
    let plan = run.plan;
    let mut out = vec![None; plan.tasks.len()];
    for &index in tasks {
        let task = &plan.tasks[index];
        let Some(solver) = solvers.of(index) else { continue };
        if solver.survey_passes() == 0 {
            continue;
        }
        let mut survey = solver.begin_survey();
        for _ in 0..solver.survey_passes() {
            survey_pass(run, workers, cancel, index, &*solver, &mut survey)?;
            solver.end_pass(&mut survey);
            if solver.is_settled(&survey) {
                break;
            }
        }
        let params = solver.tensor_params(&survey).map_err(|what| {
            bad_weight(
                plan,
                task,
                Tile { task: index, number: 0, start: 0, count: 0 },
                BadWeight { row: 0, col: 0, what },
            )
        })?;
        out[index] = Some(params);
    }
    Ok(out)
}

fn survey_pass(
    run: &Context<'_>,
    workers: &Workers,
    cancel: &Cancel,
    index: usize,
    solver: &dyn Solver,
    survey: &mut Survey,
) -> Result<(), Failure> {
    let (plan, task) = (run.plan, &run.plan.tasks[index]);
    let queue = Queue::new(plan, vec![index]);
    // Parts are merged in tile order as they come, so that no more of them wait than there are workers.
    let so_far = survey.clone();
    let merged = Mutex::new((0_u64, BTreeMap::new(), survey));
    workers.each(
        cancel,
        || queue.next(),
        |tile, buffers: &mut Buffers| {
            run.source.read(task, tile, &mut buffers.source, None)?;
            let part = solver
                .survey(&so_far, &buffers.source.weights, tile.count as usize)
                .map_err(|bad| bad_weight(plan, task, tile, bad))?;
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

fn bad_weight(plan: &Plan, task: &Task, tile: Tile, bad: BadWeight) -> Failure {
    let tensor = &plan.model.tensors[task.tensor()];
    let (row, column) = (tile.start + bad.row as u64, bad.col);
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
    let file = &plan.model.shards[tensor.shard()].name;
    Failure::new(
        Exit::BadModel,
        finding.help(format!(
            "Row {row}, column {column} of the matrix, in {file}. No integer stands for it: mend the checkpoint, or leave the \
             module alone with `modules_to_not_convert`."
        )),
    )
}

impl Pass<'_> {
    fn tile(&self, tile: Tile, buffers: &mut Buffers) -> Result<(), Failure> {
        let task = &self.plan.tasks[tile.task];
        self.source.read(task, tile, &mut buffers.source, Some(self.collector))?;
        match self.solvers.of(tile.task) {
            Some(solver) => self.quantize(task, tile, &*solver, buffers)?,
            None => self.keep(task, tile, buffers)?,
        }
        let bytes = buffers.source.weights.len() as u64;
        self.listener.on_event(&Event::Tile { tensor: task.tensor(), bytes });
        if self.collector.tile_done(task.tensor()) {
            let distortion = self.collector.distortion_of(tile.task);
            for (export, journal) in self.journals.iter().enumerate() {
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

    /// Writes a tile of a tensor that is kept.
    fn keep(&self, task: &Task, tile: Tile, buffers: &mut Buffers) -> Result<(), Failure> {
        let tensor = &self.plan.model.tensors[task.tensor()];
        let bytes = &buffers.source.weights;
        // Elements of a kept tensor are counted in bytes, those of a matrix and of scaled FP8 in rows.
        let element = tensor.dtype.bits().div_ceil(8);
        let view = task.matrix(&self.plan.model);
        let start = match (view, tensor.fp8) {
            (Some(view), _) => tile.start * view.cols * element,
            (None, Some(_)) => {
                tile.start * (tensor.elements() / tensor.shape.first().copied().unwrap_or(1).max(1)) * element
            }
            (None, None) => tile.start,
        };
        if self.checks.finite
            && let Some(element_in_tile) = first_not_finite(tensor.dtype, bytes)
        {
            let at = start / element + element_in_tile;
            let at = view.map_or(at, |view| {
                let (row, column) = (at / view.cols, at % view.cols);
                view.offset / element + row * view.row_stride + column * view.column_stride
            });
            self.collector.not_finite(task.tensor(), at);
        }
        for export in 0..self.plan.exports.len() {
            match self.plan.exports[export].tasks[tile.task] {
                TaskOutput::Copy { tensor } => {
                    self.write_and_check(export, tensor as usize, start, bytes, &mut buffers.read_back)?;
                }
                TaskOutput::InPlace { tensor } => {
                    let tensor = tensor as usize;
                    self.write_in_place(export, tensor, task, tile, bytes, &mut buffers.read_back)?;
                }
                TaskOutput::Encoded { .. } | TaskOutput::Dequantized { .. } => {}
            }
        }
        Ok(())
    }

    /// Quantizes, measures, writes and reads back a tile of a matrix.
    fn quantize(
        &self,
        task: &Task,
        tile: Tile,
        solver: &dyn Solver,
        buffers: &mut Buffers,
    ) -> Result<(), Failure> {
        let Buffers { source, quantized, dequantized, converted, read_back, scratch } = buffers;
        let rows = tile.count as usize;
        let distortion = self.encode(task, tile, solver, &source.weights, quantized, scratch)?;
        let parts = task.matrix(&self.plan.model).map_or_else(Vec::new, |view| {
            encoding::of(solver.scheme()).parts(solver.scheme(), view.rows, view.cols)
        });
        for export in 0..self.plan.exports.len() {
            match self.plan.exports[export].tasks[tile.task] {
                TaskOutput::Copy { .. } => {}
                TaskOutput::InPlace { tensor } => {
                    let exact = source.exact(&self.plan.model.tensors[task.tensor()]);
                    self.write_in_place(export, tensor as usize, task, tile, exact, read_back)?;
                }
                TaskOutput::Encoded { tensors } => {
                    for (tensor, part) in tensors.iter().zip(&parts) {
                        if let Some((start, bytes)) = part.of_tile(tile.start, quantized.part(part.role)) {
                            self.write_and_check(export, tensor, start, bytes, read_back)?;
                        }
                    }
                }
                TaskOutput::Dequantized { tensor } => {
                    self.dequantize(
                        task,
                        solver,
                        rows,
                        quantized,
                        [&mut *dequantized, &mut *converted],
                        scratch,
                    );
                    self.write_in_place(export, tensor as usize, task, tile, dequantized, read_back)?;
                }
            }
        }
        if let Some(distortion) = distortion {
            self.collector.distortion(tile.task, tile.number, distortion, tile.start);
        }
        Ok(())
    }

    /// Puts the codes of a tile into `quantized`, and measures it if the checks ask for it.
    fn encode(
        &self,
        task: &Task,
        tile: Tile,
        solver: &dyn Solver,
        weights: &[u8],
        quantized: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Option<Distortion>, Failure> {
        let (rows, params) = (tile.count as usize, self.params[tile.task].as_ref());
        let bad = |bad| bad_weight(self.plan, task, tile, bad);
        if !self.checks.measure {
            solver.solve(params, weights, rows, quantized, scratch).map_err(bad)?;
            return Ok(None);
        }
        let measured = solver.solve_and_measure(params, weights, rows, quantized, scratch).map_err(bad)?;
        if tile.number == 0 && self.solvers.is_first(tile.task) {
            // The measurement of codes in registers must agree with the meaning of the bytes. One tile of each kind
            // is enough to see that kernels which agree on other machines also agree on this one.
            let meant = solver.measure(weights, quantized.view(), rows, scratch);
            check_measured(&self.plan.model.tensors[task.tensor()].name, &measured, &meant)?;
        }
        let faint = solver.faint_signal(weights, quantized.view(), rows);
        Ok(Some(Distortion { faint, ..measured }))
    }

    /// The first byte of a tile's rows in the tensor as it is delivered and written.
    fn start_in_tensor(&self, task: &Task, tile: Tile) -> u64 {
        let tensor = &self.plan.model.tensors[task.tensor()];
        let Some(view) = task.matrix(&self.plan.model) else { return tile.start };
        let (stored, written) = (tensor.stored.bits().max(8), tensor.dtype.bits().max(8));
        view.offset / (stored / 8) * (written / 8) + tile.start * view.row_stride * (written / 8)
    }

    /// Puts the tile's weights as an engine would see them, in the source's type, into `dequantized`.
    fn dequantize(
        &self,
        task: &Task,
        solver: &dyn Solver,
        rows: usize,
        quantized: &Quantized,
        [dequantized, converted]: [&mut Vec<u8>; 2],
        scratch: &mut Scratch,
    ) {
        solver.dequantize(quantized.view(), rows, dequantized, scratch);
        let tensor = &self.plan.model.tensors[task.tensor()];
        let scale_type = solver.scheme().scale_type;
        if scale_type.name() != tensor.dtype.name() {
            convert(scale_type, tensor.dtype, dequantized, converted);
            std::mem::swap(dequantized, converted);
        }
    }

    /// Writes rows of a matrix into a tensor of the source's layout, and reads them back if the checks ask for it.
    fn write_in_place(
        &self,
        export: usize,
        tensor: usize,
        task: &Task,
        tile: Tile,
        bytes: &[u8],
        read_back: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if task.matrix(&self.plan.model).is_some_and(|view| !view.is_contiguous()) {
            return self.scatter(export, tensor, task, tile, bytes, read_back);
        }
        self.write_and_check(export, tensor, self.start_in_tensor(task, tile), bytes, read_back)
    }

    /// Writes rows that lie across the tensor: one stretch per column, which is read back if the checks ask for it.
    /// Elements that lie apart are too small to be read back.
    fn scatter(
        &self,
        export: usize,
        tensor: usize,
        task: &Task,
        tile: Tile,
        bytes: &[u8],
        read_back: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let start = self.start_in_tensor(task, tile);
        let Some(view) = task.matrix(&self.plan.model) else { return Ok(()) };
        let element = (self.plan.model.tensors[task.tensor()].dtype.bits() / 8) as usize;
        let row_bytes = view.cols as usize * element;
        let mut stretch = vec![0_u8; tile.count as usize * element];
        for column in 0..view.cols as usize {
            for (row, cell) in stretch.chunks_exact_mut(element).enumerate() {
                let from = row * row_bytes + column * element;
                cell.copy_from_slice(&bytes[from..from + element]);
            }
            let at = start + column as u64 * view.column_stride * element as u64;
            if view.row_stride == 1 {
                self.write_and_check(export, tensor, at, &stretch, read_back)?;
                continue;
            }
            for (row, cell) in (0_u64..).zip(stretch.chunks_exact(element)) {
                self.write(export, tensor, at + row * view.row_stride * element as u64, cell)?;
            }
        }
        Ok(())
    }

    fn write(&self, export: usize, tensor: usize, start: u64, bytes: &[u8]) -> Result<(), Failure> {
        let planned = &self.plan.exports[export].tensors[tensor];
        let staged = &self.staging[export].weights[planned.file()];
        let offset = planned.offset + start;
        files::write_at(staged, offset, bytes)?;
        self.collector.output(export, tensor, start, bytes);
        Ok(())
    }

    /// Writes bytes. If the checks ask for it, reads them back and compares them.
    fn write_and_check(
        &self,
        export: usize,
        tensor: usize,
        start: u64,
        bytes: &[u8],
        read_back: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        self.write(export, tensor, start, bytes)?;
        if !self.checks.round_trip {
            return Ok(());
        }
        let planned = &self.plan.exports[export].tensors[tensor];
        let staged = &self.staging[export].weights[planned.file()];
        if !files::holds(staged, planned.offset + start, bytes, read_back)? {
            self.collector.mismatch(export, tensor);
        }
        Ok(())
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
fn convert(from: FloatType, to: crate::model::Dtype, bytes: &[u8], out: &mut Vec<u8>) {
    use crate::model::Dtype;
    let weights = from.widen(bytes);
    out.clear();
    match to {
        Dtype::F64 => out.extend(weights.iter().flat_map(|weight| f64::from(*weight).to_le_bytes())),
        Dtype::F16 => FloatType::F16.narrow(&weights, out),
        Dtype::Bf16 => FloatType::Bf16.narrow(&weights, out),
        _ => FloatType::F32.narrow(&weights, out),
    }
}

/// The index of the first value in `bytes` that is NaN or infinite; none if the type has no such values.
fn first_not_finite(dtype: crate::model::Dtype, bytes: &[u8]) -> Option<u64> {
    use crate::model::Dtype;
    fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<u64> {
        let (values, _) = bytes.as_chunks::<N>();
        // Without a branch a value, so that the common case is fast; the place is looked up only when needed.
        let any =
            values.chunks(4096).position(|block| block.iter().fold(false, |any, value| any | bad(*value)))?;
        let within = values[any * 4096..].iter().position(|value| bad(*value))?;
        Some((any * 4096 + within) as u64)
    }
    match dtype {
        Dtype::Bf16 => find(bytes, |v| u16::from_le_bytes(v) & 0x7F80 == 0x7F80),
        Dtype::F16 => find(bytes, |v| u16::from_le_bytes(v) & 0x7C00 == 0x7C00),
        Dtype::F32 => find(bytes, |v| u32::from_le_bytes(v) & 0x7F80_0000 == 0x7F80_0000),
        Dtype::F64 => find(bytes, |v| u64::from_le_bytes(v) & 0x7FF0_0000_0000_0000 == 0x7FF0_0000_0000_0000),
        _ => None,
    }
}

/// Source bytes of all tiles of some tasks of a plan.
pub(super) fn total_bytes(plan: &Plan, tasks: &[usize]) -> u64 {
    tasks
        .iter()
        .map(|&index| {
            let task = &plan.tasks[index];
            let tensor = &plan.model.tensors[task.tensor()];
            match task.matrix(&plan.model) {
                Some(view) => view.rows * view.cols * tensor.working_dtype().bits() / 8,
                None if tensor.fp8.is_some() => tensor.elements() * tensor.dtype.bits() / 8,
                None => Cut::of(plan, index).total,
            }
        })
        .sum()
}

#[cfg(test)]
mod tests;
