//! `tokenizer.json`, by the crate `tokenizers`, and the cutting of tokens into windows.

use serde_json::Value;

use super::template::Template;
use super::text::Document;
use crate::finding::Finding;

/// Something that no tokenizer makes other tokens of than its own: what stands before it is what it adds to every text.
const PROBE: &str = "a";

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the tokenizer's own template puts before a text.
    before: Vec<u32>,
    /// `bos_token` of `tokenizer_config.json`.
    bos: Option<String>,
    template: Option<Template>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("before", &self.before)
            .field("bos", &self.bos)
            .finish_non_exhaustive()
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Finding {
    Finding::error("tokens::bad-tokenizer", format!("`tokenizer.json` cannot be read: {error}"))
        .help("Get the file again, or save the tokenizer anew with a current transformers.")
}

/// The error of a model without a tokenizer.
#[must_use]
pub fn missing() -> Finding {
    Finding::error("tokens::no-tokenizer", "the model has no `tokenizer.json`, so no text can be given to it").help(
        "Save the tokenizer with transformers (`AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)`), or \
         use a file of statistics: `calibration: file`.",
    )
}

impl Tokenizer {
    /// Reads the files of a model: `tokenizer.json`, and if they are there `tokenizer_config.json` and
    /// `chat_template.jinja`.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn new(tokenizer: &[u8], config: Option<&[u8]>, template: Option<&str>) -> Result<Self, Finding> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer).map_err(|e| unreadable(&e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| unreadable(&e))?;
        let config: Value = match config {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| {
                Finding::error(
                    "tokens::bad-tokenizer",
                    format!("`tokenizer_config.json` cannot be read: {error}"),
                )
                .help("Get the file again.")
            })?,
            None => Value::Null,
        };
        let encode = |special| inner.encode(PROBE, special).map_err(|e| unreadable(&e));
        let (with, without) = (encode(true)?, encode(false)?);
        let own = without.get_ids();
        let at = with.get_ids().windows(own.len().max(1)).position(|ids| ids == own).unwrap_or(0);
        let before = with.get_ids()[..at].to_vec();
        let bos = config.get("bos_token");
        let bos =
            bos.and_then(|bos| bos.as_str().or_else(|| bos.get("content")?.as_str())).map(str::to_owned);
        let template = Template::new(&config, template)?;
        Ok(Self { inner, before, bos, template })
    }

    /// Tokens of all documents, one after another; before them, once, what a text begins with: if `begins` says nothing, as
    /// the tokenizer's own template has it.
    ///
    /// # Errors
    /// A conversation has no template, or the model has no token to begin with if one is asked for.
    pub fn encode(&self, documents: &[Document], begins: Option<bool>) -> Result<Vec<u32>, Finding> {
        let mut tokens = self.beginning(begins)?;
        let prefix = tokens.len();
        for (index, document) in documents.iter().enumerate() {
            let text = match document {
                Document::Text(text) => text.clone(),
                Document::Chat(line) => self.template.as_ref().ok_or_else(no_template)?.render(line)?,
            };
            let encoded = self.inner.encode_fast(text, false).map_err(|error| {
                Finding::error("tokens::bad-text", format!("the tokenizer cannot read the text: {error}"))
            })?;
            // A chat's own template begins with the same token.
            let ids = encoded.get_ids();
            let skip = if index == 0 && prefix > 0 && ids.starts_with(&tokens) { prefix } else { 0 };
            tokens.extend_from_slice(&ids[skip..]);
        }
        Ok(tokens)
    }

    fn beginning(&self, begins: Option<bool>) -> Result<Vec<u32>, Finding> {
        match begins {
            Some(false) => Ok(Vec::new()),
            None => Ok(self.before.clone()),
            Some(true) if !self.before.is_empty() => Ok(self.before.clone()),
            Some(true) => {
                let id = self.bos.as_deref().and_then(|bos| self.inner.token_to_id(bos));
                id.map(|id| vec![id]).ok_or_else(|| {
                    Finding::error("tokens::no-bos", "the tokenizer has no token that a text begins with")
                        .help("Leave `begin_with_bos` out, or set it to false.")
                })
            }
        }
    }
}

fn no_template() -> Finding {
    Finding::error("tokens::no-chat-template", "the model has no chat template, and the text has `messages`")
        .help("Give the text as `text` instead, or add `chat_template.jinja` to the model.")
}

/// The first `samples` windows of `length` tokens, not overlapping; all that there are where `samples` is none.
///
/// # Errors
/// There is not one.
pub fn windows(tokens: &[u32], length: usize, samples: Option<usize>) -> Result<Vec<Vec<u32>>, Finding> {
    let windows: Vec<Vec<u32>> =
        tokens.chunks_exact(length.max(1)).take(samples.unwrap_or(usize::MAX)).map(<[u32]>::to_vec).collect();
    if windows.is_empty() {
        return Err(Finding::error(
            "tokens::too-little-text",
            format!("the text has {} tokens, and one sample has {length}", tokens.len()),
        )
        .help("Give more text, or a smaller `sequence_length`."));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_the_rest_is_left() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(windows(&tokens, 4, None).expect("two"), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(windows(&tokens, 4, Some(1)).expect("one").len(), 1);
        let error = windows(&tokens, 11, Some(1)).expect_err("none");
        assert_eq!(error.message, "the text has 10 tokens, and one sample has 11");
    }
}
