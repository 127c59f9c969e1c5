//! Plain floats of eight bits: compressed-tensors' `float-quantized`, one E4M3 code per byte. It is written here;
//! [`super::fp8_scaled`] reads it.

use super::small_floats::E4M3;
use super::{Encoding, Part, WrittenEncoding, codes, integer_part, scales, whole};
use crate::quant::{Granularity, Role, Scheme, Storage};

/// `float-quantized`.
#[derive(Debug)]
pub(super) struct FloatPlain;

impl Encoding for FloatPlain {
    fn name(&self) -> &'static str {
        "float-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }
}

impl WrittenEncoding for FloatPlain {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Float8
    }

    fn roles(&self, _: &Scheme) -> &'static [(Role, &'static str)] {
        &[(Role::Codes, "weight"), (Role::Scales, "weight_scale")]
    }

    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
        integer_part(scheme, role, rows, columns)
    }

    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>> {
        let bytes = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let scales = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let scales = scheme.scale_type.widen(scales);
        let (groups, width) = (scheme.groups_per_row(columns), scheme.group_cols(columns).max(1));
        let height = if let Granularity::Block(size) = scheme.granularity { size } else { 1 };
        let mut weights = Vec::with_capacity(bytes.len());
        for (row, codes) in bytes.chunks(columns.max(1)).enumerate() {
            for (codes, scale) in codes.chunks(width).zip(&scales[row / height * groups..]) {
                let meant = |code: &u8| scheme.scale_type.round(E4M3[usize::from(*code)] * scale);
                weights.extend(codes.iter().map(meant));
            }
        }
        Some(weights)
    }
}
