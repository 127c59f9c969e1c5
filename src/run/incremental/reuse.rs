//! Reuse of finished work: tensors that the last output or an interrupted run holds as the plan wants them.
//!
//! A tensor is reused if its fingerprint, its source's bytes and its output's bytes are known to be the same. Bytes
//! are known by the identity of their file if nothing can have changed it since. Otherwise they are known by their
//! checksum, which costs reading them and no more.

use std::collections::HashMap;
use std::io::Seek;

use crate::cancel::Cancel;
use crate::digest::checksum;
use crate::digest::checksum::Checksum;
use crate::finding::Failure;
use crate::fs::handles::Handle;
use crate::fs::regular::Same;
use crate::ids::{ExportId, FileId, IdVec, OutputTensorId, ShardId, TaskId, TensorId, each};
use crate::plan::Checks;
use crate::plan::fingerprint::Prints;
use crate::plan::{ExportPlan, Plan, shared_scales};
use crate::publish::staging::FileStart;
use crate::run::incremental::previous::{Store, Stores, Wanted};
use crate::run::incremental::record::{Finished, WrittenFile, WrittenPart};
use crate::run::stream::tiles::Cut;
use crate::run::stream::weights::Weights;
use crate::run::workers::Workers;

/// The number of bytes that are read at once for a checksum.
const STRETCH: u64 = 1 << 20;

/// A tensor that is reused, for one export.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<'s> {
    /// Index of the store.
    pub store: usize,
    pub finished: &'s Finished,
}

/// The source tensors that are taken over.
#[derive(Debug)]
pub(crate) struct Tensors<'s> {
    exports: usize,
    is_taken: IdVec<TensorId, bool>,
    /// For each tensor and export.
    taken: Vec<Option<Taken<'s>>>,
}

impl<'s> Tensors<'s> {
    /// What is taken over of a tensor for each export; none if it is to be done again.
    pub(crate) fn get(&self, tensor: TensorId) -> Option<impl Iterator<Item = Taken<'s>> + '_> {
        let of = &self.taken[tensor.index() * self.exports..][..self.exports];
        self.is_taken[tensor].then(|| of.iter().copied().flatten())
    }

    /// What is taken over of a tensor for one export.
    pub(crate) fn of(&self, tensor: TensorId, export: ExportId) -> Option<Taken<'s>> {
        self.is_taken[tensor].then(|| self.taken[tensor.index() * self.exports + export.index()])?
    }

    /// Whether a tensor is taken over.
    pub(crate) fn is_taken(&self, tensor: TensorId) -> bool {
        self.is_taken[tensor]
    }

    /// How many are taken over.
    pub(crate) fn count(&self) -> usize {
        self.is_taken.iter().filter(|is_taken| **is_taken).count()
    }
}

/// Everything that is reused.
#[derive(Debug)]
pub(crate) struct Reuse<'s> {
    /// The fingerprints of all source tensors.
    pub prints: Prints,
    /// What earlier runs left of each export.
    pub stores: &'s IdVec<ExportId, Stores>,
    /// What is taken over of the source tensors.
    pub tensors: Tensors<'s>,
    /// The start of each file of each export.
    pub starts: IdVec<ExportId, IdVec<FileId, FileStart>>,
}

/// What is looked for.
pub(crate) struct Search<'a> {
    pub plan: &'a Plan,
    pub source: &'a Weights<'a>,
    pub checks: Checks,
    pub workers: &'a Workers,
    /// Whether a tensor is wanted.
    pub is_wanted: &'a dyn Fn(TensorId) -> bool,
}

