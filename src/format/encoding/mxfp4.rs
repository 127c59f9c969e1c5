//! MXFP4: four-bit floats (E2M1), 32 along a row with one exponent (E8M0). It is read here; [`super::mxfp4_packed`] writes it.
//!
//! Under each of its names it is the same bytes, row by row of [out, in], the even column in the low half of a byte:
//!
//! - gpt-oss: `X_blocks` [experts, out, in / 32, 16] with `X_scales`, a stack;
//! - DeepSeek-V4: `X.weight` in I8 [out, in / 2] with `X.scale` in F8_E8M0, one tensor per expert;
//! - Ling: the same with `X.weight_scale_inv`;
//! - compressed-tensors' `mxfp4-pack-quantized`: `X.weight_packed` in U8 with `X.weight_scale`.

use std::ops::Range;

use serde_json::Value;

use super::declared::{activations, has_format, word};
use super::small_floats::{E2M1, e8m0};
use super::{
    Catalog, Encoding, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
    unquantized,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;
use crate::quant::{Bits, FloatType, Granularity, Integers, Isa, Scheme, Storage};
use crate::stage::ActivationScheme;

/// Weights that share an exponent.
const GROUP: u64 = 32;

/// What is said of a row with the exponent 255.
const NO_NUMBER: &str = "has the exponent 255, which is no number";

/// Exponents with which all codes are normal BF16 numbers.
const NORMAL: std::ops::RangeInclusive<u8> = 2..=252;

/// Bytes of the codes that share an exponent.
const CODES: usize = GROUP as usize / 2;

/// One in each half of a word.
const ONES: u32 = 0x0001_0001;

/// The two codes of a byte as BF16 numbers, the low one first, times 2^(exponent − 127), an exponent of [`NORMAL`]: both halves of
/// the word at once, since neither carries into the other.
#[inline(always)]
fn pair(byte: u8, exponent: u8) -> u32 {
    let nibbles = u32::from(byte & 15) | u32::from(byte >> 4) << 16;
    let (magnitudes, signs) = (nibbles & (7 * ONES), (nibbles & (8 * ONES)) << 12);
    // From 1 on, which is code 2, codes are one bit of a significand below an exponent; code 1 is 0.5, and no 0.75.
    let is_some = (magnitudes + 7 * ONES) >> 3 & ONES;
    let is_half = is_some ^ (magnitudes + 6 * ONES) >> 3 & ONES;
    let first = u32::from(exponent - 1) << 7;
    let numbers = first * ONES + (magnitudes << 6) - (is_half << 6);
    numbers & (is_some << 16).wrapping_sub(is_some) | signs
}

/// A row of codes with their exponents, which are [`NORMAL`], as BF16. Compiled for each instruction set.
struct Decode<'a> {
    codes: &'a [u8],
    exponents: &'a [u8],
    out: &'a mut [u8],
}

impl Job for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let groups = self.codes.as_chunks::<CODES>().0.iter().zip(self.exponents);
        for (out, (codes, &exponent)) in self.out.as_chunks_mut::<{ 4 * CODES }>().0.iter_mut().zip(groups) {
            for (out, &code) in out.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
                *out = pair(code, exponent).to_le_bytes();
            }
        }
    }
}

/// Codes of MXFP4.
#[derive(Debug)]
pub(super) struct Mxfp4;

impl Encoding for Mxfp4 {
    fn name(&self) -> &'static str {
        "mxfp4"
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for Mxfp4 {
    fn is_declared(&self, declaration: &Value) -> bool {
        word(declaration, "quant_method") == "mxfp4"
            || has_format(declaration, "mxfp4-pack-quantized")
            || word(declaration, "routed_experts_quant_method") == "mxfp4"
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        let codes = model.tensor(tensor);
        if let Some(stem) = codes.name.strip_suffix("_blocks").filter(|_| codes.dtype == Dtype::U8) {
            return Some(stack(model, codes, stem));
        }
        let (module, parameter) = codes.module_and_parameter();
        let scales: &[&str] = match (parameter, codes.dtype) {
            ("weight", Dtype::I8 | Dtype::U8) => &["scale", "weight_scale_inv"],
            ("weight_packed", Dtype::U8) => &["weight_scale"],
            _ => return None,
        };
        let found: Vec<TensorId> =
            scales.iter().filter_map(|scale| model.find(&format!("{module}.{scale}"))).collect();
        // What has other scales is another encoding's.
        let [part] = found[..] else { return None };
        let scales = model.tensor(part);
        is_exponent(scales.dtype).then(|| single(model, codes, part))
    }

    fn parts(&self) -> &'static [&'static str] {
        &[]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::mxfp4",
            what: "MXFP4 codes",
            help: "MXFP4 is read where two codes a byte (`X_blocks`, `X.weight` in I8, `X.weight_packed` in U8) have one exponent \
                   in U8 or F8_E8M0 per 32 columns beside them (`X_scales`, `X.scale`, `X.weight_scale`). Get the model again, or \
                   load it in BF16.",
        }
    }
}

/// Whether scales of this type can be powers of two alone.
fn is_exponent(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::U8 | Dtype::F8E8m0)
}

