//! Gates: the judgement of `validate` and `check-warnings` on the measurements, and the exports that may be
//! published.
//!
//! Gates are judged in the order of the recipe, from the measurements of the single pass over the weights.

use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Finding, Severity};
use crate::ids::{IdVec, StageId, TensorId};
use crate::plan::{ExportPlan, OutputFile, Plan, QuantSpec};
use crate::quant::Distortion;
use crate::report::evaluation::Evaluation;
use crate::report::measured::Measured;
use crate::report::{GateOutcome, GateRecord};
use crate::stage::check_warnings::FailOn;
use crate::stage::validate::Check;
use crate::stage::{OnFailure, Stage, Validate};
use crate::text::units::{counted, decibels};

mod calibration;
mod check_warnings;
mod evaluation;
pub(crate) mod outlook;
mod signal;
mod written;

/// How many tensors a message names.
const NAMED: usize = 5;

/// The decisions of the gates.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// One record per stage that judges or publishes, in order.
    pub gates: Vec<GateRecord>,
    /// Every complaint, whatever `on_failure` says: an error if an error threshold was crossed or a check failed.
    pub complaints: Vec<Finding>,
    /// Complaints that are to be shown: those of gates that do not ignore them, as errors if they ended the run, else as
    /// warnings.
    pub shown: Vec<Finding>,
    /// The stage that ended the run, and how.
    pub failed: Option<(StageId, Exit)>,
    /// What the comparisons with the original have found.
    pub evaluations: Vec<Evaluation>,
}

/// The weight files of an export, as they are written.
#[derive(Debug)]
pub struct Written<'a> {
    /// The folder that they are in.
    pub folder: &'a Path,
    /// Those that are in it. The others were looked at by [`damage`] when they were written, and are no longer here.
    pub files: Vec<&'a OutputFile>,
}

/// The first difference between weight files of an export and what was planned, in words: their sizes, and their headers as any
/// reader sees them.
#[must_use]
pub fn damage(plan: &Plan, export: &ExportPlan, written: &Written<'_>) -> Option<String> {
    written::sizes(written).or_else(|| written::headers(plan.content(), export, written))
}

/// Judges every gate of a plan, with what is written of each export.
#[must_use]
pub fn judge(
    plan: &Plan,
    measured: &Measured,
    written: &[Written<'_>],
    evaluations: Vec<Evaluation>,
) -> Judgement {
    let tensors = &measured.tensors;
    let mut judgement = Judgement {
        gates: Vec::new(),
        complaints: Vec::new(),
        shown: Vec::new(),
        failed: None,
        evaluations: Vec::new(),
    };
    for (index, stage) in plan.recipe().stages.numbered() {
        let record = |outcome, summary: String| GateRecord {
            stage: index,
            name: stage.name().to_owned(),
            outcome,
            summary,
        };
        let gate = match stage {
            Stage::Validate(validate) => {
                let (complaints, is_damaged) = validate_complaints(plan, measured, written, index, validate);
                let on_failure = validate.on_failure.or(plan.recipe().on_failure).unwrap_or(OnFailure::Error);
                let exit = if is_damaged { Exit::OutputDamaged } else { Exit::GateFailed };
                Gate {
                    complaints,
                    on_failure,
                    fail_on: FailOn::Critical,
                    exit,
                    summary: measured_summary(tensors),
                }
            }
            Stage::CheckWarnings(check) => {
                let complaints = check_warnings::complaints(plan, tensors, index, check);
                let on_failure = check.on_failure.or(plan.recipe().on_failure).unwrap_or(OnFailure::Warn);
                let summary = check_warnings::summary(tensors, check);
                Gate { complaints, on_failure, fail_on: check.fail_on, exit: Exit::GateFailed, summary }
            }
            Stage::Evaluate(stage) => {
                let found = evaluations.iter().filter(|found| found.stage == Some(index.index()));
                let on_failure = stage.on_failure.or(plan.recipe().on_failure).unwrap_or(OnFailure::Error);
                Gate {
                    complaints: found
                        .clone()
                        .flat_map(|found| evaluation::complaints(plan, index, stage, found))
                        .collect(),
                    on_failure,
                    fail_on: FailOn::Critical,
                    exit: Exit::GateFailed,
                    summary: evaluation::summary(plan, found),
                }
            }
            Stage::Export(_) => {
                let outcome = match judgement.failed {
                    Some(_) => GateOutcome::NotReached,
                    None => GateOutcome::Passed,
                };
                let text = if judgement.failed.is_some() { "not published" } else { "published" };
                judgement.gates.push(record(outcome, text.to_owned()));
                continue;
            }
            _ => continue,
        };
        if judgement.failed.is_some() {
            judgement.gates.push(record(GateOutcome::NotReached, "not reached".to_owned()));
            continue;
        }
        let fails =
            gate.complaints.iter().any(|complaint| complaint.is_error() || gate.fail_on == FailOn::Warning);
        let outcome = match (fails, gate.on_failure) {
            (true, OnFailure::Error) => GateOutcome::Failed,
            (true, _) => GateOutcome::FailedAndIgnored,
            (false, _) if gate.complaints.is_empty() => GateOutcome::Passed,
            (false, _) => GateOutcome::Warned,
        };
        let summary = match gate.complaints.len() {
            0 => gate.summary,
            n => format!("{}; {}", gate.summary, counted(n, "complaint")),
        };
        judgement.gates.push(record(outcome, summary));
        if outcome == GateOutcome::Failed {
            judgement.failed = Some((index, gate.exit));
        }
        if gate.on_failure != OnFailure::Ignore {
            judgement.shown.extend(gate.complaints.iter().map(|complaint| {
                let mut finding = complaint.clone();
                let is_fatal = outcome == GateOutcome::Failed
                    && (complaint.is_error() || gate.fail_on == FailOn::Warning);
                finding.severity = if is_fatal { Severity::Error } else { Severity::Warning };
                finding
            }));
        }
        judgement.complaints.extend(gate.complaints);
    }
    if let Some(finding) = signal::dominant_tensor(plan, tensors) {
        judgement.shown.push(finding.clone());
        judgement.complaints.push(finding);
    }
    judgement.evaluations = evaluations;
    judgement
}

struct Gate {
    complaints: Vec<Finding>,
    on_failure: OnFailure,
    fail_on: FailOn,
    exit: Exit,
    summary: String,
}

fn measured_summary(tensors: &[Option<Distortion>]) -> String {
    let measured = format!("{} measured", counted(tensors.iter().flatten().count(), "tensor"));
    match crate::report::ledger::quality(tensors).and_then(|quality| quality.weighted_sqnr_db) {
        Some(weighted) => format!("{measured}, SQNR weighted by activations {}", decibels(Some(weighted))),
        None => measured,
    }
}

/// The tensors that a stage judges: those quantized by stages before it.
fn seen<'a>(
    plan: &'a Plan,
    tensors: &'a IdVec<TensorId, Option<Distortion>>,
    stage: StageId,
) -> impl Iterator<Item = (TensorId, &'a QuantSpec, Option<&'a Distortion>)> {
    plan.decisions.numbered().filter_map(move |(index, decision)| {
        let spec = decision.spec().filter(|spec| spec.stage < stage)?;
        Some((index, spec, tensors[index].as_ref()))
    })
}

