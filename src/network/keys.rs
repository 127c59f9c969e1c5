//! `config.json` as a program reads it: which keys were looked at is remembered, so that those that nobody looked at can be named.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::code;
use crate::finding::Finding;

/// Where families with several parts keep their language model's configuration.
const TEXT_PARTS: &[&str] = &["text_config", "llm_config", "language_config"];

/// Keys that change nothing of what one forward pass computes: training, generation, storage, labels.
const NEUTRAL: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "compression_config",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "dropout",
    "dtype",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "ep_size",
    "experts_implementation",
    "finetuning_task",
    "gradient_checkpointing",
    "head_dim_padding",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "init_std",
    "initializer_range",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "language_model_only",
    "layerdrop",
    "model_type",
    "num_mtp_modules",
    "num_nextn_predict_layers",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sep_token_id",
    "seq_aux",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_mtp",
];

/// The text part of a model's configuration, read key by key.
pub(super) struct Keys<'a> {
    part: &'a Map<String, Value>,
    top: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

fn bad(key: &str, what: &str) -> Finding {
    Finding::error(code::BAD_KEY, format!("`{key}` in `config.json` {what}"))
        .help("The model cannot be run with it. A file of statistics made elsewhere still works: `calibration: file`.")
}

impl<'a> Keys<'a> {
    /// # Errors
    /// The configuration is no object.
    pub(super) fn new(config: &'a Value) -> Result<Self, Finding> {
        let top = config.as_object().ok_or_else(|| bad("model_type", "is missing"))?;
        let part = TEXT_PARTS.iter().find_map(|key| top.get(*key)?.as_object()).unwrap_or(top);
        Ok(Self { part, top, read: RefCell::default() })
    }

    /// A part of this configuration that has keys of its own; unread ones are told by its own [`Keys::unread`].
    pub(super) fn inside(&self, key: &str) -> Option<Keys<'a>> {
        let part = self.get(key)?.as_object()?;
        Some(Keys { part, top: part, read: RefCell::default() })
    }

    /// `model_type` of the text part.
    pub(super) fn family(&self) -> Result<&'a str, Finding> {
        let family = self.part.get("model_type").or_else(|| self.top.get("model_type"));
        family.and_then(Value::as_str).ok_or_else(|| bad("model_type", "is missing"))
    }

    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.part.get(key).filter(|value| !value.is_null())
    }

    /// Whether the whole model ties its head; the top says it for models of several parts.
    pub(super) fn is_tied(&self, default: bool) -> Result<bool, Finding> {
        let own = self.get("tie_word_embeddings").or_else(|| self.get("tie_embedding"));
        match self.top.get("tie_word_embeddings").filter(|value| !value.is_null()).or(own) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| bad("tie_word_embeddings", "is neither true nor false"))
            }
        }
    }

    pub(super) fn count_or_none(&self, key: &str) -> Result<Option<usize>, Finding> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| bad(key, "is no whole number of zero or more"))
    }

    /// The first of some keys that is there, as a number above zero.
    pub(super) fn count(&self, keys: &[&str]) -> Result<usize, Finding> {
        for key in keys {
            match self.count_or_none(key)? {
                Some(0) => return Err(bad(key, "is 0")),
                Some(count) => return Ok(count),
                None => {}
            }
        }
        Err(bad(keys.first().copied().unwrap_or_default(), "is missing"))
    }

    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize, Finding> {
        Ok(self.count_or_none(key)?.unwrap_or(default))
    }

    pub(super) fn number_or_none(&self, key: &str) -> Result<Option<f64>, Finding> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| bad(key, "is no number"))
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, Finding> {
        Ok(self.number_or_none(key)?.unwrap_or(default))
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, Finding> {
        self.number_or_none(key)?.ok_or_else(|| bad(key, "is missing"))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, Finding> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| bad(key, "is neither true nor false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Finding> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| bad(key, "is no text"))
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Finding> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| bad(key, "is no list of texts"))
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Finding> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        list.map(Some).ok_or_else(|| bad(key, "is no list of numbers"))
    }

    /// Refuses a key unless it is missing, null, or has this value.
    pub(super) fn only(&self, key: &str, value: &Value) -> Result<(), Finding> {
        match self.get(key) {
            Some(found) if found != value => Err(bad(key, &format!("is {found}, which is not known here"))),
            _ => Ok(()),
        }
    }

    /// Says of keys that they change nothing in this family.
    pub(super) fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Fails with the keys that nobody looked at and that may change what is computed.
    pub(super) fn unread(&self, place: &str) -> Result<(), Finding> {
        let read = self.read.borrow();
        let unread: Vec<_> = self
            .part
            .iter()
            .filter(|(key, value)| {
                !value.is_null() && !read.contains(*key) && !NEUTRAL.contains(&key.as_str())
            })
            .filter(|(key, value)| !(key.starts_with('_') || value.is_object() && is_other_part(key)))
            .map(|(key, value)| {
                let value = value.to_string();
                format!("`{place}{key}` ({})", value.chars().take(40).collect::<String>())
            })
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        let what = if unread.len() == 1 { "is a key" } else { "are keys" };
        Err(Finding::error(
            code::UNKNOWN_KEY,
            format!("{} of `config.json` {what} that this family is not known to have", unread.join(", ")),
        )
        .help("It may change what the model computes, so the model is not run. A file of statistics made elsewhere still works: `calibration: file`."))
    }
}

/// Whether a key holds a part of the model beside the language model.
fn is_other_part(key: &str) -> bool {
    key.ends_with("_config") && !TEXT_PARTS.contains(&key)
}
