//! The parts of a model: matrices, norms, activations, attention, experts.

/// What is looked up for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The token table.
    pub tokens: String,
    /// What its rows are multiplied by.
    pub scale: f32,
    /// A table of positions and its first row in use.
    pub positions: Option<(String, usize)>,
    /// A table of which the first row is added to all.
    pub types: Option<String>,
    /// A norm after the sum.
    pub norm: Option<Norm>,
}

/// What makes logits of the last hidden state.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// A product, an activation and a norm before the last product (BERT).
    pub transform: Option<(Linear, Activation, Norm)>,
    /// The matrix, one row a token of the vocabulary.
    pub matrix: Linear,
    /// What logits are multiplied by.
    pub scale: f32,
    /// Logits are `cap · tanh(logits / cap)`.
    pub cap: Option<f32>,
}

/// Inverse frequencies of rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// One a pair of columns, for windows up to the length at which `long` takes over.
    pub frequencies: Vec<f32>,
    /// Others, for windows longer than a length.
    pub long: Option<(usize, Vec<f32>)>,
    /// What cosines and sines are multiplied by.
    pub factor: f32,
}

/// How rows are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root of their mean square, times the weight.
    Rms,
    /// By the root of their mean square, times one plus the weight (Gemma).
    RmsPlusOne,
    /// Less their mean, by their deviation, times the weight.
    Layer,
    /// By their length (as queries and keys in gated delta layers), times the weight if there is one.
    Length,
}

/// A norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Kind.
    pub kind: NormKind,
    /// The weight, if there is one.
    pub weight: Option<String>,
    /// The bias, if there is one.
    pub bias: Option<String>,
    /// Added under the root.
    pub epsilon: f32,
    /// Columns that are normed together: the whole width, or one head.
    pub width: usize,
    /// Columns of the weight: more than `width` where each head has its own.
    pub columns: usize,
}

/// How a matrix lies in its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One row an output, as in a Linear.
    OutIn,
    /// One row an input, as in GPT-2's Conv1D and in transposed stacks.
    InOut,
}

/// Which part of a tensor a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// One expert of a stack.
    Expert(usize),
}

/// A matrix that rows are multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// The tensor.
    pub tensor: String,
    /// Which part of it.
    pub part: Part,
    /// How it lies there.
    pub layout: Layout,
    /// Inputs.
    pub columns: usize,
    /// Outputs.
    pub rows: usize,
    /// The tensor of its bias, if there is one; of a stack the same part of it.
    pub bias: Option<String>,
}

impl Linear {
    /// The module's name as statistics have it: the tensor's without `.weight`.
    #[must_use]
    pub fn module(&self) -> &str {
        self.tensor.strip_suffix(".weight").unwrap_or(&self.tensor)
    }
}

/// A function of single numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// With the error function.
    Gelu,
    /// With tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
    /// 1 / (1 + exp(−x)).
    Sigmoid,
    /// tanh.
    Tanh,
    /// log(1 + exp(x)).
    Softplus,
}

/// How gate and up are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Join {
    /// activation(gate) · up.
    Product(Activation),
    /// gpt-oss: both clamped, gate · sigmoid(α · gate) · (up + 1).
    Clamped {
        /// α.
        alpha: f32,
        /// The clamp.
        limit: f32,
    },
}

/// Attention over the rows of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Columns of a query and a key.
    pub size: usize,
    /// Columns of a value.
    pub value_size: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// Scores are `cap · tanh(scores / cap)`.
    pub cap: Option<f32>,
    /// How many tokens are seen, the token itself among them.
    pub window: Option<usize>,
    /// Whether tokens see only those before them.
    pub is_causal: bool,
    /// One score a head that takes part in the softmax and leads nowhere.
    pub sinks: Option<String>,
}

/// What experts' logits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Softmax over all experts, then the best.
    Softmax,
    /// The best, then softmax over them.
    SoftmaxOfBest,
    /// Sigmoid of each.
    Sigmoid,
}

/// How tokens choose experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// All experts.
    pub experts: usize,
    /// Chosen ones a token.
    pub chosen: usize,
    /// Scores.
    pub scores: Scores,
    /// Whether weights are divided by their sum, and what is added to it.
    pub normalize: Option<f32>,
    /// What weights are multiplied by at the end.
    pub scale: f32,
    /// A tensor that is added to scores for the choice only.
    pub correction: Option<String>,
    /// Groups of experts, and how many of them are chosen from.
    pub groups: Option<(usize, usize)>,
}
