//! GPTQ, as AutoGPTQ, GPTQModel and AutoRound store it. It is only read.
//!
//! Codes are unsigned, in 32-bit words along the columns of the transposed matrix: `X.qweight` is [in · bits / 32, out].
//! `X.scales` is [groups, out], and `X.qzeros` holds the zero points along out. A weight is (code − zero point) × scale.
//! The first version of the format stores zero points less one, the second as they are. `X.g_idx` gives the group of
//! each column; if activations decided about the order of columns, it is not column / group size.

use std::ops::Range;

use serde_json::Value;

use super::bit_fields::{Packing, field, one, unpack};
use super::column_order::{self, ColumnOrder};
use super::declared::word;
use super::small_floats::{finite_scale, scale};
use super::{
    Catalog, Encoding, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
    relabelled_scheme,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::{Integers, Storage};
use crate::stage::ActivationScheme;

/// Codes of GPTQ.
#[derive(Debug)]
pub(super) struct Gptq;

impl Encoding for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for Gptq {
    fn is_declared(&self, declaration: &Value) -> bool {
        word(declaration, "quant_method") == "gptq" || word(declaration, "packing_format").contains("gptq")
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        match Parts::of_codes(model, tensor)? {
            Ok(parts) => {
                (parts.are_gptq && !parts.are_declared_awq).then(|| recognized(model, parts.codes, &parts))
            }
            Err(why) => Some(Err(why)),
        }
    }

    fn parts(&self) -> &'static [&'static str] {
        &["qzeros", "g_idx"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::gptq",
            what: "GPTQ or AWQ codes",
            help: "GPTQ is read with 2 to 8 bits where `X.qweight` (I32) has `X.scales` and `X.qzeros` beside it, AWQ with 4 bits \
                   in its `gemm` layout. Layouts that are made for one kernel (marlin, exllama, gemv) are written by the tool that \
                   made the model: export it again in the plain layout, or load the original model in BF16.",
        }
    }
}

/// The tensors of a matrix of GPTQ or AWQ.
pub(super) struct Parts<'m> {
    pub(super) codes: StoredTensor<'m>,
    /// Whether rows are packed as GPTQ does it: AWQ packs along the other axis.
    pub(super) are_gptq: bool,
    /// Whether `config.json` says AWQ.
    pub(super) are_declared_awq: bool,
    pub(super) scales: StoredTensor<'m>,
    pub(super) zeros: StoredTensor<'m>,
    pub(super) ids: Vec<TensorId>,
}

impl<'m> Parts<'m> {
    /// The parts of the matrix whose codes a tensor may hold. None if its name is not that of codes.
    ///
    /// # Errors
    /// If a part is missing, has another type, or the codes are stored for one kernel.
    pub(super) fn of_codes(model: &'m dyn Catalog, tensor: TensorId) -> Option<Result<Self, String>> {
        let codes = model.tensor(tensor);
        let (module, parameter) = codes.module_and_parameter();
        (parameter == "qweight").then(|| Self::of(model, codes, module))
    }

    fn of(model: &'m dyn Catalog, codes: StoredTensor<'m>, module: &str) -> Result<Self, String> {
        refuse_layouts(model)?;
        let find = |parameter: &str| {
            let found = model.find(&format!("{module}.{parameter}"));
            found.ok_or_else(|| format!("has no `{module}.{parameter}`"))
        };
        let ids = vec![find("scales")?, find("qzeros")?];
        let (scales, zeros) = (model.tensor(ids[0]), model.tensor(ids[1]));
        for (tensor, name) in [(codes, "codes"), (zeros, "zero points")] {
            if tensor.dtype != Dtype::I32 || tensor.shape.len() != 2 {
                return Err(format!("has {name} of {} {:?}, not of I32 words", tensor.dtype, tensor.shape));
            }
        }
        if scales.shape.len() != 2 || !matches!(scales.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32) {
            return Err(format!("has scales of {} {:?}", scales.dtype, scales.shape));
        }
        let are_gptq = codes.shape.get(1) == scales.shape.get(1);
        let are_declared_awq =
            model.declaration().is_some_and(|config| word(config, "quant_method") == "awq");
        Ok(Self { codes, are_gptq, are_declared_awq, scales, zeros, ids })
    }
}

/// Layouts made for one kernel, which look like the plain one and mean other weights.
fn refuse_layouts(model: &dyn Catalog) -> Result<(), String> {
    let Some(config) = model.declaration() else { return Ok(()) };
    for key in ["checkpoint_format", "version", "quant_method", "packing_format"] {
        let found = word(config, key);
        if ["marlin", "exllama", "gemv", "bitblas", "ipex", "qqq"].iter().any(|layout| found.contains(layout))
        {
            return Err(format!(
                "is stored as `{key}: {found}` in `config.json`, a layout that is not known"
            ));
        }
    }
    match config.get("is_marlin_format").and_then(Value::as_bool) {
        Some(true) => {
            Err("is stored for the Marlin kernel, says `is_marlin_format` in `config.json`".to_owned())
        }
        _ => Ok(()),
    }
}

