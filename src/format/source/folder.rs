//! The source that is a folder on this machine, or one file in it.
//!
//! A file is read only if it lies, with all links followed, in the folder, in the blobs of the Hub cache that the
//! folder is a snapshot of, or in the folders that the command line names.
#![expect(clippy::disallowed_methods, reason = "this is the source that reads files")]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Blob, Dangling, Entry, GIVE, Identity, Kind, Scheme, Source, cannot_read, code, hub_layout};
use crate::exit::Exit;
use crate::finding::{Failure, Finding, nearest};
use crate::fs::handles::{Handle, Replaced};
use crate::fs::positioned;
use crate::fs::regular::{self, Within};

mod listing;

/// A plain path, relative to the recipe's folder.
pub(super) const SCHEME: Scheme = Scheme {
    prefix: "",
    path: |word, base| Ok(Some(base.join(word))),
    arrives: |_| Vec::new(),
    open: |word, base, follow| {
        open(&base.join(word), follow).map_err(|failure| match hub_name(word, base) {
            Some(name) if failure.findings.iter().any(|finding| finding.code == code::NOT_FOUND) => {
                let help = format!("If it is a model of the Hub, write `hf://{name}`.");
                Failure { exit: failure.exit, findings: with_help(failure.findings, &help) }
            }
            _ => failure,
        })
    },
};

/// The name on the Hub that a word may stand for: `org/name`, or the address of its page.
/// What begins with a folder that is there stands for a path.
fn hub_name<'w>(word: &'w str, base: &Path) -> Option<&'w str> {
    let page = ["https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "hf.co/"];
    let name = page.iter().find_map(|page| word.strip_prefix(page)).unwrap_or(word).trim_end_matches('/');
    // `--model` is made relative to the recipe's folder.
    let (name, way) = (name.trim_start_matches("../"), word.len() - word.trim_start_matches("../").len());
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (org, model) = name.split_once('/')?;
    if base.join(&word[..way]).join(org).is_dir() {
        return None;
    }
    (is_part(org) && is_part(model)).then_some(name)
}

/// Findings of which each begins its help with this.
fn with_help(findings: Vec<Finding>, help: &str) -> Vec<Finding> {
    let with = |mut finding: Finding| {
        finding.help.insert(0, help.to_owned());
        finding
    };
    findings.into_iter().map(with).collect()
}

/// A folder whose files are read only if they lie in an allowed place.
#[derive(Debug)]
pub struct Folder {
    /// The path that was given.
    given: PathBuf,
    path: PathBuf,
    within: Arc<Within>,
    /// The blobs of the Hub's cache that its files are links to.
    blobs: Option<PathBuf>,
    single: Option<String>,
}

/// Opens a folder, or one file. Links may also lead into the folders `follow`.
///
/// # Errors
/// If nothing is there, it is neither file nor folder, or it is a part of the Hub's cache that is no snapshot.
pub fn open(path: &Path, follow: &[PathBuf]) -> Result<Arc<dyn Source>, Failure> {
    let metadata = fs::metadata(path).map_err(|error| refused(absent(path, &regular::told(error))))?;
    if metadata.is_dir() {
        return match hub_layout::no_snapshot(path) {
            Some(finding) => Err(refused(finding)),
            None => Ok(Arc::new(Folder::at(path, follow))),
        };
    }
    if !metadata.is_file() {
        let what = regular::what_is(metadata.file_type());
        let message = format!("`{}` is {what}, not a model", path.display());
        return Err(refused(Finding::error(code::NOT_A_MODEL, message).help(GIVE)));
    }
    Ok(Arc::new(Folder::of_file(path, follow)))
}

impl Folder {
    /// The folder at a path, which may be a link itself.
    #[must_use]
    pub fn at(path: &Path, follow: &[PathBuf]) -> Self {
        let within = Within::of(std::iter::once(path.to_owned()).chain(follow.iter().cloned()));
        let blobs = path.canonicalize().ok().and_then(|real| hub_layout::blobs(&real));
        let within = blobs.iter().cloned().fold(within, Within::and);
        Self { given: path.to_owned(), path: path.to_owned(), within: Arc::new(within), blobs, single: None }
    }

