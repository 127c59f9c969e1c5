//! Where every byte of the output will be: output tensors, files, offsets and headers, fixed before a weight is read.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::select::{Decision, Treatment};
use crate::model::{MatrixView, ModelFolder, TensorInfo};
use crate::quant::Storage;
use crate::stage::export::shards::Shards;
use crate::stage::export::{Format, Overwrite, Target};

/// A part of a source tensor that is read, treated and written as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Index of the source tensor.
    pub tensor: usize,
    /// The module that the piece is in the output, such as `model.layers.0.mlp.experts.3.up_proj`.
    pub module: String,
    /// The matrix of weights where the piece is one; none where the tensor's bytes are taken as they are.
    pub matrix: Option<MatrixView>,
}

/// What part of a module an output tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The source's bytes (widened, where the source is scaled FP8).
    Copy,
    /// Integer codes.
    Codes,
    /// Scales.
    Scales,
    /// Zero points.
    ZeroPoints,
    /// The shape of the unpacked weight.
    Shape,
    /// Quantized weights as floating-point numbers.
    Dequantized,
}

/// A tensor of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputTensor {
    /// Its name in the file.
    pub name: String,
    /// Its type as written in the header.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its size.
    pub bytes: u64,
    /// Index of its file.
    pub file: usize,
    /// Its first byte, from the start of the file.
    pub offset: u64,
    /// Index of the source tensor.
    pub tensor: usize,
    /// What it is.
    pub part: Part,
}

/// A weight file of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFile {
    /// Its name.
    pub name: String,
    /// Length prefix and header, as they will be written.
    pub header: Vec<u8>,
    /// The size of the whole file.
    pub bytes: u64,
}

/// Where the results of a piece go in one export; the numbers are indices of output tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum PieceOutput {
    /// The bytes as they are, in a tensor of the piece's own.
    Copy {
        /// The tensor.
        tensor: usize,
    },
    /// The weights as they are, at the piece's own place in the source's tensor.
    InPlace {
        /// The tensor.
        tensor: usize,
    },
    /// Codes, scales and what belongs to them.
    Codes {
        /// Integer codes.
        codes: usize,
        /// Scales.
        scales: usize,
        /// Zero points, where the scheme is asymmetric.
        zero_points: Option<usize>,
        /// The shape tensor, where codes are packed.
        shape: Option<usize>,
    },
    /// Floating-point weights, at the piece's own place in the tensor.
    Dequantized {
        /// The tensor.
        tensor: usize,
    },
}

impl PieceOutput {
    /// The output tensors that hold the piece's results.
    pub fn tensors(&self) -> impl Iterator<Item = usize> {
        let all = match *self {
            Self::Copy { tensor } | Self::InPlace { tensor } | Self::Dequantized { tensor } => {
                [Some(tensor), None, None, None]
            }
            Self::Codes { codes, scales, zero_points, shape } => {
                [Some(codes), Some(scales), zero_points, shape]
            }
        };
        all.into_iter().flatten()
    }
}

/// One `export` stage, laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPlan {
    /// Index of the stage in the recipe.
    pub stage: usize,
    /// The format of the weights.
    pub format: Format,
    /// Whose loading rules hold.
    pub target: Target,
    /// What to do with a directory that is already there.
    pub overwrite: Overwrite,
    /// The output directory, resolved against the recipe's folder.
    pub path: PathBuf,
    /// The weight files.
    pub files: Vec<OutputFile>,
    /// The tensors, by file and offset.
    pub tensors: Vec<OutputTensor>,
    /// Where each piece of the plan goes.
    pub pieces: Vec<PieceOutput>,
    /// Whether there is an index of the weight files: the source has one, or there are several files.
    pub has_index: bool,
    /// The text of config.json; none where the source has none.
    pub config: Option<String>,
    /// Indices of the model's other files that are carried over.
    pub copies: Vec<usize>,
    /// What of the source stays behind.
    pub left: Vec<super::copies::Left>,
}

