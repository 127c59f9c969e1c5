//! The three floating-point types of weights and scales, and rounding to them.
//!
//! All arithmetic is f32. A value "of type F16" is an f32 that F16 can hold. Conversions are written with integer
//! operations, so that they vectorise on every instruction set and give the same bits everywhere.

use crate::quant::simd::machine::{LANES, Machine, f16_to_f32};

mod narrow;

/// A floating-point type that weights or scales are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes a value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name that safetensors headers use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// The nearest value of this type, ties to even; beyond the greatest one infinity, NaN stays NaN.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => F32::round(x),
            Self::F16 => F16::round(x),
            Self::Bf16 => Bf16::round(x),
        }
    }

    /// Machine epsilon, the distance from 1 to the next value. It stands in for a scale of zero.
    #[must_use]
    pub const fn epsilon(self) -> f32 {
        match self {
            Self::F32 => 1.0 / 8_388_608.0,
            Self::F16 => 1.0 / 1024.0,
            Self::Bf16 => 1.0 / 128.0,
        }
    }

    /// The greatest relative error of rounding to this type (for normal values): half of epsilon.
    #[must_use]
    pub const fn unit_roundoff(self) -> f64 {
        self.epsilon() as f64 / 2.0
    }

    /// The least normal value. Below it neighbours are as far apart as they are there, epsilon times this value.
    pub(super) const fn least_normal(self) -> f32 {
        match self {
            Self::F32 | Self::Bf16 => f32::MIN_POSITIVE,
            Self::F16 => 1.0 / 16_384.0,
        }
    }

    /// The little-endian values in `bytes`, widened. An incomplete value at the end is left out.
    #[must_use]
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        fn all<T: Float>(bytes: &[u8]) -> Vec<f32> {
            T::elements(bytes).iter().map(|&raw| T::widen(raw)).collect()
        }
        match self {
            Self::F32 => all::<F32>(bytes),
            Self::F16 => all::<F16>(bytes),
            Self::Bf16 => all::<Bf16>(bytes),
        }
    }

    /// Rounds every value in place; the loop is lane-friendly.
    #[inline(always)]
    pub(super) fn round_all(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => values.iter_mut().for_each(|x| *x = F16::round(*x)),
            Self::Bf16 => values.iter_mut().for_each(|x| *x = Bf16::round(*x)),
        }
    }

    /// The same for what is known to be numbers.
    #[inline(always)]
    pub(super) fn round_numbers(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => values.iter_mut().for_each(|x| *x = F16::round_number(*x)),
            Self::Bf16 => values.iter_mut().for_each(|x| *x = Bf16::round_number(*x)),
        }
    }

    /// Widens as many values as `out` holds.
    #[inline(always)]
    pub(super) fn widen_all(self, bytes: &[u8], out: &mut [f32]) {
        #[inline(always)]
        fn all<T: Float>(bytes: &[u8], out: &mut [f32]) {
            for (x, &raw) in out.iter_mut().zip(T::elements(bytes)) {
                *x = T::widen(raw);
            }
        }
        match self {
            Self::F32 => all::<F32>(bytes, out),
            Self::F16 => all::<F16>(bytes, out),
            Self::Bf16 => all::<Bf16>(bytes, out),
        }
    }

    /// Stores values of this type as bytes of the same number of values.
    #[inline(always)]
    pub(super) fn narrow_all(self, values: &[f32], out: &mut [u8]) {
        #[inline(always)]
        fn all<T: Float>(values: &[f32], out: &mut [u8]) {
            for (raw, &x) in T::elements_mut(out).iter_mut().zip(values) {
                *raw = T::narrow(x);
            }
        }
        match self {
            Self::F32 => all::<F32>(values, out),
            Self::F16 => all::<F16>(values, out),
            Self::Bf16 => all::<Bf16>(values, out),
        }
    }
}

/// A [`FloatType`] as a type, for kernels compiled once for each.
pub(super) trait Float: Copy {
    /// The bytes of one value.
    type Raw: Copy;

    /// Which one.
    const TYPE: FloatType;

    /// Bits of one value.
    const BITS: u32;

    /// The bit pattern of a stored value, in the low bits.
    fn bits(raw: Self::Raw) -> u32;

    /// The value of a bit pattern.
    fn from_bits(bits: u32) -> f32;

    /// The stored values of a slice; an incomplete one at the end is left out.
    fn elements(bytes: &[u8]) -> &[Self::Raw];

    /// [`Float::elements`] to be written.
    fn elements_mut(bytes: &mut [u8]) -> &mut [Self::Raw];

    /// One stored value as f32, exact.
    fn widen(raw: Self::Raw) -> f32;

    /// The stored form of a value that this type can hold.
    fn narrow(x: f32) -> Self::Raw;

    /// [`FloatType::round`].
    fn round(x: f32) -> f32;

    /// The same for what is known to be a number.
    fn round_number(x: f32) -> f32;

    /// The greatest |w|; infinite or NaN if any weight is.
    fn magnitude(weights: &[Self::Raw]) -> f32;

