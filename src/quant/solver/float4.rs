//! Rounding to floats of four bits (E2M1): each weight to the nearest one, with a scale for each group of columns.
//!
//! MXFP4: the scale of 32 columns is a power of two, that of max|w|, rounded up from 1.75 · 2^E on, less 2, as in
//! compressed-tensors; so the greatest quotients are cut off at 6. llm-compressor makes zeros of groups whose greatest weight
//! is from 1.75 · 2^127 on, or subnormal in F16.
//!
//! NVFP4: the scale of 16 columns is max|w| / 6 in E4M3, after it was multiplied by one number for all weights, which is
//! 2688 (448 · 6) over the greatest of them, and is shared by modules that engines fuse.
//!
//! A code is the E2M1 number nearest to w / scale, ties to the even code.

use std::ops::Range;

use super::Solver;
use super::compare::Blocks;
use crate::quant::small_floats::{E2M1, E4M3, E4M3_MAX, e8m0, nearest_e2m1, nearest_e4m3};
use crate::quant::{
    BadValue, BadWeight, Distortion, FloatType, Granularity, Importance, Quantized, QuantizedView, Scheme,
    Scratch, Storage, Survey, SurveyPart, TensorParams,
};

/// The greatest exponent that is stored: with it 6 is still a number.
const GREATEST: u32 = 252;

/// The greatest E2M1 number.
const E2M1_MAX: f32 = 6.0;

/// The scale of E4M3 that stands in for zero.
const LEAST_SCALE: f32 = 0.125;

/// Stores matrices of one width as E2M1 with exponents.
#[derive(Debug, Clone)]
pub struct Float4 {
    scheme: Scheme,
    source: FloatType,
    columns: usize,
    importance: Option<Importance>,
}

impl Float4 {
    /// For matrices of `columns` columns whose weights are stored as `source`.
    ///
    /// # Panics
    /// If groups have another size than the format's, or do not divide the columns: a plan does not ask for it.
    #[must_use]
    pub fn new(scheme: Scheme, source: FloatType, columns: usize) -> Self {
        let size = if scheme.has_global_scale() { 16 } else { 32 };
        let is_known = scheme.granularity == Granularity::Group(size) && scheme.divides(columns);
        assert!(is_known, "MXFP4 has groups of 32 columns, NVFP4 of 16");
        Self { scheme, source, columns, importance: None }
    }

    /// Columns that share a scale.
    fn group(&self) -> usize {
        self.scheme.group_cols(self.columns)
    }

    /// The scale of a group: as it is stored, and by which codes are multiplied. `most` is the greatest magnitude.
    fn scale(&self, most: f32, of_all: f32) -> (u8, f32) {
        if self.scheme.storage == Storage::Mxfp4 {
            let stored = exponent(most.to_bits());
            return (stored, e8m0(stored));
        }
        let scale = (of_all * self.source.round(most / E2M1_MAX)).min(E4M3_MAX);
        let stored = match nearest_e4m3(scale) {
            0 => nearest_e4m3(LEAST_SCALE),
            stored => stored,
        };
        (stored, E4M3[usize::from(stored)] / of_all)
    }

    /// The number by which scales are multiplied, of weights whose greatest magnitude is this.
    fn global_scale(&self, most: f32) -> f32 {
        const MOST: f32 = E4M3_MAX * E2M1_MAX;
        if most == 0.0 {
            return 1.0;
        }
        // As torch divides a number by a tensor: multiplied by the reciprocal, each rounded to the type of the weights.
        let scale = self.source.round(MOST * self.source.round(1.0 / most));
        let finer = || (MOST / most).min(2f32.powi(126));
        if scale.is_finite() { scale } else { finer() }
    }

    /// The weights that codes and scales mean.
    fn meant(&self, quantized: QuantizedView<'_>) -> Vec<f32> {
        let of_all = FloatType::F32.widen(quantized.global_scale).first().copied().unwrap_or(1.0);
        let mut meant = Vec::with_capacity(quantized.codes.len() * 2);
        for (codes, &stored) in quantized.codes.chunks(self.group() / 2).zip(quantized.scales) {
            let scale = match self.scheme.storage {
                Storage::Mxfp4 => e8m0(stored),
                _ => E4M3[usize::from(stored)] / of_all,
            };
            let pair =
                |code: &u8| [E2M1[usize::from(code & 15)] * scale, E2M1[usize::from(code >> 4)] * scale];
            meant.extend(codes.iter().flat_map(pair));
        }
        self.scheme.scale_type.round_all(&mut meant);
        meant
    }
}

