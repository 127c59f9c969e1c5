//! Gradients that guide rounding: on how much text, in which blocks, and what they cost.

use crate::network::{Linear, Op, OutputSum, Program};
use crate::plan::{ModelRun, ModelRuns};
use crate::quant::Guided;
use crate::stage::Calibrate;

/// Bytes of the moments of a layer's outputs, if memory is not bounded; with more they are kept in blocks.
const LAYER_BYTES: u64 = 1 << 30;

/// Moments of a layer take no more than this share of a memory bound, and a block at work no more than the other.
const SHARE_OF_MOMENTS: u64 = 8;
const SHARE_OF_BLOCK: u64 = 4;

/// Smaller blocks say too little.
const LEAST_BLOCK: usize = 32;

/// Streams are in memory if they take no more than this, and fit.
const MOST_STREAMS: u64 = 2 << 30;

/// Windows, and tokens of them, that are at work at once on the way back.
const BATCH: u64 = 8;
const BATCH_TOKENS: u64 = 4096;

/// Pieces of the vocabulary in which answers are drawn.
const PIECE: u64 = 8192;

/// Copies of what a window's steps read and write: kept, and gradients of what is at work.
const COPIES: u64 = 2;

/// How a matrix is asked to be rounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Columns that share a scale.
    pub group: usize,
    pub is_guided: bool,
}

/// What is known of the gradients before they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gradients {
    /// Samples that they are taken on: the first ones of the text.
    pub samples: usize,
    /// Tokens of these.
    pub tokens: usize,
    /// Draws the answers.
    pub seed: u64,
    /// Outputs of a block of moments at most.
    pub most: usize,
    /// Outputs of the widest matrix that is guided.
    pub widest: usize,
    /// Matrices that are guided.
    pub matrices: usize,
    /// Bytes at once of weights, moments and windows at work in the layer that needs most, without streams.
    pub layer_bytes: u64,
    /// Bytes of the streams before and after all layers.
    pub stream_bytes: u64,
    /// Bytes of the moments of all layers, which are kept in files until their matrices are rounded.
    pub kept_bytes: u64,
}

impl Gradients {
    /// As `stage` asks for, in blocks that fit into memory; none if no matrix is guided. How large blocks are depends on
    /// nothing but the model and `memory`.
    pub(super) fn new(
        stage: &Calibrate,
        (runs, run): (&ModelRuns, &ModelRun),
        asked: &dyn Fn(&Linear) -> Option<Asked>,
        (threads, memory): (usize, Option<u64>),
    ) -> Option<Self> {
        let layers = &runs.description.layers;
        let guided = |matrix: &&Linear| asked(matrix).is_some_and(|asked| asked.is_guided);
        let all = || layers.iter().flat_map(Program::matrices).filter(guided);
        let widest = all().map(|matrix| matrix.rows).max()?;
        let samples = stage.gradient_samples.map_or(usize::MAX, |samples| samples as usize);
        let windows = &run.windows[..samples.min(run.windows.len())];
        let mut out = Self {
            samples: windows.len(),
            tokens: windows.iter().map(Vec::len).sum(),
            seed: u64::from(stage.seed.unwrap_or(0)),
            most: widest,
            widest,
            matrices: all().count(),
            layer_bytes: 0,
            stream_bytes: 0,
            kept_bytes: 0,
        };
        let moments = |of: &Self, program: &Program| -> u64 {
            program.matrices().filter(guided).map(|matrix| of.bytes(matrix.rows)).sum()
        };
        let bound = memory.map_or(LAYER_BYTES, |memory| (memory / SHARE_OF_MOMENTS).min(LAYER_BYTES));
        let fits = |of: &Self| {
            let at_work = |matrix: &Linear| {
                let group = asked(matrix).map_or(matrix.columns, |asked| asked.group);
                Guided::bytes(matrix.columns, group, of.block(matrix.rows))
            };
            layers.iter().all(|program| moments(of, program) <= bound)
                && memory.is_none_or(|memory| all().all(|matrix| at_work(matrix) <= memory / SHARE_OF_BLOCK))
        };
        while out.most > LEAST_BLOCK && !fits(&out) {
            out.most = out.most.div_ceil(2).max(LEAST_BLOCK);
        }
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0) as u64;
        let batch = (BATCH * longest).min(BATCH_TOKENS).max(longest).min(out.tokens as u64);
        let hidden = runs.description.hidden as u64;
        out.stream_bytes = (layers.len() as u64 + 2) * out.tokens as u64 * hidden * 4;
        out.kept_bytes = layers.iter().map(|program| moments(&out, program)).sum();
        let of_layer = |program: &Program| {
            let weights: u64 = program.matrices().map(|matrix| (matrix.rows * matrix.columns) as u64).sum();
            let (inputs, outputs) = numbers(program);
            let window = COPIES * longest * threads as u64 * (inputs + outputs + 2 * hidden);
            4 * (weights + batch * (outputs + hidden) + window) + moments(&out, program)
        };
        let head = 4 * (PIECE * hidden + 2 * batch * hidden + threads as u64 * longest * PIECE);
        out.layer_bytes = layers.iter().map(of_layer).max().unwrap_or(0).max(head);
        Some(out)
    }

    /// Outputs of a block of a matrix with so many.
    #[must_use]
    pub fn block(&self, rows: usize) -> usize {
        OutputSum::block_of_at_most(rows, self.most)
    }

    /// Bytes of the moments of a matrix with so many outputs.
    pub(super) fn bytes(&self, rows: usize) -> u64 {
        OutputSum::bytes_of(rows, self.block(rows))
    }

    /// Whether moments are kept whole.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.most >= self.widest
    }

    /// Whether all streams are in memory beside a layer that takes `least`.
    #[must_use]
    pub fn hold_streams(&self, least: u64, memory: Option<u64>) -> bool {
        let room = memory.map_or(MOST_STREAMS, |memory| memory.saturating_sub(least).min(MOST_STREAMS));
        self.stream_bytes <= room
    }
}

/// Numbers that go into the matrices of a layer and out of them, for each token.
fn numbers(program: &Program) -> (u64, u64) {
    let chosen = program.ops.iter().filter_map(|op| match op {
        Op::Route { router, .. } => Some(router.chosen),
        _ => None,
    });
    let chosen = chosen.max().unwrap_or(1);
    let of_step = |op: &Op| match op {
        Op::Linear { matrix, .. } => (matrix.columns as u64, matrix.rows as u64),
        Op::Experts { matrices, .. } => matrices
            .first()
            .map_or((0, 0), |matrix| ((matrix.columns * chosen) as u64, (matrix.rows * chosen) as u64)),
        _ => (0, 0),
    };
    let all = program.ops.iter().map(of_step);
    all.fold((0, 0), |(inputs, outputs), (own, made)| (inputs + own, outputs + made))
}
