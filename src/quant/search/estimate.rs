//! Bounds of a candidate's error, in f32 and fast, so that most candidates need no exact sum.
//!
//! In units of its scale s, the error of a candidate is U = Σu^norm with u the distance of a weight's quotient
//! from its code; in the units of weights it is s^norm·U. Two kinds of weights are told apart, for all
//! candidates at once:
//!
//! - *inner* weights lie inside the grid of every candidate, to half a step. Then u ≤ ½ is the distance of w/s from the
//!   nearest integer, whatever the zero point, and u^norm is a polynomial of degree 6;
//! - *outer* ones, few, are clipped by some candidate. Theirs are computed one by one.
//!
//! The bound of the difference has these parts, for each inner weight:
//!
//! - the polynomial's own error, `polynomial_error`, measured on a grid of 2^12 points, between which the
//!   difference of two functions with second derivatives below M moves by less than h²·M/8, and the rounding of
//!   its evaluation;
//! - the error of the quotient. w·(1/s) in f32 is within 2^-22·(steps + 1) of w/s, and so is what the exact
//!   sum's code was rounded from; near a tie the two may take different codes, at equal distances up to twice
//!   that. With three times for safety, times the greatest slope of u^norm;
//!
//! and the f32 sum over n / 16 terms a lane and then 16 lanes: below (n / 16 + 16)·2^-24 of it. Outer weights
//! and the units s^norm, taken in proportion to those of the first candidate, are right to [`ROUGH`].

use std::f32::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E};

use super::super::kernel::{LANES, MAGIC, round_code};
use super::Candidates;

/// Degree of the polynomial.
const DEGREE: usize = 6;

/// Weights whose powers are at hand before they are summed.
const BLOCK: usize = 16 * LANES;

/// Candidates summed together.
const BATCH: usize = 4;

/// Relative error of powers here, of sums of them, and (far below) of the exact sums.
const ROUGH: f64 = 1e-4;

/// Distances below this are taken for this: a difference of 2^-32 at most in a power.
const FLOOR: f32 = 1.0 / 65_536.0;

/// The estimate for one exponent and width.
#[derive(Debug, Clone)]
pub(super) struct Estimate {
    norm: f64,
    /// Of u^norm on 0 … ½, lowest degree first.
    polynomial: [f32; DEGREE + 1],
    /// Bound of |estimate − truth| for one inner weight, and for an outer one nearer than ½.
    error: f64,
    /// Relative bound for the others.
    outer_error: f64,
}

/// Buffers of one group.
#[derive(Debug, Default)]
pub(in super::super) struct Bounds {
    inner: Vec<f32>,
    outer: Vec<f32>,
    /// Of each candidate: Σu^norm of the outer weights.
    outer_sums: Vec<f32>,
    /// Of each candidate: s^norm. Then for each outer weight, of each candidate: u^norm.
    powers: Vec<f32>,
    /// Of each candidate: a lower bound of its error; infinite where it cannot win.
    pub(super) lower: Vec<f64>,
    /// The least upper bound of all.
    pub(super) least_upper: f64,
}

/// A block's powers, aligned for the widest registers.
#[repr(align(64))]
struct Values([f32; BLOCK]);

impl Estimate {
    /// None for exponents whose powers have no bounded second derivative at 0.
    pub(super) fn new(norm: f64, steps: i32) -> Option<Self> {
        if !(2.0..=8.0).contains(&norm) {
            return None;
        }
        let polynomial = fit(norm);
        let quotient = 3.0 * 2f64.powi(-22) * f64::from(steps + 1);
        let slope = norm * (0.5 + quotient).powf(norm - 1.0);
        let error = polynomial_error(&polynomial, norm) + slope * quotient + 2f64.powi(-32);
        // Further away than ½, the quotient's error is smaller in proportion the further.
        let outer_error = 2.2 * norm * quotient + 2.0 * ROUGH;
        Some(Self { norm, polynomial, error, outer_error })
    }

