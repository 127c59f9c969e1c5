//! Rules about the order of stages, which no schema can express. They use the names only, so that they also work if a
//! stage's parameters are wrong. An unknown stage may be any stage, and silences the rules that it could satisfy.

use super::tree::Node;
use crate::finding::{Finding, Place};

/// One stage by its name, as far as it can be told.
struct Step<'t> {
    name: &'t str,
    place: Place,
    node: &'t Node,
}

impl Step<'_> {
    fn is_quantize(&self) -> bool {
        self.name.starts_with("quantize-")
    }

    /// Whether weights are codes after it.
    fn may_quantize(&self) -> bool {
        self.may_be_governed() || self.is_convert()
    }

    /// Whether `resolve-skips` says what it skips.
    fn may_be_governed(&self) -> bool {
        self.is_quantize() || super::schema::stage(self.name).is_none()
    }

    fn is_convert(&self) -> bool {
        self.name == "convert"
    }

    /// Whether a failure of this stage stops the run: its own `on_failure`, else the recipe's, else the stage's default.
    fn gates(&self, recipe_wide: Option<&str>) -> bool {
        let own = self.node.entry("on_failure").and_then(|entry| entry.value.as_text());
        match (self.name, own.or(recipe_wide)) {
            ("validate" | "check-warnings" | "evaluate", Some(on_failure)) => on_failure == "error",
            (name, None) => matches!(name, "validate" | "evaluate"),
            _ => false,
        }
    }
}

/// Errors and warnings about the order of the stages.
pub(super) fn findings(root: &Node) -> Vec<Finding> {
    let Some(stages) = root.entry("stages") else { return Vec::new() };
    let steps: Vec<Step<'_>> = stages
        .value
        .items()
        .iter()
        .map(|node| Step {
            name: node.entry("stage").and_then(|entry| entry.value.as_text()).unwrap_or_default(),
            place: node.word().clone(),
            node,
        })
        .collect();
    if steps.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    load_first(&steps, &mut findings);
    quantize_before(&steps, &mut findings);
    if steps.iter().any(Step::may_quantize) {
        idle_stages(&steps, &mut findings);
    }
    late_gates(&steps, root, &mut findings);
    same_paths(&steps, &mut findings);
    idle_default(&steps, root, &mut findings);
    findings
}

fn error(message: impl Into<String>) -> Finding {
    Finding::error("recipe::stage-order", message)
}

