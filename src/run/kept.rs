//! Results that a run keeps beside an output for the next one: one file each, with what decides it and a hash of itself.

use std::io::{Read, Write};
use std::path::Path;

use crate::finding::Failure;
use crate::fs::exclusive;
use crate::publish::{files, hidden};

/// Digits of a hash in hexadecimal.
const DIGITS: usize = 64;

/// Longer files are not read.
const LARGEST: u64 = 4 << 30;

/// What is kept in a file, if it is of this key and whole.
pub(super) fn read(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    exclusive::open_existing(path).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
    let (head, kept) = bytes.split_at_checked(2 * DIGITS)?;
    let (of, hash) = head.split_at(DIGITS);
    let is_whole = of == key.as_bytes() && hash == blake3::hash(kept).to_hex().as_bytes();
    is_whole.then(|| kept.to_vec())
}

/// Keeps something in a file beside an output, whose lock must be held.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(target: &Path, path: &Path, key: &str, bytes: &[u8]) -> Result<(), Failure> {
    files::replace(path, &hidden::new(target), |file| {
        file.write_all(key.as_bytes())?;
        file.write_all(blake3::hash(bytes).to_hex().as_bytes())?;
        file.write_all(bytes)
    })?;
    Ok(())
}

/// The key of some facts, each apart from the others.
pub(super) fn key(facts: impl IntoIterator<Item = String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for fact in facts {
        hasher.update(&(fact.len() as u64).to_le_bytes());
        hasher.update(fact.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
