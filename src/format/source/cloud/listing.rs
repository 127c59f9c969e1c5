//! Names of blobs as entries of a source, as the listing of a folder has them.

use std::collections::BTreeSet;

use crate::format::source::{Entry, Kind};

/// Blobs of a model, as many as the files of a folder may be.
pub(super) const MAX_BLOBS: usize = 100_000;

/// Whether a name can be a path below a folder on any machine. Names come from a server, and files that are carried over
/// keep theirs.
pub(super) fn is_path(name: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    name.split('/').all(is_part) && name.get(1..2).is_none_or(|second| second != ":")
}

/// Entries for blobs, by path and length, with the folders that they are in. Hidden folders are not entered.
pub(super) fn entries<'b>(blobs: impl Iterator<Item = (&'b str, u64)>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut folders = BTreeSet::new();
    for (number, (path, bytes)) in blobs.enumerate() {
        if number == MAX_BLOBS {
            entries.push(Entry { path: String::new(), kind: Kind::TooMany(MAX_BLOBS) });
            break;
        }
        if !is_path(path) {
            let kind = Kind::Skipped("its name cannot be a path below a folder".to_owned());
            entries.push(Entry { path: path.to_owned(), kind });
            continue;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let above = parts.len() - 1;
        let hidden = parts.iter().position(|part| part.starts_with('.'));
        for depth in 1..=hidden.unwrap_or(above).min(above) {
            folders.insert((parts[..depth].join("/"), false));
        }
        let kind = match hidden {
            Some(at) if at < above => {
                folders.insert((format!("{}/", parts[..=at].join("/")), true));
                continue;
            }
            Some(_) => Kind::Skipped("hidden".to_owned()),
            None => Kind::Blob(bytes),
        };
        entries.push(Entry { path: path.to_owned(), kind });
    }
    entries.extend(folders.into_iter().map(|(path, is_hidden)| Entry {
        path,
        kind: if is_hidden { Kind::Skipped("hidden".to_owned()) } else { Kind::Folder },
    }));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_not_read() {
        for name in ["../x", "a/../b", "/etc/x", "a//b", "", ".", "a\\b", "C:x", "a/"] {
            assert!(!is_path(name), "{name}");
            let listed = entries([(name, 1)].into_iter());
            assert!(matches!(listed[0].kind, Kind::Skipped(_)), "{name}");
        }
        assert!(is_path("a/b.c") && is_path("a..b") && is_path("..a"));
    }
}
