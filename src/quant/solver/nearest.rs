//! Rounding to nearest: each weight independently, within the range that an observer chose.

use std::ops::Range;

use super::Solver;
use crate::quant::{
    BadValue, BadWeight, Distortion, Importance, Quantized, QuantizedView, Quantizer, Scheme, Scratch,
    Survey, SurveyPart, TensorParams,
};

impl Solver for Quantizer {
    fn scheme(&self) -> &Scheme {
        self.scheme()
    }

    fn weighted(&self, importance: Importance) -> Box<dyn Solver> {
        Box::new(self.clone().weighted(importance))
    }

    fn survey_passes(&self) -> usize {
        self.survey_passes()
    }

    fn begin_survey(&self) -> Survey {
        self.begin_survey()
    }

    fn survey(&self, so_far: &Survey, tile: &[u8], rows: usize) -> Result<SurveyPart, BadWeight> {
        self.survey(so_far, tile, rows)
    }

    fn end_pass(&self, survey: &mut Survey) {
        self.end_pass(survey);
    }

    fn is_settled(&self, survey: &Survey) -> bool {
        self.is_settled(survey)
    }

    fn tensor_params(&self, survey: &Survey) -> Result<TensorParams, BadValue> {
        self.tensor_params(survey)
    }

    fn solve(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: Range<usize>,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<(), BadWeight> {
        self.quantize(tensor, tile, rows.len(), out, scratch)
    }

    fn solve_and_measure(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: Range<usize>,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Distortion, BadWeight> {
        self.quantize_and_measure(tensor, tile, rows.len(), out, scratch)
    }

    fn measure(
        &self,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion {
        self.measure(tile, quantized, rows, scratch)
    }

    fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, rows: usize) -> f64 {
        self.faint_signal(tile, quantized, rows)
    }

    fn dequantize(
        &self,
        quantized: QuantizedView<'_>,
        rows: usize,
        out: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) {
        self.dequantize(quantized, rows, out, scratch);
    }
}
