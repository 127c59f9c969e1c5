//! Access to `config.json`: the few facts that layer types and checks need, in whichever place a model family has
//! them.
//!
//! The text decoder's numbers may be at the top, in `text_config` or under another family's key for it. Getters look
//! into the text part first and then at the top. The rest of the file is kept as it was written.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::code;
use crate::finding::Finding;

/// Keys under which multimodal families keep the configuration of their text decoder.
const TEXT_PARTS: &[&str] = &[
    "text_config",
    "llm_config",
    "language_config",
    "language_model",
    "thinker_config",
    "text_model_config",
];

/// Keys that say how many experts there are.
const EXPERT_KEYS: &[&str] = &["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];

/// Keys that say how many decoder layers there are, then keys whose length says it.
const LAYER_KEYS: &[&str] =
    &["num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers"];
const LAYER_LISTS: &[&str] = &["layer_types", "layers_block_type", "hybrid_override_pattern"];

/// Keys under which a config says how its weights are quantized.
pub(crate) const DECLARATIONS: [&str; 2] = ["quantization_config", "compression_config"];
/// Keys for the number of layers in the encoder and in the decoder, if both have some.
const DEPTH_KEYS: &[&str] = &[
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "decoder_num_hidden_layers",
    "encoder_num_hidden_layers",
];

/// Keys that say how wide the stream between the layers is, and how many entries the vocabulary has.
const WIDTH_KEYS: &[&str] = &["hidden_size", "n_embd", "d_model", "dim", "model_dim", "n_embed"];
const VOCABULARY_KEYS: &[&str] = &["vocab_size", "padded_vocab_size", "n_vocab"];

/// Families of text parts that encode and write no text: their models are two encoders side by side.
const ENCODERS: &[&str] = &["bert", "clip", "siglip", "clap", "mpnet"];

/// How deep parts may lie in parts.
const MAX_DEPTH: usize = 8;

/// The model's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The whole file, keys in their order; an empty object if there is no file. A bare `Infinity` or `NaN`, which
    /// Python writes and JSON does not allow, is stored as transformers 5 writes it: `{"__float__": "Infinity"}`.
    pub raw: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self { raw: Value::Object(Map::new()) }
    }
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, Finding> {
        let raw: Value = serde_json::from_slice(text)
            .or_else(|first| serde_json::from_slice(&with_tagged_floats(text)).map_err(|_| first))
            .map_err(|e| {
                Finding::error(code::CONFIG, format!("`config.json` cannot be read: {e}"))
                    .help("Get the file again.")
            })?;
        if raw.is_object() {
            Ok(Self { raw })
        } else {
            Err(Finding::error(code::CONFIG, "`config.json` is not a JSON object")
                .help("Get the file again."))
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.as_object().is_none_or(Map::is_empty)
    }

    /// The text decoder's part: the one under a family's key for it, or else the largest of those described as
    /// language models. The whole config if there is no such part, or if the decoder is described at the top.
    #[must_use]
    pub fn text(&self) -> &Value {
        let mut part = &self.raw;
        for _ in 0..MAX_DEPTH {
            match TEXT_PARTS.iter().find_map(|key| part.get(key).filter(|value| value.is_object())) {
                Some(inner) => part = inner,
                None => break,
            }
        }
        let is_named = !std::ptr::eq(part, &self.raw);
        if is_named || language_model_size(&self.raw).is_some() {
            return part;
        }
        let mut largest = None;
        find_language_model(&self.raw, 0, &mut largest);
        largest.map_or(part, |(_, part)| part)
    }

    /// A value of the text part, or else of the top.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.text().get(key).or_else(|| self.raw.get(key)).filter(|value| !value.is_null())
    }

    fn number(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| self.get(key)?.as_u64())
    }

    /// `model_type` of the whole model.
    #[must_use]
    pub fn model_type(&self) -> Option<&str> {
        self.raw.get("model_type")?.as_str()
    }

    /// The type that engines compute in, as the model declares it: `bfloat16`.
    #[must_use]
    pub fn dtype(&self) -> Option<&str> {
        ["dtype", "torch_dtype"].iter().find_map(|key| self.get(key)?.as_str())
    }

    /// `architectures`: the class names.
    #[must_use]
    pub fn architectures(&self) -> Vec<&str> {
        let list = self.raw.get("architectures").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Width of the text decoder's residual stream.
    #[must_use]
    pub fn hidden_size(&self) -> Option<u64> {
        self.number(WIDTH_KEYS)
    }

    /// Entries of the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> Option<u64> {
        self.number(VOCABULARY_KEYS)
    }

    /// Layers of the text decoder, without extra prediction layers. Some families write only the list of
    /// their types.
    #[must_use]
    pub fn num_hidden_layers(&self) -> Option<u64> {
        self.number(LAYER_KEYS).or_else(|| {
            LAYER_LISTS.iter().find_map(|key| match self.get(key)? {
                Value::Array(list) => u64::try_from(list.len()).ok(),
                // One letter per layer.
                Value::String(pattern) => u64::try_from(pattern.chars().count()).ok(),
                _ => None,
            })
        })
    }

    /// Every number of layers that a stack of the text part may have: its own, the encoder's and the decoder's.
    #[must_use]
    pub fn depths(&self) -> BTreeSet<u64> {
        let each = DEPTH_KEYS.iter().filter_map(|key| self.number(&[key]));
        each.chain(self.num_hidden_layers()).filter(|&depth| depth > 0).collect()
    }

    /// How many labels a classifier tells apart.
    #[must_use]
    pub fn labels(&self) -> Option<u64> {
        let named = || u64::try_from(self.get("id2label")?.as_object()?.len()).ok();
        self.number(&["num_labels"]).or_else(named).filter(|&labels| labels > 0)
    }

    /// Whether the text part is one of several encoders whose outputs are compared (CLIP), and so no language model.
    #[must_use]
    pub fn describes_encoders(&self) -> bool {
        let text = self.text().get("model_type").and_then(Value::as_str).unwrap_or_default();
        let is_part = !std::ptr::eq(self.text(), &self.raw);
        self.raw.get("logit_scale_init_value").is_some()
            || (is_part && ENCODERS.iter().any(|family| text.contains(family)))
    }

    /// Every number of experts that any part names. Dense models of a family may write 0 or 1, which means
    /// none.
    #[must_use]
    pub fn experts(&self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        collect_experts(&self.raw, 0, &mut found);
        found
    }

    /// Whether the output head is tied to the embedding. `None` if nothing says so and the class's default counts.
    #[must_use]
    pub fn tie_word_embeddings(&self) -> Option<bool> {
        // At the top it is about the whole model and wins, as in transformers.
        let at = |part: &Value| {
            ["tie_word_embeddings", "tie_embedding"]
                .iter()
                .find_map(|key| part.get(key).and_then(Value::as_bool))
        };
        at(&self.raw).or_else(|| at(self.text()))
    }

    /// Whether an encoder and a decoder have layers of their own (Whisper, T5).
    #[must_use]
    pub fn is_encoder_decoder(&self) -> bool {
        self.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false)
    }

    /// `quantization_config` of a model that is already quantized: of the text part, of the top, or of any other part.
    #[must_use]
    pub fn quantization_config(&self) -> Option<&Value> {
        let of_text = DECLARATIONS.iter().find_map(|key| self.get(key));
        of_text.or_else(|| {
            self.declarations().into_iter().map(|(_, value)| value).find(|value| !value.is_null())
        })
    }

    /// Every place of the config that says how weights are quantized, such as `text_config.quantization_config`.
    #[must_use]
    pub fn declarations(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        collect_declarations(&self.raw, "", 0, &mut found);
        found
    }

    /// The config without what [`Config::declarations`] finds.
    #[must_use]
    pub fn without_declarations(&self) -> Value {
        let mut raw = self.raw.clone();
        remove_declarations(&mut raw, 0);
        raw
    }
}

