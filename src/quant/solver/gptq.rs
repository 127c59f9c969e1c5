//! Rounding with second moments: codes that lessen the error of a matrix's outputs, without gradients.
//!
//! With D the error of the weights and H the second moments of the inputs, damped, the squared error of the outputs is
//! tr(D H Dᵀ). Rows are independent of each other. For each of them:
//!
//! 1. [`Correction`] gives the target: the weights, changed so that they make good what the rounding of earlier
//!    matrices has done to the inputs (GPTAQ, Qronos).
//! 2. A search gives each group its grid; columns count by 1 / (H⁻¹)ⱼⱼ.
//! 3. Error feedback gives the codes (GPTQ), the strongest inputs first. Groups stay where they are, so that the stored
//!    matrix is like that of any other solver.
//! 4. Scales are fitted and codes chosen anew, in turn, as long as the error falls.
//!
//! Last, a row for which rounding to nearest is better has that, so that no row is ever worse.
//!
//! Products of matrices are rounded otherwise on machines without fused multiply-add; codes may differ between those and
//! others if a decision is within rounding of a tie. They depend neither on the number of threads nor on the tiles that rows
//! are cut into.

use std::sync::Arc;

use crate::quant::reference::Unpacked;
use crate::quant::{BadValue, BadWeight, Granularity, Quantizer};

mod correction;
mod descent;
mod factor;
mod feedback;
mod grid;
mod guided;
mod metric;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tests;

pub use correction::Correction;
pub use guided::{Guided, OutputMetric};
pub use metric::{BadMoments, Metric};

use grid::{Grids, Overflow};

/// Rounds matrices with the same inputs.
#[derive(Debug, Clone)]
pub struct Gptq {
    /// Knows how matrices are stored and measured.
    nearest: Quantizer,
    metric: Arc<Metric>,
    is_signed: bool,
}

/// Some rows, rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// Codes, scales and zero points.
    pub matrix: Unpacked,
    /// The squared error of the outputs, tr(D H Dᵀ), D being the difference from the target; with the metric of the outputs,
    /// tr(G D H Dᵀ).
    pub error: f64,
    /// The same if each weight of the target is rounded to nearest, with the scales of the search.
    pub error_of_nearest: f64,
}

impl Default for Rounded {
    /// No rows.
    fn default() -> Self {
        let matrix = Unpacked { codes: Vec::new(), scales: Vec::new(), zero_points: Vec::new() };
        Self { matrix, error: 0.0, error_of_nearest: 0.0 }
    }
}

impl Rounded {
    /// Adds the rows that follow.
    pub fn append(&mut self, rows: Self) {
        self.matrix.codes.extend(rows.matrix.codes);
        self.matrix.scales.extend(rows.matrix.scales);
        self.matrix.zero_points.extend(rows.matrix.zero_points);
        self.error += rows.error;
        self.error_of_nearest += rows.error_of_nearest;
    }
}

impl Gptq {
    /// A solver of matrices that `nearest` is for, whose inputs are those of `metric`.
    ///
    /// # Panics
    /// If they are of other numbers of columns, or the scheme has one scale per tensor: a plan checks that.
    #[must_use]
    pub fn new(nearest: Quantizer, metric: Arc<Metric>) -> Self {
        assert_eq!(metric.columns(), nearest.cols, "moments of the matrix's own inputs");
        assert!(nearest.scheme.granularity != Granularity::Tensor, "rows are independent of each other");
        Self { nearest, metric, is_signed: false }
    }

    /// Whether scales may be negative, so that the longer side of a group can have the one code more. It changes nothing if
    /// there are zero points.
    #[must_use]
    pub fn signed(self, is_signed: bool) -> Self {
        Self { is_signed, ..self }
    }

    /// Rounds some rows of the weights, or of their target ([`Correction`]).
    ///
    /// # Errors
    /// The first weight that is not finite, or whose scale overflows.
    ///
    /// # Panics
    /// If `target` is no whole number of rows.
    pub fn round(&self, target: &[f32]) -> Result<Rounded, BadWeight> {
        let columns = self.metric.columns();
        assert!(columns == 0 || target.len().is_multiple_of(columns), "whole rows");
        if target.is_empty() {
            return Ok(Rounded::default());
        }
        finite(target, columns)?;
        self.round_rows(target)
    }

    /// Steps 2 to 4 for some rows of the target.
    fn round_rows(&self, targets: &[f32]) -> Result<Rounded, BadWeight> {
        let (scheme, metric, isa) = (self.nearest.scheme, &*self.metric, self.nearest.isa);
        let columns = metric.columns();
        let searched = Grids::search(scheme, self.is_signed, targets, metric, isa)
            .map_err(|Overflow(group)| overflow(targets, columns, group, scheme.group_cols(columns)))?;
        let nearest = searched.nearest(targets);
        let errors_of_nearest = row_errors(&searched.errors(&nearest, targets), metric);
        let mut grids = searched.clone();
        let mut codes = feedback::feed_back(targets, metric, &grids, isa);
        descent::descend(&mut codes, &mut grids, targets, metric, isa);
        let mut errors = row_errors(&grids.errors(&codes, targets), metric);
        let groups = grids.scales.len() / errors.len();
        for (row, (error, of_nearest)) in errors.iter_mut().zip(&errors_of_nearest).enumerate() {
            if *error > *of_nearest || error.is_nan() {
                let (weights, groups) =
                    (row * columns..(row + 1) * columns, row * groups..(row + 1) * groups);
                codes[weights.clone()].copy_from_slice(&nearest[weights]);
                grids.scales[groups.clone()].copy_from_slice(&searched.scales[groups]);
                *error = *of_nearest;
            }
        }
        let (error, error_of_nearest) = (errors.iter().sum(), errors_of_nearest.iter().sum());
        Ok(Rounded { matrix: unpacked(&codes, grids), error, error_of_nearest })
    }
}

/// Codes and grids, as they are stored.
fn unpacked(codes: &[f32], grids: Grids) -> Unpacked {
    Unpacked {
        codes: codes.iter().map(|code| *code as i8).collect(),
        scales: grids.scales,
        zero_points: grids.zeros.iter().map(|zero| *zero as i8).collect(),
    }
}

/// d H dᵀ of each row d.
fn row_errors(errors: &[f32], metric: &Metric) -> Vec<f64> {
    let products = metric.times(errors);
    let rows = errors.chunks_exact(metric.columns).zip(products.chunks_exact(metric.columns));
    rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()).collect()
}

/// The first number that is none.
fn finite(weights: &[f32], columns: usize) -> Result<(), BadWeight> {
    let Some(bad) = weights.iter().position(|weight| !weight.is_finite()) else { return Ok(()) };
    let what = if weights[bad].is_nan() { BadValue::NotANumber } else { BadValue::Infinite };
    Err(BadWeight { row: bad / columns, col: bad % columns, what })
}

/// The largest weight of a group whose scale overflows.
fn overflow(weights: &[f32], columns: usize, group: usize, size: usize) -> BadWeight {
    let range = group * size..(group + 1) * size;
    let largest = |a: &usize, b: &usize| weights[*a].abs().total_cmp(&weights[*b].abs()).then(b.cmp(a));
    let at = range.max_by(largest).unwrap_or(group * size);
    BadWeight { row: at / columns, col: at % columns, what: BadValue::ScaleOverflow }
}
