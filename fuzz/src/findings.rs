//! What holds for every finding, whatever it is about.

use monoquant::finding::{Diagnostic, Failure, Finding, diagnostics};
use monoquant::show::graphical::Style;
use monoquant::show::{github, graphical, plain};

/// Renders a failure's findings in every form.
pub fn check_failure(failure: &Failure) {
    assert!(!failure.findings.is_empty(), "a failure that says nothing");
    assert!(failure.findings.iter().any(Finding::is_error), "a failure without an error");
    check(&failure.findings);
}

/// Renders findings in every form: places lie within their texts, and a finding is one line where it is to be one.
pub fn check(findings: &[Finding]) {
    for finding in findings {
        assert!(finding.code.contains("::") && !finding.message.is_empty(), "{finding:?}");
        for label in &finding.labels {
            let (place, text) = (&label.place, &label.place.source.text);
            assert!(place.start <= place.end && place.end <= text.len(), "{finding:?}");
            assert!(text.is_char_boundary(place.start) && text.is_char_boundary(place.end), "{finding:?}");
            assert!(place.line_column() <= place.end_line_column(), "{finding:?}");
        }
    }
    let lines = plain::render(findings);
    assert_eq!(lines.matches('\n').count(), findings.len(), "{lines:?}");
    let commands = github::render(findings, &str::to_owned);
    assert_eq!(commands.matches('\n').count(), findings.len(), "{commands:?}");
    assert!(!commands.contains('\r'), "{commands:?}");
    for command in commands.split_terminator('\n') {
        assert!(command.starts_with("::error ") || command.starts_with("::warning "), "{commands:?}");
    }
    let text = serde_json::to_string(&diagnostics(findings)).expect("JSON");
    let read: Vec<Diagnostic> = serde_json::from_str(&text).expect("the same JSON");
    assert_eq!(read, diagnostics(findings));
    for (width, color, unicode) in [(40, false, false), (80, true, true), (140, false, true)] {
        let drawing = graphical::render(findings, Style { color, unicode, width });
        assert_eq!(drawing.is_empty(), findings.is_empty());
    }
}
