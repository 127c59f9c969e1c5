//! Tensors of the staged outputs, as tiles are written to them.

use crate::finding::Failure;
use crate::ids::{ExportId, OutputTensorId};
use crate::model::MatrixRows;
use crate::publish::files;
use crate::run::context::Context;

/// A tensor of an output, to be written.
pub(super) struct Sink<'a> {
    pub run: &'a Context<'a>,
    pub export: ExportId,
    pub tensor: OutputTensorId,
}

impl Sink<'_> {
    /// Writes bytes, from `start` of the tensor on.
    fn write(&self, start: u64, bytes: &[u8]) -> Result<(), Failure> {
        let planned = &self.run.plan.exports[self.export].tensors[self.tensor];
        let staged = self.run.staging[self.export].weight(planned.file())?;
        files::write_at(staged, planned.offset + start, bytes)?;
        self.run.collector.output(self.export, self.tensor, start, bytes);
        Ok(())
    }

    /// Writes bytes. If the checks ask for it, reads them back into `read_back` and compares them.
    pub(super) fn write_and_check(
        &self,
        start: u64,
        bytes: &[u8],
        read_back: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        self.write(start, bytes)?;
        if !self.run.checks.round_trip {
            return Ok(());
        }
        let planned = &self.run.plan.exports[self.export].tensors[self.tensor];
        let staged = self.run.staging[self.export].weight(planned.file())?;
        if !files::holds(staged, planned.offset + start, bytes, read_back)? {
            self.run.collector.mismatch(self.export, self.tensor);
        }
        Ok(())
    }

    /// Writes rows of a matrix into a tensor of the source's layout, as [`Sink::write_and_check`] does. Elements of an
    /// interleaved matrix are too small to be read back.
    pub(super) fn write_rows(
        &self,
        rows: &MatrixRows,
        element: u64,
        bytes: &[u8],
        read_back: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        rows.scatter(element, bytes, |start, bytes| match rows.view.is_interleaved() {
            true => self.write(start, bytes),
            false => self.write_and_check(start, bytes, read_back),
        })
    }
}
