//! The inner loops of quantization: weights to codes, elementwise and lane-friendly.
//!
//! Nothing here depends on the order of evaluation, so every instruction set gives the same bits.

use super::float_type::{Float, Half};
use crate::quant::simd::machine::{LANES, Machine};

/// Adding this to |x| < 2^22 leaves the nearest integer, ties to even, in the low bits of the mantissa.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Clamps and then rounds half to even, as llm-compressor does, without a library call.
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
    /// An integer; 0 if symmetric.
    pub(super) zero: f32,
    pub(super) qmin: f32,
    pub(super) qmax: f32,
    /// Added to a code before its low byte is stored: 8 or 128 for unsigned codes, 0 for signed ones.
    pub(super) bias: f32,
}

impl Grid {
    /// The codes of one group, one byte per code: round(clamp(w / scale + zero)) + bias. Lengths are equal; `most` is
    /// the greatest |w|.
    ///
    /// Division is the slowest instruction here, and weights of few significant bits do without it ([`Fine`]). For
    /// F32, if fused multiply-add is an instruction, the quotient comes from the product with the reciprocal r =
    /// 1/scale. It is corrected twice with the exact remainder: q + (w − q·scale)·r. The first correction gives one
    /// of the two neighbours of the quotient. So the second gives *the same correctly rounded quotient* (Markstein,
    /// IBM J. Res. Dev. 34, 1990).
    #[inline(always)]
    pub(super) fn encode<T: Float, const ASYMMETRIC: bool, M: Machine>(
        self,
        weights: &[T::Raw],
        most: f32,
        out: &mut [u8],
    ) {
        let scale = self.scale;
        if M::FMA && T::BITS == 32 && corrects(scale, most) {
            let r = 1.0 / scale;
            let twice = |w: f32| correct(correct(w * r, w, scale, r), w, scale, r);
            self.encode_with::<T, ASYMMETRIC>(weights, out, twice);
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

/// Whether a quotient may be computed from a product with the reciprocal: no step may overflow, or underflow in a way
/// that reaches a code. `most` is the greatest |w|.
#[inline(always)]
fn corrects(scale: f32, most: f32) -> bool {
    const SMALL: f32 = f32::from_bits((127 - 60) << 23);
    const LARGE: f32 = f32::from_bits((127 + 40) << 23);
    let size = scale.abs();
    (SMALL..=1.0 / SMALL).contains(&size) & (most <= size * LARGE)
}

/// Adding this to |x| < 2^10 leaves the nearest multiple of 2^-12.
const FINE: f32 = 3072.0;

/// The grid of one group, for codes without a division, for weights and scales of at most 11 significant bits.
///
/// A code is round(w / scale + zero), half to even. A quotient of numbers of 11 bits is either exactly in the middle
/// between two integers, or at least 2^-12.1 away from it. The distance is 2w − (2k + 1)·scale over 2·scale. Its
/// numerator is an integer in units of the last place of 2w or of the scale. The product with r = 1/scale (rounded
/// once or twice) is wrong by less than 2^-14 of a unit wherever a code depends on it. So, rounded to a multiple of
/// 2^-12, the product is in the middle if the quotient is, and otherwise on the same side of it. The codes are
/// therefore the same bits with and without fused multiply-add. Zero points are integers and do not change this.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fine {
    r: f32,
    /// The ends of the grid, as [`FINE`] moves them.
    low: f32,
    high: f32,
    /// Added to move numbers from there to where the low bits of the mantissa hold the nearest integer. Includes the
    /// zero point and the bias (which is even, and changes no ties).
    end: f32,
}

impl Fine {
    #[inline(always)]
    pub(super) fn new(grid: &Grid) -> Self {
        Self {
            r: 1.0 / grid.scale,
            low: FINE + (grid.qmin - grid.zero),
            high: FINE + (grid.qmax - grid.zero),
            end: MAGIC - FINE + grid.zero + grid.bias,
        }
    }

    #[inline(always)]
    fn code<M: Machine>(&self, w: f32) -> u8 {
        let moved = if M::FMA { w.mul_add(self.r, FINE) } else { w * self.r + FINE };
        (clamp(moved, self.low, self.high) + self.end).to_bits() as u8
    }

    /// The codes of 16-bit weights, one byte per code. Lengths are equal.
    #[inline(always)]
    pub(super) fn encode<T: Float, M: Machine>(self, weights: &[T::Raw], out: &mut [u8]) {
        for (&raw, out) in weights.iter().zip(out) {
            *out = self.code::<M>(T::widen(raw));
        }
    }

    /// The codes of weights, of which there is a multiple of 32, packed as nibbles.
    #[inline(always)]
    pub(super) fn encode_nibbles<T: Half, M: Machine>(self, m: M, weights: &[u8], out: &mut [u8]) {
        let lanes = self.lanes(m);
        let (weights, last_weights) = weights.as_chunks::<{ 8 * LANES }>();
        let (out, last_out) = out.as_chunks_mut::<{ 2 * LANES }>();
        for (weights, out) in weights.iter().zip(out) {
            lanes.encode::<T>(m, weights.first_chunk(), out.first_chunk_mut());
            lanes.encode::<T>(m, weights.last_chunk(), out.last_chunk_mut());
        }
        lanes.encode::<T>(m, last_weights.first_chunk(), last_out.first_chunk_mut());
    }

    #[inline(always)]
    pub(super) fn lanes<M: Machine>(self, m: M) -> FineLanes<M> {
        FineLanes {
            start: m.splat(FINE),
            r: m.splat(self.r),
            low: m.splat(self.low),
            high: m.splat(self.high),
            end: m.splat(self.end),
        }
    }
}

/// [`Fine`] in lanes.
#[derive(Clone, Copy)]
pub(super) struct FineLanes<M: Machine> {
    start: M::Lanes,
    r: M::Lanes,
    low: M::Lanes,
    high: M::Lanes,
    end: M::Lanes,
}

impl<M: Machine> FineLanes<M> {
    /// Of 32 weights, if there are that many.
    #[inline(always)]
    fn encode<T: Half>(&self, m: M, weights: Option<&[u8; 4 * LANES]>, out: Option<&mut [u8; LANES]>) {
        if let (Some(weights), Some(out)) = (weights, out) {
            let [even, odd] = T::pairs(m, weights);
            m.store_nibble_pairs([self.codes(m, even), self.codes(m, odd)], out);
        }
    }

    /// Codes in the low bits of the bit patterns.
    #[inline(always)]
    pub(super) fn codes(&self, m: M, w: M::Lanes) -> M::Lanes {
        let moved = m.mul_add(w, self.r, self.start);
        m.add(m.min(m.max(moved, self.low), self.high), self.end)
    }
}

/// Whether codes of weights and scales of at most 11 significant bits may be found without a division ([`Fine`]), in all groups
/// of these scales and greatest |w|.
#[inline(always)]
pub(super) fn all_fine(scales: &[f32], most: &[f32]) -> bool {
    let mut all = true;
    for (&scale, &most) in scales.iter().zip(most) {
        all &= corrects(scale, most);
    }
    all
}

/// [`Fine`] of some blocks, member by member.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct FineBlocks<const N: usize> {
    r: [f32; N],
    low: [f32; N],
    high: [f32; N],
    end: [f32; N],
}

impl<const N: usize> Default for FineBlocks<N> {
    fn default() -> Self {
        let none = [0.0; N];
        Self { r: none, low: none, high: none, end: none }
    }
}

impl<const N: usize> FineBlocks<N> {
    /// Takes the grids of the first blocks.
    #[inline(always)]
    pub(super) fn fill(&mut self, like: Grid, scales: &[f32], zeros: &[f32]) {
        let Self { r, low, high, end } = self;
        let members = r.iter_mut().zip(low).zip(high.iter_mut().zip(end));
        for (((r, low), (high, end)), (&scale, &zero)) in members.zip(scales.iter().zip(zeros)) {
            let fine = Fine::new(&Grid { scale, zero, ..like });
            (*r, *low, *high, *end) = (fine.r, fine.low, fine.high, fine.end);
        }
    }

