//! Thresholds against what a scheme can reach: a gate that always fires helps nobody.

use std::collections::BTreeMap;

use super::select::Decision;
use crate::finding::Finding;
use crate::model::ModelFolder;
use crate::recipe::Loaded;
use crate::stage::Stage;

/// A warning for each threshold of `check-warnings` that even Gaussian weights would not meet.
pub(super) fn check(loaded: &Loaded, model: &ModelFolder, decisions: &[Decision]) -> Vec<Finding> {
    // The best that each scheme does on any of its tensors.
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    for (tensor, decision) in model.tensors.iter().zip(decisions) {
        let Some(treatment) = decision.treatment() else { continue };
        let Some(reach) = treatment.expected_sqnr(tensor) else { continue };
        let name = format!("{}, {}", treatment.scheme, treatment.observer);
        let known = best.entry(name).or_insert(reach);
        *known = known.max(reach);
    }
    let Some((scheme, reach)) = best.iter().min_by(|a, b| a.1.total_cmp(b.1)) else { return Vec::new() };
    let mut findings = Vec::new();
    for (index, stage) in loaded.recipe.stages.iter().enumerate() {
        let Stage::CheckWarnings(stage) = stage else { continue };
        for (key, threshold) in [
            ("sqnr_error_threshold", stage.sqnr_error_threshold),
            ("sqnr_warning_threshold", stage.sqnr_warning_threshold),
        ] {
            if threshold <= *reach {
                continue;
            }
            let place = super::places::said_or_stage(loaded, index, key);
            findings.push(
                Finding::warning(
                    "plan::unreachable-threshold",
                    format!("`{key}` of {threshold} dB is above what the scheme can reach"),
                )
                .at_opt(place, format!("{scheme}: {reach:.1} dB on Gaussian weights"))
                .help(format!(
                    "Real layers stay 0.5 to 2 dB below that. Set {:.0} or less, or use a finer scheme (smaller groups, \
                     `observer: mse`, int8).",
                    (reach - 2.0).floor()
                )),
            );
        }
    }
    findings
}
