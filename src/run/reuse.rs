//! What need not be done again: tensors that the last output or an interrupted run holds as the plan wants them.
//!
//! A tensor is taken over where its fingerprint, its source's bytes and its output's bytes are known to be the same. Bytes are
//! known by the identity of their file where nothing can have touched it since, and otherwise by their checksum, which costs
//! reading them and no more.

use std::collections::HashMap;
use std::path::PathBuf;

use super::cancel::Cancel;
use super::checksum::{self, Checksum};
use super::record::{Finished, WrittenPart};
use super::source::Source;
use super::store::{Store, Stores, Wanted};
use super::stream::Checks;
use super::tiles::Cut;
use super::workers::Workers;
use crate::export::staging::FileStart;
use crate::finding::Failure;
use crate::fs::handles::Handle;
use crate::plan::fingerprint::{self, TensorPrint};
use crate::plan::{ExportPlan, Plan};

/// Bytes that are read at once where they are summed up.
const STRETCH: u64 = 1 << 20;

/// A tensor that is taken over, for one export.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken<'s> {
    /// Index of the store.
    pub store: usize,
    pub finished: &'s Finished,
}

/// What is taken over.
#[derive(Debug)]
pub(super) struct Reuse<'s> {
    /// The fingerprints of all source tensors.
    pub prints: Vec<TensorPrint>,
    /// Of each source tensor, where all exports have it: what is taken over for each.
    pub tensors: Vec<Option<Vec<Taken<'s>>>>,
    /// How each file of each export begins.
    pub starts: Vec<Vec<FileStart>>,
}

impl<'s> Reuse<'s> {
    /// Looks for everything that can be taken over.
    ///
    /// # Errors
    /// Where the model cannot be read, or the run is cancelled.
    pub fn find(
        plan: &Plan,
        source: &Source<'_>,
        stores: &'s [Stores],
        checks: Checks,
        workers: &Workers,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        let prints = fingerprint::tensors(plan);
        let mut pieces = plan.pieces.as_slice();
        let mut tensors: Vec<Option<Vec<Taken<'s>>>> = prints
            .iter()
            .enumerate()
            .map(|(tensor, print)| {
                let count = pieces.iter().take_while(|piece| piece.tensor == tensor).count();
                let (own, rest) = pieces.split_at(count);
                pieces = rest;
                candidate(&Wanted { plan, tensor, print, pieces: own }, stores, checks)
            })
            .collect();
        check_sources(plan, source, stores, &mut tensors, workers, cancel)?;
        check_outputs(stores, &mut tensors, workers, cancel)?;
        let mut reuse = Self { prints, tensors, starts: Vec::new() };
        reuse.starts = plan
            .exports
            .iter()
            .enumerate()
            .map(|(index, export)| {
                let by_file = tensors_by_file(export);
                (0..export.files.len())
                    .map(|file| reuse.start(plan, stores, index, file, &by_file[file]))
                    .collect()
            })
            .collect();
        Ok(reuse)
    }

    /// The pieces that are still to be done.
    pub fn pieces_left(&self, plan: &Plan) -> Vec<usize> {
        (0..plan.pieces.len()).filter(|&piece| self.tensors[plan.pieces[piece].tensor].is_none()).collect()
    }

    /// How many tensors with pieces are taken over, and how many are still to be done.
    pub fn counts(&self, plan: &Plan) -> (usize, usize) {
        let mut has_pieces = vec![false; plan.model.tensors.len()];
        for piece in &plan.pieces {
            has_pieces[piece.tensor] = true;
        }
        let taken = |is_taken: bool| {
            let of = self.tensors.iter().zip(&has_pieces);
            of.filter(|(tensor, has)| **has && tensor.is_some() == is_taken).count()
        };
        (taken(true), taken(false))
    }

    /// Whether every weight file is there already, under the name that it is to have.
    pub fn is_everything(&self, plan: &Plan) -> bool {
        let is_there = |export: &ExportPlan, starts: &[FileStart]| {
            let mut files = export.files.iter().zip(starts);
            files.all(|(file, start)| *start == FileStart::Linked(export.path.join(&file.name)))
        };
        plan.exports.iter().zip(&self.starts).all(|(export, starts)| is_there(export, starts))
            && self.pieces_left(plan).iter().all(|&piece| Cut::of(plan, piece).total == 0)
    }

