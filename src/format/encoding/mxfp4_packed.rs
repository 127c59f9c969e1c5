//! MXFP4 as compressed-tensors has it: `mxfp4-pack-quantized`, two E2M1 codes per byte and an exponent (E8M0) per 32 columns.
//! It is written here; [`super::mxfp4`] reads it.

use super::small_floats::{E2M1, e8m0};
use super::{Encoding, Part, WrittenEncoding, codes, integer_part, scales, whole};
use crate::quant::{Role, Scheme, Storage};

/// `mxfp4-pack-quantized`.
#[derive(Debug)]
pub(super) struct Mxfp4Packed;

impl Encoding for Mxfp4Packed {
    fn name(&self) -> &'static str {
        "mxfp4-pack-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }
}

impl WrittenEncoding for Mxfp4Packed {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Mxfp4
    }

    fn roles(&self, _: &Scheme) -> &'static [(Role, &'static str)] {
        &[(Role::Codes, "weight_packed"), (Role::Scales, "weight_scale")]
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
        let codes = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let exponents = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let mut weights = Vec::with_capacity(rows * columns);
        for (codes, &exponent) in codes.chunks(scheme.group_cols(columns).max(2) / 2).zip(exponents) {
            let meant = |nibble: u8| scheme.scale_type.round(E2M1[usize::from(nibble)] * e8m0(exponent));
            weights.extend(codes.iter().flat_map(|code| [meant(code & 15), meant(code >> 4)]));
        }
        Some(weights)
    }
}
