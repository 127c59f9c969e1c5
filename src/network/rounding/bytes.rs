//! Memory that rounding takes, for plans that are made before it.

use super::tile_rows;
use crate::network::outputs::OutputSum;
use crate::quant::product::BYTES_OF_COPIES;
use crate::quant::{Guided, Metric};

/// Matrices are rounded side by side if they take no more than this together: parts of the work of one are a single thread's.
const SIDE_BY_SIDE: u64 = 64 << 20;

/// Matrices with the same inputs, as far as memory depends on them.
#[derive(Debug, Clone)]
pub struct StageSize<'a> {
    /// Inputs.
    pub columns: usize,
    /// Outputs of each matrix.
    pub rows: &'a [usize],
    /// Whether there are cross moments of the inputs ([`crate::network::Compared::has_cross`]).
    pub has_cross: bool,
    /// Whether there are moments of the stream, or of the outputs ([`crate::network::Compared::has_residual`]).
    pub has_residual: bool,
    /// Columns that share a scale.
    pub group: usize,
    /// Outputs of a block of the gradients' moments, if there are any.
    pub block: Option<usize>,
    /// Threads that round.
    pub threads: usize,
}

impl StageSize<'_> {
    /// Bytes of the sums over the windows, beside the windows at work.
    #[must_use]
    pub fn bytes_of_sums(&self) -> u64 {
        let square = (self.columns * self.columns) as u64;
        8 * square + self.bytes_of_differences()
    }

    /// Bytes that [`super::round_stage`] holds at most, its moments and its results among them.
    ///
    /// The target needs a factor in F64 beside all moments, the metric then one beside the squares and its own in F32;
    /// after that each matrix is rounded beside the metric and what was made of those before.
    #[must_use]
    pub fn bytes_of_rounding(&self) -> u64 {
        let square = (self.columns * self.columns) as u64;
        let weights = |rows: usize| (rows * self.columns) as u64;
        let targets = 4 * self.rows.iter().map(|rows| weights(*rows)).sum::<u64>();
        let threads = self.threads.max(1) as u64;
        let tiles = self.rows.iter().map(|rows| self.weights_at_work(*rows)).max().unwrap_or(0);
        let correcting = if self.has_cross || self.has_residual {
            12 * square + self.bytes_of_differences() + (28 * tiles).max(Metric::bytes(self.columns))
        } else {
            0
        };
        let factoring = 16 * square + Metric::bytes(self.columns);
        // Codes, and weights as engines see them.
        let results = 5 * self.rows.iter().map(|rows| weights(*rows)).sum::<u64>();
        let solving = || self.rows.iter().map(|rows| self.bytes_of_solving(*rows));
        // One after another, or side by side.
        let solving = solving().max().unwrap_or(0).max(solving().sum::<u64>().min(SIDE_BY_SIDE));
        let solving = 8 * square + results + solving;
        targets + correcting.max(factoring).max(solving) + threads * BYTES_OF_COPIES
    }

    /// Whether the matrices are rounded side by side: what each of them needs beside the others is little.
    pub(super) fn is_side_by_side(&self) -> bool {
        self.rows.iter().map(|rows| self.bytes_of_solving(*rows)).sum::<u64>() <= SIDE_BY_SIDE
    }

    /// Weights of the tiles of a matrix that all threads work on at once.
    fn weights_at_work(&self, rows: usize) -> u64 {
        let threads = self.threads.max(1);
        ((tile_rows(rows, threads) * threads).min(rows) * self.columns) as u64
    }

    /// Bytes that rounding a matrix of so many outputs takes beside the metric, its target and its results.
    fn bytes_of_solving(&self, rows: usize) -> u64 {
        let weights = |rows: usize| (rows * self.columns) as u64;
        match self.block {
            None => 28 * self.weights_at_work(rows) + 2 * weights(rows),
            Some(block) => {
                let (block, own) = (block.min(rows), OutputSum::bytes_of(rows, block));
                // The mean of the moments, once more damped, and the block at work.
                2 * own + Guided::bytes(self.columns, self.group, block)
            }
        }
    }

    fn bytes_of_differences(&self) -> u64 {
        let square = (self.columns * self.columns) as u64;
        let residual = self.rows.iter().map(|rows| rows * self.columns).sum::<usize>() as u64;
        4 * (if self.has_cross { square } else { 0 } + if self.has_residual { residual } else { 0 })
    }
}
