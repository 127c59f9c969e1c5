//! `calibration`: the activation statistics that weigh the columns of a layer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reaction to a module that the file has no statistics for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnMissing {
    /// Stop before any work.
    #[default]
    Error,
    /// Say it, and let all of its columns count the same.
    Warn,
    /// Let all of its columns count the same.
    Ignore,
}

/// A file of activation statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The file, relative to the recipe's folder: safetensors as `examples/calibration/collect.py` writes them, or an importance
    /// matrix of llama.cpp (GGUF, or the older binary file).
    #[schemars(length(min = 1))]
    pub file: String,
    /// The reaction to a module that the file has no statistics for: it is not in the file, or no token was routed to
    /// it.
    #[serde(default)]
    pub on_missing: OnMissing,
}
