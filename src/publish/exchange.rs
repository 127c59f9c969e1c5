//! Publishing of a finished output: one step that never replaces anything that is not ours.

use std::io;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Folder, Kind};
use crate::fs::rename;
use crate::publish::files;
use crate::publish::files::cannot_write;
use crate::publish::hidden;
use crate::publish::occupant;
use crate::publish::occupant::Occupant;
use crate::publish::staging::Staging;
use crate::stage::export::Overwrite;

/// The number of names that are tried for foreign files that were put into an output while it was replaced.
const LEFT: usize = 999;

/// An output that is in its place.
#[derive(Debug)]
pub(crate) struct Published {
    /// Its place.
    pub path: PathBuf,
    /// The folder of foreign files that were put into the old output while it was replaced.
    pub left: Option<PathBuf>,
}

/// Moves a staged output to its place. What was there is replaced in the same step and removed afterwards. With `durable`
/// the move is on the disk afterwards, as what is moved must be before ([`Staging::sync`]).
///
/// # Errors
/// Where something foreign has appeared there, what was there `at_first` has changed, or the move fails; what was there is then
/// untouched.
pub(crate) fn publish(
    mut staging: Staging,
    overwrite: Overwrite,
    durable: bool,
    at_first: &Occupant,
) -> Result<Published, Failure> {
    let path = staging.target.clone();
    let found = look_again(&path, overwrite, at_first)?;
    let failed = |error: io::Error| cannot_write("publish", &path, &error);
    let aside = match &found {
        Occupant::Nothing => {
            rename::to_free(&staging.folder, &path).map_err(failed)?;
            if !staging.is_at(&path) {
                let _ = rename::to_free(&path, &staging.folder);
                return Err(swapped(&path));
            }
            None
        }
        Occupant::Folder(..) => Some(replace(&staging, &path, &found)?),
    };
    staging.published();
    if durable {
        files::sync_way(&path)?;
    }
    let left = match (found, aside) {
        (Occupant::Folder(old, tree), Some(aside)) if old.remove(&aside, &tree).is_err() => {
            // The new output is in place, and what is left of the old one is not ours to remove.
            let free = (1..=LEFT).map(|number| hidden::left(&path, number));
            let left = free.into_iter().find(|left| rename::to_free(&aside, left).is_ok());
            Some(left.unwrap_or(aside))
        }
        _ => None,
    };
    Ok(Published { path, left })
}

/// Checks the place of an output once more, before it is replaced.
///
/// # Errors
/// If the occupant must not be replaced, or is not as it was `at_first`.
pub(crate) fn look_again(
    path: &Path,
    overwrite: Overwrite,
    at_first: &Occupant,
) -> Result<Occupant, Failure> {
    let now = occupant::check(path, overwrite)?;
    if at_first.allows(&now, path) { Ok(now) } else { Err(swapped(path)) }
}

/// Puts a staged output in the place of the occupant that was checked. Returns the new path of that occupant.
fn replace(staging: &Staging, path: &Path, found: &Occupant) -> Result<PathBuf, Failure> {
    let failed = |error: io::Error| cannot_write("publish", path, &error);
    match rename::exchange(&staging.folder, path) {
        Ok(true) => {
            if staging.is_at(path) && found.is_at(&staging.folder) {
                return Ok(staging.folder.clone());
            }
            rename::exchange(&staging.folder, path).map_err(failed)?;
            return Err(swapped(path));
        }
        Ok(false) => {}
        Err(error) => return Err(failed(error)),
    }
    // Here the output is gone for a moment. `restore` puts it back, should this process end just then.
    let aside = hidden::old(path);
    rename::to_free(path, &aside).map_err(failed)?;
    let placed = if found.is_at(&aside) {
        rename::to_free(&staging.folder, path).map_err(failed)
    } else {
        Err(swapped(path))
    };
    let placed = placed.and_then(|()| {
        if staging.is_at(path) {
            return Ok(());
        }
        rename::to_free(path, &staging.folder).map_err(failed)?;
        Err(swapped(path))
    });
    if let Err(failure) = placed {
        rename::to_free(&aside, path).map_err(failed)?;
        return Err(failure);
    }
    Ok(aside)
}

/// The failure if the folder that was moved is not the one that was checked. It is back in its place.
fn swapped(path: &Path) -> Failure {
    let message = format!("{} was changed by somebody else during the run", path.display());
    let help =
        "It is as they left it, and nothing was published. Run the recipe again when nobody works in it.";
    Failure::new(Exit::CannotWrite, Finding::error("export::occupied", message).help(help))
}

/// Puts back the output that a run had moved aside when it was killed. Removes it if the new output had reached its
/// place. The lock must be held.
///
/// # Errors
/// If it cannot be moved or removed, or one of the two is not ours.
pub(crate) fn restore(target: &Path) -> Result<(), Failure> {
    let aside = hidden::old(target);
    let failed = |error: io::Error| cannot_write("restore", target, &error);
    if exclusive::kind(&aside).map_err(failed)? != Kind::Folder {
        return Ok(());
    }
    match exclusive::kind(target).map_err(failed)? {
        Kind::Nothing => rename::to_free(&aside, target).map_err(failed),
        Kind::Folder if is_empty(target) => rename::over(&aside, target).map_err(failed),
        _ => {
            // The old output is obsolete only if the new one reached its place.
            occupant::check(target, Overwrite::Replace)?;
            match occupant::check(&aside, Overwrite::Replace)? {
                Occupant::Folder(folder, tree) => {
                    folder.remove(&aside, &tree).map_err(|error| cannot_write("remove", &aside, &error))
                }
                Occupant::Nothing => Ok(()),
            }
        }
    }
}

fn is_empty(path: &Path) -> bool {
    Folder::open(path).and_then(|folder| folder.tree()).is_ok_and(|tree| tree.is_empty())
}
