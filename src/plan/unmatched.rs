//! Patterns that match nothing. A typo in a skip list would otherwise quantize a module that was to be skipped.

use std::collections::{BTreeSet, HashSet};

use super::select::{DEFAULT_SKIP_NAME, Item, QuantizeStage};
use crate::finding::Finding;
use crate::ids::StageId;
use crate::layer::LayerType;
use crate::layer::pattern::Pattern;
use crate::model::ModelFolder;
use crate::recipe::{Loaded, Recipe};
use crate::stage::{OnUnmatched, Stage};

/// How many names are suggested at most.
const SUGGESTIONS: usize = 3;

/// How many different names are compared at most: enough for any architecture, and bounded for strange ones.
const CANDIDATES: usize = 50_000;

/// Bytes that a part of a name has at least to tell the name.
const LEAST_PART: usize = 3;

/// A pattern of the recipe, with its place and what is to be done if it matches nothing.
struct Written<'r> {
    pattern: &'r Pattern,
    stage: StageId,
    pointer: String,
    on_unmatched: OnUnmatched,
    origin: Origin,
}

/// Where a recipe has a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A key of `layer_types` of `load`.
    LayerTypes,
    /// A list of `resolve-skips`.
    Skips,
    /// `targets` of a quantize stage.
    Targets,
}

/// Findings for every pattern that matches nothing, for every `quantize_anyway` that contradicts its own stage.
pub(super) fn check(loaded: &Loaded, stages: &[QuantizeStage<'_>], items: &[Item<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for written in patterns(&loaded.recipe, stages) {
        let pattern = written.pattern;
        let exempt = pattern.layer_type().is_some()
            || pattern.as_str() == DEFAULT_SKIP_NAME
            || written.on_unmatched == OnUnmatched::Ignore
            || items.iter().any(|item| pattern.matches(item.subject));
        if exempt {
            continue;
        }
        let message = format!("pattern `{}` matches no module of the model", pattern.written());
        let mut finding = match written.on_unmatched {
            OnUnmatched::Error => Finding::error("plan::unmatched-pattern", message),
            _ => Finding::warning("plan::unmatched-pattern", message),
        };
        let place = if written.origin == Origin::LayerTypes {
            loaded.key_place(&written.pointer)
        } else {
            loaded.place(&written.pointer)
        };
        finding = finding.at_opt(place, "matches nothing");
        let near = match near_layer_type(pattern.as_str()) {
            Some(name) => vec![name.to_owned()],
            None => nearest_names(pattern.as_str(), items.iter().map(|item| item.subject)),
        };
        finding = match near.as_slice() {
            [] => finding.help("`monoquant inspect` lists the modules of a model."),
            near => finding.help(nearest(near)),
        };
        if written.origin == Origin::Skips {
            finding =
                finding.help("`on_unmatched: ignore` on this stage allows patterns that match nothing.");
        }
        findings.push(finding);
    }
    findings.extend(contradictions(loaded, stages, items));
    findings
}

fn patterns<'r>(recipe: &'r Recipe, stages: &[QuantizeStage<'r>]) -> Vec<Written<'r>> {
    let mut out = Vec::new();
    for (index, stage) in recipe.stages.numbered() {
        match stage {
            Stage::Load(load) => {
                for pattern in load.layer_types.keys() {
                    let key = pattern.as_str().replace('~', "~0").replace('/', "~1");
                    out.push(Written {
                        pattern,
                        pointer: format!("/stages/{index}/layer_types/{key}"),
                        on_unmatched: OnUnmatched::Error,
                        origin: Origin::LayerTypes,
                        stage: index,
                    });
                }
            }
            Stage::ResolveSkips(skips) => {
                for (key, patterns) in [
                    ("modules_to_not_convert", &skips.modules_to_not_convert),
                    ("skip_layer_names", &skips.skip_layer_names),
                    ("quantize_anyway", &skips.quantize_anyway),
                ] {
                    out.extend(patterns.iter().enumerate().map(|(position, pattern)| Written {
                        pattern,
                        pointer: format!("/stages/{index}/{key}/{position}"),
                        on_unmatched: skips.on_unmatched,
                        origin: Origin::Skips,
                        stage: index,
                    }));
                }
            }
            _ => {}
        }
    }
    for stage in stages {
        let on_unmatched = stage.skips().map_or(OnUnmatched::Error, |(_, skips)| skips.on_unmatched);
        out.extend(stage.parameters.targets().iter().enumerate().map(|(position, pattern)| Written {
            pattern,
            pointer: format!("/stages/{}/targets/{position}", stage.index),
            on_unmatched,
            origin: Origin::Targets,
            stage: stage.index,
        }));
    }
    out.sort_by_key(|written| written.stage);
    out
}

/// The layer type that a pattern without dots was probably meant to be.
fn near_layer_type(pattern: &str) -> Option<&'static str> {
    let lower = pattern.to_lowercase();
    LayerType::ALL
        .iter()
        .map(|layer_type| layer_type.name())
        .find(|name| strsim::normalized_damerau_levenshtein(&lower, &name.to_lowercase()) >= 0.8)
}

