//! `SHA256SUMS`: the hashes of all files of an output, as `sha256sum -c` reads them.

use std::fmt::Write;
use std::io::{self, Read, Write as _};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::cancel::Cancel;
use crate::fs::exclusive::Folder;
use crate::fs::regular::Same;
use crate::plan::copies::SUMS_FILE_NAME;

/// The hashes of all files of a folder but of that file itself, and of others that are known, in the order of their names.
///
/// # Errors
/// If a file cannot be read, or the work is cancelled.
pub(super) fn text(
    folder: &Folder,
    known: impl IntoIterator<Item = (String, String)>,
    cancel: &Cancel,
) -> io::Result<String> {
    let tree = folder.tree()?;
    let mut names: Vec<&Path> =
        tree.iter().filter(|entry| entry.is_file()).map(|entry| entry.name.as_path()).collect();
    names.retain(|name| *name != Path::new(SUMS_FILE_NAME));
    names.sort_unstable();
    let hashes: Vec<String> =
        names.par_iter().map(|name| hash(folder, name, cancel)).collect::<io::Result<_>>()?;
    let in_folder = names.iter().zip(hashes).map(|(name, hash)| {
        let parts: Vec<_> = name.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        (parts.join("/"), hash)
    });
    let mut all: Vec<(String, String)> = in_folder.chain(known).collect();
    all.sort_by(|(one, _), (other, _)| Path::new(one).cmp(Path::new(other)));
    Ok(all.iter().map(|(name, hash)| line(hash, name)).collect())
}

/// Whether the hashes in a folder are those of its files.
pub(super) fn are_there(folder: &Folder, cancel: &Cancel) -> bool {
    let Ok(file) = folder.open_file(Path::new(SUMS_FILE_NAME), false) else { return false };
    let mut same = Same::new(file);
    text(folder, [], cancel).and_then(|text| same.write_all(text.as_bytes())).is_ok() && same.reached_end()
}

/// The line of a file.
pub(super) fn line(hash: &str, name: &str) -> String {
    format!("{hash}  {name}\n")
}

fn hash(folder: &Folder, name: &Path, cancel: &Cancel) -> io::Result<String> {
    hash_of(folder.open_file(name, false)?, cancel)
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read, or the work is cancelled.
pub(super) fn hash_of(mut file: impl Read, cancel: &Cancel) -> io::Result<String> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finalize().iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    }))
}
