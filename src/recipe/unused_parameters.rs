//! Parameters that have no effect beside the others of their stage, and those that contradict each other.

use crate::finding::Finding;
use crate::quant::Granularity;
use crate::recipe::Recipe;
use crate::recipe::tree::Node;
use crate::stage::check_warnings::FailOn;
use crate::stage::export::{Export, Format, Target};
use crate::stage::resolve_skips::SkipDefaults;
use crate::stage::{
    ActivationScheme, CheckWarnings, Indivisible, ObserverChoice, OnFailure, Quantize, ResolveSkips,
    ScalesChoice, Stage, Validate, validate::Check,
};

/// A parameter without effect, and why.
pub(crate) struct Idle {
    pub key: &'static str,
    pub why: &'static str,
    /// Whether the value is the default, so that leaving it out changes nothing.
    pub is_default: bool,
}

/// The parameters of a stage that have no effect, written or not.
pub(crate) fn idle(stage: &Stage) -> Vec<Idle> {
    match stage {
        Stage::QuantizeInt4(stage) => idle_of_quantize(stage, stage.group_size),
        Stage::QuantizeInt8(stage) => idle_of_quantize(stage, stage.group_size),
        Stage::Validate(stage) => idle_of_validate(stage),
        Stage::CheckWarnings(stage) => idle_of_check(stage),
        Stage::Export(stage) if stage.format == Format::Dequantized => {
            let why = "any tool loads `dequantized`";
            let is_default = stage.target == Target::Any;
            vec![Idle { key: "target", why, is_default }, unsplit(stage, why)]
        }
        Stage::Export(stage) if stage.target == Target::Transformers => {
            vec![unsplit(stage, "it is about vLLM and SGLang")]
        }
        Stage::ResolveSkips(stage) if stage.defaults == SkipDefaults::None => {
            let is_default = stage.quantize_anyway.is_empty();
            vec![Idle {
                key: "quantize_anyway",
                why: "`defaults: none` leaves nothing to take back",
                is_default,
            }]
        }
        _ => Vec::new(),
    }
}

fn unsplit(stage: &Export, why: &'static str) -> Idle {
    Idle { key: "tensor_parallel", why, is_default: stage.tensor_parallel.is_none() }
}

fn idle_of_quantize(stage: &dyn Quantize, group_size: u32) -> Vec<Idle> {
    let mut idle = Vec::new();
    if !matches!(stage.granularity(), Granularity::Group(_)) {
        let why = "only `granularity: group` has groups";
        idle.push(Idle { key: "group_size", why, is_default: group_size == 128 });
        idle.push(Idle { key: "indivisible", why, is_default: stage.indivisible() == Indivisible::Error });
    }
    if !stage.observer().searches() {
        let why = "only `observer: mse` and `imatrix-mse` search";
        for (key, value) in [("maxshrink", stage.maxshrink()), ("grid", stage.grid()), ("norm", stage.norm())]
        {
            idle.push(Idle { key, why, is_default: value.is_none() });
        }
    }
    if stage.observer() != ObserverChoice::Percentile {
        let why = "only `observer: percentile` reads it";
        idle.push(Idle { key: "percentile", why, is_default: stage.percentile().is_none() });
    }
    if stage.rounding().is_nearest() {
        let why = "only `rounding: gptq` and `guided` go layer by layer";
        idle.push(Idle { key: "sequential", why, is_default: stage.sequential().is_none() });
    }
    idle
}

fn idle_of_validate(stage: &Validate) -> Vec<Idle> {
    if stage.checks.contains(&Check::WeightRange) {
        return Vec::new();
    }
    let why = "`checks` does not contain `weight-range`";
    vec![Idle { key: "max_abs_weight", why, is_default: stage.max_abs_weight == 100.0 }]
}

fn idle_of_check(stage: &CheckWarnings) -> Vec<Idle> {
    let mut idle = Vec::new();
    if !stage.low_calibration_warning {
        let why = "`low_calibration_warning` is off";
        let is_default = stage.min_calibration_samples == 50;
        idle.push(Idle { key: "min_calibration_samples", why, is_default });
    }
    if stage.on_failure == Some(OnFailure::Ignore) {
        let why = "`on_failure: ignore` acts on nothing";
        idle.push(Idle { key: "fail_on", why, is_default: stage.fail_on == FailOn::Critical });
    }
    idle
}

/// Errors and warnings about the parameters of each stage taken together.
pub(crate) fn findings(recipe: &Recipe, root: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    let nodes = root.entry("stages").map_or(&[][..], |entry| entry.value.items());
    for (stage, node) in recipe.stages.iter().zip(nodes) {
        for idle in idle(stage) {
            // Only written parameters are reported. Defaults are not the user's mistake.
            if let Some(entry) = node.entry(idle.key) {
                let message = format!("`{}` has no effect in this `{}`", idle.key, stage.name());
                let finding = Finding::warning("recipe::no-effect", message)
                    .at(entry.key_place.clone(), idle.why)
                    .help(format!("Remove `{}`, or change what it depends on.", idle.key));
                findings.push(finding);
            }
        }
        if let Some(quantize) = stage.quantize() {
            signed_scales(quantize, node, &mut findings);
        }
        match stage {
            Stage::QuantizeInt4(stage) if stage.activations == ActivationScheme::DynamicToken => {
                let finding = Finding::warning(
                    "recipe::no-gain",
                    "int4 with `activations` saves nothing over int8",
                )
                .at_opt(value_place(node, "activations"), "engines then want one byte per code")
                .help("Use `quantize-int8`, which is more accurate at the same size, or drop `activations`.");
                findings.push(finding);
            }
            Stage::CheckWarnings(stage) => {
                thresholds(stage, node, &mut findings);
                never_fails(stage, recipe.on_failure, node, &mut findings);
            }
            Stage::ResolveSkips(stage) => contradictions(stage, node, &mut findings),
            _ => {}
        }
    }
    findings
}

