//! Which files a folder holds.

use std::fs;
use std::path::Path;

use super::complaints::io;
use super::{Fate, OtherFile};
use crate::finding::Finding;
use crate::model::code;

/// How deep folders below the model's are searched for files to carry over.
const MAX_DEPTH: usize = 8;

/// What a folder holds.
#[derive(Default)]
pub(super) struct Listing {
    /// Files at any depth, hidden ones left out.
    pub(super) files: Vec<OtherFile>,
    /// Folders at the top.
    pub(super) folders: Vec<String>,
    /// Hidden files and folders, and what is no file to be read: left behind, or complained about.
    pub(super) odd: Vec<OtherFile>,
}

impl Listing {
    /// Whether there is a file of this path. The files must be ordered.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }
}

/// Lists a folder. Links to files are followed (the Hub's cache consists of them), links to folders are not.
pub(super) fn list(
    root: &Path,
    below: &str,
    depth: usize,
    listing: &mut Listing,
    findings: &mut Vec<Finding>,
) {
    let folder = root.join(below);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) => return findings.push(io(&folder, &e)),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => return findings.push(io(&folder, &e)),
        };
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        let name = entry.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        let within = |name: &str| if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let Some(name) = name.to_str().filter(|_| !is_hidden) else {
            let end = if is_folder { "/" } else { "" };
            let path = within(&format!("{}{end}", escaped(&name)));
            listing.odd.push(OtherFile { path, len: 0, fate: if is_hidden { hidden() } else { not_utf8() } });
            continue;
        };
        let path = within(name);
        if is_folder {
            if depth < MAX_DEPTH {
                list(root, &path, depth + 1, listing, findings);
            } else {
                let fate = Fate::Left(format!("more than {MAX_DEPTH} folders deep"));
                listing.odd.push(OtherFile { path: format!("{path}/"), len: 0, fate });
            }
            if depth == 0 {
                listing.folders.push(path);
            }
            continue;
        }
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_file() => {
                listing.files.push(OtherFile { path, len: metadata.len(), fate: Fate::Carried });
            }
            // A folder by a link is not followed: it may lead anywhere.
            Ok(metadata) => {
                let what =
                    if metadata.is_dir() { "a link to a folder" } else { "neither a file nor a folder" };
                listing.odd.push(OtherFile { path, len: 0, fate: Fate::Left(what.to_owned()) });
            }
            Err(_) if path.ends_with(".safetensors") => findings.push(
                Finding::error(code::NOT_FOUND, format!("`{path}` is a link to a file that does not exist"))
                    .help("The download is not complete; run `hf download` again."),
            ),
            Err(e) => listing.odd.push(OtherFile { path, len: 0, fate: unreadable(&e) }),
        }
    }
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

fn unreadable(error: &std::io::Error) -> Fate {
    let (what, help) = if error.kind() == std::io::ErrorKind::NotFound {
        let help =
            "The download is not complete; run `hf download` again. What is not needed can be removed.";
        ("is a link to a file that does not exist".to_owned(), help)
    } else {
        (format!("cannot be looked at: {error}"), "Move it away, or change its permissions.")
    };
    Fate::Broken { what, help: help.to_owned() }
}

/// A file name as text, bytes that are no text escaped.
fn escaped(name: &std::ffi::OsStr) -> String {
    let chunks = name.as_encoded_bytes().utf8_chunks();
    chunks.fold(String::new(), |mut out, chunk| {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        out
    })
}

/// How the text begins that stands for a file in a Git repository whose contents git-lfs has not fetched.
const POINTER: &[u8] = b"version https://git-lfs";

/// The longest pointer.
const MAX_POINTER: u64 = 1024;

/// Whether a file is a pointer of Git LFS. One that cannot be read is none; reading it tells.
pub(super) fn is_pointer(root: &Path, file: &OtherFile) -> bool {
    use std::io::Read;
    if file.len < POINTER.len() as u64 || file.len > MAX_POINTER {
        return false;
    }
    let mut start = [0; POINTER.len()];
    let read = fs::File::open(root.join(&file.path)).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == POINTER
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
