//! Bounds of a candidate's error, in f32 and fast, so that most candidates need no exact sum.
//!
//! In units of its scale s, the error of a candidate is U = Σu^norm with u the distance of a weight's quotient from
//! its code. In the units of weights it is s^norm·U. Two kinds of weights are distinguished, for all candidates at
//! once:
//!
//! - *inner* weights lie inside the grid of every candidate, to half a step. Then u ≤ ½ is the distance of w/s from
//!   the nearest integer, regardless of the zero point, and u^norm is u times a polynomial;
//! - *outer* weights, few, are clipped by some candidate. Their errors are computed one by one.
//!
//! The bound of the difference has these parts, for each inner weight:
//!
//! - the polynomial's own error, `polynomial_error`. It is measured on a grid of 2^12 points, between which the
//!   difference of two functions with second derivatives below M moves by less than h²·M/8. It includes the rounding
//!   of its evaluation;
//! - the error of the quotient. w·(1/s) in f32 is within 2^-23·q of w/s, for quotients up to q. So is the quotient
//!   from which the exact sum's code was rounded. Near a tie the two may take different codes, at distances that
//!   differ by up to twice that: three times in all, times the greatest slope of u^norm;
//!
//! and the f32 sum over n / 16 terms per lane and then 16 lanes: below (n / 16 + 16)·2^-24 of it. Outer weights and
//! the units s^norm, in proportion to that of the first candidate, are right to [`rough_error`].
//!
//! Longer than 500 lines because the bounds, their proof and the polynomials belong together.

use std::f32::consts::{FRAC_1_SQRT_2, LN_2};

use super::super::kernel::MAGIC;
use super::{Candidates, Rules};
use crate::quant::simd::machine::{LANES, Machine};

/// The polynomial that all candidates are bounded with.
type Coarse = Polynomial<5, 0>;

/// The one for those that are left.
type Fine = Polynomial<9, 1>;

/// Lengths of loops are multiples of this, so that none is left over for a slower loop on any instruction set.
pub(super) const PADDING: usize = 2 * LANES;

/// Candidates summed together.
const BATCH: usize = 4;

/// Distances below this are taken for this: a difference of 2^-32 at most in a power.
const FLOOR: f32 = 1.0 / 65_536.0;

/// log2(1 + m) / m for 1 + m from √½ to √2, lowest degree first, interpolated at Chebyshev points: log2 to 4e-06.
const LOGARITHM: [f32; 6] =
    [1.442_700_4, -0.721_195_75, 0.479_925_57, -0.366_925_8, 0.316_898_2, -0.202_289_26];

/// The estimate for one exponent and width.
#[derive(Debug, Clone)]
pub(super) struct Estimate {
    norm: f64,
    coarse: Coarse,
    fine: Fine,
    /// Relative bound for outer weights that are no nearer than ½.
    outer_error: f64,
    /// Relative bound of s^norm.
    unit_error: f64,
}

/// u^norm on 0 … ½, as u times a polynomial in u − `QUARTERS`/4: so it is exactly 0 at 0.
#[derive(Debug, Clone)]
struct Polynomial<const N: usize, const QUARTERS: u8> {
    /// Lowest degree first.
    coefficients: [f32; N],
    /// Bound of |estimate − truth| for one inner weight, and for an outer one nearer than ½.
    error: f64,
}

/// Bounds for a group's candidates, and the intermediate results.
#[derive(Debug, Default)]
pub(in super::super) struct Bounds {
    inner: Vec<f32>,
    outer: Vec<f32>,
    /// The importance of each inner and of each outer weight; empty if all count 1.
    inner_importance: Vec<f32>,
    outer_importance: Vec<f32>,
    /// How many weights count, each as much as its importance; a little more than that.
    counted: f64,
    /// Of each candidate: Σu^norm of the inner weights in lanes, and then the sum of those.
    inner_lanes: Vec<[f32; LANES]>,
    inner_sums: Vec<f32>,
    /// Of each candidate: Σu^norm of the outer weights.
    outer_sums: Vec<f32>,
    /// Of each candidate: s^norm. Then for each outer weight, of each candidate: u^norm.
    powers: Vec<f32>,
    /// Of each candidate: bounds of its error, in units of the first one's s^norm.
    pub(super) lower: Vec<f64>,
    pub(super) upper: Vec<f64>,
}

