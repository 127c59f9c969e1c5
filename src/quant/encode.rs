//! Encoding of tiles of source weights as the bytes of a stored matrix.

use std::marker::PhantomData;

use super::float_type::{Bf16, F16, F32, Float};
use super::kernel::{Fine, Grid, all_fine};
use super::measure::Meter;
use super::pack::{pack_nibbles, pack_zero_points, packed_bytes};
use super::quantizer::{Quantized, Quantizer, Scratch};
use super::simd::Job;
use super::simd::machine::{Machine, on_lines};
use super::{
    BadValue, BadWeight, Bits, Distortion, FloatType, Granularity, Importance, Storage, TensorParams,
};

impl Quantizer {
    /// Quantizes `rows` rows. `tile` holds their weights, little-endian, at any alignment. `tensor` is the result of
    /// the survey if the scheme has one scale per tensor, and `None` otherwise. The content of `out` is replaced. A
    /// tile that is not the last of its tensor must have a multiple of [`super::Scheme::row_multiple`] rows.
    ///
    /// # Errors
    /// The first weight that cannot be quantized. `out` then holds nothing of use.
    ///
    /// # Panics
    /// If `tile` does not have the length of `rows` rows, or `tensor` is missing although it is needed.
    pub fn quantize(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: usize,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<(), BadWeight> {
        self.quantize_tile::<false>(tensor, tile, rows, None, out, scratch).map(|_| ())
    }

    /// Runs [`Quantizer::quantize`], and then [`Quantizer::measure`] on the content of `out`. Both run in one pass if
    /// that is possible, with the same result.
    ///
    /// # Errors
    /// As [`Quantizer::quantize`].
    ///
    /// # Panics
    /// As [`Quantizer::quantize`].
    pub fn quantize_and_measure(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: usize,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Distortion, BadWeight> {
        self.quantize_then_measure::<false>(tensor, tile, rows, out, scratch)
    }

    /// [`Quantizer::quantize_and_measure`] in one pass on every machine, also if two passes are faster there. For tests,
    /// whose machine may be one of those.
    #[cfg(test)]
    pub(super) fn quantize_and_measure_in_one_pass(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: usize,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Distortion, BadWeight> {
        self.quantize_then_measure::<true>(tensor, tile, rows, out, scratch)
    }

    /// Quantizes and measures a tile. `ONE_PASS`: in one pass even if [`Machine::ONE_PASS`] says that two are faster.
    fn quantize_then_measure<const ONE_PASS: bool>(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: usize,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Distortion, BadWeight> {
        let meter = Some(Meter::new(self, rows));
        Ok(match self.quantize_tile::<ONE_PASS>(tensor, tile, rows, meter, out, scratch)? {
            Some(measured) => self.weigh(measured, tile, out.view(), rows, scratch),
            None => self.measure(tile, out.view(), rows, scratch),
        })
    }

    /// Quantizes a tile. Returns the measurements made on the way, if there is a meter and that was possible.
    fn quantize_tile<'a, const ONE_PASS: bool>(
        &'a self,
        tensor: Option<&'a TensorParams>,
        tile: &'a [u8],
        rows: usize,
        meter: Option<Meter<'a>>,
        out: &'a mut Quantized,
        scratch: &'a mut Scratch,
    ) -> Result<Option<Distortion>, BadWeight> {
        assert_eq!(tile.len(), rows * self.row_bytes(), "a tile is whole rows");
        assert_eq!(
            tensor.is_some(),
            self.scheme.granularity == Granularity::Tensor,
            "one scale per tensor, and only that, comes from a survey"
        );
        let tile = TileToQuantize { quantizer: self, tensor, tile, rows, meter, out, scratch };
        match self.source {
            FloatType::F32 => self.isa.run(QuantizeTile::<F32, ONE_PASS>(tile, PhantomData)),
            FloatType::F16 => self.isa.run(QuantizeTile::<F16, ONE_PASS>(tile, PhantomData)),
            FloatType::Bf16 => self.isa.run(QuantizeTile::<Bf16, ONE_PASS>(tile, PhantomData)),
        }
    }

    /// The first weight of a row that is not finite. The row is known to have one.
    #[cold]
    pub(super) fn locate_bad<T: Float>(row: usize, weights: &[T::Raw]) -> BadWeight {
        let is_bad = |&(_, &raw): &(usize, &T::Raw)| !T::widen(raw).is_finite();
        let (col, what) = match weights.iter().enumerate().find(is_bad) {
            Some((col, &raw)) if T::widen(raw).is_nan() => (col, BadValue::NotANumber),
            Some((col, _)) => (col, BadValue::Infinite),
            None => (0, BadValue::Infinite),
        };
        BadWeight { row, col, what }
    }
}

struct TileToQuantize<'a> {
    quantizer: &'a Quantizer,
    tensor: Option<&'a TensorParams>,
    tile: &'a [u8],
    rows: usize,
    meter: Option<Meter<'a>>,
    out: &'a mut Quantized,
    scratch: &'a mut Scratch,
}

/// Quantizes a tile of weights of one type.
struct QuantizeTile<'a, T, const ONE_PASS: bool>(TileToQuantize<'a>, PhantomData<T>);

impl<T: Float, const ONE_PASS: bool> Job for QuantizeTile<'_, T, ONE_PASS> {
    type Output = Result<Option<Distortion>, BadWeight>;

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Self::Output {
        let TileToQuantize { quantizer, tensor, tile, rows, mut meter, out, scratch } = self.0;
        let Quantizer { scheme, cols, .. } = quantizer;
        let (cols, bits) = (*cols, scheme.bits);
        let groups = scheme.groups_per_row(cols);
        let group_cols = scheme.group_cols(cols);
        let row_codes = scheme.codes_bytes(1, cols);
        let packed_row = match scheme.storage {
            Storage::Packed => packed_bytes(bits, cols),
            _ => cols,
        };
        debug_assert_eq!(packed_row, row_codes, "two ways to the bytes of a row");

        out.codes.resize(rows * row_codes, 0);
        let row_scales = if tensor.is_some() { 0 } else { groups * scheme.scale_type.bytes() };
        out.scales.resize(rows * row_scales, 0);
        out.zero_points.clear();
        scratch.zero_points.clear();
        scratch.low.resize(groups, 0.0);
        scratch.high.resize(groups, 0.0);
        scratch.most.resize(groups, 0.0);
        let padded = cols.next_multiple_of(bits.per_word());
        scratch.codes.clear();
        scratch.codes.resize(padded, 0);
        let bias = match scheme.storage {
            Storage::Packed => -bits.qmin() as f32,
            _ => 0.0,
        };
        let (qmin, qmax) = (bits.qmin() as f32, bits.qmax() as f32);
        let narrow = quantizer.source != FloatType::F32 && scheme.scale_type != FloatType::F32;
        // Codes go straight from registers to their destination if they are measured or are packed int4. Otherwise
        // there is one byte per code first.
        let nibbles = scheme.storage == Storage::Packed && bits == Bits::Four;
        let in_pairs = quantizer.in_pairs();
        if !in_pairs || !(M::ONE_PASS || ONE_PASS) {
            meter = None;
        }

        let weights = T::elements(tile);
        for row in 0..rows {
            let row_bytes = &tile[row * quantizer.row_bytes()..(row + 1) * quantizer.row_bytes()];
            let weights = &weights[row * cols..(row + 1) * cols];
            match tensor {
                Some(params) => {
                    scratch.most[0] = T::magnitude(weights);
                    if !scratch.most[0].is_finite() {
                        return Err(Quantizer::locate_bad::<T>(row, weights));
                    }
                    scratch.low[0] = f32::from(params.zero_point);
                    scratch.high[0] = params.scale;
                }
                None => quantizer.row_params::<T>(row, weights, row_bytes, scratch)?,
            }
            let to = &mut out.codes[row * row_codes..(row + 1) * row_codes];
            let like = Grid { scale: 0.0, zero: 0.0, qmin, qmax, bias };
            let is_fine = narrow && all_fine(&scratch.high, &scratch.most);
            if is_fine && let Some(meter) = &mut meter {
                let Scratch { low, high, segment, .. } = &mut *scratch;
                meter.encode_and_measure_row(machine, (row, row_bytes), like, (high, low), to, segment);
            } else if is_fine && nibbles && in_pairs {
                let grids = scratch.high.iter().zip(&scratch.low);
                let fine = grids.map(|(&scale, &zero)| Fine::new(&Grid { scale, zero, ..like }));
                encode_row::<T, M>(machine, row_bytes, group_cols, fine, to);
            } else {
                // This is rare if there is a meter. The meter then has not seen the whole tile.
                meter = None;
                let codes: &mut [u8] = if nibbles { &mut scratch.codes } else { &mut *to };
                for group in 0..groups {
                    let columns = group * group_cols..(group + 1) * group_cols;
                    let grid = Grid { scale: scratch.high[group], zero: scratch.low[group], ..like };
                    let (weights, codes) = (&weights[columns.clone()], &mut codes[columns]);
                    if is_fine {
                        Fine::new(&grid).encode::<T, M>(weights, codes);
                    } else if scheme.symmetric {
                        grid.encode::<T, false, M>(weights, scratch.most[group], codes);
                    } else {
                        grid.encode::<T, true, M>(weights, scratch.most[group], codes);
                    }
                }
                if nibbles {
                    pack_nibbles(&scratch.codes, to);
                } else {
                    to[cols..].fill(0);
                }
            }
            if tensor.is_none() {
                let scales = &mut out.scales[row * row_scales..(row + 1) * row_scales];
                scheme.scale_type.narrow_all(&scratch.high, scales);
                if !scheme.symmetric {
                    scratch.zero_points.extend(scratch.low.iter().map(|&z| z as i8));
                }
            }
        }
        match tensor {
            Some(params) => {
                out.scales.extend_from_slice(&params.scale_bytes(scheme));
                out.zero_points.extend_from_slice(&params.zero_point_bytes(scheme));
            }
            None if scheme.packs_zero_points() => {
                pack_zero_points(bits, &scratch.zero_points, groups, &mut out.zero_points);
            }
            None => out.zero_points.extend(scratch.zero_points.iter().map(|&z| z as u8)),
        }
        Ok(meter.map(Meter::end))
    }
}

