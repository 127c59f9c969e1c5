//! Results of a pass over the weights: distortions, checksums, non-finite values, and bytes that were read back
//! differently.

use crate::digest::Digest;
use crate::ids::{ExportId, FileId, IdVec, OutputTensorId, ShardId, TaskId, TensorId};
use crate::quant::Distortion;

/// A value that is not a finite number, in a tensor that is not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotFinite {
    /// The source tensor.
    pub tensor: TensorId,
    /// The element, counted from the tensor's first.
    pub element: u64,
}

/// A tile that was not read back as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mismatch {
    /// The export.
    pub export: ExportId,
    /// The output tensor.
    pub tensor: OutputTensorId,
}

/// The tasks that hold the extremes of a tensor. A stack of experts has a task per matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extremes {
    /// The task with the largest error.
    pub max_abs_error: TaskId,
    /// The task with the worst group.
    pub worst_group: TaskId,
}

/// The results of a whole pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The distortion of each source tensor, if it was quantized.
    pub tensors: IdVec<TensorId, Option<Distortion>>,
    /// Where the extremes of each of these are.
    pub extremes: IdVec<TensorId, Option<Extremes>>,
    /// The digest of each source file.
    pub source_files: IdVec<ShardId, Digest>,
    /// The digest of each file of each export.
    pub output_files: IdVec<ExportId, IdVec<FileId, Digest>>,
    /// The first value of each kept tensor that is not finite, in the order of the tensors.
    pub not_finite: Vec<NotFinite>,
    /// Output tensors that were not read back as written.
    pub mismatches: Vec<Mismatch>,
}
