//! What is looked at before any work: whether the outputs of a plan can be written.

use std::collections::BTreeMap;
use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::disk;
use crate::fs::exclusive::{self, Kind};
use crate::fs::limits;
use crate::ids::{ExportId, IdVec};
use crate::plan::{ExportPlan, Plan};
#[cfg(feature = "cloud")]
use crate::publish::store::Store;
use crate::publish::{files, hidden, occupant};
use crate::report::ledger;
use crate::text::units;

/// Looks whether the outputs of a plan can be written: nothing is in their places that must stay, and their disks have room.
///
/// # Errors
/// [`Exit::CannotWrite`] with the first output that cannot.
pub fn preflight(plan: &Plan) -> Result<(), Failure> {
    let looked_at = check_places(plan).and_then(|()| check_space(plan, false));
    looked_at.map_err(|failure| plan.loaded.tell_failure(failure))
}

/// As [`preflight`], before a model runs: what is only known by writing is tried as well.
///
/// # Errors
/// As [`preflight`], and if a place in an object store belongs to another plan or cannot be written.
pub(super) fn before_the_model_runs(plan: &Plan) -> Result<(), Failure> {
    preflight(plan)?;
    #[cfg(feature = "cloud")]
    super::targets::try_to_write(plan).map_err(|failure| plan.loaded.tell_failure(failure))?;
    Ok(())
}

/// Looks whether nothing is in the places of a plan's outputs that must stay.
pub(super) fn check_places(plan: &Plan) -> Result<(), Failure> {
    plan.exports.iter().try_for_each(|export| {
        let checked = hidden::check(&export.path)
            .and_then(|()| occupant::check(&export.path, export.overwrite).map(drop))
            .and_then(|()| check_failed_report(&export.path))
            .and_then(|()| check_lengths(plan, export))
            .and_then(|()| look_at_store(export));
        checked.map_err(|mut failure| {
            // A fault of the path itself is shown at the place where the path is written.
            if failure.exit == Exit::BadRecipe {
                let place = plan.loaded.place(&format!("/stages/{}/path", export.stage));
                failure.findings =
                    failure.findings.into_iter().map(|f| f.at_opt(place.clone(), "this path")).collect();
            }
            failure
        })
    })
}

/// Looks whether the disks have room for the outputs. Files that parts have made are there already.
pub(super) fn check_space(plan: &Plan, is_join: bool) -> Result<(), Failure> {
    let needed = plan.exports.numbered().map(|(id, export)| {
        // The remains of an interrupted run are cleared before anything is written.
        let there = disk::folder_bytes(&hidden::staging(&export.path));
        let parts = if is_join { disk::folder_bytes(&hidden::parts(&export.path)) } else { 0 };
        let needed = match is_join && plan.uploads_as_made() {
            true => export.other_bytes(&plan.model),
            false => plan.room_needed(id),
        };
        needed.saturating_sub(there + parts)
    });
    let mut needed: IdVec<ExportId, u64> = needed.collect();
    if let Some((export, needed)) = plan.exports.iter().zip(needed.iter_mut()).next() {
        *needed += kept_by_rounding(plan, export);
    }
    check_room(plan, &needed)
}

/// Bytes that rounding is still to keep beside the first output.
fn kept_by_rounding(plan: &Plan, export: &ExportPlan) -> u64 {
    let (true, Some(roundings), Some(runs)) = (plan.awaits_rounding(), &plan.roundings, &plan.runs) else {
        return 0;
    };
    let kept = roundings.disk_needed(runs, plan.budget.workers, plan.limits.memory);
    kept.saturating_sub(disk::folder_bytes(&hidden::rounding(&export.path)))
}

/// Looks whether the disks have so much room for each export.
pub(super) fn check_room(plan: &Plan, needed: &IdVec<ExportId, u64>) -> Result<(), Failure> {
    // Exports on one disk need their space together.
    let mut disks: BTreeMap<u64, (u64, &ExportPlan)> = BTreeMap::new();
    for (export, needed) in plan.exports.iter().zip(needed) {
        let disk = disks.entry(disk::disk_of(&export.path)).or_insert((0, export));
        disk.0 += needed;
    }
    for (needed, export) in disks.into_values() {
        if let Some(free) = disk::free_space(&export.path)
            && free < needed
        {
            let message = format!(
                "{} needs {} and the disk has {} free",
                ledger::written_path(plan, export.stage),
                units::bytes(needed),
                units::bytes(free)
            );
            let finding = Finding::error("export::no-space", message)
                .at_opt(plan.loaded.place(&format!("/stages/{}/path", export.stage)), "written here")
                .help(match export.store {
                    None => "An output is built beside the old one, which stays until the new one is complete.",
                    Some(_) => "What is uploaded is made on this machine first: `MONOQUANT_SCRATCH` names another place for it.",
                });
            return Err(Failure::new(Exit::CannotWrite, finding));
        }
    }
    Ok(())
}

/// Looks whether files as long as those of an export may be written, as far as lengths are known before the work.
fn check_lengths(plan: &Plan, export: &ExportPlan) -> Result<(), Failure> {
    let Some(limit) = limits::longest_file() else { return Ok(()) };
    let weights = export.files.iter().map(|file| (file.name.as_str(), file.bytes));
    let copies = export.copies.iter().map(|&copy| &plan.model.others[copy]);
    let config = export.config.as_ref().map(|config| ("config.json", config.len() as u64));
    let mut all = weights.chain(copies.map(|other| (other.path.as_str(), other.len))).chain(config);
    let Some((name, len)) = all.find(|(_, len)| *len > limit) else { return Ok(()) };
    let message = format!(
        "{name} is to have {} and no file of this process may be longer than {}",
        units::bytes(len),
        units::bytes(limit)
    );
    let finding = Finding::error(files::code::FILE_SIZE, message)
        .at_opt(plan.loaded.place(&format!("/stages/{}/path", export.stage)), "written here")
        .help(
            "Raise the limit (`ulimit -f`); weights can be cut into shorter files by `shards` of `export`.",
        );
    Err(Failure::new(Exit::CannotWrite, finding))
}

/// Looks whether the store of an output can be reached.
#[cfg(feature = "cloud")]
fn look_at_store(export: &ExportPlan) -> Result<(), Failure> {
    let Some(word) = &export.store else { return Ok(()) };
    Store::at(word, String::new())?.look()
}

/// The plan of a build without stores has none.
#[cfg(not(feature = "cloud"))]
fn look_at_store(_: &ExportPlan) -> Result<(), Failure> {
    Ok(())
}

/// The report of a failed run replaces the one of an earlier failed run, and nothing else.
fn check_failed_report(target: &Path) -> Result<(), Failure> {
    let path = hidden::failed_report(target);
    // Other kinds are told with the other siblings.
    if !exclusive::kind(&path).is_ok_and(|kind| kind == Kind::File) {
        return Ok(());
    }
    occupant::read_report(&path).map(drop).map_err(|why| {
        let message = format!("{} {why}", path.display());
        let finding = Finding::error("export::occupied", message).help(
            "The report of a failed run would be kept there. Move that file away, or choose another `path`.",
        );
        Failure::new(Exit::CannotWrite, finding)
    })
}
