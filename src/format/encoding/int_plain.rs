//! Plain integers: compressed-tensors' `int-quantized`, one signed code per byte.

use super::{
    Encoding, Part, WrittenEncoding, codes, dequantized, groups_of, integer_part, scales, whole, zero_points,
};
use crate::quant::{Role, Scheme, Storage};

/// `int-quantized`.
#[derive(Debug)]
pub(super) struct IntPlain;

impl Encoding for IntPlain {
    fn name(&self) -> &'static str {
        "int-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }
}

impl WrittenEncoding for IntPlain {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Plain
    }

    fn roles(&self, scheme: &Scheme) -> &'static [(Role, &'static str)] {
        const SYMMETRIC: [(Role, &str); 2] = [(Role::Codes, "weight"), (Role::Scales, "weight_scale")];
        const ASYMMETRIC: [(Role, &str); 3] = [
            (Role::Codes, "weight"),
            (Role::Scales, "weight_scale"),
            (Role::ZeroPoints, "weight_zero_point"),
        ];
        if scheme.symmetric { &SYMMETRIC } else { &ASYMMETRIC }
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
        let scale_bytes = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let zeros = match zero_points(scheme, rows as u64, columns as u64) {
            Some(zeros) => whole(&zeros, part)?,
            None => &[],
        };
        let groups = scheme.groups_per_row(columns);
        let zero_point = |row: usize, group: usize| {
            let at = if scheme.is_per_tensor() { 0 } else { row * groups + group };
            zeros.get(at).map_or(0, |&zero| i32::from(zero as i8))
        };
        let code = |row: usize, column: usize| i32::from(bytes[row * columns + column] as i8);
        let groups_of = groups_of(scheme, columns, part)?;
        Some(dequantized(scheme, (rows, &groups_of), scale_bytes, code, zero_point))
    }
}
