//! Products of matrices, by the crate `matrixmultiply`. One thread each: windows are what runs in parallel.
//!
//! Measured on shapes from 256 × 256 × 256 to 512 × 2048 × 8192 with AVX2, one thread: `gemm` 34 to 37 GFLOP/s, `matrixmultiply` 32
//! to 35, `rten-gemm` 33 to 37; for the 32 rows of an expert 21, 23 and 20. `faer` and `candle-core` multiply with `gemm`, which
//! brings more crates, with one that has no maintainer (`paste`); `rten-gemm` needs a newer compiler. `matrixmultiply` needs one crate, and
//! has kernels for AVX-512 and NEON too.

#![expect(unsafe_code, reason = "products of matrices are an unsafe function of the library")]

use super::parts::Layout;

/// A matrix in memory that is read with steps: rows may be part of wider rows, and it may stand on its side.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Numbers from the first one on.
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) row_step: usize,
    /// From one column to the next.
    pub(super) column_step: usize,
}

impl<'a> View<'a> {
    /// Rows one after another.
    pub(super) fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row_step: width, column_step: 1 }
    }

    /// The same on its side.
    pub(super) fn turned(self) -> Self {
        Self { row_step: self.column_step, column_step: self.row_step, ..self }
    }

    fn reaches(self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_step + (columns - 1) * self.column_step < self.data.len()
    }
}

/// `to` [rows, columns], whose rows are `to_step` apart, becomes (or, if `adds`, is added) factor · left [rows, inner] · right
/// [inner, columns].
pub(super) fn multiply(
    (rows, inner, columns): (usize, usize, usize),
    left: View<'_>,
    right: View<'_>,
    (to, to_step): (&mut [f32], usize),
    factor: f32,
    adds: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let target = View { data: to, row_step: to_step, column_step: 1 };
    assert!(
        left.reaches(rows, inner) && right.reaches(inner, columns) && target.reaches(rows, columns),
        "sizes of a product"
    );
    let step = |step: usize| isize::try_from(step).unwrap_or(isize::MAX);
    // SAFETY: the three matrices lie within their slices, as was just checked, `to` is borrowed by nobody else, and a step is
    // never beyond the length of a slice, so that no address overflows.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            inner,
            columns,
            factor,
            left.data.as_ptr(),
            step(left.row_step),
            step(left.column_step),
            right.data.as_ptr(),
            step(right.row_step),
            step(right.column_step),
            if adds { 1.0 } else { 0.0 },
            to.as_mut_ptr(),
            step(to_step),
            1,
        );
    }
}

/// Rows times a matrix as a checkpoint has it, with its bias: [count, columns] to [count, rows].
pub(super) fn linear(
    inputs: &[f32],
    (rows, columns): (usize, usize),
    matrix: &[f32],
    layout: Layout,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let count = inputs.len() / columns.max(1);
    let mut out = match bias {
        Some(bias) => bias.repeat(count),
        None => vec![0.0; count * rows],
    };
    let right = match layout {
        Layout::OutIn => View::rows(matrix, columns).turned(),
        Layout::InOut => View::rows(matrix, rows),
    };
    multiply(
        (count, columns, rows),
        View::rows(inputs, columns),
        right,
        (&mut out, rows),
        1.0,
        bias.is_some(),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_give_the_same_products() {
        let inputs = [1.0, 2.0, 3.0, -1.0, 0.5, 4.0];
        let rows = [1.0, 0.0, 2.0, 3.0, 1.0, -1.0];
        let columns = [1.0, 3.0, 0.0, 1.0, 2.0, -1.0];
        let expected = [7.5, 2.0, 7.5, -6.5];
        assert_eq!(linear(&inputs, (2, 3), &rows, Layout::OutIn, Some(&[0.5, 0.0])), expected);
        assert_eq!(linear(&inputs, (2, 3), &columns, Layout::InOut, Some(&[0.5, 0.0])), expected);
        assert!(linear(&[], (2, 3), &rows, Layout::OutIn, None).is_empty());
    }
}