    /// The least and the greatest weight, widened to contain 0; one of them infinite or NaN if any weight is.
    fn extremes(weights: &[Self::Raw]) -> (f32, f32);
}

/// A [`Float`] of 16 bits.
pub(super) trait Half: Float {
    /// The 32 values of some bytes: those at even places, and those at odd ones.
    fn pairs<M: Machine>(m: M, from: &[u8; 4 * LANES]) -> [M::Lanes; 2];
}

impl Half for Bf16 {
    #[inline(always)]
    fn pairs<M: Machine>(m: M, from: &[u8; 4 * LANES]) -> [M::Lanes; 2] {
        m.bf16_pairs(from)
    }
}

impl Half for F16 {
    #[inline(always)]
    fn pairs<M: Machine>(m: M, from: &[u8; 4 * LANES]) -> [M::Lanes; 2] {
        m.f16_pairs(from)
    }
}

/// [`FloatType::F32`].
#[derive(Clone, Copy)]
pub(super) struct F32;
/// [`FloatType::F16`].
#[derive(Clone, Copy)]
pub(super) struct F16;
/// [`FloatType::Bf16`].
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// The common part of all types, with bit patterns as integers.
///
/// Ranges are found by comparing bit patterns, which IEEE formats allow: without the sign they are ordered as the
/// values are, NaN above infinity above everything finite. The greatest pattern read as signed is the greatest
/// positive weight, if there is one; read as unsigned it is the negative weight furthest from 0, if there is one.
macro_rules! stored_as {
    ($unsigned:ty, $signed:ty) => {
        type Raw = [u8; size_of::<$unsigned>()];

        const BITS: u32 = <$unsigned>::BITS;

        #[inline(always)]
        fn bits(raw: Self::Raw) -> u32 {
            u32::from(<$unsigned>::from_le_bytes(raw))
        }

        #[inline(always)]
        fn from_bits(bits: u32) -> f32 {
            Self::widen((bits as $unsigned).to_le_bytes())
        }

        #[inline(always)]
        fn elements(bytes: &[u8]) -> &[Self::Raw] {
            bytes.as_chunks().0
        }

        #[inline(always)]
        fn elements_mut(bytes: &mut [u8]) -> &mut [Self::Raw] {
            bytes.as_chunks_mut().0
        }

        #[inline(always)]
        fn magnitude(weights: &[Self::Raw]) -> f32 {
            const MASK: $unsigned = <$unsigned>::MAX >> 1;
            let mut most = 0;
            for &raw in weights {
                let bits = <$unsigned>::from_le_bytes(raw) & MASK;
                most = if bits > most { bits } else { most };
            }
            Self::widen(most.to_le_bytes())
        }

        #[inline(always)]
        fn extremes(weights: &[Self::Raw]) -> (f32, f32) {
            const SIGN: $unsigned = !(<$unsigned>::MAX >> 1);
            let (mut high, mut low) = (0, 0);
            for &raw in weights {
                let bits = <$unsigned>::from_le_bytes(raw);
                high = if bits as $signed > high { bits as $signed } else { high };
                low = if bits > low { bits } else { low };
            }
            let low = if low > SIGN { low } else { 0 };
            (Self::widen(low.to_le_bytes()), Self::widen(high.to_le_bytes()))
        }
    };
}

impl Float for F32 {
    stored_as!(u32, i32);

    const TYPE: FloatType = FloatType::F32;

    #[inline(always)]
    fn widen(raw: [u8; 4]) -> f32 {
        f32::from_le_bytes(raw)
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 4] {
        x.to_le_bytes()
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn round_number(x: f32) -> f32 {
        x
    }
}

impl Float for Bf16 {
    stored_as!(u16, i16);

    const TYPE: FloatType = FloatType::Bf16;

    #[inline(always)]
    fn widen(raw: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 2] {
        ((x.to_bits() >> 16) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        if x.is_nan() {
            f32::from_bits((x.to_bits() | 0x0040_0000) & 0xffff_0000)
        } else {
            Self::round_number(x)
        }
    }

    #[inline(always)]
    fn round_number(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    }
}

impl Float for F16 {
    stored_as!(u16, i16);

    const TYPE: FloatType = FloatType::F16;

