//! Files that this program reads: regular files of bounded length only, and never a pipe that waits for a writer.
//!
//! The file behind a path may change between the check and the opening. So the kind of file is checked on the open
//! file. If it must lie within some folders, that is checked on the open file too.

use std::fs::{self, File, FileType, Metadata};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::{Path, PathBuf};

/// The longest files that are read as a whole, by what they are.
pub(crate) mod limit {
    /// A file that holds one word or one line.
    pub(crate) const WORD: u64 = 4 << 10;
    /// `config.json`: a long list of skipped layers takes some MiB.
    pub(crate) const CONFIG: u64 = 16 << 20;
    /// An index: one line per tensor. A header of maximum length describes 1.4 million tensors.
    pub(crate) const INDEX: u64 = 256 << 20;
    /// A report: some hundred bytes per tensor.
    pub(crate) const REPORT: u64 = 1 << 30;
}

/// Opens a file for reading. Anything but a regular file is an error at once: it never waits for a pipe, and never
/// touches a device.
///
/// # Errors
/// If it is not a regular file ([`ErrorKind::InvalidInput`], or [`ErrorKind::IsADirectory`]), or cannot be opened.
pub(crate) fn open(path: &Path) -> Result<File> {
    open_with_metadata(path).map(|(file, _)| file)
}

/// As [`open`], with what the open file says of itself.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_with_metadata(path: &Path) -> Result<(File, Metadata)> {
    // To open some devices does something already.
    check(fs::metadata(path).map_err(told)?.file_type())?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    check(metadata.file_type())?;
    Ok((file, metadata))
}

/// The length of a file, in bytes.
///
/// # Errors
/// If the system does not say.
pub(crate) fn length(path: &Path) -> Result<u64> {
    fs::metadata(path).map(|metadata| metadata.len())
}

/// An error of the system that is better said in other words.
#[must_use]
pub(crate) fn told(error: Error) -> Error {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return Error::new(error.kind(), "it is a symbolic link that leads back to itself");
    }
    error
}

/// Refuses what is no regular file.
pub(super) fn check(kind: FileType) -> Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let (error, what) = match what_is(kind) {
        "a folder" => (ErrorKind::IsADirectory, "a folder"),
        other => (ErrorKind::InvalidInput, other),
    };
    Err(Error::new(error, format!("it is {what}, not a file")))
}

/// The kind of an entry of a folder, in words.
#[must_use]
pub(crate) fn what_is(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe (FIFO)";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a link"
    } else if kind.is_file() {
        "a file"
    } else {
        "neither file nor folder"
    }
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]. [`ErrorKind::FileTooLarge`] if it is longer.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open_with_metadata(path)?;
    read_all(file, metadata.len(), limit)
}

/// Reads all of an open file of `len` bytes, and of at most `limit`.
///
/// # Errors
/// [`ErrorKind::FileTooLarge`] if it is longer. Also if it cannot be read.
pub(crate) fn read_all(file: impl Read, len: u64, limit: u64) -> Result<Vec<u8>> {
    check_length(len, limit)?;
    // Some files have no length until they are read. One byte more than is allowed tells one at the limit from one beyond it.
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_long(limit)) } else { Ok(bytes) }
}

/// That a file of `len` bytes is not longer than `limit`.
///
/// # Errors
/// [`ErrorKind::FileTooLarge`] if it is.
pub(crate) fn check_length(len: u64, limit: u64) -> Result<()> {
    if len > limit { Err(too_long(limit)) } else { Ok(()) }
}

fn too_long(limit: u64) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("it is longer than {}", Size(limit)))
}

/// Reads a whole text of at most `limit` bytes.
///
/// # Errors
/// As [`read_bounded`]. [`ErrorKind::InvalidData`] if it is not UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_bounded(path, limit)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Compares what is written to it with what a file holds, from where that is read on: an error tells of the first difference.
#[derive(Debug)]
pub(crate) struct Same<R> {
    file: R,
    found: Vec<u8>,
}

impl<R: Read> Same<R> {
    /// With a file from where it is now.
    #[must_use]
    pub(crate) fn new(file: R) -> Self {
        Self { file, found: Vec::new() }
    }

    /// Whether the file ends where the writing did.
    #[must_use]
    pub(crate) fn reached_end(mut self) -> bool {
        matches!(self.file.read(&mut [0]), Ok(0))
    }
}

impl<R: Read> Write for Same<R> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = bytes.len().min(1 << 16);
        self.found.resize(count, 0);
        self.file.read_exact(&mut self.found)?;
        match self.found == bytes[..count] {
            true => Ok(count),
            false => Err(Error::other("it holds something else")),
        }
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