    /// The folder that one file was named in. This file may be a link to anywhere.
    fn of_file(file: &Path, follow: &[PathBuf]) -> Self {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = Self::at(parent.unwrap_or(Path::new(".")), follow);
        let within = file.canonicalize().into_iter().fold((*folder.within).clone(), Within::and);
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        Self {
            given: file.to_owned(),
            within: Arc::new(within),
            single: Some(name.unwrap_or_default()),
            ..folder
        }
    }
}

impl Source for Folder {
    fn name(&self) -> String {
        self.given.display().to_string()
    }

    fn place(&self, path: &str) -> String {
        self.path.join(path).display().to_string()
    }

    fn list(&self) -> Vec<Entry> {
        let Some(single) = &self.single else { return listing::list(&self.path, &self.within) };
        let kind = match fs::metadata(self.path.join(single)) {
            Ok(metadata) => Kind::Blob(metadata.len()),
            Err(error) => Kind::Unreadable(error),
        };
        vec![Entry { path: single.clone(), kind }]
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Blob>> {
        let path = self.path.join(path);
        let (file, metadata) = self.within.open(&path).map_err(|error| {
            match error.kind() == ErrorKind::NotFound && path.is_symlink() {
                true => Dangling.into(),
                false => error,
            }
        })?;
        let hash = self.blobs.as_deref().and_then(|blobs| hub_layout::hash_of(&path, blobs));
        let (bytes, identity) = (metadata.len(), Identity::of_file(&metadata).with_content(hash));
        let (within, same) = (Arc::clone(&self.within), identity.clone());
        let again = move || {
            let (file, metadata) = within.open(&path)?;
            if same.by(&metadata) == same { Ok(file) } else { Err(Replaced.into()) }
        };
        Ok(Box::new(LocalFile { file: Handle::new(file, again)?, bytes, identity }))
    }

    fn single(&self) -> Option<&str> {
        self.single.as_deref()
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// A file of the folder. If a process may not have all files open, it is opened again when it is read.
#[derive(Debug)]
struct LocalFile {
    file: Handle,
    bytes: u64,
    identity: Identity,
}

impl Blob for LocalFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    // A new name or permission counts as a change as well, because the time of the last change is the only one that
    // cannot be set back.
    fn identity_now(&self) -> io::Result<Identity> {
        self.file.with(|file| file.metadata().map(|metadata| self.identity.by(&metadata)))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.with(|file| positioned::read_at(file, buffer, offset))
    }

    fn file(&self) -> Option<&Handle> {
        Some(&self.file)
    }
}

/// The finding for a path at which nothing exists, or that cannot be accessed.
fn absent(path: &Path, error: &io::Error) -> Finding {
    if error.kind() != ErrorKind::NotFound {
        return cannot_read(&path.display().to_string(), error);
    }
    if path.is_symlink() {
        let message = format!("the model `{}` is a link to something that does not exist", path.display());
        return Finding::error(code::NOT_FOUND, message)
            .help("Make the link anew, or give the folder that it should lead to.");
    }
    let finding = Finding::error(code::NOT_FOUND, format!("the model `{}` does not exist", path.display()));
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return finding,
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return finding.help(format!("The folder `{}` does not exist either.", parent.display()));
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if names.iter().any(|name| name == "config.json")
        && names.iter().any(|name| name.ends_with(".safetensors"))
    {
        return finding.help(format!("`{}` is itself the folder of a model: give that.", parent.display()));
    }
    match nearest(&name, names.iter().map(String::as_str)) {
        Some(name) => finding.help(format!("Did you mean `{}`?", parent.join(name).display())),
        None => finding.help(GIVE),
    }
}

fn refused(finding: Finding) -> Failure {
    Failure::new(Exit::BadModel, finding)
}