    /// Of one.
    #[inline(always)]
    pub(super) fn at(&self, block: usize) -> Fine {
        let i = block % N;
        Fine { r: self.r[i], low: self.low[i], high: self.high[i], end: self.end[i] }
    }
}

/// A better quotient of w and scale from an approximate one and r = 1/scale; see [`Grid::encode`].
#[inline(always)]
fn correct(q: f32, w: f32, scale: f32, r: f32) -> f32 {
    (-q).mul_add(scale, w).mul_add(r, q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::simd::machine::{NEON, PORTABLE};
    use crate::quant::test_weights::Numbers;

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
        }
    }

    /// Whether codes without division are those with it, for numbers of so many bits: all significands, or every
    /// `step`th one, at all distances of exponents at which the codes are not all the same.
    fn check_fine<M: Machine>(_: M, (bits, scale_bits): (u32, u32), step: usize) {
        for (zero, qmin, qmax) in
            [(0.0, -8.0, 7.0), (0.0, -128.0, 127.0), (-5.0, -8.0, 7.0), (127.0, -128.0, 127.0)]
        {
            for s in ((1u32 << (scale_bits - 1))..1 << scale_bits).step_by(step) {
                let scale = s as f32 / (1u32 << scale_bits) as f32;
                let grid = Grid { scale, zero, qmin, qmax, bias: -qmin };
                let fine = Fine::new(&grid);
                for exponent in -4..11 {
                    for w in (1u32 << (bits - 1))..1 << bits {
                        let size = w as f32 * 2f32.powi(exponent - bits as i32);
                        let w = if (w + s) % 2 == 0 { size } else { -size };
                        let want = round_code(w / scale + zero, qmin, qmax) - qmin;
                        assert_eq!(f32::from(fine.code::<M>(w)), want, "{w} / {scale} + {zero}");
                    }
                }
            }
        }
    }

    #[test]
    fn codes_without_division_are_those_with_it() {
        check_fine(PORTABLE, (8, 8), 1);
        check_fine(NEON, (8, 8), 3);
        let step = if cfg!(debug_assertions) { 61 } else { 7 };
        for bits in [(11, 11), (11, 8), (8, 11)] {
            check_fine(PORTABLE, bits, step);
        }
        // Fused multiply-add is emulated in software if it is not an instruction.
        check_fine(NEON, (11, 11), 17 * step);
    }
}
