//! The model runs: a language model's or an encoder's forward pass in F32, layer by layer, without Python.
//!
//! `config.json` and the tensors' names and shapes become a [`Description`]: what is looked up, one [`Program`] a layer, and the
//! head. A program is a list of small steps over named rows, so that a pass can stop before any product of matrices (rounding
//! needs it there), be listened to at each of them, and be walked backwards. Windows of tokens are the unit of parallel work;
//! of the weights, those of one layer are in memory at a time, whatever is asked of a pass ([`Pass`]).
//!
//! A config key or a tensor that is not understood is an error and never passed over: the model is then not admitted.

mod activation;
mod attention;
mod backward;
mod batches;
mod build;
mod checkpoint;
mod code;
mod compare;
mod description;
mod execute;
mod families;
mod feed;
mod keys;
mod listener;
mod math;
mod mixers;
mod moments;
mod moments_file;
mod names;
mod op;
mod outputs;
mod parts;
mod pass;
mod product;
mod quantized;
mod recurrent;
mod rope;
mod rounding;
mod routing;
mod row_products;
mod rules;
mod sequence;
mod shape;
mod statistics;
#[cfg(test)]
mod test_weights;
pub mod tokens;
mod weights;

pub use activation::{Engine, round_per_token, round_to_float8};
pub use backward::{Backwards, can_go_back};
pub use checkpoint::Checkpoint;
pub use compare::{Divergence, compare_logits, layer_error, logits, pooled_cosine};
pub use description::Description;
pub use execute::{Hear, LayerWeights, Values, Window};
pub use families::{FAMILIES, Family};
pub use listener::{Listener, Silent};
pub use moments::Moments;
pub use moments_file::{MomentsFile, MomentsLayout, MomentsWriter};
pub use op::{Op, Program, Slot};
pub use outputs::{OutputMoments, OutputSum};
pub use parts::{
    Activation, Attention, Embedding, Head, Join, Layout, Linear, Norm, NormKind, Part, Rope, Router, Scores,
};
pub use pass::{Hidden, Pass, Tell};
pub use quantized::{InputRounding, Quantized};
pub use rounding::{RoundedMatrix, Rounding, StageSize, Unusable, round_stage};
pub use routing::Routing;
pub use sequence::{Compared, Round, Sequence, StageMoments, stage_parts};
pub use statistics::MeanSquares;
pub use weights::Weights;
