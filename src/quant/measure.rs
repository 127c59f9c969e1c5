//! Quantized bytes back to weights, and their distortion.

use std::ops::Range;

use super::distortion::WorstGroup;
use super::isa::Job;
use super::machine::{LANES, Machine};
use super::pack::zero_point_at;
use super::{Bits, Distortion, FloatType, Granularity, QuantizedView, Quantizer, Scheme, Scratch, Storage};

mod sums;
mod weighted;

use sums::{BLOCK, Sums, wide_energies};
use weighted::WeighTile;

/// Columns that are decoded before they are looked at: what the first cache holds beside the files' bytes.
const SEGMENT: usize = 2048;

/// Groups of a segment at most.
const GROUPS: usize = 64;

/// Some columns of a row: whole groups, or a part of one. Aligned for the widest registers.
#[repr(align(64))]
pub(super) struct Segment {
    /// Weights, and what their codes mean.
    values: [f32; SEGMENT],
    decoded: [f32; SEGMENT],
    /// Of each group.
    groups: GroupFacts,
    /// Of each block of each group.
    sums: [Sums; GROUPS],
}

/// What is computed for all groups of a segment at once.
struct GroupFacts {
    scales: [f32; GROUPS],
    /// Zero points.
    zeros: [f32; GROUPS],
    /// What the least and the greatest code mean.
    bottoms: [f32; GROUPS],
    tops: [f32; GROUPS],
    /// See [`Allowances::reach`].
    reaches: [f32; GROUPS],
    /// Whether the weights have to be looked at one by one: one may be clipped, or lie further from what its code means than any
    /// before, or f32 may not hold the sums.
    doubtful: [bool; GROUPS],
}

impl Default for Segment {
    fn default() -> Self {
        let none = [0.0; GROUPS];
        let groups = GroupFacts {
            scales: none,
            zeros: none,
            bottoms: none,
            tops: none,
            reaches: none,
            doubtful: [false; GROUPS],
        };
        Self { values: [0.0; SEGMENT], decoded: [0.0; SEGMENT], groups, sums: [Sums::default(); GROUPS] }
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
        let reader = Reader::new(self, quantized);
        self.isa.run(DequantizeTile { reader, rows, out, segment: &mut scratch.segment });
    }

    /// Compares `rows` rows of source weights, which are finite, with what their quantized bytes mean.
    ///
    /// Energies are summed in f32 over 16 lanes of 16 terms and in f64 from there, in an order that depends on
    /// nothing but the shapes; their relative error is below 2e-6 (1e-5 dB).
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
        let reader = Reader::new(self, quantized);
        let segment = &mut scratch.segment;
        let mut all = self.isa.run(MeasureTile { quantizer: self, reader, tile, rows, segment });
        if let Some(importance) = &self.importance {
            let weigh =
                WeighTile { quantizer: self, reader, tile, rows, importance, segment: &mut scratch.segment };
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

    /// How far outside its group's grid a weight may lie before it counts as clipped, in steps: half a step, which
    /// rounding to codes costs anyway, and what rounding scale and zero point to their types can move the ends by.
    #[cold]
    fn clip_allowance(&self, scale: f32) -> f64 {
        let steps = f64::from(self.scheme.bits.steps());
        // Relative error of rounding a value about the scale to a type, which grows among subnormal values.
        let rounding = |float: FloatType| {
            let magnified = (float.least_normal() / scale).max(1.0);
            float.unit_roundoff() * f64::from(magnified)
        };
        let source = rounding(self.source);
        let stored =
            if self.source == self.scheme.scale_type { 0.0 } else { rounding(self.scheme.scale_type) };
        if self.scheme.symmetric {
            // One rounding of the scale, to each type, moves the end of half the steps.
            0.5 + steps / 2.0 * (source + stored) * 1.01 + 1e-6
        } else {
            // The range, the scale and the zero point's quotient are rounded; the zero point moves by half a step.
            0.5 + steps * (3.0 * source + stored) * 1.01 + 1e-6
        }
    }
}

/// How to read a scheme's bytes.
#[derive(Clone, Copy)]
struct Reader<'a> {
    scheme: &'a Scheme,
    cols: usize,
    groups: usize,
    group_cols: usize,
    /// Groups of a segment; 0 if it is a part of one.
    segment_groups: usize,
    quantized: QuantizedView<'a>,
    /// Bytes of a row of codes.
    row_bytes: usize,
    /// Whether two codes share a byte.
    nibbles: bool,
    /// Whether bytes and their weights can be taken in pairs, without a detour through memory.
    pairs: bool,
    /// Turns a stored byte (or nibble) into code + `bias`, by exclusive or.
    flip: u8,
    bias: i32,
}

