//! Models whose weights are already codes, viewed as the layers that the codes represent. For inspection only.

use super::folder::ModelFolder;
use super::name::Names;
use super::quantized;
use super::shape::Shape;
use super::tensor::TensorInfo;
use super::types::{Classified, classify};
use crate::format::Dtype;
use crate::ids::{IdVec, TensorId};

/// Parameters that accompany the codes of a module.
const COMPANIONS: &[&str] = &["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];

/// A folder's tensors by the layers that they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The classes. Codes, scales, zero points and shapes have the class of the weight they represent.
    pub classified: Classified,
    /// Weights and other parameters of the model. Scales and zero points are none.
    pub parameters: u64,
    /// For tensors that are parts of others, such as scales: the codes that they belong to.
    pub part_of: IdVec<TensorId, Option<TensorId>>,
}

/// Kind and role of every tensor of a folder, and the number of parameters. The codes of compressed-tensors count as
/// the weights that they represent. Reads the shapes of packed weights, sixteen bytes each. Codes whose shape cannot
/// be read count as the plain tensors that they are stored as.
#[must_use]
pub fn layers(folder: &ModelFolder) -> Layers {
    let packed: Vec<Packed> = folder.tensors.ids().filter_map(|index| Packed::of(folder, index)).collect();
    let mut part_of = folder.tensors.map(|tensor| tensor.part_of);
    if packed.is_empty() {
        let parameters = parameters(&folder.tensors, &part_of);
        return Layers { classified: classify(folder), parameters, part_of };
    }
    let mut plain = folder.tensors.clone();
    let mut names = Names::default();
    let mut spans = Vec::with_capacity(packed.len());
    for of in packed {
        let module = folder.tensors[of.index].module();
        spans.push((of.index, names.push(&format!("{module}.weight"))));
        plain[of.index].dtype = of.dtype;
        plain[of.index].shape = of.shape;
        for companion in COMPANIONS.iter().filter_map(|name| part(folder, module, name)) {
            part_of[companion] = Some(of.index);
        }
    }
    let names = names.shared();
    for (index, span) in spans {
        plain[index].name = names.at(span.unwrap_or_default());
    }
    let plain = folder.with_tensors(plain);
    let mut classified = classify(&plain);
    for (index, weight) in part_of.numbered() {
        if let Some(weight) = weight {
            classified.classes[index] = classified.classes[*weight];
        }
    }
    let parameters = parameters(&plain.tensors, &part_of);
    Layers { classified, parameters, part_of }
}

/// Elements of all tensors that are no parts of others.
fn parameters(tensors: &IdVec<TensorId, TensorInfo>, part_of: &IdVec<TensorId, Option<TensorId>>) -> u64 {
    let own = tensors.iter().zip(part_of).filter(|(_, part_of)| part_of.is_none());
    own.map(|(tensor, _)| tensor.elements()).fold(0, u64::saturating_add)
}

/// Codes, with the weight that they stand for.
struct Packed {
    index: TensorId,
    dtype: Dtype,
    shape: Shape,
}

impl Packed {
    fn of(folder: &ModelFolder, index: TensorId) -> Option<Self> {
        let tensor = &folder.tensors[index];
        let is_plain = tensor.parameter() == "weight" && tensor.stored == Dtype::I8;
        if !is_plain && tensor.parameter() != "weight_packed" {
            return None;
        }
        let module = tensor.module();
        let dtype = folder.tensors[part(folder, module, "weight_scale")?].dtype;
        let shape = match is_plain {
            true => tensor.shape.clone(),
            false => part(folder, module, "weight_shape")
                .and_then(|shape| read_shape(folder, &folder.tensors[shape]))
                .filter(|shape| is_shape_of(tensor, shape))?
                .into(),
        };
        Some(Self { index, dtype, shape })
    }
}

fn part(folder: &ModelFolder, module: &str, name: &str) -> Option<TensorId> {
    folder.find(&format!("{module}.{name}"))
}

/// Rows and columns, from a tensor of two I64 values.
fn read_shape(folder: &ModelFolder, tensor: &TensorInfo) -> Option<Vec<u64>> {
    if tensor.stored != Dtype::I64 || tensor.shape != [2] {
        return None;
    }
    let bytes = quantized::bytes(&*folder.source, folder.shards.get(tensor.shard)?, tensor, 0..16)?;
    let (rows, columns) = bytes.split_at(8);
    let size = |bytes: &[u8]| u64::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok();
    Some(vec![size(rows)?, size(columns)?])
}

/// Whether packed codes can belong to a weight of this shape. No code has fewer than two bits.
fn is_shape_of(packed: &TensorInfo, shape: &[u64]) -> bool {
    let [rows, words] = packed.shape[..] else { return false };
    shape[0] == rows && shape[1] <= words.saturating_mul(16)
}
