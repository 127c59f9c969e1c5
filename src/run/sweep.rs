//! Sweeps: several recipes for one model, measured in one pass over its weights. Nothing is written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::event::{Event, Listener};
use super::outcome::Options;
use super::stream::collector::Collector;
use super::stream::solvers::Solvers;
use super::stream::tiles::{Cut, Span, Tile};
use super::stream::weights::{WeightBuffers, Weights};
use super::stream::{Reading, bad_weight, survey};
use super::workers::Workers;
use crate::finding::Failure;
use crate::ids::{IdVec, TaskId, TensorId};
use crate::plan::Plan;
use crate::quant::{Distortion, Isa, Quantized, Scratch, TensorParams};

/// The distortion of each tensor of a plan.
pub type Measured = IdVec<TensorId, Option<Distortion>>;

/// A task of one of the plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Of {
    plan: usize,
    task: TaskId,
}

/// Tasks, each of another plan or kind, whose tiles are the same stretches of the same matrix: read once, and quantized by each.
struct Group {
    cut: Cut,
    tasks: Vec<Of>,
}

/// The work: groups, and tasks that are done by another one which is quantized alike.
struct Work {
    groups: Vec<Group>,
    same: Vec<(Of, Of)>,
}

/// What a plan's tasks are quantized with.
struct Kit<'p> {
    plan: &'p Plan,
    solvers: Solvers<'p>,
    params: IdVec<TaskId, Option<TensorParams>>,
    source: Weights<'p>,
    collector: Collector<'p>,
}

#[derive(Default)]
struct Buffers {
    source: WeightBuffers,
    quantized: Quantized,
    scratch: Scratch,
}

/// Quantizes the weights of a model as each of some plans says, and measures the results. Weights that plans treat alike are
/// quantized once; each stretch of weights is read once, but where tensors have a single scale.
///
/// # Errors
/// If a weight cannot be read or quantized, or the work is cancelled.
pub fn measure(
    plans: &[&Plan],
    options: &Options,
    listener: &dyn Listener,
) -> Result<Vec<Measured>, Failure> {
    let Some(first) = plans.first() else { return Ok(Vec::new()) };
    let bytes = plans.iter().map(|plan| plan.budget.worker_bytes()).max().unwrap_or(0);
    let workers = Workers::start(first.budget.workers, bytes, options.cancel.clone())?;
    let work = divide(plans);
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let mut kits = Vec::with_capacity(plans.len());
    for (index, plan) in plans.iter().enumerate() {
        let own = work.groups.iter().flat_map(|group| &group.tasks).filter(|of| of.plan == index);
        let tasks: Vec<TaskId> = own.map(|of| of.task).collect();
        let (source, solvers) = (Weights::open(plan)?, Solvers::new(plan, &tasks, isa));
        let params = survey(&Reading { plan, source: &source, workers: &workers }, &solvers, &tasks)?;
        kits.push(Kit { plan, solvers, params, source, collector: Collector::new(plan) });
    }
    let weights = |group: &Group| group.cut.view.map_or(0, |view| view.rows * view.cols);
    let tensor = |of: Of| &plans[of.plan].model.tensors[plans[of.plan].tasks[of.task].tensor()];
    let width = |group: &Group| group.tasks.first().map_or(0, |of| tensor(*of).working_dtype().bits() / 8);
    let bytes = work.groups.iter().map(|group| weights(group) * width(group)).sum();
    listener.on_event(&Event::Started { bytes, tensors: work.groups.len(), taken_over: 0 });
    let tiles: Vec<(usize, u64)> = work
        .groups
        .iter()
        .enumerate()
        .flat_map(|(group, of)| (0..of.cut.tiles()).map(move |number| (group, number)))
        .collect();
    let next = AtomicUsize::new(0);
    let hand_out = || {
        let at = next.fetch_add(1, Ordering::Relaxed);
        tiles.get(at).map(|tile| (at as u64, *tile))
    };
    workers.each(hand_out, |(group, number), buffers: &mut Buffers| {
        tile(&kits, &work.groups[group], number, buffers)?;
        if let Some(of) = work.groups[group].tasks.first() {
            let tensor = plans[of.plan].tasks[of.task].tensor();
            listener.on_event(&Event::Tile { tensor, bytes: buffers.source.weights.len() as u64 });
        }
        Ok(())
    })?;
    for kit in &kits {
        kit.source.check_unchanged()?;
    }
    for (of, by) in work.same {
        let found = kits[by.plan].collector.distortion_of(by.task);
        kits[of.plan].collector.known_distortion(of.task, found);
    }
    Ok(kits.into_iter().map(|kit| kit.collector.distortions()).collect())
}

