//! The root folder of a model, and the places where its files may lie: in it, in the blobs of the Hub cache that it
//! is a snapshot of, or in the folders that the command line names.

use std::fs::{File, Metadata};
use std::io::Result;
use std::path::{Path, PathBuf};

use crate::fs::regular::{self, Within};

/// A folder whose files are read only if they lie in an allowed place.
#[derive(Debug, Clone)]
pub(super) struct Root {
    path: PathBuf,
    within: Within,
}

impl Root {
    /// The folder at `path`, which may be a link itself, with `follow` as the folders that links may lead to.
    pub(super) fn of(path: &Path, follow: &[PathBuf]) -> Self {
        let within = Within::of(std::iter::once(path.to_owned()).chain(follow.iter().cloned()));
        let blobs = path.canonicalize().ok().and_then(|real| blobs(&real));
        Self { path: path.to_owned(), within: blobs.into_iter().fold(within, Within::and) }
    }

    /// The folder that one file was named in: that file may be a link to anywhere.
    pub(super) fn of_file(file: &Path, follow: &[PathBuf]) -> Self {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let root = Self::of(parent.unwrap_or(Path::new(".")), follow);
        let within = file.canonicalize().into_iter().fold(root.within, Within::and);
        Self { within, ..root }
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of its files.
    pub(super) fn join(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Whether a path without links may be read.
    pub(super) fn holds(&self, real: &Path) -> bool {
        self.within.holds(real)
    }

    /// Opens one of its files, which must be a regular file.
    pub(super) fn open(&self, file: &str) -> Result<(File, Metadata)> {
        self.within.open(&self.join(file))
    }

    /// Reads one of its files, of at most `limit` bytes.
    pub(super) fn read(&self, file: &str, limit: u64) -> Result<Vec<u8>> {
        let (file, metadata) = self.open(file)?;
        regular::read_open(file, &metadata, limit)
    }
}

/// The blobs of the Hub cache that a folder is (in) a snapshot of: `models--ORG--NAME/snapshots/REVISION`.
fn blobs(real: &Path) -> Option<PathBuf> {
    real.ancestors().find_map(|revision| {
        let snapshots = revision.parent().filter(|parent| parent.ends_with("snapshots"))?;
        let entry = snapshots.parent()?;
        let is_entry = entry.file_name()?.to_str()?.starts_with("models--");
        is_entry.then(|| entry.join("blobs"))
    })
}
