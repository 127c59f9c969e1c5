//! HTML: one file without any request to a network, with charts as inline SVG and a table of all tensors.

mod charts;

use std::io::{self, Write};

use indexmap::IndexMap;
use minijinja::{AutoEscape, Environment};
use serde_json::{Value, json};

use super::Document;
use crate::finding::{Diagnostic, Severity};
use crate::report::{GateOutcome, Report};
use crate::text::units::{bytes, counted, decibels};
use crate::text::visible;

/// The page.
const PAGE: &str = include_str!("html/page.html");

/// Layers of a comparison that are listed.
const COMPARED: usize = 20;

/// Writes the page.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut environment = Environment::new();
    // Whatever is put into the page is text, unless the page says `safe`.
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = environment.render_str(PAGE, values(document)).map_err(io::Error::other)?;
    out.write_all(page.as_bytes())
}

fn values(document: &Document<'_>) -> Value {
    let report = document.report;
    let gates: Vec<Value> = report
        .gates
        .iter()
        .map(|gate| {
            let mood = match gate.outcome {
                GateOutcome::Passed => "good",
                GateOutcome::Warned | GateOutcome::FailedAndIgnored => "doubtful",
                GateOutcome::Failed => "bad",
                GateOutcome::NotReached => "quiet",
            };
            json!({
                "name": Document::stage_words(gate),
                "outcome": gate.outcome.words(),
                "mood": mood,
                "summary": visible(&gate.summary),
            })
        })
        .collect();
    json!({
        "name": visible(document.name()),
        "passed": report.verdict.passed,
        "summary": visible(&report.verdict.summary),
        "facts": facts(report),
        "gates": gates,
        "evaluations": report.evaluations.iter().map(|found| visible(&found.line()).into_owned()).collect::<Vec<_>>(),
        "sizes": charts::sizes(report),
        "quality": charts::quality(report),
        "findings": document.findings().filter(|finding| document.place(finding).is_none()).map(finding).collect::<Vec<_>>(),
        "recipe_path": visible(document.recipe_path),
        "lines": lines(document),
        "baseline": report.baseline.as_ref().map(baseline),
        "tensors": counted(report.tensors.len(), "tensor"),
        "data": in_script(&table(report)),
        "version": report.monoquant,
    })
}

/// The numbers at the head of the page, each with its name.
fn facts(report: &Report) -> Vec<Value> {
    let mut out = Vec::new();
    let mut add = |name: &str, number: String, more: String| {
        out.push(json!({"name": name, "number": number, "more": more}));
    };
    for (output, size) in report.outputs.iter().zip(&report.sizes.outputs) {
        let ratio = report.sizes.source as f64 / (*size).max(1) as f64;
        let more = format!("from {}, {ratio:.2} : 1, {}", bytes(report.sizes.source), output.format);
        add("Size", bytes(*size), more);
    }
    if let Some(quality) = &report.quality {
        let more =
            format!("median {} of {}", decibels(quality.median_sqnr_db), counted(quality.measured, "layer"));
        add("SQNR of the model", decibels(quality.sqnr_db), more);
        let more = format!("5th percentile {}", decibels(quality.p5_sqnr_db));
        add("SQNR of the worst layer", decibels(quality.min_sqnr_db), more);
    }
    if let Some(kl) = report.evaluations.iter().find_map(|found| found.kl.as_ref()) {
        add("Mean KL divergence", format!("{:.5}", kl.mean), format!("99th percentile {:.4}", kl.p99));
    }
    let wrong = report.warnings.iter().filter(|finding| finding.severity != Severity::Note).count();
    let errors = report.warnings.iter().filter(|finding| finding.severity == Severity::Error).count();
    add("Findings", wrong.to_string(), counted(errors, "error"));
    out
}

fn finding(finding: &Diagnostic) -> Value {
    let help = finding.help.as_deref().unwrap_or_default();
    json!({
        "code": visible(&finding.code),
        "severity": if finding.severity == Severity::Error { "error" } else { "warning" },
        "message": visible(&finding.message),
        "help": help.lines().map(|line| visible(line).into_owned()).collect::<Vec<_>>(),
    })
}

