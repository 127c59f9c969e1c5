//! Mends of a recipe whose gate fails: changes of its text, measured on the model, of which the smallest that passes is chosen.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

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
use crate::stage::{ActivationScheme, Stage};

mod edit;
mod trial;

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

/// What a search for a mend works with.
struct Search<'a> {
    loaded: &'a Loaded,
    overrides: &'a Overrides,
    limits: Limits,
    options: &'a Options,
    listener: &'a dyn Listener,
    /// Texts that were tried, and whether the gates on answers passed.
    tried: RefCell<HashMap<String, bool>>,
}

impl Search<'_> {
    fn replanned(&self, text: &str) -> Option<Plan> {
        let env = |name: &str| std::env::var(name).ok();
        let loaded = &self.loaded;
        let changed = from_text(&loaded.source.name, text, &loaded.base, self.overrides, &env).ok()?;
        crate::plan::plan(changed, self.limits).ok()
    }

    /// A candidate, if its plan can be made and measured.
    fn candidate(&self, words: String, text: Option<String>) -> Option<Candidate> {
        let text = text?;
        let mut plan = self.replanned(&text)?;
        super::calibrate::calibrate(&mut plan, self.options, self.listener).ok()?;
        Some(Candidate { words, text, plan })
    }

    /// Whether the gates on what the model answers pass.
    fn answers_pass(&self, candidate: &mut Candidate) -> Result<bool, Failure> {
        if let Some(passed) = self.tried.borrow().get(&candidate.text) {
            return Ok(*passed);
        }
        let passed = trial::complaints(&mut candidate.plan, self.options, self.listener)?.is_empty();
        self.tried.borrow_mut().insert(candidate.text.clone(), passed);
        Ok(passed)
    }

    /// The smallest of the candidates whose gates pass; of those of one size the first: they come in the order of how much they touch.
    fn smallest(
        &self,
        candidates: Vec<(Candidate, Measured)>,
    ) -> Result<Option<(Candidate, Measured)>, Failure> {
        let mut passing: Vec<_> =
            candidates.into_iter().filter(|(candidate, of)| weights_pass(&candidate.plan, of)).collect();
        passing.sort_by_key(|(candidate, _)| bytes(&candidate.plan));
        for (mut candidate, measured) in passing {
            if self.answers_pass(&mut candidate)? {
                return Ok(Some((candidate, measured)));
            }
        }
        Ok(None)
    }
}

/// Whether the gates on weights pass.
fn weights_pass(plan: &Plan, measured: &Measured) -> bool {
    outlook::failures(plan, measured).is_empty()
}

/// Bytes of the weight files of the first output.
fn bytes(plan: &Plan) -> u64 {
    ledger::sizes(plan).outputs.first().copied().unwrap_or(0)
}

