//! Mends of a recipe whose gate fails: changes of its text, measured on the model, of which the smallest that passes is chosen.

use std::collections::BTreeSet;

use super::event::Listener;
use super::outcome::Options;
use super::sweep::{self, Measured};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::gates::outlook;
use crate::ids::{StageId, TensorId};
use crate::plan::{Limits, Plan};
use crate::quant::{Bits, Distortion, Granularity};
use crate::recipe::{Loaded, Overrides, from_text};
use crate::report::ledger;
use crate::stage::Stage;

mod edit;

/// The stage that quantizes some modules to eight bits.
const INT8: (&str, &str) = ("quantize-int8", "targets");

/// The result of looking for a mend.
#[derive(Debug)]
pub enum Mend {
    /// Every gate passes already.
    NotNeeded,
    /// A change after which every gate passes.
    Found(Box<Found>),
    /// No change that was tried passes. What the gates say of the recipe as it is.
    None(Vec<Finding>),
}

/// A change after which every gate passes.
#[derive(Debug)]
pub struct Found {
    /// The change in words.
    pub words: String,
    /// The recipe's text with it.
    pub text: String,
    /// What the gates said before.
    pub before: Vec<Finding>,
    /// Bytes of the weight files of the first output, before and with the change.
    pub bytes: (u64, u64),
    /// The SQNR of the model in dB, before and with the change.
    pub sqnr_db: (Option<f64>, Option<f64>),
}

/// A changed recipe.
struct Candidate {
    words: String,
    text: String,
    plan: Plan,
}

/// Looks for the smallest change of a recipe with which its `check-warnings` and `validate` gates pass: another observer, smaller
/// groups, eight bits for the layers that need them, or else to leave layers as they are. Among those that pass, the one with the
/// smallest output is the smallest. `evaluate` judges answers, which a run alone can give.
///
/// # Errors
/// If the recipe cannot be planned, a weight cannot be read, or the work is cancelled.
pub fn fix(
    loaded: &Loaded,
    overrides: &Overrides,
    limits: Limits,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Mend, Failure> {
    let mut base = crate::plan::plan(loaded.clone(), limits)?;
    if base.awaits_rounding() {
        let finding = Finding::error(
            "fix::rounding",
            "what `rounding: gptq` makes of a changed recipe cannot be foreseen",
        )
        .help(
            "`--set quantize-int4.rounding=nearest` looks for a change that passes with rounding to nearest.",
        );
        return Err(Failure::new(Exit::BadRecipe, finding));
    }
    super::calibrate::calibrate(&mut base, options, listener)?;
    let planned = |words: String, text: Option<String>| {
        let mut plan = replanned(loaded, &text.clone()?, overrides, limits).ok()?;
        // What cannot be measured is no candidate.
        super::calibrate::calibrate(&mut plan, options, listener).ok()?;
        Some(Candidate { words, text: text?, plan })
    };
    let mut candidates: Vec<Candidate> = Vec::new();
    for (stage, groups) in stages(&base) {
        for (words, sets) in changes(&base, stage, &groups) {
            candidates.extend(planned(words, edit::set(loaded, stage, &sets)));
        }
        if matches!(base.recipe().stages[stage], Stage::QuantizeInt4(_)) {
            candidates
                .extend(planned("`quantize-int8` for all its layers".to_owned(), edit::eight(loaded, stage)));
        }
    }
    let wide = units(&base, |bits| bits == Bits::Four);
    let all: BTreeSet<TensorId> = wide.iter().flatten().copied().collect();
    let is_int4 = |stage: &StageId| matches!(base.recipe().stages[*stage], Stage::QuantizeInt4(_));
    let eight = first_of(&base, &all)
        .filter(is_int4)
        .and_then(|first| planned(String::new(), edit::insert(loaded, first, INT8, &modules(&base, &all))));
    let mut plans: Vec<&Plan> = vec![&base];
    plans.extend(candidates.iter().map(|candidate| &candidate.plan));
    plans.extend(eight.iter().map(|candidate| &candidate.plan));
    let mut measured = sweep::measure(&plans, options, listener)?;
    let before = outlook::failures(&base, &measured[0]);
    if before.is_empty() {
        return Ok(Mend::NotNeeded);
    }
    if let Some(eight) = eight {
        let of_eight = measured.pop().unwrap_or_default();
        let passes = |chosen: &BTreeSet<TensorId>| {
            outlook::failures(&eight.plan, &mixed(&measured[0], &of_eight, chosen)).is_empty()
        };
        for chosen in smallest(&base, &measured[0], &wide, passes) {
            let words = format!("{} to int8", crate::text::units::counted(chosen.len(), "layer"));
            let first = first_of(&base, &chosen);
            let text = first.and_then(|first| edit::insert(loaded, first, INT8, &modules(&base, &chosen)));
            if let Some(candidate) = planned(words, text) {
                measured.push(mixed(&measured[0], &of_eight, &chosen));
                candidates.push(candidate);
            }
        }
    }
    let passes = |(candidate, measured): (&Candidate, &Measured)| {
        outlook::failures(&candidate.plan, measured).is_empty()
    };
    if !candidates.iter().zip(&measured[1..]).any(passes) {
        let skipped = |chosen: &BTreeSet<TensorId>| {
            let text = edit::skip(loaded, first_of(&base, chosen)?, &modules(&base, chosen))?;
            let plan = replanned(loaded, &text, overrides, limits).ok()?;
            let words = format!("{} left as they are", crate::text::units::counted(chosen.len(), "layer"));
            Some((Candidate { words, text, plan }, without(&measured[0], chosen)))
        };
        let passes = |chosen: &BTreeSet<TensorId>| {
            skipped(chosen).is_some_and(|(candidate, measured)| passes((&candidate, &measured)))
        };
        let found: Vec<_> = smallest(&base, &measured[0], &units(&base, |_| true), passes)
            .iter()
            .filter_map(skipped)
            .collect();
        for (candidate, of_it) in found {
            candidates.push(candidate);
            measured.push(of_it);
        }
    }
    let bytes = |plan: &Plan| ledger::sizes(plan).outputs.first().copied().unwrap_or(0);
    let sqnr = |measured: &Measured| ledger::quality(measured).and_then(|quality| quality.sqnr_db);
    let passing = candidates
        .into_iter()
        .zip(&measured[1..])
        .filter(|(candidate, measured)| passes((candidate, measured)));
    // The first of those of one size: the changes come in the order of how much they touch.
    Ok(match passing.min_by_key(|(candidate, _)| bytes(&candidate.plan)) {
        Some((Candidate { words, text, plan }, with)) => Mend::Found(Box::new(Found {
            words,
            text,
            before,
            bytes: (bytes(&base), bytes(&plan)),
            sqnr_db: (sqnr(&measured[0]), sqnr(with)),
        })),
        None => Mend::None(before),
    })
}

fn replanned(loaded: &Loaded, text: &str, overrides: &Overrides, limits: Limits) -> Result<Plan, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    crate::plan::plan(from_text(&loaded.source.name, text, &loaded.base, overrides, &env)?, limits)
}