impl<'s> Reuse<'s> {
    /// Looks for everything that can be reused.
    ///
    /// # Errors
    /// If the model cannot be read, or the run is cancelled.
    pub(crate) fn find(
        search: &Search<'_>,
        prints: Prints,
        stores: &'s IdVec<ExportId, Stores>,
    ) -> Result<Self, Failure> {
        let Search { plan, source, checks, workers, is_wanted } = *search;
        let mut tensors = Tensors { exports: stores.len(), is_taken: IdVec::new(), taken: Vec::new() };
        for tensor in plan.model.tensors.ids() {
            let wanted = Wanted { plan, tensor, prints: &prints };
            let taken = candidates(&wanted, stores, checks);
            tensors.taken.extend(taken);
            let taken = &tensors.taken[tensor.index() * tensors.exports..];
            // All exports have it, made of the same source bytes.
            let source = |taken: &Option<Taken<'s>>| taken.map(|taken| &taken.finished.source);
            let first = taken.first().and_then(source);
            let is_taken =
                is_wanted(tensor) && taken.iter().all(|taken| taken.is_some() && source(taken) == first);
            tensors.is_taken.push(is_taken);
        }
        check_sources(plan, source, stores, &mut tensors, workers)?;
        check_outputs(stores, &mut tensors, workers)?;
        drop_torn(plan, stores, &mut tensors);
        let mut reuse = Self { prints, stores, tensors, starts: IdVec::new() };
        reuse.starts = plan
            .exports
            .numbered()
            .map(|(index, export)| export.files.ids().map(|file| reuse.start(plan, index, file)).collect())
            .collect();
        Ok(reuse)
    }

    /// The tasks that are still to be done.
    pub(crate) fn tasks_left(&self, plan: &Plan) -> Vec<TaskId> {
        let is_left = |task: &TaskId| !self.tensors.is_taken(plan.tasks[*task].tensor());
        plan.tasks.ids().filter(is_left).collect()
    }

    /// How many tensors with tasks are reused, and how many are still to be done.
    pub(crate) fn counts(&self, plan: &Plan) -> (usize, usize) {
        let mut has_tasks = plan.model.tensors.map(|_| false);
        for task in &plan.tasks {
            has_tasks[task.tensor()] = true;
        }
        let taken = |is_taken: bool| {
            let of = self.tensors.is_taken.iter().zip(&has_tasks);
            of.filter(|(known, has)| **has && **known == is_taken).count()
        };
        (taken(true), taken(false))
    }

    /// Whether every weight file is there already, under its planned name.
    pub(crate) fn is_everything(&self, plan: &Plan) -> bool {
        let is_there = |export: &ExportPlan, starts: &[FileStart]| {
            let mut files = export.files.iter().zip(starts);
            files.all(|(file, start)| *start == FileStart::Linked(export.path.join(&file.name)))
        };
        plan.exports.iter().zip(&self.starts).all(|(export, starts)| is_there(export, starts))
            && self.tasks_left(plan).iter().all(|&task| Cut::of(plan, task).total == 0)
    }

    /// The start of a file of an export.
    fn start(&self, plan: &Plan, export: ExportId, file: FileId) -> FileStart {
        let planned = &plan.exports[export].files[file];
        if let Some(start) = self.same_file(plan, export, file) {
            return start;
        }
        let staged = self.stores[export].stores.iter().find(|store| store.is_staging);
        match staged.and_then(|store| store.files.get(file)) {
            // A folder within the staging folder is cleared with all that is in it.
            Some(stored)
                if stored.len == planned.bytes && !stored.is_shared && !planned.name.contains('/') =>
            {
                FileStart::Kept
            }
            _ => FileStart::New,
        }
    }

