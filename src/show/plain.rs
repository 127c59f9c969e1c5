//! Findings as one line each, for logs and for editors that read compiler output.

use crate::finding::{Finding, Severity};
use crate::show::help::visible_help;
use crate::text::{inert, visible};

/// `file:line:column: severity[code]: message; help`, one line a finding. A finding without a place begins with its severity.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    inert(&findings.iter().map(line).collect::<String>()).into_owned()
}

fn line(finding: &Finding) -> String {
    let mut line = String::new();
    if let Some(label) = finding.labels.first() {
        let (row, column) = label.place.line_column();
        line.push_str(&format!("{}:{row}:{column}: ", visible(&label.place.source.name)));
    }
    line.push_str(&format!(
        "{}[{}]: {}",
        severity(finding.severity),
        finding.code,
        visible(&finding.message)
    ));
    if let Some(label) = finding.labels.first().filter(|label| !label.text.is_empty()) {
        line.push_str(&format!(" ({})", visible(&label.text)));
    }
    if !finding.help.is_empty() {
        line.push_str(&format!("; {}", visible_help(finding, " ")));
    }
    line.push('\n');
    line
}

/// The word for a severity in all machine-readable formats.
#[must_use]
pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let findings = crate::finding::tests::two_findings();
        assert_eq!(
            render(&findings),
            "r.yaml:2:4: error[recipe::bad-value]: `é` is not allowed (did you mean `e`?); Allowed: e. Or f.\n\
             warning[plan::slow]: this takes long\n"
        );
    }
}
