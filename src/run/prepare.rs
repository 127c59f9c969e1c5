//! What a plan needs from running its model before the weights are streamed: statistics, and codes that are rounded with calibration.

use super::event::Listener;
use super::outcome::Options;
use super::{calibrate, rounding};
use crate::finding::Failure;
use crate::ids::StageId;
use crate::network::Op;
use crate::plan::Plan;
use crate::stage::{OnMissing, Stage, statistics_of};

/// Measures the statistics that quantize stages of a plan wait for, and chooses the codes of the matrices that are rounded with
/// calibration. Statistics that choose nothing are measured while the model runs for the rounding, so that it runs once less; they
/// are the same.
///
/// # Errors
/// As [`calibrate::calibrate`] and [`rounding::round`].
pub fn prepare(plan: &mut Plan, options: &Options, listener: &dyn Listener) -> Result<(), Failure> {
    let stage = on_the_way(plan).filter(|stage| !options.join && !calibrate::is_kept(plan, *stage, options));
    let Some(stage) = stage else {
        calibrate::calibrate(plan, options, listener)?;
        return rounding::round(plan, options, listener);
    };
    let mut statistics = calibrate::begin(plan).unwrap_or_default();
    if rounding::round_and_measure(plan, Some(&mut statistics), options, listener)? {
        calibrate::finish(plan, stage, &statistics)
    } else {
        // All codes were known.
        calibrate::calibrate(plan, options, listener)
    }
}

/// The `calibrate` stage whose statistics can be measured while layers are rounded: it is the only one that is waited for, no range is
/// chosen with them, and a module that they lack would not end the run before the rounding.
fn on_the_way(plan: &Plan) -> Option<StageId> {
    let roundings = plan.roundings.as_ref().filter(|of| plan.awaits_rounding() && of.moments.is_none())?;
    let stages = &plan.recipe().stages;
    let Stage::Calibrate(stage) = &stages[roundings.calibrate] else { return None };
    let pending = &plan.weighing.pending;
    let is_of_it = |quantize: &StageId| statistics_of(stages, *quantize) == Some(roundings.calibrate);
    if pending.is_empty() || !pending.iter().all(is_of_it) {
        return None;
    }
    let layers = &plan.runs.as_ref()?.description.layers;
    // Tokens come to each matrix but those of experts.
    let routes = layers.iter().flat_map(|program| &program.ops).any(|op| matches!(op, Op::Route { .. }));
    let mut may_lack = routes && stage.on_missing == OnMissing::Error;
    for (number, task) in plan.tasks.numbered() {
        let spec = plan.decisions[task.tensor()].spec().filter(|spec| pending.contains(&spec.stage));
        let (Some(spec), Some(_)) = (spec, task.matrix(&plan.model)) else { continue };
        if plan.weighing.changes_ranges(number, spec) {
            return None;
        }
        let is_rounded = spec.is_calibrated() && roundings.of(number).is_none();
        may_lack |= !is_rounded && stage.on_missing == OnMissing::Error;
    }
    (!may_lack).then_some(roundings.calibrate)
}
