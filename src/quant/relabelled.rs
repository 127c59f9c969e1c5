//! Codes that are re-labelled from another format: the same numbers, in the bytes of a scheme.

use super::pack::{pack_nibbles, pack_zero_points};
use super::small_floats::{E2M1, e8m0, nearest_e4m3};
use super::{Bits, Granularity, Quantized, Scheme, Storage};

/// Columns that share an exponent in MXFP4.
const MX_GROUP: usize = 32;

/// How far exponents of MXFP4 may lie apart so that all codes are E4M3 numbers with one scale: these go from 2^−9 to 1.75 · 2^8, and
/// codes from ½ to 6.
const MOST_APART: u8 = 14;

/// Codes of some rows, as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Integers {
    /// By row, less the least code of the scheme: from 0 on. Floats are as they are stored.
    pub codes: Vec<u8>,
    /// By row, then by group, less the least code. Not needed if the scheme is symmetric.
    pub zero_points: Vec<u8>,
    /// By row, then by group, as the scheme stores them.
    pub scales: Vec<u8>,
    /// The scale for all weights, if the scheme has one.
    pub global_scale: Vec<u8>,
}

impl Integers {
    /// Empties it.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.zero_points.clear();
        self.scales.clear();
        self.global_scale.clear();
    }

    /// Replaces the content of `out` with the bytes of these rows, of `columns` columns each. The rows are all that share words,
    /// as in a tile.
    pub fn write(&self, scheme: &Scheme, columns: usize, out: &mut Quantized) {
        out.codes.clear();
        out.zero_points.clear();
        out.scales.clone_from(&self.scales);
        out.global_scale.clone_from(&self.global_scale);
        let qmin = scheme.bits.qmin();
        let signed = |code: &u8| (i32::from(*code) + qmin) as i8;
        let row_bytes = scheme.codes_bytes(1, columns);
        if scheme.storage.is_float() {
            out.codes.clone_from(&self.codes);
            return;
        }
        for row in self.codes.chunks(columns.max(1)) {
            match (scheme.storage, scheme.bits) {
                (Storage::Plain, _) => out.codes.extend(row.iter().map(|code| signed(code) as u8)),
                (_, Bits::Eight) => {
                    out.codes.extend_from_slice(row);
                    out.codes.resize(out.codes.len() + row_bytes - row.len(), 0);
                }
                (_, Bits::Four) => {
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

    /// Replaces the content of `out` with the bytes of these rows, which are MXFP4, as FP8 in blocks: the same numbers, with a power of
    /// two for each block. The first row begins a block.
    ///
    /// # Errors
    /// The row and column of the first block whose numbers no scale holds.
    pub fn write_blocks(
        &self,
        scheme: &Scheme,
        columns: usize,
        out: &mut Quantized,
    ) -> Result<(), (usize, usize)> {
        let (groups, across) = (columns / MX_GROUP, scheme.groups_per_row(columns));
        let Granularity::Block(size) = scheme.granularity else { return Err((0, 0)) };
        out.zero_points.clear();
        out.global_scale.clear();
        out.codes.clear();
        let rows = self.scales.len() / groups.max(1);
        let of_group = |row: usize, group: usize| {
            let at = row * groups + group;
            (&self.codes[at * MX_GROUP / 2..(at + 1) * MX_GROUP / 2], self.scales[at])
        };
        let mut spans = vec![Span::default(); rows.div_ceil(size) * across];
        for row in 0..rows {
            for group in 0..groups {
                let (codes, exponent) = of_group(row, group);
                spans[row / size * across + group * MX_GROUP / size].add(exponent, || is_zero(codes));
            }
        }
        if let Some(wide) = spans.iter().position(|span| !span.fits()) {
            return Err((wide / across * size, wide % across * size));
        }
        for row in 0..rows {
            for group in 0..groups {
                let (codes, exponent) = of_group(row, group);
                let shared = spans[row / size * across + group * MX_GROUP / size].scale();
                let factor = e8m0(exponent) / e8m0(shared);
                // Zeros keep their sign, and their exponent may be any.
                let code = |nibble: u8| match nibble & 7 {
                    0 => nibble << 4 & 0x80,
                    _ => nearest_e4m3(E2M1[usize::from(nibble)] * factor),
                };
                out.codes.extend(codes.iter().flat_map(|byte| [code(byte & 15), code(byte >> 4)]));
            }
        }
        let scales: Vec<f32> = spans.iter().map(|span| e8m0(span.scale())).collect();
        out.scales.clear();
        scheme.scale_type.narrow(&scales, &mut out.scales);
        Ok(())
    }
}

/// Whether codes of MXFP4 are all zero.
pub(crate) fn is_zero(codes: &[u8]) -> bool {
    codes.iter().all(|code| code & 0x77 == 0)
}

/// The exponents of MXFP4 groups that are to share a scale. Groups of zeros have none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span(Option<(u8, u8)>);

impl Span {
    /// Adds a group.
    pub(crate) fn add(&mut self, exponent: u8, is_zero: impl FnOnce() -> bool) {
        let (least, most) = self.0.unwrap_or((exponent, exponent));
        let is_inside = self.0.is_some() && (least..=most).contains(&exponent);
        if !is_inside && !is_zero() {
            self.0 = Some((least.min(exponent), most.max(exponent)));
        }
    }

    /// Whether one scale holds the numbers of all.
    pub(crate) fn fits(self) -> bool {
        self.0.is_none_or(|(least, most)| most - least <= MOST_APART)
    }

    /// The exponent of that scale: the greatest numbers come close to E4M3's. It is a normal number.
    fn scale(self) -> u8 {
        self.0.map_or(127, |(_, most)| most.saturating_sub(6).max(1))
    }
}

#[cfg(test)]
mod tests;
