//! Positioned reads of weights.
//!
//! Files are not memory-mapped. If a mapped file is truncated, the process is killed; a short read is a named error
//! instead. A [`WeightFile`] can be read from many threads at once.

use std::ops::Range;

use super::code;
use super::dtype::Dtype;
use super::folder::ModelFolder;
use super::matrix_view::{MatrixRows, MatrixView};
use super::tensor::{Shard, TensorInfo};
use super::widen::{self, ScaleGrid};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::{Blob, Source};
use crate::fs::handles::Replaced;

/// A weight file, to be read at positions.
#[derive(Debug)]
pub struct WeightFile {
    blob: Box<dyn Blob>,
    name: String,
}

impl WeightFile {
    /// Opens a shard.
    ///
    /// # Errors
    /// It cannot be opened, or is not the file whose header was read.
    pub fn open(source: &dyn Source, shard: &Shard) -> Result<Self, Failure> {
        let failed = |e| fail(code::IO, format!("cannot open `{}`: {e}", source.place(&shard.name)));
        let blob = source.open(&shard.name).map_err(failed)?;
        let opened = Self { blob, name: shard.name.clone() };
        if *opened.blob.identity() == shard.identity { Ok(opened) } else { Err(opened.changed()) }
    }

    /// Whether the file is still as it was when its header was read.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_unchanged(&self, shard: &Shard) -> Result<(), Failure> {
        match self.blob.identity_now() {
            Ok(identity) if identity == shard.identity => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(e) if Replaced::is(&e) => Err(self.changed()),
            Err(e) => Err(fail(code::IO, format!("cannot read `{}`: {e}", self.name))),
        }
    }

    fn changed(&self) -> Failure {
        let message = format!("`{}` changed after its header was read", self.name);
        let help = "Something else writes to the model's folder; run again when it is done.";
        Failure::new(Exit::BadModel, Finding::error(code::CHANGED, message).help(help))
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills `buffer` with the bytes at `offset` of the file.
    ///
    /// # Errors
    /// The file ends before, or the system cannot read it.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        self.blob.read_exact_at(offset, buffer).map_err(|e| {
            let bytes = buffer.len();
            if Replaced::is(&e) {
                self.changed()
            } else if e.kind() == std::io::ErrorKind::UnexpectedEof {
                let message = format!(
                    "`{}` ends before the {bytes} bytes at {offset} that its header promises",
                    self.name
                );
                let finding = Finding::error(code::SHORT_READ, message);
                Failure::new(
                    Exit::BadModel,
                    finding.help("The file was cut off while it was read; get it again."),
                )
            } else {
                fail(code::IO, format!("cannot read {bytes} bytes at {offset} of `{}`: {e}", self.name))
            }
        })
    }
}

/// Reads rows of one matrix [out, in], in a type that can be quantized.
#[derive(Debug)]
pub struct MatrixReader<'a> {
    file: &'a WeightFile,
    tensor: &'a TensorInfo,
    view: MatrixView,
    element: u64,
    scales: Option<ScaleGrid>,
}

impl<'a> MatrixReader<'a> {
    /// A reader of `view` in `tensor`, which `file` holds. FP8 weights need their scales ([`read_scales`]).
    ///
    /// # Errors
    /// The view lies outside of the tensor, the dtype cannot be read, or scales are missing.
    pub fn new(
        file: &'a WeightFile,
        tensor: &'a TensorInfo,
        view: MatrixView,
        scales: Option<ScaleGrid>,
    ) -> Result<Self, Failure> {
        let problem =
            |what: &str| fail(code::IO, format!("`{}` ({}) {what}", tensor.name, tensor.describe()));
        let element = tensor.stored.bytes().ok_or_else(|| problem("has elements smaller than a byte"))?;
        if view.end(element).is_none_or(|end| end > tensor.bytes) {
            return Err(problem("is smaller than the matrix to be read from it"));
        }
        if tensor.fp8.is_some() && (scales.is_none() || !view.is_contiguous()) {
            return Err(problem("is FP8 and can only be read by rows and with its scales"));
        }
        Ok(Self { file, tensor, view, element, scales })
    }

    /// Replaces `out` by the bytes of these rows, little endian, in [`TensorInfo::working_dtype`]. `scratch`
    /// is memory to be used again. Rows of a transposed matrix are gathered: tiles of many rows are then
    /// cheaper to read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rows(&self, rows: Range<u64>, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Failure> {
        let rows = self.view.rows(rows);
        let is_plain = self.tensor.stored == self.tensor.working_dtype();
        if is_plain {
            return self.fetch(&rows, out, scratch);
        }
        let mut raw = std::mem::take(scratch);
        let fetched = self.fetch(&rows, &mut raw, out);
        out.clear();
        *scratch = raw;
        fetched?;
        match (&self.scales, self.tensor.stored) {
            (_, Dtype::F64) => widen::f64_to_f32(scratch, out),
            (Some(grid), dtype) => {
                let (first, columns) = (self.size(rows.range.start)?, self.size(self.view.cols)?);
                if !widen::fp8_to_bf16(scratch, dtype, first, columns, grid, out) {
                    return Err(fail(code::FP8, format!("`{}` has too few scales", self.tensor.name)));
                }
            }
            (None, _) => return Err(fail(code::FP8, format!("`{}` has no scales", self.tensor.name))),
        }
        Ok(())
    }

    /// The stored bytes of rows, in row order.
    fn fetch(&self, rows: &MatrixRows, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Failure> {
        // The old contents of the buffer are overwritten, so clearing it first would only cost time.
        out.resize(self.size(rows.bytes(self.element))?, 0);
        rows.gather(self.element, out, scratch, |at, out| self.file.read_at(self.tensor.offset + at, out))
    }

    fn size(&self, n: u64) -> Result<usize, Failure> {
        usize::try_from(n)
            .map_err(|_| fail(code::IO, format!("`{}` does not fit into memory", self.tensor.name)))
    }
}

/// Reads the scales of an FP8 weight, from `file`, which holds the scale tensor; `None` for any other tensor.
///
/// # Errors
/// The file cannot be read.
pub fn read_scales(
    folder: &ModelFolder,
    tensor: &TensorInfo,
    file: &WeightFile,
) -> Result<Option<ScaleGrid>, Failure> {
    let Some(described) = tensor.fp8 else { return Ok(None) };
    let scales = &folder.tensors[described.tensor];
    let bytes = usize::try_from(scales.bytes)
        .map_err(|_| fail(code::IO, format!("`{}` does not fit into memory", scales.name)))?;
    let mut buffer = vec![0; bytes];
    file.read_at(scales.offset, &mut buffer)?;
    match ScaleGrid::new(described.layout, scales.stored, &buffer) {
        Some(grid) => Ok(Some(grid)),
        None => Err(fail(code::FP8, format!("`{}` ({}) cannot be scales", scales.name, scales.describe()))),
    }
}

fn fail(code: &'static str, message: String) -> Failure {
    Failure::new(Exit::BadModel, Finding::error(code, message))
}

#[cfg(test)]
mod tests;