fn collect_declarations<'v>(part: &'v Value, path: &str, depth: usize, found: &mut Vec<(String, &'v Value)>) {
    let Some(object) = part.as_object().filter(|_| depth < MAX_DEPTH) else { return };
    for (key, value) in object {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if DECLARATIONS.contains(&key.as_str()) {
            found.push((path, value));
        } else {
            collect_declarations(value, &path, depth + 1, found);
        }
    }
}

fn remove_declarations(part: &mut Value, depth: usize) {
    let Some(object) = part.as_object_mut().filter(|_| depth < MAX_DEPTH) else { return };
    object.retain(|key, _| !DECLARATIONS.contains(&key.as_str()));
    object.values_mut().for_each(|value| remove_declarations(value, depth + 1));
}

/// The number of layers times the width, for a part that is described as a language model. `None` for any other part.
fn language_model_size(part: &Value) -> Option<u64> {
    let number = |keys: &[&str]| keys.iter().find_map(|key| part.get(key)?.as_u64());
    number(VOCABULARY_KEYS)?;
    let (width, layers) = (number(WIDTH_KEYS), number(LAYER_KEYS).or_else(|| number(DEPTH_KEYS)));
    (width.is_some() || layers.is_some())
        .then(|| layers.unwrap_or(1).saturating_mul(width.unwrap_or(1)).saturating_mul(width.unwrap_or(1)))
}

