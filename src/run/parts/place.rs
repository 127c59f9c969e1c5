//! The folder that parts share: files are moved there when they are complete, and their record follows.

use std::path::{Path, PathBuf};

use super::unit::{Job, Made};
use crate::finding::Failure;
use crate::fs::rename;
use crate::ids::ExportId;
use crate::publish::files::{cannot_write, create_dir_all, sync_file, sync_way};
use crate::run::finish::identities;
use crate::run::incremental::previous::PART_RECORD;
use crate::run::incremental::record::{self, Tensors};

/// Moves the files of a unit to their places, and then the records of them. Nothing here takes long.
///
/// # Errors
/// If something cannot be moved or written, or the run is cancelled.
pub(super) fn place(job: &Job<'_>, mut made: Made<'_>) -> Result<(), Failure> {
    job.options.cancel.whole(|| {
        for (export, folder) in job.plan.exports.ids().zip(job.folders) {
            of_export(job, &mut made, (export, folder))?;
        }
        Ok(())
    })
}

fn of_export(job: &Job<'_>, made: &mut Made<'_>, (export, folder): (ExportId, &Path)) -> Result<(), Failure> {
    let (planned, files) = (&job.plan.exports[export], made.files(export));
    let Some(first) = files.first() else { return Ok(()) };
    let staging = &made.staging[export].folder;
    let paths: Vec<PathBuf> = files.iter().map(|&file| folder.join(&planned.files[file].name)).collect();
    for (&file, path) in files.iter().zip(&paths) {
        create_dir_all(path.parent().unwrap_or(folder))?;
        let from = staging.join(&planned.files[file].name);
        rename::over(&from, path).map_err(|error| cannot_write("move", &from, &error))?;
        sync_way(path)?;
    }
    let mut header = made.header(job.plan, export, job.checks);
    for (&file, identity) in files.iter().zip(identities(&paths)) {
        header.files[file.index()].identity = identity;
    }
    let (path, new) = (folder.join(format!("{first}.{PART_RECORD}")), staging.with_extension("new"));
    let mut each = std::mem::take(&mut made.finished[export]).into_iter();
    let tensors = Tensors::Each(each.len(), &mut each);
    let file = record::write(&path, &new, &header, tensors)?;
    sync_file(&path, &file)?;
    sync_way(&path)
}
