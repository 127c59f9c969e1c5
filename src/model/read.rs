//! Positioned reads of weights.
//!
//! Files are not memory-mapped. If a mapped file is truncated, the process is killed; a short read is a named error
//! instead. A [`WeightFile`] can be read from many threads at once.

use std::ops::Range;

use super::code;
use super::matrix_view::{MatrixRows, MatrixView};
use super::tensor::{Shard, TensorInfo};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::encoding::unquantized;
use crate::format::source::ahead::Ahead;
use crate::format::source::{self, Blob, Source, Trouble};
use crate::fs::handles::Replaced;

/// A weight file, to be read at positions.
#[derive(Debug)]
pub(crate) struct WeightFile {
    blob: Box<dyn Blob>,
    name: String,
}

impl WeightFile {
    /// Opens a shard.
    ///
    /// # Errors
    /// It cannot be opened, or is not the file whose header was read.
    pub(crate) fn open(source: &dyn Source, shard: &Shard) -> Result<Self, Failure> {
        let failed = |e| match Trouble::of(&e) {
            Some(trouble) => source::failure(vec![trouble.finding(&source.place(&shard.name))]),
            None => fail(code::IO, format!("cannot open `{}`: {e}", source.place(&shard.name))),
        };
        let blob = source.open(&shard.name).map_err(failed)?;
        let opened = Self { blob, name: shard.name.clone() };
        if *opened.blob.identity() == shard.identity { Ok(opened) } else { Err(opened.changed()) }
    }

    /// The file, read through a budget for what is asked for ahead of its readers.
    pub(crate) fn through(self, ahead: &Ahead) -> Self {
        Self { blob: ahead.around(self.blob), ..self }
    }

    /// Whether the file is still as it was when its header was read.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn check_unchanged(&self, shard: &Shard) -> Result<(), Failure> {
        match self.blob.identity_now() {
            Ok(identity) if identity == shard.identity => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(e) if Replaced::is(&e) => Err(self.changed()),
            Err(e) => Err(self.unreadable(&e, format!("cannot read `{}`: {e}", self.name))),
        }
    }

    fn unreadable(&self, error: &std::io::Error, message: String) -> Failure {
        match Trouble::of(error) {
            Some(trouble) => source::failure(vec![trouble.finding(&self.name)]),
            None => fail(code::IO, message),
        }
    }

    fn changed(&self) -> Failure {
        let message = format!("`{}` changed after its header was read", self.name);
        let help = "Something else writes to the model's folder; run again when it is done.";
        Failure::new(Exit::BadModel, Finding::error(code::CHANGED, message).help(help))
    }

    /// Fills `buffer` with the bytes at `offset` of the file.
    ///
    /// # Errors
    /// The file ends before, or the system cannot read it.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
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
                let message = format!("cannot read {bytes} bytes at {offset} of `{}`: {e}", self.name);
                self.unreadable(&e, message)
            }
        })
    }
}

/// Reads rows of one matrix [out, in], in a type that can be quantized.
#[derive(Debug)]
pub(crate) struct MatrixReader<'a> {
    file: &'a WeightFile,
    tensor: &'a TensorInfo,
    view: MatrixView,
    element: u64,
}

impl<'a> MatrixReader<'a> {
    /// A reader of `view` in `tensor`, which `file` holds.
    ///
    /// # Errors
    /// The view lies outside of the tensor, or the weights are not stored as they are.
    pub(crate) fn new(
        file: &'a WeightFile,
        tensor: &'a TensorInfo,
        view: MatrixView,
    ) -> Result<Self, Failure> {
        let problem =
            |what: &str| fail(code::IO, format!("`{}` ({}) {what}", tensor.name, tensor.describe()));
        let element = tensor.stored.bytes().ok_or_else(|| problem("has elements smaller than a byte"))?;
        if view.end(element).is_none_or(|end| end > tensor.bytes) {
            return Err(problem("is smaller than the matrix to be read from it"));
        }
        if tensor.encoded.is_some() {
            return Err(problem("must be decoded"));
        }
        Ok(Self { file, tensor, view, element })
    }

    /// Replaces `out` by the bytes of these rows, little endian, in [`TensorInfo::working_dtype`]. `scratch`
    /// is memory to be used again. Rows of a transposed matrix are gathered: tiles of many rows are then
    /// cheaper to read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn rows(
        &self,
        rows: Range<u64>,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Failure> {
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
        unquantized::f64_to_f32(scratch, out);
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

fn fail(code: &'static str, message: String) -> Failure {
    Failure::new(Exit::BadModel, Finding::error(code, message))
}

#[cfg(test)]
mod tests;
