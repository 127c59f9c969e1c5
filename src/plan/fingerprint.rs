//! What decides the bytes that come of a source tensor: where two plans agree on it and the tensor holds the same bytes, so do
//! the outputs.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{ExportPlan, Plan};

/// The build of this program: a hash of all that decides what it computes. Another build may give other codes, scales or
/// measurements, so nothing of it is mixed in.
pub const BUILD: &str = env!("MONOQUANT_BUILD");

/// The first 128 bits of a BLAKE3 hash, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    fn of(text: &[u8]) -> Self {
        Self(blake3::hash(text).to_hex()[..32].to_owned())
    }
}

/// The fingerprints of a source tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPrint {
    /// What is measured: the stored type and shape, the matrices and how they are quantized.
    pub numbers: Fingerprint,
    /// What is written by each export, wherever it is put.
    pub outputs: Vec<Fingerprint>,
    /// The output tensors of each export that hold it, in a fixed order.
    pub tensors: Vec<Vec<usize>>,
}

/// The fingerprints of all source tensors. They do not cover the tensors' bytes, but the statistics
/// that weigh them.
#[must_use]
pub fn tensors(plan: &Plan) -> Vec<TensorPrint> {
    let mut held: Vec<Vec<Vec<usize>>> = vec![vec![Vec::new(); plan.exports.len()]; plan.model.tensors.len()];
    let mut numbers: Vec<String> = plan
        .model
        .tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let layout = tensor.fp8.map(|fp8| fp8.layout);
            let action =
                plan.decisions[index].treatment().map(|treatment| (treatment.scheme, treatment.observer));
            format!("{BUILD} {} {:?} {layout:?} {action:?}", tensor.stored, tensor.shape)
        })
        .collect();
    for (index, piece) in plan.pieces.iter().enumerate() {
        let _ = write!(numbers[piece.tensor], " {:?}", piece.matrix);
        if let Some(importance) = &plan.weighing.pieces[index] {
            let mut hasher = blake3::Hasher::new();
            for column in importance.columns() {
                hasher.update(&column.to_le_bytes());
            }
            let _ = write!(numbers[piece.tensor], " {}", hasher.finalize().to_hex());
        }
        for (export, held) in plan.exports.iter().zip(&mut held[piece.tensor]) {
            for tensor in export.pieces[index].tensors() {
                if held.last() != Some(&tensor) {
                    held.push(tensor);
                }
            }
        }
    }
    numbers
        .into_iter()
        .zip(held)
        .map(|(numbers, tensors)| {
            let written = plan.exports.iter().zip(&tensors).map(|(export, tensors)| {
                let mut text = format!("{numbers} {:?}", export.format);
                for &tensor in tensors {
                    let written = &export.tensors[tensor];
                    let _ = write!(text, " {:?} {} {:?}", written.part, written.dtype, written.shape);
                }
                Fingerprint::of(text.as_bytes())
            });
            TensorPrint { outputs: written.collect(), numbers: Fingerprint::of(numbers.as_bytes()), tensors }
        })
        .collect()
}

/// The fingerprint of where everything lies in an export's weight files.
#[must_use]
pub fn layout(export: &ExportPlan) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for file in &export.files {
        for part in [file.name.as_bytes(), &file.bytes.to_le_bytes(), &file.header] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    Fingerprint(hasher.finalize().to_hex()[..32].to_owned())
}
