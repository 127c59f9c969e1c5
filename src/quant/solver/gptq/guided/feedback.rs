//! Error feedback on both sides: each error is passed on to the columns and to the rows that are left.
//!
//! With U the factors of the two inverses and e the error of a weight in units of both pivots, a weight at (i, j) loses
//! Σ U[i′, i]·e[i′, j′]·V[j′, j] over all rounded i′ ≤ i, j′ ≤ j. Any order in which a weight comes after those gives the
//! same codes; here rows and columns come in tiles, and all beyond a tile are products.

use super::super::Metric;
use super::super::grid::Grids;
use super::outputs::Outputs;
use crate::quant::Isa;
use crate::quant::product::{View, multiply, multiply_shared};
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// Rows and columns of a tile.
const ROWS: usize = 128;
const COLUMNS: usize = 128;

/// The codes of all rows. Those with the strongest gradients and the columns with the strongest inputs come first.
pub(super) fn feed_back(
    target: &[f32],
    metric: &Metric,
    outputs: &Outputs,
    grids: &Grids,
    isa: Isa,
) -> Vec<f32> {
    let (rows, columns) = (outputs.rows, metric.columns);
    let mut left = Vec::with_capacity(target.len());
    for row in &outputs.order {
        let row = &target[row * columns..(row + 1) * columns];
        left.extend(metric.order.iter().map(|&column| row[column]));
    }
    let mut codes = vec![0.0; target.len()];
    for start in (0..rows).step_by(ROWS) {
        let end = rows.min(start + ROWS);
        let (own, later) = left[start * columns..].split_at_mut((end - start) * columns);
        let band = Band { metric, outputs, grids, rows: (start, end), isa };
        let passed = band.round(own, &mut codes);
        if end < rows {
            let factors = View::rows(&outputs.factor[start * rows + end..], rows).turned();
            let size = (rows - end, end - start, columns);
            multiply_shared(size, factors, View::rows(&passed, columns), (later, columns), -1.0, true);
        }
    }
    codes
}

/// Some rows, by their places in the order.
#[derive(Clone, Copy)]
struct Band<'a> {
    metric: &'a Metric,
    outputs: &'a Outputs,
    grids: &'a Grids,
    rows: (usize, usize),
    isa: Isa,
}

impl Band<'_> {
    /// Rounds `left`, which these rows are after what earlier rows passed on. Gives e·V, what they pass on themselves.
    fn round(self, left: &mut [f32], codes: &mut [f32]) -> Vec<f32> {
        let (rows, columns) = (self.outputs.rows, self.metric.columns);
        let (start, end) = self.rows;
        let height = end - start;
        let mut passed = vec![0.0; left.len()];
        let mut errors = vec![0.0; height * COLUMNS.min(columns)];
        // Upper: only earlier rows, and the row itself, pass on to a row.
        let factors = View::rows(&self.outputs.factor[start * rows + start..], rows).turned();
        for from in (0..columns).step_by(COLUMNS) {
            let to = columns.min(from + COLUMNS);
            let width = to - from;
            if from > 0 {
                let right = View::rows(&passed[from..], columns);
                multiply((height, height, width), factors, right, (&mut left[from..], columns), -1.0, true);
            }
            errors.truncate(height * width);
            self.isa.run(Tile {
                band: self,
                columns: (from, to),
                left,
                passed: &mut passed,
                errors: &mut errors,
                codes,
            });
            if to < columns {
                let right = View::rows(&self.metric.factor[from * columns + to..], columns);
                let size = (height, width, columns - to);
                let errors = View::rows(&errors, width);
                multiply_shared(size, errors, right, (&mut passed[to..], columns), 1.0, true);
            }
        }
        passed
    }
}

/// Some columns of a band, compiled for each instruction set.
struct Tile<'a, 'b> {
    band: Band<'b>,
    columns: (usize, usize),
    /// [rows of the band, columns], columns in the metric's order.
    left: &'a [f32],
    passed: &'a mut [f32],
    /// [rows of the band, columns of the tile].
    errors: &'a mut [f32],
    /// Rows and columns in their own order.
    codes: &'a mut [f32],
}

impl Job for Tile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { band, columns: (from, to), left, passed, errors, codes } = self;
        let Band { metric, outputs, grids, rows: (start, end), .. } = band;
        let (rows, columns, groups) = (outputs.rows, metric.columns, metric.columns / grids.group);
        let (height, width) = (end - start, to - from);
        // Column by column: errors, and what each column was passed by those of the tile and passes on itself.
        let (mut all_errors, mut all_passed) = (vec![0f32; height * width], vec![0f32; height * width]);
        let mut values = vec![0f32; height];
        for at in 0..width {
            let column = metric.order[from + at];
            let pivot = metric.factor[(from + at) * columns + from + at];
            let (known, own_errors) = all_errors.split_at_mut(at * height);
            let own = &mut all_passed[at * height..(at + 1) * height];
            for (before, errors) in known.chunks_exact(height).enumerate() {
                let factor = metric.factor[(from + before) * columns + from + at];
                own.iter_mut().zip(errors).for_each(|(own, error)| *own += factor * error);
            }
            for (value, left) in values.iter_mut().zip(left.chunks_exact(columns)) {
                *value = left[from + at];
            }
            for place in 0..height {
                let row = outputs.order[start + place];
                let factors = (start + place) * rows;
                let factors = &outputs.factor[factors + start + place..factors + end];
                let group = row * groups + column / grids.group;
                let value = values[place] - factors[0] * own[place];
                let code = grids.code(group, value);
                codes[row * columns + column] = code;
                let error = value - (code - grids.zeros[group]) * grids.scales[group];
                let error = error / pivot / factors[0];
                own_errors[place] = error;
                own[place] += error * pivot;
                let passed = own[place];
                for (value, factor) in values[place + 1..].iter_mut().zip(&factors[1..]) {
                    *value -= factor * passed;
                }
            }
        }
        for place in 0..height {
            for at in 0..width {
                passed[place * columns + from + at] += all_passed[at * height + place];
                errors[place * width + at] = all_errors[at * height + place];
            }
        }
    }
}
