//! File-system calls that name the path in their errors, and the meaning of those errors for a person.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

#[cfg(unix)]
use super::disk;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Folder};
use crate::fs::regular;

/// A failure to write, with the path and what to do.
#[must_use]
pub fn cannot_write(what: &str, path: &Path, error: &io::Error) -> Failure {
    let finding =
        Finding::error("export::cannot-write", format!("cannot {what} {}: {}", path.display(), plain(error)));
    let help = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "Free some space, or choose another `path`. What was there before is untouched."
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "Choose a `path` that you may write to, or change its permissions. What was there before is untouched."
        }
        _ => "What was there before is untouched.",
    };
    Failure::new(Exit::CannotWrite, finding.help(help))
}

/// The text of an error without the number that the standard library puts behind it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// Where it cannot be made.
pub fn create_dir_all(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| cannot_write("make", path, &error))
}

/// Opens a file that stays as it is.
///
/// # Errors
/// Where it cannot be opened.
pub fn open_to_read(path: &Path) -> Result<File, Failure> {
    regular::open(path).map_err(|error| cannot_write("open", path, &error))
}

/// Copies bytes from one file into another, by the system where it can: then they are shared where the file system can do that,
/// and never pass through this process.
///
/// # Errors
/// Where they cannot be read or written.
pub fn copy_range(
    from: &File,
    from_offset: u64,
    to: &super::staging::StagedFile,
    to_offset: u64,
    len: u64,
) -> Result<(), Failure> {
    let mut done = 0;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    while done < len {
        let (mut at, mut into) = (from_offset + done, to_offset + done);
        let count = usize::try_from(len - done).unwrap_or(usize::MAX).min(1 << 24);
        match rustix::fs::copy_file_range(from, Some(&mut at), &to.file, Some(&mut into), count) {
            Ok(copied) if copied > 0 => done += copied as u64,
            // Not on these file systems, or past the end: then reading tells.
            _ => break,
        }
    }
    let mut buffer = Vec::new();
    while done < len {
        buffer.resize((len - done).min(1 << 20) as usize, 0);
        crate::model::read::read_exact_at(from, &mut buffer, from_offset + done)
            .map_err(|error| cannot_write("copy to", &to.path, &error))?;
        write_at(&to.file, &to.path, to_offset + done, &buffer)?;
        done += buffer.len() as u64;
    }
    Ok(())
}

/// Writes a whole small file, in one step: in place of a file that was there, never through a link. `temporary` is a name beside
/// it that nobody else uses meanwhile.
///
/// # Errors
/// Where it cannot be written.
pub fn replace(path: &Path, temporary: &Path, bytes: &[u8]) -> Result<File, Failure> {
    exclusive::replace(path, temporary, |file| file.write_all(bytes))
        .map_err(|error| cannot_write("write", path, &error))
}

/// Writes bytes at a position.
///
/// # Errors
/// Where they cannot be written.
pub fn write_at(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    #[cfg(unix)]
    let done = std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    let done = {
        use std::os::windows::fs::FileExt;
        let mut written = 0;
        loop {
            if written == bytes.len() {
                break Ok(());
            }
            match file.seek_write(&bytes[written..], offset + written as u64) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) => break Err(error),
            }
        }
    };
    done.map_err(|error| cannot_write("write", path, &error))
}

/// Makes a file that is complete survive a power cut.
///
/// # Errors
/// Where the disk reports an error.
pub fn sync_file(path: &Path, file: &File) -> Result<(), Failure> {
    file.sync_all().map_err(|error| cannot_write("flush", path, &error))
}

/// Makes the name of an output, and of every folder on the way to it, survive a power cut.
///
/// # Errors
/// Where the disk reports an error.
pub fn sync_way(path: &Path) -> Result<(), Failure> {
    #[cfg(unix)]
    {
        let parent = disk::above(path);
        let failed = |error: io::Error| cannot_write("flush", parent, &error);
        let parent = parent.canonicalize().map_err(failed)?;
        File::open(&parent).and_then(|folder| folder.sync_all()).map_err(failed)?;
        // Which folders an earlier run has made is not known, and one that is on the disk costs nothing. What is above the first
        // one that we may not read was not made by us.
        for folder in parent.ancestors().skip(1) {
            let Ok(opened) = File::open(folder) else { break };
            if opened.sync_all().is_err_and(|error| error.raw_os_error() == Some(EIO)) {
                return Err(failed(io::Error::from_raw_os_error(EIO)));
            }
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// What a disk that is broken reports; other errors say that a file system has nothing to flush.
#[cfg(unix)]
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Makes an output that is in its place survive a power cut.
///
/// # Errors
/// Where the disk reports an error.
pub fn sync_all(folder: &Path) -> Result<(), Failure> {
    let synced = Folder::open(folder).and_then(|opened| opened.sync_all());
    synced.map_err(|error| cannot_write("flush", folder, &error))?;
    sync_way(folder)
}

/// Bytes that are read back at a time: so few that they are still in a core's cache when they are compared.
const READ_BACK_BYTES: usize = 1 << 16;

/// Whether a staged file holds what was meant to be written to it. `buffer` is memory to be used again.
///
/// # Errors
/// Where it cannot be read.
pub fn holds(
    staged: &super::staging::StagedFile,
    mut offset: u64,
    meant: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<bool, Failure> {
    for meant in meant.chunks(READ_BACK_BYTES) {
        buffer.resize(meant.len(), 0);
        read_at(staged, offset, buffer)?;
        if buffer != meant {
            return Ok(false);
        }
        offset += meant.len() as u64;
    }
    Ok(true)
}

/// Reads bytes of a staged file back.
///
/// # Errors
/// Where they cannot be read.
pub fn read_at(staged: &super::staging::StagedFile, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
    #[cfg(unix)]
    let done = std::os::unix::fs::FileExt::read_exact_at(&staged.file, out, offset);
    #[cfg(windows)]
    let done = {
        use std::os::windows::fs::FileExt;
        let mut filled = 0;
        loop {
            if filled == out.len() {
                break Ok(());
            }
            match staged.file.seek_read(&mut out[filled..], offset + filled as u64) {
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error) => break Err(error),
            }
        }
    };
    done.map_err(|error| cannot_write("read back", &staged.path, &error))
}

#[cfg(test)]
mod tests {
    use super::super::staging::StagedFile;
    use super::*;

    #[test]
    fn any_byte_that_differs_is_found_when_it_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("staged");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let staged = StagedFile { file, path };
        let mut buffer = vec![7; 3 * READ_BACK_BYTES];
        for len in [0, 1, READ_BACK_BYTES, READ_BACK_BYTES + 1, 2 * READ_BACK_BYTES + 100] {
            let meant: Vec<u8> = (0..len).map(|i| (i * 131 % 251) as u8).collect();
            let offset = 5;
            write_at(&staged.file, &staged.path, offset, &meant).unwrap();
            assert!(holds(&staged, offset, &meant, &mut buffer).unwrap());
            let places = [0, READ_BACK_BYTES - 1, READ_BACK_BYTES, len.saturating_sub(1)];
            for place in places.into_iter().filter(|place| *place < len) {
                write_at(&staged.file, &staged.path, offset + place as u64, &[!meant[place]]).unwrap();
                assert!(!holds(&staged, offset, &meant, &mut buffer).unwrap(), "byte {place} of {len}");
                write_at(&staged.file, &staged.path, offset + place as u64, &[meant[place]]).unwrap();
            }
        }
        assert!(holds(&staged, 1 << 30, &[0], &mut buffer).is_err(), "past the end");
    }
}
