//! Already quantized weights: those of an encoding that is read are described so that they can be decoded, all else
//! is refused.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::code;
use super::config::Config;
use super::name::Names;
use super::name_index::NameIndex;
use super::tensor::{Encoded, Shard, TensorInfo};
use crate::finding::Finding;
use crate::format::Dtype;
use crate::format::encoding::{self, Catalog, ReadEncoding, Recognized, StoredTensor};
use crate::format::source::Source;
use crate::fs::regular::limit;
use crate::ids::{IdVec, ShardId, TensorId};

/// Names that only a quantized model has: the end of a name, a dtype that it must have, and whose format it
/// is.
const MARKS: &[(&str, Option<Dtype>, &str)] = &[
    (".weight_packed", None, "compressed-tensors"),
    (".qweight", None, "GPTQ or AWQ"),
    (".qzeros", None, "GPTQ or AWQ"),
    ("_blocks", Some(Dtype::U8), "MXFP4"),
    (".SCB", None, "bitsandbytes"),
    (".weight.absmax", None, "bitsandbytes"),
    (".weight.quant_map", None, "bitsandbytes"),
    (".W_q", None, "HQQ"),
    (".weight", Some(Dtype::I8), "int8 codes"),
    (".weight", Some(Dtype::U8), "packed codes"),
    (".weight", Some(Dtype::U32), "MLX"),
    (".weight", Some(Dtype::I32), "packed codes"),
    (".weight", Some(Dtype::F4), "FP4"),
];

/// Whose format a name belongs to that only a quantized model has.
fn mark(tensor: &TensorInfo) -> Option<&'static str> {
    let found = MARKS.iter().find(|(end, dtype, _)| {
        let is_matrix_of = |dtype: Dtype| tensor.stored == dtype && tensor.shape.len() > 1;
        tensor.name.ends_with(end) && dtype.is_none_or(is_matrix_of)
    })?;
    Some(found.2)
}

impl TensorInfo {
    /// Whether it looks like codes that no encoding has read.
    #[must_use]
    pub fn is_unknown_code(&self) -> bool {
        self.encoded.is_none() && self.part_of.is_none() && mark(self).is_some()
    }
}

/// Files that declare a quantization beside `config.json`, with the method that they mean if they name none.
const SEPARATE: [(&str, &str); 2] = [("quantize_config.json", "gptq"), ("quant_config.json", "awq")];

/// The declaration of a file of its own, as older tools wrote it. Looked for only if the model holds what it speaks of: it
/// may have been left beside full weights.
pub(super) fn separate_declaration(
    source: &dyn Source,
    tensors: &IdVec<TensorId, TensorInfo>,
) -> Option<Value> {
    tensors.iter().find(|tensor| tensor.parameter() == "qweight")?;
    SEPARATE.iter().find_map(|(file, method)| {
        let text = source.read(file, limit::CONFIG).ok()?;
        let mut declared: Value = serde_json::from_slice(text.as_ref()).ok()?;
        declared.as_object_mut()?.entry("quant_method").or_insert_with(|| Value::from(*method));
        Some(declared)
    })
}

/// A model's tensors, as they are stored.
pub(super) struct Stored<'m> {
    pub(super) source: &'m dyn Source,
    pub(super) config: &'m Config,
    /// The `quantization_config`.
    pub(super) declaration: Option<&'m Value>,
    pub(super) shards: &'m IdVec<ShardId, Shard>,
    pub(super) tensors: &'m IdVec<TensorId, TensorInfo>,
    pub(super) names: &'m NameIndex,
}

