//! The listing of a folder's files. Links are followed to places where the files of a model may lie: the Hub's cache
//! consists of links.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::format::source::{Entry, Kind};
use crate::fs::regular::{self, Within};

/// Folders below the model's are searched down to this depth.
const MAX_DEPTH: usize = 100;

/// Files of a model's folder: links to folders can make any number out of few.
const MAX_FILES: usize = 100_000;

/// Lists a folder at any depth, with hidden folders left out.
pub(super) fn list(root: &Path, within: &Within) -> Vec<Entry> {
    let above = root.canonicalize().into_iter().collect();
    let mut lister = Lister { root, within, above, files: 0, entries: Vec::new() };
    lister.list("");
    lister.entries
}

struct Lister<'a> {
    root: &'a Path,
    within: &'a Within,
    /// The folder that is listed and those above it, without links.
    above: Vec<PathBuf>,
    /// Entries that are not folders.
    files: usize,
    entries: Vec<Entry>,
}

impl Lister<'_> {
    fn put(&mut self, path: String, kind: Kind) {
        self.files += usize::from(!matches!(kind, Kind::Folder | Kind::Closed(_) | Kind::TooMany(_)));
        self.entries.push(Entry { path, kind });
    }

    fn list(&mut self, below: &str) {
        let entries = match fs::read_dir(self.root.join(below)) {
            Ok(entries) => entries,
            Err(error) => return self.put(below.to_owned(), Kind::Closed(error)),
        };
        for entry in entries {
            match entry {
                Ok(entry) if self.files < MAX_FILES => self.enter(below, &entry),
                Ok(_) => {
                    if !matches!(self.entries.last(), Some(Entry { kind: Kind::TooMany(_), .. })) {
                        self.put(String::new(), Kind::TooMany(MAX_FILES));
                    }
                    return;
                }
                Err(error) => return self.put(below.to_owned(), Kind::Closed(error)),
            }
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
            let kind = if is_hidden { Kind::Skipped("hidden".to_owned()) } else { Kind::NotUtf8 };
            return self.put(path, kind);
        };
        let path = within(name);
        if !kind.is_ok_and(|kind| kind.is_symlink()) {
            let real = self.above.last().map_or_else(|| entry.path(), |above| above.join(name));
            return match entry.metadata() {
                Ok(metadata) => self.take(path, &metadata, real),
                Err(error) => self.put(path, Kind::Unreadable(regular::told(error))),
            };
        }
        let found = entry.path().canonicalize().and_then(|real| Ok((fs::metadata(&real)?, real)));
        match found {
            Ok((_, real)) if !self.within.holds(&real) => self.put(path, Kind::LeadsOut(real)),
            // It would be listed in itself, for ever.
            Ok((_, real)) if self.above.iter().any(|above| above.starts_with(&real)) => {
                self.put(path, Kind::Skipped("a link to a folder that it is in".to_owned()));
            }
            Ok((metadata, real)) => self.take(path, &metadata, real),
            Err(error) => self.put(path, Kind::Unreadable(regular::told(error))),
        }
    }

    /// Records a file or a folder. `real` is its path without links.
    fn take(&mut self, path: String, metadata: &fs::Metadata, real: PathBuf) {
        if metadata.is_file() {
            return self.put(path, Kind::Blob(metadata.len()));
        }
        if !metadata.is_dir() {
            return self.put(path, Kind::Special(regular::what_is(metadata.file_type())));
        }
        if self.above.len() > MAX_DEPTH {
            let reason = format!("more than {MAX_DEPTH} folders deep");
            return self.put(format!("{path}/"), Kind::Skipped(reason));
        }
        self.put(path.clone(), Kind::Folder);
        self.above.push(real);
        self.list(&path);
        self.above.pop();
    }
}

/// A file name as text. Bytes that are not valid text are escaped.
fn escaped(name: &OsStr) -> String {
    let chunks = name.as_encoded_bytes().utf8_chunks();
    chunks.fold(String::new(), |mut out, chunk| {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        out
    })
}
