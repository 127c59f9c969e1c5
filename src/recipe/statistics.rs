//! Checks of activation statistics: the stages that need them, and the stages that name a file of them; and of rounding, which
//! runs the model on text.

use super::Recipe;
use super::tree::Node;
use crate::finding::Finding;
use crate::ids::{IdVec, StageId};
use crate::quant::Granularity;
use crate::stage::check_warnings::SqnrOf;
use crate::stage::{ObserverChoice, RoundingChoice, Stage, statistics_of};

/// Errors if statistics are needed and none are named, and a warning if they are named and choose nothing.
pub(super) fn findings(recipe: &Recipe, root: &Node) -> Vec<Finding> {
    let nodes = root.entry("stages").map_or(&[][..], |entry| entry.value.items());
    let mut findings = Vec::new();
    let mut is_named = false;
    for ((index, stage), node) in recipe.stages.numbered().zip(nodes) {
        is_named |= stage.calibration().is_some() || matches!(stage, Stage::Calibrate(_));
        if let Stage::CheckWarnings(check) = stage
            && check.sqnr == SqnrOf::Outputs
            && !is_named
        {
            findings.push(missing(node, "sqnr", "`sqnr: outputs`"));
        }
        let needs = stage.quantize().is_some_and(|stage| stage.observer() == ObserverChoice::ImatrixMse);
        if needs && statistics_of(&recipe.stages, index).is_none() {
            findings.push(missing(node, "observer", "`observer: imatrix-mse`"));
        }
    }
    rounding(recipe, nodes, &mut findings);
    unguided(recipe, nodes, &mut findings);
    given_moments(recipe, nodes, &mut findings);
    for ((index, stage), node) in recipe.stages.numbered().zip(nodes) {
        let (word, place) = match stage {
            Stage::Calibrate(_) => ("calibrate", Some(node.word().clone())),
            _ => ("calibration", node.entry("calibration").map(|entry| entry.key_place.clone())),
        };
        if (stage.calibration().is_some() || matches!(stage, Stage::Calibrate(_)))
            && let Some(why) = idle(&recipe.stages, index)
        {
            let finding =
                Finding::warning("recipe::no-effect", format!("`{word}` chooses no range in this recipe"))
                    .at_opt(place, why)
                    .help(
                        "Statistics weigh the search of `observer: mse`, which is what they are usually for.",
                    );
            findings.push(finding);
        }
    }
    findings
}

/// Errors of stages that round with calibration: they need the model to run, rows that are independent of each other, and a place
/// for what they choose; and they go through the layers together.
fn rounding(recipe: &Recipe, nodes: &[Node], findings: &mut Vec<Finding>) {
    let mut first: Option<(Option<StageId>, bool, &Node)> = None;
    for ((index, stage), node) in recipe.stages.numbered().zip(nodes) {
        let Some(quantize) = stage.quantize().filter(|stage| !stage.rounding().is_nearest()) else {
            continue;
        };
        let at = |key: &str| node.entry(key).map(|entry| entry.value.used.clone());
        let word = format!("`rounding: {}`", quantize.rounding().name());
        let owner = statistics_of(&recipe.stages, index);
        if owner.is_none_or(|owner| !matches!(recipe.stages[owner], Stage::Calibrate(_))) {
            let mut finding = Finding::error("recipe::rounding", format!("{word} needs a `calibrate` stage"))
                .at_opt(at("rounding"), "runs the model on text");
            finding = match stage.calibration() {
                Some(_) => finding
                    .at_opt(node.entry("calibration").map(|entry| entry.key_place.clone()), "a file")
                    .help("A file of statistics does not say enough. Remove `calibration`, and put `- stage: calibrate` before it."),
                None => finding.help("Put `- stage: calibrate` before it."),
            };
            findings.push(finding);
        }
        if quantize.granularity() == Granularity::Tensor {
            findings.push(
                Finding::error("recipe::rounding", format!("{word} cannot share one scale between all rows"))
                    .at_opt(at("granularity"), "one scale for the whole tensor")
                    .help("Use `granularity: channel` or `group`, or `rounding: nearest`."),
            );
        }
        if !recipe.stages.iter().any(|stage| matches!(stage, Stage::Export(_))) {
            findings.push(
                Finding::error("recipe::rounding", format!("{word} needs an `export` stage"))
                    .at_opt(at("rounding"), "codes that are chosen are kept beside the output")
                    .help("Add `- stage: export` and a `path`."),
            );
        }
        let is_sequential = quantize.sequential().unwrap_or(true);
        let Some((of_first, was_sequential, first_node)) = first else {
            first = Some((owner, is_sequential, node));
            continue;
        };
        let (key, what) = match (of_first == owner, was_sequential == is_sequential) {
            (true, true) => continue,
            (false, _) => ("rounding", "the text of one `calibrate` stage"),
            (_, false) => ("sequential", "the same `sequential`"),
        };
        findings.push(
            Finding::error("recipe::rounding", format!("stages with {word} need {what}"))
                .at_opt(at(key).or_else(|| at("rounding")), "rounded with the stage below or above")
                .at_opt(first_node.entry("rounding").map(|entry| entry.value.used.clone()), "the first")
                .help("They go through the layers of the model together."),
        );
    }
}

