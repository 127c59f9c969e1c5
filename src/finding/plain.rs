//! Findings as one line each, for logs and for editors that read compiler output.

use super::{Finding, Severity};

/// `file:line:column: severity[code]: message; help`, one line a finding. A finding without a place begins with its severity.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    findings.iter().map(line).collect()
}

fn line(finding: &Finding) -> String {
    let mut line = String::new();
    if let Some(label) = finding.labels.first() {
        let (row, column) = label.place.line_column();
        line.push_str(&format!("{}:{row}:{column}: ", label.place.source.name));
    }
    line.push_str(&format!("{}[{}]: {}", severity(finding.severity), finding.code, finding.message));
    if let Some(label) = finding.labels.first().filter(|label| !label.text.is_empty()) {
        line.push_str(&format!(" ({})", label.text));
    }
    if let Some(help) = &finding.help {
        line.push_str(&format!("; {help}"));
    }
    let mut line = line.replace('\n', " ");
    line.push('\n');
    line
}

/// The word for a severity in all machine-readable formats.
pub(super) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let findings = super::super::tests::two_findings();
        assert_eq!(
            render(&findings),
            "r.yaml:2:4: error[recipe::bad-value]: `é` is not allowed (did you mean `e`?); Allowed: e. Or f.\n\
             warning[plan::slow]: this takes long\n"
        );
    }
}
