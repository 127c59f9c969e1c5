//! What rounding with calibration costs: operations and memory, from the shapes of the layers.

use super::gradients::{Asked, Gradients};
use crate::network::{Compared, Linear, Op, Program, StageSize, stage_parts};
use crate::plan::{ModelRun, ModelRuns};

/// Windows, and tokens of them, whose inputs are summed together.
const BATCH: u64 = 8;
const BATCH_TOKENS: u64 = 4096;

/// Windows wait in memory between the matrices of a layer if they take no more than this.
const MOST_WAITING: u64 = 1 << 30;

/// Passes over a row's columns that the choice of its codes takes: targets, scales, feedback, fits, descent, errors.
const ROUNDS: f64 = 10.0;

/// The same over rows, with the metric of the outputs: feedback, and three rounds of fits and descent.
const GUIDED_ROUNDS: f64 = 20.0;

/// Operations and bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Tokens of the text.
    pub tokens: usize,
    /// Additions and multiplications, roughly.
    pub operations: f64,
    /// Bytes at once of weights and moments of the layer that needs most, without activations.
    pub layer_bytes: u64,
    /// Bytes of the windows that are at work at once, with the differences between the models.
    pub batch_bytes: u64,
    /// Bytes of all windows that wait within a layer.
    pub waiting_bytes: u64,
    /// Bytes of the streams between two layers.
    pub stream_bytes: u64,
    /// Bytes of the statistics of all layers, which may be measured on the way.
    pub statistics_bytes: u64,
}

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub is_sequential: bool,
    /// Whether moments are read from a file, and the model does not run for them.
    pub is_given: bool,
    pub threads: usize,
    /// The gradients, if a matrix is guided by them.
    pub gradients: Option<Gradients>,
}

impl Cost {
    /// Of a model that runs on the tokens of `run`. `wanted` says which matrices are rounded, and how.
    pub(super) fn of(
        runs: &ModelRuns,
        run: &ModelRun,
        way: Way,
        wanted: &dyn Fn(&Linear) -> Option<Asked>,
    ) -> Self {
        let tokens = if way.is_given { 0 } else { run.tokens() as u64 };
        let longest = run.windows.iter().map(Vec::len).max().unwrap_or(0) as u64;
        let batch = (BATCH * longest).min(BATCH_TOKENS).max(longest).min(tokens);
        let streams = if way.is_sequential { 2 } else { 1 };
        let mut cost = Self {
            tokens: tokens as usize,
            operations: 0.0,
            layer_bytes: 0,
            batch_bytes: 0,
            waiting_bytes: 0,
            stream_bytes: tokens * runs.description.hidden as u64 * 4 * streams,
            statistics_bytes: 0,
        };
        if let Some(gradients) = way.gradients {
            cost.operations += (6 * gradients.tokens as u64 * passed(runs)) as f64;
        }
        for program in &runs.description.layers {
            let weights: u64 = program.matrices().map(|matrix| (matrix.rows * matrix.columns) as u64).sum();
            cost.operations += (2 * streams * tokens * weights) as f64;
            let moments = cost.moments(program, way, wanted);
            cost.layer_bytes = cost.layer_bytes.max(weights * 4 * streams + moments);
            let inputs = widest_inputs(program);
            let held = streams * (runs.description.hidden as u64 + inputs) * 4;
            cost.waiting_bytes = cost.waiting_bytes.max(tokens * held);
            cost.batch_bytes = cost.batch_bytes.max(batch * (held + 3 * inputs * 4));
        }
        if !way.is_given {
            let matrices = runs.description.layers.iter().flat_map(Program::matrices);
            cost.statistics_bytes = matrices.map(|matrix| 8 * matrix.columns as u64).sum();
        }
        cost
    }