impl Estimate {
    /// None for exponents whose powers have no bounded second derivative at 0.
    pub(super) fn new(norm: f64, rules: &Rules) -> Option<Self> {
        if !(2.0..=8.0).contains(&norm) {
            return None;
        }
        let steps = f64::from(rules.bits.steps());
        // Half a step beyond the grid, and a little.
        let largest = if rules.symmetric { (steps + 3.0) / 2.0 } else { steps + 1.0 };
        let quotient = 3.0 * 2f64.powi(-23) * largest;
        // Further away than ½, the quotient's error is smaller in proportion the further.
        let outer_error = 4.4 * norm * quotient + rough_error(norm);
        let (coarse, fine) = (Polynomial::new(norm, quotient), Polynomial::new(norm, quotient));
        Some(Self { norm, coarse, fine, outer_error, unit_error: rough_error(norm) })
    }

    /// Bounds the errors of all candidates over a group. False if its numbers are too large or too small for that.
    #[inline(always)]
    pub(super) fn bound<M: Machine>(
        &self,
        m: M,
        weights: &[f32],
        importance: Option<&[f32]>,
        candidates: &Candidates<'_>,
        bounds: &mut Bounds,
    ) -> bool {
        if !self.gather(m, weights, importance, candidates, bounds) {
            return false;
        }
        let margin = self.margin(bounds, self.coarse.error);
        let Bounds { inner, inner_importance, inner_lanes, inner_sums, .. } = &mut *bounds;
        let count = candidates.scales.len();
        inner_lanes.resize(count, [0.0; LANES]);
        inner_sums.resize(count, 0.0);
        let batches = inner_lanes.as_chunks_mut::<BATCH>().0.iter_mut();
        // Those that are there to fill the last lanes are left out.
        let batches = batches.take(candidates.count.div_ceil(BATCH));
        for (lanes, rs) in batches.zip(candidates.reciprocals.as_chunks().0) {
            for (to, sums) in
                lanes.iter_mut().zip(self.coarse.sums::<BATCH, M>(m, inner, inner_importance, rs))
            {
                m.store(sums, to);
            }
        }
        for (sums, lanes) in inner_sums.as_chunks_mut().0.iter_mut().zip(inner_lanes.as_chunks().0) {
            m.sum_rows(lanes, sums);
        }
        let Bounds { inner_sums, outer_sums, powers, lower, upper, .. } = bounds;
        lower.resize(count, 0.0);
        upper.resize(count, 0.0);
        let ends = lower.iter_mut().zip(upper.iter_mut());
        let sums = inner_sums.iter().zip(outer_sums.iter());
        for (((lower, upper), (&inner, &outer)), &unit) in ends.zip(sums).zip(powers.iter()) {
            (*lower, *upper) = self.in_units(unit, margin.around(f64::from(inner), f64::from(outer)));
        }
        true
    }

    /// Better bounds of one candidate's error, after [`Estimate::bound`] or [`Estimate::gather`].
    #[inline(always)]
    pub(super) fn refine<M: Machine>(
        &self,
        m: M,
        i: usize,
        candidates: &Candidates<'_>,
        bounds: &Bounds,
    ) -> (f64, f64) {
        let margin = self.margin(bounds, self.fine.error);
        let [inner] =
            self.fine.sums(m, &bounds.inner, &bounds.inner_importance, &[candidates.reciprocals[i]]);
        self.in_units(
            bounds.powers[i],
            margin.around(f64::from(m.sum(inner)), f64::from(bounds.outer_sums[i])),
        )
    }

    /// Bounds of s^norm·U from those of U.
    #[inline(always)]
    fn in_units(&self, unit: f32, (below, above): (f64, f64)) -> (f64, f64) {
        let unit = f64::from(unit);
        (unit * below * (1.0 - self.unit_error), unit * above * (1.0 + self.unit_error))
    }

