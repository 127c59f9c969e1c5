//! The text that a stage runs the model on.

/// Text to run the model on, and how it is cut into samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunText<'s> {
    /// Files of text, as the recipe names them; empty for the built-in text.
    pub files: &'s [String],
    /// The first so many samples; all if none.
    pub samples: Option<u32>,
    /// Tokens of a sample.
    pub sequence_length: u32,
    /// Whether the first sample begins with the token that texts begin with; as the tokenizer has it if none.
    pub begin_with_bos: Option<bool>,
}
