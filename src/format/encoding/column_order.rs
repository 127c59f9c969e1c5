//! Columns in an order of their own (`g_idx`, `weight_g_idx`): activations decided which columns share a scale.

use super::Catalog;
use crate::format::Dtype;
use crate::ids::TensorId;

/// Why such codes cannot be re-labelled.
pub(super) const NOT_WRITTEN: &str =
    "activations decided about the order of its columns (`g_idx`), which cannot be written";

/// The group of each column.
#[derive(Debug)]
pub(super) struct ColumnOrder<'m> {
    name: &'m str,
    of: Vec<i32>,
}

impl<'m> ColumnOrder<'m> {
    /// Reads the order of so many columns.
    ///
    /// # Errors
    /// If it cannot be read, or has not one group for each column: the reason, as in [`super::ReadEncoding::recognize`].
    pub(super) fn read(model: &'m dyn Catalog, order: TensorId, columns: u64) -> Result<Self, String> {
        let tensor = model.tensor(order);
        let (name, dtype, shape) = (tensor.name, tensor.dtype, tensor.shape);
        if dtype != Dtype::I32 || shape != [columns] {
            return Err(format!("has `{name}` of {dtype} {shape:?} for {columns} columns"));
        }
        let bytes = model.bytes(order, 0..columns * 4)?;
        Ok(Self { name, of: bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect() })
    }

    /// Whether a column has no group (−1), which is what compressed-tensors begins with.
    pub(super) fn is_unset(&self) -> bool {
        self.of.contains(&-1)
    }

    /// Whether each column is in the group of `size` columns that it would be in without an order of its own.
    ///
    /// # Errors
    /// If a column is in a group that there is not.
    pub(super) fn is_plain(&self, size: u64, groups: u64) -> Result<bool, String> {
        let is_group = |of: &i32| u64::try_from(*of).is_ok_and(|of| of < groups);
        if let Some(bad) = self.of.iter().find(|of| !is_group(of)) {
            return Err(format!("puts a column into group {bad} of {groups} in `{}`", self.name));
        }
        Ok((0..).zip(&self.of).all(|(column, of)| u64::try_from(*of) == Ok(column / size.max(1))))
    }
}

/// Makes codes of a row weights, each with the zero point and the scale of its group. `order` is the bytes of the order.
///
/// # Errors
/// If a column is in a group that there is not.
pub(super) fn dequantize(out: &mut [f32], order: &[u8], zeros: &[f32], scales: &[f32]) -> Result<(), String> {
    for (out, group) in out.iter_mut().zip(order.as_chunks().0) {
        let group = usize::try_from(i32::from_le_bytes(*group)).unwrap_or(usize::MAX);
        let (Some(zero), Some(scale)) = (zeros.get(group), scales.get(group)) else {
            return Err("has a column of a group that there is not".to_owned());
        };
        *out = (*out - zero) * scale;
    }
    Ok(())
}
