//! From text to windows of tokens: the model's own `tokenizer.json`, and its chat template for conversations.

mod template;
mod text;
mod tokenizer;

pub use template::Template;
pub use text::{Document, documents};
pub use tokenizer::{Tokenizer, missing, windows};
