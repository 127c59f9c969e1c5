//! Packed integers: compressed-tensors' `pack-quantized`.
//!
//! Codes are unsigned, in 32-bit words along each row, low bits first; zero points are packed along the rows. The
//! shape of the unpacked matrix is a tensor of its own.

use super::{
    Contents, Encoding, Part, WrittenEncoding, codes, dequantized, groups_of, integer_part, scales, whole,
    zero_points,
};
use crate::quant::{Role, Scheme, Storage};

/// `pack-quantized`.
#[derive(Debug)]
pub(super) struct IntPacked;

impl Encoding for IntPacked {
    fn name(&self) -> &'static str {
        "pack-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }
}

impl WrittenEncoding for IntPacked {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Packed
    }

    fn roles(&self, scheme: &Scheme) -> &'static [(Role, &'static str)] {
        const SYMMETRIC: [(Role, &str); 3] =
            [(Role::Codes, "weight_packed"), (Role::Scales, "weight_scale"), (Role::Shape, "weight_shape")];
        const ASYMMETRIC: [(Role, &str); 4] = [
            (Role::Codes, "weight_packed"),
            (Role::Scales, "weight_scale"),
            (Role::ZeroPoints, "weight_zero_point"),
            (Role::Shape, "weight_shape"),
        ];
        if scheme.symmetric { &SYMMETRIC } else { &ASYMMETRIC }
    }

    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
        if role == Role::Shape {
            return Part {
                role,
                dtype: "I64",
                shape: vec![2],
                bytes: 16,
                contents: Contents::Constant([rows.to_le_bytes(), columns.to_le_bytes()].concat()),
            };
        }
        integer_part(scheme, role, rows, columns)
    }

    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>> {
        let words = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let scale_bytes = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let zeros = match zero_points(scheme, rows as u64, columns as u64) {
            Some(zeros) => whole(&zeros, part)?,
            None => &[],
        };
        let (bits, row_bytes) = (scheme.bits, scheme.codes_bytes(1, columns));
        let field = |bytes: &[u8], at: usize| {
            let bit = at * bits.count();
            let unsigned = i32::from(bytes[bit / 8] >> (bit % 8)) & ((1 << bits.count()) - 1);
            unsigned + bits.qmin()
        };
        let code = |row: usize, column: usize| field(&words[row * row_bytes..], column);
        let groups = scheme.groups_per_row(columns);
        let zero_point = |row: usize, group: usize| {
            if scheme.symmetric {
                0
            } else if scheme.packs_zero_points() {
                let word = (row / bits.per_word() * groups + group) * 4;
                field(&zeros[word..word + 4], row % bits.per_word())
            } else {
                i32::from(zeros[0] as i8)
            }
        };
        let groups_of = groups_of(scheme, columns, part)?;
        Some(dequantized(scheme, (rows, &groups_of), scale_bytes, code, zero_point))
    }
}
