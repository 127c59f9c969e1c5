//! Checks of the signal: the part lost under scales that are too small, and a tensor that holds more than all others
//! together.

use crate::finding::Finding;
use crate::gates::{NAMED, name, seen};
use crate::ids::{IdVec, StageId, TensorId};
use crate::plan::Plan;
use crate::quant::Distortion;
use crate::text::units::counted;

/// The share of a tensor's signal that may be lost under scales that are too small. It allows for rows that are
/// nearly zero anyway.
const FAINT_SHARE: f64 = 0.01;

/// A complaint about tensors whose scales are too small for their type, so that their codes mean little or nothing.
pub(crate) fn faint_scales(
    plan: &Plan,
    tensors: &IdVec<TensorId, Option<Distortion>>,
    stage: StageId,
) -> Option<Finding> {
    let mut faint: Vec<(f64, TensorId, &str)> = seen(plan, tensors, stage)
        .filter_map(|(tensor, spec, distortion)| {
            let distortion = distortion?;
            let share = distortion.faint / distortion.signal;
            // The type that does not hold them, which may be the one that engines round to.
            let source = plan.model.tensors[tensor].dtype.name();
            let (held, _) = spec.scheme.stored_scales();
            let held = if source == "F16" { source } else { held };
            (share > FAINT_SHARE).then_some((share, tensor, held))
        })
        .collect();
    faint.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (_, first, held) = *faint.first()?;
    let (whose, mean) = match faint.len() {
        1 => (String::new(), "its codes mean"),
        count => (format!(" and of {} more", counted(count - 1, "tensor")), "their codes mean"),
    };
    let message = format!(
        "the scales of `{}`{whose} are too small for {held}, so that {mean} little or nothing",
        name(plan, first)
    );
    let lines = faint
        .iter()
        .take(NAMED)
        .map(|(share, tensor, _)| format!("{:>4.0} %  {}", share * 100.0, name(plan, *tensor)));
    Some(
        Finding::error("check::vanished-scales", message)
            .help("The share of the signal under such scales:")
            .help_lines(lines)
            .help(
                "Leave them alone with `modules_to_not_convert`, or quantize a copy of the model in BF16, whose scales may be as \
                 small as those of F32.",
            ),
    )
}

/// The finding about a tensor that holds over half of the signal of all quantized weights, if there are others: the
/// model's SQNR is then that tensor's SQNR. Of two tensors one always does, so it must be twice the other's.
pub(crate) fn dominant_tensor(plan: &Plan, tensors: &IdVec<TensorId, Option<Distortion>>) -> Option<Finding> {
    let signals = tensors.numbered();
    let mut signals: Vec<(f64, TensorId)> = signals
        .filter_map(|(tensor, distortion)| Some((distortion.as_ref()?.signal, tensor)))
        .filter(|(signal, _)| signal.is_finite())
        .collect();
    signals.sort_by(|a, b| b.0.total_cmp(&a.0));
    let all: f64 = signals.iter().map(|(signal, _)| signal).sum();
    let [(most, tensor), others @ ..] = signals.as_slice() else { return None };
    let rest = all - most;
    let is_dominant = match others.len() {
        0 => false,
        1 => *most > 2.0 * rest,
        _ => *most > rest,
    };
    if !is_dominant {
        return None;
    }
    let others = match others.len() {
        1 => "the other tensor".to_owned(),
        count => format!("the other {}", counted(count, "tensor")),
    };
    let message = format!(
        "`{}` holds {} % of the signal of all quantized weights, so the model's SQNR says nothing of {others}",
        name(plan, *tensor),
        share(most / all),
    );
    let spec = plan.decisions[*tensor].spec()?;
    Some(
        Finding::warning("check::dominant-tensor", message)
            .at_opt(plan.stage_place(spec.stage), "quantized here")
            .help(
                "Go by the SQNR of the layers: `scope: layer` of `check-warnings`, and the report's tensors.",
            ),
    )
}

/// A share in percent. It is never 100 if something is left.
fn share(of: f64) -> String {
    let percent = of * 100.0;
    if percent < 99.5 { format!("{percent:.0}") } else { format!("over {:.0}", percent.floor().min(99.0)) }
}