/// The quantize stages that decide about tensors in groups or rows, each with the group size that it has.
fn stages(plan: &Plan) -> Vec<(StageId, Option<usize>)> {
    let mut out: Vec<(StageId, Option<usize>)> = Vec::new();
    for spec in plan.decisions.iter().filter_map(|decision| decision.spec()) {
        let group = match spec.scheme.granularity {
            Granularity::Group(size) => Some(size),
            Granularity::Channel | Granularity::Tensor | Granularity::Block(_) => None,
        };
        match out.iter_mut().find(|(stage, _)| *stage == spec.stage) {
            Some((_, known)) => *known = (*known).max(group),
            None => out.push((spec.stage, group)),
        }
    }
    out
}

/// Values to set in a stage.
type Sets = Vec<(&'static str, String)>;

/// Changes of a stage to try, each with its name: those that cost no bytes first.
fn changes(plan: &Plan, stage: StageId, group: &Option<usize>) -> Vec<(String, Sets)> {
    let name = plan.recipe().stages[stage].name();
    let mse = ("observer", "mse".to_owned());
    let mut out = vec![(format!("`observer: mse` in `{name}`"), vec![mse.clone()])];
    let sizes = [64, 32].into_iter().filter(|size| group.is_some_and(|group| *size < group));
    for size in sizes {
        let smaller = ("group_size", size.to_string());
        out.push((format!("`group_size: {size}` in `{name}`"), vec![smaller.clone()]));
        out.push((
            format!("`group_size: {size}` and `observer: mse` in `{name}`"),
            vec![smaller, mse.clone()],
        ));
    }
    out
}

/// The tensors that are quantized to some numbers of bits, those that engines fuse together.
fn units(plan: &Plan, of: impl Fn(Bits) -> bool) -> Vec<Vec<TensorId>> {
    let is_one = |tensor: &TensorId| plan.decisions[*tensor].spec().is_some_and(|spec| of(spec.scheme.bits));
    let mut out: Vec<Vec<TensorId>> = Vec::new();
    let mut seen: BTreeSet<TensorId> = BTreeSet::new();
    for fused in &plan.fused_modules {
        let members: Vec<TensorId> =
            fused.members().filter(|tensor| is_one(tensor) && seen.insert(*tensor)).collect();
        if !members.is_empty() {
            out.push(members);
        }
    }
    let alone = plan.decisions.ids().filter(|tensor| is_one(tensor) && !seen.contains(tensor));
    out.extend(alone.map(|tensor| vec![tensor]));
    out
}

/// The first quantize stage that decides about some tensors.
fn first_of(plan: &Plan, tensors: &BTreeSet<TensorId>) -> Option<StageId> {
    tensors.iter().filter_map(|tensor| Some(plan.decisions[*tensor].spec()?.stage)).min()
}

fn modules(plan: &Plan, tensors: &BTreeSet<TensorId>) -> Vec<String> {
    tensors.iter().map(|tensor| plan.model.tensors[*tensor].module().to_owned()).collect()
}

/// Measurements in which some tensors are those of another plan.
fn mixed(base: &Measured, other: &Measured, chosen: &BTreeSet<TensorId>) -> Measured {
    let of = |tensor: TensorId| if chosen.contains(&tensor) { other[tensor] } else { base[tensor] };
    base.ids().map(of).collect()
}

/// Measurements without those of some tensors.
fn without(base: &Measured, chosen: &BTreeSet<TensorId>) -> Measured {
    base.ids().map(|tensor| base[tensor].filter(|_| !chosen.contains(&tensor))).collect()
}

/// How bad a tensor is.
type Badness<'a> = &'a dyn Fn(&TensorId) -> Option<f64>;

/// The smallest sets of units that have to be treated in another way, so that the gates pass: one in the order of their SQNR, one in
/// that of what they lack to what their scheme reaches, and so on for their noise, their largest weight, and the signal under scales
/// that are too small.
fn smallest(
    base: &Plan,
    measured: &Measured,
    units: &[Vec<TensorId>],
    passes: impl Fn(&BTreeSet<TensorId>) -> bool,
) -> Vec<BTreeSet<TensorId>> {
    let sqnr = |tensor: &TensorId| measured[*tensor].as_ref().and_then(Distortion::sqnr_db);
    let gap = |tensor: &TensorId| Some(base.expected_sqnr(*tensor)? - sqnr(tensor)?);
    let noise = |tensor: &TensorId| measured[*tensor].as_ref().map(|found| found.noise);
    let weight = |tensor: &TensorId| measured[*tensor].as_ref().map(|found| f64::from(found.max_abs_weight));
    let faint = |tensor: &TensorId| measured[*tensor].as_ref().map(|found| found.faint / found.signal);
    let orders: [Badness<'_>; 5] = [&|tensor| sqnr(tensor).map(|sqnr| -sqnr), &gap, &noise, &weight, &faint];
    let mut out: Vec<BTreeSet<TensorId>> = Vec::new();
    for bad in orders {
        let badness = |unit: &[TensorId]| unit.iter().filter_map(bad).fold(f64::NEG_INFINITY, f64::max);
        let mut ordered: Vec<&Vec<TensorId>> = units.iter().collect();
        ordered.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        let first = |count: usize| -> BTreeSet<TensorId> {
            ordered[..count].iter().copied().flatten().copied().collect()
        };
        let passes = |count: usize| passes(&first(count));
        let (mut low, mut high) = (0, ordered.len().min(1));
        while high > low && !passes(high) {
            (low, high) = (high, (2 * high).min(ordered.len()));
        }
        if high == low {
            continue;
        }
        // More units that are treated with care never make it worse.
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            if passes(middle) { high = middle } else { low = middle }
        }
        let chosen = first(high);
        if !out.contains(&chosen) {
            out.push(chosen);
        }
    }
    out
}

/// That no change passes, for people.
#[must_use]
pub fn none(before: Vec<Finding>) -> Failure {
    let finding = Finding::error("fix::none", "no change that was tried lets the gates pass")
        .help("`observer: mse`, groups of 64 and 32, eight bits for layers, and layers left as they are were tried. Lower the thresholds, or mend the model.");
    let findings = before.into_iter().chain([finding]).collect();
    Failure { exit: Exit::GateFailed, findings }
}
