//! The folder in which an output is built. It is beside the output's place, on the same disk, and is removed if the
//! run fails. The finished part of an interrupted run stays there for the next run. The lock of the output must be
//! held as long as the folder exists.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::finding::Failure;
use crate::fs::exclusive::{self, Folder};
use crate::fs::handles::Handle;
use crate::ids::{FileId, IdVec};
use crate::plan::{Content, ExportPlan, OutputFile};
use crate::publish::files;
use crate::publish::files::{StagedFile, cannot_write};
use crate::publish::hidden;

/// Bytes that are copied at once.
const STRETCH: u64 = 16 << 20;

/// Asks whether to go on with what takes long: an error if not.
pub(crate) type GoOn<'a> = &'a dyn Fn() -> Result<(), Failure>;

/// An output being built.
#[derive(Debug)]
pub struct Staging {
    /// The folder that is written to.
    pub folder: PathBuf,
    /// The path at which it will be published.
    pub target: PathBuf,
    /// The weight files, as the plan numbers them; none for one that is not made here.
    weights: IdVec<FileId, Option<StagedFile>>,
    /// The folder, held open: all that is made in it is made from here.
    root: Arc<Folder>,
    end: End,
}

/// The fate of a staging folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes.
    Remove,
    /// It stays for a later run.
    Keep,
    /// It is in its place.
    Published,
}

/// Removes what an interrupted run has left. The lock of the output must be held.
pub(crate) fn clear(target: &Path) {
    // If something cannot be removed now, the next run clears it.
    let _ = exclusive::remove_folder(&hidden::staging(target));
    let _ = exclusive::remove_folder(&hidden::interrupted(target));
    let _ = exclusive::remove_file(&hidden::journal(target));
}

/// The beginning of a weight file of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileStart {
    /// Empty, at its full size.
    New,
    /// As an interrupted run has left it in the staging folder.
    Kept,
    /// It is this file, unchanged.
    Linked(PathBuf),
    /// It is not made here.
    Elsewhere,
}

impl FileStart {
    /// Whether what it lacks is written into it.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        matches!(self, Self::New | Self::Kept)
    }
}

