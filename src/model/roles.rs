//! Tensor roles: the part a tensor plays in the model, beside its kind. A table, one row per rule, first match wins.
//!
//! llm-compressor's recipes and engines skip some roles as a whole (towers, output heads, extra prediction layers)
//! and treat others alike (the projections of Mamba blocks and linear attention).

use std::collections::HashSet;

use super::decoder::{Decoder, Place};
use super::facts::{TensorFacts, Tensors};
use crate::layer::LayerType;

/// The facts about the whole model that the rules use.
pub(super) struct Surroundings<'a> {
    /// Rows of the output head.
    vocabulary: Option<u64>,
    /// Number of layers of the text decoder. `None` if that number cannot identify extra layers.
    layers: Option<u64>,
    /// Which blocks are the model.
    pub(super) decoder: Decoder<'a>,
    /// Modules that have a `conv1d` below them: `backbone.layers.0.mixer`.
    convolved: HashSet<&'a str>,
    /// Linear modules: a tensor below one of them corrects it.
    matrices: HashSet<&'a str>,
}

impl<'a> Surroundings<'a> {
    pub(super) fn of(tensors: &Tensors<'a, '_>) -> Self {
        let config = &tensors.folder.config;
        let vocabulary = config.vocab_size().or_else(|| token_table_rows(tensors, config.hidden_size()));
        let decoder = Decoder::of(tensors, vocabulary);
        // Encoder and decoder have depths of their own, and only one of them is `num_hidden_layers`.
        let layers = config.num_hidden_layers().filter(|_| decoder.is_told && !decoder.is_encoder_decoder);
        let names = tensors.folder.tensors.iter();
        let convolved = names.filter_map(|t| t.name.strip_suffix(".conv1d.weight")).collect();
        let linears = tensors.iter().filter(|(_, kind)| *kind == LayerType::Linear);
        let matrices = linears.map(|(t, _)| t.info.module()).collect();
        Self { vocabulary, layers, decoder, convolved, matrices }
    }
}

/// The vocabulary size if no configuration gives it: the rows of the token table.
fn token_table_rows(tensors: &Tensors<'_, '_>, width: Option<u64>) -> Option<u64> {
    let tables = tensors.iter().filter(|(_, kind)| *kind == LayerType::Embedding).map(|(t, _)| t);
    let named = tables.filter(|t| {
        matches!(
            t.last,
            "embed_tokens" | "wte" | "word_embeddings" | "embeddings" | "tok_embeddings" | "embed" | "shared"
        )
    });
    // One that is as wide as the decoder comes before a longer one that is not.
    named.map(|t| (Some(t.info.shape[1]) == width, t.info.shape[0])).max().map(|(_, rows)| rows)
}

