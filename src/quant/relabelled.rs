//! Codes that are re-labelled from another format: the same numbers, in the bytes of a scheme.

use super::pack::{pack_nibbles, pack_zero_points};
use super::{Bits, Quantized, Scheme, Storage};

/// Codes of some rows, as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Integers {
    /// By row, less the least code of the scheme: from 0 on.
    pub codes: Vec<u8>,
    /// By row, then by group, less the least code. Not needed if the scheme is symmetric.
    pub zero_points: Vec<u8>,
    /// By row, then by group, in the scheme's scale type.
    pub scales: Vec<u8>,
}

impl Integers {
    /// Empties it.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.zero_points.clear();
        self.scales.clear();
    }

    /// Replaces the content of `out` with the bytes of these rows, of `columns` columns each. The rows are all that share words,
    /// as in a tile.
    pub fn write(&self, scheme: &Scheme, columns: usize, out: &mut Quantized) {
        out.codes.clear();
        out.zero_points.clear();
        out.scales.clone_from(&self.scales);
        let qmin = scheme.bits.qmin();
        let signed = |code: &u8| (i32::from(*code) + qmin) as i8;
        let row_bytes = scheme.codes_bytes(1, columns);
        for row in self.codes.chunks(columns.max(1)) {
            match (scheme.storage, scheme.bits) {
                (Storage::Float8, _) => out.codes.extend_from_slice(row),
                (Storage::Plain, _) => out.codes.extend(row.iter().map(|code| signed(code) as u8)),
                (Storage::Packed, Bits::Eight) => {
                    out.codes.extend_from_slice(row);
                    out.codes.resize(out.codes.len() + row_bytes - row.len(), 0);
                }
                (Storage::Packed, Bits::Four) => {
                    let (start, mut codes) = (out.codes.len(), row.to_vec());
                    codes.resize(row_bytes * 2, 0);
                    out.codes.resize(start + row_bytes, 0);
                    pack_nibbles(&codes, &mut out.codes[start..]);
                }
            }
        }
        if scheme.symmetric {
            return;
        }
        let zero_points: Vec<i8> = self.zero_points.iter().map(signed).collect();
        match scheme.packs_zero_points() {
            true => {
                let groups = scheme.groups_per_row(columns);
                pack_zero_points(scheme.bits, &zero_points, groups, &mut out.zero_points);
            }
            false => out.zero_points.extend(zero_points.iter().map(|zero| *zero as u8)),
        }
    }
}