    /// Bytes of the moments of a layer while its matrices are rounded; counts the operations.
    fn moments(&mut self, program: &Program, way: Way, wanted: &dyn Fn(&Linear) -> Option<Asked>) -> u64 {
        let (mut most, mut all) = (0, 0);
        for (stage, compared) in stage_parts(program) {
            let compared = if way.is_sequential { compared } else { Compared::Nothing };
            let mut sizes = Vec::new();
            for part in &stage {
                let asked: Vec<(usize, Asked)> =
                    part.iter().filter_map(|matrix| Some((matrix.rows, wanted(matrix)?))).collect();
                let rows: Vec<usize> = asked.iter().map(|(rows, _)| *rows).collect();
                let Some(columns) = part.first().map(|matrix| matrix.columns).filter(|_| !rows.is_empty())
                else {
                    continue;
                };
                let guided: Vec<_> = asked.iter().filter(|(_, asked)| asked.is_guided).collect();
                let gradients = way.gradients.filter(|_| !guided.is_empty());
                let tokens = self.tokens as f64;
                self.operations +=
                    operations(tokens, columns as f64, rows.iter().sum::<usize>() as f64, compared);
                let size = StageSize {
                    columns,
                    rows: &rows,
                    has_cross: compared.has_cross(),
                    has_residual: compared.has_residual(),
                    group: asked.iter().map(|(_, asked)| asked.group).min().unwrap_or(columns),
                    block: gradients.map(|gradients| gradients.most),
                    threads: way.threads,
                };
                // The moments of the outputs are read while these matrices are rounded.
                let outputs = |(rows, _): &&(usize, Asked)| gradients.map_or(0, |of| of.bytes(*rows));
                let read: u64 = guided.iter().map(outputs).sum();
                if let Some(gradients) = gradients {
                    for (rows, _) in guided {
                        let (own, block) = (*rows as f64, gradients.block(*rows) as f64);
                        self.operations += 2.0 * own * block * (gradients.tokens as f64 + block)
                            + GUIDED_ROUNDS * own * block * columns as f64;
                    }
                }
                // Sums in F64 become means in F32 beside them.
                let square = (columns * columns) as u64;
                // A file has half of a symmetric matrix in F32.
                let sums = if way.is_given { 10 * square } else { size.bytes_of_sums() };
                sizes.push((sums, 4 * square, size.bytes_of_rounding() + read));
            }
            if way.is_given {
                let one = sizes.iter().map(|(own, mean, rounding)| (own + mean).max(*rounding)).max();
                most = most.max(one.unwrap_or(0));
                continue;
            }
            let sums: u64 = sizes.iter().map(|(sums, ..)| sums).sum();
            all += sums;
            let at_once =
                sizes.iter().map(|(own, mean, rounding)| sums - own + (own + mean).max(*rounding)).max();
            most = most.max(at_once.unwrap_or(0));
        }
        // Without a sequence the sums of all stages are made in one pass.
        if way.is_sequential { most } else { all + most }
    }

    /// The least memory in which a layer is rounded, beside what the process and its threads take.
    #[must_use]
    pub fn least_bytes(&self) -> u64 {
        self.layer_bytes + self.batch_bytes + self.statistics_bytes
    }

    /// Whether windows wait in memory within a layer, and do not run from its start again.
    #[must_use]
    pub fn holds(&self, room: Option<u64>) -> bool {
        self.waiting_bytes <= room.map_or(MOST_WAITING, |room| room.min(MOST_WAITING))
    }
}

/// Weights that each token passes on its way to an answer.
fn passed(runs: &ModelRuns) -> u64 {
    let head = runs.description.head.as_ref().map(|head| &head.matrix);
    let layers = runs.description.layers.iter().flat_map(Program::matrices);
    layers.chain(head).map(|matrix| (matrix.rows * matrix.columns) as u64).sum()
}

/// Numbers that come to the matrices of a stage for each token: more than its columns where a token goes to several experts.
fn widest_inputs(program: &Program) -> u64 {
    let chosen = program.ops.iter().filter_map(|op| match op {
        Op::Route { router, .. } => Some(router.chosen),
        _ => None,
    });
    let chosen = chosen.max().unwrap_or(1);
    let inputs = program.ops.iter().filter_map(|op| match op {
        Op::Linear { matrix, .. } => Some(matrix.columns),
        Op::Experts { matrices, .. } => Some(matrices.first()?.columns * chosen),
        _ => None,
    });
    inputs.max().unwrap_or(0) as u64
}

/// Operations of moments, factors and rows.
fn operations(tokens: f64, columns: f64, rows: f64, compared: Compared) -> f64 {
    let square = columns * columns;
    let (compares, factors) = match compared {
        Compared::Nothing => (0.0, 1.0),
        Compared::Inputs => (2.0 * square, 2.0),
        Compared::InputsAndStream => (2.0 * (square + rows * columns), 2.0),
        Compared::Outputs => (4.0 * rows * columns, 2.0),
    };
    tokens * (square + compares) + factors * columns.powi(3) + ROUNDS * rows * square
}
