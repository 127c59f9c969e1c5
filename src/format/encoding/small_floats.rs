//! Scales of any float type.

use half::{bf16, f16};

use crate::format::Dtype;
pub(super) use crate::quant::small_floats::{E2M1, E4M3, E5M2, e4m3, e8m0};

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
