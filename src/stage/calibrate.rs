//! `calibrate`: the model runs on text, which measures the activations that multiply each layer's weights.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OnMissing, RunText};

/// Parameters of `calibrate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// Files of text to run the model on, relative to the recipe's folder: plain text, or JSONL (by its ending) with `text` or
    /// `messages` in each line. Conversations go through the model's chat template. Default: a built-in English text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// Run only the first so many samples. Default: all of the text. A last sample that is not full is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1))]
    pub samples: Option<u32>,
    /// Tokens of a sample. Samples are cut from all tokens in their order and do not overlap.
    #[serde(default = "default_sequence_length")]
    #[schemars(range(min = 1))]
    pub sequence_length: u32,
    /// Whether the first sample begins with the token that texts begin with. Default: as the tokenizer's own template has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub begin_with_bos: Option<bool>,
    /// Of `rounding: guided`: gradients are taken on the first so many samples. 24 of 256 tokens are a fair beginning, and
    /// save most of the time of the pass backwards. Default: all samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1))]
    pub gradient_samples: Option<u32>,
    /// Of `rounding: guided`: draws the tokens that the model says, whose gradients are taken. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub seed: Option<u32>,
    /// Of `rounding: gptq` and `guided` with `sequential: false`: a file of second moments, as `monoquant calibrate --moments`
    /// writes it, relative to the recipe's folder. Layers are rounded with these, and the model does not run for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub moments: Option<String>,
    /// The reaction to a module that was not measured: the model's forward pass does not reach it, or no token was routed to it.
    #[serde(default)]
    pub on_missing: OnMissing,
}

fn default_sequence_length() -> u32 {
    512
}

impl Calibrate {
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
