//! Quantization error, measured on the weights that an engine will see.
//!
//! Every measure compares a source weight w with its dequantized value d, rounded to the scales' type; e = w − d.

use serde::{Deserialize, Serialize};

/// The group with the greatest quantization error relative to its signal. It is a row if a row or the tensor has one
/// scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WorstGroup {
    /// Row.
    pub row: usize,
    /// Group of the row; its first column is this times the group size.
    pub group: usize,
    /// Σw² of the group.
    pub signal: f64,
    /// Σe² of the group.
    pub noise: f64,
}

impl WorstGroup {
    /// 10·log10(signal / noise) in dB.
    #[must_use]
    pub fn sqnr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }

    /// Whether this group is worse than that one: more noise in proportion. Equal ones are not.
    #[inline(always)]
    pub(super) fn is_worse_than(&self, other: &Self) -> bool {
        // Without division: this is asked for every group.
        self.signal * other.noise < other.signal * self.noise
    }
}

/// Distortion of a set of weights: a tile, a tensor, or a model.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Distortion {
    /// How many weights.
    pub count: u64,
    /// Signal, Σw².
    pub signal: f64,
    /// Noise, Σe².
    pub noise: f64,
    /// Σw·e.
    pub cross: f64,
    /// Σw² of weights whose scale is too small for its type ([`super::Quantizer::faint_signal`]).
    #[serde(default)]
    pub faint: f64,
    /// Σ importance·w² if columns have an importance, else 0.
    pub weighted_signal: f64,
    /// Σ importance·e².
    pub weighted_noise: f64,
    /// The greatest |e|, NaN or infinite if a dequantized weight is.
    pub max_abs_error: f32,
    /// Row and column of the first weight with that error.
    pub max_abs_error_at: (usize, usize),
    /// The greatest |d|, infinite if the product of code and scale is.
    pub max_abs_weight: f32,
    /// Weights that the grid of their group cannot represent: further outside it than half a step, plus what the
    /// rounding of scale and zero point to their types explains.
    pub clipped: u64,
    /// The worst group; none if no weight changed.
    pub worst_group: Option<WorstGroup>,
}

impl Distortion {
    /// Signal to quantization noise ratio in dB, 10·log10(signal / noise): infinite if nothing was lost, none
    /// if there is no signal or it is not finite.
    #[must_use]
    pub fn sqnr_db(&self) -> Option<f64> {
        if self.signal > 0.0 && self.signal.is_finite() && !self.noise.is_nan() {
            Some(10.0 * (self.signal / self.noise).log10())
        } else {
            None
        }
    }

    /// 10·log10 of Σ importance·w² over Σ importance·e², in dB: as [`Distortion::sqnr_db`]. None if columns have no
    /// importance.
    #[must_use]
    pub fn weighted_sqnr_db(&self) -> Option<f64> {
        let (signal, noise) = (self.weighted_signal, self.weighted_noise);
        let is_known = signal > 0.0 && signal.is_finite() && !noise.is_nan();
        is_known.then(|| 10.0 * (signal / noise).log10())
    }

    /// Cosine of the angle between weights and dequantized weights, Σwd / √(Σw²·Σd²); none if one of them is all zero.
    #[must_use]
    pub fn cosine(&self) -> Option<f64> {
        // d = w − e, so Σwd = signal − cross and Σd² = signal − 2·cross + noise.
        let dequantized = self.signal - 2.0 * self.cross + self.noise;
        let norm = (self.signal.sqrt() * dequantized.max(0.0).sqrt()).abs();
        if norm > 0.0 && norm.is_finite() {
            Some(((self.signal - self.cross) / norm).clamp(-1.0, 1.0))
        } else {
            None
        }
    }

