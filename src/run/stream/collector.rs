//! Results of a pass over the weights: distortions, hashes and complaints, independent of the order of the tiles.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;
use crate::digest::checksum;
use crate::digest::checksum::Checksum;
use crate::digest::file_hash::{FileHash, HashedPiece};
use crate::ids::{ExportId, FileId, IdVec, OutputTensorId, ShardId, TaskId, TensorId};
use crate::plan::{ExportPlan, Plan};
use crate::quant::Distortion;
use crate::report::measured::{Extremes, Measured, Mismatch, NotFinite};
use crate::sync::lock;

/// Merges the distortions of a task's tiles in the order of the tiles, regardless of the order in which they arrive.
#[derive(Debug, Default)]
struct InOrder {
    next: u64,
    waiting: BTreeMap<u64, (Distortion, u64)>,
    merged: Option<Distortion>,
}

impl InOrder {
    fn add(&mut self, number: u64, distortion: Distortion, first_row: u64) {
        self.waiting.insert(number, (distortion, first_row));
        while let Some((distortion, first_row)) = self.waiting.remove(&self.next) {
            match &mut self.merged {
                Some(merged) => merged.merge(&distortion, first_row as usize),
                None => self.merged = Some(distortion),
            }
            self.next += 1;
        }
    }
}

/// Collects what workers find.
#[derive(Debug)]
pub(crate) struct Collector<'p> {
    plan: &'p Plan,
    /// What was measured of each task, from its first tile on.
    tasks: IdVec<TaskId, Mutex<Option<Box<InOrder>>>>,
    tiles_left: IdVec<TensorId, AtomicU64>,
    sources: IdVec<TensorId, Checksum>,
    outputs: IdVec<ExportId, IdVec<OutputTensorId, Checksum>>,
    hashes: Option<Hashes>,
    not_finite: Mutex<Vec<NotFinite>>,
    mismatches: Mutex<Vec<Mismatch>>,
}

/// Hashes of whole files, if the recipe asks for them.
#[derive(Debug)]
struct Hashes {
    sources: IdVec<ShardId, Mutex<FileHash>>,
    outputs: IdVec<ExportId, IdVec<FileId, Mutex<FileHash>>>,
}

impl<'p> Collector<'p> {
    pub(crate) fn new(plan: &'p Plan) -> Self {
        let mut tiles = plan.model.tensors.map(|_| 0);
        for task in plan.tasks.ids() {
            tiles[plan.tasks[task].tensor()] += crate::run::stream::tiles::Cut::of(plan, task).tiles();
        }
        let content = plan.content();
        let hash = |len: u64| Mutex::new(FileHash::new(len));
        let hashes = plan.asks_for_hashes().then(|| Hashes {
            sources: plan.model.shards.iter().map(|shard| hash(shard.len)).collect(),
            outputs: plan
                .exports
                .iter()
                .map(|export| export.files.iter().map(|file| hash(file.bytes)).collect())
                .collect(),
        });
        Self {
            plan,
            tasks: plan.tasks.map(|_| Mutex::default()),
            tiles_left: tiles.into_iter().map(AtomicU64::new).collect(),
            sources: plan.model.tensors.iter().map(|tensor| Checksum::new(tensor.bytes)).collect(),
            outputs: plan
                .exports
                .iter()
                .map(|export| {
                    export.tensors.iter().map(|tensor| Checksum::new(tensor.bytes(content))).collect()
                })
                .collect(),
            hashes,
            not_finite: Mutex::default(),
            mismatches: Mutex::default(),
        }
    }

    /// Takes note of a source file's header, if files are hashed.
    pub(crate) fn source_header(&self, shard: ShardId, header: &[u8]) {
        if let Some(hashes) = &self.hashes {
            let piece = HashedPiece::new(self.plan.model.shards[shard].len, 0, header);
            lock(&hashes.sources[shard]).add(piece);
        }
    }

    /// Takes note of stored bytes of a source tensor, from `start` on.
    pub(crate) fn source(&self, tensor: TensorId, start: u64, bytes: &[u8]) {
        self.sources[tensor].add(start, bytes);
        if let Some(hashes) = &self.hashes {
            let info = &self.plan.model.tensors[tensor];
            let piece = HashedPiece::new(self.plan.model.shards[info.shard].len, info.offset + start, bytes);
            lock(&hashes.sources[info.shard]).add(piece);
        }
    }

    /// Takes note of the headers of the outputs, if files are hashed.
    pub(crate) fn output_headers(&self) {
        let Some(hashes) = &self.hashes else { return };
        for (export, hashes) in self.plan.exports.iter().zip(&hashes.outputs) {
            for ((index, file), hash) in export.files.numbered().zip(hashes) {
                let mut at = 0;
                let add = Taking(|bytes: &[u8]| {
                    lock(hash).add(HashedPiece::new(file.bytes, at, bytes));
                    at += bytes.len() as u64;
                });
                // A hash takes everything.
                let _ = export.write_header(self.plan.content(), index, add);
            }
        }
    }

