//! Rounding of a stage's matrices with the moments of their inputs.

use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::execute::LayerWeights;
use super::outputs::OutputSum;
use super::parts::{Layout, Linear};
use super::sequence::StageMoments;
use crate::quant::reference::Unpacked;
use crate::quant::{
    BadMoments, BadWeight, Correction, Gptq, Guided, Metric, OutputMetric, Quantizer, Rounded,
};

mod bytes;

pub use bytes::StageSize;

/// The least and the most rows that are rounded together.
const LEAST_TILE: usize = 64;
const MOST_TILE: usize = 256;

/// How many rows of so many are rounded together, the unit of parallel work: some tiles a thread. For each of them all moments of the
/// inputs are read, several times. Numbers do not depend on it.
fn tile_rows(rows: usize, threads: usize) -> usize {
    rows.div_ceil(4 * threads.max(1)).clamp(LEAST_TILE, MOST_TILE)
}

/// Moments of fewer rows than this share of the columns say too little of them.
const FEW: u64 = 4;

/// A matrix, rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedMatrix {
    /// Codes, scales and zero points, outputs by outputs.
    pub matrix: Unpacked,
    /// What they stand for, as the matrix lies in its tensor.
    pub values: Vec<f32>,
    /// The mean squared error of the outputs: the sum over outputs, with damping; guided, that of the model's answers as far
    /// as gradients tell it, in units of its own.
    pub error: f64,
    /// The same if each weight of the target is rounded to nearest.
    pub error_of_nearest: f64,
    /// Whether the moments of its outputs' gradients were used: they may be missing, or those of no tokens.
    pub is_guided: bool,
}

/// Why the moments of a stage cannot be used: its matrices are rounded to nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// They are of so few rows.
    FewRows(u64),
    /// They are no moments.
    Bad(BadMoments),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewRows(1) => f.write_str("only 1 token came here"),
            Self::FewRows(rows) => write!(f, "only {rows} tokens came here"),
            Self::Bad(bad) => bad.fmt(f),
        }
    }
}

/// How a matrix is rounded.
#[derive(Debug, Clone)]
pub struct Rounding<'a> {
    /// How it is stored.
    pub nearest: Quantizer,
    /// Whether scales may be negative.
    pub is_signed: bool,
    /// The moments of the gradients of its outputs. Without them rows are rounded each for itself.
    pub outputs: Option<&'a OutputSum>,
}

/// Rounds the matrices of a stage, in their order. `how` says how each of them is.
///
/// The matrices' targets are made first, then the moments are factored: what takes most memory is there one after another.
///
/// # Errors
/// If the moments cannot be used; and of each matrix, the first weight that cannot be rounded.
pub fn round_stage<'a>(
    moments: StageMoments<'_>,
    weights: &LayerWeights,
    how: &dyn Fn(&Linear) -> Rounding<'a>,
) -> Result<Vec<Result<RoundedMatrix, BadWeight>>, Unusable> {
    let StageMoments { matrices, rows, squares, cross, residual } = moments;
    let Some(columns) = matrices.first().map(|matrix| matrix.columns) else { return Ok(Vec::new()) };
    if rows * FEW < columns as u64 {
        return Err(Unusable::FewRows(rows));
    }
    let is_corrected = cross.is_some() || residual.is_some();
    let correction = is_corrected.then(|| Correction::new(columns, &squares, cross)).transpose();
    let correction = correction.map_err(Unusable::Bad)?;
    let target = |matrix: &&Linear| {
        target(upright(matrix, weights.matrix(matrix)), columns, correction.as_ref(), residual.as_deref())
    };
    let targets: Vec<_> = matrices.iter().map(target).collect();
    drop((correction, residual));
    let metric = Arc::new(Metric::new(columns, squares).map_err(Unusable::Bad)?);
    let roundings: Vec<Rounding<'_>> = matrices.iter().map(|matrix| how(matrix)).collect();
    let outputs: Vec<usize> = matrices.iter().map(|matrix| matrix.rows).collect();
    let groups = roundings.iter().map(|how| how.nearest.scheme().group_cols(columns));
    // The target is made: only what it takes to choose codes is asked for.
    let size = StageSize {
        columns,
        rows: &outputs,
        has_cross: false,
        has_residual: false,
        group: groups.min().unwrap_or(columns),
        block: roundings.iter().filter_map(|how| how.outputs).map(|outputs| outputs.block).max(),
        threads: rayon::current_num_threads(),
    };
    let each: Vec<_> = matrices.into_iter().zip(targets).zip(&roundings).collect();
    let one = |((matrix, target), how): ((&Linear, Result<Vec<f32>, BadWeight>), &Rounding<'_>)| {
        round(matrix, &target?, how, &metric)
    };
    Ok(match size.is_side_by_side() {
        true => each.into_par_iter().map(one).collect(),
        false => each.into_iter().map(one).collect(),
    })
}

