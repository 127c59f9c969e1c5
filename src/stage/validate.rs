//! `validate`: measurement of every quantized tensor and checks of the written files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OnFailure;

/// One check of `validate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Every weight and every scale is a finite number, and no scale is too small for its type to hold.
    Finite,
    /// No dequantized weight is larger in magnitude than `max_abs_weight`.
    WeightRange,
    /// The written data is read again and equals the intended data.
    RoundTrip,
    /// Every file has the size that was planned.
    Size,
}

/// Parameters of `validate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// The checks to make.
    #[serde(default = "default_checks")]
    pub checks: Vec<Check>,
    /// The bound of `weight-range`.
    #[serde(default = "default_max_abs_weight")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_abs_weight: f64,
    /// The reaction to a failed check. Default: the recipe's `on_failure`, or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
}

fn default_checks() -> Vec<Check> {
    vec![Check::Finite, Check::WeightRange, Check::RoundTrip, Check::Size]
}

fn default_max_abs_weight() -> f64 {
    100.0
}
