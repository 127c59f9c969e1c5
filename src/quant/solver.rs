//! Solvers: the rules that choose the codes of a matrix.
//!
//! A solver is one file in this folder. It turns tiles of source weights into the bytes of a stored matrix
//! ([`Quantized`]), and measures the dequantized weights. Solvers are made once per kind of matrix and shared between
//! threads.

use std::fmt;
use std::ops::Range;

use super::{
    BadValue, BadWeight, Distortion, Importance, Quantized, QuantizedView, Scheme, Scratch, Survey,
    SurveyPart, TensorParams,
};

mod chosen;
mod compare;
mod float4;
mod float8;
mod gptq;
mod nearest;

pub use chosen::Chosen;
pub use float4::Float4;
pub use float8::Float8;
pub use gptq::{BadMoments, Correction, Gptq, Guided, Metric, OutputMetric, Rounded};

/// Chooses the codes of matrices of one scheme, tile by tile. A tile is a number of whole rows, little-endian.
pub trait Solver: fmt::Debug + Send + Sync {
    /// The scheme of the matrices.
    fn scheme(&self) -> &Scheme;

    /// The same for columns that count by their importance.
    fn weighted(&self, importance: Importance) -> Box<dyn Solver>;

    /// The number of passes over all tiles of a matrix before the first can be solved: 0 unless one scale holds for
    /// all of them.
    fn survey_passes(&self) -> usize {
        0
    }

    /// A survey that has seen nothing.
    fn begin_survey(&self) -> Survey {
        Survey::default()
    }

    /// Looks at a tile of `rows` rows for the pass that `so_far` is in.
    ///
    /// # Errors
    /// The first weight that is not finite.
    fn survey(&self, _so_far: &Survey, _tile: &[u8], _rows: usize) -> Result<SurveyPart, BadWeight> {
        Ok(SurveyPart::default())
    }

    /// Ends a pass in which every tile was merged.
    fn end_pass(&self, _survey: &mut Survey) {}

    /// Whether the passes that are left would change nothing.
    fn is_settled(&self, _survey: &Survey) -> bool {
        true
    }

    /// Scale and zero point of the matrix, after all passes or when it is settled. Without passes it says nothing.
    ///
    /// # Errors
    /// [`BadValue::ScaleOverflow`] if the scale is not finite.
    fn tensor_params(&self, _survey: &Survey) -> Result<TensorParams, BadValue> {
        Ok(TensorParams { scale: 1.0, zero_point: 0 })
    }

    /// Replaces the content of `out` with the bytes of a tile, which has these rows of its matrix. `tensor` is the
    /// result of the survey, if there is one.
    ///
    /// # Errors
    /// The first weight that cannot be quantized; the content of `out` is then of no use.
    fn solve(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: Range<usize>,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<(), BadWeight>;

    /// [`Solver::solve`] and then [`Solver::measure`], in one pass if possible.
    ///
    /// # Errors
    /// As [`Solver::solve`].
    fn solve_and_measure(
        &self,
        tensor: Option<&TensorParams>,
        tile: &[u8],
        rows: Range<usize>,
        out: &mut Quantized,
        scratch: &mut Scratch,
    ) -> Result<Distortion, BadWeight> {
        self.solve(tensor, tile, rows.clone(), out, scratch)?;
        Ok(self.measure(tile, out.view(), rows.len(), scratch))
    }

    /// Compares a tile of `rows` rows with the weights that its quantized bytes represent.
    fn measure(
        &self,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion;

    /// Σw² of the weights of a tile whose scale is too small for the type that engines hold it in.
    fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, rows: usize) -> f64;

    /// Writes the weights of `rows` rows as engines see them, in the scheme's scale type, in place of what `out` held.
    fn dequantize(&self, quantized: QuantizedView<'_>, rows: usize, out: &mut Vec<u8>, scratch: &mut Scratch);
}
