//! The inner loops of quantization: weights to codes, elementwise and lane-friendly.
//!
//! Nothing here depends on the order of evaluation, so every instruction set gives the same bits.

use super::float_type::Float;
use super::machine::Machine;

/// Adding this to |x| < 2^22 leaves the nearest integer, ties to even, in the low bits of the mantissa.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Clamps and then rounds half to even, as the peer does, without a library call.
#[inline(always)]
pub(super) fn round_code(t: f32, qmin: f32, qmax: f32) -> f32 {
    (clamp(t, qmin, qmax) + MAGIC) - MAGIC
}

/// min(max(t, qmin), qmax) in the form of the machine's instructions.
#[inline(always)]
pub(super) fn clamp(t: f32, qmin: f32, qmax: f32) -> f32 {
    let t = if t > qmin { t } else { qmin };
    if t < qmax { t } else { qmax }
}

/// The grid of one group.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) scale: f32,
    /// An integer; 0 where symmetric.
    pub(super) zero: f32,
    pub(super) qmin: f32,
    pub(super) qmax: f32,
    /// Added to a code before its low byte is stored: 8 or 128 for unsigned codes, 0 for signed ones.
    pub(super) bias: f32,
}

impl Grid {
    /// Whether a quotient may be computed by correcting a product: no step of it may overflow, nor underflow in a way
    /// that reaches a code. `most` is the greatest |w|.
    #[inline(always)]
    fn corrects(&self, most: f32) -> bool {
        const SMALL: f32 = f32::from_bits((127 - 60) << 23);
        const LARGE: f32 = f32::from_bits((127 + 40) << 23);
        self.scale >= SMALL && self.scale <= 1.0 / SMALL && most <= self.scale * LARGE
    }

    /// The codes of one group, a byte each: round(clamp(w / scale + zero)) + bias. Lengths are equal; `most` is
    /// the greatest
    /// |w|, `narrow` says that weights and scale have at most 11 significant bits.
    ///
    /// Division is the slowest instruction here. Where fused multiply-add is one, the quotient comes from the
    /// product with the reciprocal r = 1/scale, corrected with the exact remainder: q + (w − q·scale)·r, in the
    /// end *the same correctly rounded quotient*. After one correction the sum differs from w/scale by less
    /// than 2^-21 of a last place before it is rounded, and quotients of numbers of 11 bits are at least 2^-13
    /// of one away from the middle between two neighbours. For F32 a second correction is needed, which is
    /// exact since the first gives one of the two neighbours (Markstein, IBM J. Res. Dev. 34, 1990).
    #[inline(always)]
    pub(super) fn encode<T: Float, const ASYMMETRIC: bool, M: Machine>(
        self,
        weights: &[T::Raw],
        most: f32,
        narrow: bool,
        out: &mut [u8],
    ) {
        let scale = self.scale;
        // Narrow weights with wide scales, which are rare, are divided: one loop less for each instruction set.
        if M::FMA && T::BITS == 32 && self.corrects(most) {
            let r = 1.0 / scale;
            let twice = |w: f32| correct(correct(w * r, w, scale, r), w, scale, r);
            self.encode_with::<T, ASYMMETRIC>(weights, out, twice);
        } else if M::FMA && T::BITS == 16 && narrow && self.corrects(most) {
            let r = 1.0 / scale;
            self.encode_with::<T, ASYMMETRIC>(weights, out, |w| correct(w * r, w, scale, r));
        } else {
            self.encode_with::<T, ASYMMETRIC>(weights, out, |w| w / scale);
        }
    }

    #[inline(always)]
    fn encode_with<T: Float, const ASYMMETRIC: bool>(
        self,
        weights: &[T::Raw],
        out: &mut [u8],
        quotient: impl Fn(f32) -> f32,
    ) {
        let Self { zero, qmin, qmax, bias, .. } = self;
        // The bias is even, so it does not change which of two codes a tie goes to.
        let magic = MAGIC + bias;
        // A flat loop: chunks of a fixed size would be unrolled before they are vectorised, at a fifth of the speed.
        for (&raw, out) in weights.iter().zip(out) {
            let q = quotient(T::widen(raw));
            let t = if ASYMMETRIC { q + zero } else { q };
            *out = (clamp(t, qmin, qmax) + magic).to_bits() as u8;
        }
    }
}

/// A better quotient of w and scale from an approximate one and r = 1/scale; see [`Grid::encode`].
#[inline(always)]
fn correct(q: f32, w: f32, scale: f32, r: f32) -> f32 {
    (-q).mul_add(scale, w).mul_add(r, q)
}

#[cfg(test)]
mod tests {
    use super::super::FloatType;
    use super::super::samples::Numbers;
    use super::*;

    /// A positive number of every mantissa, with an exponent around 0.
    fn number(numbers: &mut Numbers) -> f32 {
        let bits = numbers.next();
        f32::from_bits((bits as u32 & 0x007f_ffff) | (117 + (bits >> 40) as u32 % 20) << 23)
    }

    #[test]
    fn corrected_products_are_correctly_rounded_quotients() {
        let mut numbers = Numbers(1);
        for _ in 0..400_000 {
            let (w, scale) = (number(&mut numbers), number(&mut numbers));
            let r = 1.0 / scale;
            let q = correct(correct(w * r, w, scale, r), w, scale, r);
            assert_eq!(q.to_bits(), (w / scale).to_bits(), "{w} / {scale}");
            for (a, b) in [
                (FloatType::Bf16, FloatType::Bf16),
                (FloatType::F16, FloatType::F16),
                (FloatType::F16, FloatType::Bf16),
            ] {
                let (w, scale) = (a.round(w), b.round(scale));
                let r = 1.0 / scale;
                assert_eq!(correct(w * r, w, scale, r).to_bits(), (w / scale).to_bits(), "{w} / {scale}");
            }
        }
    }
}
