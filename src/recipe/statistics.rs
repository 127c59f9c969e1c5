//! Checks of activation statistics: the stages that need them, and the stages that name a file of them.

use super::Recipe;
use super::tree::Node;
use crate::finding::Finding;
use crate::stage::check_warnings::SqnrOf;
use crate::stage::{ObserverChoice, Stage};

/// Errors if statistics are needed and none are named, and a warning if they are named and choose nothing.
pub(super) fn findings(recipe: &Recipe, root: &Node) -> Vec<Finding> {
    let nodes = root.entry("stages").map_or(&[][..], |entry| entry.value.items());
    let stages: Vec<(&Stage, &Node)> = recipe.stages.iter().zip(nodes).collect();
    let of_load = stages.iter().any(|(stage, _)| is_load(stage) && stage.calibration().is_some());
    let mut findings = Vec::new();
    let mut is_named = false;
    for (stage, node) in &stages {
        is_named |= stage.calibration().is_some();
        if let Stage::CheckWarnings(check) = stage
            && check.sqnr == SqnrOf::Outputs
            && !is_named
        {
            findings.push(missing(node, "sqnr", "`sqnr: outputs`"));
        }
        let needs = stage.quantize().is_some_and(|stage| stage.observer() == ObserverChoice::ImatrixMse);
        if needs && !of_load && stage.calibration().is_none() {
            findings.push(missing(node, "observer", "`observer: imatrix-mse`"));
        }
    }
    for (index, (stage, node)) in stages.iter().enumerate() {
        if stage.calibration().is_some()
            && let Some(why) = idle(&stages, index)
        {
            let finding =
                Finding::warning("recipe::no-effect", "`calibration` chooses no range in this recipe")
                    .at_opt(node.entry("calibration").map(|entry| entry.key_place.clone()), why)
                    .help(
                        "Statistics weigh the search of `observer: mse`, which is what they are usually for.",
                    );
            findings.push(finding);
        }
    }
    findings
}

/// The reason why the statistics that a stage names are of no use: no search uses them, and no gate asks for the
/// values measured with them.
fn idle(stages: &[(&Stage, &Node)], named: usize) -> Option<&'static str> {
    let mut users = stages.iter().enumerate().filter(|(index, (user, _))| {
        // The file that `load` names is for the quantize stages that name none themselves.
        let takes = if is_load(stages[named].0) { user.calibration().is_none() } else { *index == named };
        takes && user.quantize().is_some()
    });
    let Some((first, _)) = users.clone().next() else { return Some("every quantize stage names its own") };
    let is_asked_for = stages[first..]
        .iter()
        .any(|(stage, _)| matches!(stage, Stage::CheckWarnings(check) if check.sqnr == SqnrOf::Outputs));
    let searches = users.any(|(_, (user, _))| user.quantize().is_some_and(|user| user.observer().searches()));
    (!is_asked_for && !searches).then_some("only measured with, and no gate asks for that")
}

fn is_load(stage: &Stage) -> bool {
    matches!(stage, Stage::Load(_))
}

fn missing(node: &Node, key: &str, what: &str) -> Finding {
    Finding::error("recipe::no-statistics", format!("{what} needs activation statistics"))
        .at_opt(node.entry(key).map(|entry| entry.value.used.clone()), "there is no `calibration`")
        .help(
            "Name a file of them with `calibration: {file: …}` on `load` or on the quantize stage; \
             `examples/calibration/collect.py` makes one.",
        )
}
