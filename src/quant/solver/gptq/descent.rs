//! Descent of the error of some rows: scales are fitted anew, and codes are chosen anew, each given all others.
//!
//! A change is made only if it lessens the error, so that the error never rises and the descent ends.

use super::Metric;
use super::grid::Grids;
use crate::quant::Isa;
use crate::quant::kernel::round_code;
use crate::quant::product::{View, multiply};
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// Times that scales and codes are gone over, at most, and how often each.
const ROUNDS: usize = 4;
const FITS: usize = 2;
const SWEEPS: usize = 10;

/// Lessens the error of the codes and scales of some rows.
pub(super) fn descend(codes: &mut [f32], grids: &mut Grids, targets: &[f32], metric: &Metric, isa: Isa) {
    for _ in 0..ROUNDS {
        // Many small changes make products drift, so each phase begins with new ones.
        let mut products = metric.times(&grids.errors(codes, targets));
        let mut has_changed = false;
        for _ in 0..FITS {
            has_changed |= fit_scales(codes, grids, &mut products, metric, isa);
        }
        let mut products = metric.times(&grids.errors(codes, targets));
        has_changed |= choose_codes(codes, grids, &mut products, metric, isa);
        if !has_changed {
            break;
        }
    }
}

/// Fits each group's scale, one after another. `products` are errors times moments.
fn fit_scales(codes: &[f32], grids: &mut Grids, products: &mut [f32], metric: &Metric, isa: Isa) -> bool {
    let (columns, size) = (metric.columns, grids.group);
    let (rows, groups) = (codes.len() / columns, columns / size);
    let (mut levels, mut of_levels) = (vec![0.0; rows * size], vec![0.0; codes.len()]);
    let mut has_changed = false;
    for group in 0..groups {
        let start = group * size;
        for (row, levels) in levels.chunks_exact_mut(size).enumerate() {
            let (codes, zero) = (&codes[row * columns + start..], grids.zeros[row * groups + group]);
            levels.iter_mut().zip(codes).for_each(|(level, code)| *level = code - zero);
        }
        let moments = View::rows(&metric.moments[start * columns..], columns);
        let size_of_product = (rows, size, columns);
        multiply(size_of_product, View::rows(&levels, size), moments, (&mut of_levels, columns), 1.0, false);
        let (levels, of_levels) = (&levels, &of_levels);
        has_changed |= isa.run(Fit { grids, group, columns, levels, of_levels, products });
    }
    has_changed
}

/// The fit of one group's scale in all rows, compiled for each instruction set.
struct Fit<'a> {
    grids: &'a mut Grids,
    group: usize,
    columns: usize,
    /// Codes less zero points of the group's columns, and these times moments.
    levels: &'a [f32],
    of_levels: &'a [f32],
    products: &'a mut [f32],
}

impl Job for Fit<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> bool {
        let Self { grids, group, columns, levels, of_levels, products } = self;
        let (size, groups) = (grids.group, columns / grids.group);
        let start = group * size;
        let mut has_changed = false;
        let rows = levels.chunks_exact(size).zip(of_levels.chunks_exact(columns));
        for (row, ((levels, of_levels), products)) in rows.zip(products.chunks_exact_mut(columns)).enumerate()
        {
            // The error is curvature/2·step² + slope·step, if the scale is changed by step.
            let dot = |a: &[f32]| {
                a[start..start + size].iter().zip(levels).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let (curvature, slope): (f64, f64) = (dot(of_levels), dot(products));
            let old = grids.scales[row * groups + group];
            let Some(new) = grids.fitted(old, slope, curvature) else { continue };
            grids.scales[row * groups + group] = new;
            let step = new - old;
            products.iter_mut().zip(of_levels).for_each(|(product, of)| *product += step * of);
            has_changed = true;
        }
        has_changed
    }
}

/// Chooses each code anew, column after column, until a row stays as it is.
fn choose_codes(codes: &mut [f32], grids: &Grids, products: &mut [f32], metric: &Metric, isa: Isa) -> bool {
    isa.run(Sweeps { codes, grids, products, metric })
}

/// The sweeps of all rows, compiled for each instruction set.
struct Sweeps<'a> {
    codes: &'a mut [f32],
    grids: &'a Grids,
    products: &'a mut [f32],
    metric: &'a Metric,
}

impl Job for Sweeps<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> bool {
        let Self { codes, grids, products, metric } = self;
        let columns = metric.columns;
        let groups = columns / grids.group;
        let mut has_changed = false;
        let rows = codes.chunks_exact_mut(columns).zip(products.chunks_exact_mut(columns));
        for (row, (codes, products)) in rows.enumerate() {
            for _ in 0..SWEEPS {
                if !sweep(codes, &grids.scales[row * groups..], products, grids, metric) {
                    break;
                }
                has_changed = true;
            }
        }
        has_changed
    }
}

/// One sweep over a row, whose groups have these scales.
#[inline(always)]
fn sweep(codes: &mut [f32], scales: &[f32], products: &mut [f32], grids: &Grids, metric: &Metric) -> bool {
    let mut has_changed = false;
    for column in 0..metric.columns {
        let (scale, curvature) = (scales[column / grids.group], metric.diagonal[column]);
        let (old, slope) = (codes[column], products[column]);
        let new = round_code(old - slope / (curvature * scale), grids.codes.0, grids.codes.1);
        if new == old {
            continue;
        }
        let step = (new - old) * scale;
        // Not a number is no less.
        if step * slope + 0.5 * curvature * step * step < 0.0 {
            codes[column] = new;
            let moments = &metric.moments[column * metric.columns..(column + 1) * metric.columns];
            products.iter_mut().zip(moments).for_each(|(product, moment)| *product += step * moment);
            has_changed = true;
        }
    }
    has_changed
}
