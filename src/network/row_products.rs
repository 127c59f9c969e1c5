//! Sums of products of rows, Σ a bᵀ, over the rows of several windows.

use super::product::{View, multiply, multiply_below};

/// The least and the most rows of a strip, and what they are multiples of: tiles of products, and rows that these copy at a time.
const LEAST: usize = 48;
const MOST: usize = 480;
const TILES: usize = 24;

/// How many rows of sums are made together, of so many in all: some strips a thread, so that all threads end at about the same time.
/// The more rows of a sum are made together, the less often the right side is copied. Numbers do not depend on it.
pub(super) fn strip_height(rows: usize) -> usize {
    rows.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(TILES).clamp(LEAST, MOST)
}

/// Rows of one width, in pieces: those of several windows.
pub(super) struct Rows<'a> {
    pub(super) width: usize,
    pub(super) pieces: Vec<&'a [f32]>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(pieces: &'a [Vec<f32>], width: usize) -> Self {
        Self { width, pieces: pieces.iter().map(Vec::as_slice).collect() }
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len() / self.width.max(1)).sum()
    }
}

/// Adds Σ a bᵀ to some rows of a sum, which are as wide as `right` is: those of the columns of `left` from `start` on. Both sides
/// have as many rows in each piece.
pub(super) fn add_products(sum: &mut [f32], (left, start): (&Rows<'_>, usize), right: &Rows<'_>) {
    let width = right.width;
    for (a, b) in left.pieces.iter().zip(&right.pieces) {
        let rows = b.len() / width.max(1);
        if rows > 0 {
            let a = View { data: &a[start..], ..View::rows(a, left.width) }.turned();
            let size = (sum.len() / width, rows, width);
            multiply(size, a, View::rows(b, width), (sum, width), 1.0, true);
        }
    }
}

/// Adds Σ x xᵀ to some rows of a sum over columns of `rows`, which are `step` apart: those of the columns from `start` on, each up to
/// its own diagonal. `first` is the first column of the sum.
pub(super) fn add_squares((sum, step): (&mut [f32], usize), rows: &Rows<'_>, first: usize, start: usize) {
    let height = sum.len() / step;
    for piece in &rows.pieces {
        let count = piece.len() / rows.width.max(1);
        if count > 0 {
            let part = |from: usize| View { data: &piece[from..], ..View::rows(piece, rows.width) };
            let size = (height, count, start + height);
            multiply_below(size, part(first + start).turned(), part(first), (sum, step), 1.0, true, start);
        }
    }
}
