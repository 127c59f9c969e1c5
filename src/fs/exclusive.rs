//! Files and folders that this program creates: never through a link, and never in place of an existing file.
//!
//! A [`Folder`] is held open, and everything in it is reached from its handle one name at a time. So a folder or link
//! that another process puts at its path meanwhile has no effect.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::regular;

#[cfg_attr(unix, path = "exclusive/unix.rs")]
#[cfg_attr(not(unix), path = "exclusive/other.rs")]
mod system;

/// The kind of object that a name refers to. Links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    Nothing,
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, wherever it leads.
    Link,
    /// A pipe, socket or device.
    Special,
}

impl Kind {
    /// The kind in words, with an article.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Link => "a symbolic link",
            Self::Special => "a pipe, socket or device",
        }
    }

    fn of(kind: fs::FileType) -> Self {
        if kind.is_symlink() {
            Self::Link
        } else if kind.is_dir() {
            Self::Folder
        } else if kind.is_file() {
            Self::File
        } else {
            Self::Special
        }
    }
}

/// The kind of object at a path.
///
/// # Errors
/// If the system does not say.
pub(crate) fn kind(path: &Path) -> io::Result<Kind> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Kind::of(metadata.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Nothing),
        Err(error) => Err(error),
    }
}

/// Whether something is at a path, be it a link to nothing.
#[must_use]
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Creates a folder and those above it.
///
/// # Errors
/// If it cannot be created.
pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Removes a file, or a link itself.
///
/// # Errors
/// If it is not there, or cannot be removed.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Creates a new file, open for reading and writing. The umask decides the permissions.
///
/// # Errors
/// If something is there, or the file cannot be created.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Creates a new file or replaces an existing one, in one step. It is written as `temporary` first, a name beside it
/// that only one process uses at a time. A file that an earlier process left there is removed. The file is returned
/// open.
///
/// # Errors
/// If it cannot be written. The file at `path` is then untouched.
pub(crate) fn replace(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    for path in [path, temporary] {
        match kind(path)? {
            Kind::Nothing | Kind::File => {}
            kind => return Err(io::Error::other(format!("{} is {}", path.display(), kind.words()))),
        }
    }
    if kind(temporary)? == Kind::File {
        fs::remove_file(temporary)?;
    }
    let mut file = create_new(temporary)?;
    let placed = write(&mut file).and_then(|()| fs::rename(temporary, path));
    if placed.is_err() {
        let _ = fs::remove_file(temporary);
    }
    placed.map(|()| file)
}

/// Adds bytes to the end of a file, which is made if it is not there.
///
/// # Errors
/// If something else than a file is there, or it cannot be written.
#[cfg(feature = "cli")]
pub(crate) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match kind(path)? {
        Kind::Nothing | Kind::File => {
            io::Write::write_all(&mut File::options().append(true).create(true).open(path)?, bytes)
        }
        kind => Err(io::Error::other(format!("it is {}", kind.words()))),
    }
}

/// Whether an open file is the one that a path names, links not followed.
#[must_use]
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => {
            let (open, named) = (system::identity(&open), system::identity(&named));
            open.is_none() || open == named
        }
        _ => false,
    }
}

/// Opens an existing file for locking or reading, without waiting for other processes and without following a link.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    let file = system::open_existing(path).map_err(told)?;
    regular::check(file.metadata()?.file_type())?;
    Ok(file)
}

/// Why a file is not opened, in words that say what it is.
fn told(error: io::Error) -> io::Error {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
        if is(Errno::LOOP) {
            return io::Error::new(error.kind(), "it is a symbolic link, which is not followed");
        }
        if is(Errno::NXIO) {
            return io::Error::new(error.kind(), "it is a socket or a device, not a file");
        }
    }
    error
}

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder {
    handle: system::Handle,
}

/// A name in a folder or in one below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The way there.
    pub name: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The length and last change of a regular file. A change of its content changes them.
    pub state: State,
}

impl Entry {
    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.kind == Kind::Folder
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }
}

/// The length of a file, and the time of its last change in nanoseconds since 1970. Both are zero for anything that
/// is not a file: folders and links change with their content or target, which is checked itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct State {
    len: u64,
    modified: i128,
}

