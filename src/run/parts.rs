//! A part of a run: some of the output's files, made on whatever machine, and left beside the output until a run joins them.
//!
//! Parts take no lock. Each file is built in a folder of its own, and moved to the folder that parts share; its record follows last.
//! Or it is uploaded to the store at which the output is published, and the upload is ended by the join. So a part may be killed,
//! repeated or run twice at once: a file with a record is whole, and whoever makes it makes the same bytes.

use std::path::{Path, PathBuf};

use self::share::Share;
use self::unit::Job;
#[cfg(feature = "cloud")]
use self::uploads::{Last, Uploads};
use super::calibrate;
use super::event::Listener;
use super::outcome::{Options, Work};
use super::preflight::{check_places, check_room};
use super::rounding;
#[cfg(feature = "cloud")]
use super::targets::{self, Target};
use super::workers::Workers;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive;
use crate::ids::{ExportId, IdVec};
use crate::plan::fingerprint::{self, Fingerprint, Prints};
use crate::plan::parts::{Part, Unit, deal, units};
use crate::plan::{Checks, Plan, Roundings};
use crate::publish::hidden;
use crate::run::incremental::previous::{Stores, of_parts, published};
use crate::run::incremental::reuse::Search;
use crate::run::stream::weights::Weights;
use crate::stage::Stage;

mod place;
mod share;
mod unit;
#[cfg(feature = "cloud")]
pub(super) mod uploads;

/// What a part has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOutcome {
    /// Its files, as people are told them, each with whether this part has made it; the others were there.
    pub files: Vec<(String, bool)>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The work that it took.
    pub work: Work,
}

impl PartOutcome {
    /// That these units were made, or were there.
    fn of(plan: &Plan, units: &[&Unit], is_made: bool) -> Self {
        let planned = || units.iter().flat_map(|unit| &unit.files);
        let planned = || planned().map(|&(export, file)| &plan.exports[export].files[file]);
        let mut files: Vec<(String, bool)> = planned().map(|file| (file.name.clone(), is_made)).collect();
        files.sort();
        let bytes = planned().map(|file| file.bytes).sum();
        let tensors = units.iter().map(|unit| unit.tensors.len()).sum();
        let work = if is_made { (0, tensors) } else { (tensors, 0) };
        Self { files, bytes, work: Work { taken_over: work.0, redone: work.1 } }
    }
}

/// Looks whether a plan can be carried out in parts.
///
/// # Errors
/// [`Exit::BadRecipe`] if a model has to run before weights can be quantized.
pub fn check(plan: &Plan) -> Result<(), Failure> {
    let mut stages = plan.recipe().stages.numbered();
    let Some((stage, _)) = stages.find(|(_, stage)| matches!(stage, Stage::Calibrate(_))) else {
        return Ok(());
    };
    let with_moments = |of: &Roundings| of.moments.is_some() && of.gradients.is_none();
    let help = match &plan.roundings {
        Some(of) if with_moments(of) => return Ok(()),
        Some(of) if of.gradients.is_some() => {
            "`rounding: guided` takes gradients through the whole model. `rounding: gptq` can be run in parts, with given moments."
        }
        Some(_) => {
            "With `sequential: false` layers are rounded apart from each other. Measure once, with `monoquant calibrate RECIPE -o STATISTICS \
             --moments MOMENTS`, and name the second file here: `moments: MOMENTS`."
        }
        None => {
            "Measure once, with `monoquant calibrate RECIPE -o FILE`, and name the file: `calibration: {file: FILE}`."
        }
    };
    let finding =
        Finding::error("parts::model-runs", "parts of a run cannot run the model, and `calibrate` does")
            .at_opt(plan.stage_place(stage), "this stage")
            .help(help);
    Err(plan.loaded.tell_failure(Failure::new(Exit::BadRecipe, finding)))
}

/// The folder in which the files of all parts of an export are.
pub(super) fn folder(target: &Path, id: Fingerprint) -> PathBuf {
    hidden::parts(target).join(id.to_string())
}

/// Makes the files of a part that are not there yet. Gates are not judged, and nothing is published: a run with
/// [`Options::join`] does both.
///
/// # Errors
/// As those of a run, if the weights are wrong or something cannot be read or written; and if what was written is not what
/// is read back.
pub fn run_part(
    plan: &mut Plan,
    part: Part,
    options: &Options,
    listener: &dyn Listener,
) -> Result<PartOutcome, Failure> {
    check(plan)?;
    let units = units(plan);
    let mine = deal(&units, part.count).into_iter().nth(part.index).unwrap_or_default();
    let mine: Vec<&Unit> = mine.into_iter().map(|unit| &units[unit]).collect();
    let done = check_places(plan)
        .and_then(|()| calibrate::calibrate(plan, options, listener))
        .and_then(|()| carry_out(plan, &mine, options, listener));
    done.map_err(|failure| plan.loaded.tell_failure(failure))
}

#[cfg(not(feature = "cloud"))]
fn carry_out(
    plan: &mut Plan,
    share: &[&Unit],
    options: &Options,
    listener: &dyn Listener,
) -> Result<PartOutcome, Failure> {
    rounding::round_units(plan, share, options, listener)?;
    in_folders(plan, share, options, listener)
}

