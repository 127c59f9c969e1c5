//! Plain numbers: weights as floats, and every other tensor. They are read and written as they are.
//!
//! One type is not quantized as it is: F64, which is rounded to F32 first.

use super::{Contents, Encoding, Part};
use crate::format::Dtype;
use crate::quant::{FloatType, Role};

/// The encoding's name.
pub(crate) const NAME: &str = "unquantized";

/// One number per weight.
#[derive(Debug)]
pub(crate) struct Unquantized;

impl Encoding for Unquantized {
    fn name(&self) -> &'static str {
        NAME
    }
}

/// Bytes of so many numbers.
#[must_use]
pub(crate) fn bytes(dtype: Dtype, elements: u64) -> u64 {
    (elements * dtype.bits()).div_ceil(8)
}

/// The tensor of a shape.
#[must_use]
pub(crate) fn part(role: Role, dtype: Dtype, shape: &[u64]) -> Part {
    let (rows, of_row) = shape.split_first().map_or((1, &[][..]), |(rows, rest)| (*rows, rest));
    let total = bytes(dtype, shape.iter().product());
    let row = if rows == 0 { 0 } else { bytes(dtype, of_row.iter().product()) };
    let contents = Contents::Rows { rows: 1, bytes: row };
    Part { role, dtype: dtype.name(), shape: shape.to_vec(), bytes: total, contents }
}

/// The type in which weights are quantized: F32 for F64, otherwise their own.
#[must_use]
pub(crate) fn working_type(dtype: Dtype) -> Dtype {
    if dtype == Dtype::F64 { Dtype::F32 } else { dtype }
}

/// Converts F64, little endian, to F32, little endian, and appends it to `out`. Values beyond the range of F32 become
/// infinities.
pub(crate) fn f64_to_f32(source: &[u8], out: &mut Vec<u8>) {
    let (values, _) = source.as_chunks::<8>();
    out.reserve(values.len() * 4);
    for value in values {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
        let narrow = f64::from_le_bytes(*value) as f32;
        out.extend_from_slice(&narrow.to_le_bytes());
    }
}

/// Appends weights to `out`, little endian, each rounded once to `dtype`: F64, F16, BF16, or else F32.
pub(crate) fn write(weights: &[f32], dtype: Dtype, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F64 => out.extend(weights.iter().flat_map(|weight| f64::from(*weight).to_le_bytes())),
        Dtype::F16 => FloatType::F16.narrow(weights, out),
        Dtype::Bf16 => FloatType::Bf16.narrow(weights, out),
        _ => FloatType::F32.narrow(weights, out),
    }
}

/// The index of the first value in `bytes` that is NaN or infinite; none if the type has no such values.
#[must_use]
pub(crate) fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<u64> {
    fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<u64> {
        let (values, _) = bytes.as_chunks::<N>();
        // Without a branch a value, so that the common case is fast; the place is looked up only when needed.
        let any =
            values.chunks(4096).position(|block| block.iter().fold(false, |any, value| any | bad(*value)))?;
        let within = values[any * 4096..].iter().position(|value| bad(*value))?;
        Some((any * 4096 + within) as u64)
    }
    match dtype {
        Dtype::Bf16 => find(bytes, |v| u16::from_le_bytes(v) & 0x7F80 == 0x7F80),
        Dtype::F16 => find(bytes, |v| u16::from_le_bytes(v) & 0x7C00 == 0x7C00),
        Dtype::F32 => find(bytes, |v| u32::from_le_bytes(v) & 0x7F80_0000 == 0x7F80_0000),
        Dtype::F64 => find(bytes, |v| u64::from_le_bytes(v) & 0x7FF0_0000_0000_0000 == 0x7FF0_0000_0000_0000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn doubles_are_rounded() {
        let mut out = Vec::new();
        let source: Vec<u8> = [0.1f64, 1e300, -0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        f64_to_f32(&source, &mut out);
        let values: Vec<f32> = out.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values[..2], [0.1, f32::INFINITY]);
        assert!(values[2] == 0.0 && values[2].is_sign_negative());
    }

    #[test]
    fn weights_are_written_in_their_type() {
        let weights = [0.1_f32, -0.0, f32::NAN, f32::INFINITY, 1e-40, 3.0e38, f32::from_bits(0xffa0_1234)];
        let mut out = Vec::new();
        write(&weights, Dtype::Bf16, &mut out);
        let meant: Vec<u8> = weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        assert_eq!(out, meant);
        for (dtype, element) in [(Dtype::F64, 8), (Dtype::F32, 4), (Dtype::F16, 2)] {
            out.clear();
            write(&weights, dtype, &mut out);
            let part = part(Role::Weights, dtype, &[7, 1]);
            assert_eq!(
                (out.len(), part.bytes, part.contents),
                (7 * element, 7 * element as u64, Contents::Rows { rows: 1, bytes: element as u64 })
            );
            assert_eq!(first_not_finite(dtype, &out), Some(2));
            assert_eq!(first_not_finite(dtype, &out[..2 * element]), None);
        }
        assert_eq!(part(Role::Weights, Dtype::F4, &[3]).bytes, 2);
        assert_eq!(part(Role::Weights, Dtype::F32, &[]).bytes, 4);
    }
}
