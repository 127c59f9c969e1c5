//! Tensors of an output. There may be millions, so each holds only what does not follow from its task.

use std::cmp::Ordering;

use super::fused_modules::FusedModules;
use super::select::Decision;
use super::task::Task;
use crate::format::encoding::unquantized::Unquantized;
use crate::format::encoding::{self, Encoding, unquantized};
use crate::ids::{FileId, IdVec, TaskId, TensorId};
use crate::model::{LayerClass, ModelFolder, Shape, TensorInfo};
use crate::quant::{Role, Scheme};
use crate::recipe::Loaded;

/// What of a task an output tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The part of the stored matrix with this number.
    Encoded(u8),
    /// The source's bytes (decoded, if an encoding stores them).
    Copy,
    /// One of the source's matrices, as it is, in a tensor of its own.
    Matrix,
    /// Quantized weights as floating-point numbers.
    Dequantized,
}

impl Part {
    /// As a number below 16. Encodings have no more than [`MAX_PARTS`] parts.
    fn number(self) -> u32 {
        match self {
            Self::Encoded(number) => number.into(),
            Self::Copy => 13,
            Self::Matrix => 14,
            Self::Dequantized => 15,
        }
    }

    fn of_number(number: u32) -> Self {
        match number {
            13 => Self::Copy,
            14 => Self::Matrix,
            15 => Self::Dequantized,
            number => Self::Encoded(number as u8),
        }
    }
}

/// A recipe and a model that is cut into tasks: what the tensors of an output are made of. Of each there may be millions, so
/// what follows from these is not kept.
#[derive(Debug, Clone, Copy)]
pub struct Content<'p> {
    /// The recipe.
    pub loaded: &'p Loaded,
    /// The model.
    pub model: &'p ModelFolder,
    /// Kind and role of each of its tensors.
    pub classes: &'p IdVec<TensorId, LayerClass>,
    /// What is done with each of its tensors.
    pub decisions: &'p IdVec<TensorId, Decision>,
    /// Modules that engines fuse.
    pub fused_modules: &'p [FusedModules],
    /// The tasks that it is cut into.
    pub tasks: &'p IdVec<TaskId, Task>,
}

impl<'p> Content<'p> {
    /// The tasks of a tensor of the model.
    pub fn tasks_of(self, tensor: TensorId) -> impl Iterator<Item = TaskId> + 'p {
        let first = self.tasks.partition_point(|task| task.tensor() < tensor);
        let is_of = move |id: &TaskId| self.tasks.get(*id).is_some_and(|task| task.tensor() == tensor);
        (first..self.tasks.len()).map(TaskId::new).take_while(is_of)
    }
}

/// A tensor of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputTensor {
    /// Its first byte, from the start of the file.
    pub offset: u64,
    /// The first task that it holds.
    pub(super) task: TaskId,
    /// Its file, and in the last bits how wide its elements are and what part it is.
    place: u32,
}

/// Bits of a place behind the file: four of the part, before them two of the elements' width.
const PART_BITS: u32 = 4;
const FILE_BITS: u32 = PART_BITS + 2;

/// Files that an output may have at most.
pub(super) const MAX_FILES: usize = 1 << (32 - FILE_BITS);

impl OutputTensor {
    pub(super) fn new(task: TaskId, part: Part, content: Content<'_>) -> Self {
        let mut tensor = Self { offset: 0, task, place: part.number() };
        let width: u32 = match tensor.dtype(content) {
            "I64" | "U64" | "F64" | "C64" => 3,
            "I32" | "U32" | "F32" => 2,
            "I16" | "U16" | "F16" | "BF16" => 1,
            _ => 0,
        };
        tensor.place |= width << PART_BITS;
        tensor
    }

    pub(super) fn put_into(&mut self, file: FileId) {
        self.place = (file.index() as u32) << FILE_BITS | self.place & ((1 << FILE_BITS) - 1);
    }

