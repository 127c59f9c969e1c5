//! Dequantization of stored bytes, and the distortion of the weights.

mod allowance;
mod codes;
mod reader;
pub(super) mod segment;
mod sums;
mod weighted;

use std::marker::PhantomData;
use std::ops::Range;

use super::distortion::WorstGroup;
use super::float_type::{Bf16, F16, Half};
use super::kernel::Grid;
use super::{Distortion, FloatType, QuantizedView, Quantizer, Scratch};
use crate::quant::simd::Job;
use crate::quant::simd::machine::{LANES, Machine};
use allowance::Allowances;
use codes::{Codes, NewCodes, StoredCodes, sum_up};
use reader::Reader;
use segment::{BlockFacts, Decoded, SEGMENT, Segment};
use sums::{BLOCKS, BlockLanes, BlockSums, Running, Totals};
use weighted::WeighTile;

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
        let reader = Reader::new(self).in_memory();
        self.isa.run(DequantizeTile { reader, quantized, rows, out, segment: &mut scratch.segment });
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
        let (meter, segment) = (Meter::new(self, rows), &mut scratch.segment);
        let all = self.isa.run(MeasureTile { meter, quantized, tile, rows, segment });
        self.weigh(all, tile, quantized, rows, scratch)
    }

    /// Adds to the measurements of a tile the energies in which columns count by their importance, if there is
    /// importance.
    pub(super) fn weigh(
        &self,
        mut all: Distortion,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion {
        if let Some(importance) = &self.importance {
            let reader = Reader::new(self).in_memory();
            let segment = &mut scratch.segment;
            let weigh = WeighTile { quantizer: self, reader, quantized, tile, rows, importance, segment };
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
    quantized: QuantizedView<'a>,
    rows: usize,
    out: &'a mut [u8],
    segment: &'a mut Segment,
}

impl Job for DequantizeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { reader, quantized, rows, mut out, segment } = self;
        let scale_type = reader.scheme.scale_type;
        for row in 0..rows {
            let mut start = 0;
            while start < reader.cols {
                let columns = reader.segment(start);
                let decoded = reader.decode(machine, quantized, (row, columns.clone()), segment);
                let (to, rest) = out.split_at_mut(columns.len() * scale_type.bytes());
                scale_type.narrow_all(decoded, to);
                (out, start) = (rest, columns.end);
            }
        }
    }
}

struct MeasureTile<'a> {
    meter: Meter<'a>,
    quantized: QuantizedView<'a>,
    tile: &'a [u8],
    rows: usize,
    segment: &'a mut Segment,
}

