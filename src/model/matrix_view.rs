//! Matrices inside of tensors: the place of each row among the bytes of its tensor.
//!
//! A matrix [out, in] is a whole tensor, its transpose, or one of the matrices of a stack of experts. All arithmetic
//! with strides stands here: readers and writers get stretches of bytes.

use std::ops::Range;

use super::tensor::TensorInfo;

/// Bytes of columns that are collected before they are transposed, so that both sides stay in the cache.
const TRANSPOSE_BYTES: u64 = 256 * 1024;

/// A matrix [out, in] inside a tensor: element (r, c) is `first + r · row_stride + c · column_stride` elements from the
/// tensor's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixView {
    /// Elements from the start of the tensor to element (0, 0).
    pub first: u64,
    /// Rows: the output dimension.
    pub rows: u64,
    /// Columns: the input dimension.
    pub cols: u64,
    /// Elements from one row to the next.
    pub row_stride: u64,
    /// Elements from one column to the next; 1 if rows are contiguous.
    pub column_stride: u64,
}

impl MatrixView {
    /// A whole tensor as a matrix of contiguous rows: the first axis is the rows, all other axes together are the
    /// columns. `None` for a scalar, or if the columns of an empty tensor cannot be counted.
    #[must_use]
    pub fn whole(tensor: &TensorInfo) -> Option<Self> {
        let (&rows, rest) = tensor.shape.split_first()?;
        let cols = rest.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis))?;
        Some(Self { first: 0, rows, cols, row_stride: cols, column_stride: 1 })
    }

    /// All rows of a tensor, in which an encoding counts them: the last axis is the columns, all other axes together are
    /// the rows. `None` for a scalar.
    #[must_use]
    pub fn by_rows(tensor: &TensorInfo) -> Option<Self> {
        let (&cols, rest) = tensor.shape.split_last()?;
        let rows = rest.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis))?;
        Some(Self { first: 0, rows, cols, row_stride: cols, column_stride: 1 })
    }

    /// The transpose of a tensor [in, out], as GPT-2 stores its linear layers. `None` if it does not have two axes.
    #[must_use]
    pub fn transposed(tensor: &TensorInfo) -> Option<Self> {
        let &[cols, rows] = &tensor.shape[..] else { return None };
        Some(Self { first: 0, rows, cols, row_stride: 1, column_stride: rows })
    }

    /// Whether rows lie one after the other without a gap, so that some rows are one read.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.column_stride == 1 && self.row_stride == self.cols
    }

    /// Whether each element lies alone, between elements of other matrices.
    #[must_use]
    pub fn is_interleaved(&self) -> bool {
        self.column_stride != 1 && self.row_stride != 1
    }

    /// Elements from the start of the tensor to element (`row`, `column`).
    #[must_use]
    pub fn element_at(&self, row: u64, column: u64) -> u64 {
        self.first + row * self.row_stride + column * self.column_stride
    }

    /// Its place if the last two axes of its tensor change places. The view is of rows of one expert.
    #[must_use]
    pub fn swapped(self, tensor: &TensorInfo) -> Self {
        let &[_, outputs, inputs] = &tensor.shape[..] else { return self };
        let (size, width) = ((outputs * inputs).max(1), inputs.max(1));
        Self {
            first: self.first / size * size + self.first % size / width,
            row_stride: self.row_stride / width,
            column_stride: outputs,
            ..self
        }
    }

    /// Bytes from the start of the tensor to the end of the last element. `None` if that overflows.
    #[must_use]
    pub fn end(&self, element: u64) -> Option<u64> {
        if self.rows == 0 || self.cols == 0 {
            return self.first.checked_mul(element);
        }
        let row = (self.rows - 1).checked_mul(self.row_stride)?;
        let column = (self.cols - 1).checked_mul(self.column_stride)?;
        let last = self.first.checked_add(row)?.checked_add(column)?;
        last.checked_add(1)?.checked_mul(element)
    }

    /// The bytes of the tensor that the matrix takes, by the bits of an element. `None` if it is not contiguous.
    #[must_use]
    pub fn byte_range(&self, bits: u64) -> Option<Range<u64>> {
        let start = self.first * bits / 8;
        self.is_contiguous().then(|| start..start + (self.rows * self.cols * bits).div_ceil(8))
    }

    /// Some rows of it; those beyond its end are left out.
    #[must_use]
    pub fn rows(self, range: Range<u64>) -> MatrixRows {
        MatrixRows { view: self, range: range.start.min(self.rows)..range.end.min(self.rows) }
    }
}

