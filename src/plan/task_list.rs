//! The plan as a list of tasks, as data: the bytes that are read, the action, the place of the result, and the tasks
//! that must come first.
//!
//! Tasks are independent unless [`TaskRecord::needs`] says otherwise. So any of them can be left out, done elsewhere, or
//! done first. [`super::parts`] deals them out to several machines.

use serde::Serialize;

use super::layout::ExportPlan;
use super::{Plan, Task};
use crate::ids::{StageId, TaskId, TensorId};

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
        let spec = plan.decisions[task.tensor()].spec();
        let is_decoded = source.encoded.is_some();
        TaskRecord {
            task: number,
            tensor: &source.name,
            module: task.module(&plan.model),
            inputs: inputs(plan, task),
            action: match (spec, is_decoded) {
                (Some(spec), _) if spec.is_relabelled => "re-label",
                (Some(_), _) => "quantize",
                (None, true) => "decode",
                (None, false) => "copy",
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
