//! NVFP4: four-bit floats (E2M1), 16 along a row with a scale in FP8 (E4M3), and one scale in F32 for all. It is read here;
//! [`super::nvfp4_packed`] writes it.
//!
//! compressed-tensors' `nvfp4-pack-quantized` has `X.weight_packed`, `X.weight_scale` and `X.weight_global_scale`, by which
//! the scales are divided. ModelOpt has `X.weight`, `X.weight_scale` and `X.weight_scale_2`, by which they are multiplied:
//! the one format's scale is the reciprocal of the other's, which is the same number of F32 for a power of two alone.
//! A weight is code × scale, each product in F32, rounded once to BF16.

use std::ops::Range;

use serde_json::Value;

use super::declared::{activations, has_format, weights, word};
use super::small_floats::{E2M1, E4M3, finite_scale, scale};
use super::{
    Catalog, Encoding, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Bits, FloatType, Granularity, Integers, Scheme, Storage};
use crate::stage::ActivationScheme;

/// Weights that share a scale.
const GROUP: u64 = 16;

/// Codes of NVFP4.
#[derive(Debug)]
pub(super) struct Nvfp4;

impl Encoding for Nvfp4 {
    fn name(&self) -> &'static str {
        "nvfp4"
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for Nvfp4 {
    fn is_declared(&self, declaration: &Value) -> bool {
        has_format(declaration, "nvfp4-pack-quantized")
            || ["quant_algo", "moe_quant_algo"].iter().any(|key| word(declaration, key).contains("nvfp4"))
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        let codes = model.tensor(tensor);
        let (module, parameter) = codes.module_and_parameter();
        if codes.dtype != Dtype::U8 || !matches!(parameter, "weight" | "weight_packed") {
            return None;
        }
        let part = model.find(&format!("{module}.weight_scale"))?;
        let is_fp8 = model.tensor(part).dtype == Dtype::F8E4m3;
        is_fp8.then(|| recognized(model, codes, part))
    }

    fn parts(&self) -> &'static [&'static str] {
        &["weight_scale_2", "weight_global_scale"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::nvfp4",
            what: "NVFP4 codes",
            help: "NVFP4 is read where two codes a byte (`X.weight_packed`, or ModelOpt's `X.weight`, in U8) have one scale in \
                   F8_E4M3 per 16 columns (`X.weight_scale`) and one in F32 for all (`X.weight_global_scale`, or ModelOpt's \
                   `X.weight_scale_2`) beside them. Get the model again, or load it in BF16.",
        }
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>, part: TensorId) -> Result<Recognized, String> {
    let (module, parameter) = codes.module_and_parameter();
    let is_packed = parameter == "weight_packed";
    let global = if is_packed { "weight_global_scale" } else { "weight_scale_2" };
    let find = |parameter: &str| model.find(&format!("{module}.{parameter}"));
    let all = find(global).ok_or_else(|| format!("has no `{module}.{global}`"))?;
    let &[rows, bytes] = codes.shape else {
        return Err(format!("has the shape {:?}; only matrices are known", codes.shape));
    };
    let (scales, columns) = (model.tensor(part), bytes * 2);
    if columns % GROUP != 0 || scales.shape != [rows, columns / GROUP] {
        return Err(format!(
            "{:?} has scales {:?}, where [{rows}, {}] is known",
            codes.shape,
            scales.shape,
            columns.div_ceil(GROUP)
        ));
    }
    let of_all = model.tensor(all);
    if of_all.dtype != Dtype::F32 || of_all.shape.iter().product::<u64>() != 1 {
        return Err(format!("has `{}` of {} {:?}, not one F32", of_all.name, of_all.dtype, of_all.shape));
    }
    let weights_only = model.declaration().is_some_and(weights_only);
    // Where the matrix can be re-labelled for all else, the scale's value decides.
    let by_all = match (is_packed, weights_only) {
        (true, _) => ByAll::Divides,
        (false, false) => ByAll::Multiplies { power_of_two: false },
        (false, true) => {
            let bytes = model.bytes(all, 0..4)?;
            ByAll::Multiplies { power_of_two: scale(Dtype::F32, &bytes, 0).is_some_and(is_power_of_two) }
        }
    };
    Ok(Recognized {
        name: is_packed.then(|| format!("{module}.weight")),
        shape: vec![rows, columns],
        dtype: Dtype::Bf16,
        parts: vec![part, all],
        unused: ["input_global_scale", "input_scale"].into_iter().filter_map(find).collect(),
        matrix: Box::new(Matrix { columns, by_all, weights_only }),
    })
}

/// Whether engines leave the inputs of such weights as they are. ModelOpt's algorithm `NVFP4` quantizes them, but where all
/// groups say that it does not; `W4A16_NVFP4` does not. vLLM reads both so.
fn weights_only(declaration: &Value) -> bool {
    let algorithm = word(declaration, "quant_algo");
    let leaves_inputs = activations(declaration) == Some(ActivationScheme::None);
    match algorithm.as_str() {
        "" => leaves_inputs,
        "w4a16_nvfp4" => true,
        _ => leaves_inputs && weights(declaration).next().is_some(),
    }
}

/// Whether the number and its reciprocal are powers of two that F32 has in full.
fn is_power_of_two(number: f32) -> bool {
    const MANTISSA: u32 = (1 << 23) - 1;
    let is_normal = number.is_normal() && number.recip().is_normal();
    is_normal && number > 0.0 && number.to_bits() & MANTISSA == 0
}

/// What the scale for all weights does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByAll {
    /// It divides them, as in compressed-tensors.
    Divides,
    /// It multiplies them, as in ModelOpt.
    Multiplies {
        /// Whether it is known to be a power of two, whose reciprocal does the same by dividing.
        power_of_two: bool,
    },
}

