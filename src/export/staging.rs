//! The folder in which an output is built: beside its place, on the same disk, locked, and gone if the run fails. What an interrupted
//! run has finished stays there, for the next one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::files;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::plan::ExportPlan;

/// A weight file of the output, open for positioned writes and reads.
#[derive(Debug)]
pub struct StagedFile {
    /// The open file.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
}

/// An output being built.
#[derive(Debug)]
pub struct Staging {
    /// The folder that is written to.
    pub folder: PathBuf,
    /// Where it will be published.
    pub target: PathBuf,
    /// The weight files, as the plan numbers them.
    pub weights: Vec<StagedFile>,
    /// Held until the folder is gone or in its place.
    _lock: Lock,
    end: End,
}

/// What becomes of a staging folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes.
    Remove,
    /// It stays for a later run.
    Keep,
    /// It is in its place.
    Published,
}

/// The staging folder of an output directory: a hidden sibling.
#[must_use]
pub fn staging_path(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "output".into(), |name| name.to_string_lossy().into_owned());
    target.with_file_name(format!(".{name}.monoquant-staging"))
}

fn beside(target: &Path, what: &str) -> PathBuf {
    staging_path(target).with_extension(what)
}

/// The record of what a run has finished so far, beside its staging folder.
#[must_use]
pub fn journal_path(target: &Path) -> PathBuf {
    beside(target, "monoquant-journal")
}

/// The record of what a published output holds, beside it.
#[must_use]
pub fn record_path(target: &Path) -> PathBuf {
    beside(target, "monoquant-record")
}

/// Where the staging folder of an interrupted run is put that is laid out otherwise.
#[must_use]
pub fn interrupted_path(target: &Path) -> PathBuf {
    beside(target, "monoquant-interrupted")
}

/// Removes what an interrupted run has left. The lock of the output must be held.
pub fn clear(target: &Path) {
    // What cannot be removed now is cleared by the next run.
    let _ = fs::remove_dir_all(staging_path(target));
    let _ = fs::remove_dir_all(interrupted_path(target));
    let _ = fs::remove_file(journal_path(target));
}

/// How a weight file of an output begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileStart {
    /// Empty, at its full size.
    New,
    /// As an interrupted run has left it in the staging folder.
    Kept,
    /// It is this file, unchanged.
    Linked(PathBuf),
}

impl Staging {
    /// Makes the folder with every weight file at its full size and with its header.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn create(export: &ExportPlan, lock: Lock, starts: &[FileStart]) -> Result<Self, Failure> {
        let folder = staging_path(&export.path);
        let kept = |name: &str| {
            export
                .files
                .iter()
                .zip(starts)
                .any(|(file, start)| file.name == name && *start == FileStart::Kept)
        };
        // Of an interrupted run only the files that are kept stay.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let failed = |error: std::io::Error| files::cannot_write("remove", &path, &error);
            if path.is_dir() {
                fs::remove_dir_all(&path).map_err(failed)?;
            } else if !kept(&entry.file_name().to_string_lossy()) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        files::create_dir_all(&folder)?;
        let mut staging =
            Self { folder, target: export.path.clone(), weights: Vec::new(), _lock: lock, end: End::Remove };
        for (planned, start) in export.files.iter().zip(starts) {
            let path = staging.folder.join(&planned.name);
            let file = match start {
                FileStart::New => files::create(&path, planned.bytes)?,
                FileStart::Kept => files::open(&path)?,
                FileStart::Linked(from) => {
                    files::link(from, &path)?;
                    staging.weights.push(StagedFile { file: files::open_to_read(&path)?, path });
                    continue;
                }
            };
            files::write_at(&file, &path, 0, &planned.header)?;
            staging.weights.push(StagedFile { file, path });
        }
        Ok(staging)
    }

    /// Makes everything in the folder survive a power cut.
    ///
    /// # Errors
    /// Where the disk reports an error.
    pub fn sync(&self) -> Result<(), Failure> {
        files::sync_all(&self.folder)
    }

    /// Leaves the folder and its journal for a later run.
    pub fn keep(&mut self) {
        self.end = End::Keep;
    }

    /// Says that the folder has been moved to its place.
    pub(super) fn published(&mut self) {
        self.end = End::Published;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.end == End::Remove {
            clear(&self.target);
        }
    }
}

/// The lock of an output, held by the one run that works on it.
#[derive(Debug)]
pub struct Lock {
    file: Option<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Where another run holds it, or the folder cannot be written.
    pub fn take(target: &Path) -> Result<Self, Failure> {
        let path = beside(target, "monoquant-lock");
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files::create_dir_all(parent)?;
        }
        Ok(Self { file: Some(lock(&path)?), path })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still held, so that nobody locks a file that is about to go.
        let _ = fs::remove_file(&self.path);
        drop(self.file.take());
    }
}

/// Takes the lock of an output. The file goes with the run that holds it, so after locking it must still be the one at `path`.
fn lock(path: &Path) -> Result<File, Failure> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| files::cannot_write("make", path, &error))?;
    match file.try_lock() {
        Ok(()) if is_at(&file, path) => Ok(file),
        Ok(()) => lock(path),
        Err(fs::TryLockError::WouldBlock) => Err(Failure::new(
            Exit::CannotWrite,
            Finding::error("export::locked", "another run is writing this output")
                .help(format!("It holds {}. Wait for it, or choose another `path`.", path.display())),
        )),
        Err(fs::TryLockError::Error(error)) => Err(files::cannot_write("lock", path, &error)),
    }
}

/// Whether an open file is the one that a path names.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::metadata(path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}
