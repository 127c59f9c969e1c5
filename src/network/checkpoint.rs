//! The tensors of a source model as [`Weights`].

use std::ops::Range;

use super::code;
use super::weights::Weights;
use crate::finding::{Failure, Finding};
use crate::ids::{IdVec, ShardId};
use crate::model::encoded::EncodedReader;
use crate::model::read::WeightFile;
use crate::model::{Dtype, MatrixRows, MatrixView, ModelFolder, TensorInfo};
use crate::quant::FloatType;

/// The weight files of a model folder, held open. Scaled FP8 is delivered as the weights that it means.
#[derive(Debug)]
pub struct Checkpoint<'m> {
    model: &'m ModelFolder,
    files: IdVec<ShardId, WeightFile>,
}

impl<'m> Checkpoint<'m> {
    /// Opens the files.
    ///
    /// # Errors
    /// If one cannot be opened, or is no longer the file whose header was read.
    pub fn open(model: &'m ModelFolder) -> Result<Self, Failure> {
        let open = |shard| WeightFile::open(&*model.source, shard);
        let files = model.shards.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { model, files })
    }

    /// Checks that the files are still as they were when their headers were read.
    ///
    /// # Errors
    /// If one has changed: what was read from it may be of two versions.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        self.files.iter().zip(&self.model.shards).try_for_each(|(file, shard)| file.check_unchanged(shard))
    }

    /// Stored bytes of a tensor, from an offset on.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn bytes(&self, tensor: &TensorInfo, offset: u64, count: u64) -> Result<Vec<u8>, Finding> {
        if offset.checked_add(count).is_none_or(|end| end > tensor.bytes) {
            return Err(Finding::error(
                code::WRONG_SHAPE,
                format!("`{}` ({}) is smaller than it should be", tensor.name, tensor.describe()),
            ));
        }
        let count = usize::try_from(count).map_err(|_| too_large(tensor))?;
        let mut bytes = vec![0; count];
        self.files[tensor.shard].read_at(tensor.offset + offset, &mut bytes).map_err(first)?;
        Ok(bytes)
    }
}

impl Weights for Checkpoint<'_> {
    fn names(&self) -> Vec<String> {
        let own = self.model.tensors.iter().filter(|tensor| tensor.part_of.is_none());
        own.map(|tensor| tensor.name.to_string()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.model.by_name(name)?.shape.iter().map(|size| usize::try_from(*size).ok()).collect()
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        let index = self.model.find(name).ok_or_else(|| missing(name))?;
        let tensor = &self.model.tensors[index];
        if let Some(reader) = EncodedReader::new(self.model, &self.files, index)
            && let Some(view) = MatrixView::whole(tensor)
        {
            let (mut weights, mut codes) = (Vec::new(), Vec::new());
            let rows = MatrixRows { view, range: rows.start as u64..rows.end as u64 };
            reader.rows(&rows, &mut weights, &mut codes).map_err(first)?;
            return floats(tensor.dtype, &weights).ok_or_else(|| missing(name));
        }
        // Entries of the first axis, of the whole tensor if it is a scalar.
        let row = tensor.bytes / tensor.shape.first().copied().unwrap_or(1).max(1);
        let count = (rows.end - rows.start) as u64;
        let bytes = self.bytes(tensor, row * rows.start as u64, row * count)?;
        floats(tensor.stored, &bytes).ok_or_else(|| {
            let message =
                format!("`{name}` is {}, and only floating-point weights can be run", tensor.stored);
            Finding::error(code::NOT_ADMITTED, message)
                .help("Run the model that it was made from. A file of statistics made elsewhere still works.")
        })
    }
}

/// The numbers of some bytes; none if they are no floating-point numbers.
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => FloatType::F32.widen(bytes),
        Dtype::F16 => FloatType::F16.widen(bytes),
        Dtype::Bf16 => FloatType::Bf16.widen(bytes),
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}

/// The error of a tensor that is not there.
pub(super) fn missing(name: &str) -> Finding {
    Finding::error(
        code::MISSING_TENSOR,
        format!("the checkpoint has no tensor `{name}`, which the model needs to run"),
    )
    .help("Get the checkpoint again, or look whether `config.json` belongs to it.")
}

fn too_large(tensor: &TensorInfo) -> Finding {
    Finding::error(code::NOT_ADMITTED, format!("`{}` does not fit into memory", tensor.name))
}

/// The finding of a failure to read.
pub(super) fn first(failure: Failure) -> Finding {
    let unknown = || Finding::error(code::MISSING_TENSOR, "a tensor cannot be read");
    failure.findings.into_iter().next().unwrap_or_else(unknown)
}
