//! Descent of the error of a whole matrix: scales are fitted anew, and codes are chosen anew, each given all others.
//!
//! A change is made only if it lessens the error, so that the error never rises and the descent ends.

use std::ops::Range;

use rayon::prelude::*;

use super::super::Metric;
use super::super::grid::Grids;
use super::outputs::Outputs;
use crate::quant::Isa;
use crate::quant::kernel::round_code;
use crate::quant::product::{View, multiply, multiply_shared};
use crate::quant::simd::Job;
use crate::quant::simd::machine::{LANES, Machine};

/// Times that scales and codes are gone over, at most, and how often codes are each time.
const ROUNDS: usize = 3;
const SWEEPS: usize = 4;

/// Rows whose slopes are one product.
const BAND: usize = 128;

/// Numbers of levels times moments that are held at a time.
const STORE: usize = 1 << 25;

/// Rows at most whose levels are multiplied at a time: all moments are copied for each such product.
const TOGETHER: usize = 128;

/// Rows that pass on changes of their scales to each other one by one, and to all later rows together.
const NEAR: usize = 16;

/// Columns whose slopes are one product.
const STRIP: usize = 32;

/// Columns whose moves are told to all others together: the products of all rows do not fit into a cache.
const REACH: usize = 256;

/// Products of a row that many moves change one after another, in a cache.
const NEARBY: usize = 1024;

/// How many of some rows have their levels multiplied at a time.
pub(super) fn levels_at_once(columns: usize, group: usize, rows: usize) -> usize {
    let one = columns / group.max(1) * columns;
    (STORE / one.max(1)).clamp(1, TOGETHER).min(rows)
}

/// Lessens the error of the codes and scales of all rows.
pub(super) fn descend(
    codes: &mut [f32],
    grids: &mut Grids,
    target: &[f32],
    metric: &Metric,
    outputs: &Outputs,
    isa: Isa,
) {
    for _ in 0..ROUNDS {
        // Many small changes make products drift, so each round begins with new ones.
        let mut products = metric.times_shared(&grids.errors(codes, target));
        let mut has_changed = Fit { codes, metric, outputs, isa }.run(grids, &mut products);
        for _ in 0..SWEEPS {
            if !sweep(codes, grids, &mut products, metric, outputs, isa) {
                break;
            }
            has_changed = true;
        }
        if !has_changed {
            break;
        }
    }
}

/// The fit of all scales, one after another.
struct Fit<'a> {
    codes: &'a [f32],
    metric: &'a Metric,
    outputs: &'a Outputs,
    isa: Isa,
}

impl Fit<'_> {
    /// `products` are errors times moments of inputs, P; slopes are G P.
    fn run(&self, grids: &mut Grids, products: &mut [f32]) -> bool {
        let (rows, columns) = (self.outputs.rows, self.metric.columns);
        let together = levels_at_once(columns, grids.group, rows);
        let mut slopes = vec![0.0; BAND.min(rows) * columns];
        // Made once: the system clears what is new.
        let mut of_levels = vec![0.0; columns / grids.group * together * columns];
        let mut has_changed = false;
        for start in (0..rows).step_by(BAND) {
            let end = rows.min(start + BAND);
            let size = (end - start, rows, columns);
            let gradients = View::rows(&self.outputs.moments[start * rows..], rows);
            multiply_shared(
                size,
                gradients,
                View::rows(products, columns),
                (&mut slopes, columns),
                1.0,
                false,
            );
            for first in (start..end).step_by(together) {
                let some = first..end.min(first + together);
                let levels = self.levels(grids, some.clone());
                self.times_moments(grids.group, &levels, &mut of_levels);
                for near in some.clone().step_by(NEAR) {
                    let near = near..some.end.min(near + NEAR);
                    let mut changes = Vec::with_capacity(near.len());
                    for row in near.clone() {
                        let (own, later) = slopes[(row - start) * columns..].split_at_mut(columns);
                        let change = self.isa.run(Row {
                            fit: self,
                            grids,
                            row,
                            place: (row - first, some.len()),
                            levels: &levels[(row - first) * columns..(row - first + 1) * columns],
                            of_levels: &of_levels,
                            slopes: own,
                            products: &mut products[row * columns..(row + 1) * columns],
                        });
                        if change.is_empty() {
                            continue;
                        }
                        changes.push((row, change));
                        let later = later[..(near.end - row - 1) * columns].chunks_exact_mut(columns);
                        for (slopes, other) in later.zip(row + 1..) {
                            self.isa.run(Later {
                                slopes,
                                own: self.moments(other),
                                changes: &changes[changes.len() - 1..],
                            });
                        }
                    }
                    has_changed |= !changes.is_empty();
                    let after = &mut slopes[(near.end - start) * columns..(end - start) * columns];
                    after.par_chunks_exact_mut(columns).enumerate().for_each(|(index, slopes)| {
                        self.isa.run(Later {
                            slopes,
                            own: self.moments(near.end + index),
                            changes: &changes,
                        });
                    });
                }
            }
        }
        has_changed
    }

    /// How errors of an output work together with those of all others.
    fn moments(&self, row: usize) -> &[f32] {
        let rows = self.outputs.rows;
        &self.outputs.moments[row * rows..(row + 1) * rows]
    }

    /// Codes less zero points of some rows.
    fn levels(&self, grids: &Grids, rows: Range<usize>) -> Vec<f32> {
        let columns = self.metric.columns;
        let codes = self.codes[rows.start * columns..rows.end * columns].chunks(grids.group);
        let zeros = &grids.zeros[rows.start * columns / grids.group..];
        codes.zip(zeros).flat_map(|(codes, zero)| codes.iter().map(move |code| code - zero)).collect()
    }

    /// Each group's levels times the moments of its columns: [groups, rows, columns].
    fn times_moments(&self, group: usize, levels: &[f32], out: &mut [f32]) {
        let columns = self.metric.columns;
        let rows = levels.len() / columns;
        let groups = out.par_chunks_mut(rows * columns).take(columns / group);
        groups.enumerate().for_each(|(index, out)| {
            let left = View::rows(&levels[index * group..], columns);
            let right = View::rows(&self.metric.moments[index * group * columns..], columns);
            multiply((rows, group, columns), left, right, (out, columns), 1.0, false);
        });
    }
}

