//! Reads and writes at positions of open files, without a cursor that threads would share.

use std::fs::File;
use std::io::{ErrorKind, Result};

/// Reads bytes at a position, as many as the system gives at once. It is 0 past the end.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_at(file, buffer, offset)
    }
    #[cfg(windows)]
    {
        std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
    }
}

/// Fills a buffer with the bytes at a position.
///
/// # Errors
/// If they cannot be read. [`ErrorKind::UnexpectedEof`] if the file ends before.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    fill(buffer, offset, |buffer, offset| read_at(file, buffer, offset))
}

/// Fills a buffer from a position on by reads that may give fewer bytes than were asked for.
///
/// # Errors
/// Those of the reads. [`ErrorKind::UnexpectedEof`] if one gives nothing.
pub(crate) fn fill(
    mut buffer: &mut [u8],
    mut offset: u64,
    read: impl Fn(&mut [u8], u64) -> Result<usize>,
) -> Result<()> {
    while !buffer.is_empty() {
        match read(buffer, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = buffer.get_mut(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all bytes at a position.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }
    #[cfg(windows)]
    {
        let mut written = 0;
        while written < bytes.len() {
            let at = offset + written as u64;
            match std::os::windows::fs::FileExt::seek_write(file, &bytes[written..], at)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => written += count,
            }
        }
        Ok(())
    }
}
