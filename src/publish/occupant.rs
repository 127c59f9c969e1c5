//! The occupant of an output's place: nothing, an output of ours, or something that must stay.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::disk;
use crate::fs::exclusive::{self, Entry, Folder, Kind};
use crate::fs::regular::{self, limit};
use crate::model::json::Values;
use crate::publish::files::cannot_write;
use crate::report::{self, Ours, OutputRecord};
use crate::stage::export::Overwrite;

/// Names that are told; more are counted.
const TOLD: usize = 5;

/// An occupant that may be replaced, as it was when checked.
#[derive(Debug)]
pub enum Occupant {
    /// Nothing.
    Nothing,
    /// A folder that is empty, or an output of monoquant with everything in it.
    Folder(Folder, Vec<Entry>),
}

impl Occupant {
    /// Whether the folder that was looked at is at a path, and still holds the same files, none of them changed.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        match self {
            Self::Nothing => false,
            Self::Folder(folder, tree) => folder.is_at(path) && folder.tree().is_ok_and(|now| now == *tree),
        }
    }

    /// Whether what is at a path by now may be replaced, after this was looked at: it is still there as it was, or has gone.
    #[must_use]
    pub fn allows(&self, now: &Self, path: &Path) -> bool {
        match now {
            Self::Nothing => true,
            // An empty folder belongs to no output.
            Self::Folder(_, tree) => tree.is_empty() || self.is_at(path),
        }
    }
}

/// Checks whether an output may be published at a path.
///
/// # Errors
/// If something is there that must not be replaced.
pub fn check(path: &Path, overwrite: Overwrite) -> Result<Occupant, Failure> {
    let refuse = |message: String, help: &str| {
        Err(Failure::new(Exit::CannotWrite, Finding::error("export::occupied", message).help(help)))
    };
    let shown = path.display();
    let failed = |error: io::Error| cannot_write("look at", path, &error);
    match exclusive::kind(path) {
        Ok(Kind::Nothing) => return Ok(Occupant::Nothing),
        Ok(Kind::Folder) => {}
        Ok(Kind::Link) => {
            return refuse(
                format!("{shown} is a symbolic link"),
                "A link is neither followed nor replaced. Name the folder that it leads to, or choose another `path`.",
            );
        }
        Ok(_) => {
            return refuse(
                format!("{shown} exists and was not written by monoquant"),
                "Only an output of monoquant is ever replaced. Choose another `path`, or move that away.",
            );
        }
        // One of the parents is a file. Creating the folders of the path reports that.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Occupant::Nothing),
        Err(error) => return Err(failed(error)),
    }
    if disk::is_mount_point(path) {
        let message = format!("{shown} is a mount point, and a finished output cannot be moved over one");
        let help = format!("Choose a folder below it, such as {}.", path.join("model").display());
        let finding = Finding::error("export::mount-point", message).help(help);
        return Err(Failure::new(Exit::BadRecipe, finding));
    }
    let folder = Folder::open(path).map_err(failed)?;
    let tree = folder.tree().map_err(failed)?;
    if tree.is_empty() {
        return Ok(Occupant::Folder(folder, tree));
    }
    let report = match report_in(&folder) {
        Ok(report) => report,
        Err(why) => {
            return refuse(
                format!("{shown} exists and {why}"),
                "Only an output of monoquant that is as it was published is ever replaced. Choose another `path`, or move that away.",
            );
        }
    };
    if overwrite == Overwrite::Refuse {
        return refuse(
            format!("{shown} exists"),
            "The recipe says `overwrite: refuse`. Use `overwrite: replace`, or choose another `path`.",
        );
    }
    let strangers = strangers(&folder, &tree, &report);
    if !strangers.is_empty() {
        return refuse(
            format!("{shown} holds files that monoquant did not write: {}", listed(&strangers)),
            "Replacing the output would remove them. Move them away, or choose another `path`.",
        );
    }
    if let Some(name) = folder.unremovable(&tree) {
        let name = if name.as_os_str().is_empty() { path.to_owned() } else { path.join(name) };
        return refuse(
            format!("{shown} cannot be replaced: nothing can be removed from {}", name.display()),
            "Change its permissions, or choose another `path`.",
        );
    }
    Ok(Occupant::Folder(folder, tree))
}

/// The report of an output; otherwise what makes the folder foreign, to follow "exists and".
fn report_in(folder: &Folder) -> Result<Ours, String> {
    let file =
        open(folder, Path::new(report::FILE_NAME), limit::REPORT).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "was not written by monoquant".to_owned(),
            _ => format!("was not written by monoquant: its {} cannot be read: {error}", report::FILE_NAME),
        })?;
    let report = report::ours(file).map_err(|why| format!("its {} {why}", report::FILE_NAME))?;
    if report.outputs.iter().all(|output| output.files.is_empty()) {
        return Err(format!("its {} lists no weight files", report::FILE_NAME));
    }
    Ok(report)
}

/// Reads a report that is kept beside an output.
///
/// # Errors
/// What is wrong with it, to follow its path: then it is not replaced.
pub fn read_report(path: &Path) -> Result<Ours, String> {
    let file = exclusive::open_existing(path).and_then(|file| bounded(file, limit::REPORT));
    let failed = |error: io::Error| format!("was not written by monoquant, or cannot be read: {error}");
    report::ours(file.map_err(failed)?)
}

