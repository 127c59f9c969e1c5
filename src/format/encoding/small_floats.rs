//! Floats of eight bits, and scales of any float type.

use half::{bf16, f16};

use crate::format::Dtype;

/// Values of all E2M1 codes: sign, 2 exponent bits with bias 1, 1 of the significand; neither infinity nor NaN.
pub(super) static E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values of all E4M3 codes: sign, 4 exponent bits with bias 7, 3 of the significand; no infinity, all ones
/// is NaN.
pub(super) static E4M3: [f32; 256] = table(3, 7, true);

/// Values of all E5M2 codes: sign, 5 exponent bits with bias 15, 2 of the significand; infinities and NaN as
/// in IEEE.
pub(super) static E5M2: [f32; 256] = table(2, 15, false);

/// 2^(code − 127); 255 is NaN. Code 0 is subnormal in F32.
pub(super) fn e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The scale with this number. None if there is none, or if scales cannot have this type.
pub(super) fn scale(dtype: Dtype, bytes: &[u8], number: usize) -> Option<f32> {
    fn at<const N: usize>(bytes: &[u8], number: usize) -> Option<[u8; N]> {
        bytes.as_chunks::<N>().0.get(number).copied()
    }
    Some(match dtype {
        Dtype::F32 => f32::from_le_bytes(at(bytes, number)?),
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
        Dtype::F64 => f64::from_le_bytes(at(bytes, number)?) as f32,
        Dtype::F16 => f16::from_le_bytes(at(bytes, number)?).to_f32(),
        Dtype::Bf16 => bf16::from_le_bytes(at(bytes, number)?).to_f32(),
        // Exponents are stored as bytes, too.
        Dtype::F8E8m0 | Dtype::U8 => e8m0(*bytes.get(number)?),
        _ => return None,
    })
}

/// A scale that a weight can be multiplied by.
///
/// # Errors
/// If there is none, or it is no finite number: the reason, as in [`super::ReadEncoding::recognize`].
pub(super) fn finite_scale(scale: Option<f32>) -> Result<f32, String> {
    let scale = scale.ok_or("has too few scales")?;
    match scale.is_finite() {
        true => Ok(scale),
        false => Err(format!("has a scale that is no finite number ({scale})")),
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
    fn tables_have_the_values_of_the_formats() {
        assert_eq!(E4M3[0x7e], 448.0);
        assert_eq!(E4M3[0x01], 2f32.powi(-9));
        assert_eq!(E4M3[0x08], 2f32.powi(-6));
        assert_eq!(E4M3[0xb8], -1.0);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E5M2[0x7b], 57344.0);
        assert_eq!(E5M2[0x01], 2f32.powi(-16));
        assert_eq!(E5M2[0xfc], f32::NEG_INFINITY);
        assert!(E5M2[0x7d].is_nan());
        assert_eq!(E4M3.iter().filter(|v| v.is_nan()).count(), 2);
        assert_eq!(e8m0(127), 1.0);
        assert_eq!(e8m0(0), 2f32.powi(-127));
    }
}