impl Staging {
    /// Creates a folder with every weight file at its full size and with its header.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn create(
        folder: PathBuf,
        content: Content<'_>,
        (export, starts): (&ExportPlan, &[FileStart]),
        go_on: GoOn<'_>,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| cannot_write("make", &folder, &error);
        let root = Arc::new(Folder::open_or_create(&folder).map_err(failed)?);
        let mut staging = Self {
            folder: folder.clone(),
            target: export.path.clone(),
            weights: IdVec::new(),
            root,
            end: End::Remove,
        };
        staging.remove_all_but(|name| {
            let mut planned = export.files.iter().zip(starts);
            planned.any(|(file, start)| name == Path::new(&file.name) && *start == FileStart::Kept)
        })?;
        for ((index, planned), start) in export.files.numbered().zip(starts) {
            let (name, path) = (Path::new(&planned.name), staging.folder.join(&planned.name));
            let failed = |error: io::Error| cannot_write("open", &path, &error);
            let file = match start {
                FileStart::New => {
                    let file = staging.root.create_file(name).map_err(failed)?;
                    file.set_len(planned.bytes).map_err(failed)?;
                    file
                }
                FileStart::Kept => staging.root.open_file(name, true).map_err(failed)?,
                FileStart::Linked(from) => {
                    staging.link(from, name, go_on)?;
                    let file = staging.root.open_file(name, false).map_err(failed)?;
                    let staged = staging.held(file, planned, false)?;
                    staging.weights.push(Some(staged));
                    continue;
                }
                FileStart::Elsewhere => {
                    staging.weights.push(None);
                    continue;
                }
            };
            export
                .write_header(content, index, &file)
                .map_err(|error| cannot_write("write", &path, &error))?;
            let staged = staging.held(file, planned, true)?;
            staging.weights.push(Some(staged));
        }
        Ok(staging)
    }

    /// The weight files that are made here.
    pub fn weights(&self) -> impl Iterator<Item = &StagedFile> {
        self.weights.iter().flatten()
    }

    /// A weight file.
    ///
    /// # Errors
    /// If it is not made here, which is a bug.
    pub fn weight(&self, file: FileId) -> Result<&StagedFile, Failure> {
        let missing = || cannot_write("open", &self.folder, &io::ErrorKind::NotFound.into());
        self.weights[file].as_ref().ok_or_else(missing)
    }

    /// An open weight file. If it has to be opened again, that is from the folder that is held open.
    fn held(&self, file: File, planned: &OutputFile, is_written: bool) -> Result<StagedFile, Failure> {
        let (root, name) = (Arc::clone(&self.root), PathBuf::from(&planned.name));
        let path = self.folder.join(&name);
        let file = Handle::new(file, move || root.open_file(&name, is_written))
            .map_err(|error| cannot_write("open", &path, &error))?;
        Ok(StagedFile { file, path })
    }

    /// Of an interrupted run only the files that are kept stay.
    fn remove_all_but(&self, is_kept: impl Fn(&Path) -> bool) -> Result<(), Failure> {
        let removed = self.root.tree().and_then(|mut tree| {
            tree.retain(|entry| !(entry.is_file() && is_kept(&entry.name)));
            self.root.remove_listed(&tree)
        });
        removed.map_err(|error| cannot_write("clear", &self.folder, &error))
    }

    /// Gives an unchanged file a second name in the folder. Copies it if the file system has no links.
    ///
    /// # Errors
    /// If neither is possible.
    pub fn link(&self, from: &Path, name: &Path, go_on: GoOn<'_>) -> Result<(), Failure> {
        match self.root.link_file(from, name) {
            Ok(true) => Ok(()),
            Ok(false) => self.copy(files::open_to_read(from)?, name, go_on),
            Err(error) => Err(cannot_write("make", &self.folder.join(name), &error)),
        }
    }

    /// Writes all that can be read into the folder, a stretch at a time, and asks before each whether to go on. The umask
    /// decides about permissions, as for every file that is written.
    ///
    /// # Errors
    /// If it cannot be read or written, or is not to go on.
    pub fn copy(&self, mut from: impl Read, name: &Path, go_on: GoOn<'_>) -> Result<(), Failure> {
        let failed = |error: io::Error| cannot_write("copy to", &self.folder.join(name), &error);
        let mut to = self.root.create_file(name).map_err(failed)?;
        loop {
            go_on()?;
            // Between two files the system copies by itself, if it can by sharing what is on the disk.
            if io::copy(&mut from.by_ref().take(STRETCH), &mut to).map_err(failed)? == 0 {
                return Ok(());
            }
        }
    }

    /// Writes a file into the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(
        &self,
        name: &Path,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let written = self.root.create_file(name).and_then(|mut file| write(&mut file));
        written.map_err(|error| cannot_write("write", &self.folder.join(name), &error))
    }

    /// Makes everything in the folder survive a power cut.
    ///
    /// # Errors
    /// If the disk reports an error.
    pub fn sync(&self) -> Result<(), Failure> {
        self.root.sync_all().map_err(|error| cannot_write("flush", &self.folder, &error))
    }

    /// Leaves the folder and its journal for a later run.
    pub fn keep(&mut self) {
        self.end = End::Keep;
    }

    /// Whether the folder that was built is at a path.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.root.is_at(path)
    }

    /// Says that the folder has been moved to its place.
    pub(crate) fn published(&mut self) {
        self.end = End::Published;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.end != End::Remove {
            return;
        }
        // The folder that was built, and not what may be at its path by now.
        if let Ok(tree) = self.root.tree()
            && self.root.remove(&self.folder, &tree).is_ok()
            && self.folder == hidden::staging(&self.target)
        {
            clear(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use std::fs;

    use super::*;
    use crate::exit::Exit;
    use crate::finding::Finding;

    fn staging(root: &Path) -> Staging {
        let folder = root.join("staging");
        Staging {
            root: Arc::new(Folder::open_or_create(&folder).unwrap()),
            folder,
            target: root.join("out"),
            weights: IdVec::new(),
            end: End::Keep,
        }
    }

    #[test]
    fn a_copy_asks_before_each_stretch_whether_to_go_on() {
        let root = tempfile::tempdir().unwrap();
        let staging = staging(root.path());
        let from = root.path().join("from");
        fs::write(&from, "text").unwrap();
        staging.copy(File::open(&from).unwrap(), Path::new("small"), &|| Ok(())).unwrap();
        assert_eq!(fs::read(staging.folder.join("small")).unwrap(), b"text");
        // Sparse, and more than any disk could take.
        File::create(&from).unwrap().set_len(1 << 42).unwrap();
        let asked = Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            let failure = || Failure::new(Exit::Interrupted, Finding::error("test", "enough"));
            if asked.get() <= 2 { Ok(()) } else { Err(failure()) }
        };
        let failure = staging.copy(File::open(&from).unwrap(), Path::new("large"), &go_on).unwrap_err();
        assert_eq!(failure.exit, Exit::Interrupted);
        assert_eq!(fs::metadata(staging.folder.join("large")).unwrap().len(), 2 * STRETCH);
    }
}
