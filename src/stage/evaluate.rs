//! `evaluate`: the quantized model answers beside the original, and the differences are judged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OnFailure, RunText};

/// Parameters of `evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Files of held-out text, relative to the recipe's folder: plain text, or JSONL (by its ending) with `text` or `messages` in
    /// each line. It must not be the text of `calibrate`.
    #[schemars(length(min = 1))]
    pub text: Vec<String>,
    /// Run only the first so many samples. Default: all of the text. A last sample that is not full is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1))]
    pub samples: Option<u32>,
    /// Tokens of a sample. Samples are cut from all tokens in their order and do not overlap.
    #[serde(default = "default_sequence_length")]
    #[schemars(range(min = 2))]
    pub sequence_length: u32,
    /// Whether the first sample begins with the token that texts begin with. Default: as the tokenizer's own template has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub begin_with_bos: Option<bool>,
    /// The largest mean Kullback-Leibler divergence of the quantized model's next-token probabilities from the original's, in
    /// nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub max_kl: Option<f64>,
    /// The largest ratio of the quantized model's perplexity to the original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub max_perplexity_ratio: Option<f64>,
    /// The smallest share of tokens for which both models find the same next token most likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0, max = 1.0))]
    pub min_top1_agreement: Option<f64>,
    /// The smallest mean cosine of the pooled states of an encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = -1.0, max = 1.0))]
    pub min_cosine: Option<f64>,
    /// The reaction to a crossed threshold. Default: the recipe's `on_failure`, or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
}

fn default_sequence_length() -> u32 {
    256
}

impl Evaluate {
    /// Whether it judges what it measures.
    #[must_use]
    pub fn has_threshold(&self) -> bool {
        [self.max_kl, self.max_perplexity_ratio, self.min_top1_agreement, self.min_cosine]
            .iter()
            .any(Option::is_some)
    }

    /// The text that is run, and how it is cut.
    #[must_use]
    pub fn run_text(&self) -> RunText<'_> {
        RunText {
            files: &self.text,
            samples: self.samples,
            sequence_length: self.sequence_length,
            begin_with_bos: self.begin_with_bos,
        }
    }
}
