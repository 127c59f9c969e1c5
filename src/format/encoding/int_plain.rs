//! Plain integers: compressed-tensors' `int-quantized`, one signed code per byte.

use serde_json::Value;

use super::declared::has_format;
use super::int_read::{Codes, IntMatrix, Scales};
use super::{
    Catalog, Encoding, Part, ReadEncoding, Recognized, Refusal, StoredTensor, WrittenEncoding, codes,
    dequantized, integer_part, scales, whole, zero_points,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Role, Scheme, Storage};

/// `int-quantized`.
#[derive(Debug)]
pub(super) struct IntPlain;

impl Encoding for IntPlain {
    fn name(&self) -> &'static str {
        "int-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for IntPlain {
    fn is_declared(&self, declaration: &Value) -> bool {
        has_format(declaration, "int-quantized") || has_format(declaration, "naive-quantized")
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        let codes = model.tensor(tensor);
        let (module, parameter) = codes.module_and_parameter();
        if parameter != "weight" || codes.dtype != Dtype::I8 {
            return None;
        }
        let part = model.find(&format!("{module}.weight_scale"))?;
        model.tensor(part).dtype.is_float().then(|| recognized(model, codes, part))
    }

    fn parts(&self) -> &'static [&'static str] {
        &["weight_scale", "weight_zero_point", "weight_g_idx"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::plain-integers",
            what: "integers",
            help: "Integers are read where `X.weight` (I8) has `X.weight_scale` beside it, for the tensor, for each row, or for \
                   groups of columns. Get the model again, or load the original model in BF16.",
        }
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>, scales: TensorId) -> Result<Recognized, String> {
    let (module, _) = codes.module_and_parameter();
    let find = |parameter: &str| model.find(&format!("{module}.{parameter}"));
    let &[rows, columns] = codes.shape else {
        return Err(format!("has the shape {:?}; only matrices are known", codes.shape));
    };
    let beside = Scales { scales, zero_points: find("weight_zero_point"), order: find("weight_g_idx") };
    let matrix = IntMatrix::new(model, Codes::Plain, [rows, columns], beside)?;
    let (parts, unused) = matrix.split(beside);
    Ok(Recognized {
        name: None,
        shape: vec![rows, columns],
        dtype: model.tensor(scales).dtype,
        parts,
        unused: unused
            .into_iter()
            .chain(["input_scale", "input_zero_point"].into_iter().filter_map(find))
            .collect(),
        matrix: Box::new(matrix),
    })
}

impl WrittenEncoding for IntPlain {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Plain
    }

    fn roles(&self, scheme: &Scheme) -> &'static [(Role, &'static str)] {
        const SYMMETRIC: [(Role, &str); 2] = [(Role::Codes, "weight"), (Role::Scales, "weight_scale")];
        const ASYMMETRIC: [(Role, &str); 3] = [
            (Role::Codes, "weight"),
            (Role::Scales, "weight_scale"),
            (Role::ZeroPoints, "weight_zero_point"),
        ];
        if scheme.symmetric { &SYMMETRIC } else { &ASYMMETRIC }
    }

    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
        integer_part(scheme, role, rows, columns)
    }

    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>> {
        let bytes = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let scale_bytes = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let zeros = match zero_points(scheme, rows as u64, columns as u64) {
            Some(zeros) => whole(&zeros, part)?,
            None => &[],
        };
        let groups = scheme.groups_per_row(columns);
        let zero_point = |row: usize, group: usize| {
            let at = if scheme.is_per_tensor() { 0 } else { row * groups + group };
            zeros.get(at).map_or(0, |&zero| i32::from(zero as i8))
        };
        let code = |row: usize, column: usize| i32::from(bytes[row * columns + column] as i8);
        Some(dequantized(scheme, [rows, columns], scale_bytes, code, zero_point))
    }
}
