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
    /// Below this SQNR, in dB, a tensor or the model is critical; 0 switches it off. Default: 10, and `gap_error` of 6 for
    /// tensors whose scheme reaches less than 12 dB on Gaussian weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub sqnr_error_threshold: Option<f64>,
    /// Below this SQNR, in dB, there is a warning; 0 switches it off. Default: 20, and `gap_warning` of 3 for tensors whose
    /// scheme reaches less than 22 dB on Gaussian weights, as int4 mostly does (19.1 dB if symmetric, in groups of 128).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub sqnr_warning_threshold: Option<f64>,
    /// The SQNR that the thresholds are compared with.
    #[serde(default)]
    pub scope: Scope,
    /// Whose SQNR the thresholds are held against.
    #[serde(default)]
    pub sqnr: SqnrOf,
    /// Warn if a tensor is more than this many dB below the SQNR that its scheme reaches on Gaussian weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub gap_warning: Option<f64>,
    /// Critical if a tensor is more than this many dB below the SQNR that its scheme reaches on Gaussian weights.
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

/// A default threshold holds only if the scheme reaches this many dB more on Gaussian weights: real layers have heavier tails.
const SPARE_DB: f64 = 2.0;

/// The bound of one severity: a threshold, a gap, and the values of these if they are not written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// The parameter that sets the threshold.
    pub threshold_key: &'static str,
    /// The parameter that sets the gap.
    pub gap_key: &'static str,
    threshold: Option<f64>,
    gap: Option<f64>,
    default_threshold: f64,
    default_gap: f64,
}

impl Bound {
    /// The threshold as it is written.
    #[must_use]
    pub fn written(&self) -> Option<f64> {
        self.threshold
    }

    /// The threshold, written or not.
    #[must_use]
    pub fn or_default(&self) -> f64 {
        self.threshold.unwrap_or(self.default_threshold)
    }

    /// The SQNR asked of weights whose scheme reaches `reach` dB on Gaussian ones: a default is asked only of schemes that can
    /// meet it. None if a gap is asked instead.
    #[must_use]
    pub fn threshold_for(&self, reach: Option<f64>) -> Option<f64> {
        let is_met = reach.is_none_or(|reach| reach >= self.default_threshold + SPARE_DB);
        self.threshold.or(is_met.then_some(self.default_threshold))
    }

    /// How many dB such weights may be below `reach`. None if that is not asked.
    #[must_use]
    pub fn gap_for(&self, reach: Option<f64>) -> Option<f64> {
        self.gap.or(self.threshold_for(reach).is_none().then_some(self.default_gap))
    }

    /// Whether the gap is a default.
    #[must_use]
    pub fn is_default_gap(&self) -> bool {
        self.gap.is_none()
    }
}

impl CheckWarnings {
    /// What is critical.
    #[must_use]
    pub fn error(&self) -> Bound {
        Bound {
            threshold_key: "sqnr_error_threshold",
            gap_key: "gap_error",
            threshold: self.sqnr_error_threshold,
            gap: self.gap_error,
            default_threshold: 10.0,
            default_gap: 6.0,
        }
    }

    /// What is warned of.
    #[must_use]
    pub fn warning(&self) -> Bound {
        Bound {
            threshold_key: "sqnr_warning_threshold",
            gap_key: "gap_warning",
            threshold: self.sqnr_warning_threshold,
            gap: self.gap_warning,
            default_threshold: 20.0,
            default_gap: 3.0,
        }
    }
}

fn default_true() -> bool {
    true
}

fn default_min_calibration_samples() -> u64 {
    50
}