    /// The start of a file that is there with exactly the planned content: published, made by a part, or uploaded.
    fn same_file(&self, plan: &Plan, export: ExportId, file: FileId) -> Option<FileStart> {
        let (planned, content) = (&plan.exports[export], plan.content());
        let mut same: Option<(usize, FileId)> = None;
        for tensor in each(planned.files[file].tensors.clone()) {
            let written = &planned.tensors[tensor];
            let bytes = written.bytes(content);
            if bytes == 0 {
                continue;
            }
            let (taken, part) = self.part(plan, export, tensor)?;
            let place = (taken.store, part.file);
            if self.stores[export].stores[taken.store].is_staging
                || *same.get_or_insert(place) != place
                || (part.offset, part.bytes) != (written.offset, bytes)
            {
                return None;
            }
        }
        let (store, stored) = same?;
        if self.stores[export].stores[store].files[stored].is_uploaded {
            return Some(FileStart::Elsewhere);
        }
        let holds = self.stores[export].stores[store].file(stored).ok()?;
        let stored = &self.stores[export].stores[store].files[stored];
        let has_header = || {
            holds.with(|mut opened| {
                opened.rewind()?;
                planned.write_header(content, file, Same::new(opened))
            })
        };
        let is_same = stored.len == planned.files[file].bytes && has_header().is_ok();
        is_same.then(|| FileStart::Linked(stored.path.clone()))
    }

    /// Takes nothing over of these tensors that is uploaded: it cannot be read, for files that are made anew.
    pub(crate) fn leave_uploaded(&mut self, tensors: &[TensorId]) {
        for &tensor in tensors {
            let taken = self.stores.numbered().filter_map(|(export, stores)| {
                let taken = self.tensors.of(tensor, export)?;
                Some(stores.stores[taken.store].files.iter().any(|file| file.is_uploaded))
            });
            let is_uploaded = taken.into_iter().any(|is_uploaded| is_uploaded);
            self.tensors.is_taken[tensor] &= !is_uploaded;
        }
    }

    /// What is known of a file that is uploaded.
    pub(crate) fn uploaded(&self, export: ExportId, file: FileId) -> Option<&WrittenFile> {
        let is_elsewhere = self.starts[export][file] == FileStart::Elsewhere;
        let mut stores = self.stores[export].stores.iter().filter(|_| is_elsewhere);
        stores.find_map(|store| store.uploaded(file))
    }

    /// Where an output tensor is taken from.
    pub(crate) fn part(
        &self,
        plan: &Plan,
        export: ExportId,
        output: OutputTensorId,
    ) -> Option<(Taken<'s>, WrittenPart)> {
        let planned = &plan.exports[export];
        let taken = self.tensors.of(planned.tensors[output].tensor(plan.content()), export)?;
        let part = taken.finished.parts.get(planned.position_of(plan, output)?)?;
        Some((taken, *part))
    }
}

/// What each export has of a tensor.
fn candidates<'a, 's: 'a>(
    wanted: &'a Wanted<'_>,
    stores: &'s IdVec<ExportId, Stores>,
    checks: Checks,
) -> impl Iterator<Item = Option<Taken<'s>>> + 'a {
    stores.numbered().map(move |(export, stores)| {
        stores.stores.iter().enumerate().find_map(|(store, found)| {
            found.find(wanted, export, checks).map(|finished| Taken { store, finished })
        })
    })
}

/// Drops tensors whose source bytes are no longer the ones that were read.
fn check_sources(
    plan: &Plan,
    source: &Weights<'_>,
    stores: &IdVec<ExportId, Stores>,
    tensors: &mut Tensors<'_>,
    workers: &Workers,
) -> Result<(), Failure> {
    // Whether each store of each export knows each shard.
    let known: IdVec<ExportId, Vec<IdVec<ShardId, bool>>> = stores
        .iter()
        .map(|stores| {
            let of =
                |store: &Store| plan.model.shards.iter().map(|shard| store.knows_source(shard)).collect();
            stores.stores.iter().map(of).collect()
        })
        .collect();
    let mut doubtful: HashMap<TensorId, Checksum> = HashMap::new();
    for tensor in tensors.is_taken.ids() {
        for input in plan.model.parts_of(tensor) {
            let Some(taken) = tensors.get(tensor) else { continue };
            let info = &plan.model.tensors[input];
            let is_known =
                plan.exports.ids().zip(taken).any(|(export, taken)| known[export][taken.store][info.shard]);
            if !is_known {
                doubtful.entry(input).or_insert_with(|| Checksum::new(info.bytes));
            }
        }
    }
    let mut stretches: Vec<(TensorId, u64, u64)> = doubtful
        .keys()
        .flat_map(|&tensor| {
            let bytes = plan.model.tensors[tensor].bytes;
            (0..bytes.div_ceil(STRETCH)).map(move |n| (tensor, n * STRETCH, STRETCH.min(bytes - n * STRETCH)))
        })
        .collect();
    stretches.sort_unstable();
    workers.each_of(&stretches, |&(tensor, start, count), buffer: &mut Vec<u8>| {
        source.read_stored(tensor, start, count, buffer)?;
        doubtful[&tensor].add(start, buffer);
        Ok(())
    })?;
    for tensor in tensors.is_taken.ids() {
        let Some(mut taken) = tensors.get(tensor) else { continue };
        let then = taken.next().map(|taken| &*taken.finished.source).unwrap_or_default();
        let is_same = plan.model.parts_of(tensor).count() == then.len()
            && plan.model.parts_of(tensor).zip(then).all(|(input, &then)| {
                doubtful.get(&input).is_none_or(|checksum| checksum.value() == Some(then))
            });
        drop(taken);
        if !is_same {
            tensors.is_taken[tensor] = false;
        }
    }
    Ok(())
}

