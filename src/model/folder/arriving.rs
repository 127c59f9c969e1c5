//! Models that are still being copied: which weight files are not whole yet, and how much of them is there.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::files::{INDEX_END, Listing};
use super::names;
use super::weights::{read_index, stem};
use crate::format::source::{Blob, Source};
use crate::model::header::MAX_HEADER;

/// A model of which something is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arriving {
    /// Bytes of weight files that are there.
    pub bytes: u64,
    /// Bytes of the same files when they are whole, as far as their headers say.
    pub expected: u64,
    /// The files that are not whole, or not there at all, ordered by name.
    pub files: Vec<String>,
}

/// What is missing of a model by what its own files say. None if no file says that anything is.
#[must_use]
pub(crate) fn arriving(source: &dyn Source) -> Option<Arriving> {
    let listing = Listing::of(source, &mut Vec::new());
    let mut found = Arriving { bytes: 0, expected: 0, files: Vec::new() };
    let mut files: BTreeSet<String> = BTreeSet::new();
    let mut sets: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    for file in &listing.files {
        let Some(stem) = stem(&file.path) else { continue };
        if let Some(part) = names::part(stem) {
            sets.entry((part.stem, part.total)).or_default().insert(part.number);
        }
        let Ok(blob) = source.open(&file.path) else { continue };
        let promised = promised(&*blob);
        found.bytes += blob.bytes();
        found.expected += promised.unwrap_or(0).max(blob.bytes());
        if promised.is_none_or(|promised| promised > blob.bytes()) {
            files.insert(file.path.clone());
        }
    }
    for ((stem, total), there) in sets {
        // No model has so many files.
        if total <= 10_000 {
            let missing = (1..=total).filter(|number| !there.contains(number));
            files.extend(missing.map(|number| format!("{stem}-{number:05}-of-{total:05}.safetensors")));
        }
    }
    for index in listing.files.iter().filter(|file| file.path.ends_with(INDEX_END)) {
        let Ok(index) = read_index(source, index) else { continue };
        files.extend(index.files().into_iter().filter(|file| !listing.has(file)).map(str::to_owned));
    }
    found.files = files.into_iter().collect();
    (!found.files.is_empty()).then_some(found)
}

/// The length that a weight file has by its own header. None if that is not there yet; 0 if it is damaged.
fn promised(blob: &dyn Blob) -> Option<u64> {
    let mut length = [0; 8];
    blob.read_exact_at(0, &mut length).ok()?;
    let length = u64::from_le_bytes(length);
    // A file whose place on the disk was taken before anything was written begins with zeros.
    if length == 0 {
        return None;
    }
    if length > MAX_HEADER {
        return Some(0);
    }
    let mut text = vec![0; usize::try_from(length.min(blob.bytes())).ok()?];
    if length > blob.bytes().saturating_sub(8) {
        return None;
    }
    blob.read_exact_at(8, &mut text).ok()?;
    let tensors: BTreeMap<String, Extent> = serde_json::from_slice(&text).unwrap_or_default();
    let end = tensors.values().filter_map(|tensor| tensor.data_offsets.map(|(_, end)| end)).max();
    Some(end.map_or(0, |end| (8 + length).saturating_add(end)))
}

/// Where the data of a tensor lies; nothing of `__metadata__`.
#[derive(Deserialize)]
struct Extent {
    #[serde(default)]
    data_offsets: Option<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::format::source;

    fn weights() -> Vec<u8> {
        let header =
            br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[40],"data_offsets":[0,40]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([7; 40]);
        bytes
    }

    fn seen(folder: &Path) -> Option<Arriving> {
        arriving(&*source::open(&folder.display().to_string(), Path::new("."), &[]).unwrap())
    }

    #[test]
    fn what_is_cut_off_or_not_there_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        let whole = weights();
        fs::write(path(first), &whole).unwrap();
        assert_eq!(seen(folder.path()).unwrap().files, [second]);
        for length in [0, 5, 8, 30, whole.len() - 1] {
            fs::write(path(second), &whole[..length]).unwrap();
            let found = seen(folder.path()).unwrap();
            assert_eq!(found.files, [second], "{length}");
            assert_eq!(found.bytes, (whole.len() + length) as u64);
            let is_told = length > whole.len() - 41;
            assert_eq!(
                found.expected,
                if is_told { 2 * whole.len() as u64 } else { found.bytes },
                "{length}"
            );
        }
        fs::write(path(second), vec![0; whole.len()]).unwrap();
        assert_eq!(seen(folder.path()).unwrap().files, [second], "only the place was taken");
        fs::write(path(second), &whole).unwrap();
        assert_eq!(seen(folder.path()), None);
        let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "b.safetensors"}}"#;
        fs::write(path("model.safetensors.index.json"), index).unwrap();
        assert_eq!(seen(folder.path()).unwrap().files, ["b.safetensors"]);
    }

    #[test]
    fn what_is_damaged_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [[0xff; 64].to_vec(), [5_u64.to_le_bytes().to_vec(), vec![b'x'; 40]].concat()] {
            fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
            assert_eq!(seen(folder.path()), None);
        }
    }
}