    /// Takes note of bytes of an output tensor, from `start` on.
    pub(crate) fn output(&self, export: ExportId, tensor: OutputTensorId, start: u64, bytes: &[u8]) {
        self.outputs[export][tensor].add(start, bytes);
        if let Some(hashes) = &self.hashes {
            let planned = &self.plan.exports[export].tensors[tensor];
            let len = self.plan.exports[export].files[planned.file()].bytes;
            let piece = HashedPiece::new(len, planned.offset + start, bytes);
            lock(&hashes.outputs[export][planned.file()]).add(piece);
        }
    }

    pub(crate) fn distortion(&self, task: TaskId, number: u64, distortion: Distortion, first_row: u64) {
        lock(&self.tasks[task]).get_or_insert_default().add(number, distortion, first_row);
    }

    pub(crate) fn not_finite(&self, tensor: TensorId, element: u64) {
        lock(&self.not_finite).push(NotFinite { tensor, element });
    }

    /// The first element of a tensor that is not finite.
    pub(crate) fn not_finite_of(&self, tensor: TensorId) -> Option<u64> {
        let found = lock(&self.not_finite);
        found.iter().filter(|value| value.tensor == tensor).map(|value| value.element).min()
    }

    /// Takes note of the known checksum of a tensor that is not read.
    pub(crate) fn known_source(&self, tensor: TensorId, checksum: u64) {
        self.sources[tensor].set(checksum);
    }

    /// As [`Collector::known_source`], of an output tensor.
    pub(crate) fn known_output(&self, export: ExportId, tensor: OutputTensorId, checksum: u64) {
        self.outputs[export][tensor].set(checksum);
    }

    /// Takes note of the known distortion of a task, like [`Collector::known_source`].
    pub(crate) fn known_distortion(&self, task: TaskId, distortion: Option<Distortion>) {
        *lock(&self.tasks[task]) =
            distortion.map(|merged| Box::new(InOrder { merged: Some(merged), ..InOrder::default() }));
    }

    /// The checksum of a source tensor; none while bytes of it are missing.
    pub(crate) fn source_checksum(&self, tensor: TensorId) -> Option<u64> {
        self.sources[tensor].value()
    }

    /// The checksum of an output tensor; none while bytes of it are missing.
    pub(crate) fn output_checksum(&self, export: ExportId, tensor: OutputTensorId) -> Option<u64> {
        self.outputs[export][tensor].value()
    }

    /// Whether an output tensor was not read back as it was written.
    pub(crate) fn is_mismatch(&self, export: ExportId, tensor: OutputTensorId) -> bool {
        lock(&self.mismatches).contains(&Mismatch { export, tensor })
    }

    pub(crate) fn mismatch(&self, export: ExportId, tensor: OutputTensorId) {
        lock(&self.mismatches).push(Mismatch { export, tensor });
    }

    /// Counts a tile of a source tensor as done; true for the last one.
    pub(crate) fn tile_done(&self, tensor: TensorId) -> bool {
        self.tiles_left[tensor].fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The distortion of a task so far.
    pub(crate) fn distortion_of(&self, task: TaskId) -> Option<Distortion> {
        lock(&self.tasks[task]).as_ref()?.merged
    }

    /// The distortion of each source tensor, if that is all that was collected.
    pub(crate) fn distortions(self) -> IdVec<TensorId, Option<Distortion>> {
        let tasks = self.tasks.into_iter();
        let found = tasks.map(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner)?.merged);
        by_tensor(self.plan, found).0
    }

    /// Everything that was found.
    ///
    /// `source_headers` holds the checksum of each source file's header.
    pub(crate) fn finish(self, source_headers: &IdVec<ShardId, u64>) -> Measured {
        let mut not_finite = self.not_finite.into_inner().unwrap_or_else(PoisonError::into_inner);
        not_finite.sort_unstable();
        not_finite.dedup_by_key(|value| value.tensor);
        let mut mismatches = self.mismatches.into_inner().unwrap_or_else(PoisonError::into_inner);
        mismatches.sort_unstable();
        mismatches.dedup();
        let source_crcs = source_checksums(self.plan, source_headers, &self.sources);
        let output_crcs: IdVec<ExportId, IdVec<FileId, Option<u64>>> = self
            .plan
            .exports
            .iter()
            .zip(&self.outputs)
            .map(|(export, checksums)| {
                let headers = export.files.ids().map(|file| header_checksum(self.plan, export, file));
                output_checksums(self.plan, export, headers, checksums)
            })
            .collect();
        let (source_hashes, output_hashes) = match self.hashes {
            Some(hashes) => (
                finished(hashes.sources),
                hashes.outputs.into_iter().map(finished).collect::<IdVec<ExportId, _>>(),
            ),
            None => (source_crcs.map(|_| None), output_crcs.map(|crcs| crcs.map(|_| None))),
        };
        let distortions = self
            .tasks
            .into_iter()
            .map(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner)?.merged);
        let (tensors, extremes) = by_tensor(self.plan, distortions);
        Measured {
            tensors,
            extremes,
            source_files: digests(source_crcs, source_hashes),
            output_files: output_crcs
                .into_iter()
                .zip(output_hashes)
                .map(|(crcs, hashes)| digests(crcs, hashes))
                .collect(),
            not_finite,
            mismatches,
        }
    }
}

