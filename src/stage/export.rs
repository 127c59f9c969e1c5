//! `export`: writes the quantized model as a directory.

use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::export::shards::Shards;

pub mod shards;

/// The format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Integer codes and scales, as vLLM, SGLang and transformers read them.
    #[default]
    CompressedTensors,
    /// The quantized weights as floating-point numbers of the source's types: loads in any tool, shows what is lost.
    Dequantized,
}

/// Whose loading rules are errors in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// What vLLM cannot load is an error.
    Vllm,
    /// What transformers cannot load is an error.
    Transformers,
    /// What SGLang cannot load is an error.
    Sglang,
    /// What some engine refuses to load is a warning that names it; what one would load as noise is an error here too.
    #[default]
    Any,
}

/// What to do with a directory that is already at `path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overwrite {
    /// Stop.
    Refuse,
    /// Replace it in one step, if monoquant wrote it; anything else is refused.
    #[default]
    Replace,
}

/// What identifies the files of source and output in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DigestChoice {
    /// CRC-64/NVME, the checksum of object stores: finds what accidents do to a file, and costs next to nothing.
    #[default]
    Crc64Nvme,
    /// A BLAKE3 hash beside it, as `b3sum` prints it: nobody can make other bytes with the same hash. Runs take about half as long again.
    Blake3,
}

/// Parameters of `export`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The format of the weights.
    #[serde(default)]
    pub format: Format,
    /// The output directory.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Whose loading rules are errors in the plan.
    #[serde(default)]
    pub target: Target,
    /// The number of GPUs that the output must be cut between by tensor parallelism: what cannot be is an error. `plan` says up
    /// to how many it can be without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1))]
    pub tensor_parallel: Option<NonZeroU64>,
    /// What to do with a directory that is already at `path`.
    #[serde(default)]
    pub overwrite: Overwrite,
    /// `keep`: the source's files; or the largest size of a file, such as `5GB`.
    #[serde(default)]
    pub shards: Shards,
    /// Carry over the tokenizer, generation config, chat template and every other file that is not replaced.
    #[serde(default = "default_copy")]
    pub copy: bool,
    /// What identifies the files of source and output in the report.
    #[serde(default)]
    pub digest: DigestChoice,
}

fn default_copy() -> bool {
    true
}
