//! Sums of squares of blocks: in f32 over lanes, in an order that depends only on shapes and types.

use super::super::search::fold;
use crate::quant::simd::machine::{LANES, Machine};

/// The maximum number of blocks in a segment, and so of groups.
pub(super) const BLOCKS: usize = 64;

/// Columns whose squares are summed in f32 before they go into f64 sums: 16 terms a lane.
pub(super) const BLOCK: usize = 16 * LANES;

/// Block sums of squares that f32 holds to its full precision. Others are summed again in f64.
const SAFE: std::ops::RangeInclusive<f32> = 1e-18..=1e30;

/// Σw², Σe², Σw·e.
type Three<T> = [T; 3];

/// Sums of the blocks of a segment.
#[repr(align(64))]
pub(super) struct BlockSums {
    /// Lanes of the greatest |e|.
    most: [[f32; LANES]; BLOCKS],
    /// Sums in f32.
    sums: Three<[f32; BLOCKS]>,
    /// The same in f64, or what has been summed in f64.
    energies: Three<[f64; BLOCKS]>,
    /// Which blocks have to be looked at again: not 0.
    flags: [u32; BLOCKS],
    /// The energies of groups of several blocks.
    joined: [[f64; BLOCKS]; 2],
}

/// Lanes of up to 16 blocks, which are summed up together.
#[repr(align(64))]
pub(super) struct BlockLanes(Three<[[f32; LANES]; LANES]>);

impl BlockLanes {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([[[0.0; LANES]; LANES]; 3])
    }
}

impl Default for BlockSums {
    fn default() -> Self {
        Self {
            most: [[0.0; LANES]; BLOCKS],
            sums: [[0.0; BLOCKS]; 3],
            energies: [[0.0; BLOCKS]; 3],
            flags: [0; BLOCKS],
            joined: [[0.0; BLOCKS]; 2],
        }
    }
}

impl BlockSums {
    /// Stores the sums of a block, after those of all blocks before it, and flags it if an |e| is above the limit.
    #[inline(always)]
    pub(super) fn put<M: Machine>(
        &mut self,
        m: M,
        lanes: &mut BlockLanes,
        block: usize,
        running: Running<M>,
        limit: f32,
    ) {
        let (block, row) = (block % BLOCKS, block % LANES);
        m.store(running.signal, &mut lanes.0[0][row]);
        m.store(running.noise, &mut lanes.0[1][row]);
        m.store(running.cross, &mut lanes.0[2][row]);
        m.store(running.most, &mut self.most[block]);
        self.flags[block] = u32::from(m.exceeds(running.most, limit));
        if row == LANES - 1 {
            self.sum_lanes(m, lanes, block - row);
        }
    }

    /// The sums of the blocks whose lanes are kept, of which this is the first.
    #[inline(always)]
    fn sum_lanes<M: Machine>(&mut self, m: M, lanes: &BlockLanes, first: usize) {
        for (lanes, sums) in lanes.0.iter().zip(&mut self.sums) {
            if let Some(sums) = sums[first..].first_chunk_mut() {
                m.sum_rows(lanes, sums);
            }
        }
    }

    /// The sums of the last blocks of so many.
    #[inline(always)]
    pub(super) fn put_end<M: Machine>(&mut self, m: M, lanes: &BlockLanes, count: usize) {
        if !count.is_multiple_of(LANES) {
            self.sum_lanes(m, lanes, count - count % LANES);
        }
    }

    /// Ends a segment of `count` blocks, and flags those whose squares did not fit f32. Returns whether any is
    /// flagged, here or in `also`.
    #[inline(always)]
    pub(super) fn end(&mut self, count: usize, also: &[u32]) -> bool {
        for (sums, energies) in self.sums.iter().zip(&mut self.energies) {
            for (sum, energy) in sums[..count].iter().zip(energies) {
                *energy = f64::from(*sum);
            }
        }
        let mut any = 0;
        let sums = self.sums[0][..count].iter().zip(&self.sums[1]);
        for ((flag, also), (&signal, &noise)) in self.flags.iter_mut().zip(also).zip(sums) {
            *flag |= also | u32::from(!is_usual(signal, noise));
            any |= *flag;
        }
        any != 0
    }

    /// Whether a block needs a second look.
    #[inline(always)]
    pub(super) fn is_flagged(&self, block: usize) -> bool {
        self.flags[block] != 0
    }

