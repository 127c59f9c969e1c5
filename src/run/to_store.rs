//! Runs whose outputs go to object stores. Weight files are uploaded as they are made, and become visible when the gates have passed.
//! If a stage reads the weights again, the output is made in a directory of this machine first, and published from there.

use std::path::Path;

use super::conditions::hold;
use super::event::{Event, Listener};
use super::made::recipe_text;
use super::outcome::{Options, Outcome, Work};
use super::parts;
use super::parts::uploads::Uploads;
use super::targets::{self, Target};
use super::verify::identify;
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::fs::exclusive::{self, Folder};
use crate::ids::{ExportId, IdVec};
use crate::plan::Plan;
use crate::plan::layout::RECIPE_FILE_NAME;
use crate::plan::parts::{Unit, units};
use crate::publish::files::{cannot_write, open_to_read};
use crate::publish::hidden;
use crate::publish::lock::Lock;
use crate::publish::store::{Group, Local};
use crate::report;
use crate::run::incremental::previous::Stores;

/// Makes outputs in directories of this machine, with what is uploaded of each if files are not made there.
pub(super) type Make<'a> =
    &'a dyn Fn(Option<IdVec<ExportId, Stores>>, &dyn Listener) -> Result<Outcome, Failure>;

/// Claims the places of outputs in stores, makes all outputs, and publishes those that passed. What is published already is not made
/// again.
///
/// # Errors
/// As those of `make`, and if a place is another plan's or its store cannot be reached.
pub(super) fn run(
    plan: &Plan,
    options: &Options,
    listener: &dyn Listener,
    make: Make<'_>,
) -> Result<Outcome, Failure> {
    if plan.awaits_rounding() || plan.exports.iter().all(|export| export.store.is_none()) {
        return make(None, listener);
    }
    let targets = targets::claim(plan)?;
    if let Some(outcome) = published(plan, options, &targets)? {
        return Ok(outcome);
    }
    let uploads = Uploads::new(plan, &targets, options, listener, "run");
    let done = match plan.uploads_as_made() {
        true => make_uploaded(&uploads, make),
        false => make(None, listener).map(|outcome| (outcome, targets.iter().map(|_| Vec::new()).collect())),
    };
    // What was uploaded stays for another try, but for what never passes. What parts have uploaded stays for another join.
    let give_back = |target: &Target, passes_never: bool| match passes_never && !options.join {
        true => drop(target.store.discard()),
        false => target.withdraw(),
    };
    let (mut outcome, groups) = match done {
        Ok(done) => done,
        Err(failure) => {
            if !matches!(failure.exit, Exit::Interrupted | Exit::TryAgain) {
                targets.iter().for_each(|target| give_back(target, failure.exit == Exit::BadModel));
            }
            return Err(failure);
        }
    };
    for (target, groups) in targets.iter().zip(groups) {
        let export = &plan.exports[target.export];
        let of = |output: &&report::OutputRecord| output.stage == export.stage && output.published;
        if !outcome.report.outputs.iter().any(|output| of(&output)) {
            if !options.keep_unpublished {
                give_back(target, true);
            }
            continue;
        }
        let path = &export.path;
        let lock = Lock::take(path)?;
        let files = files(path, &options.cancel)?;
        uploads.begin(files.iter().map(Local::bytes).sum());
        uploads.going(|going| target.store.publish(&files, groups, going))?;
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

/// Makes and uploads the weight files that are not uploaded yet, or takes those of parts; then all that is beside them is made, and
/// the gates are judged.
fn make_uploaded(uploads: &Uploads<'_>, make: Make<'_>) -> Result<(Outcome, Vec<Vec<Group>>), Failure> {
    let Uploads { plan, options, listener, .. } = *uploads;
    let mut work = None;
    if !options.join {
        // Two runs on one machine do not do the same work.
        let locks =
            plan.exports.iter().map(|export| Lock::take(&export.path)).collect::<Result<Vec<_>, _>>()?;
        let units = units(plan);
        uploads.sweep();
        work = Some(parts::in_stores(uploads, &units.iter().collect::<Vec<&Unit>>())?.work);
        drop(locks);
    }
    let groups = uploads.groups()?;
    // The work has been told.
    let rest = |event: &Event| match event {
        Event::Started { .. } | Event::Link(_) => {}
        event => listener.on_event(event),
    };
    let stores = Some(uploads.stores(&groups));
    let mut outcome = if options.join { make(stores, listener) } else { make(stores, &rest) }?;
    outcome.work = work.unwrap_or(outcome.work);
    Ok((outcome, groups))
}

/// The outcome of a run whose outputs are all published, if they are.
///
/// # Errors
/// If one is published with another recipe, or a store cannot be reached.
fn published(plan: &Plan, options: &Options, targets: &[Target]) -> Result<Option<Outcome>, Failure> {
    let path_of = |target: &Target| plan.exports[target.export].path.join(report::FILE_NAME);
    let mut last = None;
    for target in targets {
        let Some(manifest) = target.store.published()? else { return Ok(None) };
        let export = &plan.exports[target.export];
        if !manifest.has(RECIPE_FILE_NAME, recipe_text(plan, export)?.as_bytes()) {
            return Err(target.store.has_others());
        }
        last = Some(target);
    }
    let Some(target) = last.filter(|_| !options.fresh && targets.len() == plan.exports.len()) else {
        return Ok(None);
    };
    let place = path_of(target);
    let mut report = report::parse(&place, &target.store.file(report::FILE_NAME)?)?;
    let held = hold(&options.conditions, &mut report)?;
    let exit = if held.findings.is_empty() { Exit::Done } else { Exit::GateFailed };
    Ok(Some(Outcome {
        report,
        baseline: held.comparison,
        report_paths: targets.iter().map(path_of).collect(),
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
