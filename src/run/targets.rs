//! The places in object stores at which the outputs of a plan are published.

use crate::finding::Failure;
use crate::ids::ExportId;
use crate::plan::fingerprint::{self, Prints};
use crate::plan::{Checks, Plan};
use crate::publish::store::Store;

/// An output that goes to a store.
pub(super) struct Target {
    pub export: ExportId,
    pub store: Store,
    /// Whether this run has claimed the place.
    is_claimed: bool,
}

/// The places of all outputs that go to stores. Nothing is asked for yet.
fn all(plan: &Plan) -> Result<Vec<Target>, Failure> {
    let mut all = None;
    let mut targets = Vec::new();
    for (id, export) in plan.exports.numbered() {
        let Some(word) = &export.store else { continue };
        // Codes are chosen after the place is claimed, by parts one after another.
        let of = all.get_or_insert_with(|| {
            fingerprint::of_plan(plan, &Prints::without_codes(plan), Checks::of(plan.recipe()))
        });
        // Files of an output that is uploaded as a whole say nothing of what is in them.
        let kind = if plan.uploads_as_made() { "" } else { "-whole" };
        let store = Store::at(word, format!("{of}-{}{kind}", export.stage))?;
        targets.push(Target { export: id, store, is_claimed: false });
    }
    Ok(targets)
}

/// Looks whether the places can be claimed and written, before a model runs.
///
/// # Errors
/// If not.
pub(super) fn try_to_write(plan: &Plan) -> Result<(), Failure> {
    all(plan)?.iter().try_for_each(|target| target.store.try_to_write(!plan.is_pending()))
}

/// Claims the places.
///
/// # Errors
/// If one is another plan's or cannot be written, or its store cannot be reached. Then none stays claimed by this call.
pub(super) fn claim(plan: &Plan) -> Result<Vec<Target>, Failure> {
    let mut targets = all(plan)?;
    for at in 0..targets.len() {
        match targets[at].store.claim() {
            Ok(is_claimed) => targets[at].is_claimed = is_claimed,
            Err(failure) => {
                targets[..at].iter().for_each(Target::withdraw);
                return Err(failure);
            }
        }
    }
    Ok(targets)
}

impl Target {
    /// Gives back what this run has claimed, if nothing is uploaded there. If that fails, the next run of the plan goes on there.
    pub(super) fn withdraw(&self) {
        if self.is_claimed {
            let _ = self.store.withdraw();
        }
    }
}

/// Whether everything is published.
///
/// # Errors
/// If a store cannot be reached.
pub(super) fn are_published(targets: &[Target]) -> Result<bool, Failure> {
    for target in targets {
        if target.store.published()?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
