//! Runs whose outputs go to object stores: each is made in a directory of this machine, as any output, and published from there.

use std::path::Path;

use super::conditions::hold;
use super::event::{Event, Listener};
use super::made::recipe_text;
use super::outcome::{Options, Outcome, Work};
use super::verify::identify;
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::fs::exclusive::{self, Folder};
use crate::plan::fingerprint::{self, Prints};
use crate::plan::layout::RECIPE_FILE_NAME;
use crate::plan::{Checks, ExportPlan, Plan};
use crate::publish::files::{cannot_write, open_to_read};
use crate::publish::hidden;
use crate::publish::lock::Lock;
use crate::publish::store::{Local, Store};
use crate::report;

/// An output that goes to a store.
struct Target<'p> {
    export: &'p ExportPlan,
    store: Store,
    /// Whether this run has claimed the place.
    is_claimed: bool,
}

/// Claims the places of outputs in stores, makes all outputs, and publishes those that passed. What is published already is not made
/// again.
///
/// # Errors
/// As those of `make`, and if a place is another plan's or its store cannot be reached.
pub(super) fn run(
    plan: &Plan,
    options: &Options,
    listener: &dyn Listener,
    make: &dyn Fn() -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    if plan.awaits_rounding() || plan.exports.iter().all(|export| export.store.is_none()) {
        return make();
    }
    let id = fingerprint::of_plan(plan, &Prints::of(plan), Checks::of(plan.recipe()));
    let mut targets = Vec::new();
    for export in &plan.exports {
        let Some(word) = &export.store else { continue };
        let store = Store::at(word, format!("{id}-{}", export.stage))?;
        let is_claimed = store.claim();
        let claimed = is_claimed.map(|is_claimed| targets.push(Target { export, store, is_claimed }));
        if let Err(failure) = claimed {
            withdraw(&targets);
            return Err(failure);
        }
    }
    if let Some(outcome) = published(plan, options, &targets)? {
        return Ok(outcome);
    }
    let mut outcome = match make() {
        Ok(outcome) => outcome,
        Err(failure) => {
            if !matches!(failure.exit, Exit::Interrupted | Exit::TryAgain) {
                withdraw(&targets);
            }
            return Err(failure);
        }
    };
    for target in &targets {
        let stage = target.export.stage;
        if !outcome.report.outputs.iter().any(|output| output.stage == stage && output.published) {
            withdraw(std::slice::from_ref(target));
            continue;
        }
        let path = &target.export.path;
        let lock = Lock::take(path)?;
        target.store.publish(&files(path, &options.cancel)?, &options.cancel)?;
        // The place in the store is the only one.
        exclusive::remove_folder(path).map_err(|error| cannot_write("remove", path, &error))?;
        let _ = exclusive::remove_file(&hidden::record(path));
        drop(lock);
        let told = plan.told_path(path);
        listener.on_event(&Event::Published { path: path.clone(), told });
        if !outcome.published.contains(path) {
            outcome.published.push(path.clone());
        }
        outcome.is_up_to_date = false;
    }
    Ok(outcome)
}

/// Gives back what this run has claimed. If that fails, the next run of the plan goes on there.
fn withdraw(targets: &[Target<'_>]) {
    for target in targets.iter().filter(|target| target.is_claimed) {
        let _ = target.store.withdraw();
    }
}

/// The outcome of a run whose outputs are all published, if they are.
///
/// # Errors
/// If one is published with another recipe, or a store cannot be reached.
fn published(plan: &Plan, options: &Options, targets: &[Target<'_>]) -> Result<Option<Outcome>, Failure> {
    let mut last = None;
    for target in targets {
        let Some(manifest) = target.store.published()? else { return Ok(None) };
        if !manifest.has(RECIPE_FILE_NAME, recipe_text(plan, target.export)?.as_bytes()) {
            return Err(target.store.has_others());
        }
        last = Some(target);
    }
    let Some(target) = last.filter(|_| !options.fresh && targets.len() == plan.exports.len()) else {
        return Ok(None);
    };
    let place = target.export.path.join(report::FILE_NAME);
    let mut report = report::parse(&place, &target.store.file(report::FILE_NAME)?)?;
    let held = hold(&options.conditions, &mut report)?;
    let exit = if held.findings.is_empty() { Exit::Done } else { Exit::GateFailed };
    Ok(Some(Outcome {
        report,
        baseline: held.comparison,
        report_paths: targets.iter().map(|target| target.export.path.join(report::FILE_NAME)).collect(),
        published: Vec::new(),
        findings: held.findings,
        exit,
        work: Work { taken_over: plan.model.tensors.len(), redone: 0 },
        is_up_to_date: exit == Exit::Done,
    }))
}

/// The files of a finished output, with their checksums.
fn files(folder: &Path, cancel: &Cancel) -> Result<Vec<Local>, Failure> {
    let tree = Folder::open(folder).and_then(|folder| folder.tree());
    let tree = tree.map_err(|error| cannot_write("read", folder, &error))?;
    let mut files = Vec::new();
    for entry in tree.iter().filter(|entry| entry.is_file()) {
        let parts = entry.name.components().map(|part| part.as_os_str().to_string_lossy());
        let name = parts.collect::<Vec<_>>().join("/");
        let path = folder.join(&entry.name);
        let read = identify(&name, open_to_read(&path)?, false, cancel);
        cancel.check()?;
        files.push(Local::new(folder, read.map_err(|error| cannot_write("read", &path, &error))?));
    }
    Ok(files)
}
