//! Paths: their links, and what is below them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

use super::identity::FileIdentity;

/// Whether a word is an address (`hf://org/name`), and so no path that is relative to a folder.
#[must_use]
pub(crate) fn is_address(word: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '+')
    };
    word.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// Whether a word stands for a place in an object store.
#[must_use]
pub(crate) fn is_store(word: &str) -> bool {
    ["s3://", "gs://"].iter().any(|scheme| word.starts_with(scheme))
}

/// A path without links. It must exist.
///
/// # Errors
/// If it does not, or the system does not say.
pub(crate) fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
}

/// A path with its links resolved, as far as it exists; the rest need not.
#[must_use]
pub(crate) fn canonical(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|existing| {
        let rest = path.strip_prefix(existing).ok()?;
        let found = existing.canonicalize().ok()?;
        // Joining nothing would leave a slash at the end.
        Some(if rest.as_os_str().is_empty() { found } else { found.join(rest) })
    });
    found.unwrap_or_else(|| path.to_owned())
}

/// Whether a folder is at a path, or a link to one.
#[must_use]
pub(crate) fn is_folder(path: &Path) -> bool {
    path.is_dir()
}

/// A path, and what it leads to link by link: any of the links may be switched, and the file at their end edited.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command uses it"))]
#[must_use]
pub(crate) fn links(path: &Path) -> Vec<PathBuf> {
    let mut out = vec![path.to_owned()];
    // The system follows no more than forty.
    while out.len() <= 40
        && let Some(last) = out.last()
        && let Ok(target) = fs::read_link(last)
    {
        let next = last.parent().unwrap_or(Path::new("")).join(target);
        out.push(next);
    }
    // A folder on the way may be a link as well.
    out.extend(path.canonicalize());
    out
}

/// Names in a folder, of a huge one only `most`. Empty if it cannot be listed.
#[must_use]
pub(crate) fn names_in(folder: &Path, most: usize) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(most).flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Adds the files at and below a path, links followed, at most `depth` folders deep. Hidden ones and those of `except`
/// are left out below it.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command uses it"))]
pub(crate) fn files_below(
    path: &Path,
    depth: usize,
    except: &[PathBuf],
    files: &mut BTreeMap<PathBuf, FileIdentity>,
) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.is_file() {
        files.insert(path.to_owned(), FileIdentity::of(&metadata));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !is_hidden
            && let Some(depth) = depth.checked_sub(1)
            && !except.contains(&path)
        {
            files_below(&path, depth, except, files);
        }
    }
}

/// Puts a folder and those below it, but for hidden ones and some others, into a list, to a depth. Nothing if it is no folder.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command uses it"))]
pub(crate) fn folders_below(path: &Path, depth: usize, except: &[PathBuf], folders: &mut Vec<PathBuf>) {
    if !is_folder(path) {
        return;
    }
    folders.push(path.to_owned());
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !is_hidden && !except.contains(&path) {
            folders_below(&path, depth, except, folders);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        for address in ["hf://org/name@main", "s3://bucket/x", "hf://"] {
            assert!(is_address(address), "{address}");
        }
        for path in ["models/hf://x", "://x", "/hf://x", "C:\\x", "hf:/x", "../x", "", "A://x"] {
            assert!(!is_address(path), "{path}");
        }
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        assert_eq!(canonical(folder.path()), real);
        assert_eq!(canonical(&folder.path().join("a/b")), real.join("a/b"));
    }
}