fn place_of(plan: &Plan, stage: StageId, key: &str) -> Option<crate::finding::Place> {
    crate::recipe::places::said_or_stage(&plan.loaded, stage, key)
}

fn name(plan: &Plan, tensor: TensorId) -> &str {
    &plan.model.tensors[tensor].name
}

fn validate_complaints(
    plan: &Plan,
    measured: &Measured,
    written: &[Written<'_>],
    stage: StageId,
    validate: &Validate,
) -> (Vec<Finding>, bool) {
    let tensors = &measured.tensors;
    let (mut out, mut is_damaged) = (Vec::new(), false);
    let mut complain = |key: &str, finding: Finding| {
        let finding = finding.at_opt(place_of(plan, stage, key), "");
        out.push(Finding { severity: Severity::Error, ..finding });
    };
    for check in &validate.checks {
        match check {
            Check::Finite => {
                for bad in measured.not_finite.iter().take(NAMED) {
                    let message = format!("`{}` holds NaN or infinity", name(plan, bad.tensor));
                    let help = format!("Its element {} is the first one. It was not quantized.", bad.element);
                    complain("checks", Finding::error("check::not-finite", message).help(help));
                }
                for (tensor, _, distortion) in seen(plan, tensors, stage) {
                    if distortion.is_some_and(|d| !d.noise.is_finite() || !d.signal.is_finite()) {
                        let message = format!("`{}` has no finite error", name(plan, tensor));
                        complain("checks", Finding::error("check::not-finite", message));
                    }
                }
                if let Some(finding) = signal::faint_scales(plan, tensors, stage) {
                    complain("checks", finding);
                }
            }
            Check::WeightRange => {
                let bound = validate.max_abs_weight;
                let mut beyond: Vec<(f64, TensorId)> = seen(plan, tensors, stage)
                    .filter_map(|(tensor, _, distortion)| {
                        Some((f64::from(distortion?.max_abs_weight), tensor))
                    })
                    .filter(|(weight, _)| weight.is_nan() || *weight > bound)
                    .collect();
                if beyond.is_empty() {
                    continue;
                }
                beyond.sort_by(|a, b| b.0.total_cmp(&a.0));
                let count = counted(beyond.len(), "tensor");
                let verb = if beyond.len() == 1 { "holds" } else { "hold" };
                let message = format!("{count} {verb} weights larger than {bound}");
                let lines = beyond
                    .iter()
                    .take(NAMED)
                    .map(|(weight, tensor)| format!("{weight:>10.3}  {}", name(plan, *tensor)));
                let finding = Finding::error("check::weight-range", message).help("The largest:");
                complain("max_abs_weight", finding.help_lines(lines));
            }
            Check::RoundTrip => {
                let mismatched: Vec<String> = measured
                    .mismatches
                    .iter()
                    .map(|mismatch| {
                        plan.exports[mismatch.export].tensors[mismatch.tensor].name(plan.content())
                    })
                    .collect();
                if let Some(first) = mismatched.first() {
                    is_damaged = true;
                    let message = format!("`{first}` was not read back as it was written");
                    let help = format!(
                        "{} differ. The disk or its driver is damaged.",
                        counted(mismatched.len(), "tensor")
                    );
                    complain("checks", Finding::error("output::round-trip", message).help(help));
                }
                for (export, written) in plan.exports.iter().zip(written) {
                    if let Some(problem) = written::headers(plan.content(), export, written) {
                        is_damaged = true;
                        complain("checks", Finding::error("output::round-trip", problem));
                    }
                }
            }
            Check::Size => {
                for written in written {
                    if let Some(problem) = written::sizes(written) {
                        is_damaged = true;
                        complain("checks", Finding::error("output::size", problem));
                    }
                }
            }
        }
    }
    (out, is_damaged)
}
