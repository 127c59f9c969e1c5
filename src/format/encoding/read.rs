//! The reading side of encodings: from tensors of a model to matrices of weights.

use std::fmt;
use std::ops::Range;

use serde_json::Value;

use super::{Encoding, unquantized};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Integers, Scheme};
use crate::stage::ActivationScheme;

/// How matrices are read that some tool has stored like this.
pub trait ReadEncoding: Encoding {
    /// Whether a `quantization_config` speaks of this encoding.
    fn is_declared(&self, declaration: &Value) -> bool;

    /// The matrix whose codes tensor `tensor` holds. None if it holds no codes of this encoding.
    ///
    /// # Errors
    /// If it holds some, and they cannot be read: the reason, as what follows the tensor's name in a sentence. Codes are never
    /// read without their scales: the weights would be wrong by orders of magnitude.
    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>>;

    /// Parameters that are parts of its matrices and mean nothing without codes.
    fn parts(&self) -> &'static [&'static str];

    /// What is told of codes that cannot be read.
    fn refusal(&self) -> Refusal;
}

/// The words of a finding about codes that cannot be read: "the `what` `name` `reason`".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The finding's code.
    pub code: &'static str,
    /// What the tensor is, such as `FP8 weight`.
    pub what: &'static str,
    /// What can be read, and what to do, in full sentences.
    pub help: &'static str,
}

/// The tensors of a model, as the headers of its files describe them.
pub trait Catalog {
    /// A tensor by its number.
    fn tensor(&self, tensor: TensorId) -> StoredTensor<'_>;

    /// The number of the tensor with this name.
    fn find(&self, name: &str) -> Option<TensorId>;

    /// The `quantization_config` of the model's `config.json`.
    fn declaration(&self) -> Option<&Value>;

    /// A value of the model's `config.json`, by its key.
    fn config(&self, key: &str) -> Option<&Value>;

    /// Some bytes of a tensor, for the few facts that no header has: a shape, an order of columns.
    ///
    /// # Errors
    /// If they cannot be read: the reason, as in [`ReadEncoding::recognize`].
    fn bytes(&self, tensor: TensorId, range: Range<u64>) -> Result<Vec<u8>, String>;
}

/// A tensor of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredTensor<'m> {
    /// Its name.
    pub name: &'m str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Sizes of its axes.
    pub shape: &'m [u64],
}

impl<'m> StoredTensor<'m> {
    /// The module and the parameter: the parts of the name before and after the last dot.
    #[must_use]
    pub fn module_and_parameter(&self) -> (&'m str, &'m str) {
        self.name.rsplit_once('.').unwrap_or(("", self.name))
    }
}

/// A matrix that was recognized among the tensors of a model, or a stack of matrices.
#[derive(Debug)]
pub struct Recognized {
    /// The name of the weights. None if the codes have it.
    pub name: Option<String>,
    /// The shape of the weights. The last axis is the columns of a row; all others together are the rows.
    pub shape: Vec<u64>,
    /// The type that the weights mean: a float that decoded rows are rounded to.
    pub dtype: Dtype,
    /// The tensors beside the codes that decoding needs. The codes are part 0, so the first of these is part 1.
    pub parts: Vec<TensorId>,
    /// Tensors that belong to the matrix and say nothing about its weights, such as scales of activations.
    pub unused: Vec<TensorId>,
    /// How rows are decoded.
    pub matrix: Box<dyn StoredMatrix>,
}

/// A matrix that can be re-labelled: its codes and scales are written as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// The scheme that it is in.
    pub scheme: Scheme,
    /// How engines treat its inputs.
    pub activations: ActivationScheme,
    /// What makes it so, in a few words.
    pub because: &'static str,
}

/// A stored matrix: which bytes its rows need, and what they mean.
pub trait StoredMatrix: fmt::Debug + Send + Sync {
    /// The bytes of a part that rows need.
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges;

    /// Decodes a row into `out`, which has its columns. `fetched` holds the row.
    ///
    /// # Errors
    /// If the row means no weights: the reason, as in [`ReadEncoding::recognize`].
    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String>;

    /// Appends the weights of a row, little endian and each rounded once, in the float type that they mean. `weights` has the
    /// columns of a row, and is memory to be used.
    ///
    /// # Errors
    /// As [`StoredMatrix::decode_row`].
    fn append_row(
        &self,
        fetched: &Fetched<'_>,
        row: u64,
        (dtype, out): (Dtype, &mut Vec<u8>),
        weights: &mut [f32],
    ) -> Result<(), String> {
        self.decode_row(fetched, row, weights)?;
        unquantized::write(weights, dtype, out);
        Ok(())
    }

    /// Whether the family's own files hold these weights with the last two axes changed if they are plain numbers: so they are
    /// written then.
    fn plain_is_transposed(&self) -> bool {
        false
    }

    /// The matrix in integers that are written, if it can be re-labelled.
    ///
    /// # Errors
    /// If they cannot: the reason, as what follows "because" in a sentence.
    fn exact(&self) -> Result<Exact, String> {
        Err("its codes are no integers of 4 or 8 bits".to_owned())
    }

    /// Appends the codes, zero points and scales of a row, as [`StoredMatrix::exact`] has them.
    ///
    /// # Errors
    /// If the row has none, or they are others than the whole matrix promised: the reason, as in
    /// [`ReadEncoding::recognize`].
    fn relabel_row(&self, _fetched: &Fetched<'_>, _row: u64, _out: &mut Integers) -> Result<(), String> {
        Err("has no codes that can be re-labelled".to_owned())
    }

    /// Whether a byte of the codes may belong to several rows, as if codes are packed along the rows, or those of a row lie
    /// in pieces that are too small to be summed up one by one.
    fn rows_share_bytes(&self) -> bool {
        false
    }
}

/// Bytes of a part: `count` stretches of `bytes` bytes, each `step` bytes after the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// The first byte.
    pub start: u64,
    /// Bytes of a stretch.
    pub bytes: u64,
    /// Bytes from the start of a stretch to the start of the next.
    pub step: u64,
    /// How many stretches.
    pub count: u64,
}

impl Ranges {
    /// Elements of `element` bytes each, in one stretch.
    #[must_use]
    pub fn elements(range: Range<u64>, element: u64) -> Self {
        let bytes = range.end.saturating_sub(range.start) * element;
        Self { start: range.start * element, bytes, step: bytes, count: 1 }
    }

    /// All bytes together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.bytes * self.count
    }

    /// From the first byte to the end of the last.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        self.start..self.start + self.count.saturating_sub(1) * self.step + self.bytes
    }

    /// The start of each stretch.
    pub fn starts(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |n| self.start + n * self.step)
    }
}

/// Bytes of all parts of a matrix for some rows: the stretches of [`StoredMatrix::ranges`], one after the other.
#[derive(Debug)]
pub struct Fetched<'b> {
    /// The rows.
    pub rows: Range<u64>,
    /// The bytes of each part.
    pub parts: Vec<&'b [u8]>,
}

impl<'b> Fetched<'b> {
    /// Bytes of a part, counted from the first that was fetched.
    ///
    /// # Errors
    /// If there are too few.
    pub fn bytes(&self, part: usize, start: u64, count: u64) -> Result<&'b [u8], String> {
        let bytes = self.parts.get(part).and_then(|bytes| {
            let end = start.checked_add(count)?;
            bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        bytes.ok_or_else(|| "is shorter than its shape says".to_owned())
    }
}
