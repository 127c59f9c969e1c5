//! The files of a source, and the fates of what else it lists.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;

use super::complaints::broken_link;
use super::{Fate, OtherFile};
use crate::finding::Finding;
use crate::format::source::{Kind, Source, cannot_read};
use crate::model::code;

/// How the name of an index ends.
pub(super) const INDEX_END: &str = ".safetensors.index.json";

/// The files and folders of a source.
#[derive(Default)]
pub(super) struct Listing {
    /// Files at any depth, ordered by path, hidden ones left out.
    pub(super) files: Vec<OtherFile>,
    /// Folders at the top.
    pub(super) folders: Vec<String>,
    /// Hidden files and folders, and what is no file to be read: left behind, or complained about.
    pub(super) odd: Vec<OtherFile>,
    /// Files that were complained about already.
    pub(super) refused: HashSet<String>,
}

impl Listing {
    /// Lists a source, with complaints about what must be read and cannot be.
    pub(super) fn of(source: &dyn Source, findings: &mut Vec<Finding>) -> Self {
        let mut listing = Self::default();
        for entry in source.list() {
            findings.extend(listing.take(source, entry.path, entry.kind));
        }
        listing.files.sort_by(|a, b| a.path.cmp(&b.path));
        listing
    }

    /// Whether there is a file at this path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }

    fn take(&mut self, source: &dyn Source, path: String, kind: Kind) -> Option<Finding> {
        let fate = match kind {
            Kind::Blob(len) => {
                self.files.push(OtherFile { path, len, fate: Fate::Carried });
                return None;
            }
            Kind::Folder if !path.ends_with(INDEX_END) => {
                if !path.contains('/') {
                    self.folders.push(path);
                }
                return None;
            }
            Kind::Folder => return Some(self.refuse(not_a_file(&path, "a folder"), path)),
            Kind::Closed(error) => return Some(cannot_read(&source.place(&path), &error)),
            Kind::TooMany(most) => {
                let message =
                    format!("`{}` has more than {most} files, or links that make so many", source.name());
                let help = "Give the folder that the model itself is in.";
                return Some(Finding::error(code::NOT_A_MODEL, message).help(help));
            }
            Kind::LeadsOut(real) => return Some(self.refuse(leads_out(&path, &real), path)),
            Kind::Special(what) if is_read(&path) => {
                return Some(self.refuse(not_a_file(&path, what), path));
            }
            Kind::Unreadable(error) if is_read(&path) => {
                return Some(self.refuse(broken_link(source, &path, &error), path));
            }
            Kind::Special(what) => Fate::Broken {
                what: format!("is {what}, not a file"),
                help: "Put a file there, or remove it.".to_owned(),
            },
            Kind::Unreadable(error) => unreadable(&error),
            Kind::Skipped(reason) => Fate::Left(reason),
            Kind::NotUtf8 => not_utf8(),
        };
        self.odd.push(OtherFile { path, len: 0, fate });
        None
    }

    fn refuse(&mut self, finding: Finding, path: String) -> Finding {
        self.refused.insert(path);
        finding
    }
}

fn not_a_file(path: &str, what: &str) -> Finding {
    let finding = Finding::error(code::NOT_A_MODEL, format!("`{path}` is {what}, not a file"));
    finding.help("Put the file itself there.")
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

fn not_utf8() -> Fate {
    Fate::Broken {
        what: "has a name that is not UTF-8".to_owned(),
        help: "Rename it, or move it away; with `copy: false` nothing is carried over.".to_owned(),
    }
}

fn unreadable(error: &std::io::Error) -> Fate {
    let (what, help) = if error.kind() == ErrorKind::NotFound {
        let help = "The download is not complete; run `hf download` again. Files that are not needed can be removed.";
        ("is a link to a file that does not exist".to_owned(), help)
    } else {
        (format!("cannot be looked at: {error}"), "Move it away, or change its permissions.")
    };
    Fate::Broken { what, help: help.to_owned() }
}

/// The first words of a Git LFS pointer, the text that replaces a file whose contents git-lfs has not fetched.
const POINTER: &[u8] = b"version https://git-lfs";

/// The longest pointer.
const MAX_POINTER: u64 = 1024;

/// Whether a file is a Git LFS pointer. False for a file that cannot be read, which is reported when it is read.
pub(super) fn is_pointer(source: &dyn Source, file: &OtherFile) -> bool {
    if file.len < POINTER.len() as u64 || file.len > MAX_POINTER {
        return false;
    }
    let mut start = [0; POINTER.len()];
    let read = source.open(&file.path).and_then(|blob| blob.read_exact_at(0, &mut start));
    read.is_ok() && start == POINTER
}
