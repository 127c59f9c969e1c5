//! A recipe to begin with: one that fits a model, with comments that say what it does and why.

use std::fmt::Write;
use std::path::PathBuf;

use crate::exit::Exit;
use crate::finding::Failure;
use crate::plan::{self, Limits, Plan};
use crate::recipe::{self, Overrides};
use crate::text::units::{bytes, counted};
use crate::text::visible;

/// What is quantized to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// INT4 weights in groups.
    Int4,
    /// INT8 weights, one scale per row.
    Int8,
    /// The same, and INT8 activations.
    W8a8,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::W8a8 => "w8a8",
        }
    }

    fn stage(self) -> &'static str {
        match self {
            Self::Int4 => "quantize-int4",
            Self::Int8 | Self::W8a8 => "quantize-int8",
        }
    }

    /// Parameters to be tried, the usual ones first: a model whose rows do not divide into groups needs others.
    fn candidates(self) -> &'static [&'static [(&'static str, &'static str)]] {
        match self {
            Self::Int4 => &[
                &[("group_size", "128")],
                &[("group_size", "64")],
                &[("group_size", "32")],
                &[("group_size", "128"), ("indivisible", "channel")],
                &[("granularity", "channel")],
            ],
            Self::Int8 => &[&[("granularity", "channel")]],
            Self::W8a8 => &[&[("granularity", "channel"), ("activations", "dynamic-token")]],
        }
    }

    /// How many dB a layer may be below what the scheme reaches on Gaussian weights, before a warning and before an error. One
    /// outlier stretches the scale of its whole row, so rows vary more than groups.
    fn allowance(self) -> (f64, f64) {
        match self {
            Self::Int4 => (3.0, 7.0),
            Self::Int8 | Self::W8a8 => (10.0, 17.0),
        }
    }
}

/// What the recipe is to be.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// The model as `load` names it.
    pub model: String,
    /// The name of the recipe without its scheme.
    pub name: String,
    /// What is quantized to what.
    pub scheme: Scheme,
    /// Whether a result that is too bad fails the run.
    pub is_gate: bool,
    /// The folder that the recipe lies in.
    pub base: PathBuf,
    /// The place of the output, as `export` names it, without its scheme.
    pub output: String,
    /// Folders that links of the model may lead to.
    pub follow_links: Vec<PathBuf>,
    /// The address of the schema, for editors.
    pub schema: Option<String>,
}

/// The recipe. It was planned: it fits the model.
///
/// # Errors
/// Why the model cannot be read, or the reasons why no recipe of the scheme fits it.
pub(crate) fn starter(wish: &Wish) -> Result<String, Failure> {
    let mut refused = None;
    for parameters in wish.scheme.candidates() {
        match planned(wish, &text(wish, parameters, None)) {
            Ok(plan) => return Ok(text(wish, parameters, Some(&plan))),
            Err(failure) if failure.exit == Exit::BadModel => return Err(failure),
            Err(failure) => refused = refused.or(Some(failure)),
        }
    }
    Err(refused.unwrap_or(Failure { exit: Exit::BadRecipe, findings: Vec::new() }))
}

fn planned(wish: &Wish, text: &str) -> Result<Plan, Failure> {
    let overrides = Overrides { follow_links: wish.follow_links.clone(), ..Overrides::default() };
    let env = |name: &str| std::env::var(name).ok();
    let loaded = recipe::from_text("the new recipe", text, &wish.base, &overrides, &env)?;
    plan::plan(loaded, Limits::default())
}

