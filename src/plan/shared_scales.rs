//! Matrices that share a scale for all of their weights, because engines make one module of them.
//!
//! vLLM takes one of the scales for the whole module, and one of those of an expert's gate and up projections, whatever the
//! others are.

use std::collections::BTreeMap;

use super::fused_modules::{FusedModules, fused_name};
use super::output_tensor::Content;
use crate::ids::{TaskId, TensorId};

/// The tasks whose matrices share such a scale, group by group, each in the order of the tasks. Matrices that share it with none
/// are in no group.
#[must_use]
pub(crate) fn groups(content: Content<'_>) -> Vec<Vec<TaskId>> {
    let shares = |task: &TaskId| {
        let spec = content.decisions[content.tasks[*task].tensor()].spec();
        spec.is_some_and(|spec| spec.scheme.has_global_scale() && !spec.is_relabelled)
    };
    if !content.tasks.ids().any(|task| shares(&task)) {
        return Vec::new();
    }
    let tasks_of =
        |group: &FusedModules| group.members().flat_map(|tensor| content.tasks_of(tensor)).collect();
    let (experts, others): (Vec<_>, Vec<_>) =
        content.fused_modules.iter().partition(|group| group.are_experts());
    let mut groups: Vec<Vec<TaskId>> = others.into_iter().map(tasks_of).collect();
    // Each expert by itself.
    let mut of_experts: BTreeMap<(&str, &str), Vec<TaskId>> = BTreeMap::new();
    let stacks =
        content.tasks.numbered().filter(|(_, task)| task.own_module().is_some()).map(|(task, _)| task);
    let alone: Vec<TaskId> = experts.into_iter().flat_map(tasks_of).collect();
    for task in alone.into_iter().chain(stacks) {
        let Some((parent, last)) = content.tasks[task].module(content.model).rsplit_once('.') else {
            continue;
        };
        if let Some(fused) = fused_name(last) {
            of_experts.entry((parent, fused)).or_default().push(task);
        }
    }
    groups.extend(of_experts.into_values());
    for group in &mut groups {
        group.retain(shares);
        group.sort_unstable();
        group.dedup();
    }
    groups.retain(|group| group.len() > 1);
    groups.sort_unstable();
    groups
}

/// The tensors of the groups.
pub(crate) fn tensors(content: Content<'_>) -> Vec<Vec<TensorId>> {
    let tensors = |group: Vec<TaskId>| {
        let mut tensors: Vec<TensorId> = group.into_iter().map(|task| content.tasks[task].tensor()).collect();
        tensors.dedup();
        tensors
    };
    groups(content).into_iter().map(tensors).filter(|tensors| tensors.len() > 1).collect()
}
