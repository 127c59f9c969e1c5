//! Stages of a recipe: their parameters, defaults and meaning. One file per stage.
//!
//! These types are deserialized, the JSON Schema is generated from them, and editors show them. The doc comments of
//! their fields are the reference. The effect of a stage on a model is decided in the plan ([`crate::plan`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{IdVec, StageId};

pub(crate) mod calibrate;
pub(crate) mod calibration;
pub(crate) mod check_warnings;
pub mod convert;
pub(crate) mod evaluate;
pub mod export;
pub(crate) mod load;
mod quantize;
pub(crate) mod quantize_fp8;
pub(crate) mod quantize_int4;
pub(crate) mod quantize_int8;
pub(crate) mod quantize_mxfp4;
pub(crate) mod quantize_nvfp4;
pub(crate) mod resolve_skips;
mod run_text;
pub(crate) mod validate;

pub use calibrate::Calibrate;
pub use calibration::{Calibration, OnMissing};
pub use check_warnings::CheckWarnings;
pub use convert::Convert;
pub use evaluate::Evaluate;
pub use export::Export;
pub use load::Load;
pub use quantize::{
    ActivationScheme, GranularityChoice, Indivisible, IndivisibleRows, ObserverChoice, Quantize,
    RoundingChoice, ScaleDtype, ScalesChoice, SiblingPolicy,
};
pub use quantize_fp8::QuantizeFp8;
pub use quantize_int4::QuantizeInt4;
pub use quantize_int8::QuantizeInt8;
pub use quantize_mxfp4::QuantizeMxfp4;
pub use quantize_nvfp4::QuantizeNvfp4;
pub use resolve_skips::ResolveSkips;
pub use run_text::RunText;
pub use validate::Validate;

/// The action to take when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Exit with status 1 and publish nothing.
    Error,
    /// Say it and go on.
    Warn,
    /// Only put it in the report.
    Ignore,
}

/// The action to take when a pattern matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnmatched {
    /// Stop before any work, naming the nearest names.
    #[default]
    Error,
    /// Say it and go on.
    Warn,
    /// Go on.
    Ignore,
}

/// One step of a recipe. Stages are declared in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// Names the model directory and reads its headers. First, and once.
    Load(Load),
    /// Says which modules the later quantize stages skip.
    ResolveSkips(ResolveSkips),
    /// Runs the model on text and measures its activations, which weigh the columns for the quantize stages after it.
    Calibrate(Calibrate),
    /// Re-labels weights that are stored as integers: their codes and scales get the output's format, and stay the same numbers.
    Convert(Convert),
    /// Turns the weights of the targeted modules into 4-bit integers.
    QuantizeInt4(QuantizeInt4),
    /// Turns the weights of the targeted modules into 8-bit integers.
    QuantizeInt8(QuantizeInt8),
    /// Turns the weights of the targeted modules into 8-bit floats (FP8, E4M3).
    QuantizeFp8(QuantizeFp8),
    /// Turns the weights of the targeted modules into 4-bit floats (E2M1) with an exponent per 32 columns (MXFP4).
    QuantizeMxfp4(QuantizeMxfp4),
    /// Turns the weights of the targeted modules into 4-bit floats (E2M1) with a scale in FP8 per 16 columns (NVFP4).
    QuantizeNvfp4(QuantizeNvfp4),
    /// Measures every quantized tensor and checks what was written.
    Validate(Validate),
    /// Judges the measured quality against thresholds; the quality gate of a CI job.
    CheckWarnings(CheckWarnings),
    /// Runs the quantized model beside the original on held-out text, and judges how far their answers are apart.
    Evaluate(Evaluate),
    /// Writes the quantized model as a directory.
    Export(Export),
}

impl Stage {
    /// The word after `stage:`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Stage::Load(_) => "load",
            Stage::ResolveSkips(_) => "resolve-skips",
            Stage::Calibrate(_) => "calibrate",
            Stage::Convert(_) => "convert",
            Stage::QuantizeInt4(_) => "quantize-int4",
            Stage::QuantizeInt8(_) => "quantize-int8",
            Stage::QuantizeFp8(_) => "quantize-fp8",
            Stage::QuantizeMxfp4(_) => "quantize-mxfp4",
            Stage::QuantizeNvfp4(_) => "quantize-nvfp4",
            Stage::Validate(_) => "validate",
            Stage::CheckWarnings(_) => "check-warnings",
            Stage::Evaluate(_) => "evaluate",
            Stage::Export(_) => "export",
        }
    }

    /// The activation statistics that the stage names.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        match self {
            Stage::Load(stage) => stage.calibration.as_ref(),
            Stage::QuantizeInt4(stage) => stage.calibration.as_ref(),
            Stage::QuantizeInt8(stage) => stage.calibration.as_ref(),
            _ => None,
        }
    }

    /// As [`Stage::calibration`], to be changed.
    pub fn calibration_mut(&mut self) -> Option<&mut Calibration> {
        match self {
            Stage::Load(stage) => stage.calibration.as_mut(),
            Stage::QuantizeInt4(stage) => stage.calibration.as_mut(),
            Stage::QuantizeInt8(stage) => stage.calibration.as_mut(),
            _ => None,
        }
    }

    /// The stage's parameters if it is a quantize stage.
    #[must_use]
    pub fn quantize(&self) -> Option<&dyn Quantize> {
        match self {
            Stage::QuantizeInt4(stage) => Some(stage),
            Stage::QuantizeInt8(stage) => Some(stage),
            Stage::QuantizeFp8(stage) => Some(stage),
            Stage::QuantizeMxfp4(stage) => Some(stage),
            Stage::QuantizeNvfp4(stage) => Some(stage),
            _ => None,
        }
    }
}

/// The stage whose activation statistics a quantize stage takes: itself if it names a file, or else the last `calibrate` before it,
/// or else `load` if that names a file.
#[must_use]
pub fn statistics_of(stages: &IdVec<StageId, Stage>, quantize: StageId) -> Option<StageId> {
    if stages[quantize].calibration().is_some() {
        return Some(quantize);
    }
    let mut before = stages.numbered().take_while(|(index, _)| *index < quantize);
    let calibrate = before.by_ref().filter(|(_, stage)| matches!(stage, Stage::Calibrate(_))).last();
    let load = || {
        let mut all = stages.numbered();
        all.find(|(_, stage)| matches!(stage, Stage::Load(_)) && stage.calibration().is_some())
    };
    calibrate.or_else(load).map(|(index, _)| index)
}
