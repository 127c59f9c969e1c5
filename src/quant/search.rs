//! The search for the shrunk range with the least error.
//!
//! The definition is in [`Search::error`]: a sum in f64 for each candidate; the least sum wins. That is a hundred
//! times the cost of quantizing. So all candidates get bounds of their errors first ([`estimate`]). Those that may
//! have the least error get better bounds. Only if several are left are the errors summed. By construction, the
//! outcome is that of the definition, regardless of how the bounds are computed.

mod estimate;

use super::Mse;
use super::kernel::round_code;
use super::params::Rules;
use crate::quant::powf::power;
use crate::quant::simd::machine::{LANES, Machine};
use estimate::{Bounds, Estimate, PADDING};

/// The search of one observer and scheme.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// The factors of the candidates' ranges, the last one repeated up to a multiple of [`PADDING`].
    factors: Vec<f32>,
    /// How many there are without those.
    count: usize,
    norm: f64,
    rules: Rules,
    estimate: Option<Estimate>,
}

/// Scales and zero points of the candidates of a group.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    count: usize,
    scales: &'a [f32],
    zeros: &'a [f32],
    /// 1 / scale.
    reciprocals: &'a [f32],
    qmin: f32,
    qmax: f32,
}

impl Candidates<'_> {
    /// Whether a candidate is the same as the one before it, which then is as good and wider.
    #[inline(always)]
    fn repeats(&self, i: usize) -> bool {
        i > 0 && self.scales[i] == self.scales[i - 1] && self.zeros[i] == self.zeros[i - 1]
    }
}

/// Buffers of the search.
#[derive(Debug, Default)]
pub(super) struct SearchScratch {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    reciprocals: Vec<f32>,
    bounds: Bounds,
    /// The candidates that may win.
    left: Vec<usize>,
}

/// Bounds of the candidates' errors over a tensor, or over a tile of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Errors {
    lower: Vec<f64>,
    upper: Vec<f64>,
}

impl Errors {
    pub(super) fn merge(&mut self, other: &Self) {
        add_all(&mut self.lower, &other.lower);
        add_all(&mut self.upper, &other.upper);
    }
}

/// Adds numbers to sums, which may be none so far.
pub(super) fn add_all(sums: &mut Vec<f64>, numbers: &[f64]) {
    sums.resize(numbers.len(), 0.0);
    for (sum, number) in sums.iter_mut().zip(numbers) {
        *sum += number;
    }
}

impl Search {
    pub(super) fn new(mse: Mse, rules: Rules) -> Self {
        let estimate = Estimate::new(mse.norm, &rules);
        let mut factors = mse.factors();
        let count = factors.len();
        if let Some(&last) = factors.last() {
            factors.resize(count.next_multiple_of(PADDING), last);
        }
        Self { factors, count, norm: mse.norm, rules, estimate }
    }

    /// The range of candidate i.
    #[inline(always)]
    fn candidate(&self, i: usize, (low, high): (f32, f32)) -> (f32, f32) {
        let p = self.factors[i];
        (self.rules.source.round(low * p), self.rules.source.round(high * p))
    }

