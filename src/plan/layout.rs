//! The layout of the output: tensors, files, offsets and headers. The place of every byte is fixed before a weight is
//! read.

use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::card::Card;
use super::output_tensor::{Content, MAX_FILES, OutputTensor, Part};
use super::select::{Decision, QuantSpec};
use crate::format::container::{Entry, SAFETENSORS};
use crate::format::encoding;
use crate::ids::{FileId, IdVec, OutputTensorId, ShardId, StageId, TaskId, TensorId};
use crate::model::ModelFolder;
use crate::stage::export::shards::Shards;
use crate::stage::export::{Format, Overwrite, Target};
use crate::threads;

/// The report's name in an output directory; also the mark of a directory as monoquant's.
pub const REPORT_FILE_NAME: &str = "monoquant-report.json";

/// The name of the recipe in an output directory.
pub(crate) const RECIPE_FILE_NAME: &str = "monoquant-recipe.yaml";

/// A weight file of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Its name.
    pub name: String,
    /// Bytes of the length prefix and the header.
    pub header_len: u64,
    /// The size of the whole file.
    pub bytes: u64,
    /// Its tensors, in the order in which they lie in it.
    pub tensors: Range<OutputTensorId>,
}

/// The destination of a task's results in one export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskOutput {
    /// The bytes unchanged, in a tensor of the task's own.
    Copy {
        /// The tensor.
        tensor: OutputTensorId,
    },
    /// The weights as they are, at the task's own place in the source's tensor.
    InPlace {
        /// The tensor.
        tensor: OutputTensorId,
    },
    /// The parts of the matrix as it is stored.
    Encoded {
        /// The tensors, in the order of the encoding's parts.
        tensors: PartTensors,
    },
    /// Floating-point weights, at the task's own place in the tensor.
    Dequantized {
        /// The tensor.
        tensor: OutputTensorId,
    },
}

/// Tensors that a stored matrix has at most.
const MAX_PARTS: usize = 6;

/// A place that holds no tensor.
const UNSET: OutputTensorId = OutputTensorId::new(u32::MAX as usize);

/// The tensors of a stored matrix, by the number of their part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartTensors([OutputTensorId; MAX_PARTS]);

impl PartTensors {
    const NONE: Self = Self([UNSET; MAX_PARTS]);

    /// The tensors, in the order of the encoding's parts.
    pub fn iter(&self) -> impl Iterator<Item = OutputTensorId> {
        self.0.into_iter().filter(|&tensor| tensor != UNSET)
    }
}

impl TaskOutput {
    /// The output tensors that hold the task's results.
    pub fn tensors(&self) -> impl Iterator<Item = OutputTensorId> {
        let all = match *self {
            Self::Copy { tensor } | Self::InPlace { tensor } | Self::Dequantized { tensor } => {
                let mut one = PartTensors::NONE;
                one.0[0] = tensor;
                one
            }
            Self::Encoded { tensors } => tensors,
        };
        all.0.into_iter().filter(|&tensor| tensor != UNSET)
    }
}

/// A file or folder of the source that an export leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Left {
    /// Its path in the source; a folder's ends with `/`.
    pub name: String,
    /// Its size in bytes; 0 if it was not counted, as for hidden folders.
    pub bytes: u64,
    /// Why it stays behind.
    pub reason: String,
}

/// One `export` stage, laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPlan {
    /// Index of the stage in the recipe.
    pub stage: StageId,
    /// The format of the weights.
    pub format: Format,
    /// Whose loading rules hold.
    pub target: Target,
    /// The action if the directory already exists.
    pub overwrite: Overwrite,
    /// The output directory, resolved against the recipe's folder. For an output in an object store, the directory on this
    /// machine in which it is made.
    pub path: PathBuf,
    /// The prefix in an object store at which it is published, such as `s3://bucket/prefix`.
    pub store: Option<String>,
    /// The weight files.
    pub files: IdVec<FileId, OutputFile>,
    /// The tensors, by file and offset.
    pub tensors: IdVec<OutputTensorId, OutputTensor>,
    /// The place of each task of the plan.
    pub tasks: IdVec<TaskId, TaskOutput>,
    /// Whether there is an index of the weight files: the source has one, or there are several files.
    pub has_index: bool,
    /// The text of config.json. None if the source has none.
    pub config: Option<String>,
    /// The model card. None if none is made.
    pub card: Option<Card>,
    /// Whether there is a file with the SHA-256 hashes of all others.
    pub sums: bool,
    /// Indices of the model's other files that are carried over.
    pub copies: Vec<usize>,
    /// The files of the source that are left behind.
    pub left: Vec<Left>,
}

impl ExportPlan {
    /// The size of all weight files.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes that it takes on its disk, except for the report, the recipe and the index.
    #[must_use]
    pub fn disk_needed(&self, model: &ModelFolder) -> u64 {
        self.weight_bytes() + self.other_bytes(model)
    }