/// Folders that files must lie in, with every link on the way followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Within(Vec<PathBuf>);

impl Within {
    /// Those folders of `folders` that there are.
    #[must_use]
    pub(crate) fn of(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(folders.into_iter().filter_map(|folder| folder.canonicalize().ok()).collect())
    }

    /// As [`Within::of`], and this folder, which is already without links.
    #[must_use]
    pub(crate) fn and(mut self, folder: PathBuf) -> Self {
        self.0.push(folder);
        self
    }

    /// Whether a path without links lies in one of them.
    #[must_use]
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.0.iter().any(|folder| path.starts_with(folder))
    }

    /// Opens a file that lies in one of them, as [`open_with_metadata`].
    ///
    /// # Errors
    /// As [`open`]. [`ErrorKind::PermissionDenied`] if a link leads out of the folders.
    pub(crate) fn open(&self, path: &Path) -> Result<(File, Metadata)> {
        // A link that leads outside is not even opened.
        self.check(&path.canonicalize().map_err(told)?)?;
        let (file, metadata) = open_with_metadata(path)?;
        // Links may have changed since. The path must now lead inside, and to the file that was opened.
        let real = path.canonicalize()?;
        self.check(&real)?;
        if is_other(&metadata, &fs::metadata(&real)?) {
            return Err(Error::other("it was replaced while it was opened"));
        }
        Ok((file, metadata))
    }

    fn check(&self, real: &Path) -> Result<()> {
        if self.holds(real) {
            return Ok(());
        }
        let message = format!("it is a link that leads out of the folder, to {}", real.display());
        Err(Error::new(ErrorKind::PermissionDenied, message))
    }
}

/// Whether two files are known to be two.
fn is_other(a: &Metadata, b: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (a.dev(), a.ino()) != (b.dev(), b.ino())
    }
    #[cfg(not(unix))]
    {
        a.len() != b.len()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        symlink("pipe", folder.path().join("link")).unwrap();
        for (name, what) in
            [("pipe", "a pipe"), ("link", "a pipe"), ("socket", "a socket"), (".", "a folder")]
        {
            let error = open(&folder.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(what), "{name}: {error}");
        }
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
    }

    #[test]
    fn length_is_bounded_also_where_it_is_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), [7; 100]);
        assert_eq!(read_bounded(&path, 99).unwrap_err().kind(), ErrorKind::FileTooLarge);
        // Sparse, so that reading it first would take all memory.
        File::create(&path).unwrap().set_len(1 << 42).unwrap();
        let error = read_bounded(&path, limit::CONFIG).unwrap_err();
        assert!(error.to_string().contains("16 MiB"), "{error}");
        // No length is told of this one.
        if let Ok(text) = read_bounded(Path::new("/proc/self/status"), 1 << 16) {
            assert!(!text.is_empty());
            assert!(read_bounded(Path::new("/proc/self/status"), 5).is_err());
        }
    }

    #[test]
    fn what_is_written_is_compared() {
        let text = "x".repeat(100_000);
        let mut same = Same::new(text.as_bytes());
        same.write_all(&text.as_bytes()[..99_999]).unwrap();
        assert!(!same.reached_end());
        let mut same = Same::new(text.as_bytes());
        same.write_all(text.as_bytes()).unwrap();
        assert!(same.reached_end());
        assert!(Same::new(text.as_bytes()).write_all(b"xy").is_err());
        assert!(Same::new(&b"x"[..]).write_all(b"xx").is_err());
    }

    #[test]
    fn links_are_followed_inside_only() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for path in [inside.join("sub"), outside.clone()] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(inside.join("sub/file"), "in").unwrap();
        fs::write(outside.join("file"), "out").unwrap();
        symlink("sub/file", inside.join("good")).unwrap();
        symlink("good", inside.join("chain")).unwrap();
        symlink("../out/file", inside.join("bad")).unwrap();
        symlink("../out", inside.join("folder")).unwrap();
        symlink("bad", inside.join("bad-chain")).unwrap();
        let within = Within::of([inside.clone()]);
        for name in ["sub/file", "good", "chain"] {
            assert!(within.open(&inside.join(name)).is_ok(), "{name}");
        }
        for name in ["bad", "folder/file", "bad-chain", "../out/file"] {
            let error = within.open(&inside.join(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
        }
        assert!(Within::of([inside.clone(), outside]).open(&inside.join("bad")).is_ok());
    }
}
