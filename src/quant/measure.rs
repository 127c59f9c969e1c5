//! Quantized bytes back to weights, and their distortion.

use std::marker::PhantomData;

use super::distortion::WorstGroup;
use super::float_type::{Bf16, F16, F32, Float};
use super::isa::Job;
use super::kernel::LANES;
use super::pack::{unpack_nibbles, zero_point_at};
use super::search::fold;
use super::{Bits, Distortion, FloatType, Granularity, QuantizedView, Quantizer, Scheme, Scratch, Storage};

/// Columns whose squares are summed in f32 before they go into f64 sums: 16 terms a lane.
const BLOCK: usize = 16 * LANES;

/// Block sums of squares that f32 holds to its full precision. Others are summed again in f64.
const SAFE: std::ops::RangeInclusive<f32> = 1e-18..=1e30;

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
        match self.scheme.scale_type {
            FloatType::F32 => self.isa.run(DequantizeTile::<F32>::new(self, quantized, rows, out, scratch)),
            FloatType::F16 => self.isa.run(DequantizeTile::<F16>::new(self, quantized, rows, out, scratch)),
            FloatType::Bf16 => self.isa.run(DequantizeTile::<Bf16>::new(self, quantized, rows, out, scratch)),
        }
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
        match self.source {
            FloatType::F32 => self.measure_from::<F32>(tile, quantized, rows, scratch),
            FloatType::F16 => self.measure_from::<F16>(tile, quantized, rows, scratch),
            FloatType::Bf16 => self.measure_from::<Bf16>(tile, quantized, rows, scratch),
        }
    }

    fn measure_from<T: Float>(
        &self,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion {
        let isa = self.isa;
        match self.scheme.scale_type {
            FloatType::F32 => isa.run(MeasureTile::<T, F32>::new(self, tile, quantized, rows, scratch)),
            FloatType::F16 => isa.run(MeasureTile::<T, F16>::new(self, tile, quantized, rows, scratch)),
            FloatType::Bf16 => isa.run(MeasureTile::<T, Bf16>::new(self, tile, quantized, rows, scratch)),
        }
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
    quantized: QuantizedView<'a>,
    /// Turns a stored byte into code + `bias`, by exclusive or.
    flip: u8,
    bias: i32,
}

impl<'a> Reader<'a> {
    #[inline(always)]
    fn new(quantizer: &'a Quantizer, quantized: QuantizedView<'a>) -> Self {
        let scheme = &quantizer.scheme;
        let (flip, bias) = match scheme.storage {
            Storage::Packed => (0, -scheme.bits.qmin()),
            Storage::Plain => (0x80, 128),
        };
        Self { scheme, cols: quantizer.cols, quantized, flip, bias }
    }

    /// The stored codes of a row, a byte each.
    #[inline(always)]
    fn row_codes<'b>(&self, row: usize, buffer: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        let bytes = self.scheme.codes_bytes(1, self.cols);
        let stored = &self.quantized.codes[row * bytes..(row + 1) * bytes];
        if self.scheme.storage == Storage::Packed && self.scheme.bits == Bits::Four {
            buffer.resize(2 * bytes, 0);
            unpack_nibbles(stored, buffer);
            &buffer[..self.cols]
        } else {
            &stored[..self.cols]
        }
    }

    /// Scale and zero point of a group.
    #[inline(always)]
    fn params<S: Float>(&self, row: usize, group: usize) -> (f32, i32) {
        let groups = self.scheme.groups_per_row(self.cols);
        let at = if self.scheme.granularity == Granularity::Tensor { 0 } else { row * groups + group };
        let scale = S::widen(S::elements(self.quantized.scales)[at]);
        let zero_point = if self.scheme.symmetric {
            0
        } else if self.scheme.packs_zero_points() {
            zero_point_at(self.scheme.bits, self.quantized.zero_points, groups, row, group)
        } else {
            i32::from(self.quantized.zero_points[at] as i8)
        };
        (scale, zero_point)
    }

    /// code − zero point of a stored byte, with `offset` = bias + zero point.
    #[inline(always)]
    fn level(&self, stored: u8, offset: i32) -> f32 {
        (i32::from(stored ^ self.flip) - offset) as f32
    }
}

