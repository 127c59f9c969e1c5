//! Layer kinds: the kind of layer that each tensor belongs to, by its name, its shape and the configuration.
//!
//! A checkpoint has tensors and no module classes. The kinds are a table, one row per rule, first match wins. Each
//! tensor carries the wording of the rule that gave its kind, so that `explain` can show it. Roles are in `roles`.

use std::collections::{BTreeMap, BTreeSet};

use super::class::{Because, LayerClass};
use super::code;
use super::facts::{TensorFacts, Tensors};
use super::folder::ModelFolder;
use super::roles::{self, Surroundings};
use crate::finding::Finding;
use crate::ids::{IdVec, TensorId};
use crate::layer::LayerType;
use crate::threads;

impl Because {
    /// The rule in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Kind(at) => KINDS.get(usize::from(at)).map_or("", |rule| rule.words),
            Self::Role(at) => roles::words(at),
            Self::Recipe => "layer_types of the recipe",
        }
    }
}

/// The classes of a folder's tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// One class per tensor, in the order of the folder's tensors.
    pub classes: IdVec<TensorId, LayerClass>,
    /// The layers that were taken for the language model, if the model has other parts beside it.
    pub decoder: Option<String>,
    /// Warnings about uncertain classes.
    pub warnings: Vec<Finding>,
}

/// Infers kind and role of every tensor. Linear in the number of tensors; reads nothing.
#[must_use]
pub fn classify(folder: &ModelFolder) -> Classified {
    let model = ModelFacts::of(folder);
    let mut classes: IdVec<TensorId, LayerClass> = threads::map(&folder.tensors, |tensor| {
        let (at, rule) = kind(&TensorFacts::of(tensor), &model);
        LayerClass { kind: rule.kind, kind_rule: Because::Kind(at), role: None, role_rule: None }
    })
    .into();
    let mut surroundings = Surroundings::of(&Tensors { folder, classes: &classes });
    let known: Vec<_> = folder.tensors.iter().zip(&classes).collect();
    let roles: Vec<Option<u8>> = threads::map(&known, |(tensor, class)| {
        roles::role(&TensorFacts::of(tensor), class.kind, &surroundings)
    });
    drop(known);
    let warning = surroundings.decoder.warning.take();
    let words = surroundings.decoder.words.take();
    for (class, rule) in classes.iter_mut().zip(roles) {
        class.role = rule.map(roles::of_rule);
        class.role_rule = rule.map(Because::Role);
    }
    let tensors = folder.tensors.iter().zip(&classes);
    let mut unsure = tensors
        .filter(|(tensor, class)| {
            class.kind == LayerType::Linear && is_unsure_gate(&TensorFacts::of(tensor), &model)
        })
        .map(|(tensor, _)| tensor.name.as_str());
    let warnings = unsure_gates(&mut unsure).into_iter().chain(warning).collect();
    Classified { classes, decoder: words, warnings }
}

/// The facts about the whole model that the rules use.
struct ModelFacts<'a> {
    folder: &'a ModelFolder,
    /// Numbers of experts that the configuration names.
    experts: BTreeSet<u64>,
    /// Numbers of experts, from the highest index below a module: `model.layers.0.mlp` → 64.
    counted: BTreeMap<&'a str, u64>,
    /// The family keeps its linear layers as [in, out].
    is_transposed_family: bool,
    /// The family may keep its routers as [hidden, experts].
    is_ernie: bool,
}

impl<'a> ModelFacts<'a> {
    fn of(folder: &'a ModelFolder) -> Self {
        let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in &folder.tensors {
            // `experts` and a number, wherever they are in the name.
            let Some((before, after)) = tensor.name.split_once(".experts.") else { continue };
            let Some(expert) = after.split('.').next().and_then(|n| n.parse::<u64>().ok()) else { continue };
            let count = counted.entry(before).or_default();
            *count = (*count).max(expert.saturating_add(1));
        }
        let model_type = folder.config.model_type().unwrap_or("");
        let is_transposed_family =
            matches!(model_type, "gpt2" | "openai-gpt" | "imagegpt" | "decision_transformer")
                && c_attn_is_wide(folder);
        let experts = folder.config.experts();
        Self { folder, experts, counted, is_transposed_family, is_ernie: model_type.starts_with("ernie") }
    }

