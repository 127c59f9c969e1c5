//! Quantized bytes back to weights, and their distortion.

mod allowance;
mod reader;
mod sums;
mod weighted;

use std::ops::Range;

use super::distortion::WorstGroup;
use super::float_type::{Bf16, F16, Half};
use super::isa::Job;
use super::machine::{LANES, Machine};
use super::{Distortion, FloatType, QuantizedView, Quantizer, Scratch};
use allowance::Allowances;
use reader::Reader;
use sums::{BlockSums, Running, Totals};
use weighted::WeighTile;

/// Columns that are decoded before they are looked at: what the first cache holds beside the files' bytes.
const SEGMENT: usize = 2048;

/// Blocks of a segment at most, and so groups.
const BLOCKS: usize = 64;

/// Some columns of a row: whole groups, or a part of one. Aligned for the widest registers.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Segment {
    memory: Decoded,
    facts: BlockFacts,
    blocks: BlockSums,
}

/// Weights, and what their codes mean: of all columns, or of one block at a time.
#[repr(align(64))]
struct Decoded {
    values: [f32; SEGMENT],
    decoded: [f32; SEGMENT],
}

/// What is known of the blocks of a segment before their weights are looked at.
#[repr(align(64))]
struct BlockFacts {
    scales: [f32; BLOCKS],
    /// Zero points.
    zeros: [f32; BLOCKS],
    /// What the least and the greatest code mean.
    bottoms: [f32; BLOCKS],
    tops: [f32; BLOCKS],
    /// See [`Allowances::fill`].
    reaches: [f32; BLOCKS],
    /// What an |e| has to be above to be of interest: the reach, or the greatest so far.
    limits: [f32; BLOCKS],
    /// Whether it has to be looked at again whatever its weights are: not 0.
    flags: [u32; BLOCKS],
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

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Segment")
    }
}

impl Quantizer {
    /// Writes the dequantized weights of `rows` rows, (code − zero point)·scale rounded once to the scheme's
    /// scale type, in place of what `out` held.
    ///
    /// # Panics
    /// If the bytes of `quantized` are not those of `rows` rows.
    pub fn dequantize(
        &self,
        quantized: QuantizedView<'_>,
        rows: usize,
        out: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) {
        self.assert_sizes(&quantized, rows);
        out.clear();
        out.resize(rows * self.cols * self.scheme.scale_type.bytes(), 0);
        let reader = Reader::new(self, quantized).in_memory();
        self.isa.run(DequantizeTile { reader, rows, out, segment: &mut scratch.segment });
    }

    /// Compares `rows` rows of source weights, which are finite, with what their quantized bytes mean.
    ///
    /// Energies are summed in f32 over 16 lanes of 16 terms, each rounded once with the sum, and in f64 from there, in
    /// an order that depends on nothing but the scheme and the shapes; their relative error is below 2e-6 (1e-5 dB).
    ///
    /// # Panics
    /// If `tile` or the bytes of `quantized` are not those of `rows` rows.
    #[must_use]
    pub fn measure(
        &self,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion {
        assert_eq!(tile.len(), rows * self.row_bytes(), "a tile is whole rows");
        self.assert_sizes(&quantized, rows);
        let meter = Meter {
            quantizer: self,
            reader: Reader::new(self, quantized),
            allowances: Allowances::new(self),
            all: Distortion { count: (rows * self.cols) as u64, ..Distortion::default() },
            totals: Totals::new(),
        };
        let segment = &mut scratch.segment;
        let mut all = self.isa.run(MeasureTile { meter, tile, rows, segment });
        if let Some(importance) = &self.importance {
            let reader = Reader::new(self, quantized).in_memory();
            let segment = &mut scratch.segment;
            let weigh = WeighTile { quantizer: self, reader, tile, rows, importance, segment };
            (all.weighted_signal, all.weighted_noise) = self.isa.run(weigh);
        }
        all
    }

    fn assert_sizes(&self, quantized: &QuantizedView<'_>, rows: usize) {
        let (scheme, cols) = (&self.scheme, self.cols);
        assert_eq!(quantized.codes.len(), scheme.codes_bytes(rows, cols), "the codes of these rows");
        assert_eq!(quantized.scales.len(), scheme.scales_bytes(rows, cols), "the scales of these rows");
        let zero_points = scheme.zero_points_bytes(rows, cols);
        assert_eq!(quantized.zero_points.len(), zero_points, "the zero points of these rows");
    }
}

struct DequantizeTile<'a> {
    reader: Reader<'a>,
    rows: usize,
    out: &'a mut [u8],
    segment: &'a mut Segment,
}

