//! Parameters that `quantize-int4` and `quantize-int8` share. They differ in one default only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::pattern::Pattern;
use crate::quant::{Granularity, Storage};

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GranularityChoice {
    /// `group_size` consecutive input columns of a row.
    Group,
    /// A row: one output channel.
    Channel,
    /// The whole tensor.
    Tensor,
}

impl GranularityChoice {
    /// The granularity, with groups of this size.
    pub(super) fn with(self, group_size: u32) -> Granularity {
        match self {
            Self::Group => Granularity::Group(group_size as usize),
            Self::Channel => Granularity::Channel,
            Self::Tensor => Granularity::Tensor,
        }
    }
}

/// The method that chooses the range of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ObserverChoice {
    /// From the least to the greatest weight.
    #[default]
    Minmax,
    /// A search for the shrunk range with the least sum of |error|^norm; slower, better.
    Mse,
    /// The range that keeps `percentile` percent of the values unclipped.
    Percentile,
    /// As llm-compressor's `imatrix_mse`: the search of `mse` over a wider and coarser grid. Each column is weighed
    /// by the strength of its input activations. Needs `calibration`. `mse` with `calibration` is usually better.
    ImatrixMse,
}

impl ObserverChoice {
    /// Whether it searches, with statistics if there are any.
    #[must_use]
    pub const fn searches(self) -> bool {
        matches!(self, Self::Mse | Self::ImatrixMse)
    }
}

/// The rule that chooses the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoundingChoice {
    /// Each weight goes to the nearest code of the range that the observer chose.
    #[default]
    Nearest,
    /// Codes and scales that lessen the error of each layer's outputs on the text of `calibrate`, as GPTQ and its successors
    /// do. The stored format is the same. Needs a `calibrate` stage before it. Matrices that the text does not reach are
    /// rounded to nearest.
    Gptq,
    /// As `gptq`, with the metric of the model's answers: one pass backwards, from tokens that the model says itself, tells how
    /// errors of each matrix's outputs work together. Better, and slower. Not for families whose layers have the gated delta
    /// rule, nor for encoders.
    Guided,
}

impl RoundingChoice {
    /// Whether each weight goes to its nearest code.
    #[must_use]
    pub fn is_nearest(&self) -> bool {
        *self == Self::Nearest
    }

    /// Its name in recipes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Gptq => "gptq",
            Self::Guided => "guided",
        }
    }
}

/// The signs that scales may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScalesChoice {
    /// Scales are positive.
    #[default]
    Positive,
    /// Of symmetric ranges: a scale may be negative, so that the side of a group that is longer has the one code more. Less
    /// error of the same size and format, if the engine multiplies by scales as they are. Not with one scale per tensor, nor
    /// with `observer: percentile` or quantized activations.
    Signed,
}

impl ScalesChoice {
    /// Whether scales are positive.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        *self == Self::Positive
    }
}

/// The floating-point type of the scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleDtype {
    /// The weight's own type.
    #[default]
    Auto,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
}

/// How engines are told to quantize activations at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationScheme {
    /// Weights only.
    #[default]
    None,
    /// 8 bits, symmetric, one scale per token, computed by the engine. Weights are then stored as one code per byte.
    DynamicToken,
    /// 8-bit floats (FP8), one scale per token, computed by the engine. For int4 weights (W4AFP8).
    DynamicTokenFp8,
}

/// The treatment of a row whose length is not a multiple of the group size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Indivisible {
    /// Stop before any work, naming all of them.
    #[default]
    Error,
    /// Skip those modules.
    Skip,
    /// One scale per row for those modules.
    Channel,
    /// The largest of 128, 64, 32, 16 that divides.
    Shrink,
}

/// The treatment of modules that engines fuse (q, k and v; gate and up; all experts of a layer) and this recipe
/// treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SiblingPolicy {
    /// Stop before any work.
    #[default]
    Error,
    /// Say it and go on.
    Warn,
    /// Go on.
    Ignore,
}

