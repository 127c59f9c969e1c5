//! Slopes of functions of numbers and rows, compiled for each instruction set.

use super::super::math::{activate, erf, sigmoid};
use super::super::parts::{Activation, Join, NormKind};
use crate::quant::Isa;
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;

/// Σ a·b, in eight lanes: as exact as a short sum and the same on every machine.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

/// The slope of the error function's linear unit at x.
fn slope_of_gelu(x: f32) -> f32 {
    let wide = f64::from(x);
    let area = 0.5 * (1.0 + erf(wide * std::f64::consts::FRAC_1_SQRT_2));
    let density =
        (-0.5 * wide * wide).exp() * 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
    let slope = (area + wide * density) as f32;
    slope
}

/// Multiplies gradients by the slopes of a function at some numbers.
struct Slopes<'a> {
    gradients: &'a mut [f32],
    values: &'a [f32],
    with: Activation,
}

impl Job for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        const ROOT: f32 = 0.797_884_6;
        let Self { gradients, values, with } = self;
        let rows = gradients.iter_mut().zip(values);
        match with {
            Activation::Silu => rows.for_each(|(gradient, x)| {
                let share = sigmoid(*x);
                *gradient *= share * (1.0 + x * (1.0 - share));
            }),
            Activation::Gelu => rows.for_each(|(gradient, x)| *gradient *= slope_of_gelu(*x)),
            Activation::GeluTanh => rows.for_each(|(gradient, x)| {
                // x · sigmoid(2 y) with y = ROOT · (x + 0.044715 x³).
                let share = sigmoid(2.0 * ROOT * (x + 0.044_715 * x * x * x));
                let slope = 2.0 * ROOT * (1.0 + 3.0 * 0.044_715 * x * x);
                *gradient *= share + x * share * (1.0 - share) * slope;
            }),
            Activation::Relu => rows.for_each(|(gradient, x)| *gradient *= f32::from(u8::from(*x > 0.0))),
            Activation::ReluSquared => rows.for_each(|(gradient, x)| *gradient *= 2.0 * x.max(0.0)),
            Activation::Sigmoid => rows.for_each(|(gradient, x)| {
                let share = sigmoid(*x);
                *gradient *= share * (1.0 - share);
            }),
            Activation::Tanh => rows.for_each(|(gradient, x)| *gradient *= 1.0 - x.tanh() * x.tanh()),
            Activation::Softplus => rows.for_each(|(gradient, x)| *gradient *= sigmoid(*x)),
        }
    }
}

/// Replaces gradients of what a function made of numbers with those of the numbers.
pub(super) fn activate_back(gradients: &mut [f32], values: &[f32], with: Activation) {
    Isa::detect().run(Slopes { gradients, values, with });
}

/// Gradients of gate and up from those of what they were joined to.
pub(super) fn join_back(gradients: &[f32], gate: &[f32], up: &[f32], how: Join) -> (Vec<f32>, Vec<f32>) {
    match how {
        Join::Product(with) => {
            let mut of_up = gate.to_vec();
            activate(&mut of_up, with);
            of_up.iter_mut().zip(gradients).for_each(|(x, gradient)| *x *= gradient);
            let mut of_gate: Vec<f32> =
                gradients.iter().zip(up).map(|(gradient, up)| gradient * up).collect();
            activate_back(&mut of_gate, gate, with);
            (of_gate, of_up)
        }
        Join::Clamped { alpha, limit } => {
            let one = |((gradient, gate), up): ((&f32, &f32), &f32)| {
                let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
                let share = sigmoid(g * alpha);
                let of_gate = (u + 1.0) * share * (1.0 + g * alpha * (1.0 - share));
                let of_gate = if *gate > limit { 0.0 } else { of_gate };
                let of_up = if up.abs() > limit { 0.0 } else { g * share };
                (gradient * of_gate, gradient * of_up)
            };
            gradients.iter().zip(gate).zip(up).map(one).unzip()
        }
    }
}

