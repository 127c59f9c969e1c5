//! Triangular factors of symmetric matrices in F64: Cholesky, and the inverse of its factor.
//!
//! Both work in blocks of columns or rows; all but the blocks on the diagonal are products. Of the crates that factor
//! matrices, `faer` brings a second implementation of products and a crate without a maintainer; `nalgebra` brings ten more
//! crates and works column by column, which for thousands of columns waits for memory; others need LAPACK.

use std::ops::Range;

use rayon::prelude::*;

use crate::quant::Isa;
use crate::quant::product::{View, multiply, multiply_shared};
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// Rows and columns of a block on the diagonal.
const BLOCK: usize = 64;

/// Columns of the factor, or rows of its inverse, that are made of all before them by one product.
const PANEL: usize = 256;

/// Columns of a panel of the inverse that are made together: the unit of parallel work.
const PIECE: usize = 128;

/// Rows that are solved side by side.
const BESIDE: usize = 16;

/// The first row whose pivot is not positive: the matrix is not positive definite, as far as F64 can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotPositive(pub(super) usize);

/// Bytes that either takes beside a matrix of so many columns.
pub(super) fn bytes(columns: usize) -> u64 {
    (size_of::<f64>() * columns * (PANEL + BLOCK)) as u64
}

/// Replaces a symmetric matrix [n, n], of which the lower triangle is read, with its lower factor L: matrix = L·Lᵀ.
pub(super) fn cholesky(matrix: &mut [f64], n: usize) -> Result<(), NotPositive> {
    let (mut panel, mut block) = (Vec::new(), Vec::new());
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        let width = end - start;
        // The panel's columns, from the diagonal down, without what the factors before them account for.
        take_columns(&mut panel, &matrix[start * n..], n, start..end);
        if start > 0 {
            let done = View::rows(&matrix[start * n..], n);
            multiply_shared((n - start, start, width), done, done.turned(), (&mut panel, width), -1.0, true);
        }
        panel_of_factor(&mut panel, width, &mut block)
            .map_err(|NotPositive(row)| NotPositive(start + row))?;
        for (row, columns) in (start..n).zip(panel.chunks_exact(width)) {
            matrix[row * n + start..row * n + end].copy_from_slice(columns);
        }
        for row in start..end {
            matrix[row * n + end..(row + 1) * n].fill(0.0);
        }
    }
    Ok(())
}

/// The same of the columns of a panel, which begins at the diagonal. `block` is memory.
fn panel_of_factor(panel: &mut [f64], n: usize, block: &mut Vec<f64>) -> Result<(), NotPositive> {
    let rows = panel.len() / n;
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        let width = end - start;
        take_columns(block, &panel[start * n..], n, start..end);
        if start > 0 {
            let done = View::rows(&panel[start * n..], n);
            multiply_shared((rows - start, start, width), done, done.turned(), (block, width), -1.0, true);
        }
        let (diagonal, below) = block.split_at_mut(width * width);
        pivots(diagonal, width).map_err(|NotPositive(row)| NotPositive(start + row))?;
        let diagonal = &*diagonal;
        let isa = Isa::detect();
        below
            .par_chunks_mut(BESIDE * width)
            .for_each(|rows| isa.run(Forward { lower: diagonal, width, rows }));
        for (row, columns) in (start..rows).zip(block.chunks_exact(width)) {
            panel[row * n + start..row * n + end].copy_from_slice(columns);
        }
        for row in start..end {
            panel[row * n + row + 1..(row + 1) * n].fill(0.0);
        }
    }
    Ok(())
}

/// Some columns of rows of `n`.
fn take_columns(to: &mut Vec<f64>, rows: &[f64], n: usize, columns: Range<usize>) {
    to.clear();
    rows.chunks_exact(n).for_each(|row| to.extend_from_slice(&row[columns.clone()]));
}

