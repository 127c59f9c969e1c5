//! Unsigned integers of two to eight bits, packed into words of 32 bits, low bits first.

/// How such integers lie in the words of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// One after the other, over the ends of words.
    Dense,
    /// As many whole ones in each word as fit into it; the bits that are left are empty.
    Padded,
}

impl Packing {
    /// Words of 32 bits for so many integers.
    pub(super) fn words(self, bits: u32, count: u64) -> u64 {
        match self {
            Self::Dense => (count * u64::from(bits)).div_ceil(32),
            Self::Padded => count.div_ceil(u64::from(32 / bits)),
        }
    }

    /// Whether both packings are the same for this width.
    pub(super) fn is_settled(bits: u32) -> bool {
        32_u32.is_multiple_of(bits)
    }

    /// The first bit of an integer.
    pub(super) fn bit(self, bits: u32, number: usize) -> usize {
        let (bits, per_word) = (bits as usize, (32 / bits) as usize);
        match self {
            Self::Dense => number * bits,
            Self::Padded => number / per_word * 32 + number % per_word * bits,
        }
    }
}

/// The integer whose bits begin here, in the bytes of words (little endian). None if the bytes end before it does.
pub(super) fn field(bytes: &[u8], bit: usize, bits: u32) -> Option<u32> {
    let (byte, shift) = (bit / 8, (bit % 8) as u32);
    let low = u32::from(*bytes.get(byte)?);
    let high = if shift + bits > 8 { u32::from(*bytes.get(byte + 1)?) << 8 } else { 0 };
    Some((low | high) >> shift & ((1 << bits) - 1))
}

/// The integers of a row as floats, as many as `out` has. None if the bytes hold fewer.
pub(super) fn unpack(bytes: &[u8], bits: u32, packing: Packing, out: &mut [f32]) -> Option<()> {
    match bits {
        8 => {
            let codes = bytes.get(..out.len())?;
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = f32::from(*code));
        }
        4 => {
            let codes = bytes.get(..out.len().div_ceil(2))?;
            for (out, byte) in out.chunks_mut(2).zip(codes) {
                out[0] = f32::from(byte & 15);
                if let Some(out) = out.get_mut(1) {
                    *out = f32::from(byte >> 4);
                }
            }
        }
        _ => {
            for (number, out) in out.iter_mut().enumerate() {
                *out = field(bytes, packing.bit(bits, number), bits)? as f32;
            }
        }
    }
    Some(())
}

/// The integer with this number in a row of words. None if the bytes end before it.
pub(super) fn one(bytes: &[u8], bits: u32, packing: Packing, number: usize) -> Option<u32> {
    field(bytes, packing.bit(bits, number), bits)
}

/// Packs integers as [`unpack`] reads them, slowly. For tests.
#[cfg(test)]
pub(super) fn pack(values: &[u32], bits: u32, packing: Packing) -> Vec<u8> {
    let mut out = vec![0; packing.words(bits, values.len() as u64) as usize * 4];
    for (number, value) in values.iter().enumerate() {
        for bit in 0..bits as usize {
            let at = packing.bit(bits, number) + bit;
            out[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_go_round(
            bits in 2_u32..=8,
            packing in prop_oneof![Just(Packing::Dense), Just(Packing::Padded)],
            seed in prop::collection::vec(any::<u32>(), 1..70),
        ) {
            let values: Vec<u32> = seed.iter().map(|seed| seed & ((1 << bits) - 1)).collect();
            let bytes = pack(&values, bits, packing);
            let mut out = vec![f32::NAN; values.len()];
            prop_assert!(unpack(&bytes, bits, packing, &mut out).is_some());
            prop_assert!(out.iter().zip(&values).all(|(out, value)| *out == *value as f32));
            for (number, value) in values.iter().enumerate() {
                prop_assert_eq!(one(&bytes, bits, packing, number), Some(*value));
            }
            let mut more = vec![0.0; (bytes.len() * 8).div_ceil(bits as usize) + 1];
            prop_assert!(unpack(&bytes, bits, Packing::Dense, &mut more).is_none());
        }
    }
}
