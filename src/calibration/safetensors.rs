//! Statistics as safetensors: `MODULE.in_sum2` F32 [columns] or [experts, columns], `MODULE.counts` one number or one
//! per expert, and `samples`, `tokens` and `source` in the metadata.

use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Dtype, TensorView};

use super::cursor::floats;
use super::{Format, ModuleStatistics, Statistics, truncated};
use crate::finding::Finding;

pub(super) fn parse(bytes: &[u8]) -> Result<Statistics, Finding> {
    let unreadable = |error: ::safetensors::SafeTensorError| match error {
        ::safetensors::SafeTensorError::MetadataIncompleteBuffer => truncated(),
        error => Finding::error("calibration::unknown-format", format!("it is no safetensors file: {error}"))
            .help("Activation statistics are a safetensors file, or an importance matrix of llama.cpp."),
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let metadata = metadata.metadata().clone().unwrap_or_default();
    let number = |key: &str| metadata.get(key).and_then(|text| text.parse().ok());
    // By name, so that the order does not depend on the writer.
    let tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let mut modules = Vec::new();
    for (name, tensor) in &tensors {
        let Some(module) = name.strip_suffix(".in_sum2") else { continue };
        let wrong = |what: String| {
            Finding::error("calibration::wrong-shape", format!("`{name}` {what}"))
                .help("`in_sum2` is F32 [columns], or [experts, columns]; `counts` has one number, or one an expert.")
        };
        let shape = tensor.shape();
        if tensor.dtype() != Dtype::F32 || !(1..=2).contains(&shape.len()) {
            return Err(wrong(format!("is {:?} {shape:?}", tensor.dtype())));
        }
        let counts = tensors
            .get(&format!("{module}.counts"))
            .ok_or_else(|| wrong("has no counts beside it".to_owned()))?;
        let counts =
            numbers(counts).ok_or_else(|| wrong(format!("has counts of type {:?}", counts.dtype())))?;
        let matrices = if shape.len() == 2 { shape[0] } else { 1 };
        if counts.len() != 1 && counts.len() != matrices {
            return Err(wrong(format!("is {shape:?} and has {} counts", counts.len())));
        }
        modules.push(ModuleStatistics { name: module.to_owned(), sums: floats(tensor.data()), counts });
    }
    let sources = metadata.get("source").cloned().into_iter().collect();
    let (samples, tokens) = (number("samples"), number("tokens"));
    Ok(Statistics { format: Format::Safetensors, modules, samples, tokens, sources })
}

/// The numbers of a small tensor; none if its type is not supported.
fn numbers(tensor: &TensorView<'_>) -> Option<Vec<f64>> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::F32 => floats(data).into_iter().map(f64::from).collect(),
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        Dtype::I32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        _ => return None,
    })
}