/// The columns of a group, by their number and that of the groups.
///
/// # Errors
/// If no size of groups gives so many.
pub(super) fn group_size(declared: Option<&Value>, columns: u64, groups: u64) -> Result<u64, String> {
    let declared = declared.and_then(|config| {
        config.get("group_size").or_else(|| config.get("q_group_size")).and_then(Value::as_u64)
    });
    match declared.filter(|size| *size > 0 && columns.div_ceil(*size) == groups) {
        Some(size) => Ok(size),
        None if groups > 0 && columns.is_multiple_of(groups) => Ok(columns / groups),
        None => Err(format!("has {groups} groups of scales, which do not divide its {columns} columns")),
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>, parts: &Parts<'_>) -> Result<Recognized, String> {
    let (module, _) = codes.module_and_parameter();
    let (&[words, rows], &[groups, _]) = (codes.shape, parts.scales.shape) else {
        return Err("is no matrix".to_owned());
    };
    let zero_words = parts.zeros.shape[1];
    let bits = (zero_words * 32).checked_div(rows).unwrap_or(0);
    if !(2..=8).contains(&bits)
        || parts.zeros.shape[0] != groups
        || bits * rows != zero_words * 32
        || !(words * 32).is_multiple_of(bits)
    {
        return Err(format!(
            "has the shape {:?} beside zero points {:?} and scales {:?}, which gives no number of bits",
            codes.shape, parts.zeros.shape, parts.scales.shape
        ));
    }
    let declaration = model.declaration();
    // `dynamic` gives modules bits of their own.
    let declared = declaration.filter(|config| config.get("dynamic").is_none_or(Value::is_null));
    if let Some(told) = declared.and_then(|config| config.get("bits")).and_then(Value::as_u64)
        && told != bits
    {
        return Err(format!("holds codes of {bits} bits, and `config.json` says {told}"));
    }
    let columns = words * 32 / bits;
    let group = group_size(declaration, columns, groups)?;
    let bits = bits as u32;
    let version = Version::of(model, parts, bits, rows)?;
    let (mut ids, mut unused) = (parts.ids.clone(), Vec::new());
    let is_ordered = match model.find(&format!("{module}.g_idx")) {
        Some(order) if ColumnOrder::read(model, order, columns)?.is_plain(group, groups)? => {
            unused.push(order);
            false
        }
        Some(order) => {
            ids.push(order);
            true
        }
        None if declaration.is_some_and(|config| config.get("desc_act") == Some(&Value::Bool(true)))
            && groups > 1 =>
        {
            return Err(format!("has no `{module}.g_idx`, and `config.json` says `desc_act: true`"));
        }
        None => false,
    };
    let scales = parts.scales.dtype;
    let matrix = Matrix { bits, rows, columns, groups, group, scales, version, is_ordered };
    Ok(Recognized {
        name: Some(format!("{module}.weight")),
        shape: vec![rows, columns],
        dtype: scales,
        parts: ids,
        unused,
        matrix: Box::new(matrix),
    })
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    /// Less one, as in the first version of the format.
    is_less_one: bool,
    /// They all are the middle of the codes, by those of the first group.
    is_symmetric: bool,
    /// The values tell the version.
    is_told: bool,
}

impl Version {
    /// A symmetric model tells it by its values, since files exist that declare the other version; for an asymmetric one
    /// the declaration counts.
    fn of(model: &dyn Catalog, parts: &Parts<'_>, bits: u32, rows: u64) -> Result<Self, String> {
        let config = model.declaration();
        let declared = config.is_none_or(|config| word(config, "checkpoint_format") != "gptq_v2");
        let asymmetric = Self { is_less_one: declared, is_symmetric: false, is_told: false };
        let is_symmetric = config.and_then(|config| config.get("sym")).and_then(Value::as_bool);
        if is_symmetric == Some(false) || parts.zeros.shape[0] == 0 {
            return Ok(asymmetric);
        }
        let bytes = model.bytes(parts.ids[1], 0..parts.zeros.shape[1] * 4)?;
        let middle = 1 << (bits - 1);
        let all =
            |value: u32| (0..rows as usize).all(|row| one(&bytes, bits, Packing::Dense, row) == Some(value));
        let told = |is_less_one: bool| Self { is_less_one, is_symmetric: true, is_told: true };
        match (all(middle - 1), all(middle), is_symmetric) {
            (true, _, _) => Ok(told(true)),
            (_, true, _) => Ok(told(false)),
            (_, _, Some(true)) => {
                Err("has zero points of an asymmetric model, and `config.json` says `sym: true`".to_owned())
            }
            _ => Ok(asymmetric),
        }
    }
}

/// A matrix [out, in] of codes that lie transposed.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    bits: u32,
    rows: u64,
    columns: u64,
    groups: u64,
    /// Columns of a group.
    group: u64,
    scales: Dtype,
    version: Version,
    /// The last part gives the group of each column.
    is_ordered: bool,
}

