//! The judgement of `check-warnings`: thresholds of the SQNR, and gaps below what a scheme can reach.

use super::{NAMED, calibration, name, place_of, seen};
use crate::finding::{Finding, Place, Severity};
use crate::ids::{IdVec, StageId, TensorId};
use crate::plan::{Plan, QuantSpec};
use crate::quant::{Bits, Distortion};
use crate::stage::CheckWarnings;
use crate::stage::check_warnings::{Bound, Scope, SqnrOf};
use crate::text::units::{counted, decibels};

/// Above this SQNR, in dB, a model is called good (mono-quant's word).
const GOOD_SQNR_DB: f64 = 30.0;

/// The quality of the model, in one line.
pub(super) fn summary(tensors: &[Option<Distortion>], check: &CheckWarnings) -> String {
    let quality = crate::report::ledger::quality(tensors);
    if check.sqnr == SqnrOf::Outputs {
        let weighted = quality.as_ref().and_then(|quality| quality.weighted_sqnr_db);
        let least = tensors.iter().flatten().filter_map(Distortion::weighted_sqnr_db).min_by(f64::total_cmp);
        return format!(
            "SQNR weighted by activations {} (model), {} (worst layer)",
            decibels(weighted),
            decibels(least)
        );
    }
    let word = match quality.as_ref().and_then(|quality| quality.sqnr_db) {
        Some(sqnr) if sqnr > GOOD_SQNR_DB => ", good",
        _ => "",
    };
    let model = quality.as_ref().and_then(|quality| quality.sqnr_db);
    let least = quality.as_ref().and_then(|quality| quality.min_sqnr_db);
    format!("SQNR {} (model{word}), {} (worst layer)", decibels(model), decibels(least))
}

/// A quantized tensor with its SQNR and what its scheme reaches.
struct Scored<'a> {
    tensor: TensorId,
    spec: &'a QuantSpec,
    /// None if the tensor has no signal, which says nothing about quality. NaN if it was not measured, which fails.
    sqnr: Option<f64>,
    /// What the scheme reaches on Gaussian weights, if that is known.
    expected: Option<f64>,
    /// The same, or what is taken for it ([`Plan::reach`]).
    reach: Option<f64>,
}

impl Scored<'_> {
    fn is_below(&self, threshold: Option<f64>) -> bool {
        let Some(threshold) = threshold else { return false };
        self.sqnr.is_some_and(|sqnr| sqnr.is_nan() || sqnr < threshold)
    }

    fn gap(&self) -> Option<f64> {
        Some(self.reach? - self.sqnr?)
    }

    /// How far it is below what its scheme reaches, if that is more than a bound allows.
    fn gap_beyond(&self, bound: &Bound) -> Option<f64> {
        let allowed = bound.gap_for(self.reach)?;
        self.gap().filter(|gap| gap.is_nan() || *gap > allowed)
    }
}

/// What a `check-warnings` complains of.
pub(super) fn complaints(
    plan: &Plan,
    tensors: &IdVec<TensorId, Option<Distortion>>,
    stage: StageId,
    check: &CheckWarnings,
) -> Vec<Finding> {
    let mut out = Vec::new();
    let scored: Vec<Scored<'_>> = seen(plan, tensors, stage)
        .map(|(tensor, spec, distortion)| {
            let sqnr = match (distortion, check.sqnr) {
                (Some(distortion), _) if distortion.signal == 0.0 => None,
                (Some(distortion), SqnrOf::Weights) => Some(distortion.sqnr_db().unwrap_or(f64::NAN)),
                // A layer without statistics has no such SQNR, as the plan has already reported.
                (Some(distortion), SqnrOf::Outputs) => distortion.weighted_sqnr_db(),
                (None, _) => Some(f64::NAN),
            };
            Scored { tensor, spec, sqnr, expected: plan.expected_sqnr(tensor), reach: plan.reach(tensor) }
        })
        .collect();
    let judged = Judged { plan, stage, check, scored: &scored };
    if check.scope != Scope::Layer {
        out.extend(judged.model(tensors));
    }
    if check.scope != Scope::Model {
        out.extend(judged.layers_below());
    }
    out.extend(judged.gaps());
    if check.low_calibration_warning {
        out.extend(calibration::low(plan, stage, check.min_calibration_samples));
    }
    if check.all_layers_quantized_warning && int4_without_skips(plan, stage) {
        let finding = Finding::warning("check::nothing-skipped", "an int4 run skipped nothing")
            .at_opt(place_of(plan, stage, "all_layers_quantized_warning"), "asked for here")
            .help("Heads, embeddings and routers suffer most from 4 bits. `resolve-skips` with `defaults: auto` leaves them alone.");
        out.push(finding);
    }
    out
}