/// The values of stored nibbles.
const NIBBLES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

impl<'a> Reader<'a> {
    fn new(quantizer: &'a Quantizer, quantized: QuantizedView<'a>) -> Self {
        let (scheme, cols) = (&quantizer.scheme, quantizer.cols);
        let (flip, bias) = match scheme.storage {
            Storage::Packed => (0, -scheme.bits.qmin()),
            Storage::Plain => (0x80, 128),
        };
        let group_cols = scheme.group_cols(cols).max(1);
        let segment_groups = (SEGMENT / group_cols).min(GROUPS);
        let nibbles = scheme.storage == Storage::Packed && scheme.bits == Bits::Four;
        Self {
            scheme,
            cols,
            groups: scheme.groups_per_row(cols),
            group_cols,
            segment_groups,
            quantized,
            row_bytes: scheme.codes_bytes(1, cols),
            nibbles,
            pairs: nibbles
                && (quantizer.source, scheme.scale_type) == (FloatType::Bf16, FloatType::Bf16)
                && group_cols.is_multiple_of(2 * LANES),
            flip,
            bias,
        }
    }

    /// Scales and zero points of the groups of a row from one on.
    #[inline(always)]
    fn read_params(&self, row: usize, first: usize, count: usize, groups: &mut GroupFacts) {
        let (scales, zeros) = (&mut groups.scales[..count], &mut groups.zeros[..count]);
        let scale_type = self.scheme.scale_type;
        let at = if self.scheme.granularity == Granularity::Tensor { 0 } else { row * self.groups + first };
        scale_type.widen_all(&self.quantized.scales[at * scale_type.bytes()..], scales);
        if self.scheme.symmetric {
            zeros.fill(0.0);
        } else if self.scheme.packs_zero_points() {
            for (group, zero) in (first..).zip(zeros) {
                let zero_points = self.quantized.zero_points;
                *zero = zero_point_at(self.scheme.bits, zero_points, self.groups, row, group) as f32;
            }
        } else {
            for (zero, &stored) in zeros.iter_mut().zip(&self.quantized.zero_points[at..]) {
                *zero = f32::from(stored as i8);
            }
        }
    }

    /// The dequantized weights of a segment, and the scales and zero points of its groups.
    #[inline(always)]
    fn decode_segment<M: Machine>(
        &self,
        machine: M,
        row: usize,
        columns: Range<usize>,
        segment: &mut Segment,
    ) {
        let Segment { decoded, groups, .. } = segment;
        let decoded = &mut decoded[..columns.len()];
        let count = columns.len().div_ceil(self.group_cols);
        self.read_params(row, columns.start / self.group_cols, count, groups);
        let parts = decoded.chunks_mut(self.group_cols).zip(columns.step_by(self.group_cols));
        for ((out, start), (&scale, &zero)) in parts.zip(groups.scales.iter().zip(&groups.zeros)) {
            self.decode_part(machine, row, start, scale, zero, out);
        }
    }