/// Drops tensors whose output bytes are not the ones that were written.
fn check_outputs(
    stores: &IdVec<ExportId, Stores>,
    tensors: &mut Tensors<'_>,
    workers: &Workers,
) -> Result<(), Failure> {
    let mut doubtful: Vec<(TensorId, &Store, WrittenPart)> = Vec::new();
    for tensor in tensors.is_taken.ids() {
        for (export, taken) in stores.ids().zip(tensors.get(tensor).into_iter().flatten()) {
            let store = &stores[export].stores[taken.store];
            for part in taken.finished.parts.iter().filter(|part| part.bytes > 0) {
                if !store.files[part.file].is_trusted {
                    doubtful.push((tensor, store, *part));
                }
            }
        }
    }
    let damaged = std::sync::Mutex::new(Vec::new());
    workers.each_of(&doubtful, |&(tensor, store, part), buffer: &mut Vec<u8>| {
        let sum = store.file(part.file).and_then(|file| sum_up(file, part, buffer, workers.cancel()));
        if sum.ok() != Some(part.checksum) {
            crate::sync::lock(&damaged).push(tensor);
        }
        workers.cancel().check()
    })?;
    for tensor in damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        tensors.is_taken[tensor] = false;
    }
    Ok(())
}

/// Drops tensors that share a scale with one that is made anew: it may be another by then. So it may be if only one of them is of a
/// run that was interrupted.
fn drop_torn(plan: &Plan, stores: &IdVec<ExportId, Stores>, tensors: &mut Tensors<'_>) {
    for group in shared_scales::tensors(plan.content()) {
        let is_whole = stores.numbered().all(|(export, stores)| {
            let run = |tensor: &TensorId| {
                let taken = tensors.of(*tensor, export)?;
                Some(stores.stores[taken.store].is_staging)
            };
            let first = group.first().and_then(run);
            first.is_some() && group.iter().all(|tensor| run(tensor) == first)
        });
        if !is_whole {
            group.iter().for_each(|tensor| tensors.is_taken[*tensor] = false);
        }
    }
}

/// The checksum of a part of a file; of less of it, if the run is cancelled.
fn sum_up(file: &Handle, part: WrittenPart, buffer: &mut Vec<u8>, cancel: &Cancel) -> std::io::Result<u64> {
    let (mut crc, mut start) = (0, 0);
    while start < part.bytes && !cancel.is_cancelled() {
        let count = STRETCH.min(part.bytes - start);
        buffer.resize(count as usize, 0);
        read_at(file, part.offset + start, buffer)?;
        crc = checksum::joined(crc, checksum::of(buffer), count);
        start += count;
    }
    Ok(crc)
}

fn read_at(file: &Handle, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
    file.with(|file| crate::fs::positioned::read_exact_at(file, out, offset))
}