/// The layers that a stage judges.
struct Judged<'a> {
    plan: &'a Plan,
    stage: StageId,
    check: &'a CheckWarnings,
    scored: &'a [Scored<'a>],
}

impl Judged<'_> {
    /// The complaint about the model as a whole.
    fn model(&self, tensors: &IdVec<TensorId, Option<Distortion>>) -> Option<Finding> {
        let mut all = Distortion::default();
        // The noise of the same weights if each layer reached what its scheme does on Gaussian ones.
        let mut noise = Some(0.0);
        for scored in self.scored {
            let Some(distortion) = tensors[scored.tensor].as_ref() else { continue };
            all.merge(distortion, 0);
            noise = noise
                .zip(scored.reach)
                .map(|(noise, reach)| noise + distortion.signal * 10_f64.powf(-reach / 10.0));
        }
        if all.signal == 0.0 {
            return None;
        }
        let reach = noise.map(|noise| 10.0 * (all.signal / noise).log10());
        let (sqnr, of) = match self.check.sqnr {
            SqnrOf::Weights => (all.sqnr_db(), "SQNR"),
            SqnrOf::Outputs => (all.weighted_sqnr_db(), "SQNR weighted by activations"),
        };
        let below = |threshold: f64| !sqnr.is_some_and(|sqnr| sqnr >= threshold);
        for (bound, is_critical) in [(self.check.error(), true), (self.check.warning(), false)] {
            if let Some(threshold) = bound.threshold_for(reach) {
                if below(threshold) {
                    let message = format!("the model's {of} of {} is below {threshold} dB", decibels(sqnr));
                    let finding = Finding::warning("check::model-sqnr", message)
                        .at_opt(self.place(bound.threshold_key), "threshold")
                        .help_lines(advice(self.scored.iter()));
                    return Some(graded(is_critical, finding));
                }
            } else if let (Some(reach), Some(gap)) = (reach, bound.gap_for(reach))
                && self.check.scope == Scope::Model
                && below(reach - gap)
            {
                let message = format!(
                    "the model's {of} of {} is more than {gap} dB below what its schemes reach on Gaussian weights",
                    decibels(sqnr)
                );
                let finding = Finding::warning("check::model-sqnr", message)
                    .at_opt(self.place(bound.gap_key), self.allowance(&bound))
                    .help_lines(advice(self.scored.iter()));
                return Some(graded(is_critical, finding));
            }
        }
        None
    }

    /// Complaints about layers below a threshold.
    fn layers_below(&self) -> Vec<Finding> {
        let (error, warning) = (self.check.error(), self.check.warning());
        let is_below =
            |scored: &Scored<'_>, bound: &Bound| scored.is_below(bound.threshold_for(scored.reach));
        let critical: Vec<&Scored<'_>> = self.scored.iter().filter(|s| is_below(s, &error)).collect();
        let doubtful: Vec<&Scored<'_>> =
            self.scored.iter().filter(|s| !is_below(s, &error) && is_below(s, &warning)).collect();
        let lists = [(critical, error, true), (doubtful, warning, false)];
        let lists = lists.into_iter().filter(|(list, ..)| !list.is_empty());
        lists.map(|(list, bound, is_critical)| graded(is_critical, self.below(list, &bound))).collect()
    }

    fn below(&self, mut list: Vec<&Scored<'_>>, bound: &Bound) -> Finding {
        let plan = self.plan;
        list.sort_by(|a, b| a.sqnr.unwrap_or(f64::NAN).total_cmp(&b.sqnr.unwrap_or(f64::NAN)));
        // NaN sorts last and is worst.
        let unmeasured = list.iter().filter(|scored| scored.sqnr.is_some_and(f64::is_nan)).count();
        list.rotate_right(unmeasured);
        let verb = if list.len() == 1 { "is" } else { "are" };
        let of = counted(self.scored.len(), "quantized layer");
        let message = format!("{} of {of} {verb} below {} dB", list.len(), bound.or_default());
        let lines: Vec<String> = list
            .iter()
            .take(NAMED)
            .map(|scored| {
                let line = plan.line(&plan.decisions[scored.tensor].rule);
                let line = line.map_or(String::new(), |line| format!("  (line {line})"));
                format!(
                    "{:>8}  {}{line}",
                    decibels(scored.sqnr.filter(|sqnr| !sqnr.is_nan())),
                    name(plan, scored.tensor)
                )
            })
            .collect();
        Finding::warning("check::low-sqnr", message)
            .at_opt(self.place(bound.threshold_key), "threshold")
            .help_lines(lines)
            .help_lines(advice(list.iter().copied()))
    }

    /// Complaints about layers too far below what their scheme reaches.
    fn gaps(&self) -> Vec<Finding> {
        let (error, warning) = (self.check.error(), self.check.warning());
        // A gap that nobody has written takes the place of a threshold of layers.
        let applies = |bound: &Bound| self.check.scope != Scope::Model || !bound.is_default_gap();
        let beyond = |scored: &Scored<'_>, bound: &Bound| scored.gap_beyond(bound).filter(|_| applies(bound));
        let (mut critical, mut doubtful) = (Vec::new(), Vec::new());
        for scored in self.scored {
            if let Some(gap) = beyond(scored, &error) {
                critical.push((gap, scored));
            } else if let Some(gap) = beyond(scored, &warning) {
                doubtful.push((gap, scored));
            }
        }
        let mut out = Vec::new();
        for (mut list, bound, is_critical) in [(critical, error, true), (doubtful, warning, false)] {
            list.sort_by(|a, b| b.0.total_cmp(&a.0));
            let Some((worst, _)) = list.first() else { continue };
            let message = format!(
                "{} up to {worst:.1} dB below what their scheme reaches on Gaussian weights",
                are(list.len(), "layer")
            );
            let lines = list
                .iter()
                .take(NAMED)
                .map(|(gap, scored)| format!("{gap:>6.1} dB below  {}", name(self.plan, scored.tensor)));
            let finding = Finding::warning("check::gap", message)
                .at_opt(self.place(bound.gap_key), self.allowance(&bound))
                .help_lines(lines)
                .help("Their weights have outliers; smaller groups or int8 suit them better.");
            out.push(graded(is_critical, finding));
        }
        out
    }

    fn place(&self, key: &str) -> Option<Place> {
        place_of(self.plan, self.stage, key)
    }

    /// What a label says of the gap that is asked for.
    fn allowance(&self, bound: &Bound) -> String {
        match bound.gap_for(Some(f64::MIN)).filter(|_| bound.is_default_gap()) {
            Some(gap) => format!("allows {gap} dB, since {} dB are out of reach", bound.or_default()),
            None => "bound".to_owned(),
        }
    }
}