/// The fit of one row's scales, compiled for each instruction set.
struct Row<'a, 'b> {
    fit: &'a Fit<'b>,
    grids: &'a mut Grids,
    row: usize,
    /// Which of the rows of `of_levels` it is, and of how many.
    place: (usize, usize),
    levels: &'a [f32],
    of_levels: &'a [f32],
    slopes: &'a mut [f32],
    products: &'a mut [f32],
}

impl Job for Row<'_, '_> {
    /// What has become of the products; nothing if no scale has changed.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> Vec<f32> {
        let Self { fit, grids, row, place: (place, count), levels, of_levels, slopes, products } = self;
        let (rows, columns, size) = (fit.outputs.rows, fit.metric.columns, grids.group);
        let groups = columns / size;
        let strength = fit.outputs.moments[row * (rows + 1)];
        let mut change: Vec<f32> = Vec::new();
        for group in 0..groups {
            let of_levels = &of_levels[(group * count + place) * columns..][..columns];
            let range = group * size..(group + 1) * size;
            let levels = &levels[range.clone()];
            // The error is curvature/2·step² + slope·step, if the scale is changed by step.
            let curvature = f64::from(strength) * dot(&of_levels[range.clone()], levels);
            let slope = dot(&slopes[range], levels);
            let old = grids.scales[row * groups + group];
            let Some(new) = grids.fitted(old, slope, curvature) else { continue };
            grids.scales[row * groups + group] = new;
            let step = new - old;
            change.resize(columns, 0.0);
            for ((change, slope), of) in change.iter_mut().zip(slopes.iter_mut()).zip(of_levels) {
                *change += step * of;
                *slope += strength * (step * of);
            }
        }
        products.iter_mut().zip(&change).for_each(|(product, change)| *product += change);
        change
    }
}

/// What changes of earlier rows' scales do to the slopes of a row, compiled for each instruction set.
struct Later<'a> {
    slopes: &'a mut [f32],
    /// The row's own moments of gradients.
    own: &'a [f32],
    /// The earlier rows, and the changes of their products.
    changes: &'a [(usize, Vec<f32>)],
}

impl Job for Later<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        for (row, change) in self.changes {
            let shared = self.own[*row];
            self.slopes.iter_mut().zip(change).for_each(|(slope, change)| *slope += shared * change);
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A code that was chosen anew: its row, its column, and the step of its value.
type Move = (usize, usize, f32);

/// Chooses each code anew, column after column and in a column row after row.
fn sweep(
    codes: &mut [f32],
    grids: &Grids,
    products: &mut [f32],
    metric: &Metric,
    outputs: &Outputs,
    isa: Isa,
) -> bool {
    let (rows, columns) = (outputs.rows, metric.columns);
    let mut has_changed = false;
    let mut slopes = vec![0.0; rows * STRIP.min(columns)];
    let strengths: Vec<f32> = (0..rows).map(|row| outputs.moments[row * (rows + 1)]).collect();
    for first in (0..columns).step_by(REACH) {
        let last = columns.min(first + REACH);
        let mut all_moves = Vec::new();
        for start in (first..last).step_by(STRIP) {
            let width = STRIP.min(last - start);
            slopes.truncate(rows * width);
            // Column by column: the moments of the gradients are symmetric.
            let left = View::rows(&products[start..], columns).turned();
            let gradients = View::rows(&outputs.moments, rows);
            multiply_shared((width, rows, rows), left, gradients, (&mut slopes, rows), 1.0, false);
            let (strengths, slopes) = (&strengths, &mut slopes);
            let mut moves = isa.run(Strip { codes, grids, metric, outputs, strengths, start, width, slopes });
            tell(&mut moves, products, metric, std::slice::from_ref(&(first..last)), isa);
            all_moves.extend(moves);
        }
        has_changed |= !all_moves.is_empty();
        tell(&mut all_moves, products, metric, &[0..first, last..columns], isa);
    }
    has_changed
}

/// Changes the products in some columns by moves, those of each row in the order of their columns.
fn tell(moves: &mut [Move], products: &mut [f32], metric: &Metric, columns: &[Range<usize>], isa: Isa) {
    if moves.is_empty() {
        return;
    }
    moves.sort_by_key(|(row, ..)| *row);
    let moves = &*moves;
    products.par_chunks_mut(metric.columns).enumerate().for_each(|(row, products)| {
        let first = moves.partition_point(|(other, ..)| *other < row);
        let count = moves[first..].partition_point(|(other, ..)| *other == row);
        let moves = &moves[first..first + count];
        if !moves.is_empty() {
            isa.run(Moved { products, metric, moves, columns });
        }
    });
}

/// Some columns of all rows, compiled for each instruction set.
struct Strip<'a> {
    codes: &'a mut [f32],
    grids: &'a Grids,
    metric: &'a Metric,
    outputs: &'a Outputs,
    /// The diagonal of the outputs' moments.
    strengths: &'a [f32],
    start: usize,
    width: usize,
    /// [width, rows].
    slopes: &'a mut [f32],
}

