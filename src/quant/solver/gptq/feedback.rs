//! Error feedback: columns are rounded one after another, and each error is passed on to the columns that are left.

use super::Metric;
use super::grid::Grids;
use crate::quant::Isa;
use crate::quant::product::{View, multiply};
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// Columns whose errors are passed on one by one within them, and by one product beyond.
const BLOCK: usize = 128;

/// The codes of some rows. Columns with the strongest inputs come first; groups stay where they are.
pub(super) fn feed_back(targets: &[f32], metric: &Metric, grids: &Grids, isa: Isa) -> Vec<f32> {
    let columns = metric.columns;
    let rows = targets.len() / columns;
    let mut left = Vec::with_capacity(targets.len());
    for row in targets.chunks_exact(columns) {
        left.extend(metric.order.iter().map(|&column| row[column]));
    }
    let mut codes = vec![0.0; targets.len()];
    let mut errors = vec![0.0; rows * BLOCK.min(columns)];
    for start in (0..columns).step_by(BLOCK) {
        let end = columns.min(start + BLOCK);
        let width = end - start;
        errors.truncate(rows * width);
        isa.run(Block {
            metric,
            grids,
            range: (start, end),
            left: &mut left,
            codes: &mut codes,
            errors: &mut errors,
        });
        if end < columns {
            let right = View::rows(&metric.factor[start * columns + end..], columns);
            let to = (&mut left[end..], columns);
            let size = (rows, width, columns - end);
            multiply(size, View::rows(&errors, width), right, to, -1.0, true);
        }
    }
    codes
}

/// Some columns of all rows, compiled for each instruction set.
struct Block<'a> {
    metric: &'a Metric,
    grids: &'a Grids,
    range: (usize, usize),
    /// What is to be rounded, columns in the metric's order.
    left: &'a mut [f32],
    /// Columns in their own order.
    codes: &'a mut [f32],
    /// [rows, columns of the block].
    errors: &'a mut [f32],
}

impl Job for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { metric, grids, range: (start, end), left, codes, errors } = self;
        let columns = metric.columns;
        let groups = columns / grids.group;
        let rows = left.chunks_exact_mut(columns).zip(codes.chunks_exact_mut(columns));
        for (row, ((left, codes), errors)) in rows.zip(errors.chunks_exact_mut(end - start)).enumerate() {
            for at in start..end {
                let column = metric.order[at];
                let group = row * groups + column / grids.group;
                let code = grids.code(group, left[at]);
                codes[column] = code;
                let factors = &metric.factor[at * columns + at..at * columns + end];
                let error = left[at] - (code - grids.zeros[group]) * grids.scales[group];
                let error = error / factors[0];
                errors[at - start] = error;
                for (left, factor) in left[at + 1..end].iter_mut().zip(&factors[1..]) {
                    *left -= error * factor;
                }
            }
        }
    }
}