    /// The share of weights that are clipped.
    #[must_use]
    pub fn clipped_share(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.clipped as f64 / self.count as f64 }
    }

    /// Whether no sum or extreme is infinite or undefined.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let weighted = [self.weighted_signal, self.weighted_noise];
        let sums = [self.signal, self.noise, self.cross, self.faint];
        let extremes = [self.max_abs_error, self.max_abs_weight];
        let worst = self.worst_group.map_or([0.0; 2], |worst| [worst.signal, worst.noise]);
        sums.iter().chain(&weighted).chain(&worst).all(|sum| sum.is_finite())
            && extremes.iter().all(|value| value.is_finite())
    }

    /// Whether this can be the distortion of a matrix with this many rows and columns.
    #[must_use]
    pub fn is_of(&self, rows: u64, columns: u64) -> bool {
        let is_in = |at: (usize, usize)| (at.0 as u64) < rows.max(1) && (at.1 as u64) < columns.max(1);
        let energies = [self.signal, self.noise, self.faint, self.weighted_signal, self.weighted_noise];
        Some(self.count) == rows.checked_mul(columns)
            && self.clipped <= self.count
            && self.is_finite()
            && energies.iter().all(|energy| *energy >= 0.0)
            && is_in(self.max_abs_error_at)
            && self.worst_group.is_none_or(|worst| is_in((worst.row, worst.group)))
    }

    /// Adds the distortion of the rows from `row_offset` on. Sums depend on the order of merging in their last
    /// bits, so tiles are merged in order.
    pub fn merge(&mut self, other: &Self, row_offset: usize) {
        self.count += other.count;
        self.signal += other.signal;
        self.noise += other.noise;
        self.cross += other.cross;
        self.faint += other.faint;
        self.weighted_signal += other.weighted_signal;
        self.weighted_noise += other.weighted_noise;
        self.clipped += other.clipped;
        let greater = other.max_abs_error > self.max_abs_error
            || (other.max_abs_error.is_nan() && !self.max_abs_error.is_nan());
        if greater {
            self.max_abs_error = other.max_abs_error;
            self.max_abs_error_at = (other.max_abs_error_at.0 + row_offset, other.max_abs_error_at.1);
        }
        if other.max_abs_weight > self.max_abs_weight || other.max_abs_weight.is_nan() {
            self.max_abs_weight = other.max_abs_weight;
        }
        if let Some(group) = other.worst_group {
            self.offer_group(WorstGroup { row: group.row + row_offset, ..group });
        }
    }

    /// Keeps the worse of the worst group and this one. One without noise is never the worst.
    #[inline(always)]
    pub(super) fn offer_group(&mut self, group: WorstGroup) {
        if group.noise != 0.0 && self.worst_group.is_none_or(|worst| group.is_worse_than(&worst)) {
            self.worst_group = Some(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(signal: f64, noise: f64) -> Distortion {
        Distortion { count: 1, signal, noise, ..Distortion::default() }
    }

    #[test]
    fn ratios_are_in_decibels_and_absent_without_signal() {
        assert_eq!(one(100.0, 1.0).sqnr_db(), Some(20.0));
        assert_eq!(one(1.0, 0.0).sqnr_db(), Some(f64::INFINITY));
        assert_eq!(one(0.0, 0.0).sqnr_db(), None);
        assert_eq!(one(1.0, f64::NAN).sqnr_db(), None);
        assert_eq!(one(0.0, 0.0).cosine(), None);
        assert_eq!(one(4.0, 0.0).cosine(), Some(1.0));
    }

    #[test]
    fn merging_adds_energies_and_moves_rows() {
        let mut all = Distortion { max_abs_error: 1.0, max_abs_error_at: (3, 5), ..one(10.0, 1.0) };
        let worst = WorstGroup { row: 1, group: 2, signal: 1.0, noise: 0.5 };
        let other = Distortion {
            max_abs_error: 2.0,
            max_abs_error_at: (1, 7),
            max_abs_weight: 4.0,
            clipped: 2,
            worst_group: Some(worst),
            ..one(90.0, 0.0)
        };
        all.merge(&other, 8);
        assert_eq!(all.sqnr_db(), Some(20.0));
        assert_eq!((all.max_abs_error, all.max_abs_error_at), (2.0, (9, 7)));
        assert_eq!((all.clipped, all.clipped_share(), all.max_abs_weight), (2, 1.0, 4.0));
        assert_eq!(all.worst_group, Some(WorstGroup { row: 9, ..worst }));
        all.merge(&other, 16);
        assert_eq!(all.max_abs_error_at, (9, 7), "the first of equals stays");
        assert_eq!(all.worst_group.map(|group| group.row), Some(9));
    }
}
