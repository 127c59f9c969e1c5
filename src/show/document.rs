//! Documents about a run for reviewers and machines: JSON, Markdown, JUnit, SARIF, HTML, GitLab's code quality.
//!
//! All are written from one [`Document`]. A form is one file beside this one and one line in [`FORMS`].

use std::io::{self, Write};

use crate::finding::{Diagnostic, PlaceRecord, Severity};
use crate::report::{self, GateRecord, Report};

mod escape;
mod gitlab;
mod html;
mod junit;
pub(crate) mod markdown;
mod sarif;

/// What documents tell.
#[derive(Debug)]
pub struct Document<'r> {
    /// The report of the run.
    pub report: &'r Report,
    /// The recipe's path from the root of the workspace, with `/`.
    pub recipe_path: &'r str,
    /// The recipe's text, if it could be read.
    pub recipe_text: Option<&'r str>,
}

/// A form of documents.
#[derive(Debug)]
pub struct Form {
    /// Its name, as in `FORM=FILE`.
    pub name: &'static str,
    /// The extension of files that have it. None if several forms have that extension and another one is meant.
    pub extension: Option<&'static str>,
    /// Writes a document.
    pub write: fn(&Document<'_>, &mut dyn Write) -> io::Result<()>,
}

/// All forms.
pub const FORMS: [Form; 6] = [
    Form {
        name: "json",
        extension: Some("json"),
        write: |document, out| report::write(document.report, out),
    },
    Form { name: "markdown", extension: Some("md"), write: markdown::write },
    Form { name: "junit", extension: Some("xml"), write: junit::write },
    Form { name: "sarif", extension: Some("sarif"), write: sarif::write },
    Form { name: "html", extension: Some("html"), write: html::write },
    Form { name: "gitlab", extension: None, write: gitlab::write },
];

/// The form with this name.
#[must_use]
pub fn form_named(name: &str) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.name == name)
}

/// The form of files with this extension.
#[must_use]
pub fn form_of_extension(extension: &str) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.extension.is_some_and(|own| own.eq_ignore_ascii_case(extension)))
}

impl Document<'_> {
    /// The name of the recipe.
    fn name(&self) -> &str {
        let name = self.report.recipe.get("name").and_then(|name| name.as_str());
        name.unwrap_or_else(|| self.recipe_path.rsplit('/').next().unwrap_or(self.recipe_path))
    }

    /// Findings that say that something is wrong or doubtful, without notes.
    fn findings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.report.warnings.iter().filter(|finding| finding.severity != Severity::Note)
    }

    /// The place of a finding in the recipe. None if it has none, or one in an option of the command line.
    fn place<'d>(&self, finding: &'d Diagnostic) -> Option<&'d PlaceRecord> {
        let file = self.recipe_path.rsplit('/').next().unwrap_or(self.recipe_path);
        finding.labels.first().filter(|label| label.file == file)
    }

    /// A stage that judges or publishes, for people: its name, and its place among the stages from 1.
    fn stage_words(gate: &GateRecord) -> String {
        format!("{} (stage {})", gate.name, gate.stage.index() + 1)
    }
}
