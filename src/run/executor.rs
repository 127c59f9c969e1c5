//! A run from its plan to its published outputs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cancel::Cancel;
use super::event::{Event, Listener};
use super::measured::Measured;
use super::stream::{self, Checks};
use super::verdict::{self, Judgement};
use crate::exit::Exit;
use crate::export::{self, Staging, files, publish};
use crate::finding::{Failure, Finding};
use crate::plan::{ExportPlan, Plan};
use crate::quant::{Distortion, Isa};
use crate::recipe::Recipe;
use crate::report::ledger::{self, Results};
use crate::report::units;
use crate::report::{self, Report, Verdict};
use crate::stage::Stage;
use crate::stage::validate::Check;

/// How a run is carried out; nothing here changes its results.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The instruction set of the kernels; the best one of the machine where none is given.
    pub isa: Option<Isa>,
    /// The switch that ends the run.
    pub cancel: Cancel,
    /// Put everything on the disk before it is published, so that it survives a power cut.
    pub durable: bool,
}

/// What a run came to. A failed gate is an outcome, not a [`Failure`]: everything was done, and the report says what of it is
/// not good enough.
#[derive(Debug)]
pub struct Outcome {
    /// The report, as it is written.
    pub report: Report,
    /// Where it is.
    pub report_paths: Vec<PathBuf>,
    /// The outputs that were published.
    pub published: Vec<PathBuf>,
    /// The distortion of each source tensor.
    pub distortions: Vec<Option<Distortion>>,
    /// What the gates have to say, failures and warnings.
    pub findings: Vec<Finding>,
    /// The exit status.
    pub exit: Exit,
}

/// Where the report of a run that published nothing is kept: beside the output's place.
#[must_use]
pub fn failed_report_path(target: &Path) -> PathBuf {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    target.with_file_name(format!("{name}.failed-report.json"))
}

/// Carries out a plan: streams the weights into staging folders, judges the gates, publishes what passed.
///
/// # Errors
/// Where something is wrong with the model's weights, the outputs cannot be written, or the run is cancelled. Nothing is then
/// published, and what was there before is untouched; only where moving the second of several outputs fails, the first stays.
pub fn run(plan: &Plan, options: &Options, listener: &dyn Listener) -> Result<Outcome, Failure> {
    preflight(plan)?;
    listener
        .on_event(&Event::Started { bytes: stream::total_bytes(plan), tensors: plan.model.tensors.len() });
    let mut staging = Vec::with_capacity(plan.exports.len());
    for export in &plan.exports {
        staging.push(Staging::create(export)?);
    }
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let measured = stream::stream(plan, &staging, checks(plan), isa, listener, &options.cancel)?;
    for (export, staging) in plan.exports.iter().zip(&staging) {
        write_small_files(plan, export, &staging.folder, &options.cancel)?;
    }
    listener.on_event(&Event::Written {
        staging: staging.iter().map(|staging| staging.folder.clone()).collect(),
    });
    options.cancel.check()?;
    let judgement = verdict::judge(plan, &measured, &staging);
    for gate in judgement.gates.iter().filter(|gate| gate.name != "export") {
        listener.on_event(&Event::Stage {
            stage: gate.stage,
            name: plan.recipe().stages[gate.stage].name(),
            outcome: gate.outcome,
            summary: gate.summary.clone(),
        });
    }
    finish(plan, &measured, judgement, staging, options.durable, listener)
}

/// Looks whether the outputs of a plan can be written: nothing is in their places that must stay, and their disks have room.
///
/// # Errors
/// [`Exit::CannotWrite`] with the first output that cannot.
pub fn preflight(plan: &Plan) -> Result<(), Failure> {
    for export in &plan.exports {
        publish::check_occupant(&export.path, export.overwrite)?;
        check_failed_report(&export.path)?;
    }
    check_space(plan)
}

