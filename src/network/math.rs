//! Functions of numbers and rows, in F32: a straight line of arithmetic, compiled for each instruction set. None of them fuses
//! products and sums, so that numbers are the same on all machines.

use super::parts::{Activation, Join, NormKind};
use crate::quant::Isa;
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// eˣ to about one unit in the last place, without a branch, so that compilers turn it into vectors.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding 1.5 · 2²³ leaves a whole number in the lowest bits, rounded.
    const SHIFT: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Above, the result is infinite anyway; below it is no normal number.
    let clamped = x.clamp(-87.0, 89.5);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted - SHIFT;
    let rest = (clamped - whole * LN2_HIGH) - whole * LN2_LOW;
    let square = rest * rest;
    let mut poly = 1.987_569_1e-4;
    poly = poly * rest + 1.398_199_9e-3;
    poly = poly * rest + 8.333_452e-3;
    poly = poly * rest + 4.166_579_6e-2;
    poly = poly * rest + 1.666_666_5e-1;
    poly = poly * rest + 0.5;
    let mantissa = poly * square + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).cast_signed();
    // 2¹²⁸ is no number: in two steps.
    let half = exponent >> 1;
    let result = mantissa * power_of_two(half) * power_of_two(exponent - half);
    // Smaller ones are below 2⁻¹²⁵: as good as nothing beside any other term.
    if x < -87.0 { 0.0 } else { result }
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127).wrapping_shl(23)).cast_unsigned())
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, in F64 by its series and its continued fraction.
pub(super) fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 2.5 {
        let (mut term, mut sum, square) = (size, size, size * size);
        for n in 1..60 {
            let n = f64::from(n);
            term *= -square / n;
            let add = term / (2.0 * n + 1.0);
            sum += add;
            if add.abs() < 1e-17 * sum.abs() {
                break;
            }
        }
        (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x)
    } else if size < 6.0 {
        let mut fraction = 0.0;
        for n in (1..=60).rev() {
            fraction = f64::from(n) / 2.0 / (size + fraction);
        }
        (1.0 - (-size * size).exp() / (size + fraction) * std::f64::consts::FRAC_2_SQRT_PI / 2.0).copysign(x)
    } else {
        1f64.copysign(x)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    // ½ (1 + tanh y) is sigmoid(2 y).
    x * sigmoid(2.0 * ROOT * (x + 0.044_715 * x * x * x))
}

#[inline]
pub(super) fn tanh(x: f32) -> f32 {
    x.tanh()
}

pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// Applies a function to each number.
pub(super) fn activate(values: &mut [f32], with: Activation) {
    Isa::detect().run(Activate { values, with });
}

struct Activate<'a> {
    values: &'a mut [f32],
    with: Activation,
}

impl Job for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { values, with } = self;
        let each = |f: fn(f32) -> f32, values: &mut [f32]| values.iter_mut().for_each(|x| *x = f(*x));
        match with {
            Activation::Silu => values.iter_mut().for_each(|x| *x *= sigmoid(*x)),
            Activation::Gelu => each(gelu, values),
            Activation::GeluTanh => values.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
            Activation::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
            Activation::ReluSquared => values.iter_mut().for_each(|x| *x = x.max(0.0) * x.max(0.0)),
            Activation::Sigmoid => values.iter_mut().for_each(|x| *x = sigmoid(*x)),
            Activation::Tanh => each(tanh, values),
            Activation::Softplus => each(softplus, values),
        }
    }
}

/// Gate becomes gate and up joined.
pub(super) fn join(gate: &mut [f32], up: &[f32], how: Join) {
    Isa::detect().run(Joined { gate, up, how });
}

struct Joined<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    how: Join,
}

impl Job for Joined<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { gate, up, how } = self;
        match how {
            Join::Product(with) => {
                Activate { values: gate, with }.run(machine);
                gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
            }
            Join::Clamped { alpha, limit } => {
                for (gate, up) in gate.iter_mut().zip(up) {
                    let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
                    *gate = (u + 1.0) * (g * sigmoid(g * alpha));
                }
            }
        }
    }
}

/// Lanes of a sum, and of a search: as exact as a short sum, and the same on every machine.
const LANES: usize = 8;

/// Sums in lanes.
#[inline(always)]
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += of(*x);
    }
    lanes.iter().sum()
}

/// Norms one row.
pub(super) fn norm(
    row: &mut [f32],
    kind: NormKind,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    epsilon: f32,
) {
    Isa::detect().run(Normed { row, kind, weight, bias, epsilon });
}

struct Normed<'a> {
    row: &'a mut [f32],
    kind: NormKind,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

