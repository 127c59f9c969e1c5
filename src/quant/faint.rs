//! Scales too small for their type: the values of the weights under them are lost.
//!
//! A scale that rounds to zero is replaced by epsilon (see [`mod@super::params`]), which is far greater than the
//! weights: all of their codes are zero. A scale just above the least value of its type is changed by rounding by a
//! good part of itself. Neither case is revealed by a number that is not finite. In a matrix of nothing else the SQNR
//! is 0 dB.

use super::quantizer::{QuantizedView, Quantizer};
use super::{FloatType, Granularity, Storage};

/// Scales below this many of the least values of their type are faint: rounding moves them by up to an eighth.
const STEPS: f32 = 4.0;

impl FloatType {
    /// Below this, values of this type are so far apart that a scale means little.
    pub(super) fn faint_below(self) -> f32 {
        STEPS * self.least_normal() * self.epsilon()
    }
}

impl Quantizer {
    /// Σw² of the weights of a tile whose scale is too small for the type that engines hold it in. Rows of zeros add
    /// nothing: any scale is right for them.
    ///
    /// # Panics
    /// If `tile` does not have the length of `rows` rows.
    #[must_use]
    pub fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, rows: usize) -> f64 {
        assert_eq!(tile.len(), rows * self.row_bytes(), "a tile is whole rows");
        let scales = self.scheme.scale_type.widen(quantized.scales);
        // Engines hold the scales of packed codes in the model's type.
        let held = if self.scheme.storage == Storage::Packed { self.source } else { self.scheme.scale_type };
        let below = self.scheme.scale_type.faint_below().max(held.faint_below());
        let epsilon = self.scheme.scale_type.epsilon();
        let group_bytes = match self.scheme.granularity {
            Granularity::Tensor => tile.len(),
            Granularity::Group(_) | Granularity::Channel | Granularity::Block(_) => {
                self.scheme.group_cols(self.cols) * self.source.bytes()
            }
        };
        if group_bytes == 0 {
            return 0.0;
        }
        let mut lost = 0.0;
        for (scale, group) in scales.into_iter().zip(tile.chunks(group_bytes)) {
            let scale = scale.abs();
            if scale >= below && scale != epsilon {
                continue;
            }
            let weights = self.source.widen(group);
            let most = weights.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
            // Epsilon may be the right scale as well: some code is not zero then.
            if scale < below || most < epsilon / 2.0 {
                lost += weights.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum::<f64>();
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, Isa, Observer, Quantized, Scheme, Scratch};

    /// The share of the signal of two rows that is lost.
    fn lost(source: FloatType, scheme: Scheme, rows: [&[f32]; 2]) -> f64 {
        let cols = rows[0].len();
        let mut tile = Vec::new();
        rows.iter().for_each(|row| source.narrow(row, &mut tile));
        let quantizer = Quantizer::new(scheme, Observer::Minmax, source, cols, Isa::detect());
        let (mut out, mut scratch) = (Quantized::default(), Scratch::default());
        let params = (scheme.granularity == Granularity::Tensor).then(|| {
            let mut survey = quantizer.begin_survey();
            let part = quantizer.survey(&survey, &tile, 2).expect("finite weights");
            survey.merge(part);
            quantizer.end_pass(&mut survey);
            quantizer.tensor_params(&survey).expect("no overflow")
        });
        let measured = quantizer
            .quantize_and_measure(params.as_ref(), &tile, 2, &mut out, &mut scratch)
            .expect("finite weights");
        let lost = quantizer.faint_signal(&tile, out.view(), 2);
        if lost == 0.0 { 0.0 } else { lost / measured.signal }
    }

    fn scheme(bits: Bits, symmetric: bool, granularity: Granularity, scale_type: FloatType) -> Scheme {
        Scheme { bits, symmetric, granularity, scale_type, storage: Storage::Packed }
    }

    #[test]
    fn scales_that_round_to_zero_lose_all() {
        let tiny = [1e-7, -1e-7, 6e-8, 0.0];
        let usual = [0.1, -0.2, 0.05, 0.0];
        for granularity in [Granularity::Group(2), Granularity::Channel] {
            for (bits, symmetric) in [(Bits::Four, true), (Bits::Four, false), (Bits::Eight, true)] {
                let f16 = scheme(bits, symmetric, granularity, FloatType::F16);
                assert_eq!(lost(FloatType::F16, f16, [&tiny, &tiny]), 1.0);
                assert_eq!(lost(FloatType::F16, f16, [&usual, &usual]), 0.0);
                // Beside usual rows nothing of note is lost.
                assert!(lost(FloatType::F16, f16, [&tiny, &usual]) < 1e-9);
                let bf16 = scheme(bits, symmetric, granularity, FloatType::Bf16);
                assert_eq!(lost(FloatType::Bf16, bf16, [&tiny, &tiny]), 0.0);
            }
        }
        let whole = scheme(Bits::Eight, true, Granularity::Tensor, FloatType::F16);
        assert_eq!(lost(FloatType::F16, whole, [&tiny, &tiny]), 1.0);
        assert_eq!(lost(FloatType::F16, whole, [&tiny, &usual]), 0.0);
    }

    #[test]
    fn zeros_and_scales_that_are_epsilon_lose_nothing() {
        let f16 = scheme(Bits::Eight, true, Granularity::Channel, FloatType::F16);
        assert_eq!(lost(FloatType::F16, f16, [&[0.0; 4], &[0.0; 4]]), 0.0);
        // The scale of these is 2^-10 itself.
        let most = 127.5 / 1024.0;
        assert_eq!(lost(FloatType::F16, f16, [&[most, 0.01, -0.02, 0.0], &[most, 0.0, 0.0, 0.0]]), 0.0);
    }

    #[test]
    fn subnormal_scales_are_faint_near_their_end_only() {
        let f16 = scheme(Bits::Eight, true, Granularity::Channel, FloatType::F16);
        let step = f32::powi(2.0, -24);
        let row = |steps: f32| [127.5 * steps * step, 0.0, 0.0, 0.0];
        assert_eq!(lost(FloatType::F16, f16, [&row(3.0), &row(3.0)]), 1.0);
        assert_eq!(lost(FloatType::F16, f16, [&row(64.0), &row(64.0)]), 0.0);
    }

    #[test]
    fn packed_scales_are_held_in_the_models_type() {
        // As F32 the scales hold, but engines read them as F16.
        let tiny = [1e-7, -1e-7, 6e-8, 0.0];
        let f32 = scheme(Bits::Four, true, Granularity::Channel, FloatType::F32);
        assert_eq!(lost(FloatType::F16, f32, [&tiny, &tiny]), 1.0);
        let plain = Scheme { bits: Bits::Eight, storage: Storage::Plain, ..f32 };
        assert_eq!(lost(FloatType::F16, plain, [&tiny, &tiny]), 0.0);
        assert_eq!(lost(FloatType::F32, f32, [&tiny, &tiny]), 0.0);
    }
}
