//! Gates: the judgement of `validate` and `check-warnings` on the measurements, and the exports that may be
//! published.
//!
//! Gates are judged in the order of the recipe, from the measurements of the single pass over the weights.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::finding::{Finding, Severity};
use crate::ids::{IdVec, StageId, TensorId};
use crate::plan::{Plan, QuantSpec};
use crate::quant::{Bits, Distortion};
use crate::report::evaluation::Evaluation;
use crate::report::measured::Measured;
use crate::report::{GateOutcome, GateRecord};
use crate::stage::check_warnings::{FailOn, Scope, SqnrOf};
use crate::stage::validate::Check;
use crate::stage::{CheckWarnings, OnFailure, Stage, Validate};
use crate::text::units::{counted, decibels};

mod calibration;
mod evaluation;
mod signal;
mod written;

/// How many tensors a message names.
const NAMED: usize = 5;

/// Above this SQNR, in dB, a model is called good (mono-quant's word).
pub const GOOD_SQNR_DB: f64 = 30.0;

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

/// Judges every gate of a plan. `folders` holds the weight files of each export, one folder per export.
#[must_use]
pub fn judge(
    plan: &Plan,
    measured: &Measured,
    folders: &[PathBuf],
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
                let (complaints, is_damaged) = validate_complaints(plan, measured, folders, index, validate);
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
                let complaints = check_complaints(plan, tensors, index, check);
                let on_failure = check.on_failure.or(plan.recipe().on_failure).unwrap_or(OnFailure::Warn);
                let summary = check_summary(tensors, check);
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

fn check_summary(tensors: &[Option<Distortion>], check: &CheckWarnings) -> String {
    let quality = crate::report::ledger::quality(tensors);
    if check.sqnr == SqnrOf::Outputs {
        let weighted = quality.as_ref().and_then(|quality| quality.weighted_sqnr_db);
        let least = tensors.iter().flatten().filter_map(Distortion::weighted_sqnr_db).min_by(f64::total_cmp);
        return format!(
            "SQNR weighted by activations {} (model), {} (worst layer)",
            decibels(weighted),
            decibels(least)
        );
    }
    let word = match quality.as_ref().and_then(|quality| quality.sqnr_db) {
        Some(sqnr) if sqnr > GOOD_SQNR_DB => ", good",
        _ => "",
    };
    let model = quality.as_ref().and_then(|quality| quality.sqnr_db);
    let least = quality.as_ref().and_then(|quality| quality.min_sqnr_db);
    format!("SQNR {} (model{word}), {} (worst layer)", decibels(model), decibels(least))
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
    folders: &[PathBuf],
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
                for (export, folder) in plan.exports.iter().zip(folders) {
                    if let Some(problem) = written::headers(plan.content(), export, folder) {
                        is_damaged = true;
                        complain("checks", Finding::error("output::round-trip", problem));
                    }
                }
            }
            Check::Size => {
                for (export, folder) in plan.exports.iter().zip(folders) {
                    if let Some(problem) = written::sizes(export, folder) {
                        is_damaged = true;
                        complain("checks", Finding::error("output::size", problem));
                    }
                }
            }
        }
    }
    (out, is_damaged)
}

/// A quantized tensor with its SQNR and what its scheme reaches.
struct Scored<'a> {
    tensor: TensorId,
    spec: &'a QuantSpec,
    /// None if the tensor has no signal, which says nothing about quality. NaN if it was not measured, which fails.
    sqnr: Option<f64>,
    expected: Option<f64>,
}

