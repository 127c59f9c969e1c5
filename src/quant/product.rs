//! Products of matrices. [`multiply`] is one thread's: rows and windows are what runs in parallel. [`multiply_shared`] is
//! for a matrix that is alone.
//!
//! Both sides are copied into panels that a tile of the product reads one after another, and a tile is summed in registers
//! (Goto and van de Geijn, ACM Trans. Math. Softw. 34, 2008).
//!
//! A number is the sum of its products in their order, in blocks of [`INNER`], each in one lane. It depends on its own row and
//! column alone: not on the other rows and columns of the product, and so on no cut into parts; nor on the instruction set, as
//! long as that has a fused multiply-add.

use rayon::prelude::*;

use crate::quant::Isa;
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

mod copies;
mod number;
mod tile;
mod view;

pub(crate) use number::Number;
pub(crate) use view::View;

use copies::{copy_left, copy_right};
use tile::Tile;

/// Products that are summed in registers: what is added to a number at a time.
const INNER: usize = 256;

/// Rows of the left side that are copied at a time.
const HIGH: usize = 480;

/// Bytes of each row of the right side that are copied at a time: with [`INNER`] of them, half of a second cache.
const WIDE: usize = 2048;

/// Bytes of the copies that a thread keeps, of F32 and of F64.
pub(crate) const BYTES_OF_COPIES: u64 = (INNER * (HIGH * (4 + 8) + 2 * WIDE)) as u64;

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
    multiply_below((rows, inner, columns), left, right, (to, to_step), factor, adds, columns);
}

/// [`multiply`] of which only numbers on and below a diagonal are asked for: of row i the columns up to i + `diagonal`. What is beyond
/// them is made, too, or left as it is.
pub(crate) fn multiply_below<T: Number>(
    (rows, inner, columns): (usize, usize, usize),
    left: View<'_, T>,
    right: View<'_, T>,
    (to, to_step): (&mut [T], usize),
    factor: T,
    adds: bool,
    diagonal: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let target = View { data: to, row_step: to_step, column_step: 1 };
    assert!(
        left.reaches(rows, inner) && right.reaches(inner, columns) && target.reaches(rows, columns),
        "sizes of a product"
    );
    if inner == 0 {
        if !adds {
            to.chunks_mut(to_step).take(rows).for_each(|row| row[..columns].fill(T::UNITS[0]));
        }
        return;
    }
    let size = (rows, inner, columns);
    T::panels(|panels| {
        Isa::detect().run(Product { size, left, right, to, to_step, factor, adds, diagonal, panels });
    });
}

/// A product, compiled for each instruction set.
struct Product<'a, T> {
    size: (usize, usize, usize),
    left: View<'a, T>,
    right: View<'a, T>,
    to: &'a mut [T],
    to_step: usize,
    factor: T,
    adds: bool,
    diagonal: usize,
    panels: &'a mut [Vec<T>; 2],
}

impl<T: Number> Job for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        // All registers but those of the right side and of a number of the left one.
        if M::ONE_PASS {
            self.blocks::<M, 4, 8, 12, 2>(machine);
        } else {
            self.blocks::<M, 2, 4, 6, 1>(machine);
        }
    }
}

