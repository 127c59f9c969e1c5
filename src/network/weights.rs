//! Where a pass gets its tensors from.

use std::ops::Range;

use crate::finding::Finding;

/// Tensors by name, read as F32: a source model, a quantized output that is decoded while it is read, or a table in memory.
pub trait Weights: Sync {
    /// The names of all tensors, in any order.
    fn names(&self) -> Vec<String>;

    /// The shape of a tensor, if there is one of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Entries `rows` of the first axis of a tensor, with all of the further axes, as F32.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding>;
}