    /// The size of the files that are carried over and of config.json.
    #[must_use]
    pub fn other_bytes(&self, model: &ModelFolder) -> u64 {
        let copied: u64 = self.copies.iter().map(|&index| model.others[index].len).sum();
        copied + self.config.as_ref().map_or(0, String::len) as u64
    }
}

/// The treatment of a tensor as one export sees it. Stages after the export have not happened yet.
#[must_use]
pub(crate) fn spec_at(decision: &Decision, export_stage: StageId) -> Option<&QuantSpec> {
    decision.spec().filter(|spec| spec.stage < export_stage)
}

/// Whether an export holds codes at all.
#[must_use]
pub(crate) fn has_codes(decisions: &IdVec<TensorId, Decision>, export_stage: StageId) -> bool {
    decisions.iter().any(|decision| spec_at(decision, export_stage).is_some())
}

/// Files, tensors, and the place of each task.
type LaidOut = (IdVec<FileId, OutputFile>, IdVec<OutputTensorId, OutputTensor>, IdVec<TaskId, TaskOutput>);

/// Lays out the weight files of one export: the tensors, the files and the place of each task.
pub(super) fn lay_out(content: Content<'_>, stage: StageId, format: Format, shards: Shards) -> LaidOut {
    let mut tensors = draft(content, stage, format);
    let names = assign_files(content, &mut tensors, shards);
    // Largest elements first and by name within, so that every tensor is aligned, as the safetensors library itself orders them.
    threads::sort_unstable_by(&mut tensors, |a, b| {
        let key = |tensor: &OutputTensor| (tensor.file(), std::cmp::Reverse(tensor.width()));
        key(a).cmp(&key(b)).then_with(|| a.cmp_names(b, content)).then(a.task.cmp(&b.task))
    });
    let files = place(content, &mut tensors, names);
    let tensors = tensors.into();
    let tasks = targets(content, &tensors);
    (files, tensors, tasks)
}

/// The output tensors of an export before they have a place, in the order of the tasks.
fn draft(content: Content<'_>, stage: StageId, format: Format) -> Vec<OutputTensor> {
    let mut tensors = Vec::new();
    let splits_kept = format == Format::CompressedTensors && has_codes(content.decisions, stage);
    let mut last_whole = None;
    for (index, task) in content.tasks.numbered() {
        let mut add = |part: Part| tensors.push(OutputTensor::new(index, part, content));
        let decision = &content.decisions[task.tensor()];
        match (spec_at(decision, stage), task.matrix(content.model), format) {
            (Some(spec), Some(_), Format::CompressedTensors) => {
                let parts = encoding::of(&spec.scheme).roles(&spec.scheme).len();
                (0..parts).for_each(|number| add(Part::Encoded(number as u8)));
            }
            (None, Some(_), _)
                if splits_kept
                    && decision.spec().is_none()
                    && !content.model.tensors[task.tensor()].plain_is_transposed() =>
            {
                add(Part::Matrix);
            }
            // Tasks of one tensor follow each other.
            _ if last_whole == Some(task.tensor()) => {}
            (spec, _, _) => {
                last_whole = Some(task.tensor());
                add(if spec.is_some() { Part::Dequantized } else { Part::Copy });
            }
        }
    }
    tensors.shrink_to_fit();
    tensors
}

/// Where each task goes, by the tensors in their order.
fn targets(content: Content<'_>, tensors: &IdVec<OutputTensorId, OutputTensor>) -> IdVec<TaskId, TaskOutput> {
    // What is not set yet is in the tensor of the task before it.
    let unset = TaskOutput::InPlace { tensor: UNSET };
    let mut out = content.tasks.map(|_| unset);
    for (number, tensor) in tensors.numbered() {
        let index = tensor.task;
        let is_matrix = content.tasks[index].matrix(content.model).is_some();
        let target = &mut out[index];
        if matches!(tensor.part(), Part::Encoded(_)) && *target == unset {
            *target = TaskOutput::Encoded { tensors: PartTensors::NONE };
        }
        match (tensor.part(), target) {
            (Part::Encoded(part), TaskOutput::Encoded { tensors }) => tensors.0[usize::from(part)] = number,
            (Part::Dequantized, target) => *target = TaskOutput::Dequantized { tensor: number },
            (Part::Copy, target) if is_matrix => *target = TaskOutput::InPlace { tensor: number },
            (_, target) => *target = TaskOutput::Copy { tensor: number },
        }
    }
    let mut before = unset;
    for target in &mut out {
        match *target == unset {
            true => *target = before,
            false => before = *target,
        }
    }
    out
}

