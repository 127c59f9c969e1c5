//! The share of a part: units of files that are there already, and those that are left.

use crate::finding::Failure;
use crate::ids::{ExportId, FileId, IdVec, TaskId};
use crate::plan::Plan;
use crate::plan::fingerprint::Prints;
use crate::plan::parts::Unit;
use crate::publish::staging::FileStart;
use crate::run::event::Event;
use crate::run::incremental::previous::Stores;
use crate::run::incremental::reuse::{Reuse, Search};
use crate::run::outcome::Work;
use crate::run::parts::PartOutcome;
use crate::run::stream;

/// What a part has to do, and what it takes over.
pub(super) struct Share<'a> {
    plan: &'a Plan,
    there: Vec<&'a Unit>,
    /// Those that are to be made.
    pub left: Vec<&'a Unit>,
    reuse: Reuse<'a>,
    /// The start of each file, whichever unit it is of.
    starts: IdVec<ExportId, IdVec<FileId, FileStart>>,
}

impl<'a> Share<'a> {
    /// Looks which of some units are there.
    ///
    /// # Errors
    /// If the model cannot be read, or the run is cancelled.
    pub(super) fn find(
        search: &Search<'a>,
        prints: Prints,
        stores: &'a IdVec<ExportId, Stores>,
        units: &[&'a Unit],
    ) -> Result<Self, Failure> {
        let mut reuse = Reuse::find(search, prints, stores)?;
        let starts = std::mem::replace(&mut reuse.starts, IdVec::new());
        let is_there = |unit: &&&Unit| {
            let is_there = |start: &FileStart| matches!(start, FileStart::Linked(_) | FileStart::Elsewhere);
            unit.tensors.iter().all(|&tensor| reuse.tensors.is_taken(tensor))
                && unit.files.iter().all(|&(export, file)| is_there(&starts[export][file]))
        };
        let (there, left): (Vec<&Unit>, Vec<&Unit>) = units.iter().partition(is_there);
        left.iter().for_each(|unit| reuse.leave_uploaded(&unit.tensors));
        Ok(Self { plan: search.plan, there, left, reuse, starts })
    }

    /// The tasks of a unit that are still to be done.
    pub(super) fn tasks(&self, unit: &Unit) -> Vec<TaskId> {
        let left = unit.tensors.iter().filter(|tensor| !self.reuse.tensors.is_taken(**tensor));
        left.flat_map(|&tensor| self.plan.tasks_of(tensor)).collect()
    }

    /// What is taken over when a unit is made: files of others are not made with it.
    pub(super) fn begin(&mut self, unit: &Unit) -> &Reuse<'a> {
        let starts = self.plan.exports.numbered().map(|(export, planned)| {
            let start = |file| match unit.files.contains(&(export, file)) {
                true => self.starts[export][file].clone(),
                false => FileStart::Elsewhere,
            };
            planned.files.ids().map(start).collect()
        });
        self.reuse.starts = starts.collect();
        &self.reuse
    }

    /// That work begins, and how much there is.
    pub(super) fn started(&self) -> Event {
        let tasks: Vec<TaskId> = self.left.iter().flat_map(|unit| self.tasks(unit)).collect();
        let tensors = self.left.iter().flat_map(|unit| &unit.tensors);
        Event::Started {
            bytes: stream::total_bytes(self.plan, &tasks),
            tensors: tensors.filter(|tensor| !self.reuse.tensors.is_taken(**tensor)).count(),
            taken_over: self.reuse.tensors.count(),
        }
    }

    /// What was done, once everything is made.
    pub(super) fn outcome(&self) -> PartOutcome {
        let (taken_over, redone) = self.reuse.counts(self.plan);
        let there = PartOutcome::of(self.plan, &self.there, false);
        let made = PartOutcome::of(self.plan, &self.left, true);
        let mut files = [there.files, made.files].concat();
        files.sort();
        PartOutcome { files, bytes: there.bytes + made.bytes, work: Work { taken_over, redone } }
    }
}
