//! The plan as a list of tasks, as data: the bytes that are read, the action, the place of the result, and the tasks
//! that must come first.
//!
//! Tasks are independent unless [`TaskRecord::needs`] says otherwise. So any of them can be left out, done elsewhere, or
//! done first. [`slices`] distributes them.

use std::cmp::Reverse;

use serde::Serialize;

use super::layout::ExportPlan;
use super::{Plan, Task};
use crate::ids::{FileId, IdVec, StageId, TaskId, TensorId};

/// A task on one matrix, or on a tensor that is not a matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskRecord<'p> {
    /// Its number in the plan.
    pub task: TaskId,
    /// The source tensor.
    pub tensor: &'p str,
    /// The module that it is in the output.
    pub module: &'p str,
    /// The bytes that it reads.
    pub inputs: Vec<Input<'p>>,
    /// The action.
    pub action: &'static str,
    /// The places of the result.
    pub outputs: Vec<Slot<'p>>,
    /// Tasks whose results it needs.
    pub needs: Vec<TaskId>,
}

/// Bytes of a file of the source. If a matrix is not contiguous in its tensor, the range is the whole tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Input<'p> {
    /// The file.
    pub file: &'p str,
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A tensor of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot<'p> {
    /// The `export` stage.
    pub stage: StageId,
    /// The file.
    pub file: &'p str,
    /// The tensor.
    pub tensor: String,
    /// The name of its encoding: one of compressed-tensors, or `unquantized`.
    pub encoding: &'static str,
}

/// The tasks of a plan, in the order in which their sources lie in the files.
pub fn task_list(plan: &Plan) -> impl Iterator<Item = TaskRecord<'_>> {
    plan.tasks.numbered().map(|(number, task)| {
        let source = &plan.model.tensors[task.tensor()];
        let quantized = plan.decisions[task.tensor()].spec().is_some();
        let is_decoded = source.encoded.is_some();
        TaskRecord {
            task: number,
            tensor: &source.name,
            module: task.module(&plan.model),
            inputs: inputs(plan, task),
            action: match (quantized, is_decoded) {
                (true, _) => "quantize",
                (false, true) => "decode",
                (false, false) => "copy",
            },
            outputs: plan.exports.iter().flat_map(|export| slots(plan, export, number)).collect(),
            needs: Vec::new(),
        }
    })
}

fn inputs<'p>(plan: &'p Plan, task: &Task) -> Vec<Input<'p>> {
    let of_task = &plan.model.tensors[task.tensor()];
    let view = task.matrix(&plan.model);
    let input = |(number, index): (usize, TensorId)| {
        let tensor = &plan.model.tensors[index];
        let range = match (&of_task.encoded, view) {
            (Some(encoded), Some(view)) => {
                let rows = view.rows(0..view.rows).span_among_all(of_task);
                rows.map(|rows| encoded.matrix.ranges(number, rows).span())
            }
            (None, Some(view)) => view.byte_range(tensor.stored.bits()),
            (_, None) => None,
        };
        let range = range.unwrap_or(0..tensor.bytes);
        let file = &plan.model.shards[tensor.shard].name;
        Input { file, start: tensor.offset + range.start, end: tensor.offset + range.end }
    };
    plan.model.parts_of(task.tensor()).enumerate().map(input).collect()
}

fn slots<'p>(plan: &'p Plan, export: &'p ExportPlan, task: TaskId) -> impl Iterator<Item = Slot<'p>> {
    let output = &export.tasks[task];
    output.tensors().map(move |index| {
        let tensor = &export.tensors[index];
        let (content, file) = (plan.content(), &export.files[tensor.file()].name);
        let encoding = tensor.encoding(content).name();
        Slot { stage: export.stage, file, tensor: tensor.name(content), encoding }
    })
}

/// Deals the tasks of a plan out to `count` parts, so that no output file of the first export is written by two of them: largest
/// files first, each to the part that has least to do. The same plan gives the same parts.
#[must_use]
pub fn slices(plan: &Plan, count: usize) -> Vec<Vec<TaskId>> {
    let mut parts: Vec<(u64, Vec<TaskId>)> = vec![(0, Vec::new()); count.max(1)];
    let Some(export) = plan.exports.first() else {
        parts[0].1 = plan.tasks.ids().collect();
        return parts.into_iter().map(|(_, tasks)| tasks).collect();
    };
    let mut of_file: IdVec<FileId, Vec<TaskId>> = export.files.map(|_| Vec::new());
    for (task, output) in export.tasks.numbered() {
        if let Some(tensor) = output.tensors().next() {
            of_file[export.tensors[tensor].file()].push(task);
        }
    }
    let mut order: Vec<FileId> = export.files.ids().collect();
    order.sort_by_key(|&file| (Reverse(export.files[file].bytes), file));
    for file in order {
        let Some(least) = parts.iter_mut().min_by_key(|(bytes, _)| *bytes) else { break };
        least.0 += export.files[file].bytes;
        least.1.append(&mut of_file[file]);
    }
    parts
        .into_iter()
        .map(|(_, mut tasks)| {
            tasks.sort_unstable();
            tasks
        })
        .collect()
}
