//! Importance of the input columns of a matrix: the mean squared activation that each column is multiplied with.

use std::fmt;
use std::sync::Arc;

/// Added to the mean before the division, as llm-compressor does: the smallest normal f32.
const TINY: f32 = f32::MIN_POSITIVE;

/// The importance of columns: their mean squared activations divided by the mean of these over all columns of the matrix, so
/// that 1 is usual (llm-compressor's `imatrix_mse`). Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance(Arc<[f32]>);

/// Why sums of squares are no importance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BadStatistics {
    /// The sum of a column is not a number.
    NotANumber(usize),
    /// The sum of a column is infinite.
    Infinite(usize),
    /// The sum of a column is negative.
    Negative(usize),
    /// All sums are 0.
    AllZero,
    /// No token was seen.
    NoTokens,
    /// The number of tokens is negative, infinite or not a number.
    BadCount(f64),
}

impl fmt::Display for BadStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANumber(column) => write!(f, "column {column} is NaN"),
            Self::Infinite(column) => write!(f, "column {column} is infinite"),
            Self::Negative(column) => write!(f, "column {column} is negative"),
            Self::AllZero => f.write_str("all columns are 0"),
            Self::NoTokens => f.write_str("no token was seen"),
            Self::BadCount(count) => write!(f, "{count} tokens were seen"),
        }
    }
}

impl Importance {
    /// Importance from the sum of squared activations of each column over `tokens` tokens.
    ///
    /// # Errors
    /// The first value that makes the statistics invalid.
    pub fn new(sums: &[f32], tokens: f64) -> Result<Self, BadStatistics> {
        if !tokens.is_finite() || tokens < 0.0 {
            return Err(BadStatistics::BadCount(tokens));
        }
        for (column, &sum) in sums.iter().enumerate() {
            if sum.is_nan() {
                return Err(BadStatistics::NotANumber(column));
            }
            if sum.is_infinite() {
                return Err(BadStatistics::Infinite(column));
            }
            if sum < 0.0 {
                return Err(BadStatistics::Negative(column));
            }
        }
        if tokens == 0.0 {
            return Err(BadStatistics::NoTokens);
        }
        let means: Vec<f32> = sums.iter().map(|&sum| sum / tokens as f32).collect();
        let mean = means.iter().map(|&mean| f64::from(mean)).sum::<f64>() / means.len() as f64;
        let mean = mean as f32 + TINY;
        // Numbers at the ends of f32: a quotient may vanish, or overflow if less than one token was counted.
        if let Some(column) = means.iter().position(|mean| !mean.is_finite()) {
            return Err(BadStatistics::Infinite(column));
        }
        if means.iter().all(|&mean| mean == 0.0) {
            return Err(BadStatistics::AllZero);
        }
        Ok(Self(means.into_iter().map(|value| value / mean).collect()))
    }

    /// One number per column.
    #[must_use]
    pub fn columns(&self) -> &[f32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_the_columns_is_one() {
        let importance = Importance::new(&[2.0, 4.0, 0.0, 10.0], 4.0).expect("statistics");
        assert_eq!(importance.columns(), [0.5, 1.0, 0.0, 2.5]);
        let scaled = Importance::new(&[20.0, 40.0, 0.0, 100.0], 4.0).expect("statistics");
        assert_eq!(scaled, importance);
    }

    #[test]
    fn what_is_no_statistics_is_said() {
        let said =
            |sums: &[f32], tokens| Importance::new(sums, tokens).expect_err("no statistics").to_string();
        assert_eq!(said(&[1.0, f32::NAN], 1.0), "column 1 is NaN");
        assert_eq!(said(&[f32::INFINITY], 1.0), "column 0 is infinite");
        assert_eq!(said(&[1.0, -1.0], 1.0), "column 1 is negative");
        assert_eq!(said(&[0.0, 0.0], 1.0), "all columns are 0");
        assert_eq!(said(&[1.0], 0.0), "no token was seen");
        assert_eq!(said(&[1.0], -2.0), "-2 tokens were seen");
        assert_eq!(said(&[], 1.0), "all columns are 0");
    }

    #[test]
    fn means_that_vanish_or_overflow_are_none() {
        assert_eq!(Importance::new(&[1e-44, 0.0], 1e6), Err(BadStatistics::AllZero));
        assert_eq!(Importance::new(&[1.0, 2.0], 1e300), Err(BadStatistics::AllZero));
        assert_eq!(Importance::new(&[1.0, f32::MAX], 0.5), Err(BadStatistics::Infinite(1)));
        let largest = Importance::new(&[f32::MAX; 3], 1.0).expect("statistics");
        assert_eq!(largest.columns(), [1.0; 3]);
    }

    #[test]
    fn a_million_times_the_sums_is_the_same_importance() {
        let sums: Vec<f32> = (0..300).map(|i| (i * i % 97) as f32 / 7.0).collect();
        let times = |factor: f32| sums.iter().map(|sum| sum * factor).collect::<Vec<_>>();
        let plain = Importance::new(&sums, 5.0).expect("statistics");
        // A power of two, and so the same bits.
        assert_eq!(Importance::new(&times(1_048_576.0), 5.0).as_ref(), Ok(&plain));
        assert_eq!(Importance::new(&sums, 40.0).as_ref(), Ok(&plain));
    }
}