/// How a stack of experts [E, …] holds its matrices [out, in].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StackLayout {
    /// Matrices per expert, side by side in the output dimension.
    pub parts: u64,
    /// Rows of each matrix.
    pub rows: u64,
    /// Columns of each matrix.
    pub cols: u64,
    /// Stored as [E, in, out] instead of [E, out, in].
    pub is_transposed: bool,
    /// Stored with the outputs of the parts in turn, instead of one part after the other.
    pub is_interleaved: bool,
}

impl StackLayout {
    /// A matrix of the stack: part `part` of expert `expert`.
    #[must_use]
    pub(crate) fn view(&self, expert: u64, part: u64) -> MatrixView {
        let Self { parts, rows, cols, is_transposed, is_interleaved } = *self;
        let (skipped, row_stride, column_stride) = match (is_transposed, is_interleaved) {
            (false, false) => (part * rows * cols, cols, 1),
            (false, true) => (part * cols, parts * cols, 1),
            (true, false) => (part * rows, 1, parts * rows),
            (true, true) => (part, parts, parts * rows),
        };
        MatrixView { first: expert * parts * rows * cols + skipped, rows, cols, row_stride, column_stride }
    }
}

/// Some rows of a matrix in a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixRows {
    /// The matrix.
    pub view: MatrixView,
    /// The rows.
    pub range: Range<u64>,
}

/// Bytes of a tensor, as `count` stretches of `len` bytes, each `step` bytes after the one before.
struct Stretches {
    start: u64,
    step: u64,
    count: u64,
    len: u64,
    /// Whether a stretch holds a column of the rows. If not, it holds rows.
    is_column: bool,
}

impl Stretches {
    fn starts(&self) -> impl Iterator<Item = u64> {
        let (start, step) = (self.start, self.step);
        (0..self.count).map(move |n| start + n * step)
    }
}

impl MatrixRows {
    /// How many rows.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Bytes of the rows, by those of an element.
    #[must_use]
    pub fn bytes(&self, element: u64) -> u64 {
        self.count() * self.view.cols * element
    }

    /// The same rows among all rows of a tensor, as [`MatrixView::by_rows`] counts them: the first, and the distance from
    /// each to the next. `None` if they are not whole rows of the tensor.
    #[must_use]
    pub fn among_all(&self, tensor: &TensorInfo) -> Option<(u64, u64)> {
        let (view, columns) = (&self.view, tensor.shape.last().copied()?.max(1));
        let are_whole = view.column_stride == 1
            && view.cols.max(1) == columns
            && view.first.is_multiple_of(columns)
            && view.row_stride.is_multiple_of(columns);
        let step = view.row_stride / columns;
        are_whole.then(|| (view.first / columns + self.range.start * step, step))
    }

    /// The same, with the rows between them.
    #[must_use]
    pub fn span_among_all(&self, tensor: &TensorInfo) -> Option<Range<u64>> {
        let (first, step) = self.among_all(tensor)?;
        let end = if self.count() == 0 { first } else { first + (self.count() - 1) * step + 1 };
        Some(first..end)
    }

    /// The same rows in the tensor that is written if the weights are written as plain numbers.
    #[must_use]
    pub fn written(&self, tensor: &TensorInfo) -> Self {
        let view = if tensor.plain_is_transposed() { self.view.swapped(tensor) } else { self.view };
        Self { view, range: self.range.clone() }
    }

    /// Elements from the start of the tensor to the `n`th element of the rows, counted row by row.
    #[must_use]
    pub fn element_at(&self, n: u64) -> u64 {
        let cols = self.view.cols.max(1);
        self.view.element_at(self.range.start + n / cols, n % cols)
    }