    /// Tells inner weights from outer ones and sums the powers of the outer ones.
    #[inline(always)]
    pub(super) fn gather<M: Machine>(
        &self,
        m: M,
        weights: &[f32],
        importance: Option<&[f32]>,
        candidates: &Candidates<'_>,
        bounds: &mut Bounds,
    ) -> bool {
        let Candidates { scales, zeros, reciprocals, qmin, qmax, .. } = *candidates;
        let scale_lanes = scales.as_chunks::<LANES>().0;
        let zero_lanes = zeros.as_chunks::<LANES>().0;
        // Half a step beyond the ends is still inside; a little less leaves room for rounding.
        let (bottom, top) = (m.splat(qmin - 0.4375), m.splat(qmax + 0.4375));
        let infinity = m.splat(f32::INFINITY);
        let (mut low, mut high) = (m.splat(f32::NEG_INFINITY), infinity);
        let (mut least, mut most) = (infinity, m.splat(0.0));
        for (scales, zeros) in scale_lanes.iter().zip(zero_lanes) {
            let (scales, zeros) = (m.load(scales), m.load(zeros));
            low = m.max(low, m.mul(m.sub(bottom, zeros), scales));
            high = m.min(high, m.mul(m.sub(top, zeros), scales));
            least = m.min(least, scales);
            most = m.max(most, scales);
        }
        let (low, high) = (m.greatest(low), -m.greatest(m.sub(m.splat(0.0), high)));
        let (least, most) = (-m.greatest(m.sub(m.splat(0.0), least)), m.greatest(most));
        // No distance exceeds 2^15 steps if no range is below 1/100 of the whole one; a scale is above the first
        // one if it was 0 and epsilon stands in.
        let first = scales[0];
        let normal = least > 1e-18 && first < 1e18 && least >= first / 100.0 && most <= first;
        if !(normal && low <= 0.0 && high >= 0.0) {
            return false;
        }
        let Bounds { inner, outer, inner_importance, outer_importance, counted, .. } = &mut *bounds;
        split(m, weights, weights, low, high, inner, outer);
        if let Some(importance) = importance {
            split(m, weights, importance, low, high, inner_importance, outer_importance);
            *counted = sum_above(m, importance);
        } else {
            inner_importance.clear();
            outer_importance.clear();
            *counted = weights.len() as f64;
        }
        let Bounds { outer, outer_importance, outer_sums, powers, .. } = bounds;
        // All that a power is needed of goes through one long loop: scales, and distances of outer weights from
        // codes. Its length is such that the compiler's loop has nothing left over.
        let count = scales.len();
        powers.resize((count * (1 + outer.len())).next_multiple_of(PADDING), 0.0);
        let (units, distances) = powers.split_at_mut(count);
        let first = m.splat(reciprocals[0]);
        for (units, scales) in units.as_chunks_mut().0.iter_mut().zip(scale_lanes) {
            m.store(m.mul(m.load(scales), first), units);
        }
        let (magic, floor) = (m.splat(MAGIC), m.splat(FLOOR));
        let (qmin, qmax) = (m.splat(qmin), m.splat(qmax));
        let reciprocal_lanes = reciprocals.as_chunks().0;
        for (to, &w) in distances.chunks_exact_mut(count).zip(outer.iter()) {
            let w = m.splat(w);
            let lanes = to.as_chunks_mut().0.iter_mut().zip(reciprocal_lanes).zip(zero_lanes);
            for ((to, reciprocals), zeros) in lanes {
                let t = m.add(m.mul(w, m.load(reciprocals)), m.load(zeros));
                let code = m.sub(m.add(m.min(m.max(t, qmin), qmax), magic), magic);
                m.store(m.max(m.abs(m.sub(t, code)), floor), to);
            }
        }
        let norm = self.norm as f32;
        if norm == 3.0 {
            for x in powers.iter_mut() {
                *x = *x * *x * *x;
            }
        } else {
            for x in powers.iter_mut() {
                *x = rough_power::<M>(*x, norm);
            }
        }
        outer_sums.clear();
        outer_sums.resize(count, 0.0);
        for (i, powers) in powers[count..].chunks_exact(count).take(outer.len()).enumerate() {
            if let Some(&h) = outer_importance.get(i) {
                let h = m.splat(h);
                for (sums, powers) in outer_sums.as_chunks_mut().0.iter_mut().zip(powers.as_chunks().0) {
                    m.store(m.add(m.load(sums), m.mul(h, m.load(powers))), sums);
                }
                continue;
            }
            for (sums, powers) in outer_sums.as_chunks_mut().0.iter_mut().zip(powers.as_chunks().0) {
                m.store(m.add(m.load(sums), m.load(powers)), sums);
            }
        }
        true
    }

