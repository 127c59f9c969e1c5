//! Path-based versions of the same calls, for systems that cannot reach names in another way.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::{Kind, State};

pub type Handle = PathBuf;

pub fn open_folder(path: &Path) -> io::Result<Handle> {
    match super::kind(path)? {
        Kind::Folder => Ok(path.to_owned()),
        Kind::Nothing => Err(io::ErrorKind::NotFound.into()),
        kind => Err(io::Error::other(format!("it is {}", kind.words()))),
    }
}

pub fn again(handle: &Handle) -> io::Result<Handle> {
    Ok(handle.clone())
}

pub fn folder_in(handle: &Handle, name: &OsStr, make: bool) -> io::Result<Handle> {
    let path = handle.join(name);
    if make && super::kind(&path)? == Kind::Nothing {
        fs::create_dir(&path)?;
    }
    open_folder(&path)
}

pub fn create_file(handle: &Handle, name: &OsStr) -> io::Result<File> {
    super::create_new(&handle.join(name))
}

pub fn open_file(handle: &Handle, name: &OsStr, is_written: bool) -> io::Result<File> {
    let path = handle.join(name);
    if super::kind(&path)? == Kind::Link {
        return Err(io::Error::other("it is a symbolic link"));
    }
    File::options().read(true).write(is_written).open(path)
}

pub fn open_existing(path: &Path) -> io::Result<File> {
    if super::kind(path)? == Kind::Link {
        return Err(io::Error::other("it is a symbolic link"));
    }
    File::options().read(true).write(true).open(path)
}

pub fn link_file(from: &Path, handle: &Handle, name: &OsStr) -> io::Result<()> {
    fs::hard_link(from, handle.join(name))
}

pub fn remove(handle: &Handle, name: &OsStr, is_folder: bool) -> io::Result<()> {
    let path = handle.join(name);
    if is_folder { fs::remove_dir(path) } else { fs::remove_file(path) }
}

pub fn list(handle: &Handle) -> io::Result<Vec<(OsString, Kind, State)>> {
    fs::read_dir(handle)?
        .map(|entry| {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let since_1970 = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let modified = i128::try_from(since_1970.as_nanos()).unwrap_or(0);
            Ok((entry.file_name(), Kind::of(entry.file_type()?), State { len: metadata.len(), modified }))
        })
        .collect()
}

pub fn may_change(_: &Handle) -> bool {
    true
}

pub fn metadata(handle: &Handle) -> io::Result<Metadata> {
    fs::symlink_metadata(handle)
}

pub fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}

pub fn owner(_: &Metadata) -> Option<u32> {
    None
}

pub fn names(_: &Metadata) -> u64 {
    1
}

pub fn sync_folder(_: &Handle) -> io::Result<()> {
    Ok(())
}

pub fn sync_file(handle: &Handle, name: &OsStr) -> io::Result<()> {
    // Some systems flush only what is open to be written.
    open_file(handle, name, true)?.sync_all()
}
