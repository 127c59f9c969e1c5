//! `convert`: weights that are stored as integers already get the output's format, with their codes and scales unchanged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::pattern::Pattern;

/// The treatment of codes that the output's format cannot hold as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Inexact {
    /// Stop before any work, naming them and why.
    #[default]
    Error,
    /// Leave them to the quantize stages; what none of these claims is written as the floating-point numbers that it means.
    Leave,
}

/// What MXFP4 becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mxfp4Target {
    /// MXFP4 in the layout of compressed-tensors, whatever its naming was.
    #[default]
    Mxfp4,
    /// FP8 (E4M3) in blocks of 128 × 128, for engines and machines without MXFP4, in twice the bytes. It holds the same numbers if the
    /// exponents of each block lie within 14 of each other; what does not is told.
    Fp8Block,
}

impl Mxfp4Target {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Parameters of `convert`. No number changes: GPTQ, AWQ, MXFP4 and FP8 are put into compressed-tensors, whose own codes stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Convert {
    /// The modules to claim, among those whose weights are stored as codes: patterns over modules, or layer types. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Pattern>,
    /// The treatment of codes that the output's format cannot hold as they are.
    #[serde(default)]
    pub inexact: Inexact,
    /// What MXFP4 becomes. Default: `mxfp4`.
    #[serde(default, skip_serializing_if = "Mxfp4Target::is_default")]
    pub mxfp4: Mxfp4Target,
}