/// A stack as gpt-oss stores it.
fn stack(model: &dyn Catalog, codes: StoredTensor<'_>, stem: &str) -> Result<Recognized, String> {
    let name = format!("{stem}_scales");
    let part = model.find(&name).ok_or_else(|| format!("has no `{name}`"))?;
    let scales = model.tensor(part);
    let Some((rows, &[groups, 16])) = codes.shape.split_last_chunk::<2>() else {
        return Err(format!("has the shape {:?}, which does not end with blocks of 16 bytes", codes.shape));
    };
    let mut shape = rows.to_vec();
    shape.push(groups);
    if !is_exponent(scales.dtype) || scales.shape != shape {
        return Err(format!("has exponents of {} {:?}, not of U8 {shape:?}", scales.dtype, scales.shape));
    }
    if let Some(last) = shape.last_mut() {
        *last = groups * GROUP;
    }
    Ok(recognized(model, Some(stem.to_owned()), shape, part, true))
}

/// A matrix of its own.
fn single(model: &dyn Catalog, codes: StoredTensor<'_>, part: TensorId) -> Result<Recognized, String> {
    let (module, parameter) = codes.module_and_parameter();
    let &[rows, bytes] = codes.shape else {
        return Err(format!("has the shape {:?}; only matrices are known", codes.shape));
    };
    let (scales, columns) = (model.tensor(part), bytes * 2);
    if columns % GROUP != 0 || scales.shape != [rows, columns / GROUP] {
        return Err(format!(
            "{:?} has exponents {:?}, where [{rows}, {}] is known",
            codes.shape,
            scales.shape,
            columns.div_ceil(GROUP)
        ));
    }
    if let Some(told) = experts(model).filter(|told| told != "fp4" && codes.name.contains(".experts.")) {
        return Err(format!("is packed FP4, and `expert_dtype` in `config.json` says {told}"));
    }
    let name = (parameter != "weight").then(|| format!("{module}.weight"));
    Ok(recognized(model, name, vec![rows, columns], part, false))
}

/// The type of the routed experts, as DeepSeek-V4 declares it.
pub(super) fn experts(model: &dyn Catalog) -> Option<String> {
    let in_declaration = model.declaration().and_then(|config| config.get("expert_dtype"));
    let told = in_declaration.or_else(|| model.config("expert_dtype"))?;
    Some(told.as_str()?.to_ascii_lowercase())
}

fn recognized(
    model: &dyn Catalog,
    name: Option<String>,
    shape: Vec<u64>,
    part: TensorId,
    is_stack: bool,
) -> Recognized {
    let columns = shape.last().copied().unwrap_or(0);
    Recognized {
        name,
        shape,
        dtype: Dtype::Bf16,
        parts: vec![part],
        unused: Vec::new(),
        matrix: Box::new(Matrix { columns, is_stack, weights_only: weights_only(model) }),
    }
}

/// Whether engines leave the inputs of such weights as they are, as all but some compressed-tensors models say.
fn weights_only(model: &dyn Catalog) -> bool {
    model.declaration().is_none_or(|declared| activations(declared) == Some(ActivationScheme::None))
}

/// A matrix of codes, or a stack of them.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    columns: u64,
    /// gpt-oss's, which is [experts, in, out] if it is not quantized.
    is_stack: bool,
    /// Whether engines leave its inputs as they are.
    weights_only: bool,
}

impl StoredMatrix for Matrix {
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges {
        let width = if part == 0 { self.columns / 2 } else { self.columns / GROUP };
        Ranges::elements(rows, width)
    }

    fn plain_is_transposed(&self) -> bool {
        self.is_stack
    }

    fn append_row(
        &self,
        fetched: &Fetched<'_>,
        row: u64,
        (dtype, out): (Dtype, &mut Vec<u8>),
        weights: &mut [f32],
    ) -> Result<(), String> {
        let (at, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let exponents = fetched.bytes(1, at * groups, groups)?;
        if dtype != Dtype::Bf16 || !exponents.iter().all(|exponent| NORMAL.contains(exponent)) {
            self.decode_row(fetched, row, weights)?;
            unquantized::write(weights, dtype, out);
            return Ok(());
        }
        let codes = fetched.bytes(0, at * bytes, bytes)?;
        let start = out.len();
        out.resize(start + self.columns as usize * 2, 0);
        Isa::detect().run(Decode { codes, exponents, out: &mut out[start..] });
        Ok(())
    }

    fn exact(&self) -> Result<Exact, String> {
        if !self.weights_only {
            return Err("its inputs are quantized in a way that is not written".to_owned());
        }
        let scheme = Scheme {
            bits: Bits::Four,
            symmetric: true,
            granularity: Granularity::Group(GROUP as usize),
            scale_type: FloatType::Bf16,
            storage: Storage::Mxfp4,
        };
        Ok(Exact { scheme, activations: ActivationScheme::None, because: "codes and exponents copied" })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let exponents = fetched.bytes(1, row * groups, groups)?;
        if exponents.contains(&u8::MAX) {
            return Err(NO_NUMBER.to_owned());
        }
        out.codes.extend_from_slice(fetched.bytes(0, row * bytes, bytes)?);
        out.scales.extend_from_slice(exponents);
        Ok(())
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let codes = fetched.bytes(0, row * bytes, bytes)?.chunks(CODES);
        let exponents = fetched.bytes(1, row * groups, groups)?;
        for ((out, codes), &exponent) in out.chunks_mut(GROUP as usize).zip(codes).zip(exponents) {
            if exponent == u8::MAX {
                return Err(NO_NUMBER.to_owned());
            }
            let scale = e8m0(exponent);
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [E2M1[usize::from(byte & 15)] * scale, E2M1[usize::from(byte >> 4)] * scale];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
