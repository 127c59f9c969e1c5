//! Decoding of stored codes to weights.

use std::ops::Range;

use super::super::kernel::MAGIC;
use super::super::pack::zero_point_at;
use super::super::{Bits, FloatType, Granularity, QuantizedView, Quantizer, Scheme, Storage};
use super::sums::BLOCK;
use super::{BLOCKS, BlockFacts, SEGMENT, Segment};
use crate::quant::simd::machine::{LANES, Machine};

/// How to read a scheme's bytes.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) scheme: &'a Scheme,
    pub(super) cols: usize,
    groups: usize,
    pub(super) group_cols: usize,
    /// Columns per segment: whole groups, or at most this many of one group.
    segment_cols: usize,
    /// Columns per block. Blocks in pairs are all of this size, others may be smaller.
    pub(super) block_cols: usize,
    /// Bytes per row of codes.
    row_bytes: usize,
    /// Whether two codes share a byte.
    pub(super) nibbles: bool,
    /// Whether bytes and their weights can be taken in pairs, without a detour through memory.
    pub(super) in_pairs: bool,
    /// Turns a stored byte (or nibble) into code + `bias`, by exclusive or.
    flip: u8,
    bias: f32,
    /// See [`Steps`].
    splitter: f32,
}

/// The values of stored nibbles.
const NIBBLES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

impl<'a> Reader<'a> {
    pub(super) fn new(quantizer: &'a Quantizer) -> Self {
        let (scheme, cols) = (&quantizer.scheme, quantizer.cols);
        let (flip, bias) = match scheme.storage {
            Storage::Packed => (0, -scheme.bits.qmin()),
            _ => (0x80, 128),
        };
        let group_cols = scheme.group_cols(cols).max(1);
        let mut reader = Self {
            scheme,
            cols,
            groups: scheme.groups_per_row(cols),
            group_cols,
            segment_cols: 0,
            block_cols: BLOCK,
            row_bytes: scheme.codes_bytes(1, cols),
            nibbles: scheme.storage == Storage::Packed && scheme.bits == Bits::Four,
            in_pairs: quantizer.in_pairs(),
            flip,
            bias: bias as f32,
            splitter: match scheme.scale_type {
                FloatType::F32 => 0.0,
                FloatType::F16 => 8_193.0,
                FloatType::Bf16 => 65_537.0,
            },
        };
        if reader.in_pairs {
            let sizes = (2 * LANES..=BLOCK).rev().step_by(2 * LANES);
            reader.block_cols =
                sizes.into_iter().find(|&size| group_cols.is_multiple_of(size)).unwrap_or(BLOCK);
            reader.cut(BLOCKS * reader.block_cols);
        } else {
            reader = reader.in_memory();
        }
        reader
    }

    /// The same with segments so short that they can be decoded.
    pub(super) fn in_memory(mut self) -> Self {
        self.in_pairs = false;
        self.block_cols = BLOCK;
        self.cut(SEGMENT);
        self
    }

    /// Cuts rows into segments of at most so many columns.
    fn cut(&mut self, most: usize) {
        let whole = (most / self.group_cols).min(BLOCKS / self.group_cols.div_ceil(self.block_cols));
        self.segment_cols = if whole > 0 { whole * self.group_cols } else { most };
    }

    /// The columns of the segment of a row that starts at a column.
    #[inline(always)]
    pub(super) fn segment(&self, start: usize) -> Range<usize> {
        let end = if self.segment_cols < self.group_cols {
            (start / self.group_cols + 1) * self.group_cols
        } else {
            self.cols
        };
        start..end.min(start + self.segment_cols)
    }

