//! The grids of some rows: scales and zero points, and the search for them.

use rayon::prelude::*;

use super::Metric;
use crate::quant::kernel::round_code;
use crate::quant::simd::Job;
use crate::quant::simd::machine::{LANES, Machine};
use crate::quant::{Isa, Scheme};

/// Candidates: this many shrinks of the range, from `NARROWEST` of it in steps of `STEP`, so beyond the whole as well.
const SHRINKS: u32 = 61;
const NARROWEST: f64 = 0.5;
const STEP: f64 = 0.01;

/// Rows that are searched in one go.
const BAND: usize = 64;

/// Scales and zero points of some rows, group by group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grids {
    pub(super) scheme: Scheme,
    /// Columns that share a scale.
    pub(super) group: usize,
    /// The least and the greatest code.
    pub(super) codes: (f32, f32),
    pub(super) scales: Vec<f32>,
    /// 0 if symmetric.
    pub(super) zeros: Vec<f32>,
}

/// A group, counted over all rows, in which no candidate's scale is finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow(pub(super) usize);

impl Grids {
    /// The grids with the least error of some rows, each weight counting by what no other can make good.
    pub(super) fn search(
        scheme: Scheme,
        is_signed: bool,
        targets: &[f32],
        metric: &Metric,
        isa: Isa,
    ) -> Result<Self, Overflow> {
        let group = scheme.group_cols(metric.columns).max(1);
        let codes = (scheme.bits.qmin() as f32, scheme.bits.qmax() as f32);
        let count = targets.len() / group;
        let epsilon = scheme.scale_type.epsilon();
        let mut grids = Self { scheme, group, codes, scales: vec![epsilon; count], zeros: vec![0.0; count] };
        // Zero points move a range already: a turned one is no other.
        let is_signed = is_signed && scheme.symmetric;
        let band = BAND * metric.columns;
        let parts = targets.chunks(band).zip(grids.scales.chunks_mut(band / group));
        let parts = parts.zip(grids.zeros.chunks_mut(band / group)).map(|((targets, scales), zeros)| {
            Search { scheme, group, codes, is_signed, targets, scales, zeros, weights: &metric.weights }
        });
        let parts: Vec<Search<'_>> = parts.collect();
        let search = |(part, search): (usize, Search<'_>)| {
            isa.run(search).map_err(|Overflow(of_part)| Overflow(part * (band / group) + of_part))
        };
        // The first group that overflows, whichever thread was first.
        let found: Vec<_> = parts.into_par_iter().enumerate().map(search).collect();
        found.into_iter().collect::<Result<(), Overflow>>()?;
        Ok(grids)
    }

    /// The nearest code of a value in a group.
    #[inline(always)]
    pub(super) fn code(&self, group: usize, value: f32) -> f32 {
        round_code(value / self.scales[group] + self.zeros[group], self.codes.0, self.codes.1)
    }

    /// The nearest codes of some rows.
    pub(super) fn nearest(&self, targets: &[f32]) -> Vec<f32> {
        let of_group = |(group, values): (usize, &[f32])| {
            values.iter().map(|value| self.code(group, *value)).collect::<Vec<_>>()
        };
        targets.chunks(self.group).enumerate().flat_map(of_group).collect()
    }

    /// What codes stand for, less the targets.
    pub(super) fn errors(&self, codes: &[f32], targets: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(targets.len());
        let groups = codes.chunks(self.group).zip(targets.chunks(self.group));
        for ((codes, targets), (scale, zero)) in groups.zip(self.scales.iter().zip(&self.zeros)) {
            out.extend(codes.iter().zip(targets).map(|(code, target)| (code - zero) * scale - target));
        }
        out
    }

