//! The search for the shrunk range with the least error.
//!
//! The definition is in [`Search::error`]: a sum in f64, for each of the candidates, of which the least wins. That is a
//! hundred times the cost of quantizing. So all candidates get bounds of their errors first ([`estimate`]), and
//! only those that may have the least are summed, mostly a single one, which then is not summed either. The outcome is
//! that of the definition, by construction, whatever the bounds are made of.

mod estimate;

use super::Mse;
use super::kernel::{LANES, round_code};
use super::params::Rules;
use super::power::power;
use estimate::{Bounds, Estimate};

/// The search of one observer and scheme.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// The factors of the candidates' ranges, the last one repeated up to a multiple of 8. Equals never win against
    /// those before them, so this only makes loops even.
    factors: Vec<f32>,
    norm: f64,
    rules: Rules,
    estimate: Option<Estimate>,
}

/// Scales and zero points of the candidates of a group.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    scales: &'a [f32],
    zeros: &'a [f32],
    /// 1 / scale.
    reciprocals: &'a [f32],
    qmin: f32,
    qmax: f32,
}

/// Buffers of the search.
#[derive(Debug, Default)]
pub(super) struct SearchScratch {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    reciprocals: Vec<f32>,
    bounds: Bounds,
}

impl Search {
    pub(super) fn new(mse: Mse, rules: Rules) -> Self {
        let estimate = Estimate::new(mse.norm, rules.bits.steps());
        let mut factors = mse.factors();
        if let Some(&last) = factors.last() {
            factors.resize(factors.len().next_multiple_of(8), last);
        }
        Self { factors, norm: mse.norm, rules, estimate }
    }

    /// The range of candidate i.
    #[inline(always)]
    fn candidate(&self, i: usize, (low, high): (f32, f32)) -> (f32, f32) {
        let p = self.factors[i];
        (self.rules.source.round(low * p), self.rules.source.round(high * p))
    }

    /// Scales and zero points of all candidates of a range.
    #[inline(always)]
    fn resolve_candidates(&self, range: (f32, f32), scratch: &mut SearchScratch) {
        let SearchScratch { scales, zeros, .. } = scratch;
        scales.resize(self.factors.len(), 0.0);
        zeros.resize(self.factors.len(), 0.0);
        for ((scale, zero), p) in scales.iter_mut().zip(zeros.iter_mut()).zip(&self.factors) {
            *scale = range.1 * p;
            *zero = range.0 * p;
        }
        self.rules.source.round_all(scales);
        self.rules.source.round_all(zeros);
        self.rules.resolve(zeros, scales);
    }

    /// The range of the candidate with the least error over the weights of a group; the widest of equals.
    #[inline(always)]
    pub(super) fn best_range<const FMA: bool>(
        &self,
        weights: &[f32],
        range: (f32, f32),
        scratch: &mut SearchScratch,
    ) -> (f32, f32) {
        if range == (0.0, 0.0) {
            return range;
        }
        self.resolve_candidates(range, scratch);
        let SearchScratch { scales, zeros, reciprocals, bounds } = scratch;
        reciprocals.resize(scales.len(), 0.0);
        for (reciprocal, &scale) in reciprocals.iter_mut().zip(scales.iter()) {
            *reciprocal = 1.0 / scale;
        }
        let (qmin, qmax) = (self.rules.bits.qmin() as f32, self.rules.bits.qmax() as f32);
        let candidates = Candidates { scales, zeros, reciprocals, qmin, qmax };
        let bounded = match &self.estimate {
            Some(estimate) => estimate.bound::<FMA>(weights, &candidates, bounds),
            None => false,
        };
        let may_win = |i: usize| !bounded || bounds.lower[i] <= bounds.least_upper;
        if bounded {
            let mut left = (0..scales.len()).filter(|&i| may_win(i));
            if let (Some(only), None) = (left.next(), left.next()) {
                return self.candidate(only, range);
            }
        }
        let mut best = f64::INFINITY;
        let mut winner = 0;
        for i in 0..scales.len() {
            if !may_win(i) {
                continue;
            }
            if i > 0 && scales[i] == scales[i - 1] && zeros[i] == zeros[i - 1] {
                continue;
            }
            let error = self.error(weights, scales[i], zeros[i]);
            if error < best {
                (best, winner) = (error, i);
            }
        }
        self.candidate(winner, range)
    }

    /// Σ|(code − zero)·scale − w|^norm in f64, in the fixed order of 16 lanes.
    #[inline(always)]
    fn error(&self, weights: &[f32], scale: f32, zero: f32) -> f64 {
        let (qmin, qmax) = (self.rules.bits.qmin() as f32, self.rules.bits.qmax() as f32);
        let (norm, wide) = (self.norm, f64::from(scale));
        let term = |w: f32| {
            let code = round_code(w / scale + zero, qmin, qmax);
            power((f64::from(code - zero) * wide - f64::from(w)).abs(), norm)
        };
        let (chunks, rest) = weights.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += term(chunk[i]);
            }
        }
        for (sum, &w) in sums.iter_mut().zip(rest) {
            *sum += term(w);
        }
        fold(sums)
    }

    /// Errors of all candidates before any weight was seen.
    pub(super) fn no_errors(&self) -> Vec<f64> {
        vec![0.0; self.factors.len()]
    }

    /// Adds the errors of a row for every candidate of a tensor's range.
    #[inline(always)]
    pub(super) fn add_errors(&self, weights: &[f32], range: (f32, f32), errors: &mut [f64]) {
        let mut scratch = SearchScratch::default();
        self.resolve_candidates(range, &mut scratch);
        for ((&scale, &zero), sum) in scratch.scales.iter().zip(&scratch.zeros).zip(errors) {
            *sum += self.error(weights, scale, zero);
        }
    }

    /// The range of the candidate with the least of these errors; the widest of equals.
    pub(super) fn least(&self, errors: &[f64], range: (f32, f32)) -> (f32, f32) {
        let (mut best, mut winner) = (f64::INFINITY, 0);
        for (i, &error) in errors.iter().enumerate() {
            if error < best {
                (best, winner) = (error, i);
            }
        }
        self.candidate(winner, range)
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
pub(super) fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
