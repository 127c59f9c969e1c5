//! Copies of both sides of a product, in the order in which tiles read them.

use super::number::Number;
use super::view::View;
use crate::quant::simd::machine::Machine;

/// Rows in panels of H: column after column of them.
#[inline(always)]
pub(super) fn copy_left<T: Number, M: Machine, const H: usize>(
    machine: M,
    panels: &mut Vec<T>,
    (rows, columns): (usize, usize),
    from: View<'_, T>,
) {
    // Registers that are wider than a column reach into the next one.
    let (size, beyond) = (H * columns, H.next_multiple_of(T::BESIDE) - H);
    let all = rows.div_ceil(H) * size + beyond;
    if panels.len() < all {
        panels.resize(all, T::UNITS[0]);
    }
    for index in 0..rows.div_ceil(H) {
        let panel = &mut panels[index * size..(index + 1) * size + beyond];
        let filled = H.min(rows - index * H);
        let data = &from.data[index * H * from.row_step..];
        let mut start = 0;
        if from.column_step == 1 && filled == H {
            start = T::turn::<M, H>(machine, (data, from.row_step), columns, (panel, H));
        }
        let (places, _) = panel[..size].as_chunks_mut::<H>();
        let places = &mut places[start..];
        if from.row_step == 1 && filled == H {
            for (column, place) in places.iter_mut().enumerate() {
                place.copy_from_slice(&data[(start + column) * from.column_step..][..H]);
            }
            continue;
        }
        let row = |row: usize| &data[row * from.row_step..][start * from.column_step..];
        let mut done = 0;
        if from.column_step == 1 && start < columns {
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
        if start < columns {
            for at in done..filled {
                let data = row(at).iter().step_by(from.column_step);
                places.iter_mut().zip(data).for_each(|(place, x)| place[at] = *x);
            }
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
    for (index, panel) in panels.chunks_exact_mut(across * rows).enumerate() {
        let filled = across.min(columns - index * across);
        if filled < across {
            panel.fill(T::UNITS[0]);
        }
        if from.column_step == 1 {
            // As they lie in memory.
            let data = &from.data[index * across..];
            for (row, place) in panel.chunks_exact_mut(across).enumerate() {
                let data = &data[row * from.row_step..];
                if filled < across {
                    place[..filled].copy_from_slice(&data[..filled]);
                    continue;
                }
                for v in 0..V {
                    let lanes = T::load(machine, &data[v * T::BESIDE..]);
                    T::store(machine, lanes, &mut place[v * T::BESIDE..]);
                }
            }
            continue;
        }
        let column = |column: usize| &from.data[(index * across + column) * from.column_step..];
        let (mut done, mut start) = (0, 0);
        if from.row_step == 1 && filled == across {
            for v in 0..V {
                let data = (column(v * T::BESIDE), from.column_step);
                start = T::turn_lanes::<M>(machine, data, rows, (&mut panel[v * T::BESIDE..], across));
            }
        }
        if start == rows {
            continue;
        }
        if from.row_step == 1 {
            // Four columns beside each other, for one store.
            while done + 4 <= filled {
                let [a, b, c, d] = [0, 1, 2, 3].map(|next| &column(done + next)[start..]);
                let places = panel[start * across..].chunks_exact_mut(across);
                let places = places.zip(a.iter().zip(b).zip(c.iter().zip(d)));
                for (place, ((a, b), (c, d))) in places {
                    place[done..done + 4].copy_from_slice(&[*a, *b, *c, *d]);
                }
                done += 4;
            }
        }
        for at in done..filled {
            let data = column(at)[start * from.row_step..].iter().step_by(from.row_step);
            let places = panel[start * across..].chunks_exact_mut(across);
            places.zip(data).for_each(|(place, x)| place[at] = *x);
        }
    }
}