/// Assigns each tensor to a file. Returns the names of the files.
fn assign_files(content: Content<'_>, tensors: &mut [OutputTensor], shards: Shards) -> IdVec<FileId, String> {
    let shard = |tensor: &OutputTensor| tensor.source(content).shard;
    match shards {
        Shards::Keep => {
            let mut used: IdVec<ShardId, Option<FileId>> = content.model.shards.map(|_| None);
            for tensor in tensors.iter() {
                used[shard(tensor)] = Some(FileId::new(0));
            }
            let mut names = IdVec::new();
            for (shard, slot) in content.model.shards.iter().zip(&mut used) {
                if slot.is_some() {
                    *slot = Some(names.push(shard.name.clone()));
                }
            }
            for tensor in tensors {
                tensor.put_into(used[shard(tensor)].unwrap_or(FileId::new(0)));
            }
            names
        }
        Shards::MaxBytes(most) => {
            let (mut file, mut size) = (0, 0);
            for tensor in &mut *tensors {
                let bytes = tensor.bytes(content);
                if size > 0 && size + bytes > most && file + 1 < MAX_FILES {
                    file += 1;
                    size = 0;
                }
                size += bytes;
                tensor.put_into(FileId::new(file));
            }
            let count = file + 1;
            match count {
                1 => vec!["model.safetensors".to_owned()].into(),
                _ => (1..=count).map(|n| format!("model-{n:05}-of-{count:05}.safetensors")).collect(),
            }
        }
    }
}

/// Gives each tensor its offset. They are in the order in which they lie in the files.
fn place(
    content: Content<'_>,
    tensors: &mut [OutputTensor],
    names: IdVec<FileId, String>,
) -> IdVec<FileId, OutputFile> {
    let mut files = IdVec::with_capacity(names.len());
    let mut next = 0;
    for (number, name) in names.numbered() {
        let (start, mut offset) = (next, 0);
        while let Some(tensor) = tensors.get_mut(next).filter(|tensor| tensor.file() == number) {
            tensor.offset = offset;
            offset += tensor.bytes(content);
            next += 1;
        }
        let tensors_of = OutputTensorId::new(start)..OutputTensorId::new(next);
        let mut file = OutputFile { name: name.clone(), header_len: 0, bytes: offset, tensors: tensors_of };
        let metadata = metadata(content.model, &file.name);
        file.header_len = SAFETENSORS.header_len(&metadata, &mut entries(content, 0, &tensors[start..next]));
        file.bytes += file.header_len;
        for tensor in &mut tensors[start..next] {
            tensor.offset += file.header_len;
        }
        files.push(file);
    }
    files
}

/// The tensors of a file for its header. Their offsets count from `data_start`.
fn entries<'t>(
    content: Content<'t>,
    data_start: u64,
    tensors: &'t [OutputTensor],
) -> impl Iterator<Item = Entry> + 't {
    tensors.iter().map(move |tensor| {
        let start = tensor.offset - data_start;
        Entry {
            name: tensor.name(content),
            dtype: tensor.dtype(content),
            shape: tensor.shape(content).to_vec(),
            start,
            end: start + tensor.bytes(content),
        }
    })
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
    /// Writes what a weight file begins with: the length of its header, and the header.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_header(&self, content: Content<'_>, file: FileId, out: impl Write) -> io::Result<()> {
        let (file, mut out) = (&self.files[file], out);
        let mut entries = entries(content, file.header_len, &self.tensors[file.tensors.clone()]);
        let metadata = metadata(content.model, &file.name);
        SAFETENSORS.write_header(file.header_len, &metadata, &mut entries, &mut out)
    }

    /// The output tensors that hold a source tensor, in a fixed order.
    pub fn tensors_of<'p>(
        &'p self,
        plan: &'p super::Plan,
        tensor: TensorId,
    ) -> impl Iterator<Item = OutputTensorId> + 'p {
        let mut last = None;
        let all = plan.tasks_of(tensor).flat_map(|task| self.tasks[task].tensors());
        // Tasks that lie in place have one tensor together.
        all.filter(move |&output| last.replace(output) != Some(output))
    }

    /// The place of an output tensor in [`ExportPlan::tensors_of`] its source tensor.
    #[must_use]
    pub fn position_of(&self, plan: &super::Plan, output: OutputTensorId) -> Option<usize> {
        let tensor = &self.tensors[output];
        let task = tensor.task;
        let first = plan.tasks_of(plan.tasks[task].tensor()).next()?;
        // The tasks of a tensor are treated alike.
        let of_task = || self.tasks[task].tensors();
        Some(
            (task.index() - first.index()) * of_task().count()
                + of_task().position(|other| other == output)?,
        )
    }

    /// Writes the index of the weight files.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_index(&self, content: Content<'_>, out: impl Write) -> io::Result<()> {
        let mut order: Vec<OutputTensorId> = self.tensors.ids().collect();
        let tensor = |index: OutputTensorId| &self.tensors[index];
        threads::sort_unstable_by(&mut order, |&a, &b| {
            tensor(a).cmp_names(tensor(b), content).then(a.cmp(&b))
        });
        let total: u64 = self.tensors.iter().map(|tensor| tensor.bytes(content)).sum();
        let mut entries = order.iter().map(|&index| {
            let tensor = tensor(index);
            (tensor.name(content), self.files[tensor.file()].name.clone())
        });
        let mut out = out;
        SAFETENSORS.write_index(total, &mut entries, &mut out)
    }
}