    /// The dequantized weights of columns of one group, from one on.
    #[inline(always)]
    fn decode_part<M: Machine>(
        &self,
        machine: M,
        row: usize,
        start: usize,
        scale: f32,
        zero: f32,
        out: &mut [f32],
    ) {
        let stored = &self.quantized.codes[row * self.row_bytes..(row + 1) * self.row_bytes];
        if !self.nibbles {
            // Exact: integers of few bits.
            let offset = self.bias as f32 + zero;
            for (out, &code) in out.iter_mut().zip(&stored[start..]) {
                *out = (f32::from(code ^ self.flip) - offset) * scale;
            }
            self.round(out, scale);
            return;
        }
        let mut table = [0.0; 16];
        machine.store(self.levels(machine, scale, zero), &mut table);
        self.round(&mut table, scale);
        if start.is_multiple_of(2) {
            machine.look_up(&table, &stored[start / 2..], out);
        } else {
            for (out, column) in out.iter_mut().zip(start..) {
                *out = table[usize::from(stored[column / 2] >> (column % 2 * 4) & 15)];
            }
        }
    }

    /// Puts weights of one group and what their codes mean, which were only summed up so far, into memory.
    #[cold]
    fn look_again<M: Machine>(
        &self,
        machine: M,
        (row, start): (usize, usize),
        (scale, zero): (f32, f32),
        weights: &[u8],
        values: &mut [f32],
        decoded: &mut [f32],
    ) {
        FloatType::Bf16.widen_all(weights, values);
        self.decode_part(machine, row, start, scale, zero, decoded);
    }

    /// What the stored nibbles of a group mean, not rounded yet.
    #[inline(always)]
    fn levels<M: Machine>(&self, machine: M, scale: f32, zero: f32) -> M::Lanes {
        let offset = machine.splat(self.bias as f32 + zero);
        machine.mul(machine.sub(machine.load(&NIBBLES), offset), machine.splat(scale))
    }

    /// Rounds products with a scale to the type of dequantized weights.
    #[inline(always)]
    fn round(&self, products: &mut [f32], scale: f32) {
        if scale.is_finite() {
            self.scheme.scale_type.round_numbers(products);
        } else {
            // Not of this crate's making: 0 · ∞ is no number.
            self.scheme.scale_type.round_all(products);
        }
    }

    /// The sums of a segment's blocks, from the bytes of its weights and codes, and which groups are doubtful.
    #[inline(always)]
    fn sum_pairs<M: Machine>(
        &self,
        machine: M,
        row: usize,
        columns: Range<usize>,
        weights: &[u8],
        most: f32,
        segment: &mut Segment,
    ) {
        let Segment { groups, sums, .. } = segment;
        let codes = &self.quantized.codes[row * self.row_bytes..][columns.start / 2..columns.end / 2];
        let mut filled = 0;
        let grids = groups.scales.iter().zip(&groups.zeros).zip(&groups.reaches);
        let parts = weights.chunks(2 * self.group_cols).zip(codes.chunks(self.group_cols / 2));
        for (((weights, codes), ((&scale, &zero), &reach)), doubtful) in
            parts.zip(grids).zip(&mut groups.doubtful)
        {
            let table = machine.round_bf16(self.levels(machine, scale, zero));
            // Not of this crate's making: then the codes mean no numbers.
            *doubtful = !scale.is_finite();
            let limit = if reach < most { reach } else { most };
            for (weights, codes) in weights.chunks(2 * BLOCK).zip(codes.chunks(BLOCK / 2)) {
                let block = Sums::of_pairs(machine, weights, codes, table, limit);
                *doubtful |= block.exceeds | !block.is_usual();
                sums[filled] = block;
                filled += 1;
            }
        }
    }

    /// Where the segment that starts at a column ends.
    #[inline(always)]
    fn segment_end(&self, start: usize) -> usize {
        if self.segment_groups > 0 {
            return self.cols.min(start + self.segment_groups * self.group_cols);
        }
        let group_end = (start / self.group_cols + 1) * self.group_cols;
        group_end.min(start + SEGMENT)
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
                let end = reader.segment_end(start);
                reader.decode_segment(machine, row, start..end, segment);
                let (to, rest) = out.split_at_mut((end - start) * scale_type.bytes());
                scale_type.narrow_all(&segment.decoded[..end - start], to);
                (out, start) = (rest, end);
            }
        }
    }
}

/// The first column whose error has these bits without the sign.
#[cold]
fn find_error(values: &[f32], decoded: &[f32], bits: u32) -> usize {
    let mut columns = values.iter().zip(decoded);
    columns.position(|(&w, &d)| (w - d).to_bits() & 0x7fff_ffff == bits).unwrap_or(0)
}

