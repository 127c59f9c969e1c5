//! A part of a run: some of the output's files, made on whatever machine, and left beside the output until a run joins them.
//!
//! Parts take no lock. Each file is built in a folder of its own, flushed, and moved to its place; its record follows last. So a
//! part may be killed, repeated or run twice at once: a file with a record is whole, and whoever makes it makes the same bytes.

use std::path::{Path, PathBuf};

use super::calibrate;
use super::context::Context;
use super::event::{Event, Listener};
use super::finish::{header, identities};
use super::outcome::Options;
use super::preflight::{check_places, check_room};
use super::rounding;
use super::stream;
use super::workers::Workers;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Folder};
use crate::fs::processes::own_name;
use crate::fs::rename;
use crate::ids::{ExportId, IdVec, TaskId, TensorId};
use crate::plan::fingerprint::{self, Fingerprint, Prints};
use crate::plan::parts::{Part, Unit, deal, units};
use crate::plan::{Checks, Plan, Roundings};
use crate::publish::files::{cannot_write, create_dir_all, sync_file, sync_way};
use crate::publish::staging::FileStart;
use crate::publish::{Staging, flush, hidden};
use crate::quant::Isa;
use crate::report::measured::Measured;
use crate::run::incremental::previous::{PART_RECORD, Stores, of_parts, published};
use crate::run::incremental::record::{self, Finished, Tensors};
use crate::run::incremental::reuse::{Reuse, Search};
use crate::run::incremental::take_over;
use crate::run::stream::collector::Collector;
use crate::run::stream::weights::Weights;
use crate::stage::Stage;

/// What a part has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOutcome {
    /// Its files, as people are told them, each with whether this part has made it; the others were there.
    pub files: Vec<(String, bool)>,
    /// Bytes of all of them.
    pub bytes: u64,
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
        .and_then(|()| rounding::round_units(plan, &mine, options, listener))
        .and_then(|()| carry_out(plan, &mine, options, listener));
    done.map_err(|failure| plan.loaded.tell_failure(failure))
}

/// What is the same for all units of a part.
struct Job<'a> {
    plan: &'a Plan,
    options: &'a Options,
    listener: &'a dyn Listener,
    checks: Checks,
    source: &'a Weights<'a>,
    workers: &'a Workers,
    /// The folder of the parts' files of each export.
    folders: IdVec<ExportId, PathBuf>,
}

fn carry_out(
    plan: &Plan,
    share: &[&Unit],
    options: &Options,
    listener: &dyn Listener,
) -> Result<PartOutcome, Failure> {
    let (checks, cancel) = (Checks::of(plan.recipe()), &options.cancel);
    let workers = Workers::start(plan.budget.workers, plan.budget.worker_bytes(), cancel.clone())?;
    let source = Weights::open(plan)?;
    let prints = Prints::of(plan);
    let id = fingerprint::of_plan(plan, &Prints::without_codes(plan), checks);
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
    let mut is_wanted = plan.model.tensors.map(|_| false);
    share.iter().flat_map(|unit| &unit.tensors).for_each(|&tensor| is_wanted[tensor] = true);
    let search =
        Search { plan, source: &source, checks, workers: &workers, is_wanted: &|tensor| is_wanted[tensor] };
    let mut reuse = Reuse::find(&search, prints, &stores)?;
    let starts = std::mem::replace(&mut reuse.starts, IdVec::new());
    let is_there = |unit: &Unit| {
        let mut files = unit.files.iter();
        unit.tensors.iter().all(|&tensor| reuse.tensors.is_taken(tensor))
            && files.all(|&(export, file)| matches!(starts[export][file], FileStart::Linked(_)))
    };
    let (there, left): (Vec<&Unit>, Vec<&Unit>) = share.iter().partition(|unit| is_there(unit));
    let left_tasks: Vec<TaskId> = left.iter().flat_map(|unit| tasks(plan, &reuse, unit)).collect();
    let redone =
        left.iter().flat_map(|unit| &unit.tensors).filter(|tensor| !reuse.tensors.is_taken(**tensor));
    listener.on_event(&Event::Started {
        bytes: stream::total_bytes(plan, &left_tasks),
        tensors: redone.count(),
        taken_over: reuse.tensors.count(),
    });
    let needed = plan.exports.ids().map(|export| {
        let files = left.iter().flat_map(|unit| &unit.files).filter(|(of, _)| *of == export);
        files.map(|&(_, file)| plan.exports[export].files[file].bytes).sum()
    });
    check_room(plan, &needed.collect())?;
    let job = Job { plan, options, listener, checks, source: &source, workers: &workers, folders };
    for unit in &left {
        cancel.check()?;
        reuse.starts = plan
            .exports
            .numbered()
            .map(|(export, planned)| {
                let start = |file| match unit.files.contains(&(export, file)) {
                    true => starts[export][file].clone(),
                    false => FileStart::Elsewhere,
                };
                planned.files.ids().map(start).collect()
            })
            .collect();
        job.make(unit, &reuse)?;
    }
    let mut files: Vec<(String, bool)> = Vec::new();
    for (units, is_made) in [(&there, false), (&left, true)] {
        let named = units.iter().flat_map(|unit| &unit.files);
        files.extend(named.map(|&(export, file)| (plan.exports[export].files[file].name.clone(), is_made)));
    }
    files.sort();
    Ok(PartOutcome {
        files,
        bytes: share
            .iter()
            .flat_map(|unit| &unit.files)
            .map(|&(export, file)| plan.exports[export].files[file].bytes)
            .sum(),
    })
}