impl<T: Number> Product<'_, T> {
    /// In tiles of C rows and V registers; at the end of fewer rows.
    #[inline(always)]
    fn blocks<M: Machine, const A: usize, const B: usize, const C: usize, const V: usize>(self, machine: M) {
        let Self { size: (rows, inner, columns), left, right, to, to_step, factor, adds, diagonal, panels } =
            self;
        let [lefts, rights] = panels;
        let (across, wide) = (V * T::BESIDE, WIDE / size_of::<T>());
        for top in (0..rows).step_by(HIGH) {
            let height = HIGH.min(rows - top);
            for from in (0..inner).step_by(INNER) {
                let depth = INNER.min(inner - from);
                let adds = adds || from > 0;
                let part = &left.data[top * left.row_step + from * left.column_step..];
                copy_left::<T, M, C>(machine, lefts, (height, depth), View { data: part, ..left });
                for start in (0..columns).step_by(wide) {
                    let width = wide.min(columns - start);
                    let part = &right.data[from * right.row_step + start * right.column_step..];
                    copy_right::<T, M, V>(machine, rights, (depth, width), View { data: part, ..right });
                    for (index, right) in
                        rights.chunks(across * depth).take(width.div_ceil(across)).enumerate()
                    {
                        let column = start + index * across;
                        let width = across.min(columns - column);
                        for (index, left) in lefts.chunks(C * depth).take(height.div_ceil(C)).enumerate() {
                            let row = top + index * C;
                            let height = C.min(rows - row);
                            if column >= row + height + diagonal {
                                continue;
                            }
                            let tile = Tile {
                                left,
                                right,
                                to: &mut to[row * to_step + column..],
                                to_step,
                                factor,
                                adds,
                                size: (height, width),
                            };
                            if height <= A {
                                tile.run::<M, C, A, V>(machine);
                            } else if height <= B {
                                tile.run::<M, C, B, V>(machine);
                            } else {
                                tile.run::<M, C, C, V>(machine);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Numbers that a shared product makes in one thread at least: less is not worth another.
const SHARE: usize = 1 << 21;

/// [`multiply`], shared out among the threads of the pool that this is called in.
pub(crate) fn multiply_shared<T: Number>(
    (rows, inner, columns): (usize, usize, usize),
    left: View<'_, T>,
    right: View<'_, T>,
    (to, to_step): (&mut [T], usize),
    factor: T,
    adds: bool,
) {
    let work = rows * columns * inner.max(1);
    let parts = (work / SHARE).min(rayon::current_num_threads());
    if parts < 2 {
        multiply((rows, inner, columns), left, right, (to, to_step), factor, adds);
    } else if rows >= columns {
        let height = rows.div_ceil(parts).next_multiple_of(12);
        to.par_chunks_mut(height * to_step).take(rows.div_ceil(height)).enumerate().for_each(|(part, to)| {
            let start = part * height;
            let left = View { data: &left.data[start * left.row_step..], ..left };
            multiply((height.min(rows - start), inner, columns), left, right, (to, to_step), factor, adds);
        });
    } else {
        // Columns of a row are not apart in memory, so that parts are made beside each other and put in place.
        let width = columns.div_ceil(parts).next_multiple_of(32);
        let starts: Vec<usize> = (0..columns).step_by(width).collect();
        let old = &*to;
        let part = |start: &usize| {
            let width = width.min(columns - start);
            let right = View { data: &right.data[start * right.column_step..], ..right };
            let mut out = Vec::with_capacity(rows * width);
            if adds {
                old.chunks(to_step)
                    .take(rows)
                    .for_each(|row| out.extend_from_slice(&row[*start..start + width]));
            } else {
                out.resize(rows * width, T::UNITS[0]);
            }
            multiply((rows, inner, width), left, right, (&mut out, width), factor, adds);
            out
        };
        let made: Vec<Vec<T>> = starts.par_iter().map(part).collect();
        for (start, part) in starts.into_iter().zip(made) {
            let width = width.min(columns - start);
            for (to, part) in to.chunks_mut(to_step).zip(part.chunks_exact(width)) {
                to[start..start + width].copy_from_slice(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::test_weights::gaussian;

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

    /// The product of [rows, 300] and [300, columns] in F32 and in F64, of whole numbers or of any.
    fn on(isa: Isa, (rows, columns): (usize, usize), is_whole: bool) -> (Vec<f32>, Vec<f64>) {
        let number = |x: f32| if is_whole { (x * 3.0).round() } else { x };
        let numbers: Vec<f32> = gaussian(300 * (rows + columns), 2).into_iter().map(number).collect();
        let double: Vec<f64> = numbers.iter().map(|x| f64::from(*x)).collect();
        let size = (rows, 300, columns);
        let (mut of_single, mut of_double) = (vec![1.0; rows * columns], vec![1.0; rows * columns]);
        let (left, right) = (View::rows(&numbers, 300), View::rows(&numbers[rows * 300..], columns));
        let panels = &mut [Vec::new(), Vec::new()];
        let to_step = columns;
        let (factor, adds, diagonal) = (-1.0, true, columns);
        isa.run(Product { size, left, right, to: &mut of_single, to_step, factor, adds, diagonal, panels });
        let (left, right) = (View::rows(&double, 300), View::rows(&double[rows * 300..], columns));
        let panels = &mut [Vec::new(), Vec::new()];
        let factor = -1.0;
        isa.run(Product { size, left, right, to: &mut of_double, to_step, factor, adds, diagonal, panels });
        (of_single, of_double)
    }

    #[test]
    fn instruction_sets_agree_but_for_the_rounding_of_fused_products() {
        for size in [(1, 1), (3, 7), (13, 33), (50, 70), (500, 600)] {
            let exact = on(Isa::Portable, size, true);
            let mut fused = None;
            for isa in Isa::available() {
                assert_eq!(on(isa, size, true), exact, "{isa:?}, {size:?}");
                if isa != Isa::Portable {
                    let found = on(isa, size, false);
                    assert_eq!(fused.get_or_insert_with(|| found.clone()), &found, "{isa:?}, {size:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_depend_on_their_row_and_column_alone() {
        let (rows, inner, columns) = (500, 270, 600);
        let numbers = gaussian(inner * (rows + columns), 2);
        let (left, right) = (View::rows(&numbers, inner), View::rows(&numbers[rows * inner..], columns));
        let mut whole = vec![0.0; rows * columns];
        multiply((rows, inner, columns), left, right, (&mut whole, columns), 0.3, false);
        for (row, column, height, width) in
            [(0, 0, 1, 1), (499, 599, 1, 1), (7, 30, 11, 5), (470, 490, 30, 40)]
        {
            let left = View { data: &numbers[row * inner..], ..left };
            let right = View { data: &right.data[column..], ..right };
            let mut part = vec![0.0; height * width];
            multiply((height, inner, width), left, right, (&mut part, width), 0.3, false);
            for (i, found) in part.chunks(width).enumerate() {
                let expected = &whole[(row + i) * columns + column..][..width];
                assert_eq!(found, expected, "{row}, {column}");
            }
        }
    }

    #[test]
    fn numbers_below_a_diagonal_are_those_of_the_whole() {
        let (size, inner) = (200, 30);
        let numbers = gaussian(inner * size, 4);
        let view = View::rows(&numbers, size);
        for (start, rows) in [(0, 200), (0, 50), (70, 61), (150, 50)] {
            let left = View { data: &numbers[start..], ..view }.turned();
            let [mut whole, mut below] = [(); 2].map(|()| vec![0.0; rows * size]);
            multiply((rows, inner, size), left, view, (&mut whole, size), 1.0, false);
            multiply_below((rows, inner, size), left, view, (&mut below, size), 1.0, false, start);
            for (row, (whole, below)) in whole.chunks(size).zip(below.chunks(size)).enumerate() {
                assert_eq!(whole[..=row + start], below[..=row + start], "row {row} from {start}");
            }
            assert!(start > 0 || below[size - 1] == 0.0, "what is far beyond is left");
        }
    }

    #[test]
    fn shared_products_are_those_of_one_thread() {
        let numbers = gaussian(300 * 700, 1);
        for (rows, inner, columns) in [(300, 130, 70), (60, 200, 500), (1, 5, 3), (200, 100, 200)] {
            let left = View::rows(&numbers, inner + 3);
            let right = View::rows(&numbers[7..], inner + 1).turned();
            for adds in [false, true] {
                let [mut expected, mut found] = [(); 2].map(|()| vec![0.5f32; rows * (columns + 2)]);
                let to = columns + 2;
                multiply((rows, inner, columns), left, right, (&mut expected, to), -2.0, adds);
                multiply_shared((rows, inner, columns), left, right, (&mut found, to), -2.0, adds);
                assert_eq!(expected, found, "{rows}, {columns}");
                // Nothing between the rows is touched.
                assert!(found.chunks(to).all(|row| row[columns..] == [0.5; 2]));
            }
        }
    }
}
