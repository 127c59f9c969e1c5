//! What a pass over the weights found out: distortions, hashes and complaints, independent of the order of the tiles.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file_hash::{FileHash, HashedPiece};
use crate::plan::Plan;
use crate::quant::Distortion;

/// Takes a lock whose data is whole even if another worker has panicked: the panic ends the run anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Merges the distortions of a piece's tiles in the order of the tiles, however they arrive.
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

/// A value that is not a finite number, where nothing but reading it was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotFinite {
    /// Index of the source tensor.
    pub tensor: usize,
    /// The element, counted from the tensor's first.
    pub element: u64,
}

/// A tile that was not read back as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mismatch {
    /// Index of the export.
    pub export: usize,
    /// Index of the output tensor.
    pub tensor: usize,
}

/// Collects what workers find.
#[derive(Debug)]
pub(super) struct Collector {
    pieces: Vec<Mutex<InOrder>>,
    tiles_left: Vec<Mutex<u64>>,
    sources: Vec<Mutex<FileHash>>,
    source_lens: Vec<u64>,
    outputs: Vec<Vec<Mutex<FileHash>>>,
    output_lens: Vec<Vec<u64>>,
    not_finite: Mutex<Vec<NotFinite>>,
    mismatches: Mutex<Vec<Mismatch>>,
}

/// What was found in a whole pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The distortion of each piece, where it was quantized.
    pub pieces: Vec<Option<Distortion>>,
    /// BLAKE3 of each source file.
    pub source_hashes: Vec<Option<String>>,
    /// BLAKE3 of each file of each export.
    pub output_hashes: Vec<Vec<Option<String>>>,
    /// The first value of each kept tensor that is not finite, in the order of the tensors.
    pub not_finite: Vec<NotFinite>,
    /// Output tensors that were not read back as written.
    pub mismatches: Vec<Mismatch>,
}

impl Collector {
    pub fn new(plan: &Plan) -> Self {
        let hash = |len: &u64| Mutex::new(FileHash::new(*len));
        let source_lens: Vec<u64> = plan.model.shards.iter().map(|shard| shard.len).collect();
        let output_lens: Vec<Vec<u64>> =
            plan.exports.iter().map(|export| export.files.iter().map(|file| file.bytes).collect()).collect();
        let mut tiles = vec![0; plan.model.tensors.len()];
        for piece in 0..plan.pieces.len() {
            tiles[plan.pieces[piece].tensor] += super::tiles::Cut::of(plan, piece).tiles();
        }
        Self {
            pieces: plan.pieces.iter().map(|_| Mutex::default()).collect(),
            tiles_left: tiles.into_iter().map(Mutex::new).collect(),
            sources: source_lens.iter().map(hash).collect(),
            outputs: output_lens.iter().map(|lens| lens.iter().map(hash).collect()).collect(),
            source_lens,
            output_lens,
            not_finite: Mutex::default(),
            mismatches: Mutex::default(),
        }
    }

    /// Takes note of source bytes.
    pub fn source(&self, shard: usize, offset: u64, bytes: &[u8]) {
        let piece = HashedPiece::new(self.source_lens[shard], offset, bytes);
        lock(&self.sources[shard]).add(piece);
    }

    /// Takes note of output bytes.
    pub fn output(&self, export: usize, file: usize, offset: u64, bytes: &[u8]) {
        let piece = HashedPiece::new(self.output_lens[export][file], offset, bytes);
        lock(&self.outputs[export][file]).add(piece);
    }

    pub fn distortion(&self, piece: usize, number: u64, distortion: Distortion, first_row: u64) {
        lock(&self.pieces[piece]).add(number, distortion, first_row);
    }

    pub fn not_finite(&self, tensor: usize, element: u64) {
        lock(&self.not_finite).push(NotFinite { tensor, element });
    }

    pub fn mismatch(&self, export: usize, tensor: usize) {
        lock(&self.mismatches).push(Mismatch { export, tensor });
    }

    /// Counts a tile of a source tensor as done; true for the last one.
    pub fn tile_done(&self, tensor: usize) -> bool {
        let mut left = lock(&self.tiles_left[tensor]);
        *left -= 1;
        *left == 0
    }

    /// The distortion of a piece so far.
    pub fn distortion_of(&self, piece: usize) -> Option<Distortion> {
        lock(&self.pieces[piece]).merged
    }

    pub fn finish(self) -> Measured {
        let inner =
            |mutex: Mutex<FileHash>| mutex.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
        let mut not_finite = self.not_finite.into_inner().unwrap_or_else(PoisonError::into_inner);
        not_finite.sort_unstable();
        not_finite.dedup_by_key(|value| value.tensor);
        let mut mismatches = self.mismatches.into_inner().unwrap_or_else(PoisonError::into_inner);
        mismatches.sort_unstable();
        mismatches.dedup();
        Measured {
            pieces: self
                .pieces
                .into_iter()
                .map(|piece| piece.into_inner().unwrap_or_else(PoisonError::into_inner).merged)
                .collect(),
            source_hashes: self.sources.into_iter().map(inner).collect(),
            output_hashes: self
                .outputs
                .into_iter()
                .map(|files| files.into_iter().map(inner).collect())
                .collect(),
            not_finite,
            mismatches,
        }
    }
}
