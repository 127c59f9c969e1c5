//! `monoquant explain`.

use std::fmt::Write;

use super::output::Output;
use super::recipe_args::{limits, loaded};
use super::{ExplainArgs, Format};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::ids::TensorId;
use crate::model::Because;
use crate::plan::{self, Draft, Explanation, Roundings, Rule, Weighing};
use crate::report::{self, Report, RoundingRecord};
use crate::stage::Stage;
use crate::text::visible;

pub(super) fn explain(args: &ExplainArgs, output: &Output) -> Result<Exit, Failure> {
    let draft = plan::draft(loaded(&args.recipe)?)?;
    let explanations = plan::explain(&draft, &args.tensor)?;
    let weighing = draft.weigh().map(|(weighing, _)| weighing).unwrap_or_default();
    let rounded = Rounded::of(&draft);
    if output.format() == Format::Json {
        let all: Vec<_> =
            explanations.iter().map(|explanation| json(&draft, &rounded, explanation)).collect();
        output.json(&all);
        return Ok(Exit::Done);
    }
    let all: Vec<String> =
        explanations.iter().map(|explanation| text(&draft, &weighing, &rounded, explanation)).collect();
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

/// What is known of rounding with calibration: by the plan, and by the last output.
struct Rounded {
    roundings: Option<Roundings>,
    report: Option<Report>,
}

impl Rounded {
    fn of(draft: &Draft) -> Self {
        let roundings = draft.roundings();
        let report = roundings.as_ref().and_then(|_| {
            let export = draft.loaded.recipe.stages.iter().find_map(|stage| match stage {
                Stage::Export(export) => Some(export),
                _ => None,
            })?;
            let folder = plan::normalized(&draft.loaded.output_path(&export.path));
            report::read(&folder.join(report::FILE_NAME)).ok()
        });
        Self { roundings, report }
    }

    /// Why a tensor's matrices are rounded to nearest, and how many of them.
    fn nearest(&self, draft: &Draft, tensor: TensorId) -> Option<(usize, String)> {
        let roundings = self.roundings.as_ref()?;
        let mut reasons = draft.content().tasks_of(tensor).filter_map(|task| match roundings.of(task)? {
            plan::rounding::Rounded::Nearest(reason) => Some(reason.clone()),
            plan::rounding::Rounded::Chosen(_) => None,
        });
        let first = reasons.next()?;
        Some((1 + reasons.count(), first))
    }

    /// What the last output says of a tensor.
    fn last(&self, draft: &Draft, tensor: TensorId) -> Option<&RoundingRecord> {
        let name = &*draft.model.tensors[tensor].name;
        let mut tensors = self.report.as_ref()?.tensors.iter();
        tensors.find(|tensor| tensor.name == name)?.rounding.as_ref()
    }

    fn lines(&self, draft: &Draft, tensor: TensorId) -> String {
        let mut out = String::new();
        if let Some((count, reason)) = self.nearest(draft, tensor) {
            let of = if count == 1 { String::new() } else { format!(" ({count} matrices)") };
            let _ = writeln!(out, "  rounded to nearest{of}: {reason}");
        }
        if let Some(record) = self.last(draft, tensor) {
            if record.matrices > 0 && record.error_of_nearest > 0.0 {
                let share = 100.0 * record.error / record.error_of_nearest;
                let (error, nearest) = (record.error, record.error_of_nearest);
                let of_what = if record.guided > 0 { "the model's answers" } else { "its outputs" };
                let _ = writeln!(
                    out,
                    "  in the last output: error of {of_what} {error:.3e}, {share:.0} % of the {nearest:.3e} of rounding to nearest"
                );
            }
            for nearest in &record.nearest {
                let (module, reason) = (visible(&nearest.module), visible(&nearest.reason));
                let _ = writeln!(out, "  in the last output: {module} was rounded to nearest: {reason}");
            }
        }
        out
    }
}

fn text(draft: &Draft, weighing: &Weighing, rounded: &Rounded, explanation: &Explanation) -> String {
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
        Some(spec) => format!("quantized: {}, {}", spec.scheme, spec.method()),
        None => format!("skipped: {}", visible(&decision.rule.reason)),
    };
    let _ = writeln!(out, "\n  {what}");
    if let Some(used) = decision.spec().and_then(|spec| weighing.of_stage(spec.stage)) {
        let tasks = draft.tasks.numbered();
        let weighed = tasks
            .filter(|(at, task)| task.tensor() == explanation.tensor && weighing.of(*at).is_some())
            .count();
        let searches = decision.spec().is_some_and(|t| t.observer.searches() && !t.is_calibrated());
        let how = match (weighed, searches) {
            (0, _) => "says nothing of it: its columns count the same",
            (_, true) => "weighs its columns",
            (_, false) => "weighs its columns where the error is measured; its observer does not search",
        };
        let _ = writeln!(out, "  {} ({}) {how}", visible(&used.file), used.format.name());
    }
    if decision.spec().is_some_and(plan::QuantSpec::is_calibrated) {
        out.push_str(&rounded.lines(draft, explanation.tensor));
    }
    let _ = writeln!(out, "  decided by {} ({})", visible(&decision.rule.text), at(draft, &decision.rule));
    out
}

fn json(draft: &Draft, rounded: &Rounded, explanation: &Explanation) -> serde_json::Value {
    let tensor = &draft.model.tensors[explanation.tensor];
    let class = &draft.classes[explanation.tensor];
    let decision = &explanation.decision;
    let rule = |rule: &Rule| serde_json::json!({"text": &*rule.text, "line": line(draft, rule), "reason": &*rule.reason});
    let mut out = serde_json::json!({
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
    });
    if decision.spec().is_some_and(plan::QuantSpec::is_calibrated) {
        let nearest = rounded.nearest(draft, explanation.tensor);
        out["rounding"] = serde_json::json!({
            "method": decision.spec().map(|spec| spec.rounding.name()),
            "nearest": nearest.map(|(matrices, reason)| serde_json::json!({"matrices": matrices, "reason": reason})),
            "last": rounded.last(draft, explanation.tensor),
        });
    }
    out
}
