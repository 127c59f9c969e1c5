//! `export`: writes the quantized model as a directory.

use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::export::shards::Shards;

pub(crate) mod shards;

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
    /// A model that vLLM cannot load is an error.
    Vllm,
    /// A model that transformers cannot load is an error.
    Transformers,
    /// A model that SGLang cannot load is an error.
    Sglang,
    /// A model that some engine refuses to load is a warning that names the engine. A model that an engine would load
    /// with wrong weights is an error here too.
    #[default]
    Any,
}

/// The treatment of a directory that is already at `path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overwrite {
    /// Stop.
    Refuse,
    /// Replace it in one step, if monoquant wrote it; anything else is refused.
    #[default]
    Replace,
}

/// The checksum or hash that identifies the files of source and output in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DigestChoice {
    /// CRC-64/NVME, the checksum of object stores. It detects accidental changes of a file, and costs next to
    /// nothing.
    #[default]
    Crc64Nvme,
    /// A BLAKE3 hash in addition, as `b3sum` prints it. It is infeasible to make other bytes with the same hash. Runs
    /// take about half as long again.
    Blake3,
    /// In addition a file `SHA256SUMS` with the SHA-256 hashes of all files of the output, as `sha256sum -c` reads it. Each file is
    /// read once more, also by a run that has nothing else to do: a core hashes 0.4 to 2 GB per second.
    Sha256,
}

/// Parameters of `export`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The format of the weights.
    #[serde(default)]
    pub format: Format,
    /// The output directory. Builds with the feature `cloud` publish to object stores, too: `s3://bucket/prefix` and
    /// `gs://bucket/prefix`, where nothing is ever replaced.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Whose loading rules are errors in the plan.
    #[serde(default)]
    pub target: Target,
    /// The number of GPUs between which the output must be cut by tensor parallelism. An output that cannot be cut so
    /// is an error. Without this, `plan` reports the largest possible number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1))]
    pub tensor_parallel: Option<NonZeroU64>,
    /// The treatment of a directory that is already at `path`.
    #[serde(default)]
    pub overwrite: Overwrite,
    /// `keep` for the source's files, or the largest size of a file, such as `5GB`.
    #[serde(default)]
    pub shards: Shards,
    /// Carry over the tokenizer, generation config, chat template and every other file that is not replaced.
    #[serde(default = "default_copy")]
    pub copy: bool,
    /// The checksum or hash that identifies the files of source and output in the report.
    #[serde(default)]
    pub digest: DigestChoice,
    /// Write a model card: the source's README.md with `base_model`, tags and a section on how the model was quantized. Without it
    /// the source's is carried over as it is. With `copy: false` there is none.
    #[serde(default = "default_card")]
    pub card: bool,
    /// The model that the card names as the one that this was made from, by its name on the Hub. Default: the name that `load` has,
    /// or else the one in the source's card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub base_model: Option<String>,
}

fn default_card() -> bool {
    true
}

fn default_copy() -> bool {
    true
}