    /// Bounds the errors of all candidates over a group. False if its numbers are too large or small for that.
    #[inline(always)]
    pub(super) fn bound<const FMA: bool>(
        &self,
        weights: &[f32],
        candidates: &Candidates<'_>,
        bounds: &mut Bounds,
    ) -> bool {
        let Candidates { scales, zeros, reciprocals, qmin, qmax } = *candidates;
        let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
        let mut normal = true;
        for (&scale, &zero) in scales.iter().zip(zeros) {
            // Half a step beyond the ends is still inside; a little less leaves room for rounding.
            let (below, above) = ((qmin - zero - 0.4375) * scale, (qmax - zero + 0.4375) * scale);
            low = if below > low { below } else { low };
            high = if above < high { above } else { high };
            // No distance exceeds 2^15 steps if no range is below 1/100 of the whole one; a scale is above the
            // first one if it was 0 and epsilon stands in.
            normal &= scale > 1e-18 && scale < 1e18 && scale >= scales[0] / 100.0 && scale <= scales[0];
        }
        if !normal || low > 0.0 || high < 0.0 {
            return false;
        }
        split(weights, low, high, bounds);
        let Bounds { inner, outer, outer_sums, powers, lower, least_upper } = bounds;
        // All that a power is needed of goes through one long loop: scales, and distances of outer weights from codes.
        let count = scales.len();
        powers.clear();
        powers.resize(count * (1 + outer.len()), 0.0);
        let (units, distances) = powers.split_at_mut(count);
        let first = reciprocals[0];
        for (unit, &scale) in units.iter_mut().zip(scales) {
            *unit = scale * first;
        }
        for (to, &w) in distances.chunks_exact_mut(count).zip(outer.iter()) {
            for ((to, &r), &zero) in to.iter_mut().zip(reciprocals).zip(zeros) {
                let t = w * r + zero;
                let u = (t - round_code(t, qmin, qmax)).abs();
                *to = if u > FLOOR { u } else { FLOOR };
            }
        }
        let norm = self.norm as f32;
        for x in powers.iter_mut() {
            *x = rough_power::<FMA>(*x, norm);
        }
        let (units, distances) = powers.split_at(count);
        outer_sums.clear();
        outer_sums.resize(count, 0.0);
        for powers in distances.chunks_exact(count) {
            for (sum, power) in outer_sums.iter_mut().zip(powers) {
                *sum += power;
            }
        }
        *least_upper = f64::INFINITY;
        lower.clear();
        lower.resize(count, f64::INFINITY);
        // Zeros in place of outer weights and at the end count as well: the polynomial is not quite 0 at 0.
        let terms = (inner.len() + outer.len()) as f64;
        let relative = (terms / LANES as f64 + 16.0) * 2f64.powi(-24);
        let outer_relative = self.outer_error + outer.len() as f64 * 2f64.powi(-24);
        let mut batch = [0; BATCH];
        let mut filled = 0;
        for i in 0..count {
            let twin = i > 0 && scales[i] == scales[i - 1] && zeros[i] == zeros[i - 1];
            let at_least =
                f64::from(outer_sums[i]) * (1.0 - outer_relative) - outer.len() as f64 * self.error;
            if !twin && f64::from(units[i]) * at_least * (1.0 - 3.0 * ROUGH) <= *least_upper {
                batch[filled] = i;
                filled += 1;
            }
            if filled < BATCH && i + 1 < count {
                continue;
            }
            let rs = batch.map(|i| reciprocals[i]);
            let sums = self.inner_sums::<FMA>(inner, &rs[..filled]);
            for (&i, sum) in batch[..filled].iter().zip(sums) {
                let (sum, outer_sum) = (f64::from(sum), f64::from(outer_sums[i]));
                let bound = terms * self.error + sum.abs() * relative + outer_sum * outer_relative;
                let (sum, unit) = (sum + outer_sum, f64::from(units[i]));
                let below = sum - bound;
                lower[i] = unit * (if below > 0.0 { below } else { 0.0 }) * (1.0 - 3.0 * ROUGH);
                let upper = unit * (sum + bound) * (1.0 + 3.0 * ROUGH);
                *least_upper = if upper < *least_upper { upper } else { *least_upper };
            }
            filled = 0;
        }
        true
    }

    /// Estimates of Σu^norm over inner weights, for a batch of reciprocals of scales.
    #[inline(always)]
    fn inner_sums<const FMA: bool>(&self, inner: &[f32], rs: &[f32]) -> [f32; BATCH] {
        let mut values = Values([0.0; BLOCK]);
        let mut lanes = [[0f32; LANES]; BATCH];
        for block in inner.chunks(BLOCK) {
            for (lanes, &r) in lanes.iter_mut().zip(rs) {
                // Elementwise first, sums second: each loop is then one that the compiler vectorises well.
                for (value, &w) in values.0.iter_mut().zip(block) {
                    let q = w * r;
                    let u = (q - ((q + MAGIC) - MAGIC)).abs();
                    let mut power = self.polynomial[DEGREE];
                    for c in self.polynomial[..DEGREE].iter().rev() {
                        power = fused::<FMA>(power, u, *c);
                    }
                    *value = power;
                }
                // Inner weights are padded to whole chunks.
                for chunk in values.0[..block.len()].as_chunks::<LANES>().0 {
                    for i in 0..LANES {
                        lanes[i] += chunk[i];
                    }
                }
            }
        }
        let mut sums = [0.0; BATCH];
        for (sum, lanes) in sums.iter_mut().zip(&lanes) {
            let mut quarter = [0.0; LANES / 4];
            for i in 0..LANES / 4 {
                quarter[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
            }
            *sum = (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
        }
        sums
    }
}

/// Puts the weights from `low` to `high` into `inner`, with 0 for the others, which go to `outer`. Whole
/// chunks: zeros fill the last one.
#[inline(always)]
fn split(weights: &[f32], low: f32, high: f32, bounds: &mut Bounds) {
    let Bounds { inner, outer, .. } = bounds;
    outer.clear();
    inner.resize(weights.len().next_multiple_of(LANES), 0.0);
    inner[weights.len()..].fill(0.0);
    for (to, chunk) in inner.chunks_mut(LANES).zip(weights.chunks(LANES)) {
        let mut outside = 0u32;
        for (to, &w) in to.iter_mut().zip(chunk) {
            let is_inner = (w >= low) & (w <= high);
            *to = if is_inner { w } else { 0.0 };
            outside += u32::from(!is_inner);
        }
        if outside > 0 {
            outer.extend(chunk.iter().filter(|&&w| w < low || w > high));
        }
    }
}

/// x^p for x from 2^-16 to 2^15 and p from 2 to 8, to a relative error of 1e-4 but not below 2^-126: x^p =
/// 2^(p·log2 x), with an error of p·log2 x of at most 128·2^-22 by rounding, and of the two series 1e-6.
#[inline(always)]
fn rough_power<const FMA: bool>(x: f32, p: f32) -> f32 {
    let shifted = x.to_bits().wrapping_add(1f32.to_bits() - FRAC_1_SQRT_2.to_bits());
    let exponent = (shifted >> 23) as i32 - 127;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent as u32) << 23));
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 1.0 / 9.0;
    for term in [1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0] {
        series = fused::<FMA>(series, s2, term);
    }
    let y = p * (exponent as f32 + 2.0 * LOG2_E * s * series);
    let y = if y > -126.0 { y } else { -126.0 };
    // The sum leaves the integer in the low bits; a cast would saturate, one lane at a time.
    let shifted = y + MAGIC;
    let f = (y - (shifted - MAGIC)) * LN_2;
    let mut e = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        e = fused::<FMA>(e, f, term);
    }
    f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// a·b + c, rounded once or twice.
