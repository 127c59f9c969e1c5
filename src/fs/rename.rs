//! Renaming: to a free name, over another file or empty folder, and both ways at once.

use std::fs;
use std::io;
use std::path::Path;

/// Renames a file or folder. A file or an empty folder with the new name is replaced.
///
/// # Errors
/// If it cannot be renamed.
pub(crate) fn over(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Renames a folder to a name that must be free.
///
/// # Errors
/// If something is there, or it cannot be renamed.
pub(crate) fn to_free(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(error) if unsupported(error) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    // This also fails if the target is a file, a link or a folder that is not empty.
    fs::rename(from, to)
}

/// Swaps two folders in one step. Returns false if the system cannot.
///
/// # Errors
/// If one is not there, or they cannot be renamed.
pub(crate) fn exchange(new: &Path, old: &Path) -> io::Result<bool> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
            Err(error) if unsupported(error) => Ok(false),
            done => done.map(|()| true).map_err(io::Error::from),
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = (new, old);
        Ok(false)
    }
}

/// Whether the file system does not know the flags of `renameat2`.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&error)
}