/// One rule: the role it gives, its wording, and its test. The comment above a row says why it is there.
struct Rule {
    role: LayerType,
    words: &'static str,
    test: fn(&TensorFacts<'_>, LayerType, &Placed<'_, '_>) -> bool,
}

const ROLES: &[Rule] = &[
    // Before all others: an adapter has one row or column for each row or column of its layer, and a talker's head
    // may be in a list.
    Rule {
        role: LayerType::Adapter,
        words: "corrects the layer that it lies below or beside (LoRA)",
        test: |t, _, s| is_adapter(t, s),
    },
    // Heads have many names (`lm_head`, `head`, `proj_out`, `embed_out`, `shared_head.head`); only the shape
    // identifies all of them. A layer inside a list may happen to be as wide as the vocabulary, so there the name
    // must agree, too.
    Rule {
        role: LayerType::Head,
        words: "rows = vocab_size",
        test: |t, kind, s| {
            kind == LayerType::Linear
                && s.vocabulary.is_some()
                && t.info.shape.first().copied() == s.vocabulary
                && (t.last.ends_with("head") || !is_numbered(t))
        },
    },
    Rule {
        role: LayerType::MTP,
        words: "below `mtp`",
        test: |t, _, _| t.segments().any(|part| matches!(part, "mtp" | "mtp_layers")),
    },
    Rule {
        role: LayerType::Tower,
        words: "beside the language model, in a part with layers of its own",
        test: |_, _, s| s.place == Place::Tower,
    },
    // DeepSeek and GLM append the extra layers to the decoder's.
    Rule {
        role: LayerType::MTP,
        words: "layer number ≥ num_hidden_layers",
        test: |_, _, s| match (s.place, s.layers) {
            (Place::Block(number), Some(layers)) => number >= layers,
            _ => false,
        },
    },
    Rule {
        role: LayerType::Indexer,
        words: "below `indexer`, `compressor` or `index_…`",
        test: |t, _, _| {
            t.segments().any(|part| matches!(part, "indexer" | "compressor") || part.starts_with("index_"))
        },
    },
    Rule {
        role: LayerType::Gating,
        words: "a projection to a few rows a head (`in_proj_a`, `b_proj`, `dt_proj`, …)",
        test: |t, _, _| {
            matches!(
                t.last,
                "in_proj_a"
                    | "in_proj_b"
                    | "in_proj_ba"
                    | "b_proj"
                    | "f_a_proj"
                    | "f_b_proj"
                    | "g_a_proj"
                    | "g_b_proj"
                    | "dt_proj"
                    | "x_proj"
            )
        },
    },
    Rule {
        role: LayerType::Hyper,
        words: "below `…hyper_connection…` or `hc_…`",
        test: |t, _, _| t.segments().any(|part| part.contains("hyper_connection") || part.starts_with("hc_")),
    },
    Rule {
        role: LayerType::PerLayer,
        words: "a gate or projection of per-layer embeddings",
        test: |t, _, _| {
            matches!(t.last, "per_layer_input_gate" | "per_layer_projection" | "per_layer_model_projection")
                || t.is_below("ple")
        },
    },
    Rule {
        role: LayerType::Mamba,
        words: "`in_proj` or `out_proj` of a Mamba block",
        test: |t, _, s| {
            let below = t.info.module().rsplit_once('.').map_or("", |(above, _)| above);
            matches!(t.last, "in_proj" | "out_proj")
                && (t.is_below("mamba") || (t.parent == "mixer" && s.convolved.contains(below)))
        },
    },
    Rule {
        role: LayerType::LinearAttention,
        words: "a projection of `linear_attn`",
        test: |t, _, _| {
            matches!(t.last, "in_proj_qkv" | "in_proj_qkvz" | "in_proj_z" | "out_proj")
                && t.is_below("linear_attn")
        },
    },
    // AdaLN: `norm1.linear`, `adaLN_modulation.1`, `img_mod.lin`. Its few matrices set the scale of whole layers.
    Rule {
        role: LayerType::Modulation,
        words: "a projection of the time step to scales and shifts",
        test: |t, kind, _| kind == LayerType::Linear && is_modulation(t),
    },
    Rule {
        role: LayerType::Projector,
        words: "between a tower and the language model's blocks",
        test: |_, _, s| s.place == Place::Projector,
    },
    Rule {
        role: LayerType::Head,
        words: "outside of the blocks, in a part with one row per label or token",
        test: |_, kind, s| kind == LayerType::Linear && s.place == Place::Head,
    },
    Rule {
        role: LayerType::Outside,
        words: "in none of the model's repeated blocks",
        test: |_, kind, s| is_matrix(kind) && s.place == Place::Outside,
    },
];

/// The role that a rule gives.
pub(super) fn of_rule(rule: u8) -> LayerType {
    ROLES.get(usize::from(rule)).map_or(LayerType::Outside, |rule| rule.role)
}

/// A rule in words.
pub(super) fn words(rule: u8) -> &'static str {
    ROLES.get(usize::from(rule)).map_or("", |rule| rule.words)
}

/// The rule that gives a tensor its role, if it has one.
pub(super) fn role(tensor: &TensorFacts<'_>, kind: LayerType, surroundings: &Surroundings<'_>) -> Option<u8> {
    let placed = Placed { place: surroundings.decoder.place(&tensor.info.name), surroundings };
    ROLES.iter().position(|rule| (rule.test)(tensor, kind, &placed)).map(|at| at as u8)
}

/// A tensor's place, and the surroundings.
struct Placed<'s, 'a> {
    place: Place,
    surroundings: &'s Surroundings<'a>,
}

impl<'a> std::ops::Deref for Placed<'_, 'a> {
    type Target = Surroundings<'a>;

    fn deref(&self) -> &Self::Target {
        self.surroundings
    }
}

fn is_matrix(kind: LayerType) -> bool {
    matches!(kind, LayerType::Linear | LayerType::Conv1D | LayerType::Experts)
}

/// Whether a tensor belongs to one module of a numbered list.
fn is_numbered(t: &TensorFacts<'_>) -> bool {
    t.segments().any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a tensor corrects a linear layer. A tensor below a linear layer, beside its `base_layer` or beside its
/// twin (`q_proj_lora_a`) does, because a linear layer has no modules of its own.
fn is_adapter(t: &TensorFacts<'_>, s: &Surroundings<'_>) -> bool {
    let is_named = |part: &&str| {
        part.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("lora")) || part.contains("_lora_")
    };
    if t.info.shape.len() < 2 {
        return false;
    }
    if t.segments().any(|part| is_named(&part)) {
        return true;
    }
    let mut above = t.info.module();
    for _ in 0..2 {
        let Some((parent, last)) = above.rsplit_once('.') else { return false };
        let has_base = || s.matrices.contains(format!("{parent}.base_layer").as_str());
        if s.matrices.contains(parent) || (last != "base_layer" && has_base()) {
            return true;
        }
        above = parent;
    }
    false
}

/// Whether a tensor is a linear layer of a norm, or of a module that is called a modulation.
fn is_modulation(t: &TensorFacts<'_>) -> bool {
    let is_word = |part: &str| {
        let part = part.to_ascii_lowercase();
        part.contains("modulation") || part.contains("adaln") || part == "mod" || part.ends_with("_mod")
    };
    let is_norm = |part: &str| {
        part.strip_prefix("norm").is_some_and(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_digit()).is_empty() || rest.ends_with("_context")
        })
    };
    t.segments().any(is_word) || (t.last == "linear" && is_norm(t.parent))
}
