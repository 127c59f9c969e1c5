//! What a model is made of: plain data, made from `config.json` and the tensors' names and shapes.

use super::op::Program;
use super::parts::{Embedding, Head, Norm, Rope};

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// `model_type` of what runs.
    pub family: String,
    /// Width of the stream between layers.
    pub hidden: usize,
    /// Rows of the token table that tokens may name.
    pub vocabulary: usize,
    /// The longest window that has positions.
    pub positions: usize,
    /// What happens before the first layer.
    pub embedding: Embedding,
    /// One a layer.
    pub layers: Vec<Program>,
    /// The norm after the last layer.
    pub norm: Option<Norm>,
    /// What makes logits; encoders may have none.
    pub head: Option<Head>,
    /// Angles, by the number that the programs name.
    pub ropes: Vec<Rope>,
    /// Whether tokens see those after them.
    pub is_encoder: bool,
    /// Parts of the checkpoint that are not run, in words.
    pub left_out: Vec<String>,
}
