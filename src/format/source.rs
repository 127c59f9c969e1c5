//! The port `Source`: where a model is read from. A source lists its blobs and opens them; a blob has a length and an
//! identity, and is read in ranges.
//!
//! Blobs are called by their paths within the source, with `/`. Errors are `std::io::Error`s, which the model turns
//! into findings; only what a word of a recipe stands for is told as a [`Failure`].

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::handles::Handle;
use crate::fs::{positioned, regular};

pub use identity::Identity;
pub use trouble::Trouble;

pub(crate) mod ahead;
#[cfg(feature = "cloud")]
pub(crate) mod cloud;
pub mod folder;
pub(crate) mod hub_cache;
mod hub_layout;
mod identity;
mod stores;
mod trouble;

/// Codes of findings about sources, stable names for scripts.
pub mod code {
    /// The model is not there.
    pub const NOT_FOUND: &str = "model::not-found";
    /// The path is not a model that can be read.
    pub const NOT_A_MODEL: &str = "model::not-a-model";
    /// A file system call failed.
    pub const IO: &str = "model::io";
    /// A store or the Hub did not let it be read.
    pub const DENIED: &str = "model::denied";
    /// A store or the Hub did not answer, or not with what was asked for.
    pub const UNREACHABLE: &str = "model::unreachable";
    /// This build cannot read such a source.
    pub const NOT_BUILT: &str = "model::not-built";
}

/// The kinds of values of `model`, for help texts.
pub const GIVE: &str = "Give a model's folder, one `.safetensors` file, or `hf://org/name`.";

/// Takes the bytes of a range that was asked for, in whatever thread they come.
pub type Done = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;

/// A place that a model is read from.
pub trait Source: Debug + Send + Sync {
    /// The source in messages, as it was given.
    fn name(&self) -> String;

    /// One of its blobs in messages; a folder in it, if the path ends with `/`.
    fn place(&self, path: &str) -> String;

    /// All blobs, and what stands beside them. Hidden folders are not entered.
    fn list(&self) -> Vec<Entry>;

    /// Opens a blob.
    ///
    /// # Errors
    /// If it is not there ([`ErrorKind::NotFound`], or [`Dangling`]), is no blob, or cannot be read.
    fn open(&self, path: &str) -> io::Result<Box<dyn Blob>>;

    /// The blob that was given alone: only this one is listed. Others beside it can be opened.
    fn single(&self) -> Option<&str> {
        None
    }

    /// The folder on this machine that holds the blobs. Outputs must not lie in it.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Whether its blobs come over a network, so that ranges are to be asked for before they are needed.
    fn is_remote(&self) -> bool {
        false
    }

    /// The commit that a name on the Hub stood for when the source was opened.
    fn revision(&self) -> Option<&str> {
        None
    }

    /// Reads a whole blob of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Source::open`]. [`ErrorKind::FileTooLarge`] if it is longer.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let blob = self.open(path)?;
        regular::read_all(Reader::new(&*blob), blob.bytes(), limit)
    }
}

/// An open blob, which many threads may read at once.
///
/// Every read is of the bytes that had the identity at the opening, as far as the source can tell. If it can tell that
/// they are others by now, the error is [`Replaced`](crate::fs::handles::Replaced).
pub trait Blob: Debug + Send + Sync {
    /// Its length, in bytes, when it was opened.
    fn bytes(&self) -> u64;

    /// Its identity when it was opened.
    fn identity(&self) -> &Identity;

    /// Its identity now.
    ///
    /// # Errors
    /// If the source does not say.
    fn identity_now(&self) -> io::Result<Identity>;

    /// Reads bytes at an offset, as many as come at once. It is 0 at the end and past it.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Fills a buffer with the bytes at an offset.
    ///
    /// # Errors
    /// If they cannot be read. [`ErrorKind::UnexpectedEof`] if the blob ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        positioned::fill(buffer, offset, |buffer, offset| self.read_at(offset, buffer))
    }

    /// Asks for a range, and does not wait for it if the source can do so. `done` takes the bytes, perhaps at once.
    fn begin(&self, range: Range<u64>, done: Done) {
        let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
        let read = self.read_exact_at(range.start, &mut bytes);
        done(read.map(|()| bytes));
    }

    /// The file on this machine that it is: the system copies files faster than this program.
    fn file(&self) -> Option<&Handle> {
        None
    }
}

/// The bytes of a blob from the first to the last.
#[derive(Debug)]
pub struct Reader<'a> {
    blob: &'a dyn Blob,
    at: u64,
}