/// What the streaming pass has to do for the stages of the recipe.
fn checks(plan: &Plan) -> Checks {
    let has = |check: Check| {
        plan.recipe()
            .stages
            .iter()
            .any(|stage| matches!(stage, Stage::Validate(validate) if validate.checks.contains(&check)))
    };
    let measure = plan
        .recipe()
        .stages
        .iter()
        .any(|stage| matches!(stage, Stage::Validate(_) | Stage::CheckWarnings(_)));
    Checks { finite: has(Check::Finite), round_trip: has(Check::RoundTrip), measure }
}

fn check_space(plan: &Plan) -> Result<(), Failure> {
    // Exports on one disk need their space together.
    let mut disks: BTreeMap<u64, (u64, &ExportPlan)> = BTreeMap::new();
    for export in &plan.exports {
        let disk = disks.entry(publish::disk_of(&export.path)).or_insert((0, export));
        disk.0 += disk_needed(plan, export);
    }
    for (needed, export) in disks.into_values() {
        // What an interrupted run has left is cleared before anything is written.
        let cleared = publish::folder_bytes(&export::staging::staging_path(&export.path));
        if let Some(free) = publish::free_space(&export.path)
            && free.saturating_add(cleared) < needed
        {
            let message = format!(
                "{} needs {} and the disk has {} free",
                ledger::written_path(plan, export.stage),
                units::bytes(needed),
                units::bytes(free)
            );
            let finding = Finding::error("export::no-space", message)
                .at_opt(plan.loaded.place(&format!("/stages/{}/path", export.stage)), "written here")
                .help("An output is built beside the old one, which stays until the new one is complete.");
            return Err(Failure::new(Exit::CannotWrite, finding));
        }
    }
    Ok(())
}

/// Bytes that an export takes on its disk, but for the report, the recipe and the index.
#[must_use]
pub fn disk_needed(plan: &Plan, export: &ExportPlan) -> u64 {
    let copied: u64 = export.copies.iter().map(|&index| plan.model.others[index].len).sum();
    let config = export.config.as_ref().map_or(0, String::len) as u64;
    export.weight_bytes() + copied + config
}

/// Everything of an output but weights and report.
fn write_small_files(
    plan: &Plan,
    export: &ExportPlan,
    folder: &Path,
    cancel: &Cancel,
) -> Result<(), Failure> {
    for &index in &export.copies {
        cancel.check()?;
        let other = &plan.model.others[index];
        let (from, to) = (plan.model.root.join(&other.path), folder.join(&other.path));
        if let Some(parent) = to.parent() {
            files::create_dir_all(parent)?;
        }
        fs::copy(&from, &to).map_err(|error| files::cannot_write("copy to", &to, &error))?;
    }
    if let Some(config) = &export.config {
        files::write(&folder.join("config.json"), config.as_bytes())?;
    }
    if export.has_index {
        let name =
            plan.model.index.as_ref().map_or("model.safetensors.index.json", |index| index.file.as_str());
        files::write(&folder.join(name), export.index_text().as_bytes())?;
    }
    let recipe = crate::recipe::emit(&stored_recipe(plan, export)).map_err(|error| {
        let finding = Finding::error("export::recipe", format!("cannot write the recipe down: {error}"));
        Failure::new(Exit::Internal, finding)
    })?;
    files::write(&folder.join(export::RECIPE_FILE_NAME), recipe.as_bytes())
}

/// The recipe as an output holds it: relative paths are relative to the output, so that it runs from there to the same result.
fn stored_recipe(plan: &Plan, export: &ExportPlan) -> Recipe {
    let mut recipe = plan.recipe().clone();
    let from = absolute(&export.path);
    for stage in &mut recipe.stages {
        let path = match stage {
            Stage::Load(load) if !load.model.starts_with("hf://") => &mut load.model,
            Stage::Export(export) => &mut export.path,
            _ => continue,
        };
        if Path::new(path.as_str()).is_relative() {
            *path = relative(&from, &absolute(&plan.loaded.resolve_path(path)));
        }
    }
    recipe
}

/// A path from the root, without `..`, whether or not it exists.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    crate::plan::normalized(&path)
}

