//! `quantize-fp8`: quantization of weights to 8-bit floats (E4M3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantize::default_targets;
use super::{
    ActivationScheme, Indivisible, ObserverChoice, Quantize, RoundingChoice, ScaleDtype, SiblingPolicy,
};
use crate::layer::pattern::Pattern;
use crate::quant::{Granularity, Storage};

/// Rows and columns of a block.
const BLOCK: usize = 128;

/// Which weights share a scale in FP8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fp8Granularity {
    /// A row: one output channel.
    #[default]
    Channel,
    /// 128 rows by 128 columns, as DeepSeek's models have. Blocks at the edges may be smaller.
    Block,
}

/// How engines are told to quantize activations beside FP8 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fp8Activations {
    /// To FP8 while they run: one scale per token, or, beside blocks, one for 128 values of a token.
    #[default]
    Dynamic,
    /// Not at all: weights only.
    None,
}

/// Parameters of `quantize-fp8`. If several quantize stages claim a module, the first one keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizeFp8 {
    /// The modules to claim, among those that are neither skipped nor claimed: patterns over modules, or layer types.
    #[serde(default = "default_targets")]
    #[schemars(length(min = 1))]
    pub targets: Vec<Pattern>,
    /// Which weights share a scale.
    #[serde(default)]
    pub granularity: Fp8Granularity,
    /// How engines are told to quantize activations at run time.
    #[serde(default)]
    pub activations: Fp8Activations,
    /// The floating-point type of the scales; the rounded scale is the one used to quantize.
    #[serde(default)]
    pub scale_dtype: ScaleDtype,
    /// The treatment of modules that engines fuse and this recipe treats differently.
    #[serde(default)]
    pub siblings: SiblingPolicy,
}

impl Quantize for QuantizeFp8 {
    fn bits(&self) -> u8 {
        8
    }

    fn kind(&self) -> &'static str {
        "fp8"
    }

    fn floats(&self) -> Option<Storage> {
        Some(Storage::Float8)
    }

    fn targets(&self) -> &[Pattern] {
        &self.targets
    }

    fn granularity(&self) -> Granularity {
        match self.granularity {
            Fp8Granularity::Channel => Granularity::Channel,
            Fp8Granularity::Block => Granularity::Block(BLOCK),
        }
    }

    fn symmetric(&self) -> bool {
        true
    }

    fn observer(&self) -> ObserverChoice {
        ObserverChoice::Minmax
    }

    fn rounding(&self) -> RoundingChoice {
        RoundingChoice::Nearest
    }

    fn scale_dtype(&self) -> ScaleDtype {
        self.scale_dtype
    }

    fn activations(&self) -> ActivationScheme {
        match self.activations {
            Fp8Activations::Dynamic => ActivationScheme::DynamicTokenFp8,
            Fp8Activations::None => ActivationScheme::None,
        }
    }

    fn indivisible(&self) -> Indivisible {
        Indivisible::Error
    }

    fn siblings(&self) -> SiblingPolicy {
        self.siblings
    }
}
