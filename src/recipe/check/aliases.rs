//! Mistakes in values that aliases of YAML use at several places.

use crate::finding::{Finding, Place};

/// One mistake that several aliases share is told once, with every place that uses it.
pub(super) fn merge(findings: impl Iterator<Item = Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in findings {
        let same = |other: &&mut Finding| {
            other.message == finding.message
                && other.labels.first().map(|label| &label.place)
                    == finding.labels.first().map(|label| &label.place)
        };
        match merged.iter_mut().find(same) {
            Some(other) => other.labels.extend(finding.labels.into_iter().skip(1)),
            None => merged.push(finding),
        }
    }
    merged
}

/// A finding with a label at the word, which for an alias is the word that it stands for and the place of its use.
pub(super) fn labelled(finding: Finding, used: &Place, defined: Option<&Place>, label: &str) -> Finding {
    match defined {
        Some(defined) => finding.at(defined.clone(), label).at(used.clone(), "used here"),
        None => finding.at(used.clone(), label),
    }
}
