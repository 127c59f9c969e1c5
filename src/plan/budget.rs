//! The memory budget of a run: tiles of a fixed size, one per worker, independent of the size of model or tensor.

use super::layout::ExportPlan;
use super::output_tensor::{Content, logical_bytes};
use super::statistics::Weighing;
use crate::finding::Finding;
use crate::format::source::ahead::BLOCK;
use crate::text::units::counted;

/// Source bytes of a tile, unless a row is longer. Tiles stay in a core's cache from reading to writing. Their size
/// is fixed, so that sums over tiles are the same in every run.
pub(crate) const TILE_BYTES: u64 = 1 << 20;

/// Memory of the process without tiles: code, headers, the plan of an ordinary model.
const BASE_BYTES: u64 = 24 << 20;

/// What plan, pass, record and report keep of a tensor of the model, its name aside.
const TENSOR_BYTES: usize = 2048;

/// What they keep of a task: its view and sums, and those that are taken over.
const TASK_BYTES: usize = 640;

/// What they keep of a tensor of an output: its place and sums, and those that are taken over.
const OUTPUT_BYTES: usize = 384;

/// How often they keep a name.
const NAMES: usize = 4;

/// Buffer bytes of a worker per source byte of a tile: the source, its stored form, codes with scales, the
/// dequantized weights, the same in the source's type, and some to spare.
const BYTES_PER_TILE_BYTE: u64 = 6;

/// Bytes of a remote source that are asked for or kept ahead of their readers: 25 Gbit/s at the 90 MB/s that a request of
/// a store gets need 28 blocks at a time.
const AHEAD_BYTES: u64 = 32 * BLOCK;

/// The least of them: tiles of four files are read in turn.
const LEAST_AHEAD_BYTES: u64 = 4 * BLOCK;

/// What the client keeps beside these: connections, and what is on the way through them.
const CLIENT_BYTES: u64 = 32 << 20;

/// Parts of uploads that are sent at once.
pub(crate) const PARTS_AT_ONCE: u64 = 4;

/// Bytes of a part of an upload, if that does not make too many of them.
const PART_BYTES: u64 = 8 << 20;

/// Parts of an upload that a store allows.
const MOST_PARTS: u64 = 10_000;

/// Bytes of each part of the upload of a file of so many bytes, but for the last.
pub(crate) fn part_bytes(file: u64) -> u64 {
    PART_BYTES.max(file.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// Bytes of parts that are sent to stores while weights are quantized.
fn upload_bytes(exports: &[ExportPlan]) -> u64 {
    let uploaded = exports.iter().filter(|export| export.store.is_some());
    let parts = uploaded.flat_map(|export| &export.files).map(|file| part_bytes(file.bytes).min(file.bytes));
    PARTS_AT_ONCE * parts.max().unwrap_or(0)
}

/// The memory bound of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tiles that are worked on at once.
    pub workers: usize,
    /// Source bytes of the largest tile.
    pub tile_bytes: u64,
    /// Bytes of a remote source that are asked for or kept ahead of their readers. None of a source on this machine.
    pub ahead: u64,
    /// Bound of the resident memory, in bytes.
    pub bound: u64,
}

impl Budget {
    /// Bytes of a worker's buffers.
    #[must_use]
    pub fn worker_bytes(&self) -> u64 {
        worker_bytes(self.tile_bytes)
    }
}

/// Bytes of the buffers of a worker, by those of the largest tile.
fn worker_bytes(tile_bytes: u64) -> u64 {
    (tile_bytes * BYTES_PER_TILE_BYTE).max(1)
}

/// Number of rows in a tile of a matrix: about [`TILE_BYTES`], and a multiple of the rows that the scheme packs
/// together, at least one multiple.
#[must_use]
pub(crate) fn tile_rows(columns: u64, bytes_per_weight: u64, row_multiple: u64) -> u64 {
    let rows = TILE_BYTES / (columns * bytes_per_weight).max(1);
    (rows / row_multiple * row_multiple).max(row_multiple)
}

/// Bytes per weight for the size of a tile: the larger of stored and delivered.
#[must_use]
pub(crate) fn tile_weight_bytes(stored_bits: u64, working_bits: u64) -> u64 {
    stored_bits.max(working_bits).div_ceil(8)
}

/// Memory in which not even one worker fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLittle {
    /// The least that would do.
    least: u64,
    /// What of it is held of tensors.
    held: u64,
    tensors: usize,
}