/// The parameters of a quantize stage, whatever its bit width.
pub trait Quantize {
    /// Bits per code: 4 or 8.
    fn bits(&self) -> u8;
    /// Patterns or layer types to claim, of what is neither skipped nor claimed.
    fn targets(&self) -> &[Pattern];
    /// Which weights share a scale.
    fn granularity(&self) -> Granularity;
    /// What weights become, in a word.
    fn kind(&self) -> &'static str;
    /// How codes lie in the file if they are floats; none if they are integers.
    fn floats(&self) -> Option<Storage> {
        None
    }
    /// Signed range without a zero point.
    fn symmetric(&self) -> bool;
    /// The method that chooses the range of a group.
    fn observer(&self) -> ObserverChoice;
    /// Of `mse`: how far the range is shrunk at most, as a share of it.
    fn maxshrink(&self) -> Option<f64> {
        None
    }
    /// Of `mse`: steps for a shrink of 1.
    fn grid(&self) -> Option<f64> {
        None
    }
    /// Of `mse`: the exponent of the error.
    fn norm(&self) -> Option<f64> {
        None
    }
    /// Of `percentile`: the share of values kept unclipped, in percent.
    fn percentile(&self) -> Option<f64> {
        None
    }
    /// The rule that chooses the codes.
    fn rounding(&self) -> RoundingChoice;
    /// Of `rounding: gptq` and `guided`: whether later layers see what earlier ones have become.
    fn sequential(&self) -> Option<bool> {
        None
    }
    /// The signs that scales may have.
    fn scales(&self) -> ScalesChoice {
        ScalesChoice::Positive
    }
    /// The floating-point type of the scales.
    fn scale_dtype(&self) -> ScaleDtype;
    /// How engines quantize activations.
    fn activations(&self) -> ActivationScheme;
    /// The treatment of a row whose length is not a multiple of the group size.
    fn indivisible(&self) -> Indivisible;
    /// The treatment of fused modules that differ.
    fn siblings(&self) -> SiblingPolicy;
}

pub(super) fn default_targets() -> Vec<Pattern> {
    use crate::layer::LayerType;
    vec![Pattern::of_type(LayerType::Linear), Pattern::of_type(LayerType::Experts)]
}

pub(super) fn default_group_size() -> u32 {
    128
}

pub(super) fn default_symmetric() -> bool {
    true
}

/// Defines the parameters of one quantize stage; the two differ in bit width and in the default granularity.
macro_rules! quantize_stage {
    ($(#[$doc:meta])* $name:ident, bits: $bits:literal, granularity: $granularity:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The modules to claim, among those that are neither skipped nor claimed: patterns over modules, or
            /// layer types.
            #[serde(default = "super::quantize::default_targets")]
            #[schemars(length(min = 1))]
            pub targets: Vec<crate::layer::pattern::Pattern>,
            /// Which weights share a scale.
            #[serde(default = "default_granularity")]
            pub granularity: super::GranularityChoice,
            /// With granularity `group`: how many consecutive input columns share a scale.
            #[serde(default = "super::quantize::default_group_size")]
            #[schemars(range(min = 8, max = 65536), extend("multipleOf" = 8, "examples" = [32, 64, 128]))]
            pub group_size: u32,
            /// True: a signed range and no zero point. False: an affine range with one integer zero point per group.
            #[serde(default = "super::quantize::default_symmetric")]
            pub symmetric: bool,
            /// The method that chooses the range of a group.
            #[serde(default)]
            pub observer: super::ObserverChoice,
            /// Of `mse`: how far the range is shrunk at most, as a share of it. Default: 0.2; of `imatrix-mse` 0.95.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "f64", range(min = 0.0, max = 1.0))]
            pub maxshrink: Option<f64>,
            /// Of `mse`: candidates are 1 − i/grid for i from 0 to maxshrink·grid − 1. Default: 100; of `imatrix-mse` 20, and the
            /// last candidate is tried as well.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "f64", range(min = 1.0, max = 1000.0))]
            pub grid: Option<f64>,
            /// Of `mse`: the exponent of the error. Default: 2.4; of `imatrix-mse` 3.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "f64", range(min = 0.5, max = 8.0))]
            pub norm: Option<f64>,
            /// Of `percentile`: the share of values kept unclipped, in percent. Default: 99.9.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "f64", range(min = 50.0, max = 100.0))]
            pub percentile: Option<f64>,
            /// The rule that chooses the codes. Default: `nearest`.
            #[serde(default, skip_serializing_if = "super::RoundingChoice::is_nearest")]
            pub rounding: super::RoundingChoice,
            /// Of `rounding: gptq` and `guided`: whether the matrices of a layer make good what the rounding of earlier ones has done to
            /// their inputs. Without it each layer is rounded for itself: an edit of one layer's rule redoes one layer, and
            /// the result is a little worse. Default: true.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "bool")]
            pub sequential: Option<bool>,
            /// Activation statistics that weigh the columns in the search of `mse` and in what is measured. Default: those of
            /// `load`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(with = "super::Calibration")]
            pub calibration: Option<super::Calibration>,
            /// The signs that scales may have. Default: `positive`.
            #[serde(default, skip_serializing_if = "super::ScalesChoice::is_positive")]
            pub scales: super::ScalesChoice,
            /// The floating-point type of the scales; the rounded scale is the one used to quantize.
            #[serde(default)]
            pub scale_dtype: super::ScaleDtype,
            /// How engines are told to quantize activations at run time.
            #[serde(default)]
            pub activations: super::ActivationScheme,
            /// The treatment of a row whose length is not a multiple of the group size.
            #[serde(default)]
            pub indivisible: super::Indivisible,
            /// The treatment of modules that engines fuse and this recipe treats differently.
            #[serde(default)]
            pub siblings: super::SiblingPolicy,
        }

        fn default_granularity() -> super::GranularityChoice {
            super::GranularityChoice::$granularity
        }

        impl super::Quantize for $name {
            fn bits(&self) -> u8 { $bits }
            fn kind(&self) -> &'static str { concat!("int", $bits) }
            fn targets(&self) -> &[crate::layer::pattern::Pattern] { &self.targets }
            fn granularity(&self) -> crate::quant::Granularity { self.granularity.with(self.group_size) }
            fn symmetric(&self) -> bool { self.symmetric }
            fn observer(&self) -> super::ObserverChoice { self.observer }
            fn maxshrink(&self) -> Option<f64> { self.maxshrink }
            fn grid(&self) -> Option<f64> { self.grid }
            fn norm(&self) -> Option<f64> { self.norm }
            fn percentile(&self) -> Option<f64> { self.percentile }
            fn rounding(&self) -> super::RoundingChoice { self.rounding }
            fn sequential(&self) -> Option<bool> { self.sequential }
            fn scales(&self) -> super::ScalesChoice { self.scales }
            fn scale_dtype(&self) -> super::ScaleDtype { self.scale_dtype }
            fn activations(&self) -> super::ActivationScheme { self.activations }
            fn indivisible(&self) -> super::Indivisible { self.indivisible }
            fn siblings(&self) -> super::SiblingPolicy { self.siblings }
        }
    };
}
pub(super) use quantize_stage;