struct DequantizeTile<'a, S> {
    quantizer: &'a Quantizer,
    quantized: QuantizedView<'a>,
    rows: usize,
    out: &'a mut [u8],
    scratch: &'a mut Scratch,
    scale: PhantomData<S>,
}

impl<'a, S> DequantizeTile<'a, S> {
    fn new(
        quantizer: &'a Quantizer,
        quantized: QuantizedView<'a>,
        rows: usize,
        out: &'a mut [u8],
        scratch: &'a mut Scratch,
    ) -> Self {
        Self { quantizer, quantized, rows, out, scratch, scale: PhantomData }
    }
}

impl<S: Float> Job for DequantizeTile<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { quantizer, quantized, rows, out, scratch, .. } = self;
        let reader = Reader::new(quantizer, quantized);
        let group_cols = quantizer.scheme.group_cols(quantizer.cols);
        let mut out = S::elements_mut(out);
        for row in 0..rows {
            let codes = reader.row_codes(row, &mut scratch.codes);
            let (to, rest) = out.split_at_mut(quantizer.cols);
            out = rest;
            let groups = codes.chunks(group_cols.max(1)).zip(to.chunks_mut(group_cols.max(1)));
            for (group, (codes, to)) in groups.enumerate() {
                let (scale, zero_point) = reader.params::<S>(row, group);
                let offset = reader.bias + zero_point;
                for (to, &code) in to.iter_mut().zip(codes) {
                    *to = S::narrow(S::round(reader.level(code, offset) * scale));
                }
            }
        }
    }
}

struct MeasureTile<'a, T, S> {
    quantizer: &'a Quantizer,
    tile: &'a [u8],
    quantized: QuantizedView<'a>,
    rows: usize,
    scratch: &'a mut Scratch,
    types: PhantomData<(T, S)>,
}

impl<'a, T, S> MeasureTile<'a, T, S> {
    fn new(
        quantizer: &'a Quantizer,
        tile: &'a [u8],
        quantized: QuantizedView<'a>,
        rows: usize,
        scratch: &'a mut Scratch,
    ) -> Self {
        Self { quantizer, tile, quantized, rows, scratch, types: PhantomData }
    }
}

/// Weights and codes of a block, with what their codes mean.
#[derive(Clone, Copy)]
struct Block<'a, T: Float> {
    weights: &'a [T::Raw],
    codes: &'a [u8],
    reader: Reader<'a>,
    offset: i32,
    scale: f32,
}

/// Weights and codes of a row.
#[derive(Clone, Copy)]
struct Row<'a, T: Float> {
    weights: &'a [T::Raw],
    codes: &'a [u8],
    reader: Reader<'a>,
    row: usize,
    group_cols: usize,
    scales: &'a [f32],
    offsets: &'a [i32],
}

impl<'a, T: Float> Row<'a, T> {
    #[inline(always)]
    fn group(&self, group: usize) -> Block<'a, T> {
        let columns = group * self.group_cols..(group + 1) * self.group_cols;
        let (weights, codes) = (&self.weights[columns.clone()], &self.codes[columns]);
        let (scale, offset) = (self.scales[group], self.offsets[group]);
        Block { weights, codes, reader: self.reader, offset, scale }
    }

    /// The first column whose error is that large.
    #[cold]
    fn find_error<S: Float>(&self, abs_error: f32, groups: usize) -> usize {
        let column = |group| {
            let found = self.group(group).find_error::<S>(abs_error);
            found.map(|column| group * self.group_cols + column)
        };
        (0..groups).find_map(column).unwrap_or(0)
    }
}

/// A block's weights and dequantized weights, aligned for the widest registers.
#[repr(align(64))]
struct Buffers {
    values: [f32; BLOCK],
    decoded: [f32; BLOCK],
}

/// Sums of a block's squares, by lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockSums {
    signal: [f32; LANES],
    noise: [f32; LANES],
    cross: [f32; LANES],
}