    /// The bytes that hold the stored codes of a row.
    #[inline(always)]
    pub(super) fn codes<'q>(&self, quantized: QuantizedView<'q>, row: usize) -> &'q [u8] {
        &quantized.codes[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// Scales and zero points of the groups of a row, starting at group `first`.
    #[inline(always)]
    pub(super) fn read_params(
        &self,
        quantized: QuantizedView<'_>,
        (row, first): (usize, usize),
        (scales, zeros): (&mut [f32], &mut [f32]),
    ) {
        let scale_type = self.scheme.scale_type;
        let at = if self.scheme.granularity == Granularity::Tensor { 0 } else { row * self.groups + first };
        scale_type.widen_all(&quantized.scales[at * scale_type.bytes()..], scales);
        if self.scheme.symmetric {
            zeros.fill(0.0);
        } else if self.scheme.packs_zero_points() {
            for (group, zero) in (first..).zip(zeros) {
                let zero_points = quantized.zero_points;
                *zero = zero_point_at(self.scheme.bits, zero_points, self.groups, row, group) as f32;
            }
        } else {
            for (zero, &stored) in zeros.iter_mut().zip(&quantized.zero_points[at..]) {
                *zero = f32::from(stored as i8);
            }
        }
    }

    /// The dequantized weights of a segment, if it is [`Reader::in_memory`].
    #[inline(always)]
    pub(super) fn decode<'b, M: Machine>(
        &self,
        machine: M,
        quantized: QuantizedView<'_>,
        (row, columns): (usize, Range<usize>),
        segment: &'b mut Segment,
    ) -> &'b [f32] {
        let (first, count) = (columns.start / self.group_cols, columns.len().div_ceil(self.group_cols));
        let BlockFacts { scales, zeros, .. } = &mut segment.facts;
        let (scales, zeros) = (&mut scales[..count], &mut zeros[..count]);
        let decoded = &mut segment.memory.decoded[..columns.len()];
        self.read_params(quantized, (row, first), (scales, zeros));
        self.decode_segment(machine, self.codes(quantized, row), columns, (scales, zeros), decoded);
        decoded
    }

    /// The dequantized weights of a segment, from the codes of its row, and the scales and zero points of its groups.
    #[inline(always)]
    pub(super) fn decode_segment<M: Machine>(
        &self,
        machine: M,
        codes: &[u8],
        columns: Range<usize>,
        (scales, zeros): (&[f32], &[f32]),
        decoded: &mut [f32],
    ) {
        let parts =
            decoded[..columns.len()].chunks_mut(self.group_cols).zip(columns.step_by(self.group_cols));
        for ((out, start), (&scale, &zero)) in parts.zip(scales.iter().zip(zeros)) {
            self.decode_part(machine, codes, start, (scale, zero), out);
        }
    }

    /// The dequantized weights of columns of one group, from one on.
    #[inline(always)]
    pub(super) fn decode_part<M: Machine>(
        &self,
        machine: M,
        stored: &[u8],
        start: usize,
        (scale, zero): (f32, f32),
        out: &mut [f32],
    ) {
        if !self.nibbles {
            // Exact: integers of few bits.
            let offset = self.offset(zero);
            for (out, &code) in out.iter_mut().zip(&stored[start..]) {
                *out = (f32::from(code ^ self.flip) - offset) * scale;
            }
            self.round(out, scale);
            return;
        }
        let mut table = NIBBLES.map(|nibble| (nibble - self.offset(zero)) * scale);
        self.round(&mut table, scale);
        if start.is_multiple_of(2) {
            machine.look_up(&table, &stored[start / 2..], out);
        } else {
            for (out, column) in out.iter_mut().zip(start..) {
                *out = table[usize::from(stored[column / 2] >> (column % 2 * 4) & 15)];
            }
        }
    }

    /// The number to subtract from a stored number, to get the number of steps from zero.
    #[inline(always)]
    fn offset(&self, zero: f32) -> f32 {
        self.bias + zero
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

    /// Whether no step with this scale may overflow, nor its products with codes. That of a scale of this crate's making seldom
    /// does.
    #[inline(always)]
    pub(super) fn is_steady(&self, scale: f32) -> bool {
        let most = if self.scheme.scale_type == FloatType::F16 { 256.0 } else { 1e30 };
        scale.abs() <= most
    }
}

/// A way to decode 32 codes of a group to weights: those at even places, and those at odd ones.
pub(super) trait Meaning<M: Machine> {
    /// The bytes of 32 codes.
    type Bytes;

    /// The decoder of a group's codes.
    fn of(m: M, reader: &Reader<'_>, scale: f32, zero: f32) -> Self;

    /// All of these.
    fn bytes(codes: &[u8]) -> &[Self::Bytes];

    /// [`Meaning::bytes`] to be written.
    fn bytes_mut(codes: &mut [u8]) -> &mut [Self::Bytes];

    /// The dequantized weights of 32 codes.
    fn pairs(&self, m: M, codes: &Self::Bytes) -> [M::Lanes; 2];

    /// Stores codes as [`Fine`](super::super::kernel::Fine) finds them, and returns their dequantized weights.
    fn store(&self, m: M, codes: [M::Lanes; 2], to: &mut Self::Bytes) -> [M::Lanes; 2];
}

/// The meaning of each nibble, if the scale is steady ([`Reader::is_steady`]).
pub(super) struct NibbleTable<M: Machine> {
    entries: M::Lanes,
}

impl<M: Machine> Meaning<M> for NibbleTable<M> {
    type Bytes = [u8; LANES];