/// What is rounded: the weights, or with a correction what they make good.
fn target(
    mut weights: Vec<f32>,
    columns: usize,
    correction: Option<&Correction>,
    residual: Option<&[f32]>,
) -> Result<Vec<f32>, BadWeight> {
    let Some(correction) = correction else { return Ok(weights) };
    let height = tile_rows(weights.len() / columns.max(1), rayon::current_num_threads());
    let tile = |(tile, weights): (usize, &mut [f32])| {
        let start = tile * height * columns;
        let residual = residual.map(|all| &all[start..start + weights.len()]);
        correction.apply(weights, residual).map_err(|bad| in_tile(bad, tile * height))
    };
    // The first tile that fails, whichever thread was first.
    let tiles: Vec<_> = weights.par_chunks_mut(height * columns).enumerate().map(tile).collect();
    tiles.into_iter().collect::<Result<(), BadWeight>>()?;
    Ok(weights)
}

/// A weight of a tile that begins at this row.
fn in_tile(bad: BadWeight, start: usize) -> BadWeight {
    BadWeight { row: bad.row + start, ..bad }
}

fn round(
    matrix: &Linear,
    target: &[f32],
    how: &Rounding<'_>,
    metric: &Arc<Metric>,
) -> Result<RoundedMatrix, BadWeight> {
    let outputs = how.outputs.map(|sum| OutputMetric::new(sum.rows, sum.block, &sum.mean()));
    let is_guided = matches!(outputs, Some(Ok(_)));
    let Rounded { matrix: rounded, error, error_of_nearest } = match outputs {
        Some(Ok(outputs)) => {
            let solver = Guided::new(&how.nearest, Arc::clone(metric)).signed(how.is_signed);
            solver.round(target, &outputs)?
        }
        _ => round_rows(target, how, metric)?,
    };
    let mut values = rounded.values(how.nearest.scheme(), matrix.columns);
    if matrix.layout == Layout::InOut {
        values = turn(&values, matrix.columns);
    }
    Ok(RoundedMatrix { matrix: rounded, values, error, error_of_nearest, is_guided })
}

/// Rows each for itself, tile by tile.
fn round_rows(target: &[f32], how: &Rounding<'_>, metric: &Arc<Metric>) -> Result<Rounded, BadWeight> {
    let solver = Gptq::new(how.nearest.clone(), Arc::clone(metric)).signed(how.is_signed);
    let height = tile_rows(target.len() / metric.columns().max(1), rayon::current_num_threads());
    let tiles = target.par_chunks(height * metric.columns()).enumerate();
    let tiles = tiles.map(|(tile, target)| solver.round(target).map_err(|bad| in_tile(bad, tile * height)));
    let tiles: Vec<_> = tiles.collect();
    let mut out = Rounded::default();
    for tile in tiles {
        out.append(tile?);
    }
    Ok(out)
}

/// Weights of a matrix, outputs by outputs.
fn upright(matrix: &Linear, weights: &[f32]) -> Vec<f32> {
    match matrix.layout {
        Layout::OutIn => weights.to_vec(),
        Layout::InOut => turn(weights, matrix.rows),
    }
}

/// A matrix on its side; `width` is that of the rows that it is given in.
fn turn(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

#[cfg(test)]
mod tests;