/// The treatment of a row whose length is not a multiple of the group size, which the format fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IndivisibleRows {
    /// An error of the plan, listing the tensors.
    #[default]
    Error,
    /// Leave such tensors alone.
    Skip,
}

/// Defines the parameters of one stage that writes floats of four bits.
macro_rules! float4_stage {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $storage:ident, group: $group:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The modules to claim, among those that are neither skipped nor claimed: patterns over modules, or
            /// layer types.
            #[serde(default = "super::quantize::default_targets")]
            #[schemars(length(min = 1))]
            pub targets: Vec<crate::layer::pattern::Pattern>,
            #[doc = concat!("The treatment of a row whose length is not a multiple of ", $group, ".")]
            #[serde(default)]
            pub indivisible: super::IndivisibleRows,
            /// The treatment of modules that engines fuse and this recipe treats differently.
            #[serde(default)]
            pub siblings: super::SiblingPolicy,
        }

        impl super::Quantize for $name {
            fn bits(&self) -> u8 { 4 }
            fn kind(&self) -> &'static str { $kind }
            fn floats(&self) -> Option<crate::quant::Storage> { Some(crate::quant::Storage::$storage) }
            fn targets(&self) -> &[crate::layer::pattern::Pattern] { &self.targets }
            fn granularity(&self) -> crate::quant::Granularity { crate::quant::Granularity::Group($group) }
            fn symmetric(&self) -> bool { true }
            fn observer(&self) -> super::ObserverChoice { super::ObserverChoice::Minmax }
            fn rounding(&self) -> super::RoundingChoice { super::RoundingChoice::Nearest }
            // Engines decode to it.
            fn scale_dtype(&self) -> super::ScaleDtype { super::ScaleDtype::Bf16 }
            fn activations(&self) -> super::ActivationScheme { super::ActivationScheme::None }
            fn indivisible(&self) -> super::Indivisible {
                match self.indivisible {
                    super::IndivisibleRows::Error => super::Indivisible::Error,
                    super::IndivisibleRows::Skip => super::Indivisible::Skip,
                }
            }
            fn siblings(&self) -> super::SiblingPolicy { self.siblings }
        }
    };
}
pub(super) use float4_stage;