/// `quantize_anyway` takes back defaults only: an entry that hits what the same stage lists itself says two things at once.
fn contradictions(loaded: &Loaded, stages: &[QuantizeStage<'_>], items: &[Item<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = HashSet::new();
    for stage in stages {
        let Some((index, skips)) = stage.skips() else { continue };
        if !seen.insert(index) {
            continue;
        }
        for (position, anyway) in skips.quantize_anyway.iter().enumerate() {
            let own = |item: &Item<'_>| {
                let names = skips.modules_to_not_convert.iter().map(|p| ("modules_to_not_convert", p));
                let more = skips.skip_layer_names.iter().map(|p| ("skip_layer_names", p));
                names
                    .chain(more)
                    .find(|(_, pattern)| item.hit_by(pattern))
                    .map(|(key, pattern)| format!("{key}: {}", pattern.written()))
                    .or_else(|| {
                        let hit = skips.skip_layer_types.iter().find(|layer_type| item.is(**layer_type))?;
                        Some(format!("skip_layer_types: {}", hit.name()))
                    })
            };
            let clash = items
                .iter()
                .filter(|item| item.hit_by(anyway))
                .find_map(|item| own(item).map(|own| (item, own)));
            if let Some((item, own)) = clash {
                findings.push(
                    Finding::error(
                        "plan::contradicting-skips",
                        format!("`{}` is to be quantized anyway and to be skipped", item.subject),
                    )
                    .at_opt(
                        loaded.place(&format!("/stages/{index}/quantize_anyway/{position}")),
                        format!("takes back what this stage lists itself ({own})"),
                    )
                    .help("`quantize_anyway` takes back entries of the built-in lists only. Remove one of the two."),
                );
            }
        }
    }
    findings
}

/// The names of a model that are nearest to a pattern: as many segments as the pattern has, from anywhere in a name.
/// If nothing is near to the whole of a glob or an expression, its literal end is compared.
pub(super) fn nearest_names<'m>(pattern: &str, names: impl Iterator<Item = &'m str> + Clone) -> Vec<String> {
    let text = pattern.strip_prefix("re:").unwrap_or(pattern).replace('\\', "");
    let text = text.trim_start_matches("^").trim_start_matches(".*").trim_end_matches('$').trim_matches('.');
    let near = nearest_windows(text, names.clone());
    let end = text.rsplit(['*', '?', ']', '}', ')', '+']).find(|part| !part.is_empty());
    match end.map(|end| end.trim_matches('.')) {
        Some(end) if near.is_empty() && end != text => nearest_windows(end, names),
        _ => near,
    }
}

fn nearest_windows<'m>(text: &str, names: impl Iterator<Item = &'m str>) -> Vec<String> {
    // Modules are named, and not the tensors that they hold.
    let text = text.strip_suffix(".weight").unwrap_or(text);
    let wanted = text.split('.').count();
    let mut windows: BTreeSet<&str> = BTreeSet::new();
    for name in names {
        let mut starts = vec![0];
        starts.extend(name.match_indices('.').map(|(at, _)| at + 1));
        for (first, &start) in starts.iter().enumerate() {
            let end = match starts.get(first + wanted) {
                Some(&next) => next - 1,
                None if first + wanted == starts.len() => name.len(),
                None => break,
            };
            windows.insert(&name[start..end]);
        }
        if windows.len() > CANDIDATES {
            break;
        }
    }
    best(windows.into_iter().map(|window| (likeness(text, window), window)), 0.6)
}

/// How near two names are, from 0 to 1. One that is a part of the other is near, however long the rest is.
fn likeness(text: &str, window: &str) -> f64 {
    let like = strsim::normalized_damerau_levenshtein(text, window);
    let (short, long) = (text.to_lowercase(), window.to_lowercase());
    let (short, long) = if short.len() <= long.len() { (short, long) } else { (long, short) };
    if short.len() < LEAST_PART || !long.contains(&short) {
        return like;
    }
    let share = short.len() as f64 / long.len() as f64;
    like.max(0.6 + 0.4 * share)
}

/// Names of tensors that are near to a word, or whose end is near to it. For a command line whose word names no
/// tensor.
pub(super) fn nearest_tensors(word: &str, model: &ModelFolder) -> Vec<String> {
    let segments = word.split('.').count();
    let score = |name: &str| strsim::normalized_damerau_levenshtein(word, end_of(name, segments));
    let tensors = model.tensors.iter();
    best(tensors.map(|tensor| (score(&tensor.name).max(score(tensor.module())), tensor.name.as_str())), 0.5)
}

/// The names with the highest scores, none below the least.
fn best<'m>(scored: impl Iterator<Item = (f64, &'m str)>, least: f64) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = scored.filter(|(score, _)| *score >= least).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().take(SUGGESTIONS).map(|(_, name)| name.to_owned()).collect()
}

/// The last segments of a dotted name.
fn end_of(name: &str, segments: usize) -> &str {
    let start = name.rmatch_indices('.').nth(segments - 1).map_or(0, |(dot, _)| dot + 1);
    &name[start..]
}

/// The sentence that suggests some names.
pub(super) fn nearest(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("The nearest name is `{one}`."),
        [init @ .., last] => {
            let init: Vec<String> = init.iter().map(|name| format!("`{name}`")).collect();
            format!("The nearest names are {} and `{last}`.", init.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.self_attn.q_proj",
        "lm_head",
    ];

    #[test]
    fn a_pattern_that_is_a_part_of_a_name_finds_it() {
        let near = |pattern: &str| nearest_names(pattern, NAMES.into_iter());
        assert_eq!(near("gate"), ["gate_proj", "shared_expert_gate"]);
        assert_eq!(near("mlp.gate"), ["mlp.gate_proj"]);
        for pattern in ["*.layers.*.mlp.Gate", "re:.*gate$", "re:^.*\\.gate$"] {
            assert!(near(pattern).iter().any(|name| name.ends_with("gate_proj")), "{pattern}");
        }
        assert_eq!(near("q_projection"), ["q_proj"]);
        assert_eq!(near("lm_head.weight"), ["lm_head"]);
        assert_eq!(near("Head")[..], ["lm_head"]);
        assert!(near("vision").is_empty() && near("a").is_empty());
    }
}