impl Catalog for Stored<'_> {
    fn tensor(&self, tensor: TensorId) -> StoredTensor<'_> {
        let info = &self.tensors[tensor];
        StoredTensor { name: &info.name, dtype: info.stored, shape: &info.shape }
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.names.find(self.tensors, name)
    }

    fn declaration(&self) -> Option<&Value> {
        self.declaration
    }

    fn config(&self, key: &str) -> Option<&Value> {
        self.config.get(key)
    }

    fn bytes(&self, tensor: TensorId, range: Range<u64>) -> Result<Vec<u8>, String> {
        let info = &self.tensors[tensor];
        let shard = self.shards.get(info.shard);
        shard
            .and_then(|shard| bytes(self.source, shard, info, range))
            .ok_or_else(|| format!("needs `{}`, which cannot be read", info.name))
    }
}

/// Some bytes of a tensor. None if they cannot be read.
pub(super) fn bytes(
    source: &dyn Source,
    shard: &Shard,
    tensor: &TensorInfo,
    range: Range<u64>,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end.min(tensor.bytes).checked_sub(range.start)?).ok()?];
    let blob = source.open(&shard.name).ok()?;
    blob.read_exact_at(tensor.offset + range.start, &mut bytes).ok()?;
    (range.end <= tensor.bytes).then_some(bytes)
}

/// A matrix that an encoding stores, with the index of its codes.
pub(super) struct Matrix {
    codes: TensorId,
    encoding: &'static dyn ReadEncoding,
    recognized: Recognized,
}

/// Codes that an encoding knows and that cannot be read, with the reason.
struct Unreadable {
    codes: TensorId,
    encoding: &'static dyn ReadEncoding,
    why: String,
}

/// The matrices of encodings that are read, and findings for a model that is stored otherwise. If its files `have_errors`,
/// parts may be missing: no finding says so then.
pub(super) fn recognize(model: &Stored<'_>, have_errors: bool) -> (Vec<Matrix>, Vec<Finding>) {
    let (mut matrices, mut unreadable) = (Vec::new(), Vec::new());
    for codes in model.tensors.ids() {
        match recognized(model, codes) {
            Some(Ok(matrix)) => matrices.push(matrix),
            Some(Err(problem)) => unreadable.push(problem),
            None => {}
        }
    }
    let mut is_known: HashSet<TensorId> = HashSet::new();
    for Matrix { codes, recognized, .. } in &matrices {
        is_known.extend(recognized.parts.iter().chain(&recognized.unused));
        is_known.insert(*codes);
    }
    // Parts of one encoding may look like codes of another.
    unreadable.retain(|problem: &Unreadable| !is_known.contains(&problem.codes));
    is_known.extend(unreadable.iter().map(|problem| problem.codes));
    if let Some(finding) = foreign(model, &is_known) {
        return (matrices, vec![finding]);
    }
    if have_errors {
        return (Vec::new(), Vec::new());
    }
    let mut findings: Vec<Finding> = refusals(model, &unreadable).collect();
    if let (Some(declared), true) = (model.declaration, is_known.is_empty()) {
        let message =
            format!("`config.json` declares a model quantized by {}, but no weight is", method(declared));
        findings.push(
            Finding::error(code::ALREADY_QUANTIZED, message)
                .help("Remove `quantization_config` from `config.json` if these are the full weights."),
        );
    }
    (matrices, findings)
}

/// The matrix whose codes a tensor holds, by the first encoding that can read it.
fn recognized(model: &Stored<'_>, codes: TensorId) -> Option<Result<Matrix, Unreadable>> {
    let mut problem = None;
    for encoding in encoding::readable() {
        match encoding.recognize(model, codes) {
            Some(Ok(recognized)) => return Some(Ok(Matrix { codes, encoding, recognized })),
            Some(Err(why)) => problem = problem.or(Some(Err(Unreadable { codes, encoding, why }))),
            None => {}
        }
    }
    problem
}

