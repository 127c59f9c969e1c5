//! The steps of a layer, and the program that they are.

use super::parts::{Activation, Attention, Join, Linear, Norm, Router};

/// Rows of one window in a program: a number that is unique in its layer.
pub type Slot = usize;

/// One step of a layer. Rows lie in slots; a step reads some and makes others.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Norms rows.
    Norm {
        /// Rows.
        from: Slot,
        /// Normed.
        to: Slot,
        /// How.
        norm: Norm,
    },
    /// Multiplies rows with a matrix: what is listened to, and what may be quantized.
    Linear {
        /// Rows.
        from: Slot,
        /// Products.
        to: Slot,
        /// The matrix.
        matrix: Linear,
    },
    /// Cuts columns into parts that lie one after another.
    Split {
        /// Rows.
        from: Slot,
        /// Slots and their widths.
        to: Vec<(Slot, usize)>,
        /// Columns after which the cut is repeated: the whole width, or that of one head.
        period: usize,
    },
    /// Puts the columns of two slots beside each other, head by head.
    Join {
        /// First.
        left: Slot,
        /// Second.
        right: Slot,
        /// Made.
        to: Slot,
        /// Heads; a side with one head only is repeated for each.
        heads: usize,
        /// Whether the left side has one head only.
        left_is_shared: bool,
        /// Whether the right side has one head only.
        right_is_shared: bool,
    },
    /// Cuts columns into even and odd ones.
    Deal {
        /// Rows.
        from: Slot,
        /// Even columns.
        even: Slot,
        /// Odd columns.
        odd: Slot,
    },
    /// Turns pairs of columns of each head by their positions' angles.
    Rope {
        /// Rows, changed in place.
        slot: Slot,
        /// Which angles.
        rope: usize,
        /// Columns of a head.
        size: usize,
        /// Whether pairs are neighbours; otherwise a column and the one half a head on.
        is_interleaved: bool,
    },
    /// Multiplies rows by a number that depends on their position: 1 + scale · ln(1 + ⌊(position + 1) / floor⌋).
    Temper {
        /// Rows, changed in place.
        slot: Slot,
        /// Scale.
        scale: f32,
        /// Floor.
        floor: f32,
    },
    /// Attention.
    Attend {
        /// Queries.
        queries: Slot,
        /// Keys.
        keys: Slot,
        /// Values.
        values: Slot,
        /// What was attended to.
        to: Slot,
        /// How.
        attention: Attention,
    },
    /// Gate and up become the inputs of down.
    Gate {
        /// Gate.
        gate: Slot,
        /// Up.
        up: Slot,
        /// Joined.
        to: Slot,
        /// How.
        join: Join,
    },
    /// Applies a function to each number.
    Activate {
        /// Rows, changed in place.
        slot: Slot,
        /// Function.
        with: Activation,
    },
    /// Clamps each number.
    Clamp {
        /// Rows, changed in place.
        slot: Slot,
        /// The largest size of a number.
        limit: f32,
    },
    /// Multiplies two slots number by number; the second may have one column, or one a head.
    Multiply {
        /// Rows, changed in place.
        slot: Slot,
        /// Multiplied with.
        with: Slot,
    },
    /// Adds rows to rows.
    Add {
        /// Added.
        from: Slot,
        /// Rows, changed in place.
        to: Slot,
        /// What is added is multiplied by this first.
        factor: f32,
    },
    /// Multiplies by a tensor of one number.
    ScaleBy {
        /// Rows, changed in place.
        slot: Slot,
        /// The tensor.
        tensor: String,
    },
    /// Copies rows.
    Copy {
        /// Rows.
        from: Slot,
        /// Copied.
        to: Slot,
    },
    /// Chooses experts.
    Route {
        /// Logits, one a token and expert.
        logits: Slot,
        /// The choice.
        to: Slot,
        /// How.
        router: Router,
    },
    /// Rows of the tokens that chose the first expert, then of the second, and so on.
    Gather {
        /// Rows of tokens.
        from: Slot,
        /// The choice.
        routing: Slot,
        /// Rows of experts.
        to: Slot,
    },
    /// Multiplies each expert's rows with its matrix.
    Experts {
        /// Rows of experts.
        from: Slot,
        /// The choice.
        routing: Slot,
        /// Products.
        to: Slot,
        /// One matrix an expert.
        matrices: Vec<Linear>,
    },
    /// Sums the rows of experts, weighted, into those of their tokens.
    Scatter {
        /// Rows of experts.
        from: Slot,
        /// The choice.
        routing: Slot,
        /// Rows of tokens.
        to: Slot,
    },
    /// A causal convolution of each column over the tokens.
    Convolve {
        /// Rows.
        from: Slot,
        /// Convolved.
        to: Slot,
        /// [columns, 1, width], the last number for the token itself.
        weight: String,
        /// One a column.
        bias: Option<String>,
        /// Width.
        width: usize,
    },
    /// The gated delta rule: a state a head that is read, corrected and let fade, token by token.
    Delta {
        /// Queries, normed, of the value heads.
        queries: Slot,
        /// Keys, normed.
        keys: Slot,
        /// Values.
        values: Slot,
        /// How much is corrected, one a head, before the sigmoid.
        beta: Slot,
        /// How much fades, one a head, before softplus.
        decay: Slot,
        /// Read.
        to: Slot,
        /// The tensor of logarithms of decay rates.
        rates: String,
        /// The tensor added to `decay`.
        offset: String,
        /// Heads of values.
        heads: usize,
        /// Heads of keys.
        key_heads: usize,
        /// Columns of a key.
        size: usize,
        /// Columns of a value.
        value_size: usize,
    },
}