/// The codes of a row of 16-bit weights, packed as nibbles.
#[inline(always)]
fn encode_row<T: Float, M: Machine>(
    machine: M,
    weights: &[u8],
    group_cols: usize,
    fine: impl Iterator<Item = Fine>,
    out: &mut [u8],
) {
    let parts = weights.chunks_exact(2 * group_cols).zip(out.chunks_exact_mut(group_cols / 2));
    for ((weights, out), fine) in parts.zip(fine) {
        if T::TYPE == FloatType::Bf16 {
            fine.encode_nibbles::<Bf16, M>(machine, weights, out);
        } else {
            fine.encode_nibbles::<F16, M>(machine, weights, out);
        }
    }
}

impl Quantizer {
    /// The ranges of a row's groups. For symmetric ones: 0 and the greatest |w|, turned if the scale is to be negative.
    #[inline(always)]
    fn find_ranges<T: Float>(
        &self,
        weights: &[T::Raw],
        group_cols: usize,
        low: &mut [f32],
        high: &mut [f32],
    ) {
        let groups = weights.chunks_exact(group_cols);
        if self.turns && self.search.is_none() {
            for (group, end) in groups.zip(high) {
                let (least, greatest) = T::extremes(group);
                // The side that is longer gets the code more: turned, that of the greatest. A number that is none stays.
                *end = if greatest > -least || greatest.is_nan() { -greatest } else { -least };
            }
            low.fill(0.0);
        } else if self.scheme.symmetric {
            for (group, high) in groups.zip(high) {
                *high = T::magnitude(group);
            }
            low.fill(0.0);
        } else {
            for (group, (low, high)) in groups.zip(low.iter_mut().zip(high)) {
                (*low, *high) = T::extremes(group);
            }
        }
    }