/// Cholesky of a block on the diagonal, one row after another.
fn pivots(block: &mut [f64], n: usize) -> Result<(), NotPositive> {
    for row in 0..n {
        let (above, rest) = block.split_at_mut(row * n);
        let own = &mut rest[..n];
        forward_of(above, n, &mut own[..row]);
        let pivot = own[row] - own[..row].iter().map(|x| x * x).sum::<f64>();
        // A NaN is no pivot either.
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(NotPositive(row));
        }
        own[row] = pivot.sqrt();
    }
    Ok(())
}

/// Solves x·Lᵀ = row in place, L being the first rows of a lower block `width` wide.
fn forward_of(lower: &[f64], width: usize, row: &mut [f64]) {
    for column in 0..row.len() {
        let (known, rest) = row.split_at_mut(column);
        let factors = &lower[column * width..];
        let sum: f64 = known.iter().zip(factors).map(|(x, factor)| x * factor).sum();
        rest[0] = (rest[0] - sum) / factors[column];
    }
}

/// The same for some rows at once, L being a whole block: each sum in the same order. Compiled for each instruction set.
struct Forward<'a> {
    lower: &'a [f64],
    width: usize,
    /// At most [`BESIDE`].
    rows: &'a mut [f64],
}

impl Job for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { lower, width, rows } = self;
        // Column by column, so that rows are beside each other.
        let mut columns = [[0f64; BESIDE]; BLOCK];
        for (place, row) in rows.chunks_exact(width).enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, x)| column[place] = *x);
        }
        for at in 0..width {
            let (known, rest) = columns.split_at_mut(at);
            let factors = &lower[at * width..(at + 1) * width];
            let mut sums = [0f64; BESIDE];
            for (known, factor) in known.iter().zip(factors) {
                sums.iter_mut().zip(known).for_each(|(sum, x)| *sum += x * factor);
            }
            rest[0].iter_mut().zip(&sums).for_each(|(x, sum)| *x = (*x - sum) / factors[at]);
        }
        for (place, row) in rows.chunks_exact_mut(width).enumerate() {
            row.iter_mut().zip(&columns).for_each(|(x, column)| *x = column[place]);
        }
    }
}

/// Replaces a lower triangle [n, n] with a positive diagonal by its inverse, which is one as well. What is above the
/// diagonal must be 0.
pub(super) fn invert(lower: &mut [f64], n: usize) {
    let isa = Isa::detect();
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        let known = &*lower;
        // −L[panel, before] · inverse[before, before] beside the unit matrix, some columns at a time.
        let piece = |from: usize| {
            let width = PIECE.min(end - from);
            let mut rows = vec![0.0; (end - start) * width];
            if from < start {
                // Above the piece's first column the inverse is 0.
                let left = View::rows(&known[start * n + from..], n);
                let right = View::rows(&known[from * n + from..], n);
                let size = (end - start, start - from, width.min(start - from));
                multiply(size, left, right, (&mut rows, width), -1.0, false);
            }
            for column in start.max(from)..from + width {
                rows[(column - start) * width + column - from] = 1.0;
            }
            for first in (start..end).step_by(BLOCK) {
                let (above, own) = rows.split_at_mut((first - start) * width);
                let own = &mut own[..(end.min(first + BLOCK) - first) * width];
                let left = View::rows(&known[first * n + start..], n);
                let size = (own.len() / width, first - start, width);
                multiply(size, left, View::rows(above, width), (own, width), -1.0, true);
                isa.run(Solve { factors: &known[first * n + first..], n, rows: own, width });
            }
            rows
        };
        let starts: Vec<usize> = (0..end).step_by(PIECE).collect();
        let pieces: Vec<Vec<f64>> = starts.par_iter().map(|from| piece(*from)).collect();
        for (from, rows) in starts.into_iter().zip(pieces) {
            let width = PIECE.min(end - from);
            for (row, inverse) in (start..end).zip(rows.chunks_exact(width)) {
                lower[row * n + from..row * n + from + width].copy_from_slice(inverse);
            }
        }
    }
}

