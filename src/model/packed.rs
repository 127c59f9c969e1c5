//! A model whose weights are codes, seen as the layers that it stands for. For looking at it only.

use std::io::{Read, Seek, SeekFrom};

use super::dtype::Dtype;
use super::folder::ModelFolder;
use super::tensor::TensorInfo;
use super::types::{Classified, classify};
use crate::fs::regular;

/// What belongs to the codes of a module.
const COMPANIONS: &[&str] = &["weight_scale", "weight_zero_point", "weight_shape"];

/// A folder's tensors by the layers that they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The classes: codes, scales, zero points and shapes have that of the weight they stand for.
    pub classified: Classified,
    /// Weights and other parameters of the model. Scales and zero points are none.
    pub parameters: u64,
}

/// Kind and role of every tensor of a folder, and how many parameters they are, where compressed-tensors' codes count as the
/// weights that they stand for. Reads the shapes of packed weights, sixteen bytes each; codes whose shape cannot be read are
/// what their bytes are.
#[must_use]
pub fn layers(folder: &ModelFolder) -> Layers {
    let mut plain = folder.tensors.clone();
    let mut weight_of = vec![None; plain.len()];
    for (index, tensor) in folder.tensors.iter().enumerate() {
        let module = tensor.module();
        let part = |name: &str| folder.find(&format!("{module}.{name}"));
        let Some(scale) = part("weight_scale") else { continue };
        let shape = match tensor.parameter() {
            "weight_packed" => part("weight_shape")
                .and_then(|shape| read_shape(folder, &folder.tensors[shape]))
                .filter(|shape| is_shape_of(tensor, shape)),
            "weight" if tensor.stored == Dtype::I8 => Some(tensor.shape.clone()),
            _ => None,
        };
        let Some(shape) = shape else { continue };
        plain[index].name = format!("{module}.weight");
        plain[index].dtype = folder.tensors[scale].dtype;
        plain[index].shape = shape;
        for companion in COMPANIONS.iter().filter_map(|name| part(name)) {
            weight_of[companion] = Some(index);
        }
    }
    let plain = folder.with_tensors(plain);
    let mut classified = classify(&plain);
    let mut parameters = 0_u64;
    for (index, weight) in weight_of.iter().enumerate() {
        match weight {
            Some(weight) => classified.classes[index] = classified.classes[*weight],
            None => parameters = plain.tensors[index].elements().saturating_add(parameters),
        }
    }
    Layers { classified, parameters }
}

/// Rows and columns, from a tensor of two I64.
fn read_shape(folder: &ModelFolder, tensor: &TensorInfo) -> Option<Vec<u64>> {
    if tensor.stored != Dtype::I64 || tensor.shape != [2] {
        return None;
    }
    let mut file = regular::open(&folder.shards.get(tensor.shard)?.path).ok()?;
    file.seek(SeekFrom::Start(tensor.offset)).ok()?;
    let mut bytes = [0; 16];
    file.read_exact(&mut bytes).ok()?;
    let (rows, columns) = bytes.split_at(8);
    let size = |bytes: &[u8]| u64::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok();
    Some(vec![size(rows)?, size(columns)?])
}

/// Whether packed codes can be those of a weight of this shape: there are no codes of less than two bits.
fn is_shape_of(packed: &TensorInfo, shape: &[u64]) -> bool {
    let [rows, words] = packed.shape[..] else { return false };
    shape[0] == rows && shape[1] <= words.saturating_mul(16)
}