    #[inline(always)]
    fn of(m: M, reader: &Reader<'_>, scale: f32, zero: f32) -> Self {
        let steps = Steps::of(m, reader, scale, zero);
        Self { entries: steps.meaning(m, m.sub(m.load(&NIBBLES), steps.offset)) }
    }

    #[inline(always)]
    fn bytes(codes: &[u8]) -> &[Self::Bytes] {
        codes.as_chunks().0
    }

    #[inline(always)]
    fn bytes_mut(codes: &mut [u8]) -> &mut [Self::Bytes] {
        codes.as_chunks_mut().0
    }

    #[inline(always)]
    fn pairs(&self, m: M, codes: &Self::Bytes) -> [M::Lanes; 2] {
        m.nibble_pairs(self.entries, codes)
    }

    #[inline(always)]
    fn store(&self, m: M, [first, second]: [M::Lanes; 2], to: &mut Self::Bytes) -> [M::Lanes; 2] {
        m.store_nibble_pairs([first, second], to);
        [m.entries(self.entries, first), m.entries(self.entries, second)]
    }
}

/// The meaning of stored numbers: (number − offset)·scale, rounded to the scale's type, if the scale is steady
/// ([`Reader::is_steady`]).
///
/// The method is Veltkamp's splitting of numbers. The sum of a product p and 2^k·p is rounded to the 24 bits of f32.
/// So p, its lower part, is rounded to 24 − k bits: 8 of bfloat16 or 11 of half precision. Subtracting 2^k·p again
/// leaves that. For longer products, some ties would be broken differently. But steps have 8 bits and scales 24 − k,
/// and the 32 − k bits of their product end 8 below the last bit of the sum, where that of 2^k·p is even. The sum is
/// one product of steps with (2^k + 1)·scale, which f32 holds exactly. Subnormal products are multiples of the least
/// value, and short enough to stay unchanged. With scales in f32, k is such that there is nothing to subtract.
pub(super) struct Steps<M: Machine> {
    flip: u8,
    offset: M::Lanes,
    /// The offset of codes as [`Fine`](super::super::kernel::Fine) finds them.
    found_offset: M::Lanes,
    scale: M::Lanes,
    /// −(2^k + 1)·scale, or 0.
    moved: M::Lanes,
}

impl<M: Machine> Steps<M> {
    /// The weight at a number of steps from zero.
    #[inline(always)]
    fn meaning(&self, m: M, steps: M::Lanes) -> M::Lanes {
        let moved = m.mul(steps, self.moved);
        m.sub(m.mul_add(steps, self.scale, moved), moved)
    }
}

impl<M: Machine> Meaning<M> for Steps<M> {
    type Bytes = [u8; 2 * LANES];

    #[inline(always)]
    fn of(m: M, reader: &Reader<'_>, scale: f32, zero: f32) -> Self {
        let (scale, offset) = (m.splat(scale), reader.offset(zero));
        Self {
            flip: reader.flip,
            offset: m.splat(offset),
            // Codes that are flipped when they are stored are not flipped yet at that point.
            found_offset: m.splat(MAGIC - f32::from(reader.flip) + offset),
            scale,
            moved: m.mul(scale, m.splat(-reader.splitter)),
        }
    }

    #[inline(always)]
    fn bytes(codes: &[u8]) -> &[Self::Bytes] {
        codes.as_chunks().0
    }

    #[inline(always)]
    fn bytes_mut(codes: &mut [u8]) -> &mut [Self::Bytes] {
        codes.as_chunks_mut().0
    }

    #[inline(always)]
    fn pairs(&self, m: M, codes: &Self::Bytes) -> [M::Lanes; 2] {
        let [even, odd] = m.byte_pairs(codes, self.flip);
        [self.meaning(m, m.sub(even, self.offset)), self.meaning(m, m.sub(odd, self.offset))]
    }

    #[inline(always)]
    fn store(&self, m: M, [first, second]: [M::Lanes; 2], to: &mut Self::Bytes) -> [M::Lanes; 2] {
        m.store_byte_pairs([first, second], to);
        let steps = [m.sub(first, self.found_offset), m.sub(second, self.found_offset)];
        [self.meaning(m, steps[0]), self.meaning(m, steps[1])]
    }
}
