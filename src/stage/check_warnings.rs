//! `check-warnings`: comparison of the measured SQNR with thresholds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OnFailure;

/// The SQNR that the thresholds are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The energy-weighted SQNR of the model.
    Model,
    /// The SQNR of each quantized tensor.
    Layer,
    /// Both.
    #[default]
    Both,
}

/// Whose SQNR the thresholds are held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SqnrOf {
    /// That of the weights: every weight counts the same.
    #[default]
    Weights,
    /// The SQNR of the layers' outputs, as far as activation statistics tell: each column counts by its mean squared
    /// activation. Needs `calibration`.
    Outputs,
}

/// Which severity `on_failure` acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailOn {
    /// Only what is below an error threshold.
    #[default]
    Critical,
    /// Any warning of this stage.
    Warning,
}

/// Parameters of `check-warnings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckWarnings {
    /// Below this SQNR, in dB, a tensor or the model is critical.
    #[serde(default = "default_sqnr_error_threshold")]
    pub sqnr_error_threshold: f64,
    /// Below this SQNR, in dB, there is a warning. Symmetric int4 in groups of 128 reaches 19.1 dB on Gaussian weights, so set
    /// what the scheme can meet.
    #[serde(default = "default_sqnr_warning_threshold")]
    pub sqnr_warning_threshold: f64,
    /// The SQNR that the thresholds are compared with.
    #[serde(default)]
    pub scope: Scope,
    /// Whose SQNR the thresholds are held against.
    #[serde(default)]
    pub sqnr: SqnrOf,
    /// Warn if a tensor is this many dB below the SQNR that its scheme reaches on Gaussian weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub gap_warning: Option<f64>,
    /// Critical if a tensor is this many dB below the SQNR that its scheme reaches on Gaussian weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub gap_error: Option<f64>,
    /// Warn if an int4 run skipped nothing.
    #[serde(default = "default_true")]
    pub all_layers_quantized_warning: bool,
    /// Warn if calibration used fewer samples than `min_calibration_samples`.
    #[serde(default = "default_true")]
    pub low_calibration_warning: bool,
    /// The number of samples below which calibration is called low.
    #[serde(default = "default_min_calibration_samples")]
    pub min_calibration_samples: u64,
    /// Which severity `on_failure` acts on.
    #[serde(default)]
    pub fail_on: FailOn,
    /// The reaction to a failure of the gate. Default: the recipe's `on_failure`, or `warn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
}

fn default_sqnr_error_threshold() -> f64 {
    10.0
}

fn default_sqnr_warning_threshold() -> f64 {
    20.0
}

fn default_true() -> bool {
    true
}

fn default_min_calibration_samples() -> u64 {
    50
}
