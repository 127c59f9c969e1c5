//! The parts of a run on several machines: output files, dealt out.
//!
//! Parts need not talk to each other. The same plan gives the same parts everywhere, and what is made of a file does not
//! depend on which part makes it, so that their number may change between two tries.

use std::cmp::Reverse;

use super::{Plan, shared_scales};
use crate::ids::{ExportId, FileId, IdVec, TaskId, TensorId};

/// One of several parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// Output files that are made together, since a source tensor has a place in each of them: usually one file of each export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The files.
    pub files: Vec<(ExportId, FileId)>,
    /// The source tensors that they are made of.
    pub tensors: Vec<TensorId>,
    /// Bytes that are read and written.
    pub bytes: u64,
}

impl Unit {
    /// The name of its first file.
    #[must_use]
    pub fn name<'p>(&self, plan: &'p Plan) -> &'p str {
        self.files.first().map_or("", |&(export, file)| &plan.exports[export].files[file].name)
    }
}

/// The units of a plan, in the order of their first files. Files without tensors are in none.
#[must_use]
pub fn units(plan: &Plan) -> Vec<Unit> {
    let mut files: Vec<(ExportId, FileId)> = Vec::new();
    let mut firsts: IdVec<ExportId, usize> = IdVec::new();
    for (export, planned) in plan.exports.numbered() {
        firsts.push(files.len());
        files.extend(planned.files.ids().map(|file| (export, file)));
    }
    let mut groups = Groups::of(files.len());
    let mut of_tensor: IdVec<TensorId, Option<usize>> = plan.model.tensors.map(|_| None);
    for task in plan.tasks.ids() {
        for file in files_of(plan, &firsts, task) {
            let of_tensor = &mut of_tensor[plan.tasks[task].tensor()];
            groups.join(file, *of_tensor.get_or_insert(file));
        }
    }
    // What shares a scale is looked at together.
    for group in shared_scales::tensors(plan.content()) {
        let files: Vec<usize> = group.iter().filter_map(|tensor| of_tensor[*tensor]).collect();
        files.windows(2).for_each(|pair| groups.join(pair[0], pair[1]));
    }
    let mut units: Vec<Option<Unit>> = vec![None; files.len()];
    for (tensor, file) in of_tensor.numbered() {
        let Some(file) = file else { continue };
        let empty = || Unit { files: Vec::new(), tensors: Vec::new(), bytes: 0 };
        let unit = units[groups.first(*file)].get_or_insert_with(empty);
        unit.tensors.push(tensor);
        unit.bytes += plan.model.parts_of(tensor).map(|input| plan.model.tensors[input].bytes).sum::<u64>();
    }
    for (number, &(export, file)) in files.iter().enumerate() {
        if let Some(unit) = &mut units[groups.first(number)] {
            unit.files.push((export, file));
            unit.bytes += plan.exports[export].files[file].bytes;
        }
    }
    units.into_iter().flatten().collect()
}

/// The numbers of the files that a task writes to.
fn files_of<'a>(
    plan: &'a Plan,
    firsts: &'a IdVec<ExportId, usize>,
    task: TaskId,
) -> impl Iterator<Item = usize> + 'a {
    plan.exports.numbered().flat_map(move |(export, planned)| {
        let tensors = planned.tasks[task].tensors();
        tensors.map(move |tensor| firsts[export] + planned.tensors[tensor].file().index())
    })
}

/// Numbers in groups, each named by its first.
struct Groups(Vec<usize>);

impl Groups {
    fn of(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn first(&mut self, mut number: usize) -> usize {
        while self.0[number] != number {
            self.0[number] = self.0[self.0[number]];
            number = self.0[number];
        }
        number
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.first(one), self.first(other));
        self.0[one.max(other)] = one.min(other);
    }
}

/// Deals units out to `count` parts, by their places in the list: the largest first, each to the part that has least to do.
#[must_use]
pub fn deal(units: &[Unit], count: usize) -> Vec<Vec<usize>> {
    let mut parts: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); count.max(1)];
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_key(|&unit| (Reverse(units[unit].bytes), unit));
    for unit in order {
        let Some(least) = parts.iter_mut().min_by_key(|(bytes, _)| *bytes) else { break };
        least.0 += units[unit].bytes;
        least.1.push(unit);
    }
    parts.into_iter().map(|(_, units)| units).collect()
}

/// The share of each of so many parts: its output files, and the bytes that it reads and writes.
#[must_use]
pub fn shares(plan: &Plan, count: usize) -> Vec<(usize, u64)> {
    let units = units(plan);
    let share = |part: Vec<usize>| {
        let of = || part.iter().map(|&unit| &units[unit]);
        (of().map(|unit| unit.files.len()).sum(), of().map(|unit| unit.bytes).sum())
    };
    deal(&units, count).into_iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(bytes: u64) -> Unit {
        Unit { files: Vec::new(), tensors: Vec::new(), bytes }
    }

    #[test]
    fn each_unit_is_dealt_once_and_the_largest_first() {
        let units: Vec<Unit> = [3, 9, 4, 4, 1].map(unit).to_vec();
        assert_eq!(deal(&units, 2), [vec![1, 4], vec![2, 3, 0]]);
        assert_eq!(deal(&units, 1), [vec![1, 2, 3, 0, 4]]);
        for count in 1..9 {
            let mut all: Vec<usize> = deal(&units, count).concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4]);
            assert_eq!(deal(&units, count).len(), count);
        }
        assert_eq!(deal(&[], 3), vec![Vec::<usize>::new(); 3]);
    }

    #[test]
    fn groups_are_named_by_their_first_number() {
        let mut groups = Groups::of(6);
        groups.join(5, 3);
        groups.join(1, 2);
        groups.join(3, 2);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|number| groups.first(number)), [0, 1, 1, 1, 4, 1]);
    }
}