/// Warnings for what `calibrate` says of gradients that no stage after it takes.
fn unguided(recipe: &Recipe, nodes: &[Node], findings: &mut Vec<Finding>) {
    let takes = |calibrate: StageId| {
        recipe.stages.numbered().any(|(index, stage)| {
            stage.quantize().is_some_and(|stage| stage.rounding() == RoundingChoice::Guided)
                && statistics_of(&recipe.stages, index) == Some(calibrate)
        })
    };
    for ((index, stage), node) in recipe.stages.numbered().zip(nodes) {
        if !matches!(stage, Stage::Calibrate(_)) || takes(index) {
            continue;
        }
        for entry in ["gradient_samples", "seed"].into_iter().filter_map(|key| node.entry(key)) {
            let message = format!("`{}` has no effect in this `calibrate`", entry.key);
            findings.push(
                Finding::warning("recipe::no-effect", message)
                    .at(entry.key_place.clone(), "only `rounding: guided` takes gradients")
                    .help("Remove it, or set `rounding: guided` in a quantize stage after it."),
            );
        }
    }
}

/// Errors of a file of moments for stages that need those of two models, and a warning if no stage takes it.
fn given_moments(recipe: &Recipe, nodes: &[Node], findings: &mut Vec<Finding>) {
    for ((index, stage), node) in recipe.stages.numbered().zip(nodes) {
        let (Stage::Calibrate(_), Some(entry)) = (stage, node.entry("moments")) else { continue };
        let takers = recipe.stages.numbered().zip(nodes).filter_map(|((user, stage), node)| {
            let quantize = stage.quantize().filter(|stage| !stage.rounding().is_nearest())?;
            (statistics_of(&recipe.stages, user) == Some(index)).then_some((quantize, node))
        });
        let takers: Vec<_> = takers.collect();
        if takers.is_empty() {
            findings.push(
                Finding::warning("recipe::no-effect", "`moments` has no effect in this `calibrate`")
                    .at(entry.key_place.clone(), "only `rounding: gptq` and `guided` take them")
                    .help("Remove it, or set `rounding` in a quantize stage after it."),
            );
        }
        let Some((_, taker)) = takers.iter().find(|(stage, _)| stage.sequential() != Some(false)) else {
            continue;
        };
        let place = taker.entry("sequential").or_else(|| taker.entry("rounding"));
        findings.push(
            Finding::error("recipe::rounding", "`moments` of `calibrate` needs `sequential: false`")
                .at(entry.key_place.clone(), "of the unquantized model alone")
                .at_opt(
                    place.map(|entry| entry.value.used.clone()),
                    "looks at what earlier layers have become",
                )
                .help("Set `sequential: false`, or remove `moments`."),
        );
    }
}

/// The reason why the statistics that a stage names are of no use: no search uses them, and no gate asks for the
/// values measured with them.
fn idle(stages: &IdVec<StageId, Stage>, named: StageId) -> Option<&'static str> {
    let users = || {
        let all = stages.numbered();
        all.filter(|(index, user)| user.quantize().is_some() && statistics_of(stages, *index) == Some(named))
    };
    let Some((first, _)) = users().next() else {
        let is_measured = matches!(stages[named], Stage::Calibrate(_));
        return Some(if is_measured {
            "no quantize stage after it"
        } else {
            "every quantize stage names its own"
        });
    };
    let is_asked_for = stages
        .numbered()
        .skip_while(|(index, _)| *index < first)
        .any(|(_, stage)| matches!(stage, Stage::CheckWarnings(check) if check.sqnr == SqnrOf::Outputs));
    let searches = users().any(|(_, user)| {
        user.quantize().is_some_and(|user| user.observer().searches() || !user.rounding().is_nearest())
    });
    (!is_asked_for && !searches).then_some("only measured with, and no gate asks for that")
}

fn missing(node: &Node, key: &str, what: &str) -> Finding {
    Finding::error("recipe::no-statistics", format!("{what} needs activation statistics"))
        .at_opt(node.entry(key).map(|entry| entry.value.used.clone()), "there is no `calibration`")
        .help(
            "Put `- stage: calibrate` before it, which measures them, or name a file of them with \
             `calibration: {file: …}`.",
        )
}