    /// How many bytes an element has, as a power of two.
    pub(super) fn width(&self) -> u32 {
        self.place >> PART_BITS & 3
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> FileId {
        FileId::new((self.place >> FILE_BITS) as usize)
    }

    pub(super) fn part(&self) -> Part {
        Part::of_number(self.place & ((1 << PART_BITS) - 1))
    }

    /// Its role.
    #[must_use]
    pub fn role(&self, content: Content<'_>) -> Role {
        match self.part() {
            Part::Copy | Part::Matrix => Role::Weights,
            Part::Dequantized => Role::Dequantized,
            Part::Encoded(number) => self.roles(content)[usize::from(number)].0,
        }
    }

    /// The first task that it holds.
    fn task<'p>(&self, content: Content<'p>) -> &'p Task {
        &content.tasks[self.task]
    }

    /// The source tensor.
    #[must_use]
    pub fn tensor(&self, content: Content<'_>) -> TensorId {
        self.task(content).tensor()
    }

    pub(super) fn source<'p>(&self, content: Content<'p>) -> &'p TensorInfo {
        &content.model.tensors[self.tensor(content)]
    }

    /// How the source tensor is quantized, if it is.
    pub(super) fn scheme<'p>(&self, content: Content<'p>) -> Option<&'p Scheme> {
        Some(&content.decisions[self.tensor(content)].spec()?.scheme)
    }

    /// Roles and parameter names of the tensors that its matrix is stored in; none if it is not quantized.
    pub(super) fn roles(&self, content: Content<'_>) -> &'static [(Role, &'static str)] {
        self.scheme(content).map_or(&[], |scheme| encoding::of(scheme).roles(scheme))
    }

    /// How it is stored.
    #[must_use]
    pub fn encoding(&self, content: Content<'_>) -> &'static dyn Encoding {
        match (self.part(), self.scheme(content)) {
            (Part::Encoded(_), Some(scheme)) => encoding::of(scheme),
            _ => &Unquantized,
        }
    }

    /// Itself as its encoding stores it.
    pub(super) fn stored(&self, content: Content<'_>) -> encoding::Part {
        let (role, source) = (self.role(content), self.source(content));
        let plain = |shape: &[u64]| unquantized::part(role, source.dtype, shape);
        let view = self.task(content).matrix(content.model);
        match (self.part(), view, self.scheme(content)) {
            (Part::Encoded(_), Some(view), Some(scheme)) => {
                encoding::of(scheme).part(scheme, role, view.rows, view.cols)
            }
            (Part::Matrix, Some(view), _) => plain(&[view.rows, view.cols]),
            _ => plain(&source.plain_shape()),
        }
    }

    /// Its name in the file, in two parts: with the dot between them, if it has two.
    fn name_parts<'p>(&self, content: Content<'p>) -> (&'p str, &'static str) {
        let parameter = match self.part() {
            Part::Copy | Part::Dequantized => return (&self.source(content).name, ""),
            Part::Matrix => "weight",
            Part::Encoded(number) => self.roles(content)[usize::from(number)].1,
        };
        (self.task(content).module(content.model), parameter)
    }

    /// Its name in the file.
    #[must_use]
    pub fn name(&self, content: Content<'_>) -> String {
        let (module, parameter) = self.name_parts(content);
        let dot = if parameter.is_empty() { "" } else { "." };
        format!("{module}{dot}{parameter}")
    }

    /// How its name and another's are ordered.
    #[must_use]
    pub fn cmp_names(&self, other: &Self, content: Content<'_>) -> Ordering {
        let (a, a_end) = self.name_parts(content);
        let (b, b_end) = other.name_parts(content);
        let shared = a.len().min(b.len());
        let dot = |end: &str| if end.is_empty() { &b""[..] } else { b"." };
        let (a_rest, b_rest) = (&a.as_bytes()[shared..], &b.as_bytes()[shared..]);
        a.as_bytes()[..shared].cmp(&b.as_bytes()[..shared]).then_with(|| {
            let a = a_rest.iter().chain(dot(a_end)).chain(a_end.as_bytes());
            a.cmp(b_rest.iter().chain(dot(b_end)).chain(b_end.as_bytes()))
        })
    }

    /// Its type as written in the header.
    #[must_use]
    pub fn dtype(&self, content: Content<'_>) -> &'static str {
        match self.part() {
            Part::Encoded(_) => self.stored(content).dtype,
            // Without its shape: this is asked for every tensor.
            _ => self.source(content).dtype.name(),
        }
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self, content: Content<'_>) -> Shape {
        self.stored(content).shape.into()
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self, content: Content<'_>) -> u64 {
        match self.part() {
            Part::Copy | Part::Dequantized => logical_bytes(self.source(content)),
            Part::Matrix | Part::Encoded(_) => self.stored(content).bytes,
        }
    }
}

/// The size of a tensor as it is delivered and written. Encoded weights count as the type that they mean.
#[must_use]
pub(crate) fn logical_bytes(tensor: &TensorInfo) -> u64 {
    unquantized::bytes(tensor.dtype, tensor.elements())
}
