//! Matrices in memory.

/// A matrix in memory that is read with steps: rows may be part of wider rows, and it may stand on its side.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T = f32> {
    /// Numbers from the first one on.
    pub(crate) data: &'a [T],
    /// From one row to the next.
    pub(crate) row_step: usize,
    /// From one column to the next.
    pub(crate) column_step: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows one after another.
    pub(crate) fn rows(data: &'a [T], width: usize) -> Self {
        Self { data, row_step: width, column_step: 1 }
    }

    /// The same on its side.
    pub(crate) fn turned(self) -> Self {
        Self { row_step: self.column_step, column_step: self.row_step, ..self }
    }

    pub(super) fn reaches(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_step + (columns - 1) * self.column_step < self.data.len()
    }
}
