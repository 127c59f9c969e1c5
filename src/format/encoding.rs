//! Encodings: how weights are stored as tensors of a file.
//!
//! An encoding is one file in this folder and one line in [`ALL`]. It is written, read, or both.
//!
//! - Written ([`WrittenEncoding`]): it names the tensors that a matrix becomes, and says what their bytes mean. Solvers
//!   ([`crate::quant::Solver`]) make those bytes, tile by tile.
//! - Read ([`ReadEncoding`]): it recognizes its matrices among the tensors of a model, says which bytes some rows need,
//!   and decodes them.

use std::fmt;

use crate::format::Dtype;
use crate::quant::{Bits, FloatType, Granularity, Role, Scheme, Storage};

mod awq;
mod bit_fields;
mod column_order;
mod declared;
mod float_plain;
mod fp8_scaled;
mod gptq;
mod int_packed;
mod int_plain;
mod int_read;
mod mxfp4;
mod mxfp4_packed;
mod nvfp4;
mod nvfp4_packed;
mod read;
mod small_floats;
pub(crate) mod unquantized;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod test_model;
#[cfg(test)]
mod tests;

pub(crate) use read::{
    Catalog, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
};

/// All encodings. If several store a scheme or recognize a matrix, the first of them has it.
pub(crate) const ALL: &[&dyn Encoding] = &[
    &int_packed::IntPacked,
    &int_plain::IntPlain,
    &float_plain::FloatPlain,
    &mxfp4_packed::Mxfp4Packed,
    &nvfp4_packed::Nvfp4Packed,
    &fp8_scaled::Fp8Scaled,
    &mxfp4::Mxfp4,
    &nvfp4::Nvfp4,
    &gptq::Gptq,
    &awq::Awq,
    &unquantized::Unquantized,
];

/// How weights are stored.
pub trait Encoding: fmt::Debug + Send + Sync {
    /// Its name in plans and reports. If compressed-tensors has the format, it is the name there, such as
    /// `pack-quantized`.
    fn name(&self) -> &'static str;

    /// How quantized matrices are written in it. None if it is only read, or holds no codes.
    fn written(&self) -> Option<&dyn WrittenEncoding> {
        None
    }

    /// How matrices of a model are read from it. None if it is only written, or needs no decoding.
    fn read(&self) -> Option<&dyn ReadEncoding> {
        None
    }
}

/// How quantized matrices of some schemes are written.
pub trait WrittenEncoding: Encoding {
    /// Whether matrices of a scheme are stored like this.
    fn stores(&self, scheme: &Scheme) -> bool;

    /// Roles and parameter names of the tensors that a matrix becomes, at most six. A module's name stands before the
    /// parameter's.
    fn roles(&self, scheme: &Scheme) -> &'static [(Role, &'static str)];

    /// The tensor of one of these roles for a matrix `[rows, columns]`.
    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part;

    /// The tensors that a matrix `[rows, columns]` becomes.
    fn parts(&self, scheme: &Scheme, rows: u64, columns: u64) -> Vec<Part> {
        self.roles(scheme).iter().map(|(role, _)| self.part(scheme, *role, rows, columns)).collect()
    }

    /// The weights of a matrix `[rows, columns]`, row by row: (code − zero point) × scale, rounded once to the
    /// scheme's scale type. `part` gives the bytes of each of [`Encoding::parts`]. None if a part is missing or has
    /// another size.
    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>>;
}

/// The encoding in which matrices of a scheme are written.
///
/// # Panics
/// If there is none. A test holds that there is one for each scheme.
#[must_use]
pub(crate) fn of(scheme: &Scheme) -> &'static dyn WrittenEncoding {
    let mut written = ALL.iter().filter_map(|encoding| encoding.written());
    let found = written.find(|encoding| encoding.stores(scheme));
    found.unwrap_or_else(|| unreachable!("a scheme has an encoding"))
}

/// The encodings that are read.
pub(crate) fn readable() -> impl Iterator<Item = &'static dyn ReadEncoding> {
    ALL.iter().filter_map(|encoding| encoding.read())
}

/// A tensor that belongs to a stored matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its role.
    pub role: Role,
    /// Its type as headers write it.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its size.
    pub bytes: u64,
    /// How it is filled.
    pub contents: Contents,
}

/// How a part is filled while its matrix is solved tile by tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Each tile gives the bytes of its rows.
    Rows {
        /// So many rows of the matrix lie together.
        rows: u64,
        /// Bytes that they take.
        bytes: u64,
    },
    /// Every tile gives the same bytes, all of them.
    Same,
    /// These bytes, whatever the weights.
    Constant(Vec<u8>),
}

impl Part {
    /// The byte offset at which a tile writes, and the bytes. None if an earlier tile has written them. `solved` are
    /// the bytes that the tile gives.
    #[must_use]
    pub fn of_tile<'b>(&'b self, first_row: u64, solved: &'b [u8]) -> Option<(u64, &'b [u8])> {
        match &self.contents {
            Contents::Rows { rows, bytes } => Some((first_row / (*rows).max(1) * bytes, solved)),
            Contents::Same => (first_row == 0).then_some((0, solved)),
            Contents::Constant(contents) => (first_row == 0).then_some((0, contents.as_slice())),
        }
    }
}

