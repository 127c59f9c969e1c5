//! `monoquant explain`.

use std::fmt::Write;

use super::output::Output;
use super::recipe_args::{limits, loaded};
use super::{ExplainArgs, Format};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::model::Because;
use crate::plan::{self, Draft, Explanation, Rule, Weighing};
use crate::text::visible;

pub(super) fn explain(args: &ExplainArgs, output: &Output) -> Result<Exit, Failure> {
    let draft = plan::draft(loaded(&args.recipe)?)?;
    let explanations = plan::explain(&draft, &args.tensor)?;
    let weighing = draft.weigh().map(|(weighing, _)| weighing).unwrap_or_default();
    if output.format() == Format::Json {
        let all: Vec<_> = explanations.iter().map(|explanation| json(&draft, explanation)).collect();
        output.json(&all);
        return Ok(Exit::Done);
    }
    let all: Vec<String> =
        explanations.iter().map(|explanation| text(&draft, &weighing, explanation)).collect();
    output.result(&all.join("\n"));
    // A failure of the plan is reported, but it does not prevent an answer.
    if let Err(failure) = plan::compile(draft, limits(&args.recipe)) {
        output.findings_if(false, &failure.findings);
    }
    Ok(Exit::Done)
}

/// The line of the recipe in which a rule stands, from 1; none for built-in rules and overrides.
fn line(draft: &Draft, rule: &Rule) -> Option<usize> {
    crate::recipe::places::line(&draft.loaded, rule.pointer.as_deref()?)
}

fn at(draft: &Draft, rule: &Rule) -> String {
    line(draft, rule).map_or_else(|| "built in".to_owned(), |line| format!("line {line}"))
}

fn text(draft: &Draft, weighing: &Weighing, explanation: &Explanation) -> String {
    let tensor = &draft.model.tensors[explanation.tensor];
    let class = &draft.classes[explanation.tensor];
    let mut out = String::new();
    let _ = writeln!(out, "{}  {} {:?}", visible(&tensor.name), tensor.stored, tensor.shape);
    let _ = writeln!(out, "  kind  {}  ({})", class.kind.name(), class.kind_rule.words());
    if let Some(role) = class.role {
        let _ = writeln!(out, "  role  {}  ({})", role.name(), class.role_rule.map_or("", Because::words));
    }
    if !explanation.fused_with.is_empty() {
        let _ = writeln!(out, "  fused by engines with  {}", visible(&explanation.fused_with.join(", ")));
    }
    if !explanation.touches.is_empty() {
        let _ = writeln!(out, "\n  rules that touch it:");
        for touch in &explanation.touches {
            let rule = visible(&touch.rule.text);
            let _ = writeln!(out, "    {:<10}  {rule}: {}", at(draft, &touch.rule), visible(&touch.asks));
        }
    }
    let decision = &explanation.decision;
    let what = match decision.spec() {
        Some(spec) => format!("quantized: {}, {}", spec.scheme, spec.observer),
        None => format!("skipped: {}", visible(&decision.rule.reason)),
    };
    let _ = writeln!(out, "\n  {what}");
    if let Some(used) = decision.spec().and_then(|spec| weighing.of_stage(spec.stage)) {
        let tasks = draft.tasks.numbered();
        let weighed = tasks
            .filter(|(at, task)| task.tensor() == explanation.tensor && weighing.of(*at).is_some())
            .count();
        let searches = decision.spec().is_some_and(|t| t.observer.searches());
        let how = match (weighed, searches) {
            (0, _) => "says nothing of it: its columns count the same",
            (_, true) => "weighs its columns",
            (_, false) => "weighs its columns where the error is measured; its observer does not search",
        };
        let _ = writeln!(out, "  {} ({}) {how}", visible(&used.file), used.format.name());
    }
    let _ = writeln!(out, "  decided by {} ({})", visible(&decision.rule.text), at(draft, &decision.rule));
    out
}

fn json(draft: &Draft, explanation: &Explanation) -> serde_json::Value {
    let tensor = &draft.model.tensors[explanation.tensor];
    let class = &draft.classes[explanation.tensor];
    let decision = &explanation.decision;
    let rule = |rule: &Rule| serde_json::json!({"text": &*rule.text, "line": line(draft, rule), "reason": &*rule.reason});
    serde_json::json!({
        "tensor": tensor.name,
        "dtype": tensor.stored.name(),
        "shape": tensor.shape,
        "kind": class.kind.name(),
        "kind_rule": class.kind_rule.words(),
        "role": class.role.map(crate::layer::LayerType::name),
        "role_rule": class.role_rule.map(Because::words),
        "fused_with": explanation.fused_with,
        "rules": explanation.touches.iter().map(|touch| {
            serde_json::json!({"rule": rule(&touch.rule), "asks": touch.asks})
        }).collect::<Vec<_>>(),
        "quantized": decision.spec().is_some(),
        "scheme": decision.spec().map(|spec| spec.scheme.to_string()),
        "decided_by": rule(&decision.rule),
    })
}
