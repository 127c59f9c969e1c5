//! Rounding with calibration in parts: each unit's matrices by themselves, with given moments, and a join of their codes.

use std::path::Path;

use super::{Work, give, is_wanted, keys};
use crate::finding::Failure;
use crate::plan::parts::{Unit, units};
use crate::plan::rounding::{LayerMatrix, of_layer};
use crate::plan::{ModelRuns, Plan, Roundings};
use crate::publish::files;
use crate::quant::Isa;
use crate::run::chosen_codes::{Codes, Layer, LayerFiles};
use crate::run::event::Listener;
use crate::run::missing::check_left;
use crate::run::outcome::Options;
use crate::run::preflight::check_room;

/// Chooses the codes of the matrices of some units, as [`super::round`] does for those of all, with given moments.
///
/// # Errors
/// As [`super::round`].
pub(in crate::run) fn round_units(
    plan: &mut Plan,
    units: &[&Unit],
    options: &Options,
    listener: &dyn Listener,
) -> Result<(), Failure> {
    let mut layers = Vec::new();
    if let (true, Some(runs), Some(roundings)) = (plan.awaits_rounding(), &plan.runs, &plan.roundings) {
        let (Some(run), Some(export)) = (roundings.run(runs), plan.exports.first()) else { return Ok(()) };
        files::create_dir_all(export.path.parent().unwrap_or(&export.path))?;
        let tasks = units.iter().flat_map(|unit| &unit.tensors).flat_map(|&tensor| plan.tasks_of(tensor));
        let codes = plan.codes_bytes(tasks);
        check_room(plan, &plan.exports.ids().map(|id| if id.index() == 0 { codes } else { 0 }).collect())?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        for unit in units {
            let of = (export.path.as_path(), Some(*unit));
            let work = Work::new(plan, (runs, run, roundings), of, (isa, &options.cancel))?;
            layers.extend(work.layers(None, options.fresh, listener)?.0);
        }
    }
    give(plan, layers);
    Ok(())
}

/// Takes the codes that parts have chosen, each on a processor of whatever kind; or those of a run that was not in parts, and has
/// replaced them.
pub(super) fn join(plan: &mut Plan) -> Result<(), Failure> {
    let mut layers = Vec::new();
    let mut is_left = plan.model.tensors.map(|_| false);
    if let (Some(runs), Some(roundings), Some(export)) = (&plan.runs, &plan.roundings, plan.exports.first()) {
        let programs = &runs.description.layers;
        let matrices: Vec<_> = programs.iter().map(|program| of_layer(plan.content(), program)).collect();
        let all_keys = Isa::ALL.map(|isa| keys::anywhere(plan, roundings, &matrices, isa));
        for unit in units(plan) {
            let (name, is_wanted) = (unit.name(plan), |matrix: &_| is_wanted(roundings, Some(&unit), matrix));
            let of = LayerFiles { target: &export.path, unit: Some(name) };
            let wanted = matrices.iter().enumerate().filter(|(_, matrices)| matrices.iter().any(&is_wanted));
            let read = |(layer, _)| {
                all_keys.iter().find_map(|keys| Layer::read(&of, layer, &keys[layer], Codes::AreWritten))
            };
            match wanted.map(read).collect::<Option<Vec<Layer>>>() {
                Some(read) => layers.extend(read),
                None => unit.tensors.iter().for_each(|&tensor| is_left[tensor] = true),
            }
        }
        if is_left.iter().any(|is_left| *is_left)
            && let Some(whole) = of_whole_run(plan, (runs, roundings), &export.path, &matrices)
        {
            layers = whole;
            is_left.iter_mut().for_each(|is_left| *is_left = false);
        }
    }
    check_left(plan, &is_left)?;
    give(plan, layers);
    Ok(())
}

/// The codes that a run has chosen that was not in parts, if they are all there.
fn of_whole_run(
    plan: &Plan,
    (runs, roundings): (&ModelRuns, &Roundings),
    target: &Path,
    matrices: &[Vec<LayerMatrix<'_>>],
) -> Option<Vec<Layer>> {
    let (run, of) = (roundings.run(runs)?, LayerFiles { target, unit: None });
    Isa::ALL.iter().find_map(|&isa| {
        let keys = keys::of(plan, run, roundings, matrices, isa).layers;
        let layers = matrices.iter().zip(&keys).enumerate();
        let wanted = layers
            .filter(|(_, (matrices, _))| matrices.iter().any(|matrix| is_wanted(roundings, None, matrix)));
        wanted.map(|(layer, (_, key))| Layer::read(&of, layer, key, Codes::AreWritten)).collect()
    })
}
