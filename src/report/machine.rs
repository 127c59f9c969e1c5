//! Folders of the machine, which are no part of a report: it is published with the model.

use std::path::PathBuf;

use super::Report;
use crate::fs::paths;

impl Report {
    /// Takes folders out of the texts: paths below them are told from there. The home of the user becomes `~`.
    pub fn tell_without(&mut self, folders: impl IntoIterator<Item = PathBuf>) {
        let mut needles: Vec<(String, &str)> = Vec::new();
        for folder in folders {
            let whole = std::path::absolute(&folder).unwrap_or(folder);
            for folder in [paths::canonical(&whole), whole] {
                // The top of a file system is no secret.
                if folder.components().count() > 1 {
                    let folder = folder.display().to_string();
                    let folder = folder.trim_end_matches(['/', '\\', '.']);
                    needles.push((format!("{folder}/"), ""));
                    needles.push((folder.to_owned(), "."));
                }
            }
        }
        // A folder in another one is told from the inner one.
        needles.sort_by_key(|(needle, _)| std::cmp::Reverse(needle.len()));
        let home = std::env::var("HOME").ok().filter(|home| home.len() > 1);
        needles.extend(home.map(|home| (home, "~")));
        let clean = |text: &mut String| {
            for (needle, with) in &needles {
                if text.contains(needle.as_str()) {
                    *text = text.replace(needle.as_str(), with);
                }
            }
        };
        clean(&mut self.verdict.summary);
        for finding in &mut self.warnings {
            clean(&mut finding.message);
            finding.help.iter_mut().for_each(clean);
            finding.labels.iter_mut().for_each(|label| clean(&mut label.text));
        }
    }
}