/// A matrix of codes.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    columns: u64,
    by_all: ByAll,
    /// Whether engines leave its inputs as they are.
    weights_only: bool,
}

impl StoredMatrix for Matrix {
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges {
        match part {
            0 => Ranges::elements(rows, self.columns / 2),
            1 => Ranges::elements(rows, self.columns / GROUP),
            _ => Ranges::elements(0..1, 4),
        }
    }

    fn exact(&self) -> Result<Exact, String> {
        if !self.weights_only {
            return Err("its inputs are quantized in a way that is not written".to_owned());
        }
        let because = match self.by_all {
            ByAll::Divides => "codes and scales copied",
            ByAll::Multiplies { power_of_two: true } => {
                "codes and scales copied, and the reciprocal of the scale for all weights, which is a power of two"
            }
            ByAll::Multiplies { power_of_two: false } => {
                return Err(
                    "the output has the reciprocal of its scale for all weights, which rounds: it is no power of two".to_owned()
                );
            }
        };
        let scheme = Scheme {
            bits: Bits::Four,
            symmetric: true,
            granularity: Granularity::Group(GROUP as usize),
            scale_type: FloatType::Bf16,
            storage: Storage::Nvfp4,
        };
        Ok(Exact { scheme, activations: ActivationScheme::None, because })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let of_all = finite_scale(scale(Dtype::F32, fetched.bytes(2, 0, 4)?, 0))?;
        let divisor = if self.by_all == ByAll::Divides { of_all } else { of_all.recip() };
        let scales = fetched.bytes(1, row * groups, groups)?;
        if scales.iter().any(|scale| E4M3[usize::from(*scale)].is_nan()) {
            return Err("has a scale that is no number".to_owned());
        }
        out.codes.extend_from_slice(fetched.bytes(0, row * bytes, bytes)?);
        out.scales.extend_from_slice(scales);
        out.global_scale = divisor.to_le_bytes().to_vec();
        Ok(())
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let codes = fetched.bytes(0, row * bytes, bytes)?.chunks(GROUP as usize / 2);
        let scales = fetched.bytes(1, row * groups, groups)?;
        let of_all = finite_scale(scale(Dtype::F32, fetched.bytes(2, 0, 4)?, 0))?;
        for ((out, codes), &code) in out.chunks_mut(GROUP as usize).zip(codes).zip(scales) {
            let local = E4M3[usize::from(code)];
            let scale = finite_scale(Some(match self.by_all {
                ByAll::Divides => local / of_all,
                ByAll::Multiplies { .. } => local * of_all,
            }))?;
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [E2M1[usize::from(byte & 15)] * scale, E2M1[usize::from(byte >> 4)] * scale];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
