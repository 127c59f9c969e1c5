//! The hidden names beside an output, and the check that they hold no foreign files.

use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::disk;
use crate::fs::exclusive::{self, Kind};
use crate::publish::files::cannot_write;

/// The mark in the names of hidden files beside an output.
const MARK: &str = ".monoquant-";

/// The bytes that the longest sibling's name has more than its output's.
const LONGEST: usize = ".".len() + MARK.len() + "interrupted".len();

/// A name beside an output.
fn beside(target: &Path, what: &str) -> PathBuf {
    target.with_file_name(format!(".{}{MARK}{what}", base(target)))
}

/// The base of the names of hidden files: the output's name. If that would make them too long, it is cut and gets a
/// hash, so that it stays unique.
fn base(target: &Path) -> String {
    let name = name(target);
    let most = disk::longest_name(target).saturating_sub(LONGEST);
    if name.len() <= most {
        return name;
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let hash = &hash[..16.min(most)];
    let mut end = most.saturating_sub(hash.len() + 1).min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{hash}", &name[..end])
}

fn name(target: &Path) -> String {
    target.file_name().map_or_else(|| "output".into(), |name| name.to_string_lossy().into_owned())
}

/// The folder in which an output is built.
#[must_use]
pub fn staging(target: &Path) -> PathBuf {
    beside(target, "staging")
}

/// The record of what a run has finished so far.
#[must_use]
pub fn journal(target: &Path) -> PathBuf {
    beside(target, "journal")
}

/// The record of what a published output holds.
#[must_use]
pub fn record(target: &Path) -> PathBuf {
    beside(target, "record")
}

/// A file that is being written, until it is moved to its place.
#[must_use]
pub fn new(target: &Path) -> PathBuf {
    beside(target, "new")
}

/// The file of activation statistics that a run has measured.
#[must_use]
pub fn statistics(target: &Path) -> PathBuf {
    beside(target, "statistics")
}

/// The file of what a run has found when it compared the output with the original.
#[must_use]
pub fn evaluation(target: &Path) -> PathBuf {
    beside(target, "evaluation")
}

/// The folder of codes that rounding with calibration has chosen, one file per layer.
#[must_use]
pub fn rounding(target: &Path) -> PathBuf {
    beside(target, "rounding")
}

/// A file of activations, of one of the models that run, while they have no room in memory.
#[must_use]
pub fn activations(target: &Path, model: usize) -> PathBuf {
    beside(target, &format!("pass-{model}"))
}

/// The folder of files that parts of a run have made, on whatever machine, until they are joined.
#[must_use]
pub fn parts(target: &Path) -> PathBuf {
    beside(target, "parts")
}

/// The folder in which changes of a recipe are tried that are to mend a failed gate.
#[must_use]
pub fn trial(target: &Path) -> PathBuf {
    beside(target, "trial")
}

/// The path to which the staging folder of an interrupted run is moved if its layout differs.
#[must_use]
pub fn interrupted(target: &Path) -> PathBuf {
    beside(target, "interrupted")
}

/// The path to which the replaced output is moved for a moment, on file systems that cannot swap two folders.
#[must_use]
pub fn old(target: &Path) -> PathBuf {
    beside(target, "old")
}

/// The path for foreign files that were put into an output while it was replaced: one of several names.
#[must_use]
pub fn left(target: &Path, number: usize) -> PathBuf {
    beside(target, &format!("left-{number}"))
}

/// The file that says who works on an output.
#[must_use]
pub fn lock(target: &Path) -> PathBuf {
    beside(target, "lock")
}

/// Held for the moment in which the lock of a dead process is removed, on file systems without locks.
#[must_use]
pub fn lock_of_lock(target: &Path) -> PathBuf {
    beside(target, "unlock")
}

/// The path of the report of a run that published nothing.
#[must_use]
pub fn failed_report(target: &Path) -> PathBuf {
    target.with_file_name(format!("{}.failed-report.json", base(target)))
}

/// Checks whether an output can have this name, and whether the names of its hidden files are free or hold files that
/// monoquant makes there.
///
/// # Errors
/// If a link, a pipe or something else is in the place of a file or folder that would be used.
pub fn check(target: &Path) -> Result<(), Failure> {
    check_name(target)?;
    let folders = [
        (staging(target), "the output is built in a folder of this name"),
        (interrupted(target), "a folder of an interrupted run is moved there"),
        (old(target), "the output that is replaced is moved there"),
        (parts(target), "files that parts of a run have made are kept there"),
        (rounding(target), "codes that rounding has chosen are kept there"),
        (trial(target), "changes of a recipe are tried there"),
    ];
    let files = [
        (journal(target), "the journal of a run is written there"),
        (record(target), "the record of an output is written there"),
        (new(target), "files are written under this name until they are complete"),
        (statistics(target), "statistics that a run has measured are kept there"),
        (evaluation(target), "what a comparison with the original has found is kept there"),
        (activations(target, 0), "activations are kept there while a model runs"),
        (activations(target, 1), "activations are kept there while a model runs"),
        (lock(target), "the lock of an output is a file of this name"),
        (lock_of_lock(target), "the lock of an output is cleared with a file of this name"),
        (failed_report(target), "the report of a failed run is kept there"),
    ];
    let folders = folders.into_iter().map(|(path, what)| (path, what, Kind::Folder));
    let files = files.into_iter().map(|(path, what)| (path, what, Kind::File));
    for (path, what, expected) in folders.chain(files) {
        let found = match exclusive::kind(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Kind::Nothing,
            found => found.map_err(|error| cannot_write("look at", &path, &error))?,
        };
        if found != Kind::Nothing && found != expected {
            let message = format!("{} is {}, and monoquant did not make it", path.display(), found.words());
            let help = format!(
                "It is neither followed nor replaced; {what}. Move it away, or choose another `path`."
            );
            let finding = Finding::error("export::sibling", message).help(help);
            return Err(Failure::new(Exit::CannotWrite, finding));
        }
    }
    Ok(())
}

fn check_name(target: &Path) -> Result<(), Failure> {
    let name = name(target);
    let most = disk::longest_name(target);
    let refuse = |code, message: String, help: &str| {
        Err(Failure::new(Exit::BadRecipe, Finding::error(code, message).help(help)))
    };
    if name.len() > most {
        let message = format!("the output's name has {} bytes, and its disk allows {most}", name.len());
        return refuse("export::name-too-long", message, "Choose a shorter `path`.");
    }
    if name.starts_with('.') && name.contains(MARK) {
        let message = format!("`{name}` is a name that monoquant uses for what it keeps beside an output");
        return refuse("export::reserved-name", message, "Choose another `path`.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_of_any_name_fit_and_differ() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| staging(&folder.path().join(name)).file_name().unwrap().to_owned();
        assert_eq!(of("out.v1"), ".out.v1.monoquant-staging");
        let mut seen = std::collections::BTreeSet::new();
        for len in 225..=255 {
            for filling in ["a", "ä", "漢"] {
                let name = filling.repeat(len / filling.len()) + &"b".repeat(len % filling.len());
                let target = folder.path().join(&name);
                for path in [staging(&target), interrupted(&target), failed_report(&target)] {
                    assert!(path.file_name().unwrap().len() <= 255);
                    assert!(seen.insert(path));
                }
                check(&target).unwrap();
            }
        }
        for name in ["out", "öut", &"n".repeat(255), &"漢".repeat(85)] {
            let target = folder.path().join(name);
            let all = [
                staging(&target),
                journal(&target),
                record(&target),
                new(&target),
                interrupted(&target),
                old(&target),
                left(&target, 999),
                lock(&target),
                lock_of_lock(&target),
                statistics(&target),
                evaluation(&target),
                rounding(&target),
                parts(&target),
                trial(&target),
                activations(&target, 0),
                activations(&target, 1),
                failed_report(&target),
            ];
            let different: std::collections::BTreeSet<&PathBuf> = all.iter().collect();
            assert_eq!(different.len(), all.len(), "{name}");
            for path in all {
                // The disk is asked, too.
                std::fs::write(&path, "").unwrap();
                assert!(path.file_name().unwrap().len() <= 255 && path.parent() == target.parent());
                std::fs::remove_file(path).unwrap();
            }
        }
        assert!(check(&folder.path().join("a".repeat(256))).is_err());
        assert!(check(&folder.path().join(".out.monoquant-staging")).is_err());
    }
}