fn check_complaints(
    plan: &Plan,
    tensors: &IdVec<TensorId, Option<Distortion>>,
    stage: StageId,
    check: &CheckWarnings,
) -> Vec<Finding> {
    let mut out = Vec::new();
    let scored: Vec<Scored<'_>> = seen(plan, tensors, stage)
        .map(|(tensor, spec, distortion)| {
            let sqnr = match (distortion, check.sqnr) {
                (Some(distortion), _) if distortion.signal == 0.0 => None,
                (Some(distortion), SqnrOf::Weights) => Some(distortion.sqnr_db().unwrap_or(f64::NAN)),
                // A layer without statistics has no such SQNR, as the plan has already reported.
                (Some(distortion), SqnrOf::Outputs) => distortion.weighted_sqnr_db(),
                (None, _) => Some(f64::NAN),
            };
            let expected = plan.expected_sqnr(tensor);
            Scored { tensor, spec, sqnr, expected }
        })
        .collect();
    let (error, warning) = (check.sqnr_error_threshold, check.sqnr_warning_threshold);
    if check.scope != Scope::Layer {
        let mut all = Distortion::default();
        for (_, _, distortion) in seen(plan, tensors, stage) {
            if let Some(distortion) = distortion {
                all.merge(distortion, 0);
            }
        }
        let (sqnr, of) = match check.sqnr {
            SqnrOf::Weights => (all.sqnr_db(), "SQNR"),
            SqnrOf::Outputs => (all.weighted_sqnr_db(), "SQNR weighted by activations"),
        };
        let below = |threshold: f64| all.signal != 0.0 && !sqnr.is_some_and(|sqnr| sqnr >= threshold);
        let (key, threshold) =
            if below(error) { ("sqnr_error_threshold", error) } else { ("sqnr_warning_threshold", warning) };
        if below(threshold) {
            let message = format!("the model's {of} of {} is below {threshold} dB", decibels(sqnr));
            let finding = Finding::warning("check::model-sqnr", message)
                .at_opt(place_of(plan, stage, key), "threshold")
                .help_lines(advice(&scored));
            out.push(graded(below(error), finding));
        }
    }
    if check.scope != Scope::Model {
        let is_below = |scored: &Scored<'_>, threshold: f64| {
            scored.sqnr.is_some_and(|sqnr| sqnr.is_nan() || sqnr < threshold)
        };
        let critical: Vec<&Scored<'_>> = scored.iter().filter(|s| is_below(s, error)).collect();
        let doubtful: Vec<&Scored<'_>> =
            scored.iter().filter(|s| !is_below(s, error) && is_below(s, warning)).collect();
        for (list, key, threshold, is_critical) in [
            (critical, "sqnr_error_threshold", error, true),
            (doubtful, "sqnr_warning_threshold", warning, false),
        ] {
            if !list.is_empty() {
                let below = Below { key, threshold, of: scored.len(), list };
                let finding = layers_below(plan, stage, below);
                out.push(graded(is_critical, finding));
            }
        }
    }
    let gap = |scored: &Scored<'_>| Some(scored.expected? - scored.sqnr?);
    let mut gaps: Vec<(f64, &Scored<'_>)> = scored.iter().filter_map(|s| Some((gap(s)?, s))).collect();
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let is_critical = |gap: f64| check.gap_error.is_some_and(|bound| gap.is_nan() || gap > bound);
    let is_doubtful = |gap: f64| check.gap_warning.is_some_and(|bound| gap.is_nan() || gap > bound);
    for (key, critical, chosen) in [
        ("gap_error", true, gaps.iter().filter(|(g, _)| is_critical(*g)).collect::<Vec<_>>()),
        ("gap_warning", false, gaps.iter().filter(|(g, _)| !is_critical(*g) && is_doubtful(*g)).collect()),
    ] {
        let Some((worst, _)) = chosen.first() else { continue };
        let message = format!(
            "{} up to {worst:.1} dB below what their scheme reaches on Gaussian weights",
            are(chosen.len(), "layer")
        );
        let lines = chosen
            .iter()
            .take(NAMED)
            .map(|(gap, scored)| format!("{gap:>6.1} dB below  {}", name(plan, scored.tensor)));
        let finding = Finding::warning("check::gap", message)
            .at_opt(place_of(plan, stage, key), "bound")
            .help_lines(lines)
            .help("Their weights have outliers; smaller groups or int8 suit them better.");
        out.push(graded(critical, finding));
    }
    if check.low_calibration_warning {
        out.extend(calibration::low(plan, stage, check.min_calibration_samples));
    }
    if check.all_layers_quantized_warning && int4_without_skips(plan, stage) {
        let finding = Finding::warning("check::nothing-skipped", "an int4 run skipped nothing")
            .at_opt(place_of(plan, stage, "all_layers_quantized_warning"), "asked for here")
            .help("Heads, embeddings and routers suffer most from 4 bits. `resolve-skips` with `defaults: auto` leaves them alone.");
        out.push(finding);
    }
    out
}

