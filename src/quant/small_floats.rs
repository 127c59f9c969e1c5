//! Floats of four and eight bits: the values of their codes, and rounding to them.

/// Values of all E2M1 codes: sign, 2 exponent bits with bias 1, 1 of the significand; neither infinity nor NaN.
pub(crate) static E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values of all E4M3 codes: sign, 4 exponent bits with bias 7, 3 of the significand; no infinity, all ones
/// is NaN.
pub(crate) static E4M3: [f32; 256] = table(3, 7, true);

/// [`E4M3`] of a code, computed: loops over it run in lanes.
#[must_use]
#[inline(always)]
pub(crate) fn e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    // The exponent's bias is greater by 120 in F32. Below 8 there is none: multiples of 2^−9.
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    let value = if magnitude < 8 { magnitude as f32 / 512.0 } else { normal };
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
}

/// Values of all E5M2 codes: sign, 5 exponent bits with bias 15, 2 of the significand; infinities and NaN as
/// in IEEE.
pub(crate) static E5M2: [f32; 256] = table(2, 15, false);

/// The greatest value of E4M3.
pub(crate) const E4M3_MAX: f32 = 448.0;

/// The E4M3 code that is nearest to a number, ties to the even code. Beyond the greatest value it is that of the greatest.
#[must_use]
pub(crate) fn nearest_e4m3(x: f32) -> u8 {
    /// Below it codes are multiples of 2^−9.
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = x.abs().min(E4M3_MAX);
    let subnormal = (magnitude * 512.0).round_ties_even() as u8;
    // The significand loses 20 bits, and the exponent's bias is less by 120.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    let normal = rounded.wrapping_sub(120 << 3) as u8;
    sign | if magnitude < LEAST_NORMAL { subnormal } else { normal }
}

/// The E2M1 code that is nearest to a number, ties to the even code. Beyond 6 it is that of 6. Negative numbers have the sign
/// even if they become zero; −0 has none.
#[must_use]
#[inline(always)]
pub(crate) fn nearest_e2m1(x: f32) -> u8 {
    let m = x.abs();
    let up = [m > 0.25, m >= 0.75, m > 1.25, m >= 1.75, m > 2.5, m >= 3.5, m > 5.0];
    up.into_iter().map(u8::from).sum::<u8>() | u8::from(x < 0.0) << 3
}

/// 2^(code − 127); 255 is NaN. Code 0 is subnormal in F32.
#[must_use]
#[inline(always)]
pub(crate) fn e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// 2^exponent for the exponents met here, all of them normal in F32.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[expect(clippy::cast_possible_wrap, reason = "codes have eight bits")]
const fn table(mantissa_bits: u32, bias: i32, is_finite: bool) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0u32;
    while code < 256 {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code & 0x7f) >> mantissa_bits;
        let ones = (1 << mantissa_bits) - 1;
        let is_top = exponent == (0x7f >> mantissa_bits);
        let magnitude = if is_top && is_finite && mantissa == ones {
            f32::NAN
        } else if is_top && !is_finite {
            if mantissa == 0 { f32::INFINITY } else { f32::NAN }
        } else if exponent == 0 {
            mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
        } else {
            (mantissa + (1 << mantissa_bits)) as f32
                * power_of_two(exponent as i32 - bias - mantissa_bits as i32)
        };
        values[code as usize] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_values_are_those_of_the_table() {
        for code in 0..=u8::MAX {
            assert_eq!(e4m3(code).to_bits(), E4M3[usize::from(code)].to_bits(), "{code}");
        }
    }

    #[test]
    fn tables_have_the_values_of_the_formats() {
        assert_eq!(E4M3[0x7e], E4M3_MAX);
        assert_eq!(E4M3[0x01], 2f32.powi(-9));
        assert_eq!(E4M3[0x08], 2f32.powi(-6));
        assert_eq!(E4M3[0xb8], -1.0);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E5M2[0x7b], 57344.0);
        assert_eq!(E5M2[0x01], 2f32.powi(-16));
        assert_eq!(E5M2[0xfc], f32::NEG_INFINITY);
        assert!(E5M2[0x7d].is_nan());
        assert_eq!(E4M3.iter().filter(|v| v.is_nan()).count(), 2);
    }

    #[test]
    fn exponents_have_the_values_of_the_format() {
        assert_eq!(e8m0(127), 1.0);
        assert_eq!(e8m0(0), 2f32.powi(-127));
        assert!(e8m0(255).is_nan());
    }

    /// Every BF16 number, and F32 numbers next to each.
    #[test]
    fn the_nearest_code_of_four_bits_is_the_nearest() {
        for high in 0..=u16::MAX {
            let bits = u32::from(high) << 16;
            for x in [bits, bits.wrapping_add(1), bits.wrapping_sub(1)].map(f32::from_bits) {
                if !x.is_finite() {
                    continue;
                }
                let magnitude = f64::from(x.abs().min(6.0));
                let distance = |code: &u8| (f64::from(E2M1[usize::from(*code)]) - magnitude).abs();
                let nearest =
                    |a: &u8, b: &u8| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
                let best = (0..8).min_by(nearest).unwrap() | if x < 0.0 { 8 } else { 0 };
                assert_eq!(nearest_e2m1(x), best, "{x:e}");
            }
        }
    }

    /// Every BF16 number, the middles between codes among them, and F32 numbers next to each.
    #[test]
    fn the_nearest_code_is_the_nearest() {
        let slow = |x: f32| {
            let magnitude = f64::from(x.abs().min(E4M3_MAX));
            let distance = |code: &u8| (f64::from(E4M3[usize::from(*code)]) - magnitude).abs();
            let best =
                (0..0x7f).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
            best.unwrap() | if x.is_sign_negative() { 0x80 } else { 0 }
        };
        for high in 0..=u16::MAX {
            let bits = u32::from(high) << 16;
            for bits in [bits, bits.wrapping_add(1), bits.wrapping_sub(1)] {
                let x = f32::from_bits(bits);
                if x.is_finite() {
                    assert_eq!(nearest_e4m3(x), slow(x), "{x:e}");
                }
            }
        }
    }
}
