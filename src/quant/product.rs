//! Products of matrices, by the crate `matrixmultiply`. [`multiply`] is one thread's: rows and windows are what runs in
//! parallel. [`multiply_shared`] is for a matrix that is alone.
//!
//! Measured on shapes from 256 × 256 × 256 to 512 × 2048 × 8192 with AVX2, one thread, in F32: `gemm` 34 to 37 GFLOP/s,
//! `matrixmultiply` 32 to 35, `rten-gemm` 33 to 37; for the 32 rows of an expert 21, 23 and 20. `faer` and
//! `candle-core` multiply with `gemm`, which needs `paste`, a crate without a maintainer; `rten-gemm` needs a newer
//! compiler. `matrixmultiply` needs one crate, and has kernels for AVX-512 and NEON too.
//!
//! Sums have an order that depends on the sizes and on the instruction set, and on nothing else.

#![expect(unsafe_code, reason = "products of matrices are an unsafe function of the library")]

use rayon::prelude::*;

/// The library's product of one type of numbers.
type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    T,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    *mut T,
    isize,
    isize,
);

/// Numbers that matrices are made of: F32 or F64.
pub(crate) trait Number: Copy + Send + Sync + std::ops::Add<Output = Self> {
    /// 0 and 1.
    const UNITS: [Self; 2];
    /// factor · left · right + share · to.
    const PRODUCT: Kernel<Self>;
}

impl Number for f32 {
    const UNITS: [Self; 2] = [0.0, 1.0];
    const PRODUCT: Kernel<Self> = matrixmultiply::sgemm;
}

impl Number for f64 {
    const UNITS: [Self; 2] = [0.0, 1.0];
    const PRODUCT: Kernel<Self> = matrixmultiply::dgemm;
}

/// A matrix in memory that is read with steps: rows may be part of wider rows, and it may stand on its side.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T = f32> {
    /// Numbers from the first one on.
    pub(crate) data: &'a [T],
    /// From one row to the next.
    pub(crate) row_step: usize,
    /// From one column to the next.
    pub(crate) column_step: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows one after another.
    pub(crate) fn rows(data: &'a [T], width: usize) -> Self {
        Self { data, row_step: width, column_step: 1 }
    }

    /// The same on its side.
    pub(crate) fn turned(self) -> Self {
        Self { row_step: self.column_step, column_step: self.row_step, ..self }
    }

    fn reaches(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_step + (columns - 1) * self.column_step < self.data.len()
    }
}

/// `to` [rows, columns], whose rows are `to_step` apart, becomes (or, if `adds`, is added) factor · left [rows, inner] ·
/// right [inner, columns].
pub(crate) fn multiply<T: Number>(
    (rows, inner, columns): (usize, usize, usize),
    left: View<'_, T>,
    right: View<'_, T>,
    (to, to_step): (&mut [T], usize),
    factor: T,
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
        T::PRODUCT(
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
            T::UNITS[usize::from(adds)],
            to.as_mut_ptr(),
            step(to_step),
            1,
        );
    }
}

/// Numbers that a shared product makes in one thread at least: less is not worth another.
const SHARE: usize = 1 << 21;

/// [`multiply`], shared out among the threads of the pool that this is called in. How it is cut depends on the sizes alone, so
/// that results do not depend on the number of threads.
pub(crate) fn multiply_shared<T: Number>(
    (rows, inner, columns): (usize, usize, usize),
    left: View<'_, T>,
    right: View<'_, T>,
    (to, to_step): (&mut [T], usize),
    factor: T,
    adds: bool,
) {
    let work = rows * columns * inner.max(1);
    let parts = (work / SHARE).min(8);
    if parts < 2 {
        multiply((rows, inner, columns), left, right, (to, to_step), factor, adds);
    } else if rows >= columns {
        let height = rows.div_ceil(parts).next_multiple_of(16);
        to.par_chunks_mut(height * to_step).take(rows.div_ceil(height)).enumerate().for_each(|(part, to)| {
            let start = part * height;
            let left = View { data: &left.data[start * left.row_step..], ..left };
            multiply((height.min(rows - start), inner, columns), left, right, (to, to_step), factor, adds);
        });
    } else {
        // Columns of a row are not apart in memory, so that parts are made beside each other and put in place.
        let width = columns.div_ceil(parts).next_multiple_of(16);
        let starts: Vec<usize> = (0..columns).step_by(width).collect();
        let part = |start: &usize| {
            let width = width.min(columns - start);
            let right = View { data: &right.data[start * right.column_step..], ..right };
            let mut out = vec![T::UNITS[0]; rows * width];
            multiply((rows, inner, width), left, right, (&mut out, width), factor, false);
            out
        };
        let made: Vec<Vec<T>> = starts.par_iter().map(part).collect();
        for (start, part) in starts.into_iter().zip(made) {
            let width = width.min(columns - start);
            for (to, part) in to.chunks_mut(to_step).zip(part.chunks_exact(width)) {
                let to = &mut to[start..start + width];
                if adds {
                    to.iter_mut().zip(part).for_each(|(to, x)| *to = *to + *x);
                } else {
                    to.copy_from_slice(part);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_may_be_turned_and_products_added() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let (left, right) = (View::rows(&a, 2), View::rows(&b, 2));
        let mut out = [0.0f64; 4];
        multiply((2, 2, 2), left, right, (&mut out, 2), 1.0, false);
        assert_eq!(out, [19.0, 22.0, 43.0, 50.0]);
        multiply((2, 2, 2), left, right.turned(), (&mut out, 2), -1.0, true);
        assert_eq!(out, [2.0, -1.0, 4.0, -3.0]);
    }

    #[test]
    fn shared_products_are_those_of_one_thread() {
        let numbers = crate::quant::test_weights::gaussian(300 * 700, 1);
        for (rows, inner, columns) in [(300, 130, 70), (60, 200, 500), (1, 5, 3), (200, 100, 200)] {
            let left = View::rows(&numbers, inner + 3);
            let right = View::rows(&numbers[7..], inner + 1).turned();
            for adds in [false, true] {
                let [mut expected, mut found] = [(); 2].map(|()| vec![0.5f32; rows * (columns + 2)]);
                let to = columns + 2;
                multiply((rows, inner, columns), left, right, (&mut expected, to), -2.0, adds);
                multiply_shared((rows, inner, columns), left, right, (&mut found, to), -2.0, adds);
                for (a, b) in expected.iter().zip(&found) {
                    assert!((a - b).abs() < 1e-3, "{rows}, {columns}: {a} and {b}");
                }
                // Nothing between the rows is touched.
                assert!(found.chunks(to).all(|row| row[columns..] == [0.5; 2]));
            }
        }
    }
}
