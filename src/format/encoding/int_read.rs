//! The reading side that packed and plain integers of compressed-tensors share: (code − zero point) × scale.

use std::ops::Range;

use super::bit_fields::{Packing, one, unpack};
use super::column_order::{self, ColumnOrder};
use super::declared::{activations, weights};
use super::small_floats::{finite_scale, scale};
use super::{Catalog, Exact, Fetched, Ranges, StoredMatrix, relabelled_scheme};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Integers, Storage};
use crate::stage::ActivationScheme;

/// How codes are stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Codes {
    /// Unsigned, so many words a row.
    Packed { bits: u32, packing: Packing, words: u64 },
    /// One signed byte each.
    Plain,
}

/// The tensors beside the codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub(super) scales: TensorId,
    pub(super) zero_points: Option<TensorId>,
    /// The group of each column.
    pub(super) order: Option<TensorId>,
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy)]
enum Zeros {
    /// There are none.
    Symmetric,
    /// Like the codes, along the rows, for each group.
    Packed,
    /// One signed byte each, one per scale.
    Plain,
}

/// A matrix [out, in] of integers with their scales.
#[derive(Debug, Clone, Copy)]
pub(super) struct IntMatrix {
    codes: Codes,
    zeros: Zeros,
    columns: u64,
    /// Scales of a row. None if there is one for all weights.
    groups: Option<u64>,
    /// Columns of a group.
    group: u64,
    scales: Dtype,
    /// The last part gives the group of each column.
    is_ordered: bool,
    /// How engines treat its inputs. None if in a way that is not written.
    activations: Option<ActivationScheme>,
}

impl IntMatrix {
    /// The matrix of these parts.
    ///
    /// # Errors
    /// If they contradict each other: the reason, as in [`super::ReadEncoding::recognize`].
    pub(super) fn new(
        model: &dyn Catalog,
        codes: Codes,
        [rows, columns]: [u64; 2],
        parts: Scales,
    ) -> Result<Self, String> {
        let scales = model.tensor(parts.scales);
        if !matches!(scales.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32) {
            return Err(format!("has scales of {}", scales.dtype));
        }
        let groups = match *scales.shape {
            [] | [1] | [1, 1] if rows != 1 => None,
            [n] if n == rows => Some(1),
            [n, groups] if n == rows && groups > 0 => Some(groups),
            [] | [1] | [1, 1] => Some(1),
            _ => return Err(format!("has scales {:?} for [{rows}, {columns}] weights", scales.shape)),
        };
        let group = group_size(model, columns, groups.unwrap_or(1))?;
        let is_ordered = match parts.order {
            Some(order) => {
                let order = ColumnOrder::read(model, order, columns)?;
                let has_groups = groups.is_some_and(|groups| groups > 1) && !order.is_unset();
                has_groups && !order.is_plain(group, groups.unwrap_or(1))?
            }
            None => false,
        };
        let zeros = match parts.zero_points.map(|zeros| model.tensor(zeros)) {
            None => Zeros::Symmetric,
            Some(zeros) if zeros.dtype == Dtype::I8 && zeros.shape == scales.shape => Zeros::Plain,
            Some(zeros) => match codes {
                Codes::Packed { bits, packing, .. }
                    if zeros.dtype == Dtype::I32
                        && groups
                            .is_some_and(|groups| zeros.shape == [packing.words(bits, rows), groups]) =>
                {
                    Zeros::Packed
                }
                _ => {
                    return Err(format!(
                        "has zero points of {} {:?} beside scales {:?}",
                        zeros.dtype, zeros.shape, scales.shape
                    ));
                }
            },
        };
        let mut all = model.declaration().into_iter().flat_map(weights).peekable();
        if matches!(zeros, Zeros::Symmetric)
            && all.peek().is_some()
            && all.all(|weights| weights.get("symmetric") == Some(&serde_json::Value::Bool(false)))
        {
            return Err("has no zero points, and `config.json` says `symmetric: false`".to_owned());
        }
        let activations = model.declaration().map_or(Some(ActivationScheme::None), activations);
        Ok(Self { codes, zeros, columns, groups, group, scales: scales.dtype, is_ordered, activations })
    }