/// The greatest bit pattern of |e|; NaN is above all numbers.
#[inline(always)]
fn most_error_bits(values: &[f32], decoded: &[f32]) -> u32 {
    let mut most = 0;
    for (&w, &d) in values.iter().zip(decoded) {
        let size = (w - d).to_bits() & 0x7fff_ffff;
        most = if size > most { size } else { most };
    }
    most
}

/// The greatest bit pattern of |d|.
#[inline(always)]
fn most_bits(decoded: &[f32]) -> u32 {
    let mut most = 0;
    for d in decoded {
        let size = d.to_bits() & 0x7fff_ffff;
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

struct MeasureTile<'a> {
    quantizer: &'a Quantizer,
    reader: Reader<'a>,
    tile: &'a [u8],
    rows: usize,
    segment: &'a mut Segment,
}

impl Job for MeasureTile<'_> {
    type Output = Distortion;

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Distortion {
        let Self { quantizer, reader, tile, rows, segment } = self;
        let Reader { cols, group_cols, .. } = reader;
        let source = quantizer.source;
        let allowances = Allowances::new(quantizer);
        let mut all = Distortion { count: (rows * cols) as u64, ..Distortion::default() };
        for row in 0..rows {
            let mut group = WorstGroup { row, group: 0, signal: 0.0, noise: 0.0 };
            let mut start = 0;
            while start < cols {
                let end = reader.segment_end(start);
                let count = end - start;
                let weights =
                    &tile[(row * cols + start) * source.bytes()..(row * cols + end) * source.bytes()];
                let parts_count = count.div_ceil(group_cols);
                if reader.pairs {
                    reader.read_params(row, start / group_cols, parts_count, &mut segment.groups);
                } else {
                    source.widen_all(weights, &mut segment.values[..count]);
                    reader.decode_segment(machine, row, start..end, segment);
                }
                allowances.fill(parts_count, &mut segment.groups);
                if reader.pairs {
                    reader.sum_pairs(machine, row, start..end, weights, all.max_abs_error, segment);
                } else {
                    let Segment { values, decoded, groups, sums } = &mut *segment;
                    let mut filled = 0;
                    let parts = values[..count].chunks(group_cols).zip(decoded[..count].chunks(group_cols));
                    for ((values, decoded), &reach) in parts.zip(&groups.reaches) {
                        let limit = if reach < all.max_abs_error { reach } else { all.max_abs_error };
                        for (values, decoded) in values.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
                            sums[filled] = Sums::of(machine, values, decoded, limit);
                            filled += 1;
                        }
                    }
                }
                // Only if the ends of a grid lie further out than any weight so far, may one of these.
                let ends = most_bits(&segment.groups.bottoms[..parts_count])
                    .max(most_bits(&segment.groups.tops[..parts_count]));
                let may_be_largest = ends > all.max_abs_weight.to_bits();
                if reader.pairs && may_be_largest {
                    reader.decode_segment(machine, row, start..end, segment);
                }
                let Segment { values, decoded, groups, sums } = &mut *segment;
                let (values, decoded) = (&mut values[..count], &mut decoded[..count]);
                if may_be_largest {
                    all.max_abs_weight = f32::from_bits(most_bits(decoded).max(all.max_abs_weight.to_bits()));
                }

                let mut sums = sums.iter();
                let parts = values.chunks_mut(group_cols).zip(decoded.chunks_mut(group_cols));
                for (i, (values, decoded)) in parts.enumerate() {
                    let mut exceeds = false;
                    if reader.pairs && groups.doubtful[i] {
                        let at = i * group_cols;
                        let weights = &weights[at * source.bytes()..(at + values.len()) * source.bytes()];
                        let grid = (groups.scales[i], groups.zeros[i]);
                        reader.look_again(machine, (row, start + at), grid, weights, values, decoded);
                    }
                    for (block, sums) in (0..values.len().div_ceil(BLOCK)).zip(&mut sums) {
                        let is_usual = sums.is_usual();
                        let [signal, noise, cross] = if is_usual {
                            [sums.signal, sums.noise, sums.cross].map(f64::from)
                        } else {
                            let columns = block * BLOCK..values.len().min((block + 1) * BLOCK);
                            wide_energies(&values[columns.clone()], &decoded[columns])
                        };
                        group.signal += signal;
                        group.noise += noise;
                        all.cross += cross;
                        exceeds |= sums.exceeds | !is_usual;
                    }
                    // Only then may one be the greatest so far, or belong to a clipped weight.
                    if exceeds {
                        let bits = most_error_bits(values, decoded);
                        let most = f32::from_bits(bits);
                        if most > all.max_abs_error || (most.is_nan() && !all.max_abs_error.is_nan()) {
                            let column = i * group_cols + find_error(values, decoded, bits);
                            (all.max_abs_error, all.max_abs_error_at) = (most, (row, start + column));
                        }
                        if most > groups.reaches[i] || most.is_nan() {
                            let (low, high) = allowances.limits(groups.scales[i], groups.zeros[i]);
                            all.clipped += u64::from(count_outside(values, low, high));
                        }
                    }
                    if reader.segment_groups > 0 || end.is_multiple_of(group_cols) {
                        all.signal += group.signal;
                        all.noise += group.noise;
                        all.offer_group(group);
                        group = WorstGroup { group: group.group + 1, signal: 0.0, noise: 0.0, ..group };
                    }
                }
                start = end;
            }
        }
        all
    }
}