fn load_first(steps: &[Step<'_>], findings: &mut Vec<Finding>) {
    let mut loads = steps.iter().enumerate().filter(|(_, step)| step.name == "load");
    match loads.next() {
        Some((0, _)) => {}
        Some((_, load)) => findings.push(
            error("`load` has to be the first stage")
                .at(load.place.clone(), "loads the model only here")
                .at(steps[0].place.clone(), "comes before there is a model")
                .help("Move `load` to the top of `stages`."),
        ),
        None if steps.iter().any(|step| super::schema::stage(step.name).is_none()) => {}
        None => findings.push(
            error("this recipe has no `load`")
                .at(steps[0].place.clone(), "there is no model for this stage")
                .help("Begin `stages` with `- stage: load` and `model: PATH`."),
        ),
    }
    if let Some((_, first)) = steps.iter().enumerate().find(|(_, step)| step.name == "load") {
        for (_, load) in loads {
            findings.push(
                error("`load` occurs twice")
                    .at(load.place.clone(), "a second model")
                    .at(first.place.clone(), "the first")
                    .help(
                        "A recipe quantizes one model. Write one recipe per model, or set it with `--model`.",
                    ),
            );
        }
    }
}

fn quantize_before(steps: &[Step<'_>], findings: &mut Vec<Finding>) {
    let Some(first) = steps.iter().position(Step::may_quantize) else {
        let last = &steps[steps.len() - 1];
        findings.push(
            error("no stage of this recipe quantizes anything")
                .at(last.place.clone(), "the last stage, and nothing is quantized")
                .help(
                    "Add `- stage: quantize-int4` or `- stage: quantize-int8`, or `- stage: convert` for a model that is \
                     quantized already.",
                ),
        );
        return;
    };
    for step in &steps[..first] {
        if matches!(step.name, "validate" | "check-warnings" | "evaluate" | "export") {
            findings.push(
                error(format!("`{}` needs a quantize stage before it", step.name))
                    .at(step.place.clone(), "nothing is quantized up to here")
                    .at(steps[first].place.clone(), "quantizes only here")
                    .help(format!("Move `{}` below `{}`.", step.name, steps[first].name)),
            );
        }
    }
}

fn warning(message: impl Into<String>) -> Finding {
    Finding::warning("recipe::no-effect", message)
}

fn idle_stages(steps: &[Step<'_>], findings: &mut Vec<Finding>) {
    let last_reader = steps.iter().rposition(|step| {
        matches!(step.name, "validate" | "check-warnings" | "evaluate" | "export")
            || super::schema::stage(step.name).is_none()
    });
    for (index, step) in steps.iter().enumerate() {
        let later = &steps[index + 1..];
        if step.name == "resolve-skips" {
            let governed =
                later.iter().take_while(|step| step.name != "resolve-skips").any(Step::may_be_governed);
            if !governed {
                let next = later.iter().find(|step| step.name == "resolve-skips");
                findings.push(
                    warning("`resolve-skips` has no effect here")
                        .at(step.place.clone(), "no quantize stage comes after it")
                        .at_opt(next.map(|next| next.place.clone()), "takes its place")
                        .help("It governs the quantize stages after it, until the next `resolve-skips`."),
                );
            }
        }
        if (step.is_quantize() || step.is_convert()) && last_reader.is_some_and(|last| last < index) {
            findings.push(
                warning(format!("`{}` has no effect here", step.name))
                    .at(step.place.clone(), "what it quantizes is neither checked nor written")
                    .help("Move it above `export`."),
            );
        }
    }
}

fn late_gates(steps: &[Step<'_>], root: &Node, findings: &mut Vec<Finding>) {
    let recipe_wide = root.entry("on_failure").and_then(|entry| entry.value.as_text());
    for (index, step) in steps.iter().enumerate() {
        let before = steps[..index].iter().rfind(|step| step.name == "export");
        if let (true, Some(export)) = (step.gates(recipe_wide), before) {
            findings.push(
                Finding::warning(
                    "recipe::late-gate",
                    format!("`{}` cannot stop the `export` before it", step.name),
                )
                .at(step.place.clone(), "fails after the model is published")
                .at(export.place.clone(), "published here")
                .help(format!("Move `{}` above `export`, or set its `on_failure` to warn.", step.name)),
            );
        }
    }
}

fn same_paths(steps: &[Step<'_>], findings: &mut Vec<Finding>) {
    let mut seen: Vec<(&str, &Place)> = Vec::new();
    for step in steps.iter().filter(|step| step.name == "export") {
        let Some(path) = step.node.entry("path") else { continue };
        let Some(text) = path.value.as_text() else { continue };
        let plain = text.trim_start_matches("./").trim_end_matches('/');
        match seen.iter().find(|(other, _)| *other == plain) {
            Some((_, first)) => findings.push(
                Finding::error("recipe::same-path", "two exports write to one directory")
                    .at(path.value.used.clone(), "would replace what the first wrote")
                    .at((*first).clone(), "the first")
                    .help("Give each export a `path` of its own."),
            ),
            None => seen.push((plain, &path.value.used)),
        }
    }
}

fn idle_default(steps: &[Step<'_>], root: &Node, findings: &mut Vec<Finding>) {
    let Some(entry) = root.entry("on_failure") else { return };
    let gate = |step: &Step<'_>| matches!(step.name, "validate" | "check-warnings" | "evaluate");
    if !steps.iter().any(|step| gate(step) || super::schema::stage(step.name).is_none()) {
        findings.push(
            warning("`on_failure` has no effect in this recipe")
                .at(entry.key_place.clone(), "no stage below checks anything")
                .help("It is the default of `validate`, `check-warnings` and `evaluate`."),
        );
    }
}