impl Job for Normed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { row, kind, weight, bias, epsilon } = self;
        #[expect(clippy::cast_precision_loss, reason = "widths are far below 2²⁴")]
        let width = row.len() as f32;
        let mut mean = 0.0;
        let factor = match kind {
            NormKind::Rms | NormKind::RmsPlusOne => 1.0 / (sum(row, |x| x * x) / width + epsilon).sqrt(),
            NormKind::Length => 1.0 / (sum(row, |x| x * x) + epsilon).sqrt(),
            NormKind::Layer => {
                mean = sum(row, |x| x) / width;
                1.0 / (sum(row, |x| (x - mean) * (x - mean)) / width + epsilon).sqrt()
            }
        };
        let plus = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
        match weight {
            Some(weight) => {
                row.iter_mut().zip(weight).for_each(|(x, w)| *x = (*x - mean) * factor * (w + plus));
            }
            None => row.iter_mut().for_each(|x| *x = (*x - mean) * factor),
        }
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
}

/// Multiplies each row by a number that depends on its position ([`super::Op::Temper`]).
pub(super) fn temper(rows: &mut [f32], width: usize, scale: f32, floor: f32) {
    for (position, row) in rows.chunks_exact_mut(width).enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2²⁴")]
        let factor = 1.0 + scale * ((position as f32 + 1.0) / floor).floor().ln_1p();
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Softmax of a row; `extra` takes part and leads nowhere.
pub(super) fn softmax(row: &mut [f32], extra: Option<f32>) {
    Isa::detect().run(Softmax { row, extra });
}

struct Softmax<'a> {
    row: &'a mut [f32],
    extra: Option<f32>,
}

impl Job for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { row, extra } = self;
        let mut lanes = [extra.unwrap_or(f32::NEG_INFINITY); LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = lane.max(*x));
        }
        let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = exp(*x - largest));
        let total = sum(row, |x| x) + extra.map_or(0.0, |x| exp(x - largest));
        let factor = 1.0 / total;
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for step in -870_000..=887_000 {
            let x = step as f32 * 1e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - exact).abs() <= 2.5e-7 * exact, "{x}: {ours} {exact}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    /// Functions of rows, of any length and with numbers of any kind, on an instruction set.
    fn all_on(isa: Isa, values: &[f32]) -> Vec<u32> {
        let mut out = Vec::new();
        let mut keep = |values: &[f32]| {
            // Which bits a NaN has is not said.
            out.extend(values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }));
        };
        let (weight, up) = (vec![0.7; values.len()], vec![-1.3; values.len()]);
        for with in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::ReluSquared,
            Activation::Sigmoid,
            Activation::Tanh,
            Activation::Softplus,
        ] {
            let mut own = values.to_vec();
            isa.run(Activate { values: &mut own, with });
            keep(&own);
            let mut gate = values.to_vec();
            isa.run(Joined { gate: &mut gate, up: &up, how: Join::Product(with) });
            keep(&gate);
        }
        let mut gate = values.to_vec();
        isa.run(Joined { gate: &mut gate, up: &up, how: Join::Clamped { alpha: 1.7, limit: 7.0 } });
        keep(&gate);
        for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer, NormKind::Length] {
            let mut row = values.to_vec();
            let (weight, bias) = (Some(weight.as_slice()), Some(up.as_slice()));
            isa.run(Normed { row: &mut row, kind, weight, bias, epsilon: 1e-5 });
            keep(&row);
        }
        for extra in [None, Some(0.3)] {
            let mut row = values.to_vec();
            isa.run(Softmax { row: &mut row, extra });
            keep(&row);
        }
        out
    }

    #[test]
    fn numbers_are_the_same_on_all_instruction_sets() {
        for count in [1, 7, 8, 31, 32, 33, 257] {
            let plain: Vec<f32> =
                crate::quant::test_weights::gaussian(count, 7).iter().map(|x| 9.0 * x).collect();
            let mut odd = plain.clone();
            let kinds = [f32::NAN, f32::INFINITY, -0.0, 0.0, f32::NEG_INFINITY, 1e-40, 3e38, -200.0];
            odd.iter_mut().skip(count / 2).zip(kinds).for_each(|(x, kind)| *x = kind);
            for values in [plain, odd] {
                let expected = all_on(Isa::Portable, &values);
                for isa in Isa::available() {
                    assert!(all_on(isa, &values) == expected, "{isa:?}, {count}");
                }
            }
        }
    }

    #[test]
    fn the_error_function_has_its_known_values() {
        for (x, exact) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.6, 0.999_763_965_583_470_7),
            (4.0, 0.999_999_984_582_742_1),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - exact).abs() < 1e-14, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn a_softmax_sums_to_one_less_what_its_sink_takes() {
        let mut row = [1.0, 2.0, f32::NEG_INFINITY];
        softmax(&mut row, Some(2.0));
        let e = std::f32::consts::E;
        assert!((row[1] - e / (2.0 * e + 1.0)).abs() < 1e-6 && row[2] == 0.0);
    }
}
