//! The recipe as a plain type: the written values, with defaults filled in. No places, no file system.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{IdVec, StageId};
use crate::stage::{OnFailure, Stage};

/// A monoquant recipe: ordered stages that say how a model directory is quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of the recipe language. Always 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// A name for reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub name: Option<String>,
    /// The purpose of the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub description: Option<String>,
    /// The reaction to a failing check, for every stage below that has `on_failure` and does not set it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
    /// The stages, in order: `load` first, a quantize stage before `validate`, `check-warnings` and `export`.
    #[schemars(length(min = 1))]
    pub stages: IdVec<StageId, Stage>,
}