/// Errors of scales that are asked to be negative where they cannot be.
fn signed_scales(stage: &dyn Quantize, node: &Node, findings: &mut Vec<Finding>) {
    if stage.scales() != ScalesChoice::Signed {
        return;
    }
    let refused = [
        (!stage.symmetric(), "symmetric", "`symmetric: false`", "zero points move a range already"),
        (
            stage.granularity() == Granularity::Tensor,
            "granularity",
            "`granularity: tensor`",
            "one scale has nothing to choose",
        ),
        (
            stage.observer() == ObserverChoice::Percentile,
            "observer",
            "`observer: percentile`",
            "it chooses no side",
        ),
        (
            stage.activations() == ActivationScheme::DynamicToken,
            "activations",
            "int8 activations",
            "128 steps instead of 127.5 gain nothing",
        ),
        (
            stage.activations() == ActivationScheme::DynamicTokenFp8,
            "activations",
            "FP8 activations",
            "their kernel rounds scales to FP8, and was not looked at with negative ones",
        ),
    ];
    for (_, key, what, why) in refused.into_iter().filter(|(is_refused, ..)| *is_refused) {
        let finding =
            Finding::error("recipe::signed-scales", format!("`scales: signed` does not go with {what}"))
                .at_opt(value_place(node, "scales"), "scales may be negative")
                .at_opt(value_place(node, key), why)
                .help("Remove one of the two.");
        findings.push(finding);
    }
}

fn value_place(node: &Node, key: &str) -> Option<crate::finding::Place> {
    node.entry(key).map(|entry| entry.value.used.clone())
}

fn thresholds(stage: &CheckWarnings, node: &Node, findings: &mut Vec<Finding>) {
    let key = "sqnr_warning_threshold";
    let error = stage.error().or_default();
    // 0 switches a threshold off.
    if let Some(warning) = stage.sqnr_warning_threshold.filter(|warning| *warning != 0.0 && *warning < error)
    {
        let message =
            format!("the warning threshold ({warning} dB) is below the error threshold ({error} dB)");
        let finding = Finding::warning("recipe::no-effect", message)
            .at_opt(value_place(node, key), "whatever is below it is critical already")
            .help("Set `sqnr_warning_threshold` above `sqnr_error_threshold`.");
        findings.push(finding);
    }
    if let (Some(warning), Some(error)) = (stage.gap_warning, stage.gap_error)
        && warning > error
    {
        let message = format!("`gap_warning` ({warning} dB) is above `gap_error` ({error} dB)");
        let finding = Finding::warning("recipe::no-effect", message)
            .at_opt(value_place(node, "gap_warning"), "whatever is beyond it is critical already")
            .help("Set `gap_warning` below `gap_error`.");
        findings.push(finding);
    }
}

/// Reports written error thresholds that cannot fail the run.
fn never_fails(
    stage: &CheckWarnings,
    recipe_wide: Option<OnFailure>,
    node: &Node,
    findings: &mut Vec<Finding>,
) {
    let on_failure = stage.on_failure.or(recipe_wide);
    let why = match on_failure {
        Some(OnFailure::Error) => None,
        Some(OnFailure::Warn) => Some("`on_failure` is `warn`"),
        Some(OnFailure::Ignore) => Some("`on_failure` is `ignore`"),
        None => Some("`on_failure` of `check-warnings` is `warn` if nothing else is written"),
    };
    let written = [("sqnr_error_threshold", stage.sqnr_error_threshold), ("gap_error", stage.gap_error)];
    for (key, value) in written {
        let Some(value) = value.filter(|value| *value != 0.0 || key == "gap_error") else { continue };
        let finding = |label: &str| {
            Finding::warning("recipe::never-fails", format!("`{key}` of {value} dB never fails the run"))
                .at_opt(value_place(node, key), label)
        };
        if value < 0.0 {
            let help = "Set a positive threshold, or 0 to switch it off.";
            findings.push(finding("no layer has an SQNR below 0 dB").help(help));
        } else if let Some(why) = why {
            let help = format!(
                "Set `on_failure: error` in this stage, so that nothing is published below it. If a warning is all that is wanted, \
                 write `{}`.",
                key.replace("error", "warning")
            );
            findings.push(finding(why).help(help));
        }
    }
}

/// Reports patterns of `quantize_anyway` that the stage's own lists skip: it overrides defaults only.
fn contradictions(stage: &ResolveSkips, node: &Node, findings: &mut Vec<Finding>) {
    let places = |key: &str| node.entry(key).map_or(&[][..], |entry| entry.value.items());
    for (index, pattern) in stage.quantize_anyway.iter().enumerate() {
        let names = stage.modules_to_not_convert.iter().zip(places("modules_to_not_convert"));
        let more = stage.skip_layer_names.iter().zip(places("skip_layer_names"));
        let by_name = names.chain(more).find(|(skipped, _)| *skipped == pattern).map(|(_, place)| place);
        let types = stage.skip_layer_types.iter().zip(places("skip_layer_types"));
        let by_type = types
            .into_iter()
            .find(|(skipped, _)| Some(**skipped) == pattern.layer_type())
            .map(|(_, place)| place);
        if let Some(skip) = by_name.or(by_type) {
            let message = format!("`{pattern}` is both skipped and quantized anyway");
            let mut finding = Finding::error("recipe::contradiction", message);
            if let Some(anyway) = places("quantize_anyway").get(index) {
                finding = finding.at(anyway.used.clone(), "takes back built-in defaults only");
            }
            findings.push(finding.at(skip.used.clone(), "skipped here").help("Remove one of the two."));
        }
    }
}