    /// The parts of the recognized matrix, and the tensors beside them that say nothing about its weights.
    pub(super) fn split(&self, of: Scales) -> (Vec<TensorId>, Vec<TensorId>) {
        let (used, unused) = if self.is_ordered { (of.order, None) } else { (None, of.order) };
        let parts = std::iter::once(of.scales).chain(of.zero_points).chain(used);
        (parts.collect(), unused.into_iter().collect())
    }

    /// The number of the part that gives the order of columns.
    fn order_part(&self) -> Option<usize> {
        self.is_ordered.then_some(if matches!(self.zeros, Zeros::Symmetric) { 2 } else { 3 })
    }

    /// The words or rows of zero points that rows need.
    fn zero_lines(&self, rows: &Range<u64>) -> Range<u64> {
        match (self.zeros, self.codes) {
            (Zeros::Packed, Codes::Packed { bits, packing, .. }) => {
                let start = match packing {
                    Packing::Dense => rows.start * u64::from(bits) / 32,
                    Packing::Padded => rows.start / u64::from(32 / bits),
                };
                start..packing.words(bits, rows.end)
            }
            _ => rows.clone(),
        }
    }

    /// The zero point of a row in a group, as the codes are: unsigned if they are packed.
    fn zero_point(&self, fetched: &Fetched<'_>, row: u64, group: u64) -> Result<f32, String> {
        let middle = match self.codes {
            Codes::Packed { bits, .. } => (1_u32 << (bits - 1)) as f32,
            Codes::Plain => 0.0,
        };
        let groups = self.groups.unwrap_or(1);
        match (self.zeros, self.codes) {
            (Zeros::Packed, Codes::Packed { bits, packing, .. }) => {
                let start = self.zero_lines(&fetched.rows).start;
                let word = |line: u64| {
                    let bytes = fetched.bytes(2, ((line - start) * groups + group) * 4, 4)?;
                    Ok::<_, String>(bytes.try_into().map_or(0, u32::from_le_bytes))
                };
                let bit = packing.bit(bits, row as usize) as u64;
                let low = u64::from(word(bit / 32)?);
                let over = bit % 32 + u64::from(bits) > 32;
                let high = if over { u64::from(word(bit / 32 + 1)?) << 32 } else { 0 };
                Ok(((low | high) >> (bit % 32) & ((1 << bits) - 1)) as f32)
            }
            (Zeros::Plain, _) => {
                let first = if self.groups.is_some() { row - fetched.rows.start } else { 0 };
                let byte = fetched.bytes(2, first * groups + group, 1)?;
                Ok(middle + f32::from(byte.first().map_or(0, |byte| *byte as i8)))
            }
            _ => Ok(middle),
        }
    }
}

/// The columns of a group, by the number of groups; the last may have fewer if the declaration says so.
fn group_size(model: &dyn Catalog, columns: u64, groups: u64) -> Result<u64, String> {
    let declared = model.declaration().into_iter().flat_map(weights);
    let mut sizes = declared.filter_map(|weights| weights.get("group_size")?.as_u64());
    match sizes.find(|size| *size > 0 && columns.div_ceil(*size) == groups) {
        Some(size) => Ok(size),
        None if columns.is_multiple_of(groups) => Ok(columns / groups),
        None => Err(format!("has {groups} scales a row, which do not divide its {columns} columns")),
    }
}

impl StoredMatrix for IntMatrix {
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges {
        let size = self.scales.bytes().unwrap_or(4);
        if self.order_part() == Some(part) {
            return Ranges::elements(0..self.columns, 4);
        }
        match (part, self.codes, self.groups) {
            (0, Codes::Packed { words, .. }, _) => Ranges::elements(rows, words * 4),
            (0, Codes::Plain, _) => Ranges::elements(rows, self.columns),
            (1, _, Some(groups)) => Ranges::elements(rows, groups * size),
            (1, _, None) => Ranges::elements(0..1, size),
            // Packed zero points are those of groups.
            (_, _, None) => Ranges::elements(0..1, 1),
            (_, _, Some(groups)) => {
                let width = if matches!(self.zeros, Zeros::Packed) { 4 } else { 1 };
                Ranges::elements(self.zero_lines(&rows), groups * width)
            }
        }
    }

