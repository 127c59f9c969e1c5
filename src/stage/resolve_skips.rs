//! `resolve-skips`: the modules that the quantize stages after it skip.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OnUnmatched;
use crate::layer::LayerType;
use crate::layer::pattern::Pattern;

/// Which built-in list of skips applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SkipDefaults {
    /// The list of the quantize stage that follows.
    #[default]
    Auto,
    /// Embeddings, norms, routers, heads, towers, projectors, MTP, indexers, gating, hyper-connections, per-layer
    /// projections, `lm_head`, and modules with fewer than 512 parameters.
    Int4,
    /// The int4 list without the parameter threshold.
    Int8,
    /// Nothing is skipped but what this stage lists.
    None,
}

/// Parameters of `resolve-skips`. The sources are a union, and add to the defaults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveSkips {
    /// The built-in list to start from.
    #[serde(default)]
    pub defaults: SkipDefaults,
    /// Modules to skip, as names, globs or `re:` regular expressions (the Hugging Face parameter of this name).
    #[serde(default)]
    pub modules_to_not_convert: Vec<Pattern>,
    /// Layer types to skip, kinds or roles.
    #[serde(default)]
    pub skip_layer_types: Vec<LayerType>,
    /// More patterns of modules to skip.
    #[serde(default)]
    pub skip_layer_names: Vec<Pattern>,
    /// Skip modules with strictly fewer parameters than this, weight and bias together. Default: 512 with the int4
    /// list, none otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub skip_param_threshold: Option<u64>,
    /// Patterns or layer types that the built-in list would skip and this recipe quantizes. Overrides defaults only.
    /// Stacks of experts that an engine of the export's `target` would load with wrong weights are skipped as well,
    /// with a warning. `Experts` here overrides that.
    #[serde(default)]
    pub quantize_anyway: Vec<Pattern>,
    /// The reaction to a pattern that matches nothing. Names that are also in the built-in list never count.
    #[serde(default)]
    pub on_unmatched: OnUnmatched,
}
