//! NVFP4: four-bit floats (E2M1), 16 along a row with a scale in FP8 (E4M3), and one scale in F32 for all. It is read here;
//! [`super::nvfp4_packed`] writes it.
//!
//! compressed-tensors' `nvfp4-pack-quantized` has `X.weight_packed`, `X.weight_scale` and `X.weight_global_scale`, by which
//! the scales are divided. ModelOpt has `X.weight`, `X.weight_scale` and `X.weight_scale_2`, by which they are multiplied.
//! A weight is code × scale, each product in F32, rounded once to BF16.

use std::ops::Range;

use serde_json::Value;

use super::declared::{activations, has_format, word};
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
    Ok(Recognized {
        name: is_packed.then(|| format!("{module}.weight")),
        shape: vec![rows, columns],
        dtype: Dtype::Bf16,
        parts: vec![part, all],
        unused: ["input_global_scale", "input_scale"].into_iter().filter_map(find).collect(),
        matrix: Box::new(Matrix {
            columns,
            divides: is_packed,
            weights_only: model.declaration().and_then(activations) == Some(ActivationScheme::None),
        }),
    })
}

/// A matrix of codes.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    columns: u64,
    /// Scales are divided by that of all, not multiplied.
    divides: bool,
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
        if !self.divides {
            return Err("the output has the reciprocal of its scale for all weights, which rounds".to_owned());
        }
        if !self.weights_only {
            return Err("its inputs are quantized in a way that is not written".to_owned());
        }
        let scheme = Scheme {
            bits: Bits::Four,
            symmetric: true,
            granularity: Granularity::Group(GROUP as usize),
            scale_type: FloatType::Bf16,
            storage: Storage::Nvfp4,
        };
        Ok(Exact { scheme, activations: ActivationScheme::None, because: "codes and scales copied" })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let of_all = fetched.bytes(2, 0, 4)?;
        finite_scale(scale(Dtype::F32, of_all, 0))?;
        let scales = fetched.bytes(1, row * groups, groups)?;
        if scales.iter().any(|scale| E4M3[usize::from(*scale)].is_nan()) {
            return Err("has a scale that is no number".to_owned());
        }
        out.codes.extend_from_slice(fetched.bytes(0, row * bytes, bytes)?);
        out.scales.extend_from_slice(scales);
        out.global_scale = of_all.to_vec();
        Ok(())
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let (row, bytes, groups) = (row - fetched.rows.start, self.columns / 2, self.columns / GROUP);
        let codes = fetched.bytes(0, row * bytes, bytes)?.chunks(GROUP as usize / 2);
        let scales = fetched.bytes(1, row * groups, groups)?;
        let of_all = finite_scale(scale(Dtype::F32, fetched.bytes(2, 0, 4)?, 0))?;
        for ((out, codes), &code) in out.chunks_mut(GROUP as usize).zip(codes).zip(scales) {
            let local = E4M3[usize::from(code)];
            let scale = finite_scale(Some(if self.divides { local / of_all } else { local * of_all }))?;
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [E2M1[usize::from(byte & 15)] * scale, E2M1[usize::from(byte >> 4)] * scale];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