/// A finding as an error if an error threshold was crossed, else as a warning.
fn graded(is_critical: bool, finding: Finding) -> Finding {
    Finding { severity: if is_critical { Severity::Error } else { Severity::Warning }, ..finding }
}

/// `1 layer is`, `3 layers are`.
fn are(count: usize, noun: &str) -> String {
    format!("{} {}", counted(count, noun), if count == 1 { "is" } else { "are" })
}

/// The best SQNR that the schemes in use can reach, and advice on what to change.
fn advice<'s>(scored: impl Iterator<Item = &'s Scored<'s>>) -> Vec<String> {
    let mut schemes: Vec<(String, f64)> = Vec::new();
    for one in scored {
        let Some(expected) = one.expected else { continue };
        let name = format!("{}, {}", one.spec.scheme, one.spec.observer);
        match schemes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, best)) => *best = best.max(expected),
            None => schemes.push((name, expected)),
        }
    }
    let mut lines: Vec<String> = schemes
        .into_iter()
        .map(|(name, best)| format!("On Gaussian weights, {name} reaches {best:.1} dB."))
        .collect();
    lines.push(
        "To raise it: `observer: mse`, a smaller `group_size`, `symmetric: false`, or `quantize-int8` for the worst layers."
            .to_owned(),
    );
    lines
}

fn int4_without_skips(plan: &Plan, stage: StageId) -> bool {
    let mut int4 = false;
    for decision in &plan.decisions {
        match decision.spec().filter(|spec| spec.stage < stage) {
            Some(spec) => int4 |= spec.scheme.bits == Bits::Four,
            None if decision.rule.is_skip() => return false,
            None => {}
        }
    }
    int4
}
