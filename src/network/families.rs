//! What tells families apart that neither their tensors nor their keys say: one row a family.

use super::parts::{Activation, NormKind, Scores};

/// How the rows of the token table are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum EmbeddingScale {
    /// Not at all, or by `embedding_multiplier`.
    Plain,
    /// By the root of the width.
    Root,
}

/// Which layers see only the tokens of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Windows {
    /// None: the family has no such key.
    None,
    /// All, where `sliding_window` is there.
    All,
    /// Those that `layer_types` names; if it is missing, all but every n-th.
    AllBut(usize),
    /// Those that `layer_types` names; if it is missing, those from `max_window_layers` on, if `use_sliding_window`.
    From,
}

/// Which layers turn queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turned {
    /// All.
    All,
    /// None: positions are a table.
    None,
    /// Those that `no_rope_layers` names with 1; if it is missing, all but every n-th.
    Named,
    /// Those with a window.
    Windowed,
    /// All, or if there is a window anywhere those with one.
    WindowedIfAny,
}

/// How the matrices of attention lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mixer {
    /// Queries, keys and values, apart or below each other.
    Plain,
    /// Below each other head by head (GPT-NeoX).
    ByHead,
    /// Queries with a gate for what was attended to beside them, head by head (Qwen3-Next).
    Gated,
    /// Through narrow latents (DeepSeek).
    Latent,
}

/// One family, or several that compute alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// `model_type`, of the text part if there are several.
    pub types: &'static [&'static str],
    pub(super) norm: NormKind,
    pub(super) epsilon: f64,
    /// If no key names one.
    pub(super) activation: Activation,
    pub(super) embedding: EmbeddingScale,
    pub(super) windows: Windows,
    pub(super) turned: Turned,
    pub(super) is_interleaved: bool,
    pub(super) mixer: Mixer,
    /// `partial_rotary_factor` if no key says it.
    pub(super) share: f64,
    /// `rope_theta` if no key says it.
    pub(super) base: f64,
    pub(super) scores: Scores,
    /// Whether experts' weights are divided by their sum; where missing, `norm_topk_prob` says it.
    pub(super) normalize: Option<bool>,
    /// What is added to that sum.
    pub(super) tiny: f32,
    pub(super) is_tied: bool,
    pub(super) is_encoder: bool,
    /// Rows of the table of positions that are never used.
    pub(super) first_position: usize,
    /// Whether `input_layernorm` is before both attention and MLP, or the keys say it.
    pub(super) is_parallel: bool,
    /// Whether matrices stand on their side (GPT-2's Conv1D).
    pub(super) is_turned: bool,
    /// Keys beside the common ones that change nothing here.
    pub(super) neutral: &'static [&'static str],
}

const LLAMA: Family = Family {
    types: &["llama", "arcee"],
    norm: NormKind::Rms,
    epsilon: 1e-6,
    activation: Activation::Silu,
    embedding: EmbeddingScale::Plain,
    windows: Windows::None,
    turned: Turned::All,
    is_interleaved: false,
    mixer: Mixer::Plain,
    share: 1.0,
    base: 1e4,
    scores: Scores::Softmax,
    normalize: None,
    tiny: 0.0,
    is_tied: false,
    is_encoder: false,
    first_position: 0,
    is_parallel: false,
    is_turned: false,
    neutral: &[],
};

const QWEN: Family = Family { types: &["qwen2", "qwen3"], windows: Windows::From, ..LLAMA };

const GEMMA: Family = Family {
    types: &["gemma"],
    norm: NormKind::RmsPlusOne,
    activation: Activation::GeluTanh,
    embedding: EmbeddingScale::Root,
    is_tied: true,
    ..LLAMA
};

const DEEPSEEK: Family = Family {
    types: &["deepseek_v3"],
    mixer: Mixer::Latent,
    is_interleaved: true,
    scores: Scores::Sigmoid,
    tiny: 1e-20,
    neutral: &["moe_layer_freq", "scoring_func", "topk_method", "aux_loss_alpha", "qk_head_dim", "head_dim"],
    ..LLAMA
};

const BERT: Family = Family {
    types: &["bert"],
    norm: NormKind::Layer,
    epsilon: 1e-12,
    activation: Activation::Gelu,
    turned: Turned::None,
    is_tied: true,
    is_encoder: true,
    ..LLAMA
};

const QWEN3_NEXT: Family = Family {
    types: &["qwen3_next", "qwen3_5_text"],
    norm: NormKind::RmsPlusOne,
    mixer: Mixer::Gated,
    share: 0.25,
    windows: Windows::None,
    neutral: &["full_attention_interval"],
    ..LLAMA
};