/// Replaces gradients of a normed row with those of the row.
pub(super) fn norm_back(
    row: &[f32],
    gradient: &mut [f32],
    kind: NormKind,
    weight: Option<&[f32]>,
    epsilon: f32,
) {
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2²⁴")]
    let width = row.len() as f32;
    if let Some(weight) = weight {
        let plus = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
        gradient.iter_mut().zip(weight).for_each(|(gradient, w)| *gradient *= w + plus);
    }
    let ones = vec![1.0; row.len()];
    let mean = if kind == NormKind::Layer { dot(row, &ones) / width } else { 0.0 };
    let centred: Vec<f32> = row.iter().map(|x| x - mean).collect();
    // y = x · factor, and factor = (Σx² / count + ε)^−½.
    let count = if kind == NormKind::Length { 1.0 } else { width };
    let factor = 1.0 / (dot(&centred, &centred) / count + epsilon).sqrt();
    let shared = dot(gradient, &centred) * factor * factor * factor / count;
    let mean = if kind == NormKind::Layer { dot(gradient, &ones) / width } else { 0.0 };
    for (gradient, x) in gradient.iter_mut().zip(&centred) {
        *gradient = factor * (*gradient - mean) - x * shared;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::math;
    use super::*;
    use crate::quant::test_weights::gaussian;

    const ALL: [Activation; 8] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Softplus,
    ];

    /// Slopes from values nearby; F32 leaves some five digits of the values.
    fn near(found: f32, up: f32, down: f32, step: f32, what: &str) {
        let expected = (up - down) / (2.0 * step);
        assert!((found - expected).abs() < 2e-3 * (1.0 + expected.abs()), "{what}: {found} and {expected}");
    }

    #[test]
    fn slopes_are_those_of_values_nearby() {
        let step = 1e-2;
        for with in ALL {
            for i in -30..30 {
                let x = i as f32 * 0.21 + 0.037;
                let value = |x: f32| {
                    let mut values = [x];
                    activate(&mut values, with);
                    values[0]
                };
                let mut slope = [1.0];
                activate_back(&mut slope, &[x], with);
                near(slope[0], value(x + step), value(x - step), step, &format!("{with:?} at {x}"));
            }
        }
        let joins = ALL.map(Join::Product).into_iter().chain([Join::Clamped { alpha: 1.7, limit: 2.0 }]);
        for how in joins {
            for (gate, up) in [(0.4, -0.7), (1.3, 2.6), (2.4, 0.3), (-1.1, -2.5)] {
                let value = |gate: f32, up: f32| {
                    let mut values = [gate];
                    math::join(&mut values, &[up], how);
                    values[0]
                };
                let (of_gate, of_up) = join_back(&[1.0], &[gate], &[up], how);
                let what = format!("{how:?} at {gate}, {up}");
                near(of_gate[0], value(gate + step, up), value(gate - step, up), step, &what);
                near(of_up[0], value(gate, up + step), value(gate, up - step), step, &what);
            }
        }
    }

    #[test]
    fn slopes_are_the_same_on_all_instruction_sets() {
        for count in [1, 8, 33, 200] {
            let values: Vec<f32> = gaussian(count, 5).iter().map(|x| 6.0 * x).collect();
            for with in ALL {
                let on = |isa: Isa| {
                    let mut gradients = gaussian(count, 6);
                    isa.run(Slopes { gradients: &mut gradients, values: &values, with });
                    gradients
                };
                let expected = on(Isa::Portable);
                assert!(Isa::available().into_iter().all(|isa| on(isa) == expected), "{with:?}, {count}");
            }
        }
    }

    #[test]
    fn slopes_of_norms_are_those_of_rows_nearby() {
        let (row, gradient, weight) = (gaussian(24, 1), gaussian(24, 2), gaussian(24, 3));
        for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer, NormKind::Length] {
            for weight in [None, Some(weight.as_slice())] {
                let value = |row: &[f32]| {
                    let mut row = row.to_vec();
                    math::norm(&mut row, kind, weight, None, 1e-3);
                    row.iter().zip(&gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
                };
                let mut found = gradient.clone();
                norm_back(&row, &mut found, kind, weight, 1e-3);
                for column in 0..24 {
                    let moved = |step: f32| {
                        let mut row = row.clone();
                        row[column] += step;
                        value(&row)
                    };
                    near(found[column], moved(1e-2), moved(-1e-2), 1e-2, &format!("{kind:?} at {column}"));
                }
            }
        }
    }
}
