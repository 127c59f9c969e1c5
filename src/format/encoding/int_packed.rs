//! Packed integers: compressed-tensors' `pack-quantized`.
//!
//! Codes are unsigned, in 32-bit words along each row, low bits first; zero points are packed along the rows. The
//! shape of the unpacked matrix is a tensor of its own. It is written with 4 and 8 bits, and read with 2 to 8.

use serde_json::Value;

use super::bit_fields::Packing;
use super::declared::{has_format, weights, word};
use super::int_read::{Codes, IntMatrix, Scales};
use super::{
    Catalog, Contents, Encoding, Part, ReadEncoding, Recognized, Refusal, StoredTensor, WrittenEncoding,
    codes, dequantized, integer_part, scales, whole, zero_points,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Role, Scheme, Storage};

/// `pack-quantized`.
#[derive(Debug)]
pub(super) struct IntPacked;

impl Encoding for IntPacked {
    fn name(&self) -> &'static str {
        "pack-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for IntPacked {
    fn is_declared(&self, declaration: &Value) -> bool {
        has_format(declaration, "pack-quantized")
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        let codes = model.tensor(tensor);
        let (module, parameter) = codes.module_and_parameter();
        (parameter == "weight_packed" && codes.dtype == Dtype::I32).then(|| recognized(model, codes, module))
    }

    fn parts(&self) -> &'static [&'static str] {
        &["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::packed-integers",
            what: "packed integers",
            help: "Integers of 2 to 8 bits are read where `X.weight_packed` (I32) has `X.weight_scale` and `X.weight_shape` beside \
                   it, and `num_bits` in `config.json` agrees with their width. Get the model again, or load the original model \
                   in BF16.",
        }
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>, module: &str) -> Result<Recognized, String> {
    let find = |parameter: &str| model.find(&format!("{module}.{parameter}"));
    let need = |parameter: &str| find(parameter).ok_or_else(|| format!("has no `{module}.{parameter}`"));
    let (scales, shape) = (need("weight_scale")?, need("weight_shape")?);
    let [rows, columns] = unpacked_shape(model, shape)?;
    let &[lines, words] = codes.shape else {
        return Err(format!("has the shape {:?}; only matrices are known", codes.shape));
    };
    let beside = Scales { scales, zero_points: find("weight_zero_point"), order: find("weight_g_idx") };
    if lines != rows || columns == 0 {
        return Err(format!("has the shape {:?}, and `weight_shape` says [{rows}, {columns}]", codes.shape));
    }
    let (bits, packing) = width(model, words, columns)?;
    let matrix = IntMatrix::new(model, Codes::Packed { bits, packing, words }, [rows, columns], beside)?;
    let (parts, unused) = matrix.split(beside);
    Ok(Recognized {
        name: Some(format!("{module}.weight")),
        shape: vec![rows, columns],
        dtype: model.tensor(scales).dtype,
        parts,
        unused: unused.into_iter().chain([shape]).chain(find("input_scale")).collect(),
        matrix: Box::new(matrix),
    })
}

/// Rows and columns, from a tensor of two integers.
fn unpacked_shape(model: &dyn Catalog, tensor: TensorId) -> Result<[u64; 2], String> {
    let info = model.tensor(tensor);
    let unknown =
        || format!("has `{}` of {} {:?}, which gives no rows and columns", info.name, info.dtype, info.shape);
    let size = info.dtype.bytes().filter(|_| info.shape == [2]).ok_or_else(unknown)?;
    let bytes = model.bytes(tensor, 0..2 * size)?;
    let sizes: Vec<u64> = match info.dtype {
        Dtype::I64 => {
            bytes.as_chunks().0.iter().filter_map(|b| u64::try_from(i64::from_le_bytes(*b)).ok()).collect()
        }
        Dtype::I32 => {
            bytes.as_chunks().0.iter().filter_map(|b| u64::try_from(i32::from_le_bytes(*b)).ok()).collect()
        }
        _ => Vec::new(),
    };
    // What is larger than any matrix would overflow further on.
    let most = 1 << 31;
    match sizes[..] {
        [rows, columns] if rows < most && columns < most => Ok([rows, columns]),
        _ => Err(unknown()),
    }
}