fn digests<I>(crcs: IdVec<I, Option<u64>>, hashes: IdVec<I, Option<String>>) -> IdVec<I, Digest> {
    crcs.into_iter().zip(hashes).map(|(crc64, blake3)| Digest { crc64, blake3 }).collect()
}

/// The distortion of each source tensor, over all of its tasks, and the tasks that hold its extremes.
fn by_tensor(
    plan: &Plan,
    tasks: impl Iterator<Item = Option<Distortion>>,
) -> (IdVec<TensorId, Option<Distortion>>, IdVec<TensorId, Option<Extremes>>) {
    let mut out: IdVec<TensorId, Option<Distortion>> = plan.model.tensors.map(|_| None);
    let mut extremes = plan.model.tensors.map(|_| None);
    for ((id, task), distortion) in plan.tasks.numbered().zip(tasks) {
        let Some(distortion) = distortion else { continue };
        match (&mut out[task.tensor()], &mut extremes[task.tensor()]) {
            (Some(known), Some(Extremes { max_abs_error, worst_group })) => {
                let before = *known;
                known.merge(&distortion, 0);
                if known.max_abs_error.to_bits() != before.max_abs_error.to_bits() {
                    *max_abs_error = id;
                }
                if known.worst_group != before.worst_group {
                    *worst_group = id;
                }
            }
            (known, of) => {
                *known = Some(distortion);
                *of = Some(Extremes { max_abs_error: id, worst_group: id });
            }
        }
    }
    (out, extremes)
}

fn finished<I>(hashes: IdVec<I, Mutex<FileHash>>) -> IdVec<I, Option<String>> {
    hashes
        .into_iter()
        .map(|hash| hash.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
        .collect()
}

/// The checksum of each source file, from those of its header and its tensors.
fn source_checksums(
    plan: &Plan,
    headers: &IdVec<ShardId, u64>,
    tensors: &[Checksum],
) -> IdVec<ShardId, Option<u64>> {
    let mut out: IdVec<ShardId, (Option<u64>, u64)> =
        plan.model.shards.iter().zip(headers).map(|(shard, crc)| (Some(*crc), shard.data_start)).collect();
    // Tensors are in the order in which they lie in their files.
    for (tensor, crc) in plan.model.tensors.iter().zip(tensors) {
        let (file, end) = &mut out[tensor.shard];
        // Bytes that belong to no tensor would not be in the sum.
        let crc = crc.value().filter(|_| tensor.offset == *end);
        *file = file.zip(crc).map(|(file, crc)| checksum::joined(file, crc, tensor.bytes));
        *end += tensor.bytes;
    }
    let whole = out.into_iter().zip(&plan.model.shards);
    whole.map(|((crc, end), shard)| crc.filter(|_| end == shard.len)).collect()
}

/// The checksum of each file of an export, whose tensors are in the order of their files and offsets.
fn output_checksums(
    plan: &Plan,
    export: &ExportPlan,
    headers: impl Iterator<Item = u64>,
    crcs: &[Checksum],
) -> IdVec<FileId, Option<u64>> {
    let mut out: IdVec<FileId, Option<u64>> = headers.map(Some).collect();
    for (tensor, crc) in export.tensors.iter().zip(crcs) {
        let (file, bytes) = (&mut out[tensor.file()], tensor.bytes(plan.content()));
        *file = file.zip(crc.value()).map(|(file, crc)| checksum::joined(file, crc, bytes));
    }
    out
}

/// The checksum of what a file of an export begins with.
fn header_checksum(plan: &Plan, export: &ExportPlan, file: FileId) -> u64 {
    let mut crc = 0;
    let add = Taking(|bytes: &[u8]| crc = checksum::joined(crc, checksum::of(bytes), bytes.len() as u64));
    // A sum takes everything.
    let _ = export.write_header(plan.content(), file, add);
    crc
}

/// Gives all that is written to a closure.
struct Taking<F>(F);

impl<F: FnMut(&[u8])> Write for Taking<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