impl Folder {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// If it cannot be opened, or is a link or not a folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = system::open_folder(path).map_err(|error| match kind(path) {
            Ok(Kind::Nothing | Kind::Folder) | Err(_) => error,
            Ok(kind) => {
                let message = format!("{} is {}, not a folder", path.display(), kind.words());
                io::Error::new(error.kind(), message)
            }
        });
        Ok(Self { handle: opened? })
    }

    /// Opens a folder, and creates it first if necessary.
    ///
    /// # Errors
    /// If it cannot be created, or something else is there.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Self::open(path),
        }
    }

    /// Whether it is what a path names, links not followed. Systems that give folders no identity are believed.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let Ok(named) = fs::symlink_metadata(path) else { return false };
        named.is_dir() && (system::identity(&named).is_none_or(|named| self.identity() == Some(named)))
    }

    fn identity(&self) -> Option<(u64, u64)> {
        system::identity(&system::metadata(&self.handle).ok()?)
    }

    /// The owner of the folder. None if the system has no owners.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        system::owner(&system::metadata(&self.handle).ok()?)
    }

    /// Everything in it, at every depth, in order. Links are not followed.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn tree(&self) -> io::Result<Vec<Entry>> {
        let mut out = Vec::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(below) = waiting.pop() {
            for (name, kind, state) in system::list(&self.walk(&below, false)?)? {
                let name = below.join(name);
                if kind == Kind::Folder {
                    waiting.push(name.clone());
                }
                let state = if kind == Kind::File { state } else { State::default() };
                out.push(Entry { name, kind, state });
            }
        }
        out.sort();
        Ok(out)
    }

    /// The first folder in it, or it itself, from which nothing can be removed by this process.
    #[must_use]
    pub fn unremovable<'a>(&self, tree: &'a [Entry]) -> Option<&'a Path> {
        let folders = tree.iter().filter(|entry| entry.is_folder()).map(|entry| entry.name.as_path());
        std::iter::once(Path::new(""))
            .chain(folders)
            .find(|name| self.walk(name, false).is_ok_and(|handle| !system::may_change(&handle)))
    }

    /// Creates a new file, and the folders on its path. It is open for reading and writing.
    ///
    /// # Errors
    /// If something is there, or it cannot be created.
    pub fn create_file(&self, name: &Path) -> io::Result<File> {
        let (folder, last) = self.above(name, true)?;
        system::create_file(&folder, last)
    }

    /// Opens an existing file for reading, or also for writing. In the latter case it must have no other name.
    ///
    /// # Errors
    /// If it cannot be opened, or is not a regular file.
    pub fn open_file(&self, name: &Path, is_written: bool) -> io::Result<File> {
        let (folder, last) = self.above(name, false)?;
        let file = system::open_file(&folder, last, is_written).map_err(told)?;
        let metadata = file.metadata()?;
        regular::check(metadata.file_type())?;
        if is_written && system::names(&metadata) > 1 {
            return Err(io::Error::other("it has another name too, and is not written to"));
        }
        Ok(file)
    }

    /// Gives a file a second name in the folder. Returns false if the file system cannot.
    ///
    /// # Errors
    /// If the folders on the path cannot be created.
    pub fn link_file(&self, from: &Path, name: &Path) -> io::Result<bool> {
        let (folder, last) = self.above(name, true)?;
        Ok(system::link_file(from, &folder, last).is_ok())
    }

    /// Removes the listed names and nothing else. Anything else in a folder stays, and the folder with it.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove_listed(&self, tree: &[Entry]) -> io::Result<()> {
        // Folders come before what is in them.
        for entry in tree.iter().rev() {
            let removed = self
                .above(&entry.name, false)
                .and_then(|(folder, last)| system::remove(&folder, last, entry.is_folder()));
            match removed {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if entry.is_folder() && error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Removes the folder, which is at a path, with the listed files in it.
    ///
    /// # Errors
    /// If something cannot be removed, or something that was not listed is left.
    pub fn remove(&self, path: &Path, tree: &[Entry]) -> io::Result<()> {
        self.remove_listed(tree)?;
        // Only an empty folder goes this way, whichever is at the path by now.
        fs::remove_dir(path)
    }

    /// Makes everything in it survive a power cut.
    ///
    /// # Errors
    /// If the disk reports an error.
    pub fn sync_all(&self) -> io::Result<()> {
        for entry in self.tree()?.iter().rev() {
            if entry.is_folder() {
                system::sync_folder(&self.walk(&entry.name, false)?)?;
            } else if entry.is_file() {
                let (folder, last) = self.above(&entry.name, false)?;
                system::sync_file(&folder, last)?;
            }
        }
        system::sync_folder(&self.handle)
    }

    /// The folder that a name is in, and the name's last part.
    fn above<'a>(&self, name: &'a Path, make: bool) -> io::Result<(system::Handle, &'a std::ffi::OsStr)> {
        let last = name.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.walk(name.parent().unwrap_or(Path::new("")), make)?, last))
    }

    fn walk(&self, name: &Path, make: bool) -> io::Result<system::Handle> {
        let mut handle = system::again(&self.handle)?;
        for part in name.components() {
            match part {
                Component::Normal(part) => handle = system::folder_in(&handle, part, make)?,
                Component::CurDir => {}
                _ => return Err(io::Error::other(format!("{} leads out of its folder", name.display()))),
            }
        }
        Ok(handle)
    }
}