impl Job for DequantizeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { reader, rows, mut out, segment } = self;
        let scale_type = reader.scheme.scale_type;
        for row in 0..rows {
            let mut start = 0;
            while start < reader.cols {
                let columns = reader.segment(start);
                let decoded = reader.decode(machine, row, columns.clone(), segment);
                let (to, rest) = out.split_at_mut(columns.len() * scale_type.bytes());
                scale_type.narrow_all(decoded, to);
                (out, start) = (rest, columns.end);
            }
        }
    }
}

struct MeasureTile<'a> {
    meter: Meter<'a>,
    tile: &'a [u8],
    rows: usize,
    segment: &'a mut Segment,
}

impl Job for MeasureTile<'_> {
    type Output = Distortion;

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Distortion {
        let Self { mut meter, tile, rows, segment } = self;
        let (cols, bytes) = (meter.reader.cols, meter.quantizer.source.bytes());
        for row in 0..rows {
            let mut group = WorstGroup { row, group: 0, signal: 0.0, noise: 0.0 };
            let mut start = 0;
            while start < cols {
                let columns = meter.reader.segment(start);
                let part = Part::new(&meter.reader, row, columns.clone());
                let weights = &tile[(row * cols + start) * bytes..(row * cols + columns.end) * bytes];
                if meter.sum(machine, &part, weights, segment) {
                    meter.quantizer.isa.run(LookAgain { meter: &mut meter, part: &part, weights, segment });
                }
                meter.totals.add(&segment.blocks, part.blocks);
                meter.offer_groups(&part, segment, &mut group);
                start = columns.end;
            }
        }
        meter.end()
    }
}

/// A segment of a row, and how it is cut into groups and blocks.
struct Part {
    row: usize,
    columns: Range<usize>,
    /// How many groups there are, whole ones or a part of one, the first one, and how many columns of each.
    groups: usize,
    first: usize,
    group_cols: usize,
    /// How many blocks there are, in all and of each group, and how many columns of each; of a group's last one maybe fewer.
    blocks: usize,
    group_blocks: usize,
    block_cols: usize,
}

impl Part {
    #[inline(always)]
    fn new(reader: &Reader<'_>, row: usize, columns: Range<usize>) -> Self {
        let group_cols = reader.group_cols.min(columns.len());
        let block_cols = reader.block_cols.min(group_cols);
        let (groups, group_blocks) = (columns.len() / group_cols, group_cols.div_ceil(block_cols));
        let (first, blocks) = (columns.start / reader.group_cols, groups * group_blocks);
        Self { row, columns, groups, first, group_cols, blocks, group_blocks, block_cols }
    }

    /// The columns of a block, from the segment's start on.
    #[inline(always)]
    fn block(&self, block: usize) -> Range<usize> {
        if self.group_blocks * self.block_cols == self.group_cols {
            return block * self.block_cols..(block + 1) * self.block_cols;
        }
        let start = block / self.group_blocks * self.group_cols;
        let within = block % self.group_blocks * self.block_cols;
        start + within..start + self.group_cols.min(within + self.block_cols)
    }
}

/// Measures segment after segment.
struct Meter<'a> {
    quantizer: &'a Quantizer,
    reader: Reader<'a>,
    allowances: Allowances<'a>,
    /// What has been found, but for the sums.
    all: Distortion,
    totals: Totals,
}