/// One finding for each encoding that has codes which cannot be read.
fn refusals(model: &Stored<'_>, unreadable: &[Unreadable]) -> impl Iterator<Item = Finding> {
    encoding::readable().filter_map(|encoding| {
        let mut all = unreadable.iter().filter(|problem| problem.encoding.name() == encoding.name());
        let (first, refusal) = (all.next()?, encoding.refusal());
        let more = match all.count() {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        let (name, why) = (&model.tensors[first.codes].name, &first.why);
        let message = format!("the {} `{name}` {why}{more}", refusal.what);
        Some(Finding::error(refusal.code, message).help(refusal.help))
    })
}

/// Makes the tensors of codes what they mean, and their parts parts. Whether a name has changed.
pub(super) fn decode(matrices: Vec<Matrix>, tensors: &mut IdVec<TensorId, TensorInfo>) -> bool {
    let mut names = Names::default();
    let mut renamed = Vec::new();
    for Matrix { codes, encoding, recognized } in matrices {
        for &part in recognized.parts.iter().chain(&recognized.unused) {
            tensors[part].part_of = Some(codes);
        }
        let tensor = &mut tensors[codes];
        tensor.dtype = recognized.dtype;
        let shape = std::mem::replace(&mut tensor.shape, recognized.shape.into());
        let (name, parts, matrix) = (tensor.name.clone(), recognized.parts.into(), recognized.matrix);
        tensor.encoded = Some(Arc::new(Encoded { encoding, name, shape, parts, matrix }));
        if let Some(name) = recognized.name {
            renamed.push((codes, names.push(&name).unwrap_or_default()));
        }
    }
    let names = names.shared();
    for &(codes, span) in &renamed {
        tensors[codes].name = names.at(span);
    }
    !renamed.is_empty()
}

/// The finding for parts of encoded weights whose codes are not there, or are no codes any more.
pub(super) fn left_parts(tensors: &IdVec<TensorId, TensorInfo>) -> Option<Finding> {
    let is_part =
        |tensor: &TensorInfo| encoding::readable().any(|known| known.parts().contains(&tensor.parameter()));
    let mut left = tensors.iter().filter(|tensor| tensor.part_of.is_none() && is_part(tensor));
    let first = left.next()?;
    let more = match left.count() {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    };
    let message =
        format!("`{}` ({}){more} scales codes that the model does not have", first.name, first.describe());
    Some(Finding::warning(code::LEFT_PARTS, message).help(
        "Get the checkpoint again if weights are missing. If they were dequantized, remove the scales: they are copied as they \
         are, and what loads the output may multiply by them again.",
    ))
}

/// The finding for a model that some encoding stores which is not read. `is_known` are tensors that belong to others.
fn foreign(model: &Stored<'_>, is_known: &HashSet<TensorId>) -> Option<Finding> {
    let declared = model.declaration;
    let unknown = model.tensors.numbered().filter(|(index, _)| !is_known.contains(index));
    let marked = unknown.map(|(_, tensor)| tensor).find_map(|tensor| Some((tensor, mark(tensor)?)));
    let is_declared = |declared| encoding::readable().any(|encoding| encoding.is_declared(declared));
    let message = match (declared, marked) {
        (Some(declared), Some((tensor, _))) => {
            format!(
                "the model is already quantized by {} (`{}` is {})",
                method(declared),
                tensor.name,
                tensor.describe()
            )
        }
        (None, Some((tensor, format))) => {
            format!("the model is already quantized: `{}` ({}) is {format}", tensor.name, tensor.describe())
        }
        (Some(declared), None) if is_known.is_empty() && !is_declared(declared) => {
            format!("the model is already quantized by {}, says `config.json`", method(declared))
        }
        _ => return None,
    };
    Some(Finding::error(code::ALREADY_QUANTIZED, message).help(
        "Quantizing twice adds both errors. Load the original model in BF16, F16 or F32, or dequantize this \
         one with the tool that made it.",
    ))
}

/// The method name in a `quantization_config`, with the format if it names one.
fn method(declared: &Value) -> String {
    let word = |key| declared.get(key).and_then(Value::as_str);
    let method = word("quant_method").unwrap_or("an unnamed method");
    word("format")
        .or_else(|| word("quant_algo"))
        .map_or(method.to_owned(), |format| format!("{method} ({format})"))
}
