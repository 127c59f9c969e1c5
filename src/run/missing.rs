//! What parts have not made yet.

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::ids::{IdVec, TensorId};
use crate::plan::Plan;
use crate::plan::parts::units;
use crate::run::incremental::reuse::Reuse;
use crate::run::stream::tiles::Cut;
use crate::text::units::counted;

/// Files that are named when some are missing.
const NAMED: usize = 8;

/// Looks whether parts have made everything that a plan wants.
///
/// # Errors
/// [`Exit::TryAgain`] with the first files that are missing.
pub(super) fn check_all_there(plan: &Plan, reuse: &Reuse<'_>) -> Result<(), Failure> {
    let left = reuse.tasks_left(plan);
    let mut is_left = plan.model.tensors.map(|_| false);
    for &task in left.iter().filter(|&&task| Cut::of(plan, task).total > 0) {
        is_left[plan.tasks[task].tensor()] = true;
    }
    check_left(plan, &is_left)
}

/// Looks whether parts have left nothing of these tensors to do.
///
/// # Errors
/// As [`check_all_there`].
pub(super) fn check_left(plan: &Plan, is_left: &IdVec<TensorId, bool>) -> Result<(), Failure> {
    let units = units(plan);
    let missing = units.iter().filter(|unit| unit.tensors.iter().any(|&tensor| is_left[tensor]));
    let missing: Vec<&str> = missing
        .flat_map(|unit| &unit.files)
        .map(|&(export, file)| plan.exports[export].files[file].name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all: usize = units.iter().map(|unit| unit.files.len()).sum();
    let more = missing.len().saturating_sub(NAMED);
    let mut names = missing[..missing.len().min(NAMED)].join(", ");
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    let message = format!("{} of {} are not there yet: {names}", missing.len(), counted(all, "file"));
    let finding = Finding::error("parts::missing", message).help(
        "Each is made by one of `monoquant run RECIPE --part I/N`, with the same recipe, model and version. Parts that have failed can be run \
         again, with any N; `--wait 6h` waits for them.",
    );
    Err(Failure::new(Exit::TryAgain, finding))
}
