//! Summary of a run, for a person: the verdict first, then sizes, quality, kept tensors with their reasons, and the
//! place of the output.

use std::fmt::Write;
use std::time::Duration;

use crate::finding::Severity;
use crate::plan::Plan;
use crate::report::Report;
use crate::run::Outcome;
use crate::show::files;
use crate::show::progress::Read;
use crate::show::table::{Columns, table};
use crate::text::fit::wrapped;
use crate::text::units::{bytes, counted, decibels, grouped, seconds};
use crate::text::visible;

/// Layers that are listed as the worst.
const WORST: usize = 5;

const WORST_LAYERS: Columns<'static> = Columns {
    headings: &["worst layers", "SQNR", "Gaussian", "scheme", "rule"],
    numeric: &[1, 2],
    optional: &[4, 3],
};

const SKIPPED: Columns<'static> =
    Columns { headings: &["skipped", "tensors", "size", "first of them"], numeric: &[1, 2], optional: &[3] };

/// How a summary is shown, and what the report does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether every file is listed.
    pub all: bool,
    /// How long the run took.
    pub took: Duration,
    /// The weights that were read.
    pub read: Read,
}

/// The summary of a run. Every line comes from something in the report, but the last, which says how long it took.
#[must_use]
pub(crate) fn summary(plan: &Plan, outcome: &Outcome, told: &Told) -> String {
    let (report, paths, width) = (&outcome.report, &outcome.report_paths, told.width);
    let mut out = String::new();
    let mark = if report.verdict.passed { "✓" } else { "✗" };
    let name = visible(plan.loaded.name().unwrap_or("recipe"));
    let _ = writeln!(out, "{mark} {name}: {}", visible(&report.verdict.summary));
    let _ = writeln!(out, "{}", work(outcome));
    let _ = write!(out, "{}", table(Columns::all(&["", "", ""], &[]), width, &overview(report)));
    let worst = worst_layers(report);
    if !worst.is_empty() {
        let _ = write!(out, "\n{}", table(WORST_LAYERS, width, &worst));
    }
    let _ = write!(out, "\n{}", table(SKIPPED, width, &kept(report)));
    let _ = write!(out, "\n{}", table(Columns::all(&["stage", "", ""], &[]), width, &gates(report)));
    for export in plan.exports.iter().filter(|_| told.all) {
        out.push_str(&files::tables(plan, export, true, width));
    }
    let _ = writeln!(out);
    for output in &report.outputs {
        let state = if output.published { "output" } else { "not published" };
        let _ = writeln!(out, "  {state}  {}", visible(&plan.told_path(plan.export_path(output.stage))));
        if let Some(text) = files::left_line(&output.left).filter(|_| !told.all) {
            let _ = writeln!(out, "  left behind  {text}");
        }
    }
    for path in paths {
        let _ = writeln!(out, "  report  {}", visible(&plan.told_path(path)));
    }
    let _ = writeln!(out, "  took  {}{}", seconds(told.took), told.read.rate());
    wrapped(&out, width).into_owned()
}

/// The work that the run had to do; empty if nothing could be reused.
fn work(outcome: &Outcome) -> String {
    let (taken_over, redone) = (outcome.work.taken_over, outcome.work.redone);
    match (outcome.is_up_to_date, taken_over, redone) {
        (true, ..) => {
            "  up to date: recipe, model and version are those of the output, nothing was written\n"
                .to_owned()
        }
        (false, 0, _) => String::new(),
        (false, _, 0) => "  no weight was touched: all tensors are those of the last output\n".to_owned(),
        (false, ..) => {
            format!("  {}, {taken_over} reused as they are\n", counted(redone, "tensor") + " redone")
        }
    }
}