/// The greatest magnitude, as bits, whose order is that of the magnitudes; infinite or NaN if a weight is.
fn most(weights: &[f32]) -> f32 {
    f32::from_bits(weights.iter().fold(0, |most: u32, weight| most.max(weight.abs().to_bits())))
}

/// The exponent to store for a greatest magnitude, by its bits.
fn exponent(most: u32) -> u8 {
    ((most + (1 << 21)) >> 23).saturating_sub(2).min(GREATEST) as u8
}

impl Solver for Float4 {
    fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    fn weighted(&self, importance: Importance) -> Box<dyn Solver> {
        Box::new(Self { importance: Some(importance), ..self.clone() })
    }

    fn survey_passes(&self) -> usize {
        usize::from(self.scheme.has_global_scale())
    }

    fn survey(&self, _: &Survey, tile: &[u8], _: usize) -> Result<SurveyPart, BadWeight> {
        let weights = self.source.widen(tile);
        match most(&weights) {
            most if most.is_finite() => Ok(SurveyPart::of_magnitude(most)),
            _ => Err(first_bad(&weights, 0, self.columns)),
        }
    }

    fn tensor_params(&self, survey: &Survey) -> Result<TensorParams, BadValue> {
        Ok(TensorParams { scale: self.global_scale(survey.greatest()), zero_point: 0 })
    }

    fn solve(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        _: Range<usize>,
        out: &mut Quantized,
        _: &mut Scratch,
    ) -> Result<(), BadWeight> {
        let weights = self.source.widen(tile);
        let Quantized { codes, scales, zero_points, global_scale } = out;
        [&mut *codes, scales, zero_points, global_scale].into_iter().for_each(Vec::clear);
        let of_all = tensor.map_or(1.0, |params| params.scale);
        if self.scheme.has_global_scale() {
            global_scale.extend(of_all.to_le_bytes());
        }
        codes.reserve(weights.len() / 2);
        for (number, group) in weights.chunks(self.group().max(1)).enumerate() {
            let most = most(group);
            if !most.is_finite() {
                return Err(first_bad(&weights, number * self.group(), self.columns));
            }
            let (stored, scale) = self.scale(most, of_all);
            scales.push(stored);
            let pairs = group.as_chunks::<2>().0.iter();
            // Quotients by powers of two are exact.
            codes.extend(pairs.map(|pair| {
                let [low, high] = pair.map(|weight| nearest_e2m1(weight / scale));
                low | high << 4
            }));
        }
        Ok(())
    }

    fn measure(&self, tile: &[u8], quantized: QuantizedView<'_>, _: usize, _: &mut Scratch) -> Distortion {
        let weights = self.source.widen(tile);
        let blocks = Blocks { columns: self.columns, block: [1, self.group()] };
        blocks.distortion(&weights, &self.meant(quantized), self.importance.as_ref())
    }

    fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, _: usize) -> f64 {
        let mut lost = 0.0;
        let weights = self.source.widen(tile);
        let size = self.group().max(2);
        for (group, codes) in weights.chunks(size).zip(quantized.codes.chunks(size / 2)) {
            if codes.iter().all(|code| code & 0x77 == 0) {
                lost += group.iter().map(|weight| f64::from(*weight) * f64::from(*weight)).sum::<f64>();
            }
        }
        lost
    }

    fn dequantize(&self, quantized: QuantizedView<'_>, _: usize, out: &mut Vec<u8>, _: &mut Scratch) {
        out.clear();
        self.scheme.scale_type.narrow(&self.meant(quantized), out);
    }
}

/// The first weight from `start` on that is not finite.
fn first_bad(weights: &[f32], start: usize, columns: usize) -> BadWeight {
    let at = (start..weights.len()).find(|at| !weights[*at].is_finite()).unwrap_or_default();
    let is_nan = weights.get(at).is_some_and(|weight| weight.is_nan());
    let what = if is_nan { BadValue::NotANumber } else { BadValue::Infinite };
    BadWeight { row: at / columns.max(1), col: at % columns.max(1), what }
}

#[cfg(test)]
mod tests;
