//! `load`: the name of the model, and corrections of properties that are inferred from it.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Calibration;
use crate::layer::LayerType;
use crate::layer::file_glob::FileGlob;
use crate::layer::pattern::Pattern;

/// Parameters of `load`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// A Hugging Face model directory (safetensors, one or many shards), one `.safetensors` file, or
    /// `hf://org/name[@revision]`: that snapshot in the local Hub cache; nothing is downloaded. Builds with the feature `cloud` read
    /// a model that is not in the cache from the Hub, and `s3://bucket/prefix` and `gs://bucket/prefix` from object stores.
    #[schemars(length(min = 1))]
    pub model: String,
    /// Globs over the names of the weight files to read, whatever an index says. Default: the files that the index names; without one
    /// `model.safetensors`, a complete set `model-00001-of-0000N.safetensors`, or the only `.safetensors` file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<FileGlob>,
    /// Globs over the names of weight files to leave out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<FileGlob>,
    /// Corrections of inferred layer types: a pattern over modules, and the type they are.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("propertyNames" = { "$ref": "#/$defs/Pattern" }))]
    pub layer_types: IndexMap<Pattern, LayerType>,
    /// Activation statistics for every quantize stage that does not name others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Calibration")]
    pub calibration: Option<Calibration>,
}