/// The tasks of a unit that are still to be done.
fn tasks<'a>(plan: &'a Plan, reuse: &'a Reuse<'_>, unit: &'a Unit) -> impl Iterator<Item = TaskId> + 'a {
    let left = unit.tensors.iter().filter(|tensor| !reuse.tensors.is_taken(**tensor));
    left.flat_map(|&tensor| plan.tasks_of(tensor))
}

impl Job<'_> {
    /// Makes the files of a unit, and records them.
    fn make(&self, unit: &Unit, reuse: &Reuse<'_>) -> Result<(), Failure> {
        let (plan, cancel) = (self.plan, &self.options.cancel);
        let tasks: Vec<TaskId> = tasks(plan, reuse, unit).collect();
        let collector = Collector::new(plan);
        collector.output_headers();
        take_over::remember(plan, reuse, self.checks, &collector);
        let is_wanted = |tensor: TensorId| unit.tensors.binary_search(&tensor).is_ok();
        let source_headers = self.source.sum_up_the_rest((&tasks, &is_wanted), &collector, cancel)?;
        let own = own_name();
        let mut staging = IdVec::new();
        for ((export, starts), folder) in plan.exports.iter().zip(&reuse.starts).zip(&self.folders) {
            create_dir_all(folder)?;
            let go_on = || cancel.check();
            staging.push(Staging::create(folder.join(&own), plan.content(), (export, starts), &go_on)?);
        }
        let run = Context {
            plan,
            source: self.source,
            staging: &staging,
            journals: &IdVec::new(),
            prints: &reuse.prints,
            checks: self.checks,
            isa: self.options.isa.unwrap_or_else(Isa::detect),
            collector: &collector,
            listener: self.listener,
            workers: self.workers,
        };
        flush::while_flushing(&staging, || {
            take_over::take_over(&run, reuse)?;
            stream::stream(&run, tasks)
        })?;
        self.source.check_unchanged()?;
        let mut finished = Vec::new();
        for export in plan.exports.ids() {
            let of = |&tensor: &TensorId| {
                Finished::of(plan, &reuse.prints, export, tensor, &collector)
                    .ok_or_else(|| not_finished(plan, tensor))
            };
            finished.push(unit.tensors.iter().map(of).collect::<Result<Vec<Finished>, Failure>>()?);
        }
        let measured = collector.finish(&source_headers);
        for staging in &staging {
            staging.sync()?;
        }
        // From here on nothing takes long.
        cancel.whole(|| {
            for (((export, staging), finished), folder) in
                plan.exports.ids().zip(&staging).zip(finished).zip(&self.folders)
            {
                self.place((export, unit), staging, finished, (&measured, folder))?;
            }
            Ok(())
        })
    }

    /// Moves the files of a unit to their places, and then the record of them.
    fn place(
        &self,
        (export, unit): (ExportId, &Unit),
        staging: &Staging,
        finished: Vec<Finished>,
        (measured, folder): (&Measured, &Path),
    ) -> Result<(), Failure> {
        let plan = self.plan;
        let planned = &plan.exports[export];
        let files: Vec<_> =
            unit.files.iter().filter(|(of, _)| *of == export).map(|&(_, file)| file).collect();
        let Some(first) = files.first() else { return Ok(()) };
        let paths: Vec<PathBuf> = files.iter().map(|&file| folder.join(&planned.files[file].name)).collect();
        for (&file, path) in files.iter().zip(&paths) {
            create_dir_all(path.parent().unwrap_or(folder))?;
            let from = staging.folder.join(&planned.files[file].name);
            rename::over(&from, path).map_err(|error| cannot_write("move", &from, &error))?;
            sync_way(path)?;
        }
        let mut header = header(plan, planned, self.checks);
        for (source, digest) in header.sources.iter_mut().zip(&measured.source_files) {
            source.blake3.clone_from(&digest.blake3);
        }
        for (&file, identity) in files.iter().zip(identities(&paths)) {
            header.files[file.index()].identity = identity;
            header.files[file.index()].blake3.clone_from(&measured.output_files[export][file].blake3);
        }
        let path = folder.join(format!("{first}.{PART_RECORD}"));
        let mut each = finished.into_iter();
        let tensors = Tensors::Each(each.len(), &mut each);
        let file = record::write(&path, &staging.folder.with_extension("new"), &header, tensors)?;
        sync_file(&path, &file)?;
        sync_way(&path)
    }
}

/// Why there is no record of a tensor that was written.
fn not_finished(plan: &Plan, tensor: TensorId) -> Failure {
    let name = &plan.model.tensors[tensor].name;
    let message = format!("what was written of `{name}` is not what is read back, or cannot be measured");
    let finding = Finding::error("parts::not-recorded", message).help(
        "The disk or the memory of this machine may be faulty. Nothing was recorded; run the part again.",
    );
    Failure::new(Exit::OutputDamaged, finding)
}

/// Removes what parts have left of a run that is published.
pub(super) fn sweep(plan: &Plan, id: Fingerprint) {
    for export in &plan.exports {
        // What cannot be removed does no harm: the next join does not take it for anything else.
        let _ = exclusive::remove_folder(&folder(&export.path, id));
        let all = hidden::parts(&export.path);
        if let Ok(folder) = Folder::open(&all) {
            let _ = folder.remove(&all, &[]);
        }
    }
}