    /// Zero points (`scratch.low`) and scales (`scratch.high`) of a row's groups.
    #[inline(always)]
    fn row_params<T: Float>(
        &self,
        row: usize,
        weights: &[T::Raw],
        bytes: &[u8],
        scratch: &mut Scratch,
    ) -> Result<(), BadWeight> {
        let group_cols = self.scheme.group_cols(self.cols);
        let Scratch { low, high, most, .. } = scratch;
        if group_cols == 0 {
            low.fill(0.0);
            high.fill(0.0);
        } else if group_cols == 128 {
            // With a size known at compile time, the loop over a group is flat.
            self.find_ranges::<T>(weights, 128, low, high);
        } else {
            self.find_ranges::<T>(weights, group_cols, low, high);
        }
        let mut finite = true;
        for ((low, high), most) in low.iter().zip(high.iter()).zip(most.iter_mut()) {
            finite &= low.is_finite() & high.is_finite();
            *most = if -low > high.abs() { -low } else { high.abs() };
        }
        if !finite {
            return Err(Self::locate_bad::<T>(row, weights));
        }
        if group_cols > 0 && (self.search.is_some() || self.tails.is_some()) {
            self.isa.run(ShrinkRow { quantizer: self, bytes, scratch });
        }
        let Scratch { low, high, .. } = scratch;
        self.rules.resolve(low, high);
        let mut finite = true;
        for scale in high.iter() {
            finite &= scale.is_finite();
        }
        if !finite && let Some(group) = high.iter().position(|scale| !scale.is_finite()) {
            return Err(largest_of_group::<T>(row, weights, group, group_cols));
        }
        Ok(())
    }
}

