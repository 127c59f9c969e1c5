//! Thresholds that a scheme cannot reach. A gate that always fires is of no use.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::ids::StageId;
use crate::plan::layout::spec_at;
use crate::plan::output_tensor::Content;
use crate::plan::statistics::Weighing;
use crate::stage::Stage;
use crate::stage::check_warnings::SqnrOf;

/// A warning for each threshold of `check-warnings` that even Gaussian weights would not meet.
pub(crate) fn check(content: Content<'_>, weighing: &Weighing) -> Vec<Finding> {
    let (loaded, mut findings) = (content.loaded, Vec::new());
    for (index, stage) in loaded.recipe.stages.numbered() {
        let Stage::CheckWarnings(stage) = stage else { continue };
        // The reachable SQNR of a scheme is known for weights, not for outputs.
        if stage.sqnr == SqnrOf::Outputs {
            continue;
        }
        let Some((scheme, reach)) = least_reach(content, weighing, index) else { continue };
        for bound in [stage.error(), stage.warning()] {
            // A default is asked only of schemes that can meet it.
            let Some(threshold) = bound.written().filter(|threshold| *threshold > reach) else { continue };
            let key = bound.threshold_key;
            let place = crate::recipe::places::said_or_stage(loaded, index, key);
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

/// Of the schemes of the stages before `stage`, the one that reaches least, each on the tensor on which it does best.
fn least_reach(content: Content<'_>, weighing: &Weighing, stage: StageId) -> Option<(String, f64)> {
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    for (number, task) in content.tasks.numbered() {
        let spec = spec_at(&content.decisions[task.tensor()], stage);
        let (Some(spec), Some(view)) = (spec, task.matrix(content.model)) else { continue };
        if weighing.changes_ranges(number, spec) {
            continue;
        }
        let Some(reach) = spec.expected_sqnr(view.rows, view.cols) else { continue };
        let name = format!("{}, {}", spec.scheme, spec.observer);
        let known = best.entry(name).or_insert(reach);
        *known = known.max(reach);
    }
    best.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))
}