impl Meter<'_> {
    /// Sums up the blocks of a segment. Whether some of them have to be looked at again, weight by weight: one may be clipped,
    /// or lie further from what its code means than any before, or f32 may not hold the sums.
    #[inline(always)]
    fn sum<M: Machine>(&self, m: M, part: &Part, weights: &[u8], segment: &mut Segment) -> bool {
        let Self { reader, allowances, all, .. } = self;
        let Segment { memory: Decoded { values, decoded }, facts, blocks } = segment;
        let (scales, zeros) = (&mut facts.scales[..part.groups], &mut facts.zeros[..part.groups]);
        reader.read_params(part.row, part.first, scales, zeros);
        if !reader.in_pairs {
            let (values, decoded) = (&mut values[..part.columns.len()], &mut decoded[..part.columns.len()]);
            self.quantizer.source.widen_all(weights, values);
            reader.decode_segment(m, part.row, part.columns.clone(), (scales, zeros), decoded);
        }
        if part.group_blocks > 1 {
            // From here on there is one of each block.
            for block in (0..part.blocks).rev() {
                facts.scales[block] = facts.scales[block / part.group_blocks];
                facts.zeros[block] = facts.zeros[block / part.group_blocks];
            }
        }
        allowances.fill(facts, part.blocks, all, reader);
        if !reader.in_pairs {
            let columns = 0..part.columns.len();
            let parts =
                values[columns.clone()].chunks(part.group_cols).zip(decoded[columns].chunks(part.group_cols));
            let mut block = 0;
            for (values, decoded) in parts {
                for (values, decoded) in values.chunks(part.block_cols).zip(decoded.chunks(part.block_cols)) {
                    blocks.put(m, block, Running::of(m, values, decoded), facts.limits[block]);
                    block += 1;
                }
            }
        } else if self.quantizer.source == FloatType::Bf16 {
            self.sum_pairs::<Bf16, M>(m, part, weights, facts, blocks);
        } else {
            self.sum_pairs::<F16, M>(m, part, weights, facts, blocks);
        }
        blocks.end(m, part.blocks, &facts.flags)
    }

    /// Sums up the blocks of a segment from the bytes of weights and codes.
    #[inline(always)]
    fn sum_pairs<T: Half, M: Machine>(
        &self,
        m: M,
        part: &Part,
        weights: &[u8],
        facts: &BlockFacts,
        blocks: &mut BlockSums,
    ) {
        let reader = &self.reader;
        let weights = weights.chunks_exact(2 * part.block_cols).take(BLOCKS);
        if reader.nibbles {
            let codes = &reader.codes(part.row)[part.columns.start / 2..part.columns.end / 2];
            let parts = weights.zip(codes.chunks_exact(part.block_cols / 2));
            for (block, (weights, codes)) in parts.enumerate() {
                let table = reader.table(m, facts.scales[block], facts.zeros[block]);
                let running = Running::of_pairs::<T, _>(m, weights, codes, &table);
                blocks.put(m, block, running, facts.limits[block]);
            }
        } else {
            let codes = &reader.codes(part.row)[part.columns.clone()];
            let parts = weights.zip(codes.chunks_exact(part.block_cols));
            for (block, (weights, codes)) in parts.enumerate() {
                let steps = reader.steps(m, facts.scales[block], facts.zeros[block]);
                let running = Running::of_pairs::<T, _>(m, weights, codes, &steps);
                blocks.put(m, block, running, facts.limits[block]);
            }
        }
    }

    /// Offers the groups of a segment as the worst one. `open` is the group that the segment starts with, and then the one
    /// that it ends in the middle of.
    #[inline(always)]
    fn offer_groups(&mut self, part: &Part, segment: &mut Segment, open: &mut WorstGroup) {
        let [signals, noises] = segment.blocks.signals_and_noises(part.group_blocks);
        if part.group_cols < self.reader.group_cols {
            open.signal += signals[0];
            open.noise += noises[0];
            if part.columns.end.is_multiple_of(self.reader.group_cols) {
                self.all.offer_group(*open);
                *open = WorstGroup { group: open.group + 1, signal: 0.0, noise: 0.0, ..*open };
            }
            return;
        }
        let groups = signals[..part.groups].iter().zip(noises);
        if let Some(worst) = self.all.worst_group {
            // Nearly always none is worse.
            let mut worse = false;
            for (&signal, &noise) in groups.clone() {
                worse |= WorstGroup { signal, noise, ..worst }.is_worse_than(&worst);
            }
            if !worse {
                return;
            }
        }
        for (group, (&signal, &noise)) in (part.first..).zip(groups) {
            self.all.offer_group(WorstGroup { row: part.row, group, signal, noise });
        }
    }

    fn end(self) -> Distortion {
        let [signal, noise, cross] = self.totals.sums();
        Distortion { signal, noise, cross, ..self.all }
    }
}

/// Looks at the weights of those blocks of a segment that need it. A job of its own, because it is rare.
struct LookAgain<'a, 'b> {
    meter: &'a mut Meter<'b>,
    part: &'a Part,
    weights: &'a [u8],
    segment: &'a mut Segment,
}

