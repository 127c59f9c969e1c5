//! The layout of the Hub's cache: `models--ORG--NAME/snapshots/COMMIT` holds links to files in
//! `models--ORG--NAME/blobs`.
#![expect(clippy::disallowed_methods, reason = "it looks at the folders around a path that was given")]

use std::fs;
use std::path::{Path, PathBuf};

use super::code;
use crate::finding::Finding;
use crate::fs::regular::{self, limit};

/// Folders named in one finding.
const MAX_FOLDERS: usize = 5;

/// The blobs of the cache that a folder is (in) a snapshot of. `real` is its path without links.
pub(super) fn blobs(real: &Path) -> Option<PathBuf> {
    real.ancestors().find_map(|revision| {
        let snapshots = revision.parent().filter(|parent| parent.ends_with("snapshots"))?;
        let entry = snapshots.parent()?;
        let is_entry = entry.file_name()?.to_str()?.starts_with("models--");
        is_entry.then(|| entry.join("blobs"))
    })
}

/// The SHA-256 of a file of a snapshot, if the cache names its blob by it, as it does for large files.
pub(super) fn hash_of(path: &Path, blobs: &Path) -> Option<String> {
    let real = fs::canonicalize(path).ok()?;
    let name = real.file_name()?.to_str()?;
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hash && real.parent() == fs::canonicalize(blobs).ok().as_deref()).then(|| name.to_owned())
}

/// The finding for a folder of the Hub's cache that is no snapshot: the cache itself, a model's entry in it, or a part of that.
pub(super) fn no_snapshot(root: &Path) -> Option<Finding> {
    let real = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let name = file_name(&real);
    let is_entry = |folder: &Path| {
        folder.join("snapshots").is_dir() && (folder.join("refs").is_dir() || folder.join("blobs").is_dir())
            || file_name(folder).starts_with("models--") && folder.join("snapshots").is_dir()
    };
    if real.join("config.json").is_file() {
        return None;
    }
    if is_entry(&real) {
        return Some(entry(root, &real));
    }
    if matches!(name.as_str(), "snapshots" | "blobs" | "refs")
        && let Some(parent) = real.parent().filter(|parent| is_entry(parent))
    {
        return Some(entry(root, parent));
    }
    let mut models: Vec<PathBuf> = folders(&real).into_iter().filter(|folder| is_entry(folder)).collect();
    models.sort();
    if models.is_empty() {
        return None;
    }
    let ways: Vec<String> = models.iter().take(MAX_FOLDERS).map(|model| way(model)).collect();
    let more = models.len().saturating_sub(MAX_FOLDERS);
    let more = if more > 0 { format!(", or one of {more} more") } else { String::new() };
    let finding =
        Finding::error(code::NOT_A_MODEL, format!("`{}` is the Hub's cache, not a model", root.display()));
    Some(finding.help(format!("Give {}{more}.", ways.join(", or "))))
}

fn entry(root: &Path, entry: &Path) -> Finding {
    let message = format!("`{}` is an entry of the Hub's cache, not a model", root.display());
    Finding::error(code::NOT_A_MODEL, message).help(format!("Give {}.", way(entry)))
}

/// How to name the model of an entry: by its name, and by the folder of its snapshot.
fn way(entry: &Path) -> String {
    let mut snapshots: Vec<PathBuf> = folders(&entry.join("snapshots"));
    snapshots.sort();
    let commit = regular::read_text(&entry.join("refs/main"), limit::WORD).ok();
    let main = commit.map(|commit| entry.join("snapshots").join(commit.trim())).filter(|path| path.is_dir());
    if let Some(main) = main {
        snapshots = vec![main];
    }
    let snapshots: Vec<String> =
        snapshots.iter().take(MAX_FOLDERS).map(|snapshot| format!("`{}`", snapshot.display())).collect();
    let name = file_name(entry);
    let name = name.strip_prefix("models--").map(|name| format!("`hf://{}`", name.replacen("--", "/", 1)));
    let ways: Vec<String> = name.into_iter().chain(snapshots).collect();
    ways.join(" or ")
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