impl Job for MeasureTile<'_> {
    type Output = Distortion;

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Distortion {
        let Self { mut meter, quantized, tile, rows, segment } = self;
        let row_bytes = meter.quantizer.row_bytes();
        for row in 0..rows {
            let mut codes = StoredCodes::new(&meter.reader, quantized, row);
            let weights = &tile[row * row_bytes..(row + 1) * row_bytes];
            meter.row(machine, row, weights, &mut codes, segment);
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
    /// The number of blocks in total and per group, and the columns per block. The last block of a group may have
    /// fewer columns.
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

    /// The columns of a block, counted from the start of the segment.
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

/// Measures row after row.
pub(super) struct Meter<'a> {
    quantizer: &'a Quantizer,
    reader: Reader<'a>,
    allowances: Allowances<'a>,
    /// The distortion found so far, except for the sums.
    all: Distortion,
    totals: Totals,
}

impl<'a> Meter<'a> {
    /// A meter for a tile of `rows` rows.
    pub(super) fn new(quantizer: &'a Quantizer, rows: usize) -> Self {
        Self {
            quantizer,
            reader: Reader::new(quantizer),
            allowances: Allowances::new(quantizer),
            all: Distortion { count: (rows * quantizer.cols) as u64, ..Distortion::default() },
            totals: Totals::new(),
        }
    }

    /// Stores the codes of a row that can be measured in pairs, and measures the row.
    #[inline(always)]
    pub(super) fn encode_and_measure_row<M: Machine>(
        &mut self,
        machine: M,
        (row, weights): (usize, &[u8]),
        like: Grid,
        (scales, zeros): (&[f32], &[f32]),
        stored: &mut [u8],
        segment: &mut Segment,
    ) {
        self.row(machine, row, weights, &mut NewCodes { like, scales, zeros, stored }, segment);
    }

    /// Measures a row.
    #[inline(always)]
    fn row<M: Machine>(
        &mut self,
        machine: M,
        row: usize,
        weights: &[u8],
        codes: &mut impl Codes,
        segment: &mut Segment,
    ) {
        let Quantizer { cols, source, isa, .. } = self.quantizer;
        let mut group = WorstGroup { row, group: 0, signal: 0.0, noise: 0.0 };
        let mut start = 0;
        while start < *cols {
            let columns = self.reader.segment(start);
            let part = Part::new(&self.reader, row, columns.clone());
            let weights = &weights[start * source.bytes()..columns.end * source.bytes()];
            if self.sum(machine, &part, weights, codes, segment) {
                isa.run(LookAgain { meter: self, part: &part, weights, codes: codes.stored(), segment });
            }
            self.totals.add(&segment.blocks, part.blocks);
            self.offer_groups(&part, segment, &mut group);
            start = columns.end;
        }
    }

    /// Sums up the blocks of a segment. Returns whether some of them need a second look, weight by weight. A block
    /// may be clipped, one of its weights may have a greater error than any before, or f32 may not hold its sums.
    #[inline(always)]
    fn sum<M: Machine>(
        &self,
        m: M,
        part: &Part,
        weights: &[u8],
        codes: &mut impl Codes,
        segment: &mut Segment,
    ) -> bool {
        let Self { reader, allowances, all, quantizer: Quantizer { source, isa, .. }, .. } = self;
        let Segment { memory: Decoded { values, decoded }, facts, blocks } = segment;
        codes.params(reader, part, facts);
        if !reader.in_pairs {
            let (values, decoded) = (&mut values[..part.columns.len()], &mut decoded[..part.columns.len()]);
            source.widen_all(weights, values);
            let grids = (&facts.scales[..part.groups], &facts.zeros[..part.groups]);
            reader.decode_segment(m, codes.stored(), part.columns.clone(), grids, decoded);
        }
        if part.group_blocks > 1 {
            // From here on there is one entry per block.
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
            let (mut lanes, mut block) = (BlockLanes::new(), 0);
            for (values, decoded) in parts {
                for (values, decoded) in values.chunks(part.block_cols).zip(decoded.chunks(part.block_cols)) {
                    blocks.put(m, &mut lanes, block, Running::of(m, values, decoded), facts.limits[block]);
                    block += 1;
                }
            }
            blocks.put_end(m, &lanes, block);
        } else if *source == FloatType::Bf16 {
            isa.run(SumPairs { source: PhantomData::<Bf16>, part, weights, codes, reader, facts, blocks });
        } else {
            isa.run(SumPairs { source: PhantomData::<F16>, part, weights, codes, reader, facts, blocks });
        }
        blocks.end(part.blocks, &facts.flags)
    }

    /// Offers the groups of a segment as candidates for the worst group. `open` is the group that the segment starts
    /// with, and afterwards the group in the middle of which it ends.
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

    /// The measured distortion, without the energies weighted by importance.
    pub(super) fn end(self) -> Distortion {
        let [signal, noise, cross] = self.totals.sums();
        Distortion { signal, noise, cross, ..self.all }
    }
}

/// Sums up the blocks of a segment from the bytes of weights. A separate job, so that it has the registers to itself.
struct SumPairs<'a, T, C> {
    source: PhantomData<T>,
    reader: &'a Reader<'a>,
    part: &'a Part,
    weights: &'a [u8],
    codes: &'a mut C,
    facts: &'a BlockFacts,
    blocks: &'a mut BlockSums,
}

impl<T: Half, C: Codes> Job for SumPairs<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, m: M) {
        let Self { reader, part, weights, codes, facts, blocks, .. } = self;
        let mut lanes = BlockLanes::new();
        sum_up::<T, M>(m, codes, reader, part, weights, facts, (blocks, &mut lanes));
        blocks.put_end(m, &lanes, part.blocks);
    }
}

/// A second look at the weights of those blocks of a segment that need it. A separate job, because it is rare.
struct LookAgain<'a, 'b> {
    meter: &'a mut Meter<'b>,
    part: &'a Part,
    weights: &'a [u8],
    /// The row's codes.
    codes: &'a [u8],
    segment: &'a mut Segment,
}

impl Job for LookAgain<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { meter, part, weights, codes, segment } = self;
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
            // An error found since the limits were set may be greater.
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
                reader.decode_part(machine, codes, start, (scale, zero), decoded);
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
