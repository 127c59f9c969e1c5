//! Rows of weights that an encoding stores: the bytes of all parts, decoded.

use std::ops::Range;

use super::code;
use super::folder::ModelFolder;
use super::matrix_view::MatrixRows;
use super::read::WeightFile;
use super::tensor::{Encoded, TensorInfo};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::encoding::{Fetched, Ranges, unquantized};
use crate::ids::{IdVec, ShardId, TensorId};
use crate::quant::Integers;

/// Reads weights that an encoding stores.
#[derive(Debug)]
pub(crate) struct EncodedReader<'a> {
    folder: &'a ModelFolder,
    files: &'a IdVec<ShardId, WeightFile>,
    tensor: TensorId,
    info: &'a TensorInfo,
    encoded: &'a Encoded,
}

impl<'a> EncodedReader<'a> {
    /// A reader of a tensor; `files` are the weight files of the folder. None if no encoding stores it.
    #[must_use]
    pub(crate) fn new(
        folder: &'a ModelFolder,
        files: &'a IdVec<ShardId, WeightFile>,
        tensor: TensorId,
    ) -> Option<Self> {
        let info = &folder.tensors[tensor];
        Some(Self { folder, files, tensor, info, encoded: info.encoded.as_deref()? })
    }

    /// Replaces `out` by the weights of rows, little endian, in the type that they mean, and `codes` by the bytes of the
    /// codes that were read for it. Returns where these lie in their tensor.
    ///
    /// # Errors
    /// If they are not rows of the tensor, a file cannot be read, or a row means no weights.
    pub(crate) fn rows(
        &self,
        rows: &MatrixRows,
        out: &mut Vec<u8>,
        codes: &mut Vec<u8>,
    ) -> Result<Ranges, Failure> {
        out.clear();
        let info = self.info;
        let (first, step, span) = self.place(rows)?;
        let ranges = self.fetch(0, &span, codes)?;
        let others = self.fetch_others(&span)?;
        let parts = std::iter::once(codes.as_slice()).chain(others.iter().map(Vec::as_slice)).collect();
        let fetched = Fetched { rows: span, parts };

        let mut weights = vec![0.0; self.size(rows.view.cols)?];
        out.reserve(self.size(rows.count() * unquantized::bytes(info.dtype, rows.view.cols))?);
        for (n, row) in (0..).zip(rows.range.clone()) {
            let (matrix, stored) = (&self.encoded.matrix, first + n * step);
            let decoded = matrix.append_row(&fetched, stored, (info.dtype, &mut *out), &mut weights);
            decoded.map_err(|why| fail(code::ENCODED, format!("row {row} of `{}` {why}", info.name)))?;
        }
        Ok(ranges)
    }

    /// Replaces `out` by the codes, zero points and scales of rows, which the encoding can re-label.
    ///
    /// # Errors
    /// As [`EncodedReader::rows`].
    pub(crate) fn integers(&self, rows: &MatrixRows, out: &mut Integers) -> Result<(), Failure> {
        out.clear();
        let (first, step, span) = self.place(rows)?;
        let mut codes = Vec::new();
        self.fetch(0, &span, &mut codes)?;
        let others = self.fetch_others(&span)?;
        let parts = std::iter::once(codes.as_slice()).chain(others.iter().map(Vec::as_slice)).collect();
        let fetched = Fetched { rows: span, parts };
        for (n, row) in (0..).zip(rows.range.clone()) {
            let done = self.encoded.matrix.relabel_row(&fetched, first + n * step, out);
            done.map_err(|why| fail(code::ENCODED, format!("row {row} of `{}` {why}", self.info.name)))?;
        }
        Ok(())
    }

    /// Gives the bytes of the files that [`EncodedReader::rows`] and [`EncodedReader::integers`] read for rows.
    pub(crate) fn each_range(&self, rows: &MatrixRows, mut each: impl FnMut(ShardId, Range<u64>)) {
        // Rows that are none are told when they are read.
        let Ok((_, _, span)) = self.place(rows) else { return };
        for part in 0..=self.encoded.parts.len() {
            let index = part.checked_sub(1).map_or(self.tensor, |part| self.encoded.parts[part]);
            let info = &self.folder.tensors[index];
            let ranges = self.encoded.matrix.ranges(part, span.clone());
            let bytes = ranges.bytes;
            ranges.starts().for_each(|start| {
                let start = info.offset + start;
                each(info.shard, start..start + bytes);
            });
        }
    }

    /// Where rows lie among all of the tensor: the first, the distance from each to the next, and all between them.
    fn place(&self, rows: &MatrixRows) -> Result<(u64, u64, Range<u64>), Failure> {
        let info = self.info;
        let problem = |what: &str| fail(code::IO, format!("`{}` ({}) {what}", info.name, info.describe()));
        if rows.view.end(1).is_none_or(|end| end > info.elements()) {
            return Err(problem("is smaller than the matrix to be read from it"));
        }
        match (rows.among_all(info), rows.span_among_all(info)) {
            (Some((first, step)), Some(span)) => Ok((first, step, span)),
            _ => Err(problem("can only be decoded by rows")),
        }
    }

    /// The bytes of the parts beside the codes that rows need.
    fn fetch_others(&self, rows: &Range<u64>) -> Result<Vec<Vec<u8>>, Failure> {
        let mut others = vec![Vec::new(); self.encoded.parts.len()];
        for (part, buffer) in (1..).zip(&mut others) {
            self.fetch(part, rows, buffer)?;
        }
        Ok(others)
    }

    /// Replaces `buffer` by the bytes of a part that rows need.
    fn fetch(&self, part: usize, rows: &Range<u64>, buffer: &mut Vec<u8>) -> Result<Ranges, Failure> {
        let index = part.checked_sub(1).map_or(self.tensor, |part| self.encoded.parts[part]);
        let info = &self.folder.tensors[index];
        let ranges = self.encoded.matrix.ranges(part, rows.clone());
        if ranges.span().end > info.bytes {
            let message = format!("`{}` is smaller than the weights of `{}` need", info.name, self.info.name);
            return Err(fail(code::ENCODED, message));
        }
        buffer.resize(self.size(ranges.total())?, 0);
        if buffer.is_empty() {
            return Ok(ranges);
        }
        let stretches = buffer.chunks_exact_mut(self.size(ranges.bytes)?);
        for (start, bytes) in ranges.starts().zip(stretches) {
            self.files[info.shard].read_at(info.offset + start, bytes)?;
        }
        Ok(ranges)
    }

    fn size(&self, n: u64) -> Result<usize, Failure> {
        let problem = || fail(code::IO, format!("`{}` does not fit into memory", self.info.name));
        usize::try_from(n).map_err(|_| problem())
    }
}

fn fail(code: &'static str, message: String) -> Failure {
    Failure::new(Exit::BadModel, Finding::error(code, message))
}
