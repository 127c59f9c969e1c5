//! Execution of a run, from its plan to its published outputs.

use std::path::PathBuf;

use super::carried;
use super::context::Context;
use super::evaluate;
use super::event::{Event, Listener};
use super::finish::{Job, header};
use super::missing;
use super::outcome::{Options, Outcome, Work};
use super::parts;
use super::preflight::{check_places, check_space};
use super::stream;
#[cfg(feature = "cloud")]
use super::to_store;
use super::workers::Workers;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive;
use crate::gates::{self, Written};
use crate::ids::{ExportId, FileId, IdVec, StageId};
use crate::plan::fingerprint::{self, Prints};
use crate::plan::{Checks, OutputFile, Plan};
use crate::publish::lock::Lock;
use crate::publish::{Staging, exchange, flush, hidden, occupant, staging};
use crate::quant::Isa;
use crate::recipe::Loaded;
use crate::run::incremental::previous;
use crate::run::incremental::previous::Stores;
use crate::run::incremental::reuse::{Reuse, Search};
use crate::run::incremental::{hashes, take_over};
use crate::run::stream::collector::Collector;
use crate::run::stream::weights::Weights;
use crate::stage::Stage;

/// Carries out a plan: streams the weights into staging folders, judges the gates, publishes the outputs that passed.
/// Tensors of an earlier run that match the plan are reused. If nothing is left to do, nothing is written.
///
/// # Errors
/// If something is wrong with the model's weights, the outputs cannot be written, or the run is cancelled. Then
/// nothing is published, and earlier outputs stay untouched. There is one exception: if moving the second of several
/// outputs fails, the first stays published.
pub fn run(plan: &Plan, options: &Options, listener: &dyn Listener) -> Result<Outcome, Failure> {
    #[cfg(feature = "cloud")]
    let done = to_store::run(plan, options, listener, &|uploaded, listener| {
        carry_out(plan, uploaded, options, listener)
    });
    #[cfg(not(feature = "cloud"))]
    let done = carry_out(plan, None, options, listener);
    done.map_err(|failure| plan.loaded.tell_failure(failure))
}