/// The steps of one layer. Slot 0 is the stream: it comes in and goes out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    /// In their order.
    pub ops: Vec<Op>,
    /// Slots that are last used by a step, for each step.
    pub frees: Vec<Vec<Slot>>,
    /// How many slots there are.
    pub slots: usize,
}

impl Program {
    /// Runs of neighbouring products with the same inputs: matrices of one run see the same rows, and those of a later run may
    /// see what earlier ones made. Positions of steps.
    #[must_use]
    pub fn stages(&self) -> Vec<Vec<usize>> {
        let mut stages: Vec<(Slot, Vec<usize>)> = Vec::new();
        for (index, op) in self.ops.iter().enumerate() {
            let (Op::Linear { from, .. } | Op::Experts { from, .. }) = op else { continue };
            match stages.last_mut() {
                Some((slot, stage)) if slot == from => stage.push(index),
                _ => stages.push((*from, vec![index])),
            }
        }
        stages.into_iter().map(|(_, stage)| stage).collect()
    }

    /// All matrices, in the order of their steps.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.ops.iter().flat_map(|op| match op {
            Op::Linear { matrix, .. } => std::slice::from_ref(matrix).iter(),
            Op::Experts { matrices, .. } => matrices.iter(),
            _ => [].iter(),
        })
    }

    /// Tensors other than matrices and their biases, which are read whole.
    #[must_use]
    pub fn small_tensors(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        for op in &self.ops {
            match op {
                Op::Norm { norm, .. } => out.extend(norm.weight.iter().chain(&norm.bias).map(String::as_str)),
                Op::Attend { attention, .. } => out.extend(attention.sinks.as_deref()),
                Op::Route { router, .. } => out.extend(router.correction.as_deref()),
                Op::Convolve { weight, bias, .. } => {
                    out.extend([weight].into_iter().chain(bias).map(String::as_str))
                }
                Op::Delta { rates, offset, .. } => out.extend([rates.as_str(), offset]),
                Op::ScaleBy { tensor, .. } => out.push(tensor),
                _ => {}
            }
        }
        out.sort_unstable();
        out.dedup();
        out
    }
}

impl Op {
    /// The slots that it reads.
    #[must_use]
    pub fn reads(&self) -> Vec<Slot> {
        match self {
            Self::Norm { from, .. }
            | Self::Linear { from, .. }
            | Self::Split { from, .. }
            | Self::Deal { from, .. }
            | Self::Copy { from, .. }
            | Self::Convolve { from, .. } => vec![*from],
            Self::Join { left, right, .. } => vec![*left, *right],
            Self::Rope { slot, .. }
            | Self::Temper { slot, .. }
            | Self::Activate { slot, .. }
            | Self::Clamp { slot, .. }
            | Self::ScaleBy { slot, .. } => vec![*slot],
            Self::Attend { queries, keys, values, .. } => vec![*queries, *keys, *values],
            Self::Gate { gate, up, .. } => vec![*gate, *up],
            Self::Multiply { slot, with } => vec![*slot, *with],
            Self::Add { from, to, .. } => vec![*from, *to],
            Self::Route { logits, .. } => vec![*logits],
            Self::Gather { from, routing, .. }
            | Self::Experts { from, routing, .. }
            | Self::Scatter { from, routing, .. } => vec![*from, *routing],
            Self::Delta { queries, keys, values, beta, decay, .. } => {
                vec![*queries, *keys, *values, *beta, *decay]
            }
        }
    }
}
