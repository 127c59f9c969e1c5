//! JUnit: the run and each of its gates is a test case.

use std::io::{self, Write};

use super::Document;
use super::escape::xml;
use crate::finding::{Diagnostic, Severity};
use crate::report::GateOutcome;

/// How a test case ended.
enum Ended {
    Passed,
    /// With an attribute `message` and a text.
    Failed(String, String),
    /// As above, by something else than what is tested.
    Broken(String, String),
    Skipped(String),
}

/// A test case.
struct Case {
    name: String,
    ended: Ended,
    /// Its standard output.
    said: String,
}

/// Writes the test cases.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write(document: &Document<'_>, out: &mut dyn Write) -> io::Result<()> {
    let cases = cases(document);
    let count = |is: fn(&Ended) -> bool| cases.iter().filter(|case| is(&case.ended)).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\"",
        cases.len(),
        count(|ended| matches!(ended, Ended::Failed(..))),
        count(|ended| matches!(ended, Ended::Broken(..)))
    );
    let skipped = count(|ended| matches!(ended, Ended::Skipped(_)));
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    writeln!(out, "<testsuites name=\"monoquant\" {counts}>")?;
    writeln!(out, "  <testsuite name=\"{}\" {counts} skipped=\"{skipped}\">", xml(document.name()))?;
    for case in &cases {
        let (name, class) = (xml(&case.name), xml(document.recipe_path));
        writeln!(out, "    <testcase name=\"{name}\" classname=\"{class}\">")?;
        match &case.ended {
            Ended::Passed => {}
            Ended::Failed(message, text) => problem(out, "failure", message, text)?,
            Ended::Broken(message, text) => problem(out, "error", message, text)?,
            Ended::Skipped(message) => writeln!(out, "      <skipped message=\"{}\"/>", xml(message))?,
        }
        if !case.said.is_empty() {
            writeln!(out, "      <system-out>{}</system-out>", xml(&case.said))?;
        }
        writeln!(out, "    </testcase>")?;
    }
    writeln!(out, "  </testsuite>\n</testsuites>")
}

fn problem(out: &mut dyn Write, element: &str, message: &str, text: &str) -> io::Result<()> {
    writeln!(
        out,
        "      <{element} message=\"{}\" type=\"monoquant\">{}</{element}>",
        xml(message),
        xml(text)
    )
}

fn cases(document: &Document<'_>) -> Vec<Case> {
    let report = document.report;
    let errors: Vec<&Diagnostic> =
        report.warnings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    let text = |is: &dyn Fn(&Diagnostic) -> bool| -> String {
        let chosen: Vec<String> =
            errors.iter().filter(|finding| is(finding)).map(|finding| words(document, finding)).collect();
        chosen.join("\n")
    };
    let is_of_baseline = |finding: &Diagnostic| finding.code.starts_with("baseline::");
    // A run that came to its gates has a record of each of them.
    if report.gates.is_empty() && !report.verdict.passed {
        let ended = Ended::Broken(report.verdict.summary.clone(), text(&|_| true));
        return vec![Case { name: "run".to_owned(), ended, said: String::new() }];
    }
    // What gates have found that did not fail them is said of the run: a case that passed has no other place for it.
    let warnings = document.findings().filter(|finding| finding.severity != Severity::Error);
    let said = std::iter::once(report.verdict.summary.clone())
        .chain(warnings.map(|finding| words(document, finding)))
        .collect::<Vec<_>>()
        .join("\n");
    let mut cases = vec![Case { name: "run".to_owned(), ended: Ended::Passed, said }];
    cases.extend(report.gates.iter().map(|gate| {
        let ended = match gate.outcome {
            GateOutcome::Passed | GateOutcome::Warned | GateOutcome::FailedAndIgnored => Ended::Passed,
            GateOutcome::Failed => {
                Ended::Failed(gate.summary.clone(), text(&|finding| !is_of_baseline(finding)))
            }
            GateOutcome::NotReached => Ended::Skipped(gate.summary.clone()),
        };
        let said = match gate.outcome {
            GateOutcome::Failed | GateOutcome::NotReached => String::new(),
            outcome => format!("{}: {}", outcome.words(), gate.summary),
        };
        Case { name: Document::stage_words(gate), ended, said }
    }));
    if let Some(baseline) = &report.baseline {
        let text = text(&is_of_baseline);
        let ended = match text.is_empty() {
            true => Ended::Passed,
            false => Ended::Failed(format!("worse than {}", baseline.a.name), text),
        };
        cases.push(Case { name: "baseline".to_owned(), ended, said: String::new() });
    }
    cases
}

/// A finding as some lines of text.
fn words(document: &Document<'_>, finding: &Diagnostic) -> String {
    let place = match document.place(finding) {
        Some(place) => format!("{}:{}: ", document.recipe_path, place.line),
        None => String::new(),
    };
    let help = finding.help.as_deref().map_or(String::new(), |help| format!("\n{help}"));
    format!("{place}{}: {}{help}", finding.code, finding.message)
}
