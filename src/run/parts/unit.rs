//! The files of a unit while they are made: in a folder of their own, from the weights to what is known of them.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::processes::own_name;
use crate::ids::{ExportId, FileId, IdVec, TaskId, TensorId};
use crate::plan::parts::Unit;
use crate::plan::{Checks, Plan};
use crate::publish::files::create_dir_all;
use crate::publish::{Staging, flush};
use crate::quant::Isa;
use crate::report::measured::Measured;
use crate::run::context::Context;
use crate::run::event::Listener;
use crate::run::finish::header;
use crate::run::incremental::record::{Finished, Header};
use crate::run::incremental::reuse::Reuse;
use crate::run::incremental::take_over;
use crate::run::outcome::Options;
use crate::run::stream;
use crate::run::stream::collector::Collector;
use crate::run::stream::weights::{Headers, Weights};
use crate::run::workers::Workers;

/// What is the same for all units of a part.
pub(super) struct Job<'a> {
    pub plan: &'a Plan,
    pub options: &'a Options,
    pub listener: &'a dyn Listener,
    pub checks: Checks,
    pub source: &'a Weights<'a>,
    pub headers: &'a Headers,
    pub workers: &'a Workers,
    /// The folder of the parts' files of each export.
    pub folders: &'a IdVec<ExportId, PathBuf>,
    /// Whether files are to survive a power cut.
    pub is_flushed: bool,
}

/// The files of a unit, complete.
pub(super) struct Made<'u> {
    pub unit: &'u Unit,
    /// The folder that they are in, of each export.
    pub staging: IdVec<ExportId, Staging>,
    /// The record of each tensor in them, of each export.
    pub finished: IdVec<ExportId, Vec<Finished>>,
    pub measured: Measured,
}

impl Job<'_> {
    /// Makes the files of a unit by these tasks.
    ///
    /// # Errors
    /// If weights are wrong, something cannot be read or written, or what was written is not what is read back.
    pub(super) fn make<'u>(
        &self,
        unit: &'u Unit,
        tasks: Vec<TaskId>,
        reuse: &Reuse<'_>,
    ) -> Result<Made<'u>, Failure> {
        let (plan, cancel) = (self.plan, &self.options.cancel);
        let collector = Collector::new(plan);
        collector.output_headers();
        take_over::remember(plan, reuse, self.checks, &collector);
        let is_wanted = |tensor: TensorId| unit.tensors.binary_search(&tensor).is_ok();
        self.source.sum_up_the_rest((&tasks, &is_wanted), self.headers, &collector, cancel)?;
        let own = own_name();
        let mut staging = IdVec::new();
        for ((export, starts), folder) in plan.exports.iter().zip(&reuse.starts).zip(self.folders) {
            create_dir_all(folder)?;
            let go_on = || cancel.check();
            staging.push(Staging::create(folder.join(&own), plan.content(), (export, starts), &go_on)?);
        }
        let run = Context {
            plan,
            source: self.source,
            staging: &staging,
            journals: &IdVec::new(),
            prints: &reuse.prints,
            checks: self.checks,
            isa: self.options.isa.unwrap_or_else(Isa::detect),
            collector: &collector,
            listener: self.listener,
            workers: self.workers,
        };
        let work = || {
            take_over::take_over(&run, reuse)?;
            stream::stream(&run, tasks)
        };
        if self.is_flushed { flush::while_flushing(&staging, work) } else { work() }?;
        self.source.check_unchanged()?;
        let mut finished = IdVec::new();
        for export in plan.exports.ids() {
            let of = |&tensor: &TensorId| {
                Finished::of(plan, &reuse.prints, export, tensor, &collector)
                    .ok_or_else(|| not_finished(plan, tensor))
            };
            finished.push(unit.tensors.iter().map(of).collect::<Result<Vec<Finished>, Failure>>()?);
        }
        let measured = collector.finish(&self.headers.checksums);
        if self.is_flushed {
            staging.iter().try_for_each(Staging::sync)?;
        }
        Ok(Made { unit, staging, finished, measured })
    }
}

impl Made<'_> {
    /// The files of an export.
    pub(super) fn files(&self, export: ExportId) -> Vec<FileId> {
        self.unit.files.iter().filter(|(of, _)| *of == export).map(|&(_, file)| file).collect()
    }

    /// The beginning of the record of an export: what is known of the source, and the hashes of the files.
    pub(super) fn header(&self, plan: &Plan, export: ExportId, checks: Checks) -> Header {
        let mut header = header(plan, &plan.exports[export], checks);
        for (source, digest) in header.sources.iter_mut().zip(&self.measured.source_files) {
            source.blake3.clone_from(&digest.blake3);
        }
        for file in self.files(export) {
            header.files[file.index()].blake3.clone_from(&self.measured.output_files[export][file].blake3);
        }
        header
    }
}

/// Why there is no record of a tensor that was written.
fn not_finished(plan: &Plan, tensor: TensorId) -> Failure {
    let name = &plan.model.tensors[tensor].name;
    damaged(format!("what was written of `{name}` is not what is read back, or cannot be measured"))
}

/// That files are not on the disk as they were written.
pub(super) fn damaged(message: String) -> Failure {
    let finding = Finding::error("parts::not-recorded", message).help(
        "The disk or the memory of this machine may be faulty. Nothing was recorded; run the part again.",
    );
    Failure::new(Exit::OutputDamaged, finding)
}