    /// The scale that is best beside an old one, given the slope and the curvature of the error over it: of the same sign,
    /// as it is stored, and with less error. None if that is the old one.
    #[inline(always)]
    pub(super) fn fitted(&self, old: f32, slope: f64, curvature: f64) -> Option<f32> {
        if curvature.is_nan() || curvature <= 0.0 {
            return None;
        }
        let new = self.scheme.scale_type.round((f64::from(old) - slope / curvature) as f32);
        let step = f64::from(new) - f64::from(old);
        let is_scale = new.is_finite() && new != 0.0 && (new > 0.0) == (old > 0.0);
        (is_scale && step != 0.0 && step * slope + 0.5 * step * step * curvature < 0.0).then_some(new)
    }
}

/// The search of all groups of some rows, compiled for each instruction set.
struct Search<'a> {
    scheme: Scheme,
    group: usize,
    codes: (f32, f32),
    is_signed: bool,
    targets: &'a [f32],
    scales: &'a mut [f32],
    zeros: &'a mut [f32],
    weights: &'a [f32],
}

impl Search<'_> {
    /// The scale and the zero points to try of a shrink of a range that contains 0. The scale may overflow, or vanish.
    fn candidate(&self, shrink: u32, low: f32, high: f32) -> (f32, [f32; 3]) {
        let share = NARROWEST + STEP * f64::from(shrink);
        let steps = f64::from(self.scheme.bits.steps());
        let (low, high) = (f64::from(low), f64::from(high));
        let scale_of = |scale: f64| self.scheme.scale_type.round(scale as f32);
        if self.scheme.symmetric {
            return (scale_of(share * high.max(-low) / (steps / 2.0)), [0.0; 3]);
        }
        let scale = scale_of(share * (high - low) / steps);
        let exact = f64::from(self.codes.0) - share * low / f64::from(scale);
        let zero = round_code(exact as f32, self.codes.0, self.codes.1);
        (scale, [zero, (zero - 1.0).max(self.codes.0), (zero + 1.0).min(self.codes.1)])
    }
}

impl Job for Search<'_> {
    type Output = Result<(), Overflow>;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> Self::Output {
        let (size, zero_points) = (self.group, if self.scheme.symmetric { 1 } else { 3 });
        for (group, values) in self.targets.chunks(size).enumerate() {
            let low = values.iter().copied().fold(0.0, f32::min);
            let high = values.iter().copied().fold(0.0, f32::max);
            if low == 0.0 && high == 0.0 {
                continue;
            }
            let start = group * size % self.weights.len();
            let weights = &self.weights[start..start + size];
            // Errors are taken in shares of the greatest weight, so that no square overflows or vanishes.
            let unit = (1.0 / high.max(-low)).min(f32::MAX);
            let (mut least, mut is_finite) = (f32::INFINITY, false);
            for shrink in 0..SHRINKS {
                let (scale, zeros) = self.candidate(shrink, low, high);
                is_finite |= scale.is_finite();
                if !scale.is_finite() || scale == 0.0 {
                    continue;
                }
                for &zero in &zeros[..zero_points] {
                    let error = error(values, weights, unit, (scale, zero), self.codes);
                    if error < least {
                        (least, self.scales[group], self.zeros[group]) = (error, scale, zero);
                    }
                }
                if self.is_signed {
                    let error = error(values, weights, unit, (-scale, 0.0), self.codes);
                    if error < least {
                        (least, self.scales[group]) = (error, -scale);
                    }
                }
            }
            if !is_finite {
                return Err(Overflow(group));
            }
        }
        Ok(())
    }
}

/// Σ weight·(unit·(value − scale·(code − zero)))² of a group rounded to nearest, in 16 partial sums.
#[inline(always)]
fn error(
    values: &[f32],
    weights: &[f32],
    unit: f32,
    (scale, zero): (f32, f32),
    (least, most): (f32, f32),
) -> f32 {
    let mut sums = [0f32; LANES];
    for (values, weights) in values.chunks(LANES).zip(weights.chunks(LANES)) {
        for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
            let error = unit * (value - scale * (round_code(value / scale + zero, least, most) - zero));
            *sum += weight * error * error;
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}