    #[inline(always)]
    fn margin(&self, bounds: &Bounds, error: f64) -> Margin {
        let terms = (bounds.inner.len() + bounds.outer.len()) as f64;
        // The product with an importance is one rounding more a term, and it may be subnormal.
        Margin {
            absolute: bounds.counted * error + terms * 2f64.powi(-148),
            inner: (terms / LANES as f64 + 18.0) * 2f64.powi(-24),
            outer: self.outer_error + (bounds.outer.len() + 2) as f64 * 2f64.powi(-24),
        }
    }
}

/// How far Σu^norm may be from its estimate: an absolute part, and parts in proportion to its two sums.
#[derive(Clone, Copy)]
struct Margin {
    absolute: f64,
    inner: f64,
    outer: f64,
}

impl Margin {
    #[inline(always)]
    fn around(self, inner: f64, outer: f64) -> (f64, f64) {
        let bound = self.absolute + inner.abs() * self.inner + outer * self.outer;
        let below = inner + outer - bound;
        (if below > 0.0 { below } else { 0.0 }, inner + outer + bound)
    }
}

impl<const N: usize, const QUARTERS: u8> Polynomial<N, QUARTERS> {
    const MIDDLE: f32 = QUARTERS as f32 / 4.0;

    fn new(norm: f64, quotient: f64) -> Self {
        let coefficients = fit(norm, f64::from(Self::MIDDLE));
        let slope = norm * (0.5 + quotient).powf(norm - 1.0);
        let error = polynomial_error(&coefficients, norm, f64::from(Self::MIDDLE))
            + slope * quotient
            + 2f64.powi(-32);
        Self { coefficients, error }
    }

    /// Estimates of Σu^norm over inner weights, whole lanes of them, for some reciprocals of scales; in lanes, to be summed.
    #[inline(always)]
    fn sums<const B: usize, M: Machine>(
        &self,
        m: M,
        inner: &[f32],
        importance: &[f32],
        rs: &[f32; B],
    ) -> [M::Lanes; B] {
        if importance.is_empty() {
            self.sums_of::<B, false, M>(m, inner, inner, rs)
        } else {
            self.sums_of::<B, true, M>(m, inner, importance, rs)
        }
    }

    #[inline(always)]
    fn sums_of<const B: usize, const WEIGHTED: bool, M: Machine>(
        &self,
        m: M,
        inner: &[f32],
        importance: &[f32],
        rs: &[f32; B],
    ) -> [M::Lanes; B] {
        let (magic, middle) = (m.splat(MAGIC), m.splat(Self::MIDDLE));
        let mut coefficients = [magic; N];
        for (lanes, &coefficient) in coefficients.iter_mut().zip(&self.coefficients) {
            *lanes = m.splat(coefficient);
        }
        let mut sums = [m.splat(0.0); B];
        for (chunk, columns) in inner.as_chunks().0.iter().zip(importance.as_chunks().0) {
            let w = m.load(chunk);
            let h = m.load(columns);
            for i in 0..B {
                let nearest = m.sub(m.mul_add(w, m.splat(rs[i]), magic), magic);
                let u = m.abs(m.mul_add(w, m.splat(-rs[i]), nearest));
                let v = if QUARTERS == 0 { u } else { m.sub(u, middle) };
                let mut factor = coefficients[N - 1];
                for k in (0..N - 1).rev() {
                    factor = m.mul_add(factor, v, coefficients[k]);
                }
                let counted = if WEIGHTED { m.mul(u, h) } else { u };
                sums[i] = m.mul_add(factor, counted, sums[i]);
            }
        }
        sums
    }
}

