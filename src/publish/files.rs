//! File-system calls that name the path in their errors and explain those errors in plain words.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::disk;
use crate::fs::exclusive::{self, Folder};
use crate::fs::handles::Handle;
use crate::fs::{limits, positioned, regular};

/// Codes of findings about files that cannot be written.
pub(crate) mod code {
    /// The system does not write a file.
    pub(crate) const CANNOT_WRITE: &str = "export::cannot-write";
    /// A file is longer than may be written.
    pub(crate) const FILE_SIZE: &str = "export::file-size";
}

/// A weight file of the output, for positioned writes and reads.
#[derive(Debug)]
pub struct StagedFile {
    /// The file.
    pub file: Handle,
    /// Its path.
    pub path: PathBuf,
}

/// A failure to write, with the path and what to do.
#[must_use]
pub(crate) fn cannot_write(what: &str, path: &Path, error: &io::Error) -> Failure {
    let (code, help) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            code::CANNOT_WRITE,
            "Free some space, or choose another `path`. Everything that was there before is untouched.",
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
            code::CANNOT_WRITE,
            "Choose a `path` that you may write to, or change its permissions. Everything that was there before is untouched.",
        ),
        io::ErrorKind::FileTooLarge => (
            code::FILE_SIZE,
            "No longer file may be written: raise the limit (`ulimit -f`; a file system may have one too). Everything that was there \
             before is untouched.",
        ),
        _ if limits::is_out_of_files(error) => (
            code::CANNOT_WRITE,
            "Allow more open files (`ulimit -n`). Everything that was there before is untouched.",
        ),
        _ => (code::CANNOT_WRITE, "Everything that was there before is untouched."),
    };
    let message = format!("cannot {what} {}: {}", path.display(), plain(error));
    Failure::new(Exit::CannotWrite, Finding::error(code, message).help(help))
}

/// The text of an error without the number that the standard library puts behind it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Creates a folder and those above it.
///
/// # Errors
/// If it cannot be created.
pub(crate) fn create_dir_all(path: &Path) -> Result<(), Failure> {
    exclusive::create_dir_all(path).map_err(|error| cannot_write("make", path, &error))
}

/// Opens a file for reading only.
///
/// # Errors
/// If it cannot be opened.
pub(crate) fn open_to_read(path: &Path) -> Result<File, Failure> {
    regular::open(path).map_err(|error| cannot_write("open", path, &error))
}

/// Copies bytes from one file into another. The system does it if it can. The bytes are then shared if the file
/// system supports that, and never pass through this process.
///
/// # Errors
/// If they cannot be read or written.
pub(crate) fn copy_range(
    from: &Handle,
    from_offset: u64,
    to: &StagedFile,
    to_offset: u64,
    len: u64,
) -> Result<(), Failure> {
    let mut done = 0;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    while done < len {
        let (mut at, mut into) = (from_offset + done, to_offset + done);
        let count = usize::try_from(len - done).unwrap_or(usize::MAX).min(1 << 24);
        let copied = Handle::with_both(from, &to.file, |from, to| {
            Ok(rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut into), count)?)
        });
        match copied {
            Ok(copied) if copied > 0 => done += copied as u64,
            // Not on these file systems, or past the end: then reading tells.
            _ => break,
        }
    }
    let mut buffer = Vec::new();
    while done < len {
        buffer.resize((len - done).min(1 << 20) as usize, 0);
        from.with(|from| positioned::read_exact_at(from, &mut buffer, from_offset + done))
            .map_err(|error| cannot_write("copy to", &to.path, &error))?;
        write_at(to, to_offset + done, &buffer)?;
        done += buffer.len() as u64;
    }
    Ok(())
}

/// Writes a whole small file in one step. It replaces an existing file and never writes through a link. `temporary`
/// is a name beside it that no other process uses meanwhile.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn replace(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<File, Failure> {
    exclusive::replace(path, temporary, write).map_err(|error| cannot_write("write", path, &error))
}

/// Writes bytes at a position of a staged file.
///
/// # Errors
/// Where they cannot be written.
pub(crate) fn write_at(staged: &StagedFile, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let written = staged.file.with(|file| positioned::write_all_at(file, bytes, offset));
    written.map_err(|error| cannot_write("write", &staged.path, &error))
}

/// Makes a complete file survive a power cut.
///
/// # Errors
/// If the disk reports an error.
pub(crate) fn sync_file(path: &Path, file: &File) -> Result<(), Failure> {
    file.sync_all().map_err(|error| cannot_write("flush", path, &error))
}

/// Makes the name of an output, and of every folder on its path, survive a power cut.
///
/// # Errors
/// If the disk reports an error.
pub(crate) fn sync_way(path: &Path) -> Result<(), Failure> {
    disk::sync_way(path).map_err(|error| cannot_write("flush", disk::above(path), &error))
}

/// Makes a published output survive a power cut.
///
/// # Errors
/// If the disk reports an error.
pub(crate) fn sync_all(folder: &Path) -> Result<(), Failure> {
    let synced = Folder::open(folder).and_then(|opened| opened.sync_all());
    synced.map_err(|error| cannot_write("flush", folder, &error))?;
    sync_way(folder)
}

/// Bytes that are read back at a time: so few that they are still in a core's cache when they are compared.
const READ_BACK_BYTES: usize = 1 << 16;

/// Whether a staged file holds the bytes that were meant to be written to it. `buffer` is memory for reuse.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn holds(
    staged: &StagedFile,
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
/// If they cannot be read.
pub(crate) fn read_at(staged: &StagedFile, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
    let read = staged.file.with(|file| positioned::read_exact_at(file, out, offset));
    read.map_err(|error| cannot_write("read back", &staged.path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::files::StagedFile;

    #[test]
    fn any_byte_that_differs_is_found_when_it_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("staged");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let file = Handle::new(file, || Err(io::ErrorKind::NotFound.into())).unwrap();
        let staged = StagedFile { file, path };
        let mut buffer = vec![7; 3 * READ_BACK_BYTES];
        for len in [0, 1, READ_BACK_BYTES, READ_BACK_BYTES + 1, 2 * READ_BACK_BYTES + 100] {
            let meant: Vec<u8> = (0..len).map(|i| (i * 131 % 251) as u8).collect();
            let offset = 5;
            write_at(&staged, offset, &meant).unwrap();
            assert!(holds(&staged, offset, &meant, &mut buffer).unwrap());
            let places = [0, READ_BACK_BYTES - 1, READ_BACK_BYTES, len.saturating_sub(1)];
            for place in places.into_iter().filter(|place| *place < len) {
                write_at(&staged, offset + place as u64, &[!meant[place]]).unwrap();
                assert!(!holds(&staged, offset, &meant, &mut buffer).unwrap(), "byte {place} of {len}");
                write_at(&staged, offset + place as u64, &[meant[place]]).unwrap();
            }
        }
        assert!(holds(&staged, 1 << 30, &[0], &mut buffer).is_err(), "past the end");
    }
}