/// The lines of the recipe, each with the findings about it.
fn lines(document: &Document<'_>) -> Vec<Value> {
    let Some(text) = document.recipe_text else { return Vec::new() };
    let all: Vec<(usize, Value)> =
        document.findings().filter_map(|about| Some((document.place(about)?.line, finding(about)))).collect();
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let number = index + 1;
            let found: Vec<&Value> =
                all.iter().filter(|(at, _)| *at == number).map(|(_, found)| found).collect();
            json!({"number": number, "text": visible(line), "findings": found})
        })
        .collect()
}

fn baseline(found: &crate::report::comparison::Comparison) -> Value {
    let change = |change: Option<f64>, unit: &str| {
        change.map_or_else(|| "–".to_owned(), |change| format!("{change:+.2} {unit}"))
    };
    let (a, b) = (&found.a, &found.b);
    let size = |size: Option<u64>| size.map_or_else(|| "–".to_owned(), bytes);
    let kl = |kl: Option<f64>| kl.map_or_else(|| "–".to_owned(), |kl| format!("{kl:.6}"));
    let least = a.min_sqnr_db.zip(b.min_sqnr_db).map(|(a, b)| b - a);
    let rows = json!([
        ["weight files", size(a.bytes), size(b.bytes), change(found.growth_percent, "%")],
        ["SQNR of the model", decibels(a.sqnr_db), decibels(b.sqnr_db), change(found.sqnr_change_db, "dB")],
        ["SQNR of the worst layer", decibels(a.min_sqnr_db), decibels(b.min_sqnr_db), change(least, "dB")],
        ["mean KL", kl(a.kl), kl(b.kl), change(found.kl_rise_percent, "%")],
    ]);
    let layers: Vec<Value> = found
        .layers
        .iter()
        .take(COMPARED)
        .map(|layer| {
            json!([
                visible(&layer.name),
                decibels(layer.a.sqnr_db),
                decibels(layer.b.sqnr_db),
                change(layer.sqnr_change_db, "dB"),
            ])
        })
        .collect();
    let more = found.layers.len().saturating_sub(COMPARED);
    json!({"name": visible(&a.name), "rows": rows, "layers": layers, "more": more, "unchanged": found.unchanged})
}

/// The tensors, for the script of the page: words that many share stand once.
fn table(report: &Report) -> Value {
    let mut words: IndexMap<String, ()> = IndexMap::new();
    let mut word = |text: String| words.insert_full(text, ()).0;
    let rows: Vec<Value> = report
        .tensors
        .iter()
        .map(|tensor| {
            let metrics = tensor.metrics.as_ref();
            let scheme = tensor.scheme.as_ref().map(ToString::to_string);
            let line = tensor.line.map_or(String::new(), |line| format!(" (line {line})"));
            let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
            json!([
                visible(&tensor.name),
                word(kind_of(tensor)),
                word(shape.join(" × ")),
                word(scheme.unwrap_or_else(|| tensor.action.clone())),
                word(format!("{}{line}", visible(&tensor.reason))),
                tensor.bytes_in,
                tensor.bytes_out.first(),
                metrics.and_then(|metrics| metrics.sqnr_db),
                metrics.and_then(|metrics| metrics.expected_sqnr_db),
            ])
        })
        .collect();
    json!({"words": words.keys().collect::<Vec<_>>(), "rows": rows})
}

/// What a tensor is, in a word: its last module, which tells more than its kind.
fn kind_of(tensor: &crate::report::TensorRecord) -> String {
    let mut parts = tensor.name.rsplit('.').skip(1);
    let last = parts.find(|part| !part.chars().all(|c| c.is_ascii_digit()));
    visible(last.filter(|_| tensor.role.is_some() || tensor.action == "quantized").unwrap_or(&tensor.kind))
        .into_owned()
}

/// JSON inside of a `script` element: nothing in it ends the element or begins a comment.
fn in_script(value: &Value) -> String {
    let text = value.to_string();
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}
