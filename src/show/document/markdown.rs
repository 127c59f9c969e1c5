//! Markdown: the summary that reviewers read in a pull request.

use std::io::{self, Write};

use super::Document;
use super::escape::{code, markdown};
use crate::finding::Severity;
use crate::report::comparison::Comparison;
use crate::show::summary;
use crate::text::units::{bytes, counted, decibels};

/// Rows of a table beyond which only their number is told.
const ROWS: usize = 20;

/// Writes the summary.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let report = document.report;
    let mark = if report.verdict.passed { "✅" } else { "❌" };
    writeln!(out, "## {mark} {}: {}\n", markdown(document.name()), markdown(&report.verdict.summary))?;
    let mut rows = Vec::new();
    for (output, size) in report.outputs.iter().zip(&report.sizes.outputs) {
        let ratio = report.sizes.source as f64 / (*size).max(1) as f64;
        rows.push(vec![
            "size".to_owned(),
            format!("{} → {}", bytes(report.sizes.source), bytes(*size)),
            format!("{ratio:.2} : 1, {}", markdown(&output.format)),
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
    rows.extend(
        report
            .evaluations
            .iter()
            .map(|found| vec!["answers".to_owned(), markdown(&found.line()), counted(found.tokens, "token")]),
    );
    table(out, &["", "", ""], &rows)?;
    let gates: Vec<Vec<String>> = report
        .gates
        .iter()
        .map(|gate| {
            vec![code(&Document::stage_words(gate)), gate.outcome.words().to_owned(), markdown(&gate.summary)]
        })
        .collect();
    table(out, &["gate", "outcome", ""], &gates)?;
    if let Some(baseline) = &report.baseline {
        comparison(baseline, out)?;
    }
    findings(document, out)?;
    let worst = summary::worst_layers(report).into_iter().map(|row| {
        row.into_iter()
            .enumerate()
            .map(|(at, cell)| if at == 0 { code(&cell) } else { markdown(&cell) })
            .collect()
    });
    table(out, &["worst layers", "SQNR", "Gaussian", "scheme", "rule"], &worst.collect::<Vec<_>>())?;
    let kept = summary::kept(report).into_iter().map(|row| {
        row.into_iter()
            .enumerate()
            .map(|(at, cell)| if at == 3 { code(&cell) } else { markdown(&cell) })
            .collect()
    });
    table(out, &["skipped", "tensors", "size", "first of them"], &kept.collect::<Vec<_>>())?;
    let version = markdown(&report.monoquant);
    writeln!(out, "{} run by monoquant {version}", code(document.recipe_path))
}

/// Writes a comparison.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn comparison(found: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    let change = |text: Option<f64>, unit: &str| {
        text.map_or_else(|| "–".to_owned(), |change| format!("{change:+.2} {unit}"))
    };
    let kl = |kl: Option<f64>| kl.map_or_else(|| "–".to_owned(), |kl| format!("{kl:.6}"));
    let size = |size: Option<u64>| size.map_or_else(|| "–".to_owned(), bytes);
    let (a, b) = (&found.a, &found.b);
    let mut rows = vec![
        vec!["weight files".to_owned(), size(a.bytes), size(b.bytes), change(found.growth_percent, "%")],
        vec![
            "SQNR of the model".to_owned(),
            decibels(a.sqnr_db),
            decibels(b.sqnr_db),
            change(found.sqnr_change_db, "dB"),
        ],
        vec![
            "SQNR of the worst layer".to_owned(),
            decibels(a.min_sqnr_db),
            decibels(b.min_sqnr_db),
            change(a.min_sqnr_db.zip(b.min_sqnr_db).map(|(a, b)| b - a), "dB"),
        ],
    ];
    if a.kl.is_some() || b.kl.is_some() {
        rows.push(vec!["mean KL".to_owned(), kl(a.kl), kl(b.kl), change(found.kl_rise_percent, "%")]);
    }
    if found.difference_db.is_some() {
        let text = decibels(found.difference_db);
        rows.push(vec!["difference of the weights".to_owned(), String::new(), text, String::new()]);
    }
    table(out, &["", &code(&a.name), &code(&b.name), "change"], &rows)?;
    let layers: Vec<Vec<String>> = found
        .layers
        .iter()
        .map(|layer| {
            let scheme =
                |scheme: &Option<String>| scheme.clone().unwrap_or_else(|| "not quantized".to_owned());
            let schemes = match layer.a.scheme == layer.b.scheme {
                true => scheme(&layer.a.scheme),
                false => format!("{} → {}", scheme(&layer.a.scheme), scheme(&layer.b.scheme)),
            };
            vec![
                code(&layer.name),
                decibels(layer.a.sqnr_db),
                decibels(layer.b.sqnr_db),
                change(layer.sqnr_change_db, "dB"),
                markdown(&schemes),
            ]
        })
        .collect();
    table(out, &["layer", "SQNR of A", "SQNR of B", "change", "scheme"], &layers)
}

fn findings(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut count = 0;
    for finding in document.findings() {
        count += 1;
        if count > ROWS {
            continue;
        }
        let word = if finding.severity == Severity::Error { "**error**" } else { "warning" };
        let place = document.place(finding);
        let place = place.map_or(String::new(), |place| {
            format!(" {}", code(&format!("{}:{}", document.recipe_path, place.line)))
        });
        writeln!(out, "- {word} {}{place}: {}", code(&finding.code), markdown(&finding.message))?;
        for line in finding.help.iter().flat_map(|help| help.lines()) {
            writeln!(out, "  <br>{}", markdown(line.trim()))?;
        }
    }
    if count > ROWS {
        writeln!(out, "- and {} more", counted(count - ROWS, "finding"))?;
    }
    if count > 0 { writeln!(out) } else { Ok(()) }
}

fn table(out: &mut dyn Write, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "| {} |", headings.join(" | "))?;
    writeln!(out, "|{}", " --- |".repeat(headings.len()))?;
    for row in rows.iter().take(ROWS) {
        writeln!(out, "| {} |", row.join(" | "))?;
    }
    if rows.len() > ROWS {
        let more = format!("and {} more", rows.len() - ROWS);
        writeln!(out, "| {more} |{}", " |".repeat(headings.len() - 1))?;
    }
    writeln!(out)
}
