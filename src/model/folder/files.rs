//! The listing of a folder's files.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::complaints::{broken_link, io};
use super::root::Root;
use super::{Fate, OtherFile};
use crate::finding::Finding;
use crate::fs::regular;
use crate::model::code;

/// How the name of an index ends.
pub(super) const INDEX_END: &str = ".safetensors.index.json";

/// How deep folders below the model's are searched for files to carry over.
const MAX_DEPTH: usize = 100;

/// Files of a model's folder: links to folders can make any number of few.
const MAX_FILES: usize = 100_000;

/// The files and folders in a folder.
#[derive(Default)]
pub(super) struct Listing {
    /// Files at any depth, hidden ones left out.
    pub(super) files: Vec<OtherFile>,
    /// Folders at the top.
    pub(super) folders: Vec<String>,
    /// Hidden files and folders, and what is no file to be read: left behind, or complained about.
    pub(super) odd: Vec<OtherFile>,
    /// Files that were complained about already.
    pub(super) refused: HashSet<String>,
}

impl Listing {
    /// Whether there is a file at this path. The files must be sorted.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }
}

/// Lists a folder. Links are followed to places where the files of a model may lie (the Hub's cache consists of
/// links).
pub(super) fn list(root: &Root, listing: &mut Listing, findings: &mut Vec<Finding>) {
    let above = root.path().canonicalize().into_iter().collect();
    Lister { root, above, listing, findings }.list("");
}

struct Lister<'a> {
    root: &'a Root,
    /// The folder that is listed and those above it, without links.
    above: Vec<PathBuf>,
    listing: &'a mut Listing,
    findings: &'a mut Vec<Finding>,
}

impl Lister<'_> {
    fn list(&mut self, below: &str) {
        let folder = self.root.join(below);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) => return self.findings.push(io(&folder, &e)),
        };
        for entry in entries {
            match entry {
                Ok(entry) if self.listing.files.len() + self.listing.odd.len() < MAX_FILES => {
                    self.enter(below, &entry);
                }
                Ok(_) => return self.too_many(),
                Err(e) => return self.findings.push(io(&folder, &e)),
            }
        }
    }

    fn too_many(&mut self) {
        let message = format!(
            "`{}` has more than {MAX_FILES} files, or links that make so many",
            self.root.path().display()
        );
        if !self.findings.iter().any(|finding| finding.message == message) {
            let help = "Give the folder that the model itself is in.";
            self.findings.push(Finding::error(code::NOT_A_MODEL, message).help(help));
        }
    }

    fn enter(&mut self, below: &str, entry: &fs::DirEntry) {
        let kind = entry.file_type();
        let is_folder = kind.as_ref().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        let within = |name: &str| if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let Some(name) = name.to_str().filter(|_| !is_hidden) else {
            let end = if is_folder { "/" } else { "" };
            let path = within(&format!("{}{end}", escaped(&name)));
            let fate = if is_hidden { hidden() } else { not_utf8() };
            return self.listing.odd.push(OtherFile { path, len: 0, fate });
        };
        let path = within(name);
        if !kind.is_ok_and(|kind| kind.is_symlink()) {
            let real = self.above.last().map_or_else(|| entry.path(), |above| above.join(name));
            return match entry.metadata() {
                Ok(metadata) => self.take(path, &metadata, real),
                Err(e) => self.listing.odd.push(OtherFile { path, len: 0, fate: unreadable(e) }),
            };
        }
        let found = entry.path().canonicalize().and_then(|real| Ok((fs::metadata(&real)?, real)));
        match found {
            Ok((_, real)) if !self.root.holds(&real) => {
                self.findings.push(leads_out(&path, &real));
                self.listing.refused.insert(path);
            }
            // It would be listed in itself, for ever.
            Ok((_, real)) if self.above.iter().any(|above| above.starts_with(&real)) => {
                let fate = Fate::Left("a link to a folder that it is in".to_owned());
                self.listing.odd.push(OtherFile { path, len: 0, fate });
            }
            Ok((metadata, real)) => self.take(path, &metadata, real),
            Err(e) if is_read(&path) => {
                self.findings.push(broken_link(&self.root.join(&path), &path, e));
                self.listing.refused.insert(path);
            }
            Err(e) => self.listing.odd.push(OtherFile { path, len: 0, fate: unreadable(e) }),
        }
    }

    /// Records a file or a folder. `real` is its path without links.
    fn take(&mut self, path: String, metadata: &fs::Metadata, real: PathBuf) {
        if metadata.is_file() {
            return self.listing.files.push(OtherFile { path, len: metadata.len(), fate: Fate::Carried });
        }
        if !metadata.is_dir() || path.ends_with(INDEX_END) {
            let what = format!("is {}, not a file", regular::what_is(metadata.file_type()));
            if is_read(&path) {
                let finding = Finding::error(code::NOT_A_MODEL, format!("`{path}` {what}"));
                self.findings.push(finding.help("Put the file itself there."));
                self.listing.refused.insert(path);
                return;
            }
            let fate = Fate::Broken { what, help: "Put a file there, or remove it.".to_owned() };
            return self.listing.odd.push(OtherFile { path, len: 0, fate });
        }
        let depth = self.above.len();
        if depth <= MAX_DEPTH {
            self.above.push(real);
            self.list(&path);
            self.above.pop();
        } else {
            let fate = Fate::Left(format!("more than {MAX_DEPTH} folders deep"));
            self.listing.odd.push(OtherFile { path: format!("{path}/"), len: 0, fate });
        }
        if depth == 1 {
            self.listing.folders.push(path);
        }
    }
}

