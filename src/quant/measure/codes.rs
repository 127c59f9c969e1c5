//! The codes of a row that is measured: stored ones, or new ones, which are measured while they are stored.

use std::ops::Range;

use super::super::QuantizedView;
use super::super::float_type::Half;
use super::super::kernel::{FineBlocks, Grid};
use super::reader::{Meaning, NibbleTable, Reader, Steps};
use super::sums::{BlockLanes, BlockSums, Running};
use super::{BLOCKS, BlockFacts, Part};
use crate::quant::simd::machine::{LANES, Machine};

/// The codes of one row.
pub(super) trait Codes {
    /// Stores the scales and zero points of the groups of a segment in `facts`.
    fn params(&self, reader: &Reader<'_>, part: &Part, facts: &mut BlockFacts);

    /// Sums up the blocks of a segment from the bytes of its weights, in pairs.
    fn sum_up<T: Half, M: Machine, C: Meaning<M>>(
        &mut self,
        m: M,
        reader: &Reader<'_>,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        sums: (&mut BlockSums, &mut BlockLanes),
    );

    /// The row's bytes, as far as its segments have been summed up.
    fn stored(&self) -> &[u8];
}

/// [`Codes::sum_up`] of nibbles or of bytes.
#[inline(always)]
pub(super) fn sum_up<T: Half, M: Machine>(
    m: M,
    codes: &mut impl Codes,
    reader: &Reader<'_>,
    part: &Part,
    weights: &[u8],
    facts: &BlockFacts,
    sums: (&mut BlockSums, &mut BlockLanes),
) {
    if reader.nibbles {
        codes.sum_up::<T, M, NibbleTable<M>>(m, reader, part, weights, facts, sums);
    } else {
        codes.sum_up::<T, M, Steps<M>>(m, reader, part, weights, facts, sums);
    }
}

/// Columns that are taken at a time.
const PAIRS: usize = 2 * LANES;

/// The location of a segment's pairs in its row.
#[inline(always)]
fn pairs(part: &Part) -> Range<usize> {
    part.columns.start / PAIRS..part.columns.end / PAIRS
}

/// Codes that have been stored.
pub(super) struct StoredCodes<'a> {
    quantized: QuantizedView<'a>,
    codes: &'a [u8],
}

impl<'a> StoredCodes<'a> {
    #[inline(always)]
    pub(super) fn new(reader: &Reader<'_>, quantized: QuantizedView<'a>, row: usize) -> Self {
        Self { quantized, codes: reader.codes(quantized, row) }
    }
}

impl Codes for StoredCodes<'_> {
    #[inline(always)]
    fn params(&self, reader: &Reader<'_>, part: &Part, facts: &mut BlockFacts) {
        let (scales, zeros) = (&mut facts.scales[..part.groups], &mut facts.zeros[..part.groups]);
        reader.read_params(self.quantized, (part.row, part.first), (scales, zeros));
    }

    #[inline(always)]
    fn sum_up<T: Half, M: Machine, C: Meaning<M>>(
        &mut self,
        m: M,
        reader: &Reader<'_>,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        (blocks, lanes): (&mut BlockSums, &mut BlockLanes),
    ) {
        let codes = C::bytes(self.codes)[pairs(part)].chunks_exact(part.block_cols / PAIRS);
        for (block, (weights, codes)) in weights.chunks_exact(2 * part.block_cols).zip(codes).enumerate() {
            let (scale, zero, limit) = facts.of(block);
            let meaning = C::of(m, reader, scale, zero);
            // The terms of `Running::of`, in another order.
            let mut running = Running::new(m);
            for (weights, codes) in weights.as_chunks().0.iter().zip(codes) {
                let [even, odd] = T::pairs(m, weights);
                let [first, second] = meaning.pairs(m, codes);
                running.add(m, even, first);
                running.add(m, odd, second);
            }
            blocks.put(m, lanes, block, running, limit);
        }
    }

    #[inline(always)]
    fn stored(&self) -> &[u8] {
        self.codes
    }
}

/// Codes that are found without a division, while their weights are in registers.
pub(super) struct NewCodes<'a> {
    /// The grids of the row's groups, but for scales and zero points.
    pub like: Grid,
    /// Of the row's groups: scales as they are stored.
    pub scales: &'a [f32],
    /// Of the row's groups: zero points.
    pub zeros: &'a [f32],
    /// The buffer for the row's codes.
    pub stored: &'a mut [u8],
}

impl Codes for NewCodes<'_> {
    #[inline(always)]
    fn params(&self, _: &Reader<'_>, part: &Part, facts: &mut BlockFacts) {
        let groups = part.first..part.first + part.groups;
        facts.scales[..part.groups].copy_from_slice(&self.scales[groups.clone()]);
        facts.zeros[..part.groups].copy_from_slice(&self.zeros[groups]);
    }

    #[inline(always)]
    fn sum_up<T: Half, M: Machine, C: Meaning<M>>(
        &mut self,
        m: M,
        reader: &Reader<'_>,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        (blocks, lanes): (&mut BlockSums, &mut BlockLanes),
    ) {
        let mut fine = FineBlocks::<BLOCKS>::default();
        fine.fill(self.like, &facts.scales[..part.blocks], &facts.zeros[..part.blocks]);
        let codes = C::bytes_mut(self.stored)[pairs(part)].chunks_exact_mut(part.block_cols / PAIRS);
        for (block, (weights, codes)) in weights.chunks_exact(2 * part.block_cols).zip(codes).enumerate() {
            let (scale, zero, limit) = facts.of(block);
            let (fine, meaning) = (fine.at(block).lanes(m), C::of(m, reader, scale, zero));
            let mut running = Running::new(m);
            for (weights, codes) in weights.as_chunks().0.iter().zip(codes) {
                let [even, odd] = T::pairs(m, weights);
                let [first, second] = meaning.store(m, [fine.codes(m, even), fine.codes(m, odd)], codes);
                running.add(m, even, first);
                running.add(m, odd, second);
            }
            blocks.put(m, lanes, block, running, limit);
        }
    }

    #[inline(always)]
    fn stored(&self) -> &[u8] {
        self.stored
    }
}