/// Solves L·x = rows in place for some columns, L being a block on the diagonal. Compiled for each instruction set.
struct Solve<'a> {
    /// From the block's first number on, in rows of `n`.
    factors: &'a [f64],
    n: usize,
    rows: &'a mut [f64],
    width: usize,
}

impl Job for Solve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { factors, n, rows, width } = self;
        for row in 0..rows.len() / width {
            let (above, own) = rows.split_at_mut(row * width);
            let (own, factors) = (&mut own[..width], &factors[row * n..]);
            for (above, factor) in above.chunks_exact(width).zip(factors) {
                own.iter_mut().zip(above).for_each(|(own, above)| *own -= factor * above);
            }
            let pivot = factors[row];
            own.iter_mut().for_each(|own| *own /= pivot);
        }
    }
}

/// The upper factor U of the inverse of a symmetric positive definite matrix whose rows and columns are put into an order:
/// inverse = Uᵀ·U. None if it is not positive definite.
pub(super) fn upper_of_inverse(matrix: &[f32], order: &[usize]) -> Option<Vec<f32>> {
    let n = order.len();
    // With rows and columns reversed, the upper factor of the inverse is the inverse of the lower factor, reversed.
    let mut factor = Vec::with_capacity(n * n);
    for &row in order.iter().rev() {
        factor.extend(order.iter().rev().map(|&column| f64::from(matrix[row * n + column])));
    }
    cholesky(&mut factor, n).ok()?;
    invert(&mut factor, n);
    let factor: Vec<f32> = factor.iter().rev().map(|x| *x as f32).collect();
    factor.iter().all(|x| x.is_finite()).then_some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::product::multiply;
    use crate::quant::test_weights::gaussian;

    /// A positive definite matrix.
    fn positive(n: usize) -> Vec<f64> {
        let x: Vec<f64> = gaussian(n * (n + 3), 5).into_iter().map(f64::from).collect();
        let mut out = vec![0.0; n * n];
        let view = View::rows(&x, n + 3);
        multiply((n, n + 3, n), view, view.turned(), (&mut out, n), 1.0, false);
        (0..n).for_each(|i| out[i * n + i] += 0.5);
        out
    }

    fn product(left: &[f64], right: &[f64], n: usize, turned: bool) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        let right = View::rows(right, n);
        let right = if turned { right.turned() } else { right };
        multiply((n, n, n), View::rows(left, n), right, (&mut out, n), 1.0, false);
        out
    }

    #[test]
    fn factors_multiply_to_the_matrix_and_inverses_to_one() {
        for n in [1, 2, 63, 64, 65, 200, 700] {
            let matrix = positive(n);
            let mut lower = matrix.clone();
            assert_eq!(cholesky(&mut lower, n), Ok(()));
            let again = product(&lower, &lower, n, true);
            let size = matrix.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            for (a, b) in matrix.iter().zip(&again) {
                assert!((a - b).abs() < 1e-12 * size, "{n}: {a} and {b}");
            }
            let mut inverse = lower.clone();
            invert(&mut inverse, n);
            let unit = product(&inverse, &lower, n, false);
            for (i, x) in unit.iter().enumerate() {
                let expected = f64::from(u8::from(i / n == i % n));
                assert!((x - expected).abs() < 1e-9, "{n}: {x} at {}, {}", i / n, i % n);
                assert!(i / n >= i % n || inverse[i] == 0.0);
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_is_told_with_its_row() {
        let n = 130;
        for row in [0, 70, 129] {
            for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
                let mut matrix = vec![0.0; n * n];
                (0..n).for_each(|i| matrix[i * n + i] = if i == row { bad } else { 2.0 });
                assert_eq!(cholesky(&mut matrix, n), Err(NotPositive(row)));
            }
        }
    }
}