/// The way from one absolute folder to a path.
fn relative(from: &Path, to: &Path) -> String {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let mut way: Vec<String> = from.components().skip(shared).map(|_| "..".to_owned()).collect();
    way.extend(to.components().skip(shared).map(|part| part.as_os_str().to_string_lossy().into_owned()));
    if way.is_empty() { ".".to_owned() } else { way.join("/") }
}

/// The report of a failed run replaces the one of an earlier failed run, and nothing else.
fn check_failed_report(target: &Path) -> Result<(), Failure> {
    let path = failed_report_path(target);
    if path.exists() && !report::is_ours(&path) {
        let finding = Finding::error(
            "export::occupied",
            format!("{} was not written by monoquant", path.display()),
        )
        .help(
            "The report of a failed run would be kept there. Move that file away, or choose another `path`.",
        );
        return Err(Failure::new(Exit::CannotWrite, finding));
    }
    Ok(())
}

/// Publishes what passed, and keeps the report of what did not.
fn finish(
    plan: &Plan,
    measured: &Measured,
    judgement: Judgement,
    staging: Vec<Staging>,
    durable: bool,
    listener: &dyn Listener,
) -> Result<Outcome, Failure> {
    let distortions = verdict::by_tensor(plan, measured);
    let last = judgement.failed.map_or(usize::MAX, |(stage, _)| stage);
    let published: Vec<bool> = plan.exports.iter().map(|export| export.stage < last).collect();
    let exit = judgement.failed.map_or(Exit::Done, |(_, exit)| exit);
    let verdict =
        Verdict { passed: exit == Exit::Done, exit_status: exit.code(), summary: summary(plan, &judgement) };
    let report = ledger::report(
        plan,
        Results {
            distortions: &distortions,
            source_files: &measured.source_files,
            output_files: &measured.output_files,
            gates: judgement.gates,
            complaints: judgement.complaints.iter().map(|c| (c.is_critical, c.finding.clone())).collect(),
            published: published.clone(),
            verdict,
        },
    );
    if !report.balance.balanced {
        let finding = Finding::error("report::unbalanced", "the ledger does not balance").help(
            "Bytes of the source and of the output do not add up. This is a bug in monoquant; nothing was published.",
        );
        return Err(Failure::new(Exit::Internal, finding));
    }
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    let mut outcome = Outcome {
        report,
        report_paths: Vec::new(),
        published: Vec::new(),
        distortions,
        findings: judgement.shown,
        exit,
    };
    // All are looked at before the first is moved, so that one that cannot be published stops the others as well.
    for (export, _) in plan.exports.iter().zip(&published).filter(|(_, is_published)| **is_published) {
        publish::check_occupant(&export.path, export.overwrite)?;
    }
    for ((export, staging), is_published) in plan.exports.iter().zip(staging).zip(published) {
        let failed_report = failed_report_path(&export.path);
        if !is_published {
            drop(staging);
            files::write(&failed_report, text.as_bytes())?;
            outcome.report_paths.push(failed_report);
            continue;
        }
        files::write(&staging.folder.join(report::FILE_NAME), text.as_bytes())?;
        let path = publish::publish(staging, export.overwrite, durable)?;
        // The report of an earlier, failed run says nothing about this output.
        if report::is_ours(&failed_report) {
            let _ = fs::remove_file(&failed_report);
        }
        outcome.report_paths.push(path.join(report::FILE_NAME));
        listener.on_event(&Event::Published { path: path.clone() });
        outcome.published.push(path);
    }
    Ok(outcome)
}

fn summary(plan: &Plan, judgement: &Judgement) -> String {
    let quantized = plan.quantized_tensors();
    let of = units::counted(plan.model.tensors.len(), "tensor");
    match judgement.failed {
        Some((stage, _)) => {
            format!(
                "`{}` failed: {quantized} of {of} quantized, not published",
                plan.recipe().stages[stage].name()
            )
        }
        None => format!("{quantized} of {of} quantized"),
    }
}