/// Bits and packing of codes that take so many words a row, among those that the declaration names.
fn width(model: &dyn Catalog, words: u64, columns: u64) -> Result<(u32, Packing), String> {
    let declared: Vec<u64> = model
        .declaration()
        .into_iter()
        .flat_map(weights)
        .filter(|weights| word(weights, "type") != "float")
        .filter_map(|weights| weights.get("num_bits")?.as_u64())
        .collect();
    let may_be = |bits: &u32| declared.is_empty() || declared.contains(&u64::from(*bits));
    let fits = |bits: u32| {
        let packings = [Packing::Dense, Packing::Padded];
        let known = packings.into_iter().take(if Packing::is_settled(bits) { 1 } else { 2 });
        known.filter(move |packing| packing.words(bits, columns) == words).map(move |packing| (bits, packing))
    };
    match (2..=8).filter(may_be).flat_map(fits).collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        [] => Err(format!(
            "takes {words} words for {columns} columns, which no `num_bits` of `config.json` gives"
        )),
        // Since version 0.18 codes go over the ends of words.
        [(bits, _), (other, _)] if bits == other => match model.declaration().and_then(minor_version) {
            Some(version) => Ok((bits, if version < 18 { Packing::Padded } else { Packing::Dense })),
            None => Err(format!(
                "holds codes of {bits} bits, and neither their width nor `version` tells how they are packed"
            )),
        },
        _ => Err(format!("takes {words} words for {columns} columns, which several widths of codes give")),
    }
}

/// The 18 of `0.18.1`; more than any for 1.0.
fn minor_version(declaration: &Value) -> Option<u32> {
    let version = declaration.get("version")?.as_str()?;
    let mut parts = version.split('.');
    match parts.next()?.parse::<u32>().ok()? {
        0 => parts.next()?.parse().ok(),
        _ => Some(u32::MAX),
    }
}

impl WrittenEncoding for IntPacked {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Packed
    }

    fn roles(&self, scheme: &Scheme) -> &'static [(Role, &'static str)] {
        const SYMMETRIC: [(Role, &str); 3] =
            [(Role::Codes, "weight_packed"), (Role::Scales, "weight_scale"), (Role::Shape, "weight_shape")];
        const ASYMMETRIC: [(Role, &str); 4] = [
            (Role::Codes, "weight_packed"),
            (Role::Scales, "weight_scale"),
            (Role::ZeroPoints, "weight_zero_point"),
            (Role::Shape, "weight_shape"),
        ];
        if scheme.symmetric { &SYMMETRIC } else { &ASYMMETRIC }
    }

    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
        if role == Role::Shape {
            return Part {
                role,
                dtype: "I64",
                shape: vec![2],
                bytes: 16,
                contents: Contents::Constant([rows.to_le_bytes(), columns.to_le_bytes()].concat()),
            };
        }
        integer_part(scheme, role, rows, columns)
    }

    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>> {
        let words = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let scale_bytes = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let zeros = match zero_points(scheme, rows as u64, columns as u64) {
            Some(zeros) => whole(&zeros, part)?,
            None => &[],
        };
        let (bits, row_bytes) = (scheme.bits, scheme.codes_bytes(1, columns));
        let field = |bytes: &[u8], at: usize| {
            let bit = at * bits.count();
            let unsigned = i32::from(bytes[bit / 8] >> (bit % 8)) & ((1 << bits.count()) - 1);
            unsigned + bits.qmin()
        };
        let code = |row: usize, column: usize| field(&words[row * row_bytes..], column);
        let groups = scheme.groups_per_row(columns);
        let zero_point = |row: usize, group: usize| {
            if scheme.symmetric {
                0
            } else if scheme.packs_zero_points() {
                let word = (row / bits.per_word() * groups + group) * 4;
                field(&zeros[word..word + 4], row % bits.per_word())
            } else {
                i32::from(zeros[0] as i8)
            }
        };
        Some(dequantized(scheme, [rows, columns], scale_bytes, code, zero_point))
    }
}