/// Looks for the smallest change of a recipe with which its gates pass: another observer, smaller groups, eight bits for the layers that
/// need them, or else to leave layers as they are. Among those that pass, the one with the smallest output is the smallest. What
/// `check-warnings` and `validate` judge is measured on the weights alone. If `evaluate` has a threshold, the recipe and the changes
/// that may do are carried out for it, each into a folder beside the output that is removed.
///
/// # Errors
/// If the recipe cannot be planned, a weight cannot be read, a trial cannot be written, or the work is cancelled.
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
    let of_answers = trial::complaints(&mut base, options, listener)?;
    let search = Search { loaded, overrides, limits, options, listener, tried: RefCell::default() };
    let mut changed: Vec<Candidate> = Vec::new();
    for (stage, groups) in stages(&base) {
        for (words, sets) in changes(&base, stage, &groups) {
            changed.extend(search.candidate(words, edit::set(loaded, stage, &sets)));
        }
        if matches!(base.recipe().stages[stage], Stage::QuantizeInt4(_)) {
            let words = "`quantize-int8` for all its layers".to_owned();
            changed.extend(search.candidate(words, edit::eight(loaded, stage)));
        }
    }
    let narrow = units(&base, |bits| bits == Bits::Four);
    let all: BTreeSet<TensorId> = narrow.iter().flatten().copied().collect();
    let is_int4 = |stage: &StageId| matches!(base.recipe().stages[*stage], Stage::QuantizeInt4(_));
    let in_eight = |words: String, chosen: &BTreeSet<TensorId>| {
        let first = first_of(&base, chosen).filter(is_int4)?;
        search.candidate(words, edit::insert(loaded, first, INT8, &modules(&base, chosen)))
    };
    let eight = in_eight(String::new(), &all);
    let plans: Vec<&Plan> =
        [&base].into_iter().chain(changed.iter().chain(&eight).map(|candidate| &candidate.plan)).collect();
    let mut measured = sweep::measure(&plans, options, listener)?.into_iter();
    let of_base = measured.next().unwrap_or_default();
    let mut candidates: Vec<(Candidate, Measured)> = changed.into_iter().zip(&mut measured).collect();
    let mut before = outlook::failures(&base, &of_base);
    before.extend(of_answers);
    if before.is_empty() {
        return Ok(Mend::NotNeeded);
    }
    let orders = if trial::is_needed(&base) { &ORDERS[..1] } else { &ORDERS[..] };
    if let (Some(eight), Some(of_eight)) = (eight, measured.next()) {
        let with = |chosen: &BTreeSet<TensorId>| {
            let words = format!("{} to int8", crate::text::units::counted(chosen.len(), "layer"));
            Some((in_eight(words, chosen)?, mixed(&of_base, &of_eight, chosen)))
        };
        // The plan of all of them judges all measurements alike, so that none has to be made for a set that does not do.
        let passes = |chosen: &BTreeSet<TensorId>| {
            if !weights_pass(&eight.plan, &mixed(&of_base, &of_eight, chosen)) {
                return Ok(false);
            }
            if !trial::is_needed(&eight.plan) {
                return Ok(true);
            }
            with(chosen).map_or(Ok(false), |(mut candidate, _)| search.answers_pass(&mut candidate))
        };
        candidates.extend(fewest(&base, &of_base, (&narrow, orders), passes)?.iter().filter_map(with));
    }
    let mut found = search.smallest(candidates)?;
    if found.is_none() {
        let skipped = |chosen: &BTreeSet<TensorId>| {
            let text = edit::skip(loaded, first_of(&base, chosen)?, &modules(&base, chosen));
            let words = format!("{} left as they are", crate::text::units::counted(chosen.len(), "layer"));
            Some((search.candidate(words, text)?, without(&of_base, chosen)))
        };
        let passes = |chosen: &BTreeSet<TensorId>| match skipped(chosen) {
            Some((mut candidate, of)) => {
                Ok(weights_pass(&candidate.plan, &of) && search.answers_pass(&mut candidate)?)
            }
            None => Ok(false),
        };
        let sets = fewest(&base, &of_base, (&units(&base, |_| true), orders), passes)?;
        found = search.smallest(sets.iter().filter_map(skipped).collect())?;
    }
    let sqnr = |measured: &Measured| ledger::quality(measured).and_then(|quality| quality.sqnr_db);
    Ok(match found {
        Some((Candidate { words, text, plan }, with)) => Mend::Found(Box::new(Found {
            words,
            text,
            before,
            bytes: (bytes(&base), bytes(&plan)),
            sqnr_db: (sqnr(&of_base), sqnr(&with)),
        })),
        None => Mend::None(before),
    })
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
    let smaller = [64, 32].into_iter().filter(|size| group.is_some_and(|group| *size < group));
    let sizes: Vec<Sets> = std::iter::once(Vec::new())
        .chain(smaller.map(|size| vec![("group_size", size.to_string())]))
        .collect();
    let searched = ("observer", "mse".to_owned());
    let signed = may_be_signed(plan, stage).then(|| ("scales", "signed".to_owned()));
    let of_same_size = || {
        let alone = signed.iter().chain([&searched]).map(|set| vec![set.clone()]);
        let both = signed.iter().map(|signed| vec![signed.clone(), searched.clone()]);
        std::iter::once(Vec::new()).chain(alone).chain(both)
    };
    let sets = sizes.iter().flat_map(|size| of_same_size().map(|sets| [size.clone(), sets].concat()));
    let in_words = |sets: &Sets| {
        let each: Vec<String> = sets.iter().map(|(key, value)| format!("`{key}: {value}`")).collect();
        format!("{} in `{name}`", each.join(", "))
    };
    sets.filter(|sets| !sets.is_empty()).map(|sets| (in_words(&sets), sets)).collect()
}

