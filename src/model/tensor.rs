//! Tensors and files of a model, as their headers describe them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::name::Name;
use super::shape::Shape;
use crate::format::Dtype;
use crate::format::encoding::{Encoding, StoredMatrix, unquantized};
use crate::format::source::Identity;
use crate::ids::{ShardId, TensorId};

/// A tensor, from the header of its file. If an encoding stores its weights, it is what they mean.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The name in the file, or that of the weights.
    pub name: Name,
    /// The type of the bytes in the file.
    pub stored: Dtype,
    /// The type that the weights mean: BF16 for a scaled FP8 weight, as stored if nothing is decoded.
    pub dtype: Dtype,
    /// Sizes of the axes; empty for a scalar.
    pub shape: Shape,
    /// The file that holds it.
    pub shard: ShardId,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// How the weights are decoded. None if the tensor holds them as they are.
    pub encoded: Option<Arc<Encoded>>,
    /// The weights that this tensor is a part of, such as their scales. It is consumed when they are read, and is not a
    /// layer's parameter.
    pub part_of: Option<TensorId>,
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

    /// The type in which rows are delivered to be quantized (`read.rs`): F32 for F64, otherwise the
    /// dtype.
    #[must_use]
    pub fn working_dtype(&self) -> Dtype {
        unquantized::working_type(self.dtype)
    }

    /// The tensors that must be read beside this one to know its weights.
    #[must_use]
    pub fn parts(&self) -> &[TensorId] {
        self.encoded.as_ref().map_or(&[], |encoded| &encoded.parts)
    }

    /// Whether the last two axes change places if its weights are written as plain numbers.
    #[must_use]
    pub fn plain_is_transposed(&self) -> bool {
        self.encoded.as_ref().is_some_and(|encoded| encoded.matrix.plain_is_transposed())
            && self.shape.len() == 3
    }

    /// Its shape if its weights are written as plain numbers.
    #[must_use]
    pub fn plain_shape(&self) -> Shape {
        let mut shape = self.shape.to_vec();
        if self.plain_is_transposed() {
            shape.swap(1, 2);
        }
        shape.into()
    }

    /// Its name in the file.
    #[must_use]
    pub fn stored_name(&self) -> &str {
        self.encoded.as_ref().map_or(&self.name, |encoded| &encoded.name)
    }

    /// Its shape in the file.
    #[must_use]
    pub fn stored_shape(&self) -> &[u64] {
        self.encoded.as_ref().map_or(&self.shape, |encoded| &encoded.shape)
    }

    /// How its weights are stored: the name of an encoding. None for a part of another tensor.
    #[must_use]
    pub fn encoding(&self) -> Option<&'static str> {
        let read = self.encoded.as_ref().map_or(unquantized::NAME, |encoded| encoded.encoding.name());
        self.part_of.is_none().then_some(read)
    }

    /// Bits of a stored code, if an encoding stores the weights.
    #[must_use]
    pub fn code_bits(&self) -> Option<u64> {
        self.encoded.as_ref()?;
        let elements = self.elements().max(1);
        Some((self.bytes.saturating_mul(8) + elements / 2) / elements)
    }

    /// Dtype and shape as messages show them: `BF16 [256, 64]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.stored, self.shape)
    }
}

/// How an encoding stores the weights of a tensor.
#[derive(Debug)]
pub struct Encoded {
    /// The encoding.
    pub encoding: &'static dyn Encoding,
    /// The name of the codes in the file.
    pub name: Name,
    /// The shape of the codes in the file.
    pub shape: Shape,
    /// The tensors beside this one that decoding needs, in the encoding's order.
    pub parts: Box<[TensorId]>,
    /// How rows are decoded.
    pub matrix: Box<dyn StoredMatrix>,
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
