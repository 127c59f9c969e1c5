//! Copies of both sides of a product, in the order in which tiles read them.

use super::number::Number;
use super::view::View;
use crate::quant::simd::machine::Machine;

/// Rows in panels of H: column after column of them.
#[inline(always)]
pub(super) fn copy_left<T: Number, const H: usize>(
    panels: &mut Vec<T>,
    (rows, columns): (usize, usize),
    from: View<'_, T>,
) {
    let size = rows.div_ceil(H) * H * columns;
    if panels.len() < size {
        panels.resize(size, T::UNITS[0]);
    }
    for (index, panel) in panels.chunks_exact_mut(H * columns).take(rows.div_ceil(H)).enumerate() {
        let filled = H.min(rows - index * H);
        let data = &from.data[index * H * from.row_step..];
        let (places, _) = panel.as_chunks_mut::<H>();
        if from.row_step == 1 && filled == H {
            for (column, place) in places.iter_mut().enumerate() {
                place.copy_from_slice(&data[column * from.column_step..][..H]);
            }
            continue;
        }
        let row = |row: usize| &data[row * from.row_step..];
        let mut done = 0;
        if from.column_step == 1 {
            // Four rows beside each other, for one store.
            while done + 4 <= filled {
                let [a, b, c, d] = [row(done), row(done + 1), row(done + 2), row(done + 3)];
                let numbers = a.iter().zip(b).zip(c.iter().zip(d));
                for (place, ((a, b), (c, d))) in places.iter_mut().zip(numbers) {
                    place[done..done + 4].copy_from_slice(&[*a, *b, *c, *d]);
                }
                done += 4;
            }
        }
        for at in done..filled {
            let data = row(at).iter().step_by(from.column_step);
            places.iter_mut().zip(data).for_each(|(place, x)| place[at] = *x);
        }
        // What is beyond the last row is multiplied as well.
        for row in filled..H {
            places.iter_mut().for_each(|place| place[row] = T::UNITS[0]);
        }
    }
}

/// Columns in panels of V registers: row after row of them.
#[inline(always)]
pub(super) fn copy_right<T: Number, M: Machine, const V: usize>(
    machine: M,
    panels: &mut Vec<T>,
    (rows, columns): (usize, usize),
    from: View<'_, T>,
) {
    let across = V * T::BESIDE;
    let count = columns.div_ceil(across);
    let size = count * across * rows;
    if panels.len() < size {
        panels.resize(size, T::UNITS[0]);
    }
    let panels = &mut panels[..size];
    let whole = columns / across;
    if from.column_step == 1 {
        // Row by row, as they lie in memory.
        for row in 0..rows {
            let data = &from.data[row * from.row_step..][..columns];
            for (index, data) in data.chunks_exact(across).enumerate() {
                let place = &mut panels[(index * rows + row) * across..][..across];
                for v in 0..V {
                    let lanes = T::load(machine, &data[v * T::BESIDE..]);
                    T::store(machine, lanes, &mut place[v * T::BESIDE..]);
                }
            }
            if whole < count {
                let place = &mut panels[(whole * rows + row) * across..][..across];
                let (own, rest) = place.split_at_mut(columns - whole * across);
                own.copy_from_slice(&data[whole * across..]);
                rest.fill(T::UNITS[0]);
            }
        }
        return;
    }
    for (index, panel) in panels.chunks_exact_mut(across * rows).enumerate() {
        let filled = across.min(columns - index * across);
        if filled < across {
            panel.fill(T::UNITS[0]);
        }
        let column = |column: usize| &from.data[(index * across + column) * from.column_step..];
        let mut done = 0;
        if from.row_step == 1 {
            // Four columns beside each other, for one store.
            while done + 4 <= filled {
                let [a, b, c, d] = [column(done), column(done + 1), column(done + 2), column(done + 3)];
                let places = panel.chunks_exact_mut(across).zip(a.iter().zip(b).zip(c.iter().zip(d)));
                for (place, ((a, b), (c, d))) in places {
                    place[done..done + 4].copy_from_slice(&[*a, *b, *c, *d]);
                }
                done += 4;
            }
        }
        for at in done..filled {
            let places = panel.chunks_exact_mut(across).zip(column(at).iter().step_by(from.row_step));
            places.for_each(|(place, x)| place[at] = *x);
        }
    }
}
