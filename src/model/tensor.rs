//! Tensors and files of a model, as their headers describe them.

use std::collections::BTreeMap;

use super::dtype::Dtype;
use super::name::Name;
use super::shape::Shape;
use crate::format::source::Identity;
use crate::ids::{ShardId, TensorId};

/// A tensor, from the header of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: Name,
    /// The type of the bytes in the file.
    pub stored: Dtype,
    /// The type that the weights mean: BF16 for a scaled FP8 weight, otherwise as stored.
    pub dtype: Dtype,
    /// Sizes of the axes; empty for a scalar.
    pub shape: Shape,
    /// The file that holds it.
    pub shard: ShardId,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// The scales without which an FP8 weight means nothing.
    pub fp8: Option<Fp8Scales>,
    /// The FP8 weight that this tensor is a scale of. The scale is consumed when that weight is read, and is not a
    /// layer's parameter.
    pub scale_of: Option<TensorId>,
}

impl TensorInfo {
    /// The module: the name without its last part; empty if there is only one part.
    #[must_use]
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    /// The last part of the name, such as `weight`.
    #[must_use]
    pub fn parameter(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, parameter)| parameter)
    }

    /// How many elements. The header was refused if that overflows.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The type in which rows are delivered to be quantized ([`super::read`]): F32 for F64, otherwise the
    /// dtype.
    #[must_use]
    pub fn working_dtype(&self) -> Dtype {
        if self.dtype == Dtype::F64 { Dtype::F32 } else { self.dtype }
    }

    /// Dtype and shape as messages show them: `BF16 [256, 64]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.stored, self.shape)
    }
}

/// The location of an FP8 weight's scales, and the weights that share one scale. A weight is code × scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp8Scales {
    /// The scale tensor.
    pub tensor: TensorId,
    /// Which weights share a scale.
    pub layout: Fp8Layout,
}

/// Which elements of an FP8 weight [out, in] share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8Layout {
    /// All: the scale is `[]` or `[1]`.
    Tensor,
    /// One scale per row: the scale tensor is `[out]` or `[out, 1]`.
    Channel,
    /// One scale per block of `rows` × `columns`: the scale tensor is [ceil(out / rows), ceil(in / columns)].
    Block {
        /// Rows of a block.
        rows: u32,
        /// Columns of a block.
        columns: u32,
    },
}

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The name in the source, with `/`.
    pub name: String,
    /// Bytes of the file.
    pub len: u64,
    /// The first byte after the header.
    pub data_start: u64,
    /// `__metadata__` of the header, ordered by key.
    pub metadata: BTreeMap<String, String>,
    /// Tells whether the file is still the one whose header was read.
    pub identity: Identity,
}