    /// Scales and zero points of all candidates of a range.
    #[inline(always)]
    fn resolve_candidates<'a>(
        &self,
        range: (f32, f32),
        scales: &'a mut Vec<f32>,
        zeros: &'a mut Vec<f32>,
        reciprocals: &'a mut Vec<f32>,
    ) -> Candidates<'a> {
        for values in [&mut *scales, &mut *zeros, &mut *reciprocals] {
            values.resize(self.factors.len(), 0.0);
        }
        for ((scale, zero), p) in scales.iter_mut().zip(zeros.iter_mut()).zip(&self.factors) {
            *scale = range.1 * p;
            *zero = range.0 * p;
        }
        self.rules.source.round_all(scales);
        self.rules.source.round_all(zeros);
        self.rules.resolve(zeros, scales);
        for (reciprocal, &scale) in reciprocals.iter_mut().zip(scales.iter()) {
            *reciprocal = 1.0 / scale;
        }
        let (qmin, qmax) = (self.rules.bits.qmin() as f32, self.rules.bits.qmax() as f32);
        let count = self.count;
        let lanes = count.next_multiple_of(LANES);
        let (scales, zeros, reciprocals) = (&scales[..lanes], &zeros[..lanes], &reciprocals[..lanes]);
        Candidates { count, scales, zeros, reciprocals, qmin, qmax }
    }

    /// As [`Search::best_range`], of a symmetric range and also of the turned one: that has a negative scale, and is found as the
    /// best one of the weights with the other sign. Its error has to be less.
    #[inline(always)]
    pub(super) fn best_of_both<M: Machine>(
        &self,
        m: M,
        weights: &mut [f32],
        importance: Option<&[f32]>,
        range: (f32, f32),
        scratch: &mut SearchScratch,
    ) -> (f32, f32) {
        let upright = self.best_range(m, weights, importance, range, scratch);
        let error = self.error_of(weights, importance, upright);
        turn(weights);
        let turned = self.best_range(m, weights, importance, range, scratch);
        let is_less = self.error_of(weights, importance, turned) < error;
        turn(weights);
        if is_less { (0.0, -turned.1) } else { upright }
    }

    /// The error of a symmetric range.
    #[inline(always)]
    fn error_of(&self, weights: &[f32], importance: Option<&[f32]>, range: (f32, f32)) -> f64 {
        let (mut low, mut high) = ([range.0], [range.1]);
        self.rules.resolve(&mut low, &mut high);
        self.error(weights, importance, high[0], 0.0)
    }

    /// The range of the candidate with the least error over the weights of a group; the widest of equals.
    #[inline(always)]
    pub(super) fn best_range<M: Machine>(
        &self,
        m: M,
        weights: &[f32],
        importance: Option<&[f32]>,
        range: (f32, f32),
        scratch: &mut SearchScratch,
    ) -> (f32, f32) {
        if range == (0.0, 0.0) {
            return self.candidate(0, range);
        }
        // If no column counts, no bound tells candidates apart. The first sum is then 0 unless a scale overflows.
        let is_idle = importance.is_some_and(|importance| importance.iter().all(|&h| h == 0.0));
        let SearchScratch { scales, zeros, reciprocals, bounds, left } = scratch;
        let candidates = self.resolve_candidates(range, scales, zeros, reciprocals);
        left.clear();
        match &self.estimate {
            Some(estimate) if !is_idle && estimate.bound(m, weights, importance, &candidates, bounds) => {
                let least = least(&bounds.upper[..self.count]);
                for (i, &lower) in bounds.lower[..self.count].iter().enumerate() {
                    if lower <= least && !candidates.repeats(i) {
                        left.push(i);
                    }
                }
                if left.len() > 1 {
                    let mut least = f64::INFINITY;
                    for &i in left.iter() {
                        let (lower, upper) = estimate.refine(m, i, &candidates, bounds);
                        bounds.lower[i] = lower;
                        least = least.min(upper);
                    }
                    left.retain(|&i| bounds.lower[i] <= least);
                }
                if let [only] = left.as_slice() {
                    return self.candidate(*only, range);
                }
            }
            _ => left.extend((0..self.count).filter(|&i| !candidates.repeats(i))),
        }
        let mut best = f64::INFINITY;
        let mut winner = 0;
        for &i in left.iter() {
            let error = self.error(weights, importance, candidates.scales[i], candidates.zeros[i]);
            if error < best {
                (best, winner) = (error, i);
            }
            if best == 0.0 {
                break;
            }
        }
        self.candidate(winner, range)
    }

    /// Σ importance·|(code − zero)·scale − w|^norm in f64, in the fixed order of 16 lanes. Without importance each
    /// weight counts 1.
    #[inline(always)]
    fn error(&self, weights: &[f32], importance: Option<&[f32]>, scale: f32, zero: f32) -> f64 {
        let (qmin, qmax) = (self.rules.bits.qmin() as f32, self.rules.bits.qmax() as f32);
        let (norm, wide) = (self.norm, f64::from(scale));
        let term = |w: f32| {
            let code = round_code(w / scale + zero, qmin, qmax);
            power((f64::from(code - zero) * wide - f64::from(w)).abs(), norm)
        };
        let (chunks, rest) = weights.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        if let Some(importance) = importance {
            let (columns, last) = importance.as_chunks::<LANES>();
            for (chunk, columns) in chunks.iter().zip(columns) {
                for i in 0..LANES {
                    sums[i] += f64::from(columns[i]) * term(chunk[i]);
                }
            }
            for (sum, (&w, &h)) in sums.iter_mut().zip(rest.iter().zip(last)) {
                *sum += f64::from(h) * term(w);
            }
            return fold(sums);
        }
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

    /// Bounds of the errors of a tensor's candidates over a tile, in a unit of their own; the errors themselves if
    /// there are no bounds.
    #[inline(always)]
    pub(super) fn bound_errors<M: Machine>(
        &self,
        m: M,
        tile: &[u8],
        cols: usize,
        importance: Option<&[f32]>,
        range: (f32, f32),
    ) -> Errors {
        let SearchScratch { mut scales, mut zeros, mut reciprocals, mut bounds, .. } =
            SearchScratch::default();
        let candidates = self.resolve_candidates(range, &mut scales, &mut zeros, &mut reciprocals);
        let none = vec![0.0; self.count];
        let mut errors = Errors { lower: none.clone(), upper: none };
        let mut values = vec![0.0; cols];
        for row in tile.chunks_exact((cols * self.rules.source.bytes()).max(1)) {
            self.rules.source.widen_all(row, &mut values);
            let bounded = match &self.estimate {
                // Whether there are bounds depends on the candidates alone, so it is the same for all rows.
                Some(estimate) if estimate.gather(m, &values, importance, &candidates, &mut bounds) => {
                    Some(estimate)
                }
                _ => None,
            };
            for (i, (lower, upper)) in errors.lower.iter_mut().zip(&mut errors.upper).enumerate() {
                let (below, above) = match bounded {
                    Some(estimate) => estimate.refine(m, i, &candidates, &bounds),
                    None => {
                        let error =
                            self.error(&values, importance, candidates.scales[i], candidates.zeros[i]);
                        (error, error)
                    }
                };
                *lower += below;
                *upper += above;
            }
        }
        errors
    }

    /// The candidates that may still have the least error over a tensor, after all tiles.
    pub(super) fn may_win(&self, errors: &Errors, range: (f32, f32)) -> Vec<usize> {
        let SearchScratch { mut scales, mut zeros, mut reciprocals, .. } = SearchScratch::default();
        let candidates = self.resolve_candidates(range, &mut scales, &mut zeros, &mut reciprocals);
        let least = least(&errors.upper);
        let lower = errors.lower.iter().enumerate();
        let left = lower.filter(|&(i, &lower)| lower <= least && !candidates.repeats(i)).map(|(i, _)| i);
        let left: Vec<usize> = left.collect();
        // Errors that overflowed: none is less than another.
        if left.is_empty() { vec![0] } else { left }
    }

    /// The errors of some candidates over a tile.
    #[inline(always)]
    pub(super) fn exact_errors(
        &self,
        tile: &[u8],
        cols: usize,
        importance: Option<&[f32]>,
        range: (f32, f32),
        left: &[usize],
    ) -> Vec<f64> {
        let SearchScratch { mut scales, mut zeros, mut reciprocals, .. } = SearchScratch::default();
        let candidates = self.resolve_candidates(range, &mut scales, &mut zeros, &mut reciprocals);
        let mut errors = vec![0.0; left.len()];
        let mut values = vec![0.0; cols];
        for row in tile.chunks_exact((cols * self.rules.source.bytes()).max(1)) {
            self.rules.source.widen_all(row, &mut values);
            for (&i, sum) in left.iter().zip(&mut errors) {
                *sum += self.error(&values, importance, candidates.scales[i], candidates.zeros[i]);
            }
        }
        errors
    }

    /// The range of that candidate, of those that are left, with the least of these errors; the widest of equals.
    pub(super) fn winner(&self, left: &[usize], errors: &[f64], range: (f32, f32)) -> (f32, f32) {
        let (mut best, mut winner) = (f64::INFINITY, left.first().copied().unwrap_or(0));
        for (&i, &error) in left.iter().zip(errors) {
            if error < best {
                (best, winner) = (error, i);
            }
        }
        self.candidate(winner, range)
    }
}

/// Changes the sign of numbers.
#[inline(always)]
fn turn(numbers: &mut [f32]) {
    numbers.iter_mut().for_each(|x| *x = -*x);
}

/// The least of some upper bounds.
#[inline(always)]
fn least(bounds: &[f64]) -> f64 {
    let mut least = f64::INFINITY;
    for &bound in bounds {
        least = if bound < least { bound } else { least };
    }
    least
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