fn text(wish: &Wish, parameters: &[(&str, &str)], plan: Option<&Plan>) -> String {
    let Wish { scheme, is_gate, .. } = wish;
    let mut out = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(out, "{text}");
    };
    if let Some(schema) = &wish.schema {
        line(&format!("# yaml-language-server: $schema={schema}"));
    }
    if let Some(plan) = plan {
        line(&format!("# Written by `monoquant init` for {}.", about(plan)));
        line("# `monoquant plan` shows what this recipe does, `monoquant run` does it.");
    }
    line("version: 1");
    line(&format!("name: {}", scalar(&format!("{}-{}", wish.name, scheme.name()))));
    if *is_gate {
        line("# A gate that is not passed ends the run with exit status 1, and nothing is published.");
        line("on_failure: error");
    }
    line("stages:");
    line("  - stage: load");
    line(&format!("    model: {}", scalar(&wish.model)));
    line("");
    if let Some(plan) = plan {
        line("  # Not quantized:");
        kept(plan).iter().for_each(|text| line(&format!("  #   {text}")));
        line("  # Name further modules to be left as they are, like `ignore` of llm-compressor.");
    }
    line("  - stage: resolve-skips");
    if plan.is_some() {
        line("    # modules_to_not_convert: [mlp.down_proj, 'model.layers.{0..3}', 're:.*gate$']");
    }
    line("");
    if let Some(plan) = plan {
        line(&format!("  # {}", sizes(plan)));
    }
    line(&format!("  - stage: {}", scheme.stage()));
    parameters.iter().for_each(|(key, value)| line(&format!("    {key}: {value}")));
    if *scheme == Scheme::Int4 {
        line(
            "    # Scales of either sign: half a dB more of the same size and speed. transformers, vLLM and SGLang take them.",
        );
        line("    scales: signed");
    }
    if plan.is_some() && *scheme == Scheme::Int4 {
        line("    # A search for better ranges: up to 1 dB more, and slower here. The result is as fast.");
        line("    # observer: mse");
    }
    line("");
    line("  - stage: validate");
    line("");
    let reach = plan.and_then(least_reach);
    if let Some(reach) = reach {
        let (warning, error) = scheme.allowance();
        line(&format!(
            "  # On Gaussian weights this scheme reaches {reach:.1} dB. Layers of trained models lie below that: one to two"
        ));
        line("  # dB in groups, more where one outlier stretches the scale of a whole row.");
        line("  - stage: check-warnings");
        line(&format!("    sqnr_warning_threshold: {}", (reach - warning).floor()));
        if *is_gate {
            line(&format!("    sqnr_error_threshold: {}", (reach - error).floor()));
        }
    } else {
        line("  - stage: check-warnings");
    }
    line("");
    line("  - stage: export");
    line(&format!("    path: {}", scalar(&format!("{}-{}", wish.output, scheme.name()))));
    out
}

/// The model in a few words.
fn about(plan: &Plan) -> String {
    let model = &plan.model;
    let kind = model.config.model_type().unwrap_or("a model of unknown type");
    format!("{}, {}, {}", visible(kind), counted(model.tensors.len(), "tensor"), bytes(model.tensor_bytes()))
}

/// The reasons why tensors are kept, the largest first, each with how much it keeps.
fn kept(plan: &Plan) -> Vec<String> {
    let mut reasons: Vec<(&str, usize, u64, &str)> = Vec::new();
    for (tensor, decision) in plan.model.tensors.iter().zip(&plan.decisions) {
        if decision.spec().is_some() || tensor.part_of.is_some() {
            continue;
        }
        match reasons.iter_mut().find(|(reason, ..)| *reason == &*decision.rule.reason) {
            Some((_, count, size, _)) => {
                *count += 1;
                *size += tensor.bytes;
            }
            None => reasons.push((&decision.rule.reason, 1, tensor.bytes, &tensor.name)),
        }
    }
    reasons.sort_by_key(|(_, _, size, _)| std::cmp::Reverse(*size));
    let line = |(reason, count, size, first): (&str, usize, u64, &str)| {
        let first = match count {
            1 => visible(first).into_owned(),
            _ => format!("{}, …", visible(first)),
        };
        format!("{}: {}, {} ({first})", visible(reason), counted(count, "tensor"), bytes(size))
    };
    reasons.into_iter().map(line).collect()
}

/// What becomes of the weights.
fn sizes(plan: &Plan) -> String {
    let to = plan.exports.iter().map(plan::ExportPlan::weight_bytes).next().unwrap_or(0);
    let tensors = counted(plan.quantized_tensors(), "tensor");
    format!("{tensors} quantized: {} of weights become {}.", bytes(plan.source_bytes()), bytes(to))
}

/// The least SQNR that a quantized tensor's scheme reaches on Gaussian weights.
fn least_reach(plan: &Plan) -> Option<f64> {
    let quantized = plan.decisions.numbered().filter(|(_, decision)| decision.spec().is_some());
    quantized.filter_map(|(tensor, _)| plan.reach(tensor)).min_by(f64::total_cmp)
}

/// A text as a value of YAML in one line.
fn scalar(text: &str) -> String {
    let text = text.replace("${", "$${");
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '.'))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '@'))
        && text.chars().any(|c| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | ".inf" | ".nan"
        );
    // A string of JSON is one of YAML.
    if is_plain { text } else { serde_json::Value::String(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_would_read_as_something_else_is_quoted() {
        for plain in ["models/tiny-llama", "../m", "/data/Qwen3-0.6B"] {
            assert_eq!(scalar(plain), plain);
        }
        for (text, value) in [
            ("my model", "\"my model\""),
            ("a: b", "\"a: b\""),
            ("~/m", "\"~/m\""),
            ("true", "\"true\""),
            ("1e5", "\"1e5\""),
            ("hf://org/name", "\"hf://org/name\""),
            ("a\"b", "\"a\\\"b\""),
            ("${X}", "\"$${X}\""),
        ] {
            assert_eq!(scalar(text), value);
        }
    }
}
