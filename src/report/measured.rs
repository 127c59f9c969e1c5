//! Results of a pass over the weights: distortions, checksums, and values or bytes that are not as they should be.

use crate::digest::Digest;
use crate::quant::Distortion;

/// A value that is not a finite number, where nothing but reading it was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotFinite {
    /// Index of the source tensor.
    pub tensor: usize,
    /// The element, counted from the tensor's first.
    pub element: u64,
}

/// A tile that was not read back as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mismatch {
    /// Index of the export.
    pub export: usize,
    /// Index of the output tensor.
    pub tensor: usize,
}

/// What was found in a whole pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The distortion of each source tensor, where it was quantized.
    pub tensors: Vec<Option<Distortion>>,
    /// What identifies each source file.
    pub source_files: Vec<Digest>,
    /// What identifies each file of each export.
    pub output_files: Vec<Vec<Digest>>,
    /// The first value of each kept tensor that is not finite, in the order of the tensors.
    pub not_finite: Vec<NotFinite>,
    /// Output tensors that were not read back as written.
    pub mismatches: Vec<Mismatch>,
}