/// Where a weight counts as clipped.
struct Allowances<'a> {
    quantizer: &'a Quantizer,
    /// The allowance of usual scales, the least there is.
    usual: f64,
    /// The ends of the grid, in steps.
    qmin: f32,
    qmax: f32,
}

impl<'a> Allowances<'a> {
    #[inline(always)]
    fn new(quantizer: &'a Quantizer) -> Self {
        let bits = quantizer.scheme.bits;
        Self {
            quantizer,
            usual: quantizer.clip_allowance(1.0),
            qmin: bits.qmin() as f32,
            qmax: bits.qmax() as f32,
        }
    }

    /// Ends and reaches of a segment's groups. If no error of a group is above its reach, no weight is clipped: one
    /// beyond the ends of the grid differs from what any code means at least by as much as from what the end means.
    #[inline(always)]
    fn fill(&self, count: usize, groups: &mut GroupFacts) {
        let GroupFacts { scales, zeros, bottoms, tops, reaches, .. } = groups;
        let (qmin, qmax) = (self.qmin, self.qmax);
        let grids = scales[..count].iter().zip(&zeros[..count]);
        for ((bottom, top), (&scale, &zero)) in bottoms.iter_mut().zip(tops.iter_mut()).zip(grids.clone()) {
            *bottom = (qmin - zero) * scale;
            *top = (qmax - zero) * scale;
        }
        let scale_type = self.quantizer.scheme.scale_type;
        scale_type.round_numbers(&mut bottoms[..count]);
        scale_type.round_numbers(&mut tops[..count]);
        let ends = bottoms.iter().zip(tops.iter());
        for ((reach, (&bottom, &top)), (&scale, &zero)) in reaches.iter_mut().zip(ends).zip(grids) {
            // Rounding here and in the limits, all of less than 512 steps, is below 1e-4 of one. Unusual scales,
            // for which the allowance is larger, are looked at more often than they need to be.
            let allowance = self.usual as f32 - 2e-4;
            let below = bottom - (qmin - zero - allowance) * scale;
            let above = (qmax - zero + allowance) * scale - top;
            *reach = if below < above { below } else { above };
        }
    }

    /// The least and the greatest weight of a group that are not clipped.
    #[cold]
    fn limits(&self, scale: f32, zero: f32) -> (f32, f32) {
        let allowance = self.quantizer.clip_allowance(scale);
        let (zero, scale) = (f64::from(zero), f64::from(scale));
        let low = (f64::from(self.qmin) - zero - allowance) * scale;
        let high = (f64::from(self.qmax) - zero + allowance) * scale;
        (low as f32, high as f32)
    }
}