/// The largest language model below a part. If several are equally large, the first.
fn find_language_model<'v>(part: &'v Value, depth: usize, largest: &mut Option<(u64, &'v Value)>) {
    let Some(object) = part.as_object().filter(|_| depth < MAX_DEPTH) else { return };
    for value in object.values() {
        if let Some(size) = language_model_size(value)
            && largest.is_none_or(|(most, _)| size > most)
        {
            *largest = Some((size, value));
        }
        find_language_model(value, depth + 1, largest);
    }
}

fn collect_experts(part: &Value, depth: usize, found: &mut BTreeSet<u64>) {
    let Some(object) = part.as_object().filter(|_| depth < MAX_DEPTH) else { return };
    for (key, value) in object {
        if EXPERT_KEYS.contains(&key.as_str()) {
            // ERNIE 4.5 VL has a list, one number a modality.
            let single = value.as_u64();
            let listed = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
            found.extend(single.into_iter().chain(listed).filter(|&n| n > 1));
        }
        collect_experts(value, depth + 1, found);
    }
}

/// Replaces the bare words `Infinity`, `-Infinity` and `NaN` outside of strings by the objects that represent them.
fn with_tagged_floats(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 64);
    let (mut rest, mut in_string, mut escaped) = (text, false, false);
    while let [first, tail @ ..] = rest {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|w| !in_string && rest.starts_with(w.as_bytes()));
        if let Some(word) = word {
            out.extend_from_slice(format!("{{\"__float__\": \"{word}\"}}").as_bytes());
            rest = &rest[word.len()..];
            continue;
        }
        in_string ^= *first == b'"' && !escaped;
        escaped = in_string && *first == b'\\' && !escaped;
        out.push(*first);
        rest = tail;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(raw: Value) -> Config {
        Config { raw }
    }

    #[test]
    fn the_text_part_comes_first() {
        let c = config(json!({"hidden_size": 1, "vocab_size": 9, "model_type": "outer",
            "thinker_config": {"text_config": {"hidden_size": 2, "model_type": "inner"}}}));
        assert_eq!(c.hidden_size(), Some(2));
        assert_eq!(c.vocab_size(), Some(9));
        assert_eq!(c.model_type(), Some("outer"));
    }

    #[test]
    fn layers_are_counted_where_no_number_is_written() {
        assert_eq!(config(json!({"layers_block_type": ["a", "b", "c"]})).num_hidden_layers(), Some(3));
        assert_eq!(config(json!({"hybrid_override_pattern": "M-M*"})).num_hidden_layers(), Some(4));
        assert_eq!(config(json!({"n_layer": 12})).num_hidden_layers(), Some(12));
        assert_eq!(config(json!({})).num_hidden_layers(), None);
    }

    #[test]
    fn experts_of_any_part() {
        let c = config(
            json!({"num_experts": 1, "moe_num_experts": [64, 32], "a": {"b": {"n_routed_experts": 256}}}),
        );
        assert_eq!(c.experts().into_iter().collect::<Vec<_>>(), [32, 64, 256]);
    }

    #[test]
    fn ties_may_be_anywhere_or_nowhere() {
        assert_eq!(
            config(json!({"text_config": {"tie_word_embeddings": true}})).tie_word_embeddings(),
            Some(true)
        );
        assert_eq!(config(json!({"tie_embedding": false})).tie_word_embeddings(), Some(false));
        assert_eq!(config(json!({})).tie_word_embeddings(), None);
    }

    #[test]
    fn floats_that_json_does_not_know_are_read() {
        let text = br#"{"a": [0.0, Infinity], "b": -Infinity, "c": "NaN \" Infinity", "d": NaN}"#;
        let c = Config::parse(text).unwrap();
        assert_eq!(c.raw["a"][1], json!({"__float__": "Infinity"}));
        assert_eq!(c.raw["b"], json!({"__float__": "-Infinity"}));
        assert_eq!(c.raw["c"], "NaN \" Infinity");
        for bad in [&b""[..], b"[]", b"{", b"\xff"] {
            assert!(Config::parse(bad).is_err(), "{bad:?}");
        }
    }
}