fn open(folder: &Folder, name: &Path, limit: u64) -> io::Result<File> {
    bounded(folder.open_file(name, false)?, limit)
}

fn bounded(file: File, limit: u64) -> io::Result<File> {
    regular::check_length(file.metadata()?.len(), limit)?;
    Ok(file)
}

/// Names in an output of monoquant that its report does not know, at any depth.
fn strangers(folder: &Folder, tree: &[Entry], report: &Ours) -> Vec<String> {
    // A report lists every output of its run: the folder is the one that explains most of it.
    let of = |output: &OutputRecord| {
        let names = output.files.iter().map(|file| file.name.as_str());
        let made = output.others.iter().map(|file| file.name.as_str()).chain(output.sums.as_deref());
        let copied = output.copied.iter().map(String::as_str).chain(made);
        let fixed = [report::FILE_NAME, crate::plan::layout::RECIPE_FILE_NAME, "config.json"];
        let files: HashSet<&Path> = names.chain(copied).chain(fixed).map(Path::new).collect();
        let folders: HashSet<&Path> = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
        let is_known = |entry: &&Entry| {
            let name = entry.name.as_path();
            entry.is_folder() && folders.contains(name)
                || entry.is_file() && (files.contains(name) || is_index(folder, name, output))
        };
        let unknown = tree.iter().filter(|entry| !is_known(entry));
        unknown.map(|entry| entry.name.display().to_string()).collect::<Vec<_>>()
    };
    report.outputs.iter().map(of).min_by_key(Vec::len).unwrap_or_default()
}

/// Whether a file is the index of an output's weight files.
fn is_index(folder: &Folder, name: &Path, output: &OutputRecord) -> bool {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Values,
    }
    let is_named_so = name
        .to_str()
        .is_some_and(|name| name.ends_with(".safetensors.index.json") && !name.contains(['/', '\\']));
    is_named_so
        && open(folder, name, limit::INDEX).is_ok_and(|file| {
            match serde_json::from_reader(BufReader::new(file)) {
                Ok(Index { weight_map }) => {
                    weight_map.0.iter().all(|file| output.files.iter().any(|known| known.name == *file))
                }
                // Cut off or overwritten with zeros, as a power cut leaves it.
                Err(_) => name == Path::new("model.safetensors.index.json"),
            }
        })
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(TOLD)].join(", ");
    match names.len().saturating_sub(TOLD) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_looked_at_is_known_again_and_any_change_of_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let look = || {
            let folder = Folder::open(&path).unwrap();
            let tree = folder.tree().unwrap();
            Occupant::Folder(folder, tree)
        };
        fs::create_dir_all(path.join("deep/deeper")).unwrap();
        fs::write(path.join("deep/deeper/file"), "text").unwrap();
        let first = look();
        // A second name, such as reused files get, changes nothing.
        fs::hard_link(path.join("deep/deeper/file"), root.path().join("linked")).unwrap();
        fs::read(path.join("deep/deeper/file")).unwrap();
        assert!(first.is_at(&path) && first.allows(&look(), &path));
        assert!(first.allows(&Occupant::Nothing, &path) && !Occupant::Nothing.allows(&look(), &path));

        let modified = fs::metadata(path.join("deep/deeper/file")).unwrap().modified().unwrap();
        let same_length = || fs::write(path.join("deep/deeper/file"), "TEXT").unwrap();
        let same_time = || {
            fs::write(path.join("deep/deeper/file"), "longer text").unwrap();
            let file = File::options().write(true).open(path.join("deep/deeper/file")).unwrap();
            file.set_modified(modified).unwrap();
        };
        let added = || fs::create_dir(path.join("deep/deeper/empty")).unwrap();
        let moved = || {
            fs::rename(&path, root.path().join("moved")).unwrap();
            fs::create_dir(&path).unwrap();
            fs::rename(root.path().join("moved/deep"), path.join("deep")).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 4] =
            [("length", &same_time), ("time", &same_length), ("added", &added), ("moved", &moved)];
        for (what, change) in changes {
            let before = look();
            // Some file systems count times in steps of some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert!(!before.is_at(&path) && !before.allows(&look(), &path), "{what}");
        }
        let before = look();
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(before.allows(&look(), &path) && Occupant::Nothing.allows(&look(), &path), "an empty folder");
    }

    #[test]
    fn what_is_no_output_of_ours_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let code = |overwrite| check(&path, overwrite).unwrap_err().findings[0].code;
        assert!(matches!(check(&path, Overwrite::Refuse), Ok(Occupant::Nothing)));
        fs::write(&path, "a file").unwrap();
        assert_eq!(code(Overwrite::Replace), "export::occupied");
        assert!(matches!(check(&path.join("below"), Overwrite::Refuse), Ok(Occupant::Nothing)));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(root.path(), &path).unwrap();
        assert_eq!(code(Overwrite::Replace), "export::occupied");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(check(&path, Overwrite::Refuse), Ok(Occupant::Folder(..))));
        for text in ["", "{}", "null", r#"{"report_version": 2}"#, r#"{"report_version": 99}"#] {
            fs::write(path.join(report::FILE_NAME), text).unwrap();
            assert_eq!(code(Overwrite::Replace), "export::occupied", "{text}");
        }
    }
}
