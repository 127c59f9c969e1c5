//! Packing of codes into 32-bit words, in the layout of compressed-tensors' `pack_to_int32`.
//!
//! Unsigned code i of a row is at bits i·width of the row's little-endian bit string. The string is cut into words;
//! the rest of the last word is 0. So int4 puts the first code into the low nibble of the first byte, and int8 takes
//! one byte per code.

use super::Bits;

/// Bytes of `count` codes packed in whole words.
pub(super) const fn packed_bytes(bits: Bits, count: usize) -> usize {
    count.div_ceil(bits.per_word()) * 4
}

/// Packs nibbles (each 0 … 15, one per byte): two per byte, the first one low. `codes` is twice as long as `out`.
#[inline(always)]
pub(super) fn pack_nibbles(codes: &[u8], out: &mut [u8]) {
    for (byte, &pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
        let both = u16::from_le_bytes(pair);
        *byte = (both | both >> 4) as u8;
    }
}

/// Packs signed zero points `[rows, groups]` along the rows into `[ceil(rows / per word), groups]` words.
pub(super) fn pack_zero_points(bits: Bits, zero_points: &[i8], groups: usize, out: &mut Vec<u8>) {
    let per_word = bits.per_word();
    if groups == 0 {
        return;
    }
    for block in zero_points.chunks(per_word * groups) {
        for group in 0..groups {
            let mut word = 0u32;
            for (i, row) in block.chunks(groups).enumerate() {
                let unsigned = (i32::from(row[group]) - bits.qmin()) as u32;
                word |= unsigned << (i * bits.count());
            }
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

/// The signed zero point of a row and group in the bytes of [`pack_zero_points`].
#[inline(always)]
pub(super) fn zero_point_at(bits: Bits, packed: &[u8], groups: usize, row: usize, group: usize) -> i32 {
    let per_word = bits.per_word();
    let at = row / per_word * groups + group;
    let word = u32::from_le_bytes(packed.as_chunks().0[at]);
    let unsigned = word >> (row % per_word * bits.count()) & ((1 << bits.count()) - 1);
    unsigned as i32 + bits.qmin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_lie_low_first() {
        let codes: Vec<u8> = (0..16).collect();
        let mut packed = [0; 8];
        pack_nibbles(&codes, &mut packed);
        assert_eq!(packed, [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
    }

    #[test]
    fn zero_points_pack_along_rows() {
        let zeros: [i8; 10] = [-8, 0, -7, 1, 0, 2, 7, 3, 1, -1];
        let mut packed = Vec::new();
        pack_zero_points(Bits::Four, &zeros, 2, &mut packed);
        assert_eq!(packed, [0x0009_f810u32.to_le_bytes(), 0x0007_ba98u32.to_le_bytes()].concat());
        for (i, &z) in zeros.iter().enumerate() {
            assert_eq!(zero_point_at(Bits::Four, &packed, 2, i / 2, i % 2), i32::from(z));
        }
        let mut packed = Vec::new();
        pack_zero_points(Bits::Eight, &[-128, 0, 127, 64, -64], 1, &mut packed);
        assert_eq!(packed, [0x00, 0x80, 0xff, 0xc0, 0x40, 0, 0, 0]);
    }
}