fn overview(report: &Report) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (output, size) in report.outputs.iter().zip(&report.sizes.outputs) {
        let ratio = report.sizes.source as f64 / (*size).max(1) as f64;
        rows.push(vec![
            "size".to_owned(),
            format!("{} → {}", bytes(report.sizes.source), bytes(*size)),
            format!("{ratio:.2} : 1, {}", output.format),
        ]);
    }
    if let Some(quality) = &report.quality {
        rows.push(vec![
            "SQNR".to_owned(),
            format!("{} (model)", decibels(quality.sqnr_db)),
            format!(
                "{} worst, {} 5th percentile, {} median of {}",
                decibels(quality.min_sqnr_db),
                decibels(quality.p5_sqnr_db),
                decibels(quality.median_sqnr_db),
                counted(quality.measured, "layer")
            ),
        ]);
    }
    rows.extend(rounding(report));
    let warnings = report.warnings.iter().filter(|warning| warning.severity != Severity::Note).count();
    let text = if warnings == 0 { "none".to_owned() } else { warnings.to_string() };
    rows.push(vec!["warnings".to_owned(), text, String::new()]);
    for note in report.warnings.iter().filter(|warning| warning.severity == Severity::Note) {
        rows.push(vec!["note".to_owned(), note.message.clone(), String::new()]);
    }
    rows
}

/// What rounding with calibration has done to the errors of the outputs.
fn rounding(report: &Report) -> Option<Vec<String>> {
    let records = || report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref());
    let matrices: usize = records().map(|record| record.matrices).sum();
    let nearest: usize = records().map(|record| record.nearest.len()).sum();
    if matrices + nearest == 0 {
        return None;
    }
    let mut shares: Vec<f64> = records()
        .filter(|record| record.error_of_nearest > 0.0)
        .map(|record| record.error / record.error_of_nearest)
        .collect();
    shares.sort_by(f64::total_cmp);
    let of_matrices = |count: usize| match count {
        1 => "1 matrix".to_owned(),
        _ => format!("{} matrices", grouped(count as u64)),
    };
    let fell_back =
        if nearest > 0 { format!(", {} rounded to nearest", of_matrices(nearest)) } else { String::new() };
    let mut methods: Vec<&str> = report
        .tensors
        .iter()
        .filter(|tensor| tensor.rounding.is_some())
        .filter_map(|tensor| tensor.scheme.as_ref()?.rounding.as_deref())
        .collect();
    methods.sort_unstable();
    methods.dedup();
    let of_what = if methods == ["guided"] { "answers" } else { "outputs" };
    let text = match shares.get(shares.len() / 2) {
        Some(median) => {
            format!("errors of {of_what} {:.0} % of those of rounding to nearest (median)", 100.0 * median)
        }
        None => String::new(),
    };
    Some(vec![methods.join(", "), of_matrices(matrices), text + &fell_back])
}

pub(super) fn worst_layers(report: &Report) -> Vec<Vec<String>> {
    let mut measured: Vec<_> = report
        .tensors
        .iter()
        .filter_map(|tensor| Some((tensor.metrics.as_ref()?.sqnr_db?, tensor)))
        .collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0));
    measured
        .into_iter()
        .take(WORST)
        .map(|(sqnr, tensor)| {
            vec![
                tensor.name.trim_end_matches(".weight").to_owned(),
                decibels(Some(sqnr)),
                decibels(tensor.metrics.as_ref().and_then(|metrics| metrics.expected_sqnr_db)),
                tensor.scheme.as_ref().map(ToString::to_string).unwrap_or_default(),
                tensor
                    .line
                    .map_or_else(|| tensor.rule.clone(), |line| format!("{} (line {line})", tensor.rule)),
            ]
        })
        .collect()
}

pub(super) fn kept(report: &Report) -> Vec<Vec<String>> {
    let mut reasons: Vec<(&str, usize, u64, &str)> = Vec::new();
    for tensor in report.tensors.iter().filter(|tensor| tensor.action == "kept") {
        match reasons.iter_mut().find(|(reason, ..)| *reason == tensor.reason) {
            Some((_, count, size, _)) => {
                *count += 1;
                *size += tensor.bytes_in;
            }
            None => reasons.push((&tensor.reason, 1, tensor.bytes_in, &tensor.name)),
        }
    }
    reasons.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(b.0)));
    reasons
        .into_iter()
        .map(|(reason, count, size, first)| {
            vec![reason.to_owned(), count.to_string(), bytes(size), first.to_owned()]
        })
        .collect()
}

fn gates(report: &Report) -> Vec<Vec<String>> {
    report
        .gates
        .iter()
        .map(|gate| vec![gate.name.clone(), gate.outcome.words().to_owned(), gate.summary.clone()])
        .collect()
}
