//! The folder in which an output is built: beside its place, on the same disk, locked, and gone if the run fails.

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
    lock: Option<File>,
    keep: bool,
}

/// The staging folder of an output directory: a hidden sibling.
#[must_use]
pub fn staging_path(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "output".into(), |name| name.to_string_lossy().into_owned());
    target.with_file_name(format!(".{name}.monoquant-staging"))
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.with_extension("monoquant-lock")
}

impl Staging {
    /// Makes the folder with every weight file at its full size and with its header, and locks it.
    ///
    /// # Errors
    /// Where another run holds the lock, or the folder cannot be written.
    pub fn create(export: &ExportPlan) -> Result<Self, Failure> {
        let folder = staging_path(&export.path);
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files::create_dir_all(parent)?;
        }
        let lock = lock(&lock_path(&folder))?;
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| files::cannot_write("remove", &folder, &error))?;
        }
        files::create_dir_all(&folder)?;
        let mut staging =
            Self { folder, target: export.path.clone(), weights: Vec::new(), lock: Some(lock), keep: false };
        for planned in &export.files {
            let path = staging.folder.join(&planned.name);
            let file = files::create(&path, planned.bytes)?;
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

    /// Says that the folder has been moved to its place.
    pub(super) fn published(&mut self) {
        self.keep = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done where even this fails; the next run clears the folder.
            let _ = fs::remove_dir_all(&self.folder);
        }
        if let Some(lock) = self.lock.take() {
            // Removed while it is still held, so that nobody locks a file that is about to go.
            let _ = fs::remove_file(lock_path(&self.folder));
            drop(lock);
        }
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
