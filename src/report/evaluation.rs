//! What an `evaluate` stage has found, as reports and `monoquant evaluate` tell it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far the answers of a quantized model are from those of the original.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluation {
    /// Index of the stage in the recipe, from 0. None for a comparison without a recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<usize>,
    /// Index of the `export` stage whose output was compared, from 0. None for a comparison without a recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<usize>,
    /// The texts, as the recipe names them.
    pub texts: Vec<String>,
    /// Samples of text.
    pub samples: usize,
    /// Tokens of all samples.
    pub tokens: usize,
    /// The Kullback-Leibler divergence of the quantized model's next-token probabilities from the original's. None for encoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Divergence>,
    /// Perplexities of the text. None for encoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// The share of tokens for which both models find the same next token most likely. None for encoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// The mean cosine of the pooled states of the samples. None for language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// The relative error of the hidden state after each layer: ‖a − b‖ / ‖a‖.
    pub layers: Vec<f64>,
    /// Parts of the model that do not run, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A divergence over tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// Its mean over tokens.
    pub mean: f64,
    /// The standard error of the mean, over samples. None if there is one sample only.
    pub standard_error: Option<f64>,
    /// Its 99th percentile over tokens.
    pub p99: f64,
}

/// Perplexities of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perplexity {
    /// That of the original.
    pub source: f64,
    /// That of the quantized model.
    pub quantized: f64,
}

/// What a comparison must meet.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Thresholds {
    /// The largest mean divergence.
    pub max_kl: Option<f64>,
    /// The largest ratio of perplexities.
    pub max_perplexity_ratio: Option<f64>,
    /// The smallest agreement.
    pub min_top1_agreement: Option<f64>,
    /// The smallest cosine.
    pub min_cosine: Option<f64>,
}

/// A threshold that is not met.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossed {
    /// Its key.
    pub key: &'static str,
    /// What was found, in words.
    pub message: String,
}

impl Evaluation {
    /// The thresholds that are not met. A number that does not exist for this model meets none.
    #[must_use]
    pub fn crossed(&self, thresholds: &Thresholds) -> Vec<Crossed> {
        let ratio = self.perplexity.as_ref().map(|perplexity| perplexity.quantized / perplexity.source);
        let kl = self.kl.as_ref().map(|kl| kl.mean);
        // Each: key, what it is of, the bound, the number, and whether the number has to stay below.
        let all = [
            ("max_kl", "mean KL divergence", thresholds.max_kl, kl, true),
            ("max_perplexity_ratio", "ratio of perplexities", thresholds.max_perplexity_ratio, ratio, true),
            (
                "min_top1_agreement",
                "agreement on the most likely token",
                thresholds.min_top1_agreement,
                self.top1_agreement,
                false,
            ),
            ("min_cosine", "cosine of pooled states", thresholds.min_cosine, self.cosine, false),
        ];
        let mut crossed = Vec::new();
        for (key, what, bound, found, is_above) in all {
            let Some(bound) = bound else { continue };
            let message = match found {
                None => format!("this model has no {what}"),
                Some(found) if is_above && found <= bound => continue,
                Some(found) if !is_above && found >= bound => continue,
                Some(found) => {
                    format!("the {what} is {found:.6}, {} {bound}", if is_above { "above" } else { "below" })
                }
            };
            crossed.push(Crossed { key, message });
        }
        crossed
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        if let Some(kl) = &self.kl {
            let error = kl.standard_error.map_or(String::new(), |error| format!(" ± {error:.6}"));
            parts.push(format!("KL {:.6}{error} (p99 {:.4})", kl.mean, kl.p99));
        }
        if let Some(perplexity) = &self.perplexity {
            parts.push(format!("perplexity {:.4} → {:.4}", perplexity.source, perplexity.quantized));
        }
        if let Some(agreement) = self.top1_agreement {
            parts.push(format!("top-1 agreement {:.2} %", agreement * 100.0));
        }
        if let Some(cosine) = self.cosine {
            parts.push(format!("cosine {cosine:.6}"));
        }
        parts.join(", ")
    }
}
