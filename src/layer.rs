//! Layer types: the kinds and roles that a recipe can name. Patterns over names of modules are in `pattern`, over names of
//! files in `file_glob`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) mod file_glob;
pub(crate) mod pattern;

macro_rules! layer_types {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A layer type as a recipe writes it: the kind of a tensor, or its role.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum LayerType { $($(#[$doc])* $name),+ }

        impl LayerType {
            /// All of them, kinds first.
            pub const ALL: &[LayerType] = &[$(LayerType::$name),+];

            /// The word in recipes and reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(LayerType::$name => stringify!($name)),+ }
            }

            /// The type with exactly this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|t| t.name() == name)
            }
        }
    };
}

layer_types! {
    /// Kind: a linear layer, [out, in].
    Linear,
    /// Kind: a 1-D convolution.
    Conv1d,
    /// Kind: a 2-D convolution.
    Conv2d,
    /// Kind: a 3-D convolution.
    Conv3d,
    /// Kind: GPT-2's transposed linear layer, [in, out].
    Conv1D,
    /// Kind: a lookup table, [entries, width].
    Embedding,
    /// Kind: a lookup table that sums its hits. No checkpoint shows the difference to Embedding; set it by `layer_types`.
    EmbeddingBag,
    /// Kind: layer normalization (a scale that has a bias beside it).
    LayerNorm,
    /// Kind: root-mean-square normalization (a scale alone).
    RMSNorm,
    /// Kind: batch normalization over a sequence (running statistics beside the scale).
    BatchNorm1d,
    /// Kind: batch normalization over an image. No checkpoint shows the difference to BatchNorm1d; set it by `layer_types`.
    BatchNorm2d,
    /// Kind: chooses experts, [experts, hidden].
    Router,
    /// Kind: a 3-D stack of linear layers, one an expert.
    Experts,
    /// Kind: everything else (biases, scalars, tables without `.weight`, integers).
    Other,
    /// Role: the output head, rows are the vocabulary or labels.
    Head,
    /// Role: in a stack of layers beside the language model's: of vision, audio or video, a talker, a vocoder.
    Tower,
    /// Role: joins a tower to the language model.
    Projector,
    /// Role: extra prediction layers, for speculative decoding.
    MTP,
    /// Role: chooses tokens in sparse attention.
    Indexer,
    /// Role: a few rows a head that gate or decay a state.
    Gating,
    /// Role: mixes residual streams (hyper-connections).
    Hyper,
    /// Role: per-layer embeddings' gates and projections.
    PerLayer,
    /// Role: the projections of a Mamba block.
    Mamba,
    /// Role: the projections of linear attention.
    LinearAttention,
    /// Role: an adapter's (LoRA's) matrices beside the layer that they correct.
    Adapter,
    /// Role: scales and shifts a diffusion transformer's layers by the time step.
    Modulation,
    /// Role: in none of the model's repeated blocks: embedders, poolers, task heads.
    Outside,
}

impl LayerType {
    /// Whether this is a role (a tensor has one kind and at most one role).
    #[must_use]
    pub fn is_role(self) -> bool {
        self >= LayerType::Head
    }
}
