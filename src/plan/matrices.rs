//! The matrices of a model: whole tensors, and those of stacks of experts.

use super::engines;
use super::phases::{Classified, Decided};
use super::task::Task;
use crate::finding::Finding;
use crate::ids::{IdVec, TaskId, TensorId};
use crate::layer::LayerType;
use crate::model;

/// The row lengths of a tensor's matrices: the input width of its layers.
pub(super) fn row_lengths(classified: &Classified, tensor: TensorId) -> Vec<u64> {
    let Classified { model, classes, .. } = classified;
    if classes[tensor].kind == LayerType::Experts {
        return match model::experts::stack(model, tensor) {
            Ok(stack) => stack.matrices.first().map(|matrix| matrix.view.cols).into_iter().collect(),
            Err(_) => Vec::new(),
        };
    }
    let view = matrix_task(tensor, classes[tensor].kind).matrix(model);
    view.map(|view| view.cols).into_iter().collect()
}

/// A tensor as a matrix of weights [out, in]. GPT-2 stores its linear layers the other way round.
pub(super) fn matrix_task(tensor: TensorId, kind: LayerType) -> Task {
    Task::matrix_of(tensor, kind == LayerType::Conv1D)
}

/// Tasks that a model is cut into at most: a few bytes may be any number of matrices.
const MAX_TASKS: usize = 1 << 22;

/// Cuts the model into tasks: whole tensors, and the matrices of stacks of experts that are quantized, or that an engine
/// wants one by one whether they are quantized or not.
pub(super) fn tasks(decided: &Decided) -> (IdVec<TaskId, Task>, Vec<Finding>) {
    let Decided { loaded, model, classes, decisions, .. } = decided;
    let mut tasks = Vec::with_capacity(model.tensors.len());
    let mut findings = Vec::new();
    let splits_kept = engines::splits_kept_experts(loaded, model);
    for (tensor, info) in model.tensors.numbered() {
        if info.part_of.is_some() {
            continue;
        }
        let quantized = decisions[tensor].spec().is_some();
        if !quantized && info.plain_is_transposed() {
            let experts = model::experts::whole(info);
            tasks.extend(experts.into_iter().take(MAX_TASKS).map(|matrix| Task::expert(tensor, matrix)));
            continue;
        }
        let splits =
            quantized || splits_kept && info.stored == info.working_dtype() && info.encoded.is_none();
        if splits && classes[tensor].kind == LayerType::Experts {
            match model::experts::stack(model, tensor) {
                Ok(stack) if tasks.len() + stack.matrices.len() > MAX_TASKS => {
                    let message = format!("stacks of experts hold more than {MAX_TASKS} matrices");
                    let finding = Finding::error(model::code::EXPERTS, message);
                    findings.push(finding.help("Leave them alone with `skip_layer_types: [Experts]`."));
                    break;
                }
                Ok(stack) => {
                    tasks.extend(stack.matrices.into_iter().map(|matrix| Task::expert(tensor, matrix)));
                }
                Err(finding) => findings.push(finding),
            }
            continue;
        }
        tasks.push(match quantized {
            true => matrix_task(tensor, classes[tensor].kind),
            false => Task::bytes(tensor),
        });
    }
    (tasks.into(), findings)
}