    /// Whether f32 has held the squares of a block with full precision.
    #[inline(always)]
    pub(super) fn is_usual(&self, block: usize) -> bool {
        is_usual(self.sums[0][block], self.sums[1][block])
    }

    /// The greatest |e| of a block in each lane, if the block is usual.
    #[inline(always)]
    pub(super) fn most(&self, block: usize) -> &[f32; LANES] {
        &self.most[block]
    }

    /// Sums the squares of a block in f64, if they did not fit f32.
    #[inline(always)]
    pub(super) fn sum_again(&mut self, block: usize, values: &[f32], decoded: &[f32]) {
        let mut sums = [[0f64; LANES]; 3];
        for (values, decoded) in values.chunks(LANES).zip(decoded.chunks(LANES)) {
            for (i, (&w, &d)) in values.iter().zip(decoded).enumerate() {
                let (w, e) = (f64::from(w), f64::from(w - d));
                sums[0][i] += w * w;
                sums[1][i] += e * e;
                sums[2][i] += w * e;
            }
        }
        for (energies, sums) in self.energies.iter_mut().zip(sums) {
            energies[block] = fold(sums);
        }
    }

    /// Σw² and Σe² of groups of so many blocks each.
    #[inline(always)]
    pub(super) fn signals_and_noises(&mut self, each: usize) -> [&[f64; BLOCKS]; 2] {
        let [signals, noises, _] = &self.energies;
        if each == 1 {
            return [signals, noises];
        }
        for (energies, joined) in self.energies.iter().zip(&mut self.joined) {
            for (energies, joined) in energies.chunks_exact(each).zip(joined) {
                *joined = energies.iter().sum();
            }
        }
        self.joined.each_ref()
    }
}

#[inline(always)]
fn is_usual(signal: f32, noise: f32) -> bool {
    (signal >= *SAFE.start()) & (signal <= *SAFE.end()) & (noise < f32::INFINITY)
}

/// Sums over the blocks at each place of all segments.
pub(super) struct Totals(Three<[f64; BLOCKS]>);

impl Totals {
    pub(super) fn new() -> Self {
        Self([[0.0; BLOCKS]; 3])
    }

    /// Adds the first blocks of a segment.
    #[inline(always)]
    pub(super) fn add(&mut self, blocks: &BlockSums, count: usize) {
        for (totals, energies) in self.0.iter_mut().zip(&blocks.energies) {
            for (total, energy) in totals[..count].iter_mut().zip(energies) {
                *total += energy;
            }
        }
    }

    /// Σw², Σe², Σw·e.
    pub(super) fn sums(&self) -> Three<f64> {
        self.0.map(|totals| totals.iter().sum())
    }
}

/// Running sums of a block.
#[derive(Clone, Copy)]
pub(super) struct Running<M: Machine> {
    signal: M::Lanes,
    noise: M::Lanes,
    cross: M::Lanes,
    most: M::Lanes,
}

impl<M: Machine> Running<M> {
    #[inline(always)]
    pub(super) fn new(m: M) -> Self {
        let zero = m.splat(0.0);
        Self { signal: zero, noise: zero, cross: zero, most: zero }
    }

    /// Of weights and what their codes mean, equally many.
    #[inline(always)]
    pub(super) fn of(m: M, values: &[f32], decoded: &[f32]) -> Self {
        let mut running = Self::new(m);
        let (values, last_values) = values.as_chunks();
        let (decoded, last_decoded) = decoded.as_chunks();
        for (w, d) in values.iter().zip(decoded) {
            running.add(m, m.load(w), m.load(d));
        }
        if !last_values.is_empty() {
            // Past the end there are zeros, which add nothing.
            let (mut w, mut d) = ([0.0; LANES], [0.0; LANES]);
            w[..last_values.len()].copy_from_slice(last_values);
            d[..last_decoded.len()].copy_from_slice(last_decoded);
            running.add(m, m.load(&w), m.load(&d));
        }
        running
    }

    /// Takes weights and what their codes mean.
    #[inline(always)]
    pub(super) fn add(&mut self, m: M, w: M::Lanes, d: M::Lanes) {
        let e = m.sub(w, d);
        self.signal = m.fused(w, w, self.signal);
        self.noise = m.fused(e, e, self.noise);
        self.cross = m.fused(w, e, self.cross);
        self.most = m.max_abs(self.most, e);
    }
}
