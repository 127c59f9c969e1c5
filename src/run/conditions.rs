//! Conditions that the command line sets for a run: results that do not meet them are not published.

use super::lockfile::Entry;
use crate::exit::Exit;
use crate::finding::{Diagnostic, Failure, Finding};
use crate::report::comparison::{Bounds, Comparison};
use crate::report::{GateOutcome, Report};

/// The conditions.
#[derive(Debug, Default)]
pub struct Conditions {
    /// The report that the results are compared with.
    pub baseline: Option<Baseline>,
    /// What the results must be, to the byte.
    pub locked: Option<Entry>,
}

/// An earlier report, and how much worse the results may be.
#[derive(Debug)]
pub struct Baseline {
    /// Its name for people, without folders of the machine.
    pub name: String,
    /// The report.
    pub report: Report,
    /// The bounds.
    pub bounds: Bounds,
}

/// How a report met the conditions.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The comparison with the baseline.
    pub comparison: Option<Comparison>,
    /// The bounds that were crossed.
    pub findings: Vec<Finding>,
}

/// Holds the report of a run against the conditions, before anything is published. If a bound is crossed, the report says so.
///
/// # Errors
/// [`Exit::BadRecipe`] if the results are not those that were locked.
pub(super) fn hold(conditions: &Conditions, report: &mut Report) -> Result<Held, Failure> {
    if let Some(entry) = &conditions.locked {
        let findings = entry.differences(report);
        if !findings.is_empty() {
            return Err(Failure { exit: Exit::BadRecipe, findings });
        }
    }
    let Some(baseline) = &conditions.baseline else { return Ok(Held::default()) };
    let comparison = Comparison::of((&baseline.name, &baseline.report), ("this run", report));
    let findings: Vec<Finding> = comparison
        .crossed(&baseline.bounds)
        .into_iter()
        .map(|crossed| {
            let code = match crossed.key {
                "max_drop" => "baseline::drop",
                "max_kl_rise" => "baseline::kl-rise",
                _ => "baseline::growth",
            };
            let flag = crossed.key.replace('_', "-");
            Finding::error(code, crossed.message).help(format!(
                "The bound is that of `--{flag}`. If this result is the one that is wanted, take its report as the new baseline."
            ))
        })
        .collect();
    if !findings.is_empty() {
        withhold(report, &findings);
    }
    Ok(Held { comparison: Some(comparison), findings })
}

/// Marks everything as not published. A gate that failed before stays the verdict.
fn withhold(report: &mut Report, findings: &[Finding]) {
    if report.verdict.passed {
        report.verdict.passed = false;
        report.verdict.exit_status = Exit::GateFailed.code();
        report.verdict.summary = format!("`--baseline` failed: {}, not published", report.verdict.summary);
    }
    for output in &mut report.outputs {
        output.published = false;
    }
    let exports: Vec<_> = report.outputs.iter().map(|output| output.stage).collect();
    for gate in report.gates.iter_mut().filter(|gate| exports.contains(&gate.stage)) {
        (gate.outcome, gate.summary) = (GateOutcome::NotReached, "not published".to_owned());
    }
    let found = findings.iter().map(Diagnostic::of);
    report.warnings.splice(0..0, found);
}