impl From<TooLittle> for Finding {
    fn from(memory: TooLittle) -> Self {
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let needs = format!("One worker needs {} MiB here", mebibytes(memory.least));
        let finding = Self::error("plan::memory", "the memory bound is too small for this model");
        match memory.held > memory.least / 2 {
            true => finding.help(format!(
                "{needs}, {} of them for what is kept of the model's {}.",
                mebibytes(memory.held),
                counted(memory.tensors, "tensor")
            )),
            false => finding.help(format!("{needs}.")),
        }
    }
}

/// What is kept of tensors, tasks and outputs until a run ends.
fn held(content: Content<'_>, exports: &[ExportPlan]) -> u64 {
    let outputs: usize = exports.iter().map(|export| export.tensors.len()).sum();
    let names: usize = content.model.tensors.iter().map(|tensor| tensor.name.len()).sum();
    let modules: usize = content.tasks.iter().filter_map(|task| task.own_module().map(str::len)).sum();
    let (tensors, tasks) = (content.model.tensors.len(), content.tasks.len());
    (tensors * TENSOR_BYTES + tasks * TASK_BYTES + outputs * OUTPUT_BYTES + NAMES * (names + modules)) as u64
}

/// The bound for as many workers as `threads`, fewer where `memory` asks for it.
///
/// # Errors
/// If not even one worker fits into `memory`.
pub(super) fn budget(
    content: Content<'_>,
    exports: &[ExportPlan],
    weighing: &Weighing,
    threads: usize,
    memory: Option<u64>,
) -> Result<Budget, TooLittle> {
    let Content { model, decisions, tasks, .. } = content;
    let mut tile_bytes = 0;
    for task in tasks {
        let tensor = &model.tensors[task.tensor()];
        let bytes = match &task.matrix(model) {
            Some(matrix) => {
                let width = tile_weight_bytes(tensor.stored.bits(), tensor.working_dtype().bits());
                let spec = decisions[task.tensor()].spec();
                let multiple = spec.map_or(1, |spec| spec.scheme.row_multiple() as u64);
                tile_rows(matrix.cols, width, multiple).min(matrix.rows) * matrix.cols * width
            }
            _ => logical_bytes(tensor).min(TILE_BYTES),
        };
        tile_bytes = tile_bytes.max(bytes);
    }
    let a_worker = worker_bytes(tile_bytes);
    let held = held(content, exports);
    let is_remote = model.source.is_remote();
    let of_remote = |bytes: u64| if is_remote { bytes } else { 0 };
    let least_ahead = of_remote(LEAST_AHEAD_BYTES);
    let uploads = upload_bytes(exports);
    let client = if is_remote || uploads > 0 { CLIENT_BYTES } else { 0 };
    let base = BASE_BYTES + weighing.bytes + held + client + least_ahead + uploads;
    let fits = memory.map_or(usize::MAX, |memory| {
        usize::try_from(memory.saturating_sub(base) / a_worker).unwrap_or(usize::MAX)
    });
    match threads.min(fits) {
        0 => Err(TooLittle { least: base + a_worker, held, tensors: model.tensors.len() }),
        workers => {
            let bound = base + a_worker * workers as u64;
            let room = memory.map_or(u64::MAX, |memory| memory.saturating_sub(bound));
            let more = of_remote(AHEAD_BYTES - LEAST_AHEAD_BYTES).min(room);
            Ok(Budget { workers, tile_bytes, ahead: least_ahead + more, bound: bound + more })
        }
    }
}
