//! Parts that share no folder: files are uploaded when they are complete, and their records with them. A join, on whichever
//! machine, reads the records alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use super::unit::{Made, damaged};
use crate::digest::checksum;
use crate::finding::Failure;
use crate::fs::exclusive;
use crate::fs::regular;
use crate::gates::{self, Written};
use crate::ids::{ExportId, IdVec};
use crate::plan::{Checks, Plan};
use crate::publish::files::cannot_write;
use crate::publish::hidden;
use crate::publish::store::{Going, Group, Local};
use crate::report::FileRecord;
use crate::run::event::{Event, Listener};
use crate::run::incremental::previous::{self, Stores};
use crate::run::incremental::record::{self, UploadedFile};
use crate::run::outcome::Options;
use crate::run::sums;
use crate::run::targets::Target;

/// What is sent to the stores of a plan's outputs.
pub(in crate::run) struct Uploads<'a> {
    pub(in crate::run) plan: &'a Plan,
    targets: &'a [Target],
    pub(in crate::run) options: &'a Options,
    pub(in crate::run) listener: &'a dyn Listener,
    /// Where files are while they are made.
    pub(super) folders: IdVec<ExportId, PathBuf>,
    sent: AtomicU64,
    total: AtomicU64,
}

/// The upload of the unit that was made last. It goes on while the next one is made.
#[derive(Default)]
pub(super) struct Last<'s>(Option<ScopedJoinHandle<'s, Result<(), Failure>>>);

impl<'a> Uploads<'a> {
    /// For outputs at some places. Files are made in folders of this name beside them.
    pub(in crate::run) fn new(
        plan: &'a Plan,
        targets: &'a [Target],
        options: &'a Options,
        listener: &'a dyn Listener,
        folder: &str,
    ) -> Self {
        let folders = plan.exports.map(|export| hidden::parts(&export.path).join(folder));
        let (sent, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { plan, targets, options, listener, folders, sent, total }
    }

    /// Removes what a run has left in its folders that was killed. The locks of the outputs must be held.
    pub(in crate::run) fn sweep(&self) {
        for (export, folder) in self.plan.exports.iter().zip(&self.folders) {
            // What cannot be removed is in nobody's way.
            let _ = exclusive::remove_folder(folder);
            exclusive::remove_if_empty(&hidden::parts(&export.path));
        }
    }

    /// Removes the folders, if nothing of other processes is in them.
    pub(super) fn leave(&self) {
        for (export, folder) in self.plan.exports.iter().zip(&self.folders) {
            exclusive::remove_if_empty(folder);
            exclusive::remove_if_empty(&hidden::parts(&export.path));
        }
    }

    /// What processes of the plan have uploaded, to the place of each target.
    ///
    /// # Errors
    /// If a store cannot be reached.
    pub(in crate::run) fn groups(&self) -> Result<Vec<Vec<Group>>, Failure> {
        self.targets.iter().map(|target| target.store.groups()).collect()
    }

    /// The same as finished tensors of each export.
    pub(in crate::run) fn stores(&self, groups: &[Vec<Group>]) -> IdVec<ExportId, Stores> {
        let mut stores: IdVec<ExportId, Stores> = self.plan.exports.map(|_| Stores::default());
        for (target, groups) in self.targets.iter().zip(groups) {
            let texts = groups.iter().map(|group| group.told.as_str());
            let found = previous::of_uploads(self.plan, &self.plan.exports[target.export], texts);
            stores[target.export].stores.extend(found);
        }
        stores
    }

    /// Says how many bytes are to be sent.
    pub(in crate::run) fn begin(&self, total: u64) {
        self.sent.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Does what sends bytes.
    pub(in crate::run) fn going<T>(&self, send: impl FnOnce(&Going<'_>) -> T) -> T {
        let sent = |bytes: u64| {
            let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
            let total = self.total.load(Ordering::Relaxed).max(sent);
            self.listener.on_event(&Event::Upload { sent, total });
        };
        send(&Going { cancel: &self.options.cancel, sent: &sent })
    }

    /// Uploads the files of a unit and removes them here.
    fn send(&self, made: &Made<'_>) -> Result<(), Failure> {
        for target in self.targets {
            self.send_to(target, made)?;
        }
        Ok(())
    }

    fn send_to(&self, target: &Target, made: &Made<'_>) -> Result<(), Failure> {
        let (plan, id, cancel) = (self.plan, target.export, &self.options.cancel);
        let (export, files, folder) = (&plan.exports[id], made.files(id), &made.staging[id].folder);
        if files.is_empty() {
            return Ok(());
        }
        let planned = files.iter().map(|&file| &export.files[file]).collect();
        if let Some(damage) = gates::damage(plan, export, &Written { folder, files: planned }) {
            return Err(damaged(damage));
        }
        let mut header = made.header(plan, id, Checks::of(plan.recipe()));
        let mut locals = Vec::with_capacity(files.len());
        for &file in &files {
            let (name, digest) = (&export.files[file].name, &made.measured.output_files[id][file]);
            let crc = digest.crc64.ok_or_else(|| damaged(format!("not all of {name} was written")))?;
            let sha256 = if export.sums { Some(sha256_of(&folder.join(name), cancel)?) } else { None };
            header.files[file.index()].uploaded = Some(UploadedFile { sha256 });
            let bytes = export.files[file].bytes;
            let crc64nvme = checksum::text(crc);
            locals
                .push(Local::new(folder, FileRecord { name: name.clone(), bytes, crc64nvme, blake3: None }));
        }
        let told = record::text(&header, &made.finished[id]);
        let told = told.map_err(|error| cannot_write("record", folder, &error))?;
        // It may have been given back by another part of the plan, which had failed before anything was uploaded.
        target.store.claim()?;
        self.going(|going| target.store.uploaded(&locals, &told, going)).map(drop)
    }
}

impl<'s> Last<'s> {
    /// Uploads a unit in a thread of its own, once the one before it is uploaded.
    pub(super) fn follow<'e>(
        &mut self,
        scope: &'s Scope<'s, 'e>,
        uploads: &'e Uploads<'e>,
        made: Made<'e>,
    ) -> Result<(), Failure> {
        self.wait()?;
        self.0 = Some(scope.spawn(move || uploads.send(&made)));
        Ok(())
    }

    /// Waits until it is uploaded.
    pub(super) fn wait(&mut self) -> Result<(), Failure> {
        let Some(last) = self.0.take() else { return Ok(()) };
        last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn sha256_of(path: &Path, cancel: &crate::cancel::Cancel) -> Result<String, Failure> {
    let hash = regular::open(path).and_then(|file| sums::hash_of(file, cancel));
    cancel.check()?;
    hash.map_err(|error| cannot_write("hash", path, &error))
}