/// Shrinks the ranges of a row's groups, from those that cover all weights to those that the observer chooses.
struct ShrinkRow<'a> {
    quantizer: &'a Quantizer,
    bytes: &'a [u8],
    scratch: &'a mut Scratch,
}

impl Job for ShrinkRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let Self { quantizer, bytes, scratch } = self;
        let Scratch { low, high, weights, keys, search, .. } = scratch;
        let source = quantizer.source;
        let weights = on_lines(weights, quantizer.scheme.group_cols(quantizer.cols));
        let groups = bytes.chunks_exact(weights.len() * source.bytes());
        let columns = quantizer.importance.as_ref().map(Importance::columns);
        let size = weights.len();
        for (i, (group, (low, high))) in groups.zip(low.iter_mut().zip(high.iter_mut())).enumerate() {
            let importance = columns.map(|columns| &columns[i * size..(i + 1) * size]);
            source.widen_all(group, weights);
            match (&quantizer.search, &quantizer.tails) {
                (Some(found), _) if quantizer.turns => {
                    (*low, *high) = found.best_of_both(machine, weights, importance, (*low, *high), search)
                }
                (Some(found), _) => {
                    (*low, *high) = found.best_range(machine, weights, importance, (*low, *high), search)
                }
                (None, Some(tails)) => (*low, *high) = tails.range(machine, weights, keys, source),
                (None, None) => {}
            }
        }
    }
}

/// The position of the largest weight of a group whose scale overflows.
#[cold]
fn largest_of_group<T: Float>(row: usize, weights: &[T::Raw], group: usize, group_cols: usize) -> BadWeight {
    let (mut col, mut most) = (group * group_cols, -1.0);
    for (i, &raw) in weights.iter().enumerate().skip(group * group_cols).take(group_cols) {
        let magnitude = T::widen(raw).abs();
        if magnitude > most {
            (col, most) = (i, magnitude);
        }
    }
    BadWeight { row, col, what: BadValue::ScaleOverflow }
}
