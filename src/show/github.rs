//! Findings as GitHub workflow commands. GitHub shows them beside the lines of a pull request.

use crate::finding::Finding;
use crate::show::help::visible_help;
use crate::show::plain;
use crate::text::{inert, visible};

/// `::error file=…,line=…,col=…,title=code::message`, one line a finding. GitHub counts columns from 1. `from_root`
/// gives the path of a file from the root of the workspace, which is what GitHub wants.
#[must_use]
pub fn render(findings: &[Finding], from_root: &dyn Fn(&str) -> String) -> String {
    findings.iter().map(|finding| command(finding, from_root)).collect()
}

fn command(finding: &Finding, from_root: &dyn Fn(&str) -> String) -> String {
    let mut properties = Vec::new();
    if let Some(label) = finding.labels.first() {
        let (line, column) = label.place.line_column();
        let (end_line, end_column) = label.place.end_line_column();
        properties.push(format!("file={}", property(&visible(&from_root(&label.place.source.name)))));
        properties.push(format!("line={line}"));
        properties.push(format!("endLine={end_line}"));
        properties.push(format!("col={column}"));
        properties.push(format!("endColumn={end_column}"));
    }
    properties.push(format!("title={}", property(finding.code)));
    let mut text = visible(&finding.message).into_owned();
    if let Some(label) = finding.labels.first().filter(|label| !label.text.is_empty()) {
        text.push_str(&format!(" ({})", visible(&label.text)));
    }
    if !finding.help.is_empty() {
        text.push_str(&format!("\n{}", visible_help(finding, "\n")));
    }
    format!("::{} {}::{}\n", plain::severity(finding.severity), properties.join(","), data(&text))
}

/// Escapes the text of a command, and makes anything in it harmless that would begin another command.
fn data(text: &str) -> String {
    inert(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property, in which separators have a meaning too.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_and_line_breaks_are_escaped() {
        assert_eq!(
            render(&crate::finding::tests::two_findings(), &str::to_owned),
            "::error file=r.yaml,line=2,endLine=2,col=4,endColumn=5,title=recipe%3A%3Abad-value::\
             `é` is not allowed (did you mean `e`?)%0AAllowed: e.%0AOr f.\n\
             ::warning title=plan%3A%3Aslow::this takes long\n"
        );
        assert_eq!(property("a,b:c%"), "a%2Cb%3Ac%25");
    }
}