/// Whether a file of this name is read, whatever it is.
fn is_read(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(INDEX_END)
}

fn leads_out(path: &str, real: &Path) -> Finding {
    let message = format!(
        "`{}` is a link that leads out of the model's folder, to {}",
        path.escape_debug(),
        real.display()
    );
    let folder = real.parent().unwrap_or(real).display();
    Finding::error(code::LINK, message).help(format!(
        "Put the file itself there. If files of the model are kept in a shared place, allow links to it with \
         `--follow-links {folder}`."
    ))
}

fn hidden() -> Fate {
    Fate::Left("hidden".to_owned())
}

fn not_utf8() -> Fate {
    Fate::Broken {
        what: "has a name that is not UTF-8".to_owned(),
        help: "Rename it, or move it away; with `copy: false` nothing is carried over.".to_owned(),
    }
}

fn unreadable(error: std::io::Error) -> Fate {
    let (what, help) = if error.kind() == std::io::ErrorKind::NotFound {
        let help = "The download is not complete; run `hf download` again. Files that are not needed can be removed.";
        ("is a link to a file that does not exist".to_owned(), help)
    } else {
        let error = regular::told(error);
        (format!("cannot be looked at: {error}"), "Move it away, or change its permissions.")
    };
    Fate::Broken { what, help: help.to_owned() }
}

/// A file name as text. Bytes that are not valid text are escaped.
fn escaped(name: &std::ffi::OsStr) -> String {
    let chunks = name.as_encoded_bytes().utf8_chunks();
    chunks.fold(String::new(), |mut out, chunk| {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        out
    })
}

/// The first words of a Git LFS pointer, the text that replaces a file whose contents git-lfs has not fetched.
const POINTER: &[u8] = b"version https://git-lfs";

/// The longest pointer.
const MAX_POINTER: u64 = 1024;

/// Whether a file is a Git LFS pointer. False for a file that cannot be read, which is reported when it is read.
pub(super) fn is_pointer(root: &Root, file: &OtherFile) -> bool {
    use std::io::Read;
    if file.len < POINTER.len() as u64 || file.len > MAX_POINTER {
        return false;
    }
    let mut start = [0; POINTER.len()];
    let read = root.open(&file.path).and_then(|(mut file, _)| file.read_exact(&mut start));
    read.is_ok() && start == POINTER
}