impl ExportPlan {
    /// The size of all weight files.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The treatment of a tensor as one export sees it: stages after the export have not happened yet.
#[must_use]
pub fn treatment_at(decision: &Decision, export_stage: usize) -> Option<&Treatment> {
    decision.treatment().filter(|treatment| treatment.stage < export_stage)
}

/// Whether an export holds codes at all.
#[must_use]
pub fn has_codes(decisions: &[Decision], export_stage: usize) -> bool {
    decisions.iter().any(|decision| treatment_at(decision, export_stage).is_some())
}

/// Output tensors and pieces of an export before they have a place.
struct Draft {
    tensors: Vec<OutputTensor>,
    pieces: Vec<PieceOutput>,
}

/// Lays out the weight files of one export: tensors, files and where each piece goes.
pub(super) fn lay_out(
    model: &ModelFolder,
    decisions: &[Decision],
    pieces: &[Piece],
    stage: usize,
    format: Format,
    shards: Shards,
) -> (Vec<OutputFile>, Vec<OutputTensor>, Vec<PieceOutput>) {
    let mut draft = draft(model, decisions, pieces, stage, format);
    let names = assign_files(model, &mut draft.tensors, shards);
    let (files, order) = place(model, &mut draft.tensors, &names);
    // Tensors are listed as they lie in the files; pieces follow them.
    let mut position = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        position[old] = new;
    }
    let mut slots: Vec<Option<OutputTensor>> = draft.tensors.into_iter().map(Some).collect();
    let tensors = order.iter().filter_map(|&old| slots[old].take()).collect();
    for piece in &mut draft.pieces {
        match piece {
            PieceOutput::Copy { tensor }
            | PieceOutput::InPlace { tensor }
            | PieceOutput::Dequantized { tensor } => *tensor = position[*tensor],
            PieceOutput::Codes { codes, scales, zero_points, shape } => {
                *codes = position[*codes];
                *scales = position[*scales];
                for optional in [zero_points, shape].into_iter().flatten() {
                    *optional = position[*optional];
                }
            }
        }
    }
    (files, tensors, draft.pieces)
}

fn draft(
    model: &ModelFolder,
    decisions: &[Decision],
    pieces: &[Piece],
    stage: usize,
    format: Format,
) -> Draft {
    let mut draft = Draft { tensors: Vec::new(), pieces: Vec::with_capacity(pieces.len()) };
    let mut whole: Vec<Option<usize>> = vec![None; model.tensors.len()];
    let splits_kept = format == Format::CompressedTensors && has_codes(decisions, stage);
    for piece in pieces {
        let source = &model.tensors[piece.tensor];
        let mut add = |name: String, dtype: &'static str, shape: Vec<u64>, bytes: u64, part: Part| {
            let tensor = piece.tensor;
            draft.tensors.push(OutputTensor { name, dtype, shape, bytes, file: 0, offset: 0, tensor, part });
            draft.tensors.len() - 1
        };
        let output = match (treatment_at(&decisions[piece.tensor], stage), &piece.matrix, format) {
            (Some(treatment), Some(matrix), Format::CompressedTensors) => {
                let scheme = &treatment.scheme;
                let (rows, columns) = (matrix.rows as usize, matrix.cols as usize);
                let wide = |shape: Vec<usize>| shape.into_iter().map(|n| n as u64).collect::<Vec<u64>>();
                let size = |shape: &[u64], width: u64| shape.iter().product::<u64>() * width;
                let packed = scheme.storage == Storage::Packed;
                let (suffix, dtype, width) =
                    if packed { ("weight_packed", "I32", 4) } else { ("weight", "I8", 1) };
                let shape = wide(scheme.codes_shape(rows, columns).to_vec());
                let bytes = size(&shape, width);
                let codes = add(format!("{}.{suffix}", piece.module), dtype, shape, bytes, Part::Codes);
                let shape = wide(scheme.scales_shape(rows, columns));
                let bytes = size(&shape, scheme.scale_type.bytes() as u64);
                let name = format!("{}.weight_scale", piece.module);
                let scales = add(name, scheme.scale_type.name(), shape, bytes, Part::Scales);
                let zero_points = scheme.zero_points_shape(rows, columns).map(|shape| {
                    let shape = wide(shape);
                    let (dtype, width) = if scheme.packs_zero_points() { ("I32", 4) } else { ("I8", 1) };
                    let bytes = size(&shape, width);
                    add(format!("{}.weight_zero_point", piece.module), dtype, shape, bytes, Part::ZeroPoints)
                });
                let shape = packed
                    .then(|| add(format!("{}.weight_shape", piece.module), "I64", vec![2], 16, Part::Shape));
                PieceOutput::Codes { codes, scales, zero_points, shape }
            }
            (None, Some(matrix), _) if splits_kept && decisions[piece.tensor].treatment().is_none() => {
                let shape = vec![matrix.rows, matrix.cols];
                let bytes = matrix.rows * matrix.cols * source.dtype.bits() / 8;
                let name = format!("{}.weight", piece.module);
                PieceOutput::Copy { tensor: add(name, source.dtype.name(), shape, bytes, Part::Copy) }
            }
            (treatment, _, _) => {
                let quantized = treatment.is_some();
                let tensor = *whole[piece.tensor].get_or_insert_with(|| {
                    let part = if quantized { Part::Dequantized } else { Part::Copy };
                    let bytes = logical_bytes(source);
                    add(source.name.clone(), source.dtype.name(), source.shape.clone(), bytes, part)
                });
                match (quantized, &piece.matrix) {
                    (true, _) => PieceOutput::Dequantized { tensor },
                    (false, Some(_)) => PieceOutput::InPlace { tensor },
                    (false, None) => PieceOutput::Copy { tensor },
                }
            }
        };
        draft.pieces.push(output);
    }
    draft
}