    /// How a file of an export begins.
    fn start(
        &self,
        plan: &Plan,
        stores: &[Stores],
        export: usize,
        file: usize,
        tensors: &[usize],
    ) -> FileStart {
        let planned = &plan.exports[export].files[file];
        if let Some(path) = self.same_file(plan, stores, export, file, tensors) {
            return FileStart::Linked(path);
        }
        let staged = stores[export].stores.iter().find(|store| store.is_staging);
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

    /// The published file that holds exactly what a file of an export is to hold.
    fn same_file(
        &self,
        plan: &Plan,
        stores: &[Stores],
        export: usize,
        file: usize,
        tensors: &[usize],
    ) -> Option<PathBuf> {
        let planned = &plan.exports[export];
        let mut same: Option<(usize, usize)> = None;
        for &tensor in tensors {
            let written = &planned.tensors[tensor];
            if written.bytes == 0 {
                continue;
            }
            let (taken, part) = self.part(export, written.tensor, tensor)?;
            let place = (taken.store, part.file);
            if stores[export].stores[taken.store].is_staging
                || *same.get_or_insert(place) != place
                || (part.offset, part.bytes) != (written.offset, written.bytes)
            {
                return None;
            }
        }
        let (store, stored) = same?;
        let header = &planned.files[file].header;
        let mut found = vec![0; header.len()];
        let holds = stores[export].stores[store].file(stored).ok()?;
        let stored = &stores[export].stores[store].files[stored];
        read_at(holds, 0, &mut found).ok()?;
        (stored.len == planned.files[file].bytes && found == *header).then(|| stored.path.clone())
    }

    /// Where an output tensor of a source tensor is taken from.
    pub fn part(&self, export: usize, source: usize, tensor: usize) -> Option<(Taken<'s>, WrittenPart)> {
        let taken = self.tensors[source].as_ref()?[export];
        let position = self.prints[source].tensors[export].iter().position(|&t| t == tensor)?;
        Some((taken, taken.finished.parts[position]))
    }
}

/// The output tensors of each file of an export.
fn tensors_by_file(export: &ExportPlan) -> Vec<Vec<usize>> {
    let mut out = vec![Vec::new(); export.files.len()];
    for (index, tensor) in export.tensors.iter().enumerate() {
        out[tensor.file].push(index);
    }
    out
}

/// What every export has of a tensor, made of the same source bytes.
fn candidate<'s>(wanted: &Wanted<'_>, stores: &'s [Stores], checks: Checks) -> Option<Vec<Taken<'s>>> {
    let mut out: Vec<Taken<'s>> = Vec::with_capacity(stores.len());
    for (export, stores) in stores.iter().enumerate() {
        let taken = stores.stores.iter().enumerate().find_map(|(store, found)| {
            found.find(wanted, export, checks).map(|finished| Taken { store, finished })
        })?;
        if out.first().is_some_and(|first| first.finished.source != taken.finished.source) {
            return None;
        }
        out.push(taken);
    }
    Some(out)
}

/// Drops tensors whose source bytes are no longer the ones that were read.
fn check_sources(
    plan: &Plan,
    source: &Source<'_>,
    stores: &[Stores],
    tensors: &mut [Option<Vec<Taken<'_>>>],
    workers: &Workers,
    cancel: &Cancel,
) -> Result<(), Failure> {
    // Whether each shard is known, to each store of each export.
    let known: Vec<Vec<Vec<bool>>> = stores
        .iter()
        .map(|stores| {
            let of =
                |store: &Store| plan.model.shards.iter().map(|shard| store.knows_source(shard)).collect();
            stores.stores.iter().map(of).collect()
        })
        .collect();
    let mut doubtful: HashMap<usize, Checksum> = HashMap::new();
    let inputs = |tensor: usize| {
        let scales = plan.model.tensors[tensor].fp8.map(|fp8| fp8.tensor);
        std::iter::once(tensor).chain(scales)
    };
    for (tensor, taken) in tensors.iter().enumerate() {
        let Some(taken) = taken else { continue };
        for input in inputs(tensor) {
            let info = &plan.model.tensors[input];
            let is_known =
                taken.iter().enumerate().any(|(export, taken)| known[export][taken.store][info.shard]);
            if !is_known {
                doubtful.entry(input).or_insert_with(|| Checksum::new(info.bytes));
            }
        }
    }
    let mut stretches: Vec<(usize, u64, u64)> = doubtful
        .keys()
        .flat_map(|&tensor| {
            let bytes = plan.model.tensors[tensor].bytes;
            (0..bytes.div_ceil(STRETCH)).map(move |n| (tensor, n * STRETCH, STRETCH.min(bytes - n * STRETCH)))
        })
        .collect();
    stretches.sort_unstable();
    workers.each_of(cancel, &stretches, |&(tensor, start, count), buffer: &mut Vec<u8>| {
        source.read_stored(tensor, start, count, buffer)?;
        doubtful[&tensor].add(start, buffer);
        Ok(())
    })?;
    for (tensor, slot) in tensors.iter_mut().enumerate() {
        let Some(taken) = slot else { continue };
        let then = taken.first().map(|taken| taken.finished.source.as_slice()).unwrap_or_default();
        let is_same = inputs(tensor).count() == then.len()
            && inputs(tensor).zip(then).all(|(input, &then)| {
                doubtful.get(&input).is_none_or(|checksum| checksum.value() == Some(then))
            });
        if !is_same {
            *slot = None;
        }
    }
    Ok(())
}

/// Drops tensors whose output bytes are not the ones that were written.
fn check_outputs(
    stores: &[Stores],
    tensors: &mut [Option<Vec<Taken<'_>>>],
    workers: &Workers,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let mut doubtful: Vec<(usize, &Store, WrittenPart)> = Vec::new();
    for (tensor, taken) in tensors.iter().enumerate() {
        for (export, taken) in taken.iter().flatten().enumerate() {
            let store = &stores[export].stores[taken.store];
            for part in taken.finished.parts.iter().filter(|part| part.bytes > 0) {
                if !store.files[part.file].is_trusted {
                    doubtful.push((tensor, store, *part));
                }
            }
        }
    }
    let damaged = std::sync::Mutex::new(Vec::new());
    workers.each_of(cancel, &doubtful, |&(tensor, store, part), buffer: &mut Vec<u8>| {
        let sum = store.file(part.file).and_then(|file| sum_up(file, part, buffer, cancel));
        if sum.ok() != Some(part.checksum) {
            super::measured::lock(&damaged).push(tensor);
        }
        cancel.check()
    })?;
    for tensor in damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        tensors[tensor] = None;
    }
    Ok(())
}

/// The checksum of a part of a file; of less, where the run is cancelled.
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
    file.with(|file| crate::model::read::read_exact_at(file, out, offset))
}