/// All families that are known. Each is admitted by a test that holds it against transformers, layer by layer.
pub const FAMILIES: &[Family] = &[
    LLAMA,
    Family { types: &["mistral"], windows: Windows::All, ..LLAMA },
    Family { types: &["ministral"], windows: Windows::AllBut(1), ..LLAMA },
    QWEN,
    GEMMA,
    Family { types: &["gemma2"], windows: Windows::AllBut(2), ..GEMMA },
    Family { types: &["gemma3_text"], windows: Windows::AllBut(6), base: 1e6, ..GEMMA },
    Family { types: &["phi3"], windows: Windows::All, epsilon: 1e-5, ..LLAMA },
    Family {
        types: &["granite", "granitemoe"],
        normalize: Some(false),
        scores: Scores::SoftmaxOfBest,
        ..LLAMA
    },
    Family { types: &["olmo2"], epsilon: 1e-5, ..LLAMA },
    Family { types: &["olmo3"], epsilon: 1e-5, windows: Windows::AllBut(4), base: 5e5, ..LLAMA },
    Family { types: &["olmoe"], epsilon: 1e-5, ..LLAMA },
    Family {
        types: &["smollm3"],
        windows: Windows::From,
        turned: Turned::Named,
        base: 2e6,
        is_tied: true,
        ..LLAMA
    },
    Family {
        types: &["mixtral"],
        windows: Windows::All,
        normalize: Some(true),
        epsilon: 1e-5,
        base: 1e6,
        ..LLAMA
    },
    Family { types: &["qwen2_moe", "qwen3_moe"], neutral: &["qkv_bias"], ..QWEN },
    Family { types: &["glm"], is_interleaved: true, share: 0.5, ..LLAMA },
    Family { types: &["glm4"], is_interleaved: true, share: 0.5, ..LLAMA },
    Family { types: &["glm4_moe"], mixer: Mixer::Plain, is_interleaved: false, share: 0.5, ..DEEPSEEK },
    DEEPSEEK,
    Family { types: &["minimax_m2"], scores: Scores::Sigmoid, normalize: Some(true), base: 5e6, ..LLAMA },
    Family {
        types: &["gpt_oss"],
        windows: Windows::AllBut(2),
        scores: Scores::SoftmaxOfBest,
        normalize: Some(false),
        epsilon: 1e-5,
        base: 1.5e5,
        neutral: &["swiglu_limit", "experts_per_token", "initial_context_length"],
        ..LLAMA
    },
    QWEN3_NEXT,
    Family {
        types: &["lfm2", "lfm2_moe"],
        epsilon: 1e-5,
        base: 1e6,
        is_tied: true,
        scores: Scores::Sigmoid,
        tiny: 1e-6,
        neutral: &[
            "full_attn_idxs",
            "block_dim",
            "block_mlp_init_scale",
            "block_norm_eps",
            "block_out_init_scale",
            "block_use_swiglu",
            "block_use_xavier_init",
            "conv_dim",
            "conv_dim_out",
            "conv_use_xavier_init",
            "num_heads",
        ],
        ..LLAMA
    },
    Family {
        types: &["cohere"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        is_interleaved: true,
        is_parallel: true,
        is_tied: true,
        ..LLAMA
    },
    Family {
        types: &["cohere2"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        is_interleaved: true,
        is_parallel: true,
        is_tied: true,
        windows: Windows::AllBut(4),
        turned: Turned::Windowed,
        ..LLAMA
    },
    Family {
        types: &["exaone4"],
        epsilon: 1e-5,
        windows: Windows::AllBut(4),
        turned: Turned::WindowedIfAny,
        ..LLAMA
    },
    Family { types: &["seed_oss"], neutral: &["attention_out_bias"], ..LLAMA },
    Family { types: &["ernie4_5"], is_interleaved: true, is_tied: true, epsilon: 1e-5, base: 5e5, ..LLAMA },
    Family {
        types: &["gpt2"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        activation: Activation::GeluTanh,
        turned: Turned::None,
        is_tied: true,
        is_turned: true,
        ..LLAMA
    },
    Family {
        types: &["opt"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        activation: Activation::Relu,
        turned: Turned::None,
        first_position: 2,
        is_tied: true,
        ..LLAMA
    },
    Family {
        types: &["gpt_neox"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        activation: Activation::Gelu,
        mixer: Mixer::ByHead,
        share: 0.25,
        is_parallel: true,
        ..LLAMA
    },
    Family {
        types: &["phi"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        activation: Activation::GeluTanh,
        share: 0.5,
        is_parallel: true,
        ..LLAMA
    },
    Family { types: &["stablelm"], norm: NormKind::Layer, epsilon: 1e-5, share: 0.25, ..LLAMA },
    Family {
        types: &["starcoder2"],
        norm: NormKind::Layer,
        epsilon: 1e-5,
        activation: Activation::GeluTanh,
        windows: Windows::All,
        is_tied: true,
        ..LLAMA
    },
    BERT,
    Family { types: &["roberta", "xlm-roberta"], first_position: usize::MAX, ..BERT },
];

/// The family of a `model_type`.
pub(super) fn find(kind: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.types.contains(&kind))
}
