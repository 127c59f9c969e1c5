//! Plans of folders as people have them (`tests/fixtures/layouts/NAME.json`), against what was reviewed
//! (`tests/fixtures/layouts/NAME.txt`): which files are read, what is quantized, what is skipped and why, what is carried over,
//! and what is refused in which words. `INSTA_UPDATE=always` writes the texts anew for the review.

use std::fmt::Write;
use std::fs;

use monoquant::finding::Failure;
use monoquant::plan::{self, Limits, Plan};
use monoquant::recipe::{self, Overrides};

use crate::families;
use crate::support::compare;
use crate::support::layout::{self, Layout, Written};

/// Plans a recipe on a folder.
pub fn plan(written: &Written, recipe: &str) -> Result<Plan, Failure> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, recipe).expect("a file in a temporary folder");
    let model = Some(written.model().to_str().expect("a path in UTF-8").to_owned());
    plan::plan(recipe::load(&path, &Overrides { model, ..Overrides::default() })?, Limits::default())
}

/// What becomes of a folder, in lines.
fn told(layout: &Layout) -> String {
    let mut text = format!("{}\n", layout.about);
    let written = layout.write();
    let root = written.root().to_str().expect("a path in UTF-8");
    for (title, recipe) in layout.recipes() {
        if !title.is_empty() {
            writeln!(text, "{title}").expect("text grows");
        }
        match plan(&written, &recipe) {
            Ok(plan) => {
                for shard in &plan.model.shards {
                    writeln!(text, "  read       {}", shard.name).expect("text grows");
                }
                text.push_str(&families::summary(&plan));
                for export in &plan.exports {
                    for &copy in &export.copies {
                        writeln!(text, "  carried    {}", plan.model.others[copy].path).expect("text grows");
                    }
                    for left in &export.left {
                        writeln!(text, "  left       {}: {}", left.name, left.reason).expect("text grows");
                    }
                }
            }
            Err(failure) => {
                for finding in &failure.findings {
                    let severity = if finding.is_error() { "error" } else { "warning" };
                    let message = finding.message.replace(root, "[model]");
                    writeln!(text, "  {severity:<9}  {}: {message}", finding.code).expect("text grows");
                    if let Some(help) = finding.help_text() {
                        let help = help.replace(root, "[model]").replace('\n', "\n             ");
                        writeln!(text, "    help     {help}").expect("text grows");
                    }
                }
            }
        }
    }
    text
}

#[test]
fn every_layout_is_planned_as_reviewed() {
    let mut wrong = Vec::new();
    for name in layout::names() {
        let found = told(&Layout::load(&name));
        let path = layout::folder().join(format!("{name}.txt"));
        wrong.extend(compare(&path, &found).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