    fn exact(&self) -> Result<Exact, String> {
        if self.is_ordered {
            return Err(column_order::NOT_WRITTEN.to_owned());
        }
        let groups = self.groups.ok_or("one scale holds for all of its weights")?;
        let activations = self.activations.ok_or("its inputs are quantized in a way that is not written")?;
        let (bits, storage) = match (self.codes, activations) {
            (Codes::Packed { bits, .. }, ActivationScheme::None | ActivationScheme::DynamicTokenFp8) => {
                (bits, Storage::Packed)
            }
            // As written here: eight bits beside inputs that engines round.
            (Codes::Plain, ActivationScheme::DynamicToken) => (8, Storage::Plain),
            (Codes::Plain, ActivationScheme::None) => (8, Storage::Packed),
            _ => return Err("its inputs are quantized in a way that is not written".to_owned()),
        };
        let is_symmetric = matches!(self.zeros, Zeros::Symmetric);
        let scheme =
            relabelled_scheme(bits, is_symmetric, [self.group, groups, self.columns], self.scales, storage)?;
        Ok(Exact { scheme, activations, because: "codes and scales copied" })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let at = row - fetched.rows.start;
        match self.codes {
            Codes::Packed { bits, packing, words } => {
                let bytes = fetched.bytes(0, at * words * 4, words * 4)?;
                for column in 0..self.columns as usize {
                    out.codes.push(one(bytes, bits, packing, column).ok_or("has too few codes")? as u8);
                }
            }
            Codes::Plain => {
                let bytes = fetched.bytes(0, at * self.columns, self.columns)?;
                out.codes.extend(bytes.iter().map(|code| code ^ 0x80));
            }
        }
        let (groups, size) = (self.groups.unwrap_or(1), self.scales.bytes().unwrap_or(4));
        out.scales.extend_from_slice(fetched.bytes(1, at * groups * size, groups * size)?);
        // Of plain codes zero points are signed.
        let least = if matches!(self.codes, Codes::Plain) { 128.0 } else { 0.0 };
        for group in 0..groups {
            out.zero_points.push((self.zero_point(fetched, row, group)? + least) as u8);
        }
        Ok(())
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let at = row - fetched.rows.start;
        match self.codes {
            Codes::Packed { bits, packing, words } => {
                let bytes = fetched.bytes(0, at * words * 4, words * 4)?;
                unpack(bytes, bits, packing, out).ok_or("has too few codes")?;
            }
            Codes::Plain => {
                let bytes = fetched.bytes(0, at * self.columns, self.columns)?;
                out.iter_mut().zip(bytes).for_each(|(out, code)| *out = f32::from(*code as i8));
            }
        }
        let (groups, first) = self.groups.map_or((1, 0), |groups| (groups, at * groups));
        let size = self.scales.bytes().unwrap_or(4);
        let scales = fetched.bytes(1, first * size, groups * size)?;
        if let Some(part) = self.order_part() {
            let order = fetched.bytes(part, 0, self.columns * 4)?;
            let zeros = (0..groups).map(|group| self.zero_point(fetched, row, group));
            let zeros = zeros.collect::<Result<Vec<f32>, _>>()?;
            let scales = (0..groups as usize).map(|group| finite_scale(scale(self.scales, scales, group)));
            return column_order::dequantize(out, order, &zeros, &scales.collect::<Result<Vec<f32>, _>>()?);
        }
        for (group, out) in out.chunks_mut(self.group.max(1) as usize).enumerate() {
            let scale = finite_scale(scale(self.scales, scales, group))?;
            let zero = self.zero_point(fetched, row, group as u64)?;
            out.iter_mut().for_each(|out| *out = (*out - zero) * scale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