    /// Whether a number is one of experts: of the configuration's, or as many as lie beside this tensor.
    fn is_expert_count(&self, n: u64, tensor: &TensorFacts<'_>) -> bool {
        self.experts.contains(&n) || (n > 0 && self.experts_beside(tensor) == Some(n))
    }

    /// How many experts have files of their own beside a router: `mlp.gate` or `mlp.router.layer` beside
    /// `mlp.experts.0`.
    fn experts_beside(&self, tensor: &TensorFacts<'_>) -> Option<u64> {
        let mut module = tensor.info.module();
        for _ in 0..2 {
            module = module.rsplit_once('.')?.0;
            if let Some(&count) = self.counted.get(module) {
                return Some(count);
            }
        }
        None
    }
}

/// GPT-2 files that were transposed to plain linear layers exist; the fused q, k, v tells.
fn c_attn_is_wide(folder: &ModelFolder) -> bool {
    let fused = folder.tensors.iter().find(|tensor| tensor.name.ends_with(".c_attn.weight"));
    match fused.map(|tensor| &tensor.shape[..]) {
        Some(&[rows, columns]) => rows.checked_mul(3) == Some(columns),
        _ => true,
    }
}

/// One rule: the kind it gives, its wording, and its test. The comment above a row says why it is there.
struct Rule {
    kind: LayerType,
    words: &'static str,
    test: fn(&TensorFacts<'_>, &ModelFacts<'_>) -> bool,
}

const KINDS: &[Rule] = &[
    // Used up when the weight is read.
    Rule {
        kind: LayerType::Other,
        words: "a part of an encoded weight, such as its scales",
        test: |t, _| t.info.part_of.is_some(),
    },
    // Integers and booleans: hash tables, counters, masks.
    Rule { kind: LayerType::Other, words: "not a float dtype", test: |t, _| !t.info.dtype.is_float() },
    Rule {
        kind: LayerType::BatchNorm1d,
        words: "a norm's scale with running statistics beside it",
        test: |t, m| is_norm_scale(t) && m.folder.parameter_of(t.info.module(), "running_mean").is_some(),
    },
    Rule {
        kind: LayerType::LayerNorm,
        words: "a norm's scale with a bias beside it",
        test: |t, m| is_norm_scale(t) && m.folder.parameter_of(t.info.module(), "bias").is_some(),
    },
    Rule { kind: LayerType::RMSNorm, words: "a norm's scale alone", test: |t, _| is_norm_scale(t) },
    // Biases, sinks, `A_log`, `D`, `dt_bias`, scalars.
    Rule { kind: LayerType::Other, words: "fewer than two axes", test: |t, _| t.axes() < 2 },
    // Qwen3.5, Qwen3-VL-MoE, Gemma 4, Llama 4, gpt-oss, Granite, Step.
    Rule { kind: LayerType::Experts, words: "three axes, the first of them the experts", test: is_stack },
    Rule {
        kind: LayerType::Conv1d,
        words: "a weight with three axes",
        test: |t, _| t.axes() == 3 && t.is_weight(),
    },
    Rule {
        kind: LayerType::Conv2d,
        words: "a weight with four axes",
        test: |t, _| t.axes() == 4 && t.is_weight(),
    },
    Rule {
        kind: LayerType::Conv3d,
        words: "a weight with five axes",
        test: |t, _| t.axes() == 5 && t.is_weight(),
    },
    // Kimi-Linear's 4-D `A_log`, class embeddings [1, 1, d].
    Rule { kind: LayerType::Other, words: "more than two axes", test: |t, _| t.axes() > 2 },
    // `hc_*_fn`, `ape`, position tables, expert biases, `in_proj_weight`: no engine has a quantized form of
    // them.
    Rule { kind: LayerType::Other, words: "two axes and not named `weight`", test: |t, _| !t.is_weight() },
    Rule { kind: LayerType::Embedding, words: "named as a lookup table", test: is_table },
    Rule {
        kind: LayerType::Router,
        words: "named as a router, rows = experts",
        test: |t, m| is_router_name(t) && m.is_expert_count(t.axis(0), t),
    },
    // ERNIE 4.5 VL stores its routers as [hidden, experts].
    Rule {
        kind: LayerType::Router,
        words: "named as a router, columns = experts",
        test: |t, m| m.is_ernie && is_router_name(t) && m.is_expert_count(t.axis(1), t),
    },
    // Gemma 3n's `altup.modality_router` chooses no experts, and is as sensitive.
    Rule {
        kind: LayerType::Router,
        words: "named as a router, with few rows",
        test: |t, _| t.last.ends_with("_router") && t.axis(0) <= t.axis(1) / 4,
    },
    Rule {
        kind: LayerType::Router,
        words: "`shared_expert_gate` with one row",
        test: |t, _| t.last == "shared_expert_gate" && t.axis(0) == 1,
    },
    // StarCoder's `c_attn` and StarCoder2's `c_fc` are plain linear layers, so the family counts.
    Rule {
        kind: LayerType::Conv1D,
        words: "GPT-2's family stores this layer as [in, out]",
        test: |t, m| m.is_transposed_family && matches!(t.last, "c_attn" | "c_proj" | "c_fc" | "q_attn"),
    },
    Rule { kind: LayerType::Linear, words: "a weight with two axes", test: |_, _| true },
];