/// Places in stores are claimed before the work. When everything is published there, there is none.
#[cfg(feature = "cloud")]
fn carry_out(
    plan: &mut Plan,
    share: &[&Unit],
    options: &Options,
    listener: &dyn Listener,
) -> Result<PartOutcome, Failure> {
    let targets = targets::claim(plan)?;
    if !options.fresh && targets.len() == plan.exports.len() && targets::are_published(&targets)? {
        return Ok(PartOutcome::of(plan, share, false));
    }
    let done = rounding::round_units(plan, share, options, listener).and_then(|()| {
        match !targets.is_empty() && plan.uploads_as_made() {
            true => in_stores(&Uploads::new(plan, &targets, options, listener, "parts"), share),
            false => in_folders(plan, share, options, listener),
        }
    });
    if done.as_ref().is_err_and(|failure| !matches!(failure.exit, Exit::Interrupted | Exit::TryAgain)) {
        targets.iter().for_each(Target::withdraw);
    }
    done
}

/// Makes the files of units that are not in the folders yet.
fn in_folders(
    plan: &Plan,
    units: &[&Unit],
    options: &Options,
    listener: &dyn Listener,
) -> Result<PartOutcome, Failure> {
    let id = fingerprint::of_plan(plan, &Prints::without_codes(plan), Checks::of(plan.recipe()));
    let folders: IdVec<ExportId, PathBuf> = plan.exports.map(|export| folder(&export.path, id));
    let stores: IdVec<ExportId, Stores> = plan
        .exports
        .iter()
        .zip(&folders)
        .map(|(export, folder)| {
            let last = published(plan, export).ok().flatten().filter(|_| !options.fresh);
            let stores = last.into_iter().chain(of_parts(plan, export, folder)).collect();
            Stores { stores, ..Stores::default() }
        })
        .collect();
    let made = Making { plan, options, listener, stores: &stores, folders: &folders, is_flushed: true };
    made.each(units, |share, job| {
        let bytes = |export| {
            let files = share.left.iter().flat_map(|unit| &unit.files).filter(|(of, _)| *of == export);
            files.map(|&(_, file)| plan.exports[export].files[file].bytes).sum()
        };
        check_room(plan, &plan.exports.ids().map(bytes).collect())?;
        for unit in share.left.clone() {
            options.cancel.check()?;
            let tasks = share.tasks(unit);
            place::place(job, job.make(unit, tasks, share.begin(unit))?)?;
        }
        Ok(())
    })
}

/// Makes the files of units that are not uploaded yet, each while the one before it is uploaded.
///
/// # Errors
/// As those of [`run_part`].
#[cfg(feature = "cloud")]
pub(super) fn in_stores(uploads: &Uploads<'_>, units: &[&Unit]) -> Result<PartOutcome, Failure> {
    let Uploads { plan, options, listener, ref folders, .. } = *uploads;
    let stores = match options.fresh {
        true => plan.exports.map(|_| Stores::default()),
        false => uploads.stores(&uploads.groups()?),
    };
    let made = Making { plan, options, listener, stores: &stores, folders, is_flushed: false };
    let done = made.each(units, |share, job| {
        let left = || share.left.iter().copied();
        let rooms = plan.exports.ids().map(|export| plan.room_of_uploads(export, left()));
        check_room(plan, &rooms.collect())?;
        let files = left().flat_map(|unit| &unit.files);
        uploads.begin(files.map(|&(export, file)| plan.exports[export].files[file].bytes).sum());
        std::thread::scope(|scope| {
            let mut last = Last::default();
            for unit in share.left.clone() {
                options.cancel.check()?;
                let tasks = share.tasks(unit);
                let made = job.make(unit, tasks, share.begin(unit))?;
                last.follow(scope, uploads, made)?;
            }
            last.wait()
        })
    });
    uploads.leave();
    done
}

/// What the units of a part are made from, and where.
struct Making<'a> {
    plan: &'a Plan,
    options: &'a Options,
    listener: &'a dyn Listener,
    /// What is there already.
    stores: &'a IdVec<ExportId, Stores>,
    /// Where files are while they are made.
    folders: &'a IdVec<ExportId, PathBuf>,
    is_flushed: bool,
}

impl Making<'_> {
    /// Does the work for the units that are not there.
    fn each(
        &self,
        units: &[&Unit],
        work: impl FnOnce(&mut Share<'_>, &Job<'_>) -> Result<(), Failure>,
    ) -> Result<PartOutcome, Failure> {
        let Self { plan, options, listener, stores, folders, is_flushed } = *self;
        let (checks, cancel) = (Checks::of(plan.recipe()), &options.cancel);
        let workers = &Workers::start(plan.budget.workers, plan.budget.worker_bytes(), cancel.clone())?;
        let source = &Weights::open(plan)?;
        let mut is_wanted = plan.model.tensors.map(|_| false);
        units.iter().flat_map(|unit| &unit.tensors).for_each(|&tensor| is_wanted[tensor] = true);
        let is_wanted = |tensor| is_wanted[tensor];
        let search = Search { plan, source, checks, workers, is_wanted: &is_wanted };
        let mut share = Share::find(&search, Prints::of(plan), stores, units)?;
        listener.on_event(&share.started());
        if !share.left.is_empty() {
            let headers = &source.headers(cancel)?;
            let job = Job { plan, options, listener, checks, source, headers, workers, folders, is_flushed };
            work(&mut share, &job)?;
        }
        Ok(share.outcome())
    }
}

/// Removes what parts have left of a run that is published.
pub(super) fn sweep(plan: &Plan, id: Fingerprint) {
    for export in &plan.exports {
        // What cannot be removed does no harm: the next join does not take it for anything else.
        let _ = exclusive::remove_folder(&folder(&export.path, id));
        exclusive::remove_if_empty(&hidden::parts(&export.path));
    }
}