    #[inline(always)]
    fn widen(raw: [u8; 2]) -> f32 {
        f16_to_f32(raw)
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 2] {
        let sign = (x.to_bits() >> 16) & 0x8000;
        let bits = x.to_bits() & 0x7fff_ffff;
        // Near 0.5, neighbours of f32 are as far apart as subnormal halves are.
        let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let normal = bits.wrapping_sub(0x3800_0000) >> 13;
        let finite = if bits < 0x3880_0000 { subnormal } else { normal };
        let half = if bits >= 0x7f80_0000 { 0x7c00 | ((bits >> 13) & 0x3ff) } else { finite };
        ((sign | half) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        if x.is_nan() {
            f32::from_bits((x.to_bits() | 0x0040_0000) & 0xffff_e000)
        } else {
            Self::round_number(x)
        }
    }

    #[inline(always)]
    fn round_number(x: f32) -> f32 {
        let sign = x.to_bits() & 0x8000_0000;
        let bits = x.to_bits() ^ sign;
        let normal = bits.wrapping_add(0xfff + ((bits >> 13) & 1)) & 0xffff_e000;
        // Subnormal halves are multiples of 2^-24, which is the distance of neighbours of f32 at 0.5.
        let subnormal = ((f32::from_bits(bits) + 0.5) - 0.5).to_bits();
        let finite = if bits < 0x3880_0000 { subnormal } else { normal };
        f32::from_bits(sign | if finite > 0x477f_e000 { 0x7f80_0000 } else { finite })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of every exponent with mantissas around what rounding decides on.
    fn probes() -> impl Iterator<Item = f32> {
        (0u32..256).flat_map(|exponent| {
            [
                0u32, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_7fff, 0x1_8000,
                0x7f_efff,
            ]
            .into_iter()
            .chain([0x7f_f000, 0x7f_7fff, 0x7f_8000, 0x7f_ffff, 0x55_5555, 0x2a_aaab, 0x40_0000])
            .flat_map(move |mantissa| {
                [0u32, 1].map(|sign| f32::from_bits(sign << 31 | exponent << 23 | mantissa))
            })
        })
    }

    /// The value of a half-precision bit pattern, by its definition.
    fn half_value(bits: u16) -> f64 {
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_half_widens_to_its_value_and_narrows_back() {
        for bits in 0..=u16::MAX {
            let wide = F16::widen(bits.to_le_bytes());
            let want = half_value(bits);
            if want.is_nan() {
                assert!(wide.is_nan());
                continue;
            }
            assert_eq!(f64::from(wide), want);
            assert_eq!(wide.is_sign_negative(), bits >> 15 == 1);
            assert_eq!(F16::narrow(wide), bits.to_le_bytes());
            assert_eq!(F16::round(wide).to_bits(), wide.to_bits());
        }
    }

    /// The nearest of all values of a 16-bit type, ties to the even bit pattern.
    fn nearest(x: f32, widen: impl Fn(u16) -> f64, infinity: u16, limit: f64) -> f64 {
        let magnitude = f64::from(x.abs());
        if magnitude >= limit {
            return f64::INFINITY;
        }
        let (mut low, mut high) = (0u16, infinity - 1);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if widen(middle) <= magnitude { low = middle } else { high = middle - 1 }
        }
        let (a, b) = (widen(low), if low + 1 < infinity { widen(low + 1) } else { limit * 2.0 });
        if magnitude - a < b - magnitude || (magnitude - a == b - magnitude && low % 2 == 0) { a } else { b }
    }

    #[test]
    fn rounding_takes_the_nearest_value_and_the_even_one_of_two() {
        for x in probes() {
            if x.is_nan() {
                assert!(F16::round(x).is_nan() && Bf16::round(x).is_nan());
                continue;
            }
            let half = nearest(x, half_value, 0x7c00, 65520.0);
            assert_eq!(f64::from(F16::round(x).abs()), half, "F16 of {x:e}");
            let wide = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
            let limit = f64::from(f32::from_bits(0x7f7f_8000));
            let top = wide(0x7f7f);
            let bf16 = nearest(x, wide, 0x7f80, limit);
            let bf16 = if bf16 > top { f64::INFINITY } else { bf16 };
            assert_eq!(f64::from(Bf16::round(x).abs()), bf16, "BF16 of {x:e}");
            assert_eq!(F16::round(x).is_sign_negative(), x.is_sign_negative());
            assert_eq!(Bf16::round(x).is_sign_negative(), x.is_sign_negative());
        }
    }

    #[test]
    fn ranges_contain_zero_and_show_what_is_not_finite() {
        fn check<T: Float>() {
            let raw = |values: &[f32]| values.iter().map(|&x| T::narrow(x)).collect::<Vec<_>>();
            assert_eq!(T::extremes(&raw(&[-2.0, 0.5, 1.0])), (-2.0, 1.0));
            assert_eq!(T::extremes(&raw(&[2.0; 99])), (0.0, 2.0));
            assert_eq!(T::extremes(&raw(&[-2.0; 99])), (-2.0, 0.0));
            assert_eq!(T::extremes(&raw(&[-0.0; 40])), (0.0, 0.0));
            assert_eq!(T::extremes(&[]), (0.0, 0.0));
            assert_eq!(T::magnitude(&raw(&[-2.0, 0.5, 1.0])), 2.0);
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 31, 32, 40] {
                    let mut values = [1.0f32; 41];
                    values[place] = bad;
                    let (low, high) = T::extremes(&raw(&values));
                    assert!(!(low.is_finite() && high.is_finite()));
                    assert!(!T::magnitude(&raw(&values)).is_finite());
                }
            }
        }
        check::<F32>();
        check::<F16>();
        check::<Bf16>();
    }
}
