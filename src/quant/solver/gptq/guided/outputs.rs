//! The metric of a matrix's outputs: second moments of their gradients, damped, and factored block by block.

use std::ops::Range;

use super::super::BadMoments;
use super::super::factor::upper_of_inverse;

/// The share of the diagonal's mean that is added to the diagonal: gradients are known of fewer tokens than inputs.
const DAMPING: f64 = 0.1;

/// How often damping is multiplied by ten until the moments can be factored.
const ATTEMPTS: i32 = 4;

/// Second moments of the gradients of a matrix's outputs, whole or as blocks of neighbouring outputs along the diagonal.
/// Only their relation matters: all are taken in shares of the diagonal's mean.
#[derive(Debug, Clone)]
pub struct OutputMetric {
    ranges: Vec<Range<usize>>,
    /// One a block; with damping, in shares of the diagonal's mean.
    blocks: Vec<Vec<f32>>,
}

/// One block.
#[derive(Debug, Clone)]
pub(super) struct Outputs {
    pub(super) rows: usize,
    /// G, row by row.
    pub(super) moments: Vec<f32>,
    /// All rows, those with the strongest gradients first.
    pub(super) order: Vec<usize>,
    /// U, upper, row by row, with rows in that order: G⁻¹ = Uᵀ U.
    pub(super) factor: Vec<f32>,
}

impl OutputMetric {
    /// Of moments of so many outputs in blocks of so many: squares, row by row and symmetric, one after another.
    ///
    /// # Errors
    /// If they are no moments, or none that rounding could use.
    ///
    /// # Panics
    /// If there are not as many numbers as such blocks have.
    pub fn new(rows: usize, block: usize, moments: &[f32]) -> Result<Self, BadMoments> {
        let block = block.clamp(1, rows.max(1));
        let ranges: Vec<_> = (0..rows).step_by(block).map(|start| start..rows.min(start + block)).collect();
        let count: usize = ranges.iter().map(|range| range.len() * range.len()).sum();
        assert_eq!(moments.len(), count, "second moments are squares");
        let mean = mean_square(&ranges, moments)?;
        let scale = 1.0 / (mean * (1.0 + DAMPING));
        let mut rest = moments;
        let mut blocks = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let (own, after) = rest.split_at(range.len() * range.len());
            rest = after;
            let mut own: Vec<f32> = own.iter().map(|x| (f64::from(*x) * scale) as f32).collect();
            for (i, row) in own.chunks_exact_mut(range.len()).enumerate() {
                row[i] = ((f64::from(row[i]) / scale + DAMPING * mean) * scale) as f32;
            }
            blocks.push(own);
        }
        Ok(Self { ranges, blocks })
    }

    /// The number of outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Outputs that belong together.
    pub(super) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// One of the blocks, factored.
    pub(super) fn block(&self, range: &Range<usize>) -> Outputs {
        let index = self.ranges.partition_point(|other| other.start < range.start);
        Outputs::new(range.len(), self.blocks[index].clone())
    }
}

impl Outputs {
    /// Of damped moments. If they cannot be factored, their diagonal is raised until they can.
    fn new(rows: usize, mut moments: Vec<f32>) -> Self {
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by(|&a, &b| moments[b * (rows + 1)].total_cmp(&moments[a * (rows + 1)]));
        for attempt in 0..ATTEMPTS {
            if let Some(factor) = upper_of_inverse(&moments, &order) {
                return Self { rows, moments, order, factor };
            }
            let added = DAMPING as f32 * 10f32.powi(attempt + 1);
            (0..rows).for_each(|row| moments[row * (rows + 1)] += added);
        }
        // No moments at all: each output for itself.
        let mut factor = vec![0.0; rows * rows];
        for row in 0..rows {
            let own = moments[row * (rows + 1)];
            moments[row * rows..(row + 1) * rows].fill(0.0);
            moments[row * (rows + 1)] = own;
        }
        for (place, &row) in order.iter().enumerate() {
            factor[place * (rows + 1)] = 1.0 / moments[row * (rows + 1)].sqrt();
        }
        Self { rows, moments, order, factor }
    }

    /// Lets go what only the feedback needs.
    pub(super) fn forget_factor(&mut self) {
        self.factor = Vec::new();
    }
}

/// The mean of the diagonals, above 0.
fn mean_square(ranges: &[Range<usize>], moments: &[f32]) -> Result<f64, BadMoments> {
    let (mut sum, mut at) = (0.0, 0);
    for range in ranges {
        for row in 0..range.len() {
            let own = &moments[at..at + range.len()];
            if own[row] < 0.0 || own.iter().any(|x| !x.is_finite()) {
                return Err(BadMoments::Row(range.start + row));
            }
            sum += f64::from(own[row]);
            at += range.len();
        }
    }
    let rows = ranges.last().map_or(0, |range| range.end);
    match sum / rows as f64 {
        mean if mean > 0.0 && mean.is_finite() => Ok(mean),
        _ => Err(BadMoments::AllZero),
    }
}
