//! Rounding that also knows how errors of the outputs work together.
//!
//! With G the second moments of the gradients of a matrix's outputs, damped, the harm of an error D of the weights is
//! tr(G D H Dᵀ). Rows depend on each other: errors are fed back to later columns and later rows, and the descent looks at
//! the whole matrix. If G is the unit matrix, this is what [`super::Gptq`] does.
//!
//! G may be known only as blocks along its diagonal; their rows are then rounded as matrices of their own.

use std::sync::Arc;

use super::grid::{Grids, Overflow};
use super::{Metric, Rounded, finite, overflow, unpacked};
use crate::quant::product::{View, multiply_shared};
use crate::quant::{BadWeight, Granularity, Isa, Quantizer, Scheme};

mod descent;
mod feedback;
mod outputs;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tests;

pub use outputs::OutputMetric;

use outputs::Outputs;

/// Rounds matrices with the same inputs, each with the metric of its own outputs.
#[derive(Debug, Clone)]
pub struct Guided {
    scheme: Scheme,
    isa: Isa,
    metric: Arc<Metric>,
    is_signed: bool,
}

impl Guided {
    /// A solver of matrices that `nearest` is for, whose inputs are those of `metric`.
    ///
    /// # Panics
    /// If they are of other numbers of columns, or the scheme has one scale per tensor: a plan checks that.
    #[must_use]
    pub fn new(nearest: &Quantizer, metric: Arc<Metric>) -> Self {
        assert_eq!(metric.columns(), nearest.cols, "moments of the matrix's own inputs");
        assert!(nearest.scheme.granularity != Granularity::Tensor, "scales are chosen row by row");
        Self { scheme: nearest.scheme, isa: nearest.isa, metric, is_signed: false }
    }

    /// Whether scales may be negative, so that the longer side of a group can have the one code more.
    #[must_use]
    pub fn signed(self, is_signed: bool) -> Self {
        Self { is_signed, ..self }
    }

    /// Bytes that rounding a block of so many rows takes beside its target, the metric and the block's own moments: codes,
    /// errors, products and slopes, the levels of some rows times the moments, and the block's factor.
    #[must_use]
    pub fn bytes(columns: usize, group: usize, rows: usize) -> u64 {
        let levels =
            4 * descent::levels_at_once(columns, group, rows) * (columns / group.max(1) + 1) * columns;
        (28 * rows * columns + levels + 16 * rows * rows) as u64
    }

    /// Rounds all rows of a target, in the threads of the pool that this is called in.
    ///
    /// # Errors
    /// The first weight that is not finite, or whose scale overflows.
    ///
    /// # Panics
    /// If `target` is not as many rows as `outputs` is of.
    pub fn round(&self, target: &[f32], outputs: &OutputMetric) -> Result<Rounded, BadWeight> {
        let columns = self.metric.columns();
        assert_eq!(target.len(), outputs.rows() * columns, "all rows of a matrix");
        finite(target, columns)?;
        let mut out = Rounded::default();
        // One after another, each in all threads: what a block needs is there once.
        for range in outputs.ranges() {
            let target = &target[range.start * columns..range.end * columns];
            let rounded = self.round_block(target, outputs.block(range));
            out.append(rounded.map_err(|bad| BadWeight { row: bad.row + range.start, ..bad })?);
        }
        Ok(out)
    }

    fn round_block(&self, target: &[f32], mut outputs: Outputs) -> Result<Rounded, BadWeight> {
        let (metric, isa) = (&*self.metric, self.isa);
        let columns = metric.columns();
        let searched = Grids::search(self.scheme, self.is_signed, target, metric, isa)
            .map_err(|Overflow(group)| overflow(target, columns, group, self.scheme.group_cols(columns)))?;
        let nearest = searched.nearest(target);
        let error_of_nearest = error(&searched, &nearest, target, metric, &outputs);
        let mut grids = searched.clone();
        let mut codes = feedback::feed_back(target, metric, &outputs, &grids, isa);
        outputs.forget_factor();
        descent::descend(&mut codes, &mut grids, target, metric, &outputs, isa);
        let error = error(&grids, &codes, target, metric, &outputs);
        if error.is_nan() || error > error_of_nearest {
            let matrix = unpacked(&nearest, searched);
            return Ok(Rounded { matrix, error: error_of_nearest, error_of_nearest });
        }
        Ok(Rounded { matrix: unpacked(&codes, grids), error, error_of_nearest })
    }
}

/// tr(G D H Dᵀ) of all rows of a block.
fn error(grids: &Grids, codes: &[f32], target: &[f32], metric: &Metric, outputs: &Outputs) -> f64 {
    let errors = grids.errors(codes, target);
    let products = metric.times_shared(&errors);
    let (rows, columns) = (outputs.rows, metric.columns);
    let mut both = vec![0.0; errors.len()];
    let (left, right) = (View::rows(&outputs.moments, rows), View::rows(&products, columns));
    multiply_shared((rows, rows, columns), left, right, (&mut both, columns), 1.0, false);
    errors.iter().zip(&both).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