/// The size of a tensor as it is delivered and written: scaled FP8 counts as what it means.
#[must_use]
pub fn logical_bytes(tensor: &TensorInfo) -> u64 {
    if tensor.stored == tensor.dtype { tensor.bytes } else { tensor.elements() * tensor.dtype.bits() / 8 }
}

/// Gives each tensor its file; returns the files' names.
fn assign_files(model: &ModelFolder, tensors: &mut [OutputTensor], shards: Shards) -> Vec<String> {
    match shards {
        Shards::Keep => {
            let mut used: Vec<Option<usize>> = vec![None; model.shards.len()];
            for tensor in tensors.iter() {
                used[model.tensors[tensor.tensor].shard] = Some(0);
            }
            let mut names = Vec::new();
            for (shard, slot) in used.iter_mut().enumerate() {
                if slot.is_some() {
                    *slot = Some(names.len());
                    names.push(model.shards[shard].name.clone());
                }
            }
            for tensor in tensors {
                tensor.file = used[model.tensors[tensor.tensor].shard].unwrap_or(0);
            }
            names
        }
        Shards::MaxBytes(most) => {
            let (mut file, mut size) = (0, 0);
            for tensor in &mut *tensors {
                if size > 0 && size + tensor.bytes > most {
                    file += 1;
                    size = 0;
                }
                size += tensor.bytes;
                tensor.file = file;
            }
            let count = file + 1;
            match count {
                1 => vec!["model.safetensors".to_owned()],
                _ => (1..=count).map(|n| format!("model-{n:05}-of-{count:05}.safetensors")).collect(),
            }
        }
    }
}

/// Gives each tensor its offset, largest elements first and by name within, so that every tensor is aligned, as the
/// safetensors library itself orders them. Returns the files and the tensors' indices in file order.
fn place(
    model: &ModelFolder,
    tensors: &mut [OutputTensor],
    names: &[String],
) -> (Vec<OutputFile>, Vec<usize>) {
    let width = |dtype: &str| match dtype {
        "I64" | "U64" | "F64" | "C64" => 8,
        "I32" | "U32" | "F32" => 4,
        "I16" | "U16" | "F16" | "BF16" => 2,
        _ => 1,
    };
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&tensors[a], &tensors[b]);
        (a.file, width(b.dtype), &a.name).cmp(&(b.file, width(a.dtype), &b.name))
    });
    let mut files = Vec::with_capacity(names.len());
    let mut next = 0;
    for (file, name) in names.iter().enumerate() {
        let mut header = format!("{{\"__metadata__\":{}", metadata(model, name));
        let (start, mut offset) = (next, 0_u64);
        while next < order.len() && tensors[order[next]].file == file {
            let tensor = &mut tensors[order[next]];
            tensor.offset = offset;
            offset += tensor.bytes;
            // Models have hundreds of thousands of tensors, so the text is written as it is known, without a tree of values.
            let _ = write!(
                header,
                ",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{offset}]}}",
                json!(tensor.name),
                tensor.dtype,
                shape_text(&tensor.shape),
                tensor.offset,
            );
            next += 1;
        }
        header.push('}');
        let mut text = header.into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        for &index in &order[start..next] {
            tensors[index].offset += bytes.len() as u64;
        }
        let total = bytes.len() as u64 + offset;
        files.push(OutputFile { name: name.clone(), header: bytes, bytes: total });
    }
    (files, order)
}

fn shape_text(shape: &[u64]) -> String {
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", sizes.join(","))
}

/// The metadata of an output file: that of the source file of this name, and that the tensors are PyTorch's, which loaders ask for.
fn metadata(model: &ModelFolder, file: &str) -> Value {
    let mut metadata: Map<String, Value> = Map::new();
    if let Some(shard) = model.shards.iter().find(|shard| shard.name == *file) {
        metadata.extend(shard.metadata.iter().map(|(key, value)| (key.clone(), json!(value))));
    }
    metadata.entry("format").or_insert_with(|| json!("pt"));
    Value::Object(metadata)
}

impl ExportPlan {
    /// The text of the index of the weight files.
    #[must_use]
    pub fn index_text(&self) -> String {
        let mut tensors: Vec<&OutputTensor> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let map: Map<String, Value> =
            tensors.iter().map(|tensor| (tensor.name.clone(), json!(self.files[tensor.file].name))).collect();
        let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        format!("{}\n", serde_json::to_string_pretty(&index).unwrap_or_default())
    }
}