fn tile(kits: &[Kit<'_>], group: &Group, number: u64, buffers: &mut Buffers) -> Result<(), Failure> {
    let Some(first) = group.tasks.first() else { return Ok(()) };
    let span = group.cut.span(number);
    let read = Tile { task: first.task, number, span };
    kits[first.plan].source.read(&read, &mut buffers.source, None)?;
    let Span::Rows(rows) = &read.span else { return Ok(()) };
    let count = rows.count() as usize;
    let of_matrix = rows.range.start as usize..rows.range.end as usize;
    let Buffers { source, quantized, scratch } = buffers;
    for of in &group.tasks {
        let kit = &kits[of.plan];
        let Some(solver) = kit.solvers.of(of.task) else { continue };
        let params = kit.params[of.task].as_ref();
        let measured = solver
            .solve_and_measure(params, &source.weights, of_matrix.clone(), quantized, scratch)
            .map_err(|bad| bad_weight(kit.plan, &kit.plan.tasks[of.task], rows.range.start, bad))?;
        let faint = solver.faint_signal(&source.weights, quantized.view(), count);
        kit.collector.distortion(of.task, number, Distortion { faint, ..measured }, rows.range.start);
    }
    Ok(())
}

/// Divides the tasks of plans into groups.
fn divide(plans: &[&Plan]) -> Work {
    let mut work = Work { groups: Vec::new(), same: Vec::new() };
    // By the stretches of weights; and by those and how they are quantized.
    let (mut groups, mut done): (HashMap<String, usize>, HashMap<String, Of>) = Default::default();
    for (plan_index, plan) in plans.iter().enumerate() {
        for (index, task) in plan.tasks.numbered() {
            let Some(spec) = plan.decisions[task.tensor()].spec() else { continue };
            let of = Of { plan: plan_index, task: index };
            let cut = Cut::of(plan, index);
            let stretches = format!("{:?} {cut:?}", task.tensor());
            // Columns may be weighed by the statistics of one plan and not by those of another.
            let own = plan.weighing.of(index).map(|_| plan_index);
            let kind = format!("{stretches} {:?} {:?} {own:?}", spec.scheme, spec.observer);
            if let Some(by) = done.get(&kind) {
                work.same.push((of, *by));
                continue;
            }
            done.insert(kind, of);
            let group = *groups.entry(stretches).or_insert_with(|| {
                work.groups.push(Group { cut, tasks: Vec::new() });
                work.groups.len() - 1
            });
            work.groups[group].tasks.push(of);
        }
    }
    work
}

/// A setting of a sweep with its results.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Bytes of the weight files of the first output.
    pub bytes: u64,
    /// The SQNR of the model in dB, infinite if nothing was lost.
    pub sqnr_db: f64,
}

/// Which of some points no other one beats in both size and SQNR.
#[must_use]
pub fn pareto(points: &[Option<Point>]) -> Vec<bool> {
    let beats = |a: &Point, b: &Point| {
        a.bytes <= b.bytes && a.sqnr_db >= b.sqnr_db && (a.bytes < b.bytes || a.sqnr_db > b.sqnr_db)
    };
    let is_best = |point: &Point| !points.iter().flatten().any(|other| beats(other, point));
    points.iter().map(|point| point.as_ref().is_some_and(is_best)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let point = |bytes, sqnr_db| Some(Point { bytes, sqnr_db });
        let points =
            [point(10, 20.0), point(10, 19.0), point(8, 19.0), point(12, 20.0), None, point(8, 19.0)];
        assert_eq!(pareto(&points), [true, false, true, false, false, true]);
    }
}