/// The scales of a matrix, as all written encodings have them.
fn scales(scheme: &Scheme, rows: u64, columns: u64) -> Part {
    let together = if let Granularity::Block(size) = scheme.granularity { size } else { 1 };
    let shape = wide(scheme.scales_shape(rows as usize, columns as usize));
    let (dtype, width) = scheme.stored_scales();
    Part {
        role: Role::Scales,
        dtype,
        bytes: shape.iter().product::<u64>() * width as u64,
        contents: by_group(scheme, together, scheme.scales_bytes(together, columns as usize)),
        shape,
    }
}

/// The zero points of an asymmetric integer matrix.
fn zero_points(scheme: &Scheme, rows: u64, columns: u64) -> Option<Part> {
    let shape = wide(scheme.zero_points_shape(rows as usize, columns as usize)?);
    let dtype = scheme.zero_point_type()?;
    let together = if scheme.packs_zero_points() { scheme.row_multiple() } else { 1 };
    Some(Part {
        role: Role::ZeroPoints,
        dtype: dtype.name(),
        bytes: shape.iter().product::<u64>() * dtype.bytes() as u64,
        contents: by_group(scheme, together, scheme.zero_points_bytes(together, columns as usize)),
        shape,
    })
}

/// The codes of an integer matrix.
fn codes(scheme: &Scheme, rows: u64, columns: u64) -> Part {
    let (rows, columns) = (rows as usize, columns as usize);
    Part {
        role: Role::Codes,
        dtype: scheme.code_type().name(),
        shape: wide(scheme.codes_shape(rows, columns).to_vec()),
        bytes: scheme.codes_bytes(rows, columns) as u64,
        contents: Contents::Rows { rows: 1, bytes: scheme.codes_bytes(1, columns) as u64 },
    }
}

/// The codes, scales or zero points of an integer matrix.
fn integer_part(scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
    match role {
        Role::Scales => scales(scheme, rows, columns),
        Role::ZeroPoints => {
            zero_points(scheme, rows, columns).unwrap_or_else(|| codes(scheme, rows, columns))
        }
        _ => codes(scheme, rows, columns),
    }
}

/// The scheme of integers that are re-labelled from a format with so many bits, columns a group and groups a row.
///
/// # Errors
/// If none is written like that: the reason, as in [`StoredMatrix::exact`].
fn relabelled_scheme(
    bits: u32,
    symmetric: bool,
    [group, groups, columns]: [u64; 3],
    scales: Dtype,
    storage: Storage,
) -> Result<Scheme, String> {
    let bits = match bits {
        4 => Bits::Four,
        8 => Bits::Eight,
        _ => return Err(format!("codes of {bits} bits are read, and not written")),
    };
    let granularity = match groups {
        1 => Granularity::Channel,
        _ if group * groups == columns => Granularity::Group(group as usize),
        _ => return Err(format!("groups of {group} do not divide its {columns} columns")),
    };
    let scale_type = match scales {
        Dtype::F16 => FloatType::F16,
        Dtype::Bf16 => FloatType::Bf16,
        Dtype::F32 => FloatType::F32,
        _ => return Err(format!("scales of {scales} are not written")),
    };
    Ok(Scheme { bits, symmetric, granularity, scale_type, storage })
}

fn by_group(scheme: &Scheme, rows: usize, bytes: usize) -> Contents {
    if scheme.is_per_tensor() {
        Contents::Same
    } else {
        Contents::Rows { rows: rows as u64, bytes: bytes as u64 }
    }
}

fn wide(shape: Vec<usize>) -> Vec<u64> {
    shape.into_iter().map(|size| size as u64).collect()
}

/// The weights that integer codes mean. `code` and `zero_point` give the signed code at (row, column) and the signed zero
/// point of (row, group).
fn dequantized(
    scheme: &Scheme,
    [rows, columns]: [usize; 2],
    scales: &[u8],
    code: impl Fn(usize, usize) -> i32,
    zero_point: impl Fn(usize, usize) -> i32,
) -> Vec<f32> {
    let scales = scheme.scale_type.widen(scales);
    let (groups, group) = (scheme.groups_per_row(columns), scheme.group_cols(columns).max(1));
    let mut weights = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let at = if scheme.is_per_tensor() { 0 } else { row * groups + column / group };
            let difference = code(row, column) - zero_point(row, column / group);
            weights.push(scheme.scale_type.round(difference as f32 * scales[at]));
        }
    }
    weights
}

/// The bytes of a part, if they are as many as they should be.
fn whole<'a>(part: &Part, bytes: &dyn Fn(Role) -> Option<&'a [u8]>) -> Option<&'a [u8]> {
    bytes(part.role).filter(|bytes| bytes.len() as u64 == part.bytes)
}