impl<'a> Reader<'a> {
    /// A reader at the first byte.
    #[must_use]
    pub fn new(blob: &'a dyn Blob) -> Self {
        Self { blob, at: 0 }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read_at(self.at, buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// An entry of a source.
#[derive(Debug)]
pub struct Entry {
    /// Its path. Bytes of a name that are not UTF-8 are escaped.
    pub path: String,
    /// The kind of entry.
    pub kind: Kind,
}

/// The kind of an entry.
#[derive(Debug)]
pub enum Kind {
    /// A blob of this length.
    Blob(u64),
    /// A folder, which was listed.
    Folder,
    /// A folder that could not be listed.
    Closed(io::Error),
    /// Something that is not read, for this reason. The path of a folder ends with `/`.
    Skipped(String),
    /// A name that is not UTF-8.
    NotUtf8,
    /// A link that leads out of the places that may be read.
    LeadsOut(PathBuf),
    /// Neither a file nor a folder: a pipe, a device, in words.
    Special(&'static str),
    /// Something that cannot be looked at; a link to nothing, if the error is [`ErrorKind::NotFound`].
    Unreadable(io::Error),
    /// The end of a listing that was cut off because it would have more entries than this.
    TooMany(usize),
}

/// The error of opening a link to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is a link to a file that does not exist")]
pub struct Dangling;

impl Dangling {
    /// Whether an error is this one.
    #[must_use]
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl From<Dangling> for io::Error {
    fn from(dangling: Dangling) -> Self {
        Self::new(ErrorKind::NotFound, dangling)
    }
}

/// A source, or the reason why there is none.
pub type Opened = Result<Arc<dyn Source>, Failure>;

/// One kind of source: a line of [`ALL`].
#[derive(Debug)]
pub struct Scheme {
    /// The beginning of the words that stand for such a source.
    pub prefix: &'static str,
    /// The path on this machine that a word stands for, if it stands for one. `base` is the recipe's folder.
    pub path: fn(word: &str, base: &Path) -> Result<Option<PathBuf>, Failure>,
    /// The folders in which the model will be when it arrives, if that is not the path itself.
    pub arrives: fn(word: &str) -> Vec<PathBuf>,
    /// Opens the source that a word stands for. Links may also lead into the folders `follow`.
    pub open: fn(word: &str, base: &Path, follow: &[PathBuf]) -> Opened,
}

/// The sources, by the beginning of a recipe's `model`. The last one takes every word that is left.
pub const ALL: [Scheme; 4] = [hub_cache::SCHEME, stores::S3, stores::GS, folder::SCHEME];

fn scheme(word: &str) -> &'static Scheme {
    let [named @ .., last] = &ALL;
    named.iter().find(|scheme| word.starts_with(scheme.prefix)).unwrap_or(last)
}

/// The path on this machine that a recipe's `model` stands for, if it stands for one. It need not exist.
///
/// # Errors
/// If the word is wrong, or it names a model that is not there.
pub fn path(word: &str, base: &Path) -> Result<Option<PathBuf>, Failure> {
    (scheme(word).path)(word, base)
}

/// The folders in which a model that a recipe names will be when it arrives, if that is not its path itself.
#[must_use]
pub fn arrives(word: &str) -> Vec<PathBuf> {
    (scheme(word).arrives)(word)
}

/// Opens the source that a recipe's `model` stands for; `base` is the recipe's folder. Links may also lead into the
/// folders `follow`.
///
/// # Errors
/// If the word is wrong, or nothing that could be a model is there.
pub fn open(word: &str, base: &Path, follow: &[PathBuf]) -> Opened {
    (scheme(word).open)(word, base, follow)
}

/// The finding for something of a source that cannot be read.
#[must_use]
pub fn cannot_read(place: &str, error: &io::Error) -> Finding {
    if let Some(trouble) = Trouble::of(error) {
        return trouble.finding(place);
    }
    let is_of_the_system = error.raw_os_error().is_some();
    let help = match error.kind() {
        ErrorKind::PermissionDenied if is_of_the_system => {
            "Change its permissions, or run as a user who may read it."
        }
        ErrorKind::PermissionDenied => "Put the file itself there, or allow the link with `--follow-links`.",
        ErrorKind::NotFound => "The download is not complete; run `hf download` again.",
        _ => "Put the file itself there; `hf download` gets the files of a model.",
    };
    Finding::error(code::IO, format!("cannot read `{place}`: {error}")).help(help)
}

/// The failure of reading a model, by what was found: a store that does not answer may do so later.
#[must_use]
pub fn failure(findings: Vec<Finding>) -> Failure {
    let mut errors = findings.iter().filter(|finding| finding.is_error()).peekable();
    let is_temporary = errors.peek().is_some() && errors.all(|finding| finding.code == code::UNREACHABLE);
    Failure { exit: if is_temporary { Exit::TryAgain } else { Exit::BadModel }, findings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_are_relative_to_the_recipe() {
        let base = Path::new("/recipes");
        assert_eq!(path("../models/x", base).unwrap(), Some("/recipes/../models/x".into()));
        assert_eq!(path("/abs", base).unwrap(), Some("/abs".into()));
    }

    #[test]
    fn every_word_has_a_source() {
        for (word, prefix) in [("hf://org/name", "hf://"), ("models/hf://x", ""), ("", ""), ("HF://x", "")] {
            assert_eq!(scheme(word).prefix, prefix, "{word}");
        }
    }
}
