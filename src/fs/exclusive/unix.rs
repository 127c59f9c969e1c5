//! The calls that reach names from an open folder.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{self as sys, AtFlags, CWD, Mode, OFlags};

use super::{Kind, State};

pub(super) type Handle = File;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

pub(super) fn open_folder(path: &Path) -> io::Result<Handle> {
    Ok(sys::openat(CWD, path, FOLDER, Mode::empty())?.into())
}

pub(super) fn again(handle: &Handle) -> io::Result<Handle> {
    handle.try_clone()
}

pub(super) fn folder_in(handle: &Handle, name: &OsStr, make: bool) -> io::Result<Handle> {
    if make {
        match sys::mkdirat(handle, name, Mode::from_raw_mode(0o777)) {
            Err(rustix::io::Errno::EXIST) => {}
            done => done?,
        }
    }
    Ok(sys::openat(handle, name, FOLDER, Mode::empty())?.into())
}

pub(super) fn create_file(handle: &Handle, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE;
    Ok(sys::openat(handle, name, flags, Mode::from_raw_mode(0o666))?.into())
}

pub(super) fn open_file(handle: &Handle, name: &OsStr, is_written: bool) -> io::Result<File> {
    let access = if is_written { OFlags::RDWR } else { OFlags::RDONLY };
    Ok(sys::openat(handle, name, access | FILE, Mode::empty())?.into())
}

pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    let flags = FILE.bits() as i32;
    let open = |write: bool| File::options().read(true).write(write).custom_flags(flags).open(path);
    // Another user's file can be locked even if it is not writable.
    open(true).or_else(
        |error| {
            if error.kind() == io::ErrorKind::PermissionDenied { open(false) } else { Err(error) }
        },
    )
}

pub(super) fn link_file(from: &Path, handle: &Handle, name: &OsStr) -> io::Result<()> {
    Ok(sys::linkat(CWD, from, handle, name, AtFlags::empty())?)
}

pub(super) fn remove(handle: &Handle, name: &OsStr, is_folder: bool) -> io::Result<()> {
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(sys::unlinkat(handle, name, flags)?)
}

pub(super) fn list(handle: &Handle) -> io::Result<Vec<(OsString, Kind, State)>> {
    let mut out = Vec::new();
    for entry in sys::Dir::read_from(handle)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = match sys::statat(handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => continue,
            stat => stat?,
        };
        let kind = match sys::FileType::from_raw_mode(stat.st_mode) {
            sys::FileType::RegularFile => Kind::File,
            sys::FileType::Directory => Kind::Folder,
            sys::FileType::Symlink => Kind::Link,
            _ => Kind::Special,
        };
        #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
        let modified = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec as i64);
        out.push((name.to_owned(), kind, State { len: u64::try_from(stat.st_size).unwrap_or(0), modified }));
    }
    Ok(out)
}

pub(super) fn may_change(handle: &Handle) -> bool {
    sys::accessat(handle, ".", sys::Access::WRITE_OK | sys::Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

pub(super) fn metadata(handle: &Handle) -> io::Result<Metadata> {
    handle.metadata()
}

pub(super) fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    Some((metadata.dev(), metadata.ino()))
}

pub(super) fn owner(metadata: &Metadata) -> Option<u32> {
    Some(metadata.uid())
}

pub(super) fn names(metadata: &Metadata) -> u64 {
    metadata.nlink()
}

pub(super) fn sync_folder(handle: &Handle) -> io::Result<()> {
    handle.sync_all()
}

pub(super) fn sync_file(handle: &Handle, name: &OsStr) -> io::Result<()> {
    open_file(handle, name, false)?.sync_all()
}