/// Whether scales of a stage are positive and would be better if they had either sign: those of int4 weights, if they have no zero
/// points and inputs are left as they are.
fn may_be_signed(plan: &Plan, stage: StageId) -> bool {
    let mut specs =
        plan.decisions.iter().filter_map(|decision| decision.spec()).filter(|spec| spec.stage == stage);
    specs.any(|spec| {
        let scheme = &spec.scheme;
        let is_int4 = scheme.bits == Bits::Four && !scheme.storage.is_float();
        is_int4
            && scheme.symmetric
            && spec.activations == ActivationScheme::None
            && !spec.observer.is_signed()
    })
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
type Badness = fn(&Plan, TensorId, &Distortion) -> Option<f64>;

/// By noise, by SQNR, by what it lacks to what the scheme reaches, by the largest weight, and by the signal under scales that are too
/// small. The first stands for what the model answers.
const ORDERS: [Badness; 5] = [
    |_, _, found| Some(found.noise),
    |_, _, found| found.sqnr_db().map(|sqnr| -sqnr),
    |plan, tensor, found| Some(plan.expected_sqnr(tensor)? - found.sqnr_db()?),
    |_, _, found| Some(f64::from(found.max_abs_weight)),
    |_, _, found| Some(found.faint / found.signal),
];

/// The smallest sets of units that have to be treated in another way, so that the gates pass: the worst ones, for each order.
fn fewest(
    base: &Plan,
    measured: &Measured,
    (units, orders): (&[Vec<TensorId>], &[Badness]),
    passes: impl Fn(&BTreeSet<TensorId>) -> Result<bool, Failure>,
) -> Result<Vec<BTreeSet<TensorId>>, Failure> {
    let mut out: Vec<BTreeSet<TensorId>> = Vec::new();
    for bad in orders {
        let of = |tensor: &TensorId| bad(base, *tensor, measured[*tensor].as_ref()?);
        let badness = |unit: &[TensorId]| unit.iter().filter_map(of).fold(f64::NEG_INFINITY, f64::max);
        let mut ordered: Vec<&Vec<TensorId>> = units.iter().collect();
        ordered.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        let first = |count: usize| -> BTreeSet<TensorId> {
            ordered[..count].iter().copied().flatten().copied().collect()
        };
        let (mut low, mut high) = (0, ordered.len().min(1));
        while high > low && !passes(&first(high))? {
            (low, high) = (high, (2 * high).min(ordered.len()));
        }
        if high == low {
            continue;
        }
        // More units that are treated with care do not make it worse.
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            if passes(&first(middle))? { high = middle } else { low = middle }
        }
        let chosen = first(high);
        if !out.contains(&chosen) {
            out.push(chosen);
        }
    }
    Ok(out)
}

/// That no change passes, for people.
#[must_use]
pub fn none(before: Vec<Finding>) -> Failure {
    let finding = Finding::error("fix::none", "no change that was tried lets the gates pass")
        .help("`scales: signed`, `observer: mse`, groups of 64 and 32, eight bits for layers, and layers left as they are were tried. Lower the thresholds, or mend the model.");
    let findings = before.into_iter().chain([finding]).collect();
    Failure { exit: Exit::GateFailed, findings }
}
