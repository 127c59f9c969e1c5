//! The codes of a row that is measured: stored ones, or new ones, which are measured as they are put down.

use super::super::QuantizedView;
use super::super::float_type::Half;
use super::super::kernel::{Grid, MAGIC};
use super::super::machine::Machine;
use super::reader::{Meaning, Reader};
use super::sums::{BlockLanes, BlockSums, Running};
use super::{BlockFacts, Part};

/// The codes of one row.
pub(super) trait Codes {
    /// Takes down scales and zero points of the groups of a segment.
    fn params(&self, reader: &Reader<'_>, part: &Part, facts: &mut BlockFacts);

    /// Gets ready for blocks with these scales and zero points.
    fn prepare(&self, part: &Part, facts: &mut BlockFacts);

    /// Sums up the blocks of a segment from the bytes of its weights, in pairs.
    fn sum_up<T: Half, M: Machine>(
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
    fn prepare(&self, _: &Part, _: &mut BlockFacts) {}

    #[inline(always)]
    fn sum_up<T: Half, M: Machine>(
        &mut self,
        m: M,
        reader: &Reader<'_>,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        (blocks, lanes): (&mut BlockSums, &mut BlockLanes),
    ) {
        let weights = weights.chunks_exact(2 * part.block_cols);
        if reader.nibbles {
            let codes = &self.codes[part.columns.start / 2..part.columns.end / 2];
            let parts = weights.zip(codes.chunks_exact(part.block_cols / 2));
            for (block, (weights, codes)) in parts.enumerate() {
                let (scale, zero, limit) = facts.of(block);
                let table = reader.table(m, scale, zero);
                blocks.put(m, lanes, block, sum_up_stored::<T, _, _>(m, weights, codes, &table), limit);
            }
        } else {
            let codes = &self.codes[part.columns.clone()];
            let parts = weights.zip(codes.chunks_exact(part.block_cols));
            for (block, (weights, codes)) in parts.enumerate() {
                let (scale, zero, limit) = facts.of(block);
                let steps = reader.steps(m, scale, zero);
                blocks.put(m, lanes, block, sum_up_stored::<T, _, _>(m, weights, codes, &steps), limit);
            }
        }
    }

    #[inline(always)]
    fn stored(&self) -> &[u8] {
        self.codes
    }
}

/// Sums up a block: the terms of [`Running::of`], in another order.
#[inline(always)]
fn sum_up_stored<T: Half, M: Machine, C: Meaning<M>>(
    m: M,
    weights: &[u8],
    codes: &[u8],
    meaning: &C,
) -> Running<M> {
    let mut running = Running::new(m);
    for (weights, codes) in weights.as_chunks().0.iter().zip(C::bytes(codes)) {
        let [even, odd] = T::pairs(m, weights);
        let [first, second] = meaning.pairs(m, codes);
        running.add(m, even, first);
        running.add(m, odd, second);
    }
    running
}

/// Codes, nibbles or bytes, that are found without a division, while their weights are in registers.
pub(super) struct NewCodes<'a, const NIBBLES: bool> {
    /// The grids of the row's groups, but for scales and zero points.
    pub like: Grid,
    /// Of the row's groups: scales as they are stored.
    pub scales: &'a [f32],
    /// Of the row's groups: zero points.
    pub zeros: &'a [f32],
    /// Where the row's codes go.
    pub stored: &'a mut [u8],
}

impl<const NIBBLES: bool> Codes for NewCodes<'_, NIBBLES> {
    #[inline(always)]
    fn params(&self, _: &Reader<'_>, part: &Part, facts: &mut BlockFacts) {
        let groups = part.first..part.first + part.groups;
        facts.scales[..part.groups].copy_from_slice(&self.scales[groups.clone()]);
        facts.zeros[..part.groups].copy_from_slice(&self.zeros[groups]);
    }

    #[inline(always)]
    fn prepare(&self, part: &Part, facts: &mut BlockFacts) {
        facts.fine.fill(self.like, &facts.scales[..part.blocks], &facts.zeros[..part.blocks]);
    }

    #[inline(always)]
    fn sum_up<T: Half, M: Machine>(
        &mut self,
        m: M,
        reader: &Reader<'_>,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        (blocks, lanes): (&mut BlockSums, &mut BlockLanes),
    ) {
        let weights = weights.chunks_exact(2 * part.block_cols);
        if NIBBLES {
            let codes = &mut self.stored[part.columns.start / 2..part.columns.end / 2];
            let parts = weights.zip(codes.chunks_exact_mut(part.block_cols / 2));
            for (block, (weights, codes)) in parts.enumerate() {
                let (fine, (scale, zero, limit)) = (facts.fine.at(block), facts.of(block));
                let (fine, table) = (fine.lanes(m), reader.table(m, scale, zero));
                let mut running = Running::new(m);
                for (weights, codes) in weights.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
                    let [even, odd] = T::pairs(m, weights);
                    let [first, second] = [fine.codes(m, even), fine.codes(m, odd)];
                    m.store_nibble_pairs([first, second], codes);
                    running.add(m, even, table.entries(m, first));
                    running.add(m, odd, table.entries(m, second));
                }
                blocks.put(m, lanes, block, running, limit);
            }
        } else {
            let codes = &mut self.stored[part.columns.clone()];
            let parts = weights.zip(codes.chunks_exact_mut(part.block_cols));
            for (block, (weights, codes)) in parts.enumerate() {
                let (fine, (scale, zero, limit)) = (facts.fine.at(block), facts.of(block));
                let (fine, steps) = (fine.lanes(m), reader.steps(m, scale, zero));
                // The code of zero, as `fine` gives it.
                let zero = m.splat(MAGIC + self.like.bias + zero);
                let mut running = Running::new(m);
                for (weights, codes) in weights.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
                    let [even, odd] = T::pairs(m, weights);
                    let [first, second] = [fine.codes(m, even), fine.codes(m, odd)];
                    m.store_byte_pairs([first, second], codes);
                    running.add(m, even, steps.of_steps(m, m.sub(first, zero)));
                    running.add(m, odd, steps.of_steps(m, m.sub(second, zero)));
                }
                blocks.put(m, lanes, block, running, limit);
            }
        }
    }

    #[inline(always)]
    fn stored(&self) -> &[u8] {
        self.stored
    }
}
