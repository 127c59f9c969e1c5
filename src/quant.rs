//! Quantization numerics: weights to integer codes, scales and zero points, back again, and the resulting error.
//!
//! Pure functions on slices of bytes, exactly as they lie in the files. This module knows no file, no recipe and no
//! thread of its own, and names no other module of the crate. The unit of work is a *tile*: some whole rows of one matrix
//! `[out, in]`. A [`Quantizer`] is made once per tensor and turns tiles of source weights into the bytes of the
//! output tensors ([`Quantized`]); [`Quantizer::measure`] compares the two ([`Distortion`]). One scale for a whole
//! tensor needs a look at all tiles first, which is a [`Survey`].
//!
//! The arithmetic is that of compressed-tensors 0.19 (scales and zero points bit for bit). The quotient of weight and
//! scale is kept in f32, as in that library's GPU kernel but not in its CPU path. [`mod@reference`] is a slow and
//! plain implementation.
//!
//! Results are the same bytes on every instruction set: kernels are one source, compiled for each ([`Isa`]), and sums
//! have a fixed order of 16 virtual lanes.
//! Rounding with second moments ([`Gptq`]) is the exception: it multiplies matrices by a library, whose sums depend on the
//! instruction set.

mod bad_weight;
mod distortion;
mod encode;
mod expected;
mod faint;
mod float_type;
mod importance;
mod kernel;
mod measure;
mod names;
mod observer;
mod pack;
mod params;
mod percentile;
pub(crate) mod powf;
pub(crate) mod product;
mod quantizer;
pub mod reference;
mod relabelled;
mod scheme;
mod search;
pub(crate) mod simd;
pub(crate) mod small_floats;
mod solver;
mod tensor_params;
pub(crate) mod tensor_range;
#[cfg(test)]
pub(crate) mod test_weights;

#[cfg(test)]
mod equality_tests;

pub use crate::quant::simd::Isa;
pub use crate::quant::tensor_range::{Survey, SurveyPart};
pub use bad_weight::{BadValue, BadWeight};
pub use distortion::{Distortion, WorstGroup};
pub use float_type::FloatType;
pub use importance::{BadStatistics, Importance};
pub use observer::{Mse, Observer};
pub use quantizer::{Quantized, QuantizedView, Quantizer, Role, Scratch};
pub use relabelled::Integers;
pub(crate) use relabelled::{Span, is_zero};
pub use scheme::{Bits, CodeType, Granularity, Scheme, Storage};
pub use solver::{
    BadMoments, Chosen, Correction, Float4, Float8, Gptq, Guided, Metric, OutputMetric, Rounded, Solver,
};
pub use tensor_params::TensorParams;
