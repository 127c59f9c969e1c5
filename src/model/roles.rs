//! What part a tensor plays in the model, beside its kind: a table, one row a rule, first match wins.
//!
//! Roles are what peers' recipes and engines leave alone as a whole (towers, output heads, extra prediction
//! layers) or treat alike (the projections of Mamba blocks and linear attention).

use std::collections::BTreeSet;

use super::folder::ModelFolder;
use super::types::TensorFacts;
use crate::layer::LayerType;

/// What the rules ask about the model as a whole.
pub(super) struct Surroundings<'a> {
    /// Rows of the output head.
    vocabulary: Option<u64>,
    /// Layers of the text decoder; `None` where that does not tell extra layers.
    layers: Option<u64>,
    /// Whether a text decoder lies beside the towers. A model of towers only has none of them.
    has_decoder: bool,
    /// Modules that have a `conv1d` below them: `backbone.layers.0.mixer`.
    convolved: BTreeSet<&'a str>,
}

impl<'a> Surroundings<'a> {
    pub(super) fn of(folder: &'a ModelFolder, facts: &[TensorFacts<'a>], kinds: &[LayerType]) -> Self {
        let config = &folder.config;
        let linears =
            || facts.iter().zip(kinds).filter(|(_, kind)| **kind == LayerType::Linear).map(|(t, _)| t);
        let has_decoder = linears().any(|t| {
            let in_layer = t.segments.iter().any(|s| s.bytes().all(|b| b.is_ascii_digit()) && !s.is_empty());
            in_layer && !t.segments.iter().any(|s| is_tower(s) || is_projector(s))
        });
        // Encoder and decoder have depths of their own, and only one of them is `num_hidden_layers`.
        let layers = config.num_hidden_layers().filter(|_| !config.is_encoder_decoder());
        let convolved = folder
            .tensors
            .iter()
            .filter_map(|t| t.name.strip_suffix(".conv1d.weight"))
            .collect::<BTreeSet<_>>();
        let vocabulary = config.vocab_size().or_else(|| token_table_rows(facts, kinds));
        Self { vocabulary, layers, has_decoder, convolved }
    }
}

/// The vocabulary where no configuration tells it: the rows of the table of tokens.
fn token_table_rows(facts: &[TensorFacts<'_>], kinds: &[LayerType]) -> Option<u64> {
    let tables = facts.iter().zip(kinds).filter(|(_, kind)| **kind == LayerType::Embedding).map(|(t, _)| t);
    let mut rows = tables
        .filter(|t| {
            matches!(
                t.last,
                "embed_tokens" | "wte" | "word_embeddings" | "embeddings" | "tok_embeddings" | "embed"
            )
        })
        .map(|t| t.info.shape[0]);
    rows.next()
}

/// One rule: the role it gives, its words, and its test. The comment above a row says why it is there.
struct Rule {
    role: LayerType,
    words: &'static str,
    test: fn(&TensorFacts<'_>, LayerType, &Surroundings<'_>) -> bool,
}

const ROLES: &[Rule] = &[
    // Heads have many names (`lm_head`, `head`, `proj_out`, `embed_out`, `shared_head.head`); only the shape
    // tells all. A layer may happen to be as wide as the vocabulary, so that inside of one the name must agree.
    Rule {
        role: LayerType::Head,
        words: "rows = vocab_size",
        test: |t, kind, s| {
            kind == LayerType::Linear
                && s.vocabulary.is_some()
                && t.info.shape.first().copied() == s.vocabulary
                && (!is_inside_layer(t) || t.last.ends_with("head"))
        },
    },
    Rule {
        role: LayerType::Tower,
        words: "below a tower (`visual`, `vision_tower`, `audio_tower`, …)",
        test: |t, _, s| s.has_decoder && t.segments.iter().any(|part| is_tower(part)),
    },
    Rule {
        role: LayerType::Projector,
        words: "between tower and decoder (`multi_modal_projector`, `merger`, …)",
        test: |t, _, s| s.has_decoder && t.segments.iter().any(|part| is_projector(part)),
    },
    Rule {
        role: LayerType::MTP,
        words: "below `mtp`",
        test: |t, _, _| t.segments.iter().any(|part| matches!(*part, "mtp" | "mtp_layers")),
    },
    // DeepSeek and GLM append the extra layers to the decoder's.
    Rule {
        role: LayerType::MTP,
        words: "layer number ≥ num_hidden_layers",
        test: |t, _, s| s.layers.is_some_and(|layers| decoder_layer(t).is_some_and(|layer| layer >= layers)),
    },
    Rule {
        role: LayerType::Indexer,
        words: "below `indexer`, `compressor` or `index_…`",
        test: |t, _, _| {
            t.segments
                .iter()
                .any(|part| matches!(*part, "indexer" | "compressor") || part.starts_with("index_"))
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
        test: |t, _, _| {
            t.segments.iter().any(|part| part.contains("hyper_connection") || part.starts_with("hc_"))
        },
    },
    Rule {
        role: LayerType::PerLayer,
        words: "a gate or projection of per-layer embeddings",
        test: |t, _, _| {
            matches!(t.last, "per_layer_input_gate" | "per_layer_projection" | "per_layer_model_projection")
                || t.segments.contains(&"ple")
        },
    },
    Rule {
        role: LayerType::Mamba,
        words: "`in_proj` or `out_proj` of a Mamba block",
        test: |t, _, s| {
            let below = t.info.module().rsplit_once('.').map_or("", |(above, _)| above);
            matches!(t.last, "in_proj" | "out_proj")
                && (t.segments.contains(&"mamba") || (t.parent == "mixer" && s.convolved.contains(below)))
        },
    },
    Rule {
        role: LayerType::LinearAttention,
        words: "a projection of `linear_attn`",
        test: |t, _, _| {
            matches!(t.last, "in_proj_qkv" | "in_proj_qkvz" | "in_proj_z" | "out_proj")
                && t.segments.contains(&"linear_attn")
        },
    },
];

/// The role of a tensor and the words of its rule.
pub(super) fn role(
    tensor: &TensorFacts<'_>,
    kind: LayerType,
    surroundings: &Surroundings<'_>,
) -> Option<(LayerType, &'static str)> {
    ROLES.iter().find(|rule| (rule.test)(tensor, kind, surroundings)).map(|rule| (rule.role, rule.words))
}

fn is_tower(segment: &str) -> bool {
    matches!(
        segment,
        "visual"
            | "vision_tower"
            | "vision_model"
            | "audio_tower"
            | "image_tower"
            | "video_tower"
            | "vision_encoder"
            | "audio_encoder"
            | "vit"
            | "code2wav"
    )
}

fn is_projector(segment: &str) -> bool {
    matches!(
        segment,
        "multi_modal_projector"
            | "mm_projector"
            | "embed_vision"
            | "embed_audio"
            | "patch_merge_mlp"
            | "connector"
            | "merger"
            | "aligner"
            | "mlp1"
    )
}

/// Whether a tensor is part of one layer of many.
fn is_inside_layer(t: &TensorFacts<'_>) -> bool {
    t.segments.windows(2).any(|pair| {
        matches!(pair[0], "layers" | "layer" | "h" | "blocks" | "block")
            && pair[1].bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The number of the decoder layer that a tensor is in: `layers.61`, outside of towers and encoders.
fn decoder_layer(t: &TensorFacts<'_>) -> Option<u64> {
    if t.segments.iter().any(|part| is_tower(part) || *part == "encoder") {
        return None;
    }
    let at = t.segments.iter().position(|part| matches!(*part, "layers" | "h"))?;
    t.segments.get(at + 1)?.parse().ok()
}
