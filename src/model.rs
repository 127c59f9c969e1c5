//! Model folders: the headers, the index, the config, the kind of layer of each tensor, and positioned reads of the
//! weights.
//!
//! Opening a folder reads headers only, never a weight, and checks everything that can be checked without one. This
//! module does not know how the tensors will be treated (see `plan`).
//!
//! [`Source`](crate::format::source::Source) → `open` → [`ModelFolder`] → `classify` (kinds and roles), `experts` (3-D stacks as matrices),
//! `read` (rows of a matrix as bytes).

mod class;
pub(crate) mod config;
mod decoder;
pub(crate) mod encoded;
pub mod experts;
mod facts;
pub(crate) mod folder;
pub mod header;
pub(crate) mod index;
pub(crate) mod json;
pub(crate) mod matrix_view;
pub(crate) mod name;
mod name_index;
pub(crate) mod packed;
mod quantized;
pub(crate) mod read;
mod roles;
pub(crate) mod shape;
pub(crate) mod tensor;
pub(crate) mod types;

pub use crate::format::Dtype;
pub use class::{Because, LayerClass};
pub use config::Config;
pub use experts::{ExpertMatrix, ExpertPart, ExpertStack};
pub use folder::{Fate, ModelFolder, OtherFile, look, look_with, open};
pub use index::Index;
pub use matrix_view::{MatrixRows, MatrixView};
pub use name::Name;
pub use packed::{Layers, layers};
pub use shape::Shape;
pub use tensor::{Encoded, Shard, TensorInfo};
pub use types::{Classified, classify};

/// Codes of the findings of this module, stable names for scripts.
pub mod code {
    pub use crate::format::source::code::{IO, NOT_A_MODEL, NOT_FOUND};

    /// The header of a weight file is damaged.
    pub const HEADER: &str = "model::header";
    /// A weight file is shorter or longer than its header says.
    pub const LENGTH: &str = "model::length";
    /// Tensor offsets overlap, leave a gap or contradict the tensor's shape.
    pub const OFFSETS: &str = "model::offsets";
    /// A dtype that no version of the format knows.
    pub const DTYPE: &str = "model::dtype";
    /// One tensor name occurs twice, in one file or in two.
    pub const DUPLICATE: &str = "model::duplicate-tensor";
    /// Index and files disagree.
    pub const INDEX: &str = "model::index";
    /// A link leads out of the model's folder.
    pub const LINK: &str = "model::link";
    /// A file name in the index points out of the folder.
    pub const PATH: &str = "model::path-traversal";
    /// `config.json` is missing or cannot be read.
    pub const CONFIG: &str = "model::config";
    /// The weights are already quantized.
    pub const ALREADY_QUANTIZED: &str = "model::already-quantized";
    /// Weights of an encoding whose bytes mean none.
    pub const ENCODED: &str = "model::encoded-weights";
    /// Parts of encoded weights are there without their codes.
    pub const LEFT_PARTS: &str = "model::parts-without-codes";
    /// Several files could be the model.
    pub const UNCLEAR: &str = "model::unclear-weights";
    /// Weights that are not read and whose purpose is unknown.
    pub const LEFT_OUT: &str = "model::left-out";
    /// Names of tensors have the modules of a wrapper in them.
    pub const WRAPPED: &str = "model::wrapped-names";
    /// A Git LFS pointer in place of a file.
    pub const POINTER: &str = "model::lfs-pointer";
    /// A glob of `include` or `exclude` is wrong or matches nothing.
    pub const FILTER: &str = "model::filter";
    /// A weight file changed after its header was read.
    pub const CHANGED: &str = "model::changed";
    /// A read ended before the bytes that the header promises.
    pub const SHORT_READ: &str = "model::short-read";
    /// The axes of a stack of experts cannot be told.
    pub const EXPERTS: &str = "model::experts";
    /// A layer that looks like a router and cannot be told apart from a linear layer.
    pub const GATE: &str = "model::unsure-gate";
    /// No stack of layers is what the configuration says of the language model.
    pub const DECODER: &str = "model::unsure-decoder";
}