impl Job for Strip<'_> {
    type Output = Vec<Move>;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> Vec<Move> {
        let Self { codes, grids, metric, outputs, strengths, start, width, slopes } = self;
        let (rows, columns) = (outputs.rows, metric.columns);
        let groups = columns / grids.group;
        let mut moves = Vec::new();
        // Codes and scales beside each other, as slopes are.
        let (mut values, mut scales) = (vec![0.0; width * rows], vec![0.0; rows]);
        for (row, codes) in codes.chunks_exact(columns).enumerate() {
            for at in 0..width {
                values[at * rows + row] = codes[start + at];
            }
        }
        for at in 0..width {
            let column = start + at;
            if at == 0 || column.is_multiple_of(grids.group) {
                let of_group = grids.scales.iter().skip(column / grids.group).step_by(groups);
                scales.iter_mut().zip(of_group).for_each(|(to, scale)| *to = *scale);
            }
            let diagonal = metric.diagonal[column];
            let own = &mut slopes[at * rows..];
            let values = &values[at * rows..(at + 1) * rows];
            for first in (0..rows).step_by(LANES) {
                let last = rows.min(first + LANES);
                // Few codes move: some rows are looked at side by side.
                let each = strengths[first..last].iter().zip(&scales[first..last]);
                let each = each.zip(values[first..last].iter().zip(&own[first..last]));
                let mut any = false;
                for ((strength, scale), (old, slope)) in each {
                    any |= moved(*old, *slope, strength * diagonal, *scale, grids.codes).1;
                }
                for row in if any { first..last } else { 0..0 } {
                    let (curvature, scale) = (strengths[row] * diagonal, scales[row]);
                    let (new, is_better) = moved(values[row], own[row], curvature, scale, grids.codes);
                    if !is_better {
                        continue;
                    }
                    let step = (new - values[row]) * scale;
                    codes[row * columns + column] = new;
                    moves.push((row, column, step));
                    let gradients = &outputs.moments[row * rows..(row + 1) * rows];
                    let moments =
                        &metric.moments[column * columns + column..column * columns + start + width];
                    for (slopes, moment) in own.chunks_exact_mut(rows).zip(moments) {
                        let factor = step * moment;
                        slopes.iter_mut().zip(gradients).for_each(|(slope, of)| *slope += factor * of);
                    }
                }
            }
        }
        moves
    }
}

/// The best code in the place of an old one, all others staying, and whether the error is less with it.
#[inline(always)]
fn moved(old: f32, slope: f32, curvature: f32, scale: f32, codes: (f32, f32)) -> (f32, bool) {
    let new = round_code(old - slope / (curvature * scale), codes.0, codes.1);
    let step = (new - old) * scale;
    // Not a number is no less; a code that stays changes nothing.
    (new, step * slope + 0.5 * curvature * step * step < 0.0)
}

/// What moves of a row do to its products, compiled for each instruction set.
struct Moved<'a> {
    products: &'a mut [f32],
    metric: &'a Metric,
    moves: &'a [Move],
    columns: &'a [Range<usize>],
}

impl Job for Moved<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { products, metric, moves, columns } = self;
        for columns in columns {
            for start in columns.clone().step_by(NEARBY) {
                let end = columns.end.min(start + NEARBY);
                let products = &mut products[start..end];
                for (_, column, step) in moves {
                    let moments = &metric.moments[column * metric.columns..][start..end];
                    products.iter_mut().zip(moments).for_each(|(product, moment)| *product += step * moment);
                }
            }
        }
    }
}
