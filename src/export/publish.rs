//! Putting a finished output in its place, in one step, and never over something that is not ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::cannot_write;
use super::staging::Staging;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::report;
use crate::stage::export::Overwrite;

/// What is at an output's path before it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nothing,
    /// An empty folder.
    Empty,
    /// An output of monoquant.
    Ours,
    /// A folder or file of somebody else.
    Foreign,
}

/// Looks what is at an output's path.
#[must_use]
pub fn occupant(path: &Path) -> Occupant {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Occupant::Nothing };
    if !metadata.is_dir() {
        return Occupant::Foreign;
    }
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Occupant::Empty,
        _ if report::is_ours(&path.join(report::FILE_NAME)) => Occupant::Ours,
        _ => Occupant::Foreign,
    }
}

/// Whether an output may be published at a path.
///
/// # Errors
/// Where something is there that must not be replaced.
pub fn check_occupant(path: &Path, overwrite: Overwrite) -> Result<Occupant, Failure> {
    let found = occupant(path);
    let refuse = |message: String, help: &str| {
        Err(Failure::new(Exit::CannotWrite, Finding::error("export::occupied", message).help(help)))
    };
    match (found, overwrite) {
        (Occupant::Foreign, _) => refuse(
            format!("{} exists and was not written by monoquant", path.display()),
            "Only an output of monoquant is ever replaced. Choose another `path`, or move that away.",
        ),
        (Occupant::Ours, Overwrite::Refuse) => refuse(
            format!("{} exists", path.display()),
            "The recipe says `overwrite: refuse`. Use `overwrite: replace`, or choose another `path`.",
        ),
        (Occupant::Ours, Overwrite::Replace) => match strangers(path) {
            names if names.is_empty() => Ok(found),
            names => refuse(
                format!("{} holds files that monoquant did not write: {}", path.display(), names.join(", ")),
                "Replacing the output would remove them. Move them away, or choose another `path`.",
            ),
        },
        _ => Ok(found),
    }
}

/// Names in an output of monoquant that its report does not know.
fn strangers(path: &Path) -> Vec<String> {
    let Ok(report) = report::read(&path.join(report::FILE_NAME)) else { return Vec::new() };
    let known = |name: &str| {
        let is_fixed = [report::FILE_NAME, super::RECIPE_FILE_NAME, "config.json"].contains(&name);
        is_fixed
            || name.ends_with(".safetensors.index.json")
            || report.outputs.iter().any(|output| {
                output.files.iter().any(|file| file.name == name)
                    || output.copied.iter().any(|file| file.split('/').next() == Some(name))
            })
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known(name))
        .collect();
    names.sort();
    names
}

/// Moves a staged output to its place. What was there is replaced in the same step and removed afterwards. With `durable`
/// everything is on the disk before it is moved; otherwise the system writes it back when it likes, as after any copy.
///
/// # Errors
/// Where something foreign has appeared there, or the move fails; what was there is then untouched.
pub fn publish(mut staging: Staging, overwrite: Overwrite, durable: bool) -> Result<PathBuf, Failure> {
    let target = staging.target.clone();
    let found = check_occupant(&target, overwrite)?;
    if durable {
        staging.sync()?;
    }
    let failed = |error: io::Error| cannot_write("publish", &target, &error);
    match found {
        Occupant::Nothing => rename_new(&staging.folder, &target).map_err(failed)?,
        _ => exchange(&staging.folder, &target).map_err(failed)?,
    }
    staging.published();
    if let Some(parent) = target.parent().filter(|parent| durable && !parent.as_os_str().is_empty()) {
        super::files::sync_folder(parent)?;
    }
    if staging.folder.exists() {
        // The new output is in place; an old one that cannot be removed does no harm to it.
        let _ = fs::remove_dir_all(&staging.folder);
    }
    Ok(target)
}

/// Renames a folder to a name that must be free.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(error) if unsupported(error) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    fs::rename(from, to)
}

/// Swaps two folders, in one step where the system can.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
            Err(error) if unsupported(error) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    let aside = new.with_extension("monoquant-old");
    if aside.exists() {
        // Left by a run that was killed between its two renames; the output that it moved away is about to be replaced.
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(old, &aside)?;
    match fs::rename(new, old) {
        // The new output is in place; an old one that cannot be removed does no harm to it.
        Ok(()) => fs::remove_dir_all(&aside).or(Ok(())),
        Err(error) => {
            fs::rename(&aside, old)?;
            Err(error)
        }
    }
}

/// Whether the file system does not know the flags of `renameat2`.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&error)
}

/// The nearest folder of a path that exists.
fn existing(path: &Path) -> &Path {
    let mut existing = path;
    while !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
    }
    existing
}

/// A number that is the same for paths on one disk; 0 where the system has none.
#[must_use]
pub fn disk_of(path: &Path) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(existing(path)).map_or(0, |metadata| metadata.dev())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        0
    }
}

/// Bytes of the files right in a folder; 0 where there is none.
#[must_use]
pub fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| disk_usage(&metadata)).sum()
}

/// Bytes that a file takes on its disk, which is less than its length where it was not written yet.
fn disk_usage(metadata: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        metadata.blocks() * 512
    }
    #[cfg(not(unix))]
    {
        metadata.len()
    }
}

/// Bytes that can be written to the disk of a path, which need not exist yet; none where the system does not say.
#[must_use]
pub fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(existing(path)).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}
