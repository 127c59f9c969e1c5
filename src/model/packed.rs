//! A model's tensors by the layers that they belong to. For inspection only.

use super::folder::ModelFolder;
use super::tensor::TensorInfo;
use super::types::{Classified, classify};

/// A folder's tensors by the layers that they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The classes. Scales, zero points and shapes have the class of the weight that they are parts of.
    pub classified: Classified,
    /// Weights and other parameters of the model. Scales and zero points are none.
    pub parameters: u64,
}

/// Kind and role of every tensor of a folder, and the number of parameters. Codes that no encoding reads count as the
/// plain tensors that they are stored as.
#[must_use]
pub fn layers(folder: &ModelFolder) -> Layers {
    let mut classified = classify(folder);
    for (index, tensor) in folder.tensors.numbered() {
        if let Some(weight) = tensor.part_of {
            classified.classes[index] = classified.classes[weight];
        }
    }
    let own = folder.tensors.iter().filter(|tensor| tensor.part_of.is_none()).map(TensorInfo::elements);
    Layers { classified, parameters: own.fold(0, u64::saturating_add) }
}
