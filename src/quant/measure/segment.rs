//! Segments: some columns of a row, decoded, with facts about their blocks.

use super::sums::{BLOCKS, BlockSums};

/// Columns that are decoded before they are looked at: as many as the first cache holds beside the files' bytes.
pub(super) const SEGMENT: usize = 2048;

/// Some columns of a row: whole groups, or a part of one. Aligned for the widest registers.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Segment {
    pub(super) memory: Decoded,
    pub(super) facts: BlockFacts,
    pub(super) blocks: BlockSums,
}

/// Weights, and what their codes mean: of all columns, or of one block at a time.
#[repr(align(64))]
pub(super) struct Decoded {
    pub(super) values: [f32; SEGMENT],
    pub(super) decoded: [f32; SEGMENT],
}

/// Facts about the blocks of a segment that are known before their weights are looked at.
#[repr(align(64))]
pub(super) struct BlockFacts {
    pub(super) scales: [f32; BLOCKS],
    /// Zero points.
    pub(super) zeros: [f32; BLOCKS],
    /// The dequantized least and greatest code.
    pub(super) bottoms: [f32; BLOCKS],
    pub(super) tops: [f32; BLOCKS],
    /// See [`Allowances::fill`].
    pub(super) reaches: [f32; BLOCKS],
    /// The limit above which an |e| is of interest: the reach or the greatest error so far, whichever is less.
    pub(super) limits: [f32; BLOCKS],
    /// Whether it has to be looked at again whatever its weights are: not 0.
    pub(super) flags: [u32; BLOCKS],
}

impl Default for Decoded {
    fn default() -> Self {
        Self { values: [0.0; SEGMENT], decoded: [0.0; SEGMENT] }
    }
}

impl Default for BlockFacts {
    fn default() -> Self {
        let none = [0.0; BLOCKS];
        Self {
            scales: none,
            zeros: none,
            bottoms: none,
            tops: none,
            reaches: none,
            limits: none,
            flags: [0; BLOCKS],
        }
    }
}

impl BlockFacts {
    /// Scale, zero point and limit of a block. There are at most [`BLOCKS`] of them, so the compiler can omit bounds
    /// checks.
    #[inline(always)]
    pub(super) fn of(&self, block: usize) -> (f32, f32, f32) {
        let i = block % BLOCKS;
        (self.scales[i], self.zeros[i], self.limits[i])
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Segment")
    }
}