/// A finding as an error if an error threshold was crossed, else as a warning.
fn graded(is_critical: bool, finding: Finding) -> Finding {
    Finding { severity: if is_critical { Severity::Error } else { Severity::Warning }, ..finding }
}

/// `1 layer is`, `3 layers are`.
fn are(count: usize, noun: &str) -> String {
    format!("{} {}", counted(count, noun), if count == 1 { "is" } else { "are" })
}

/// Layers below a threshold, of so many.
struct Below<'a> {
    /// The parameter that sets the threshold.
    key: &'a str,
    threshold: f64,
    list: Vec<&'a Scored<'a>>,
    of: usize,
}

fn layers_below(plan: &Plan, stage: StageId, below: Below<'_>) -> Finding {
    let Below { key, threshold, mut list, of } = below;
    list.sort_by(|a, b| a.sqnr.unwrap_or(f64::NAN).total_cmp(&b.sqnr.unwrap_or(f64::NAN)));
    // NaN sorts last and is worst.
    let unmeasured = list.iter().filter(|scored| scored.sqnr.is_some_and(f64::is_nan)).count();
    list.rotate_right(unmeasured);
    let verb = if list.len() == 1 { "is" } else { "are" };
    let message = format!("{} of {} {verb} below {threshold} dB", list.len(), counted(of, "quantized layer"));
    let lines: Vec<String> = list
        .iter()
        .take(NAMED)
        .map(|scored| {
            let line = plan.line(&plan.decisions[scored.tensor].rule);
            let line = line.map_or(String::new(), |line| format!("  (line {line})"));
            format!(
                "{:>8}  {}{line}",
                decibels(scored.sqnr.filter(|sqnr| !sqnr.is_nan())),
                name(plan, scored.tensor)
            )
        })
        .collect();
    let owned: Vec<&Scored<'_>> = list.clone();
    Finding::warning("check::low-sqnr", message)
        .at_opt(place_of(plan, stage, key), "threshold")
        .help_lines(lines)
        .help_lines(advice_for(&owned))
}

fn advice(scored: &[Scored<'_>]) -> Vec<String> {
    advice_for(&scored.iter().collect::<Vec<_>>())
}

/// The best SQNR that the schemes in use can reach, and advice on what to change.
fn advice_for(scored: &[&Scored<'_>]) -> Vec<String> {
    let mut schemes: Vec<(String, f64)> = Vec::new();
    for one in scored {
        let Some(expected) = one.expected else { continue };
        let name = format!("{}, {}", one.spec.scheme, one.spec.observer);
        match schemes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, best)) => *best = best.max(expected),
            None => schemes.push((name, expected)),
        }
    }
    let mut lines: Vec<String> = schemes
        .into_iter()
        .map(|(name, best)| format!("On Gaussian weights, {name} reaches {best:.1} dB."))
        .collect();
    lines.push(
        "To raise it: `observer: mse`, a smaller `group_size`, `symmetric: false`, or `quantize-int8` for the worst layers."
            .to_owned(),
    );
    lines
}

fn int4_without_skips(plan: &Plan, stage: StageId) -> bool {
    let mut int4 = false;
    for decision in &plan.decisions {
        match decision.spec().filter(|spec| spec.stage < stage) {
            Some(spec) => int4 |= spec.scheme.bits == Bits::Four,
            None if decision.rule.is_skip() => return false,
            None => {}
        }
    }
    int4
}