/// Makes the outputs; if weight files are uploaded, all but these.
fn carry_out(
    plan: &Plan,
    uploaded: Option<IdVec<ExportId, Stores>>,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Outcome, Failure> {
    let is_join = options.join || uploaded.is_some();
    if plan.awaits_rounding() {
        let finding =
            Finding::error("run::not-rounded", "codes are to be chosen before weights are streamed")
                .help("Programs call `run::prepare::prepare` before `run::run`.");
        return Err(Failure::new(Exit::Internal, finding));
    }
    check_places(plan)?;
    check_space(plan, is_join)?;
    // The locks are held until everything is in its place and recorded. The values that use them are dropped first.
    let mut locks = Vec::with_capacity(plan.exports.len());
    let mut occupants = IdVec::with_capacity(plan.exports.len());
    for export in &plan.exports {
        let lock = Lock::take(&export.path)?;
        if let Some(text) = lock.note() {
            listener.on_event(&Event::Note { text: plan.loaded.told(text) });
        }
        locks.push(lock);
        exchange::restore(&export.path)?;
        occupants.push(occupant::check(&export.path, export.overwrite)?);
    }
    let (checks, cancel) = (Checks::of(plan.recipe()), &options.cancel);
    let workers = Workers::start(plan.budget.workers, plan.budget.worker_bytes(), cancel.clone())?;
    let source = Weights::open(plan)?;
    let headers = plan.exports.iter().map(|export| header(plan, export, checks)).collect();
    let prints = Prints::of(plan);
    let parts = options.join.then(|| fingerprint::of_plan(plan, &Prints::without_codes(plan), checks));
    let mut stores = uploaded.unwrap_or_else(|| plan.exports.map(|_| Stores::default()));
    for (export, all) in plan.exports.iter().zip(&mut stores) {
        let mut found = Stores::default();
        if options.fresh {
            staging::clear(&export.path);
        } else {
            found = previous::stores(plan, export)?;
        }
        let parts = parts.and_then(|id| previous::of_parts(plan, export, &parts::folder(&export.path, id)));
        found.stores.extend(parts);
        all.stores.append(&mut found.stores);
        all.notes.append(&mut found.notes);
    }
    for note in stores.iter().flat_map(|stores| &stores.notes) {
        listener.on_event(&Event::Note { text: plan.loaded.told(note) });
    }
    let search = Search { plan, source: &source, checks, workers: &workers, is_wanted: &|_| true };
    let reuse = Reuse::find(&search, prints, &stores)?;
    if is_join {
        missing::check_all_there(plan, &reuse)?;
    }
    let tasks = reuse.tasks_left(plan);
    let (taken_over, redone) = reuse.counts(plan);
    let bytes = stream::total_bytes(plan, &tasks);
    listener.on_event(&Event::Started { bytes, tensors: redone, taken_over });
    let collector = Collector::new(plan);
    collector.output_headers();
    take_over::remember(plan, &reuse, checks, &collector);
    let source_headers = source.headers(cancel)?;
    source.sum_up_the_rest((&tasks, &|_| true), &source_headers, &collector, cancel)?;
    let work = Work { taken_over, redone };
    let job = Job { plan, options, listener, headers, occupants, reuse: &reuse, work };
    let mut built = None;
    if !reuse.is_everything(plan) {
        let (mut staging, journals) = job.stage()?;
        let run = Context {
            plan,
            source: &source,
            staging: &staging,
            journals: &journals,
            prints: &reuse.prints,
            checks,
            isa: options.isa.unwrap_or_else(Isa::detect),
            collector: &collector,
            listener,
            workers: &workers,
        };
        let carry_out = || {
            take_over::take_over(&run, &reuse)?;
            stream::stream(&run, tasks)
        };
        let done = if options.durable { flush::while_flushing(&staging, carry_out) } else { carry_out() };
        if let Err(failure) = done {
            if failure.exit == Exit::Interrupted {
                staging.iter_mut().for_each(Staging::keep);
            }
            return Err(failure);
        }
        let folders = staging.iter().map(|staging| staging.folder.clone()).collect();
        listener.on_event(&Event::Written { staging: folders });
        built = Some((staging, journals));
    }
    source.check_unchanged()?;
    let mut measured = collector.finish(&source_headers.checksums);
    let folders: IdVec<ExportId, PathBuf> = match &built {
        Some((staging, _)) => staging.iter().map(|staging| staging.folder.clone()).collect(),
        None => plan.exports.iter().map(|export| export.path.clone()).collect(),
    };
    let looked = hashes::complete(plan, &reuse, &folders, &mut measured, cancel)
        .and_then(|()| carried::look(plan, &stores, cancel))
        .and_then(|carried| {
            Ok((carried, evaluate::all(plan, &folders, (&reuse.prints, &measured), options, listener)?))
        });
    let (carried, evaluations) = match looked {
        Ok(looked) => looked,
        Err(failure) => {
            if let Some((staging, _)) = built.as_mut().filter(|_| failure.exit == Exit::Interrupted) {
                staging.iter_mut().for_each(Staging::keep);
            }
            return Err(failure);
        }
    };
    let written: Vec<Written<'_>> = plan
        .exports
        .numbered()
        .zip(&folders)
        .map(|((index, export), folder)| {
            let is_here = |(file, _): &(FileId, &OutputFile)| reuse.uploaded(index, *file).is_none();
            Written { folder, files: export.files.numbered().filter(is_here).map(|(_, file)| file).collect() }
        })
        .collect();
    let mut judgement = gates::judge(plan, &measured, &written, evaluations);
    plan.loaded.tell(&mut judgement.complaints);
    plan.loaded.tell(&mut judgement.shown);
    let is_export = |stage: StageId| matches!(plan.recipe().stages[stage], Stage::Export(_));
    for gate in judgement.gates.iter().filter(|gate| !is_export(gate.stage)) {
        listener.on_event(&Event::Stage {
            stage: gate.stage,
            name: plan.recipe().stages[gate.stage].name(),
            outcome: gate.outcome,
            summary: gate.summary.clone(),
        });
    }
    let mut outcome = job.finish(measured, &carried, judgement, built)?;
    outcome.findings.extend(workers.warning());
    if let Some(id) = parts.filter(|_| outcome.exit == Exit::Done) {
        parts::sweep(plan, id);
    }
    Ok(outcome)
}

/// Puts back outputs that a run had moved aside when it was killed, even if this run achieves nothing.
///
/// # Errors
/// If another run is writing one of them, or it cannot be moved.
pub fn restore(loaded: &Loaded) -> Result<(), Failure> {
    for stage in &loaded.recipe.stages {
        let Stage::Export(export) = stage else { continue };
        let path = crate::plan::normalized(&loaded.output_path(&export.path));
        if exclusive::is_there(&hidden::old(&path)) {
            let lock = Lock::take(&path)?;
            exchange::restore(&path)?;
            drop(lock);
        }
    }
    Ok(())
}
