//! The error of a matrix's outputs as a metric of its rows: second moments of the inputs, damped and factored.

use std::fmt;

use super::factor::{self, upper_of_inverse};
use crate::quant::product::{View, multiply, multiply_shared};

/// The share of the diagonal's mean that is added to the diagonal, so that inputs that were not seen count a little.
const DAMPING: f64 = 0.05;

/// How often damping is multiplied by ten until the moments can be factored.
const ATTEMPTS: i32 = 4;

/// Second moments of a matrix's inputs, mean of x xᵀ, with damping: an error D of the weights has the squared error
/// tr(D H Dᵀ) of the outputs. Made once for all matrices with the same inputs.
#[derive(Debug)]
pub struct Metric {
    pub(super) columns: usize,
    /// H, damped; row by row.
    pub(super) moments: Vec<f32>,
    /// Its diagonal.
    pub(super) diagonal: Vec<f32>,
    /// All columns, those with the strongest inputs first.
    pub(super) order: Vec<usize>,
    /// U, upper, row by row, with columns in that order: H⁻¹ = Uᵀ U.
    pub(super) factor: Vec<f32>,
    /// The error of a column that no other column can make good: 1 / (H⁻¹)ⱼⱼ.
    pub(super) weights: Vec<f32>,
    damping: f64,
}

/// Why no metric can be made of second moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMoments {
    /// One with this column is infinite or not a number, or its square is negative.
    Column(usize),
    /// The same of gradients, with this row.
    Row(usize),
    /// All inputs were zero.
    AllZero,
    /// They cannot be factored with any damping that was tried.
    Singular,
}

impl fmt::Display for BadMoments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column(column) => write!(f, "the second moments of column {column} are no such numbers"),
            Self::Row(row) => {
                write!(f, "the second moments of the gradients of row {row} are no such numbers")
            }
            Self::AllZero => f.write_str("all inputs are 0"),
            Self::Singular => f.write_str("the second moments are singular"),
        }
    }
}

impl Metric {
    /// Of second moments [columns, columns], row by row and symmetric.
    ///
    /// # Errors
    /// If they are no moments, or none that rounding could use.
    ///
    /// # Panics
    /// If there are not as many numbers as the square of `columns`.
    pub fn new(columns: usize, mut moments: Vec<f32>) -> Result<Self, BadMoments> {
        let mean = mean_square(columns, &moments)?;
        let mut diagonal: Vec<f32> = (0..columns).map(|column| moments[column * (columns + 1)]).collect();
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        for attempt in 0..ATTEMPTS {
            let damping = DAMPING * 10f64.powi(attempt);
            for (column, x) in diagonal.iter().enumerate() {
                moments[column * (columns + 1)] = (f64::from(*x) + damping * mean) as f32;
            }
            let Some(factor) = upper_of_inverse(&moments, &order) else { continue };
            let weights = weights(&factor, &order);
            diagonal = (0..columns).map(|column| moments[column * (columns + 1)]).collect();
            let is_usable = |x: &f32| x.is_finite() && *x > 0.0;
            if diagonal.iter().chain(&weights).all(is_usable) {
                return Ok(Self { columns, moments, diagonal, order, factor, weights, damping });
            }
            return Err(BadMoments::Singular);
        }
        Err(BadMoments::Singular)
    }

    /// Bytes that factoring takes, of a target or of a metric, beside the moments and the factors.
    #[must_use]
    pub fn bytes(columns: usize) -> u64 {
        factor::bytes(columns)
    }

    /// The number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The share of the diagonal's mean that was added to the diagonal: 0.05, or more if the moments need it.
    #[must_use]
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// D·H of an error D of some rows.
    pub(super) fn times(&self, errors: &[f32]) -> Vec<f32> {
        let columns = self.columns;
        let mut out = vec![0.0; errors.len()];
        let size = (errors.len() / columns.max(1), columns, columns);
        let (left, right) = (View::rows(errors, columns), View::rows(&self.moments, columns));
        multiply(size, left, right, (&mut out, columns), 1.0, false);
        out
    }

    /// The same of a whole matrix, in the threads of the pool.
    pub(super) fn times_shared(&self, errors: &[f32]) -> Vec<f32> {
        let columns = self.columns;
        let mut out = vec![0.0; errors.len()];
        let size = (errors.len() / columns.max(1), columns, columns);
        let (left, right) = (View::rows(errors, columns), View::rows(&self.moments, columns));
        multiply_shared(size, left, right, (&mut out, columns), 1.0, false);
        out
    }
}

/// 1 / (H⁻¹)ⱼⱼ of all columns, of the factor of H⁻¹ with columns in an order.
fn weights(factor: &[f32], order: &[usize]) -> Vec<f32> {
    let columns = order.len();
    let mut inverse = vec![0f64; columns];
    for row in factor.chunks_exact(columns.max(1)) {
        inverse.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    let mut weights = vec![0.0; columns];
    for (&column, inverse) in order.iter().zip(&inverse) {
        weights[column] = (1.0 / inverse) as f32;
    }
    weights
}

/// The mean of the diagonal, above 0.
pub(super) fn mean_square(columns: usize, moments: &[f32]) -> Result<f64, BadMoments> {
    assert_eq!(moments.len(), columns * columns, "second moments are a square");
    let mut sum = 0.0;
    for (column, row) in moments.chunks_exact(columns.max(1)).enumerate() {
        if row[column] < 0.0 || row.iter().any(|x| !x.is_finite()) {
            return Err(BadMoments::Column(column));
        }
        sum += f64::from(row[column]);
    }
    match sum / columns as f64 {
        mean if mean > 0.0 && mean.is_finite() => Ok(mean),
        _ => Err(BadMoments::AllZero),
    }
}
