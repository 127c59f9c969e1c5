//! The units of work, handed out in the order of the files: some rows of one matrix, or some bytes of a tensor that is kept.

use std::ops::Range;
use std::sync::Mutex;

use crate::plan::Plan;
use crate::plan::budget::{TILE_BYTES, tile_rows, tile_weight_bytes};
use crate::plan::layout::logical_bytes;

/// A unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Index of the plan's piece.
    pub piece: usize,
    /// Its number within the piece, from 0.
    pub number: u64,
    /// The first row, or the first element where the piece is no matrix.
    pub start: u64,
    /// How many rows or elements.
    pub count: u64,
}

/// How a piece is cut into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Rows, or elements where the piece is no matrix.
    pub total: u64,
    /// Rows or elements of a tile; the last may have fewer.
    pub step: u64,
}

impl Cut {
    /// How a piece of a plan is cut. It depends on the plan alone, so that sums over tiles do.
    #[must_use]
    pub fn of(plan: &Plan, piece: usize) -> Self {
        let piece = &plan.pieces[piece];
        let tensor = &plan.model.tensors[piece.tensor];
        match &piece.matrix {
            Some(matrix) => {
                let width = tile_weight_bytes(tensor.stored.bits(), tensor.working_dtype().bits());
                let treatment = plan.decisions[piece.tensor].treatment();
                let multiple = treatment.map_or(1, |treatment| treatment.scheme.row_multiple() as u64);
                Self { total: matrix.rows, step: tile_rows(matrix.cols, width, multiple) }
            }
            // Scaled FP8 is delivered by rows, because its scales lie by rows.
            _ if tensor.fp8.is_some() => {
                let rows = tensor.shape.first().copied().unwrap_or(1);
                let columns = tensor.elements() / rows.max(1);
                Self { total: rows, step: tile_rows(columns, 2, 1) }
            }
            _ => Self { total: logical_bytes(tensor), step: TILE_BYTES },
        }
    }

    /// How many tiles there are.
    #[must_use]
    pub fn tiles(self) -> u64 {
        self.total.div_ceil(self.step.max(1))
    }
}

/// Hands out the tiles of some pieces, one after another, to any number of workers. A worker that holds one tile at a time
/// bounds memory by itself: nothing waits in a queue.
#[derive(Debug)]
pub struct Queue<'p> {
    plan: &'p Plan,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    pieces: Range<usize>,
    number: u64,
    closed: bool,
}

impl<'p> Queue<'p> {
    /// The tiles of a range of the plan's pieces.
    #[must_use]
    pub fn new(plan: &'p Plan, pieces: Range<usize>) -> Self {
        Self { plan, next: Mutex::new(Next { pieces, number: 0, closed: false }) }
    }

    /// The next tile; none when all are handed out or the queue is closed.
    pub fn next(&self) -> Option<Tile> {
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while !next.closed && next.pieces.start < next.pieces.end {
            let piece = next.pieces.start;
            let cut = Cut::of(self.plan, piece);
            let number = next.number;
            if number < cut.tiles() {
                next.number += 1;
                let start = number * cut.step;
                return Some(Tile { piece, number, start, count: cut.step.min(cut.total - start) });
            }
            next.pieces.start += 1;
            next.number = 0;
        }
        None
    }

    /// Hands out nothing more.
    pub fn close(&self) {
        self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).closed = true;
    }
}