fn kind(tensor: &TensorFacts<'_>, model: &ModelFacts<'_>) -> (u8, &'static Rule) {
    // The last rule always holds.
    let at = KINDS.iter().position(|rule| (rule.test)(tensor, model)).unwrap_or(KINDS.len() - 1);
    (at as u8, &KINDS[at])
}

/// `norm` in any case and place, or `ln`, `ln_1`, `ln_f` and so on.
fn is_norm_scale(t: &TensorFacts<'_>) -> bool {
    t.axes() < 2
        && t.is_weight()
        && (contains_ignoring_case(t.last, "norm") || t.last == "ln" || t.last.starts_with("ln_"))
}

fn contains_ignoring_case(word: &str, part: &str) -> bool {
    word.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

fn is_stack(t: &TensorFacts<'_>, m: &ModelFacts<'_>) -> bool {
    let is_named = t.is_below("experts") || matches!(t.parent, "block_sparse_moe" | "moe");
    // Without a configuration the name has to do, but only that of `experts` itself.
    let is_counted = m.experts.contains(&t.axis(0)) || (m.experts.is_empty() && t.is_below("experts"));
    t.axes() == 3 && is_named && is_counted
}

/// `embedding_projection` and `patch_embedding.linear` are linear layers; GPT-NeoX's `embed_out` is the
/// output head. One of a list of tables (`codec_embedding.0`) is called by its number; `time_embedding.0` is such
/// a name too, of a linear layer, which has a bias.
fn is_table(t: &TensorFacts<'_>, m: &ModelFacts<'_>) -> bool {
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let is_listed = is_number(t.last) && m.folder.parameter_of(t.info.module(), "bias").is_none();
    let name = if is_listed { t.parent } else { t.last };
    let is_shard = t.last.strip_prefix("shard_").is_some_and(is_number);
    let is_embedding = contains_ignoring_case(name, "embed")
        && name != "embed_out"
        && !["proj", "linear", "dense"].iter().any(|word| contains_ignoring_case(name, word));
    is_embedding || is_shard || matches!(t.last, "wte" | "wpe" | "shared" | "relative_attention_bias")
}

fn is_router_name(t: &TensorFacts<'_>) -> bool {
    matches!(t.last, "gate" | "router")
        || (matches!(t.parent, "router" | "gate")
            && matches!(t.last, "proj" | "layer" | "linear" | "gate" | "wg"))
}

/// Whether a layer is called a gate although nothing gives the number of experts.
fn is_unsure_gate(t: &TensorFacts<'_>, m: &ModelFacts<'_>) -> bool {
    t.last == "gate" && m.experts.is_empty() && m.experts_beside(t).is_none()
}

fn unsure_gates<'a>(names: &mut impl Iterator<Item = &'a str>) -> Option<Finding> {
    let first = names.next()?;
    let others = names.count();
    let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
    Some(
        Finding::warning(
            code::GATE,
            format!("`{first}`{more} may be a router; the number of experts is not known, so it is Linear"),
        )
        .help("If it chooses experts, say so: `layer_types: {gate: Router}` in `load`."),
    )
}

#[cfg(test)]
pub(super) mod tests;