/// Puts the values of weights from `low` to `high` into `inner`, with 0 for the others, which go to `outer`. Whole
/// chunks: zeros fill the last one.
#[inline(always)]
fn split<M: Machine>(
    m: M,
    weights: &[f32],
    values: &[f32],
    low: f32,
    high: f32,
    inner: &mut Vec<f32>,
    outer: &mut Vec<f32>,
) {
    let (low, high) = (m.splat(low), m.splat(high));
    inner.resize(weights.len().next_multiple_of(LANES), 0.0);
    // The elements after those taken out of the last chunk are unspecified.
    outer.resize(inner.len() + LANES, 0.0);
    let ((chunks, last), (columns, rest)) = (weights.as_chunks(), values.as_chunks());
    let (mut last_chunk, mut last_columns) = ([0.0; LANES], [0.0; LANES]);
    last_chunk[..last.len()].copy_from_slice(last);
    last_columns[..rest.len()].copy_from_slice(rest);
    let chunks = chunks.iter().chain(std::iter::once(&last_chunk));
    let columns = columns.iter().chain(std::iter::once(&last_columns));
    let mut count = 0;
    for ((to, weights), values) in inner.as_chunks_mut().0.iter_mut().zip(chunks).zip(columns) {
        let mask = m.outside(m.load(weights), low, high);
        if let Some(outer) = outer[count..].first_chunk_mut() {
            m.store(m.take_out(m.load(values), mask, outer), to);
        }
        count += mask.count_ones() as usize;
    }
    outer.truncate(count);
}

/// The sum of numbers that are not negative, rounded up by more than f32 may have lost.
#[inline(always)]
fn sum_above<M: Machine>(m: M, values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks();
    let mut sums = m.splat(0.0);
    for chunk in chunks {
        sums = m.add(sums, m.load(chunk));
    }
    let sum = f64::from(m.sum(sums)) + rest.iter().map(|&value| f64::from(value)).sum::<f64>();
    sum * (1.0 + (chunks.len() + LANES) as f64 * 2f64.powi(-23))
}

/// x^p for x from 2^-16 to 2^15 and p from 2 to 8, to [`rough_error`] but not below 2^-126, as 2^(p·log2 x).
#[inline(always)]
fn rough_power<M: Machine>(x: f32, p: f32) -> f32 {
    let shifted = x.to_bits().wrapping_add(1f32.to_bits() - FRAC_1_SQRT_2.to_bits());
    let exponent = (shifted >> 23) as i32 - 127;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent as u32) << 23)) - 1.0;
    let mut log = LOGARITHM[LOGARITHM.len() - 1];
    for c in LOGARITHM[..LOGARITHM.len() - 1].iter().rev() {
        log = fused::<M>(log, m, *c);
    }
    let y = p * fused::<M>(log, m, exponent as f32);
    let y = if y > -126.0 { y } else { -126.0 };
    // The sum leaves the integer in the low bits; a cast would saturate, one lane at a time.
    let shifted = y + MAGIC;
    let f = (y - (shifted - MAGIC)) * LN_2;
    let mut e = 1.0 / 720.0;
    for term in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        e = fused::<M>(e, f, term);
    }
    f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// A relative bound of [`rough_power`], and of cubes. That of the logarithm is 4e-6, to which its rounding adds 1e-6, and both are
/// multiplied by p; the product, of up to 128, is rounded, and the exponential's polynomial is as close as that.
fn rough_error(p: f64) -> f64 {
    4e-6 * p + 1e-5
}

