//! The gate on what the quantized model answers.

use crate::finding::Finding;
use crate::gates::{NAMED, place_of};
use crate::ids::StageId;
use crate::plan::Plan;
use crate::report::evaluation::{Evaluation, Thresholds};
use crate::stage::Evaluate;

/// The thresholds of a stage.
fn thresholds(stage: &Evaluate) -> Thresholds {
    Thresholds {
        max_kl: stage.max_kl,
        max_perplexity_ratio: stage.max_perplexity_ratio,
        min_top1_agreement: stage.min_top1_agreement,
        min_cosine: stage.min_cosine,
    }
}

/// An error for each threshold that is not met, with the layers where the hidden state departs most.
pub(crate) fn complaints(plan: &Plan, stage: StageId, of: &Evaluate, found: &Evaluation) -> Vec<Finding> {
    let crossed = found.crossed(&thresholds(of)).into_iter();
    crossed
        .map(|crossed| {
            Finding::error("evaluate::threshold", crossed.message)
                .at_opt(place_of(plan, stage, crossed.key), "threshold")
                .help("The hidden state's relative error grows most in these layers:")
                .help_lines(steepest(&found.layers))
                .help("Smaller groups, `observer: mse` with `calibrate`, or int8 for these layers bring the models closer.")
        })
        .collect()
}

/// The layers in which the error grows most.
fn steepest(errors: &[f64]) -> Vec<String> {
    let before = std::iter::once(0.0).chain(errors.iter().copied());
    let mut grown: Vec<(usize, f64, f64)> = errors
        .iter()
        .zip(before)
        .enumerate()
        .map(|(layer, (error, before))| (layer, error - before, *error))
        .collect();
    grown.sort_by(|a, b| b.1.total_cmp(&a.1));
    grown.iter().take(NAMED).map(|(layer, _, error)| format!("{:>8.4}  after layer {layer}", error)).collect()
}