#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Interpolates u^norm at the Chebyshev points of 0 … ½.
fn fit(norm: f64) -> [f32; DEGREE + 1] {
    let points: Vec<f64> = (0..=DEGREE)
        .map(|i| {
            let angle = std::f64::consts::PI * (i as f64 + 0.5) / (DEGREE + 1) as f64;
            0.25 + 0.25 * angle.cos()
        })
        .collect();
    // Newton's divided differences, then expanded into powers of u.
    let mut differences: Vec<f64> = points.iter().map(|u| u.powf(norm)).collect();
    for level in 1..=DEGREE {
        for i in (level..=DEGREE).rev() {
            differences[i] = (differences[i] - differences[i - 1]) / (points[i] - points[i - level]);
        }
    }
    let mut polynomial = [0.0f64; DEGREE + 1];
    for i in (0..=DEGREE).rev() {
        // polynomial = polynomial·(u − point) + difference
        for k in (1..=DEGREE).rev() {
            polynomial[k] = polynomial[k - 1] - points[i] * polynomial[k];
        }
        polynomial[0] = differences[i] - points[i] * polynomial[0];
    }
    polynomial.map(|c| c as f32)
}

/// A bound of |polynomial, as evaluated in f32, − u^norm| on 0 … ½ and a little beyond.
fn polynomial_error(polynomial: &[f32; DEGREE + 1], norm: f64) -> f64 {
    const POINTS: usize = 1 << 12;
    let step = 0.5 / POINTS as f64;
    let value = |u: f64| polynomial.iter().rev().fold(0.0, |sum, &c| sum * u + f64::from(c));
    // One point past ½, where the quotient's error may lead.
    let worst = (0..=POINTS + 1)
        .map(|i| i as f64 * step)
        .map(|u| (value(u) - u.powf(norm)).abs())
        .fold(0.0, f64::max);
    let top = 0.5 + step;
    let (mut bend, mut size) = (norm * (norm - 1.0) * top.powf(norm - 2.0), 0.0);
    for (k, &c) in polynomial.iter().enumerate() {
        let (c, k) = (f64::from(c).abs(), k as f64);
        size += c * top.powf(k);
        bend += if k >= 2.0 { c * k * (k - 1.0) * top.powf(k - 2.0) } else { 0.0 };
    }
    worst + step * step * bend / 8.0 + 2.0 * (DEGREE + 1) as f64 * 2f64.powi(-24) * size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_as_close_as_they_say() {
        for norm in [2.0, 2.4, 3.0, 5.5, 8.0] {
            let polynomial = fit(norm);
            let bound = polynomial_error(&polynomial, norm);
            assert!(bound < 1e-3, "{norm}: {bound:e}");
            for i in 0..100_000 {
                let u = i as f32 / 200_000.0;
                let plain = polynomial.iter().rev().fold(0.0, |sum, &c| sum * u + c);
                let fused = polynomial.iter().rev().fold(0.0f32, |sum, &c| sum.mul_add(u, c));
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
                    for found in [rough_power::<true>(x, p), rough_power::<false>(x, p)] {
                        assert!((f64::from(found) / want - 1.0).abs() < ROUGH, "{x}^{p}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_exponents_with_a_bounded_bend_are_estimated() {
        assert!(Estimate::new(1.5, 15).is_none() && Estimate::new(f64::NAN, 15).is_none());
        let usual = Estimate::new(2.4, 15).map(|estimate| estimate.error).unwrap_or(1.0);
        assert!(usual < 6e-5, "{usual:e}");
    }
}
