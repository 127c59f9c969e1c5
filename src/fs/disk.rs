//! Properties of an output's disk, as the system reports them.

use std::fs;
#[cfg(unix)]
use std::fs::File;
#[cfg(unix)]
use std::io::Error;
use std::io::Result;
use std::path::Path;

/// The nearest folder of a path that exists.
#[cfg(unix)]
fn existing(path: &Path) -> &Path {
    let mut existing = path;
    while !existing.exists() {
        existing = above(existing);
    }
    existing
}

/// The folder that a path is in.
#[must_use]
pub(crate) fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A number that is the same for paths on one disk. It is 0 if the system has none.
#[must_use]
pub(crate) fn disk_of(path: &Path) -> u64 {
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

/// The total bytes of the files directly in a folder. It is 0 if there are none.
#[must_use]
pub(crate) fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| disk_usage(&metadata)).sum()
}

/// The bytes that a file takes on its disk. This is less than its length if parts were not written yet.
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

/// The bytes that can be written to the disk of a path, which need not exist yet. None if the system does not say.
#[must_use]
pub(crate) fn free_space(path: &Path) -> Option<u64> {
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

/// Bytes that a name beside a path may have; no more than every common file system allows.
#[must_use]
pub(crate) fn longest_name(path: &Path) -> usize {
    const COMMON: usize = 255;
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(existing(above(path))).map_or(0, |found| found.f_namemax);
        match usize::try_from(found) {
            Ok(found) if found > 0 => found.min(COMMON),
            _ => COMMON,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        COMMON
    }
}

/// Whether something is mounted at a path: nothing can be renamed to or from there.
#[must_use]
pub(crate) fn is_mount_point(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        if let Ok(found) = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
            && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        {
            return found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        }
        if is_listed_as_mounted(path) {
            return true;
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let disk = |path: &Path| fs::symlink_metadata(path).ok().map(|metadata| metadata.dev());
        disk(path).is_some_and(|found| fs::metadata(above(path)).is_ok_and(|above| above.dev() != found))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Whether the kernel's table of mounts names a path: that of a folder that is mounted from the same disk, too.
#[cfg(target_os = "linux")]
fn is_listed_as_mounted(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let (Ok(path), Ok(table)) = (path.canonicalize(), fs::read("/proc/self/mountinfo")) else { return false };
    // Blanks and backslashes are written as three octal digits there.
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").into_bytes()),
            _ => escaped.push(byte),
        }
    }
    table.split(|&byte| byte == b'\n').any(|line| line.split(|&byte| byte == b' ').nth(4) == Some(&escaped))
}

/// Makes the name of a path, and of every folder above it, survive a power cut.
///
/// # Errors
/// If the disk reports an error.
pub(crate) fn sync_way(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let parent = above(path).canonicalize()?;
        File::open(&parent).and_then(|folder| folder.sync_all())?;
        // It is not known which folders an earlier run created, and flushing a folder that is already on the disk
        // costs nothing. Folders above the first one that cannot be read were not created by us.
        for folder in parent.ancestors().skip(1) {
            let Ok(opened) = File::open(folder) else { break };
            if opened.sync_all().is_err_and(|error| error.raw_os_error() == Some(EIO)) {
                return Err(Error::from_raw_os_error(EIO));
            }
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// The error of a broken disk. Other errors mean that a file system has nothing to flush.
#[cfg(unix)]
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_told_from_folders() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/proc")) && is_listed_as_mounted(Path::new("/proc")));
        for path in [folder.path().to_owned(), folder.path().join("absent"), "/proc/self".into()] {
            assert!(!is_mount_point(&path) && !is_listed_as_mounted(&path), "{}", path.display());
        }
    }
}