impl Matrix {
    /// The words of zero points that rows need, of each group.
    fn zero_words(&self, rows: &Range<u64>) -> Range<u64> {
        let bits = u64::from(self.bits);
        rows.start * bits / 32..(rows.end * bits).div_ceil(32)
    }

    /// The zero point of a row in a group.
    fn zero_point(&self, fetched: &Fetched<'_>, row: u64, group: u64) -> Result<u32, String> {
        let words = self.zero_words(&fetched.rows);
        let width = words.end - words.start;
        let bytes = fetched.bytes(2, group * width * 4, width * 4)?;
        let bit = row * u64::from(self.bits) - words.start * 32;
        let stored = field(bytes, bit as usize, self.bits).ok_or("has too few zero points")?;
        let top = (1 << self.bits) - 1;
        match self.version.is_less_one {
            // Kernels disagree whether it means 2^bits or 0.
            true if stored == top => Err(format!(
                "has a zero point that is stored as {top}, less one, which engines read as {} or as 0",
                top + 1
            )),
            true => Ok(stored + 1),
            false => Ok(stored),
        }
    }

    /// The words of a row, one after the other.
    fn words(&self, fetched: &Fetched<'_>, row: u64) -> Result<Vec<u8>, String> {
        let width = (fetched.rows.end - fetched.rows.start) as usize * 4;
        let count = self.columns * u64::from(self.bits) / 32;
        let all = fetched.bytes(0, 0, count * width as u64)?;
        let at = (row - fetched.rows.start) as usize * 4;
        Ok(all.chunks_exact(width.max(4)).flat_map(|line| &line[at..at + 4]).copied().collect())
    }

    /// The scales of a row.
    fn scales_of(&self, fetched: &Fetched<'_>, row: u64) -> Result<Vec<f32>, String> {
        let width = (fetched.rows.end - fetched.rows.start) as usize;
        let size = self.scales.bytes().unwrap_or(4);
        let all = fetched.bytes(1, 0, self.groups * width as u64 * size)?;
        let at = (row - fetched.rows.start) as usize;
        let one = |group: usize| finite_scale(scale(self.scales, all, group * width + at));
        (0..self.groups as usize).map(one).collect()
    }
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
            0 => across(rows, self.rows, 4, self.columns * u64::from(self.bits) / 32),
            1 => across(rows, self.rows, self.scales.bytes().unwrap_or(4), self.groups),
            2 => across(self.zero_words(&rows), self.rows * u64::from(self.bits) / 32, 4, self.groups),
            _ => Ranges::elements(0..self.columns, 4),
        }
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        unpack(&self.words(fetched, row)?, self.bits, Packing::Dense, out).ok_or("has too few codes")?;
        let scales = self.scales_of(fetched, row)?;
        let zero = |group: u64| self.zero_point(fetched, row, group).map(|zero| zero as f32);
        let zeros: Vec<f32> = (0..self.groups).map(zero).collect::<Result<_, _>>()?;
        if !self.is_ordered {
            for ((out, zero), scale) in out.chunks_mut(self.group.max(1) as usize).zip(&zeros).zip(&scales) {
                out.iter_mut().for_each(|out| *out = (*out - zero) * scale);
            }
            return Ok(());
        }
        column_order::dequantize(out, fetched.bytes(3, 0, self.columns * 4)?, &zeros, &scales)
    }

    fn exact(&self) -> Result<Exact, String> {
        if self.is_ordered {
            return Err(column_order::NOT_WRITTEN.to_owned());
        }
        let groups = [self.group, self.groups, self.columns];
        let scheme =
            relabelled_scheme(self.bits, self.version.is_symmetric, groups, self.scales, Storage::Packed)?;
        let because = match (self.version.is_told, self.version.is_less_one) {
            (true, true) => "transposed; zero points are those of GPTQ v1",
            (true, false) => "transposed; zero points are those of GPTQ v2",
            (false, true) => "transposed; zero points read as v1, as `checkpoint_format` says or by default",
            (false, false) => "transposed; zero points read as v2, as `checkpoint_format` says",
        };
        Ok(Exact { scheme, activations: ActivationScheme::None, because })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let words = self.words(fetched, row)?;
        for column in 0..self.columns as usize {
            out.codes.push(one(&words, self.bits, Packing::Dense, column).ok_or("has too few codes")? as u8);
        }
        let (width, size) = (fetched.rows.end - fetched.rows.start, self.scales.bytes().unwrap_or(4));
        for group in 0..self.groups {
            let zero = self.zero_point(fetched, row, group)?;
            if self.version.is_symmetric && zero != 1 << (self.bits - 1) {
                return Err(format!("has the zero point {zero}, and the first group is symmetric"));
            }
            out.zero_points.push(zero as u8);
            let at = group * width + row - fetched.rows.start;
            out.scales.extend_from_slice(fetched.bytes(1, at * size, size)?);
        }
        Ok(())
    }

    /// They do not, but each word of a row lies alone.
    fn rows_share_bytes(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