/// Removes a folder with everything in it. Does nothing if there is none. A link is not followed, and stays.
///
/// # Errors
/// If something cannot be removed.
pub(crate) fn remove_folder(path: &Path) -> io::Result<()> {
    if kind(path)? == Kind::Nothing {
        return Ok(());
    }
    let folder = Folder::open(path)?;
    let tree = folder.tree()?;
    folder.remove(path, &tree)
}

/// Removes a folder if it is one, and nothing is in it.
pub(crate) fn remove_if_empty(path: &Path) {
    if let Ok(folder) = Folder::open(path) {
        let _ = folder.remove(path, &[]);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_is_reached_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("victim/sub")).unwrap();
        fs::write(at("victim/precious"), "keep").unwrap();
        fs::create_dir(at("own")).unwrap();
        symlink(at("victim"), at("link")).unwrap();
        symlink(at("victim"), at("own/link")).unwrap();
        symlink(at("victim/precious"), at("own/file")).unwrap();
        symlink(at("victim/new"), at("own/dangling")).unwrap();
        fs::hard_link(at("victim/precious"), at("own/hard")).unwrap();

        assert!(Folder::open(&at("link")).is_err() && remove_folder(&at("link")).is_err());
        assert!(Folder::open_or_create(&at("link")).is_err());
        let own = Folder::open(&at("own")).unwrap();
        for name in ["link/precious", "file", "dangling", "hard", "../victim/precious"] {
            assert!(own.open_file(Path::new(name), true).is_err(), "{name}");
            assert!(own.create_file(Path::new(name)).is_err(), "{name}");
        }
        assert!(own.create_file(Path::new("link/more/new")).is_err());
        assert!(replace(&at("own/file"), &at("own/temporary"), |_| Ok(())).is_err());
        assert!(replace(&at("own/new"), &at("own/dangling"), |_| Ok(())).is_err());
        assert!(replace(&at("own/dangling"), &at("own/temporary"), |_| Ok(())).is_err());
        let mut out = replace(&at("own/hard"), &at("own/temporary"), |file| io::Write::write_all(file, b"x"));
        assert!(out.as_mut().is_ok_and(|file| is_at(file, &at("own/hard"))));
        // The folder at the path is another one by now: it is not emptied.
        let tree = own.tree().unwrap();
        fs::rename(at("own"), at("moved")).unwrap();
        fs::rename(at("victim"), at("own")).unwrap();
        assert!(!own.is_at(&at("own")) && own.is_at(&at("moved")));
        assert!(own.remove(&at("own"), &tree).is_err());
        assert_eq!(fs::read_to_string(at("own/precious")).unwrap(), "keep");
        assert!(at("own/sub").is_dir() && !at("own/new").exists());
        assert_eq!(fs::read_dir(at("moved")).unwrap().count(), 0);
    }

    #[test]
    fn only_what_was_listed_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("folder");
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/old"), "").unwrap();
        let folder = Folder::open(&path).unwrap();
        let tree = folder.tree().unwrap();
        fs::write(path.join("a/new"), "").unwrap();
        assert!(folder.remove(&path, &tree).is_err());
        assert!(path.join("a/new").exists() && !path.join("a/b").exists());
        remove_folder(&path).unwrap();
        assert_eq!(kind(&path).unwrap(), Kind::Nothing);
        remove_folder(&path).unwrap();
    }
}