    /// Where the rows begin in a tensor that holds the matrix alone, row by row, in bytes.
    #[must_use]
    pub fn start_alone(&self, element: u64) -> u64 {
        self.range.start * self.view.cols * element
    }

    fn stretches(&self, element: u64) -> Stretches {
        let (view, count) = (&self.view, self.count());
        let start = view.element_at(self.range.start, 0) * element;
        let row_step = view.row_stride * element;
        if view.is_contiguous() {
            let len = self.bytes(element);
            return Stretches { start, step: len, count: 1, len, is_column: false };
        }
        if view.column_stride == 1 {
            return Stretches { start, step: row_step, count, len: view.cols * element, is_column: false };
        }
        // Between the elements of an interleaved column lie those of others.
        let len = count.saturating_sub(1) * row_step + element;
        Stretches { start, step: view.column_stride * element, count: view.cols, len, is_column: true }
    }

    /// The bytes of the tensor that [`MatrixRows::gather`] reads, in its order.
    pub(crate) fn reads(&self, element: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let stretches = self.stretches(element);
        let (len, is_empty) = (stretches.len, self.count() == 0 || self.view.cols == 0);
        let count = if is_empty { 0 } else { stretches.count };
        (0..count).map(move |n| {
            let start = stretches.start + n * stretches.step;
            start..start + len
        })
    }

    /// Fills `out` with the rows, row after row. `read` fills a buffer with the tensor's bytes from a position on;
    /// `scratch` is memory to be used again. `out` has [`MatrixRows::bytes`].
    ///
    /// # Errors
    /// Those of `read`.
    pub fn gather<E>(
        &self,
        element: u64,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if out.is_empty() {
            return Ok(());
        }
        let stretches = self.stretches(element);
        let len = stretches.len as usize;
        if !stretches.is_column {
            let mut lines = stretches.starts().zip(out.chunks_exact_mut(len));
            return lines.try_for_each(|(at, line)| read(at, line));
        }
        let (row_step, row_bytes) = ((self.view.row_stride * element) as usize, self.view.cols * element);
        let batch = (TRANSPOSE_BYTES / stretches.len).clamp(1, stretches.count);
        let mut column = 0;
        while column < stretches.count {
            let columns = batch.min(stretches.count - column);
            let at = stretches.start + column * stretches.step;
            scratch.resize(columns as usize * len, 0);
            if stretches.step == stretches.len {
                read(at, scratch)?;
            } else {
                let mut lines = (0..).zip(scratch.chunks_exact_mut(len));
                lines.try_for_each(|(n, line)| read(at + n * stretches.step, line))?;
            }
            let to = (column * element) as usize;
            for (row, line) in out.chunks_exact_mut(row_bytes as usize).enumerate() {
                let cells = line[to..].chunks_exact_mut(element as usize);
                for (cell, source) in cells.zip(scratch.chunks_exact(len)) {
                    cell.copy_from_slice(&source[row * row_step..][..element as usize]);
                }
            }
            column += columns;
        }
        Ok(())
    }

    /// Gives the rows in `bytes`, which lie row after row, to `write`: for each stretch its position in the tensor, and
    /// its bytes. Elements of an interleaved matrix come one by one.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn scatter<E>(
        &self,
        element: u64,
        bytes: &[u8],
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if bytes.is_empty() {
            return Ok(());
        }
        let stretches = self.stretches(element);
        if !stretches.is_column {
            let mut lines = stretches.starts().zip(bytes.chunks_exact(stretches.len as usize));
            return lines.try_for_each(|(at, line)| write(at, line));
        }
        let (cell, row_bytes) = (element as usize, (self.view.cols * element) as usize);
        let mut together = Vec::with_capacity(self.count() as usize * cell);
        for (column, at) in stretches.starts().enumerate() {
            together.clear();
            for row in bytes.chunks_exact(row_bytes) {
                together.extend_from_slice(&row[column * cell..][..cell]);
            }
            if self.view.is_interleaved() {
                let mut cells = (0..).zip(together.chunks_exact(cell));
                cells.try_for_each(|(row, cell)| write(at + row * self.view.row_stride * element, cell))?;
            } else {
                write(at, &together)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