/// Bit patterns of the greatest absolute values, by lane.
#[derive(Clone, Copy)]
struct Most([u32; LANES]);

impl Most {
    #[inline(always)]
    fn add(&mut self, i: usize, x: f32) {
        self.0[i] = self.0[i].max(x.to_bits() & 0x7fff_ffff);
    }

    #[inline(always)]
    fn of_all(mut self) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                self.0[i] = self.0[i].max(self.0[i + half]);
            }
            half /= 2;
        }
        f32::from_bits(self.0[0])
    }
}

/// Σw², Σe², Σw·e.
type Energies = [f64; 3];

impl<T: Float> Block<'_, T> {
    /// Of a group, the block of that index.
    #[inline(always)]
    fn part(self, index: usize) -> Self {
        let columns = index * BLOCK..((index + 1) * BLOCK).min(self.weights.len());
        Self { weights: &self.weights[columns.clone()], codes: &self.codes[columns], ..self }
    }

    /// The dequantized weight of a stored code.
    #[inline(always)]
    fn decode<S: Float>(&self, code: u8) -> f32 {
        S::round_number(self.reader.level(code, self.offset) * self.scale)
    }

    /// Sums of squares, and the greatest error and dequantized weight.
    #[inline(always)]
    fn sums<S: Float>(
        &self,
        buffers: &mut Buffers,
        most_error: &mut Most,
        most_weight: &mut Most,
    ) -> BlockSums {
        // Elementwise first, sums second: each loop is then one that the compiler vectorises well.
        let Buffers { values, decoded } = buffers;
        let columns = self.weights.iter().zip(self.codes);
        for ((value, decoded), (&raw, &code)) in values.iter_mut().zip(decoded.iter_mut()).zip(columns) {
            *value = T::widen(raw);
            *decoded = self.decode::<S>(code);
        }
        // Past the end there are zeros, which add nothing.
        let count = self.weights.len();
        let lanes = count.next_multiple_of(LANES).min(BLOCK);
        values[count..lanes].fill(0.0);
        decoded[count..lanes].fill(0.0);
        let (mut signal, mut noise, mut cross) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        let decoded = decoded[..lanes].as_chunks::<LANES>().0;
        for (w, d) in values[..lanes].as_chunks::<LANES>().0.iter().zip(decoded) {
            for i in 0..LANES {
                let e = w[i] - d[i];
                signal[i] += w[i] * w[i];
                noise[i] += e * e;
                cross[i] += w[i] * e;
                most_error.add(i, e);
                most_weight.add(i, d[i]);
            }
        }
        BlockSums { signal, noise, cross }
    }

    /// The same in f64, for weights whose squares f32 cannot hold.
    #[cold]
    fn wide_energies<S: Float>(&self) -> Energies {
        let mut sums = [[0f64; LANES]; 3];
        for (chunk, codes) in self.weights.chunks(LANES).zip(self.codes.chunks(LANES)) {
            for (i, (&raw, &code)) in chunk.iter().zip(codes).enumerate() {
                let w = T::widen(raw);
                let (w, e) = (f64::from(w), f64::from(w - self.decode::<S>(code)));
                sums[0][i] += w * w;
                sums[1][i] += e * e;
                sums[2][i] += w * e;
            }
        }
        sums.map(fold)
    }

    /// The first column of the block whose error is that large.
    #[cold]
    fn find_error<S: Float>(&self, abs_error: f32) -> Option<usize> {
        let mut columns = self.weights.iter().zip(self.codes);
        columns.position(|(&raw, &code)| {
            (T::widen(raw) - self.decode::<S>(code)).abs().to_bits() == abs_error.to_bits()
        })
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn fold_f32(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// How many weights lie below `low` or above `high`.
#[inline(always)]
fn count_outside<T: Float>(weights: &[T::Raw], low: f32, high: f32) -> u64 {
    let mut count = 0u64;
    for block in weights.chunks(1 << 16) {
        let mut outside = 0u32;
        for &raw in block {
            let w = T::widen(raw);
            outside += u32::from(w < low) + u32::from(w > high);
        }
        count += u64::from(outside);
    }
    count
}

impl<T: Float, S: Float> Job for MeasureTile<'_, T, S> {
    type Output = Distortion;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Distortion {
        let Self { quantizer, tile, quantized, rows, scratch, .. } = self;
        let (scheme, cols) = (&quantizer.scheme, quantizer.cols);
        let reader = Reader::new(quantizer, quantized);
        let group_cols = scheme.group_cols(cols);
        let groups = if group_cols == 0 { 0 } else { scheme.groups_per_row(cols) };
        let (qmin, qmax) = (f64::from(scheme.bits.qmin()), f64::from(scheme.bits.qmax()));
        let weights = T::elements(tile);
        let mut all = Distortion { count: (rows * cols) as u64, ..Distortion::default() };
        let mut most_weight = Most([0; LANES]);
        let mut buffers = Buffers { values: [0.0; BLOCK], decoded: [0.0; BLOCK] };
        let blocks_of_group = group_cols.div_ceil(BLOCK);
        let Scratch { codes: buffer, blocks, energies, high: scales, offsets, .. } = scratch;
        for row in 0..rows {
            let weights = &weights[row * cols..(row + 1) * cols];
            let codes = reader.row_codes(row, buffer);
            scales.clear();
            offsets.clear();
            for group in 0..groups {
                let (scale, zero_point) = reader.params::<S>(row, group);
                scales.push(scale);
                offsets.push(reader.bias + zero_point);
            }
            let row = Row::<T> { weights, codes, reader, row, group_cols, scales, offsets };

            let mut most_error = Most([0; LANES]);
            blocks.clear();
            for group in 0..groups {
                let whole = row.group(group);
                for (weights, codes) in whole.weights.chunks(BLOCK).zip(whole.codes.chunks(BLOCK)) {
                    let block = Block { weights, codes, ..whole };
                    blocks.push(block.sums::<S>(&mut buffers, &mut most_error, &mut most_weight));
                }
            }
            energies.clear();
            energies.resize(blocks.len(), [0.0; 3]);
            for (to, block) in energies.iter_mut().zip(blocks.iter()) {
                to[0] = fold_f32(block.signal);
            }
            for (to, block) in energies.iter_mut().zip(blocks.iter()) {
                to[1] = fold_f32(block.noise);
            }
            for (to, block) in energies.iter_mut().zip(blocks.iter()) {
                to[2] = fold_f32(block.cross);
            }
            for (group, energies) in energies.chunks(blocks_of_group.max(1)).enumerate() {
                let mut sums = [0.0; 3];
                for (i, energies) in energies.iter().enumerate() {
                    let energies = if SAFE.contains(&energies[0]) && energies[1].is_finite() {
                        energies.map(f64::from)
                    } else {
                        row.group(group).part(i).wide_energies::<S>()
                    };
                    for (sum, energy) in sums.iter_mut().zip(energies) {
                        *sum += energy;
                    }
                }
                let [signal, noise, cross] = sums;
                all.signal += signal;
                all.noise += noise;
                all.cross += cross;
                all.offer_group(WorstGroup { row: row.row, group, signal, noise });
            }
            let most = most_error.of_all();
            if most > all.max_abs_error || (most.is_nan() && !all.max_abs_error.is_nan()) {
                all.max_abs_error = most;
                all.max_abs_error_at = (row.row, row.find_error::<S>(most, groups));
            }
            for group in 0..groups {
                let Block { weights, scale, offset, .. } = row.group(group);
                let zero = f64::from(offset - reader.bias);
                let allowance = quantizer.clip_allowance(scale);
                let low = ((qmin - zero - allowance) * f64::from(scale)) as f32;
                let high = ((qmax - zero + allowance) * f64::from(scale)) as f32;
                let range = T::extremes(weights);
                if range.0 < low || range.1 > high {
                    all.clipped += count_outside::<T>(weights, low, high);
                }
            }
        }
        all.max_abs_weight = most_weight.of_all();
        all
    }
}
