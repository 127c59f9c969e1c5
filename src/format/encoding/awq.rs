//! AWQ in its `gemm` layout, as AutoAWQ stores it. It is only read.
//!
//! `X.qweight` is [in, out / 8]: eight codes of four bits a word, along out, and not in order: the nibbles of a word,
//! low ones first, hold columns 0, 2, 4, 6, 1, 3, 5, 7 of the eight. `X.qzeros` is [groups, out / 8] in the same order,
//! `X.scales` is [groups, out]. A weight is (code − zero point) × scale.

use std::ops::Range;

use serde_json::Value;

use super::declared::word;
use super::gptq::{Parts, group_size};
use super::small_floats::{finite_scale, scale};
use super::{
    Catalog, Encoding, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
    relabelled_scheme,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Integers, Storage};
use crate::stage::ActivationScheme;

/// The shift of the nibble that holds each of eight rows.
const SHIFTS: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

/// Codes of AWQ.
#[derive(Debug)]
pub(super) struct Awq;

impl Encoding for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for Awq {
    fn is_declared(&self, declaration: &Value) -> bool {
        word(declaration, "quant_method") == "awq" || word(declaration, "packing_format").contains("awq")
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        match Parts::of_codes(model, tensor)? {
            Ok(parts) if parts.are_gptq => parts
                .are_declared_awq
                .then(|| Err("has the shape of GPTQ's codes, and `config.json` says AWQ".to_owned())),
            Ok(parts) => Some(recognized(model, parts.codes, &parts)),
            Err(why) => Some(Err(why)),
        }
    }

    fn parts(&self) -> &'static [&'static str] {
        &["qzeros"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::awq",
            what: "AWQ codes",
            help: "AWQ is read with 4 bits in its `gemm` layout, where `X.qweight` (I32) is [in, out / 8] and has `X.scales` and \
                   `X.qzeros` beside it. Export the model again in that layout with the tool that made it, or load the original \
                   model in BF16.",
        }
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>, parts: &Parts<'_>) -> Result<Recognized, String> {
    let (module, _) = codes.module_and_parameter();
    let (&[columns, words], &[groups, rows]) = (codes.shape, parts.scales.shape) else {
        return Err("is no matrix".to_owned());
    };
    if words.checked_mul(8) != Some(rows) || parts.zeros.shape != [groups, words] {
        return Err(format!(
            "has the shape {:?} beside zero points {:?} and scales {:?}, which is no layout of four bits",
            codes.shape, parts.zeros.shape, parts.scales.shape
        ));
    }
    let config = model.declaration();
    let told = config.and_then(|config| config.get("bits").or_else(|| config.get("w_bit")));
    if let Some(told) = told.and_then(Value::as_u64).filter(|told| *told != 4) {
        return Err(format!("holds codes of 4 bits, and `config.json` says {told}"));
    }
    let group = group_size(config, columns, groups)?;
    let scales = parts.scales.dtype;
    Ok(Recognized {
        name: Some(format!("{module}.weight")),
        shape: vec![rows, columns],
        dtype: scales,
        parts: parts.ids.clone(),
        unused: Vec::new(),
        matrix: Box::new(Matrix { rows, columns, groups, group, scales }),
    })
}

/// A matrix [out, in] of codes that lie transposed, eight rows a word.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    rows: u64,
    columns: u64,
    groups: u64,
    /// Columns of a group.
    group: u64,
    scales: Dtype,
}

impl Matrix {
    /// Puts the values of a row, one of each line of words, into `out`.
    fn nibbles(
        fetched: &Fetched<'_>,
        part: usize,
        row: u64,
        mut out: impl FnMut(usize, u32),
        lines: u64,
    ) -> Result<(), String> {
        let words = words(&fetched.rows);
        let width = (words.end - words.start) * 4;
        let all = fetched.bytes(part, 0, lines * width)?;
        let (at, shift) = ((row / 8 - words.start) as usize * 4, SHIFTS[(row % 8) as usize]);
        for (number, line) in all.chunks_exact(width.max(4) as usize).enumerate() {
            let word = line[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
            out(number, word >> shift & 15);
        }
        Ok(())
    }
}

/// The words that hold some rows.
fn words(rows: &Range<u64>) -> Range<u64> {
    rows.start / 8..rows.end.div_ceil(8)
}

impl StoredMatrix for Matrix {
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges {
        let across = |range: Range<u64>, width: u64, size: u64, count: u64| Ranges {
            start: range.start * size,
            bytes: (range.end - range.start) * size,
            step: width * size,
            count,
        };
        match part {
            0 => across(words(&rows), self.rows / 8, 4, self.columns),
            1 => across(rows, self.rows, self.scales.bytes().unwrap_or(4), self.groups),
            _ => across(words(&rows), self.rows / 8, 4, self.groups),
        }
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let mut zeros = vec![0.0; self.groups as usize];
        Self::nibbles(fetched, 2, row, |group, zero| zeros[group] = zero as f32, self.groups)?;
        Self::nibbles(fetched, 0, row, |column, code| out[column] = code as f32, self.columns)?;
        let width = fetched.rows.end - fetched.rows.start;
        let size = self.scales.bytes().unwrap_or(4);
        let scales = fetched.bytes(1, 0, self.groups * width * size)?;
        let at = (row - fetched.rows.start) as usize;
        for (group, (out, zero)) in out.chunks_mut(self.group.max(1) as usize).zip(&zeros).enumerate() {
            let scale = finite_scale(scale(self.scales, scales, group * width as usize + at))?;
            out.iter_mut().for_each(|out| *out = (*out - zero) * scale);
        }
        Ok(())
    }

    fn exact(&self) -> Result<Exact, String> {
        let groups = [self.group, self.groups, self.columns];
        let scheme = relabelled_scheme(4, false, groups, self.scales, Storage::Packed)?;
        Ok(Exact { scheme, activations: ActivationScheme::None, because: "re-ordered from AWQ's layout" })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        Self::nibbles(fetched, 0, row, |_, code| out.codes.push(code as u8), self.columns)?;
        Self::nibbles(fetched, 2, row, |_, zero| out.zero_points.push(zero as u8), self.groups)?;
        let (width, size) = (fetched.rows.end - fetched.rows.start, self.scales.bytes().unwrap_or(4));
        for group in 0..self.groups {
            let at = group * width + row - fetched.rows.start;
            out.scales.extend_from_slice(fetched.bytes(1, at * size, size)?);
        }
        Ok(())
    }

    fn rows_share_bytes(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
