//! The gate on what the quantized model answers.

use crate::finding::Finding;
use crate::gates::{NAMED, place_of};
use crate::ids::StageId;
use crate::plan::Plan;
use crate::report::evaluation::{Evaluation, Thresholds};
use crate::stage::{Evaluate, Stage};
use crate::text::visible;

/// The thresholds of a stage.
fn thresholds(stage: &Evaluate) -> Thresholds {
    Thresholds {
        max_kl: stage.max_kl,
        max_perplexity_ratio: stage.max_perplexity_ratio,
        min_top1_agreement: stage.min_top1_agreement,
        min_cosine: stage.min_cosine,
    }
}

/// The output that was compared, as the recipe names it. None if there is one only.
fn output<'p>(plan: &'p Plan, found: &Evaluation) -> Option<&'p str> {
    let stage = StageId::new(found.export.filter(|_| plan.exports.len() > 1)?);
    let Some(Stage::Export(export)) = plan.recipe().stages.get(stage) else { return None };
    Some(plan.loaded.written(&format!("/stages/{stage}/path")).unwrap_or(&export.path))
}

/// What was found of all outputs, in one line.
pub(crate) fn summary<'e>(plan: &Plan, found: impl Iterator<Item = &'e Evaluation>) -> String {
    let lines = found.map(|found| match output(plan, found) {
        Some(path) => format!("`{}`: {}", visible(path), found.line()),
        None => found.line(),
    });
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() { "nothing was compared".to_owned() } else { lines.join("; ") }
}

/// An error for each threshold that is not met, with the layers where the hidden state departs most.
pub(crate) fn complaints(plan: &Plan, stage: StageId, of: &Evaluate, found: &Evaluation) -> Vec<Finding> {
    let crossed = found.crossed(&thresholds(of)).into_iter();
    crossed
        .map(|crossed| {
            let message = match output(plan, found) {
                Some(path) => format!("of `{}` {}", visible(path), crossed.message),
                None => crossed.message,
            };
            Finding::error("evaluate::threshold", message)
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