impl Job for LookAgain<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { meter, part, weights, segment } = self;
        let Meter { quantizer, reader, allowances, all, .. } = meter;
        let Segment { memory: Decoded { values, decoded }, facts, blocks } = segment;
        for block in 0..part.blocks {
            if !blocks.is_flagged(block) {
                continue;
            }
            let (scale, zero, reach) = (facts.scales[block], facts.zeros[block], facts.reaches[block]);
            let is_usual = blocks.is_usual(block) && reader.is_steady(scale);
            let most = machine.greatest(machine.load(blocks.most(block)));
            let ends = size_bits(facts.bottoms[block]).max(size_bits(facts.tops[block]));
            let may_be_largest = ends > all.max_abs_weight.to_bits();
            // What has been found since the limits were set may be above it.
            let is_greatest = !is_usual || most > all.max_abs_error;
            let may_be_clipped = !is_usual || most > reach;
            let columns = part.block(block);
            let bytes = quantizer.source.bytes();
            let weights = &weights[columns.start * bytes..columns.end * bytes];
            if reader.in_pairs && is_usual && may_be_clipped {
                let (low, high) = allowances.limits(scale, zero);
                all.clipped += u64::from(if quantizer.source == FloatType::Bf16 {
                    count_pairs_outside::<Bf16, M>(machine, weights, low, high)
                } else {
                    count_pairs_outside::<F16, M>(machine, weights, low, high)
                });
            }
            if !may_be_largest && !is_greatest && (reader.in_pairs || !may_be_clipped) {
                continue;
            }
            let start = part.columns.start + columns.start;
            let (values, decoded) = if reader.in_pairs {
                let (values, decoded) = (&mut values[..columns.len()], &mut decoded[..columns.len()]);
                quantizer.source.widen_all(weights, values);
                reader.decode_part(machine, (part.row, start), (scale, zero), decoded);
                (values, decoded)
            } else {
                (&mut values[columns.clone()], &mut decoded[columns])
            };
            if may_be_largest {
                all.max_abs_weight = f32::from_bits(most_bits(decoded).max(all.max_abs_weight.to_bits()));
            }
            if !is_usual {
                blocks.sum_again(block, values, decoded);
            }
            let mut most = most;
            if is_greatest {
                let bits = most_error_bits(values, decoded);
                most = f32::from_bits(bits);
                if most > all.max_abs_error || (most.is_nan() && !all.max_abs_error.is_nan()) {
                    let column = start + find_error(values, decoded, bits);
                    (all.max_abs_error, all.max_abs_error_at) = (most, (part.row, column));
                }
            }
            let is_counted = reader.in_pairs && is_usual;
            if !is_counted && (most > reach || most.is_nan()) {
                let (low, high) = allowances.limits(scale, zero);
                all.clipped += u64::from(count_outside(values, low, high));
            }
        }
    }
}

/// The first column whose error has these bits without the sign.
#[inline(always)]
fn find_error(values: &[f32], decoded: &[f32], bits: u32) -> usize {
    let mut columns = values.iter().zip(decoded);
    columns.position(|(&w, &d)| size_bits(w - d) == bits).unwrap_or(0)
}

/// The greatest bit pattern of |e|; NaN is above all numbers.
#[inline(always)]
fn most_error_bits(values: &[f32], decoded: &[f32]) -> u32 {
    let mut most = 0;
    for (&w, &d) in values.iter().zip(decoded) {
        let size = size_bits(w - d);
        most = if size > most { size } else { most };
    }
    most
}

/// The bit pattern of |x|.
#[inline(always)]
fn size_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The greatest bit pattern of |x|.
#[inline(always)]
fn most_bits(numbers: &[f32]) -> u32 {
    let mut most = 0;
    for &x in numbers {
        let size = size_bits(x);
        most = if size > most { size } else { most };
    }
    most
}

/// How many weights lie below `low` or above `high`.
#[inline(always)]
fn count_outside(values: &[f32], low: f32, high: f32) -> u32 {
    let mut outside = 0;
    for &w in values {
        outside += u32::from(w < low) + u32::from(w > high);
    }
    outside
}

/// [`count_outside`] of the bytes of weights in pairs; the ends are numbers.
#[inline(always)]
fn count_pairs_outside<T: Half, M: Machine>(m: M, weights: &[u8], low: f32, high: f32) -> u32 {
    let (low, high) = (m.splat(low), m.splat(high));
    let mut outside = 0;
    for weights in weights.as_chunks().0 {
        let [even, odd] = T::pairs(m, weights);
        outside += 2 * LANES as u32;
        outside -= m.replace_equal(even, m.min(m.max(even, low), high), even).1;
        outside -= m.replace_equal(odd, m.min(m.max(odd, low), high), odd).1;
    }
    outside
}