/// a·b + c, rounded once or twice.
#[inline(always)]
fn fused<M: Machine>(a: f32, b: f32, c: f32) -> f32 {
    if M::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Interpolates u^(norm − 1) at the Chebyshev points of 0 … ½, as a polynomial in u − `middle`.
fn fit<const N: usize>(norm: f64, middle: f64) -> [f32; N] {
    let points: Vec<f64> = (0..N)
        .map(|i| {
            let angle = std::f64::consts::PI * (i as f64 + 0.5) / N as f64;
            0.25 + 0.25 * angle.cos() - middle
        })
        .collect();
    // Newton's divided differences, then expanded into powers of v.
    let mut differences: Vec<f64> = points.iter().map(|v| (middle + v).powf(norm - 1.0)).collect();
    for level in 1..N {
        for i in (level..N).rev() {
            differences[i] = (differences[i] - differences[i - 1]) / (points[i] - points[i - level]);
        }
    }
    let mut polynomial = [0.0f64; N];
    for i in (0..N).rev() {
        // polynomial = polynomial·(v − point) + difference
        for k in (1..N).rev() {
            polynomial[k] = polynomial[k - 1] - points[i] * polynomial[k];
        }
        polynomial[0] = differences[i] - points[i] * polynomial[0];
    }
    polynomial.map(|c| c as f32)
}

/// A bound of |u·polynomial(u − middle), as evaluated in f32, − u^norm| on 0 … ½ and a little beyond.
fn polynomial_error<const N: usize>(polynomial: &[f32; N], norm: f64, middle: f64) -> f64 {
    const POINTS: usize = 1 << 12;
    let step = 0.5 / POINTS as f64;
    let value = |u: f64| u * polynomial.iter().rev().fold(0.0, |sum, &c| sum * (u - middle) + f64::from(c));
    // One point past ½, because the quotient's error may lead there.
    let worst = (0..=POINTS + 1)
        .map(|i| i as f64 * step)
        .map(|u| (value(u) - u.powf(norm)).abs())
        .fold(0.0, f64::max);
    let top = 0.5 + step;
    // The second derivative of u·v^k is 2k·v^(k − 1) + u·k·(k − 1)·v^(k − 2).
    let furthest = middle.max(top - middle);
    let (mut bend, mut size) = (norm * (norm - 1.0) * top.powf(norm - 2.0), 0.0);
    for (k, &c) in polynomial.iter().enumerate() {
        let (c, k) = (f64::from(c).abs(), k as f64);
        size += top * c * furthest.powf(k);
        bend += if k >= 1.0 { 2.0 * c * k * furthest.powf(k - 1.0) } else { 0.0 };
        bend += if k >= 2.0 { top * c * k * (k - 1.0) * furthest.powf(k - 2.0) } else { 0.0 };
    }
    worst + step * step * bend / 8.0 + 2.0 * (N + 1) as f64 * 2f64.powi(-24) * size + norm * 2f64.powi(-24)
}

#[cfg(test)]
mod tests {
    use super::super::super::{Bits, FloatType};
    use super::*;
    use crate::quant::simd::machine::Arrays;

    const RULES: Rules = Rules {
        bits: Bits::Four,
        symmetric: true,
        source: FloatType::Bf16,
        scale: FloatType::Bf16,
        side: 7.5,
    };

    #[test]
    fn polynomials_are_as_close_as_they_say() {
        for norm in [2.0, 2.4, 3.0, 5.5, 8.0] {
            check(Coarse::new(norm, 0.0), norm, 1e-3);
            check(Fine::new(norm, 0.0), norm, 1e-4);
        }
        fn check<const N: usize, const QUARTERS: u8>(
            polynomial: Polynomial<N, QUARTERS>,
            norm: f64,
            usual: f64,
        ) {
            let (bound, polynomial) = (polynomial.error, polynomial.coefficients);
            assert!(bound < usual, "{norm}: {bound:e}");
            for i in 0..100_000 {
                let u = i as f32 / 200_000.0;
                let v = u - Polynomial::<N, QUARTERS>::MIDDLE;
                let plain = u * polynomial.iter().rev().fold(0.0, |sum, &c| sum * v + c);
                let fused = u * polynomial.iter().rev().fold(0.0f32, |sum, &c| sum.mul_add(v, c));
                for value in [plain, fused] {
                    assert!((f64::from(value) - f64::from(u).powf(norm)).abs() <= bound, "{norm} {u}");
                }
            }
        }
    }

    #[test]
    fn rough_powers_are_as_close_as_they_say() {
        for p in [2.0f32, 2.4, 3.0, 8.0] {
            for i in -16_000..15_000 {
                let x = (i as f32 / 1000.0).exp2();
                let want = f64::from(x).powf(f64::from(p));
                if want > 1e-37 && want < 1e37 {
                    for found in [rough_power::<Arrays<true>>(x, p), rough_power::<Arrays<false>>(x, p)] {
                        assert!((f64::from(found) / want - 1.0).abs() < rough_error(f64::from(p)), "{x}^{p}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_exponents_with_a_bounded_bend_are_estimated() {
        let new = |norm| Estimate::new(norm, &RULES);
        assert!(new(1.5).is_none() && new(f64::NAN).is_none());
        let usual = new(2.4).map(|estimate| (estimate.coarse.error, estimate.fine.error));
        assert!(usual.is_some_and(|(coarse, fine)| coarse < 1e-4 && fine < 1e-5), "{usual:?}");
    }
}
