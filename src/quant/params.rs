//! Scale and zero point of a range, as compressed-tensors computes them.
//!
//! T is the weights' type, S the scales'; rX rounds to X. From a range lo ≤ 0 ≤ hi:
//!
//! - symmetric: scale = rS(rT(max(−lo, hi) / ((2^bits − 1) / 2)))
//! - asymmetric: scale = rS(rT(rT(hi − lo) / (2^bits − 1))), then with this scale z = rT(qmin − rT(lo / scale)),
//!   clamped to the codes, rounded half to even; 0 if that is 0/0
//!
//! A range of 0 … −hi, hi > 0, is that of 0 … hi turned: its scale is negative. With signed `minmax` the divisor is 2^(bits − 1),
//! so that the least code stands for the end of the range.
//!
//! Only then does a scale of 0 become S's epsilon. If S is T, this is `calculate_qparams` of that library, operation
//! by operation. If S is another type, the library cannot store it. Here S is rounded last, and everything else is
//! computed with the stored value.

use super::kernel::round_code;
use super::{Bits, FloatType, Observer, Scheme};

/// The inputs of the formulas above.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) bits: Bits,
    pub(super) symmetric: bool,
    /// T.
    pub(super) source: FloatType,
    /// S.
    pub(super) scale: FloatType,
    /// Steps from 0 to the end of a symmetric range.
    pub(super) side: f32,
}

impl Rules {
    pub(super) fn new(scheme: &Scheme, source: FloatType) -> Self {
        let side = scheme.bits.steps() as f32 / 2.0;
        Self { bits: scheme.bits, symmetric: scheme.symmetric, source, scale: scheme.scale_type, side }
    }

    /// The same for the ranges of an observer.
    pub(super) fn of(self, observer: &Observer, scheme: &Scheme) -> Self {
        match observer {
            Observer::SignedMinmax if observer.turns(scheme) => {
                Self { side: -self.bits.qmin() as f32, ..self }
            }
            _ => self,
        }
    }

    /// Scales and zero points (integers as f32; 0 if symmetric) of ranges, in place: `low` becomes the zero points
    /// and `high` the scales. A scale that overflows is not finite. Ranges must be finite and contain 0; symmetric ones may be
    /// turned.
    #[inline(always)]
    pub(super) fn resolve(&self, low: &mut [f32], high: &mut [f32]) {
        let steps = self.bits.steps() as f32;
        if self.symmetric {
            for (lo, hi) in low.iter_mut().zip(high.iter_mut()) {
                let most = if -*lo > hi.abs() { -*lo } else { *hi };
                *hi = most / self.side;
                *lo = 0.0;
            }
        } else {
            for (lo, hi) in low.iter().zip(high.iter_mut()) {
                *hi -= *lo;
            }
            self.source.round_all(high);
            for scale in high.iter_mut() {
                *scale /= steps;
            }
        }
        self.source.round_all(high);
        if self.scale != self.source {
            self.scale.round_all(high);
        }
        if !self.symmetric {
            let (qmin, qmax) = (self.bits.qmin() as f32, self.bits.qmax() as f32);
            for (lo, scale) in low.iter_mut().zip(high.iter()) {
                *lo /= *scale;
            }
            self.source.round_all(low);
            for z in low.iter_mut() {
                *z = qmin - *z;
            }
            self.source.round_all(low);
            for z in low.iter_mut() {
                // compressed-tensors casts the NaN of 0/0 to an integer, which is undefined and gives 0 on x86.
                let finite = if z.is_nan() { 0.0 } else { *z };
                *z = round_code(finite, qmin, qmax);
            }
        }
        let epsilon = self.scale.epsilon();
        for scale in high.iter_mut() {
            *scale = if *scale == 0.0 { epsilon } else { *scale };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits: Bits, symmetric: bool, float: FloatType, low: f32, high: f32) -> (f32, f32) {
        let (mut low, mut high) = ([low], [high]);
        let side = bits.steps() as f32 / 2.0;
        Rules { bits, symmetric, source: float, scale: float, side }.resolve(&mut low, &mut high);
        (high[0], low[0])
    }

    #[test]
    fn symmetric_scales_divide_by_half_the_steps() {
        assert_eq!(of(Bits::Four, true, FloatType::F32, -1.0, 0.5), (1.0 / 7.5, 0.0));
        assert_eq!(of(Bits::Eight, true, FloatType::F32, -1.0, 2.0), (2.0 / 127.5, 0.0));
    }

    #[test]
    fn turned_ranges_have_negative_scales() {
        assert_eq!(of(Bits::Four, true, FloatType::F32, 0.0, -1.5), (-0.2, 0.0));
        assert_eq!(of(Bits::Four, true, FloatType::F32, 0.0, -0.0), (FloatType::F32.epsilon(), 0.0));
    }

    #[test]
    fn asymmetric_ranges_have_a_zero_point() {
        assert_eq!(of(Bits::Four, false, FloatType::F32, -0.5, 0.4375), (0.0625, 0.0));
        assert_eq!(of(Bits::Four, false, FloatType::F32, 0.0, 15.0), (1.0, -8.0));
        assert_eq!(of(Bits::Eight, false, FloatType::F32, -255.0, 0.0), (1.0, 127.0));
    }

    #[test]
    fn a_zero_scale_becomes_epsilon() {
        for float in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            assert_eq!(of(Bits::Four, true, float, 0.0, 0.0), (float.epsilon(), 0.0));
            assert_eq!(of(Bits::Four, false, float, 0.0, 0.0), (float.epsilon(), 0.0));
        }
        // Underflow: the zero point is computed before epsilon stands in.
        let least = f32::from_bits(1);
        assert_eq!(of(Bits::Four, false, FloatType::F32, -least, least), (2f32.powi(-23), 7.0));
    }

    #[test]
    fn scales_round_to_their_own_type_last() {
        let rules = Rules {
            bits: Bits::Four,
            symmetric: true,
            source: FloatType::F32,
            scale: FloatType::Bf16,
            side: 7.5,
        };
        let (mut low, mut high) = ([-1.0f32], [0.0f32]);
        rules.resolve(&mut low, &mut high);
        assert_eq!(high[0], FloatType::Bf16.round(1.0 / 7.5));
    }
}
