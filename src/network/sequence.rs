//! The sequence of rounding: stage by stage of a layer, with two streams over the same windows.
//!
//! One stream is that of the unquantized model, the other that of the model whose earlier matrices are rounded. Before
//! a stage both stop; the moments of what they bring there say what the stage's matrices are to make good.

use rayon::prelude::*;

use super::batches::batches;
use super::execute::{LayerWeights, Window};
use super::moments::Sum;
use super::op::{Op, Program, Slot};
use super::parts::Linear;
use super::pass::{Hidden, Pass, Tell};
use super::product::{View, multiply};
use crate::finding::Finding;

/// Columns (of the left side) that one product of cross moments makes.
const STRIP: usize = 128;

/// Matrices with the same inputs, and what is known of these.
#[derive(Debug, Clone, PartialEq)]
pub struct StageMoments<'a> {
    /// The matrices; of a stack of experts one at a time.
    pub matrices: Vec<&'a Linear>,
    /// How many rows of inputs were seen.
    pub rows: u64,
    /// The mean of x xᵀ, [columns, columns], of the inputs x of the rounded model.
    pub squares: Vec<f32>,
    /// The mean of (x' − x) xᵀ, [columns, columns], with the inputs x' of the unquantized model. None of experts: which
    /// tokens they have differs between the models.
    pub cross: Option<Vec<f32>>,
    /// If the products are added to the stream r: the mean of (r' − r) xᵀ, [rows, columns].
    pub residual: Option<Vec<f32>>,
}

/// Rounds the matrices of a stage: other weights for some of them, by their place in [`StageMoments::matrices`].
pub type Round<'r> =
    dyn FnMut(StageMoments<'_>, &LayerWeights) -> Result<Vec<(usize, Vec<f32>)>, Finding> + 'r;

/// Both models in one layer.
pub struct Sequence<'a> {
    /// The pass over the windows.
    pub pass: &'a Pass<'a>,
    /// The layer, and its number.
    pub layer: (usize, &'a Program),
    /// The stream of the unquantized model before the layer, and of the rounded one.
    pub streams: [&'a mut Hidden; 2],
    /// Whether windows wait in memory between two stages. If not, they run from the start of the layer again.
    pub holds: bool,
    /// Is told how many windows have come to a stage, or to the end. An error ends the work.
    pub tell: Tell<'a>,
}

/// The matrices of each stage of a layer, together if their inputs are the same: one list, or one of each expert.
#[must_use]
pub fn stage_parts(program: &Program) -> Vec<Vec<Vec<&Linear>>> {
    program.stages().iter().map(|stage| Inputs::of(program, stage).matrices).collect()
}

impl Sequence<'_> {
    /// Takes both streams through the layer. `wants` says which matrices are rounded. `rounded` begins as a copy of
    /// `weights` and holds what `round` made of them in the end.
    ///
    /// # Errors
    /// Those of `round`, or activations cannot be read or written.
    pub fn run(
        &mut self,
        weights: &LayerWeights,
        rounded: &mut LayerWeights,
        wants: &dyn Fn(&Linear) -> bool,
        round: &mut Round<'_>,
    ) -> Result<(), Finding> {
        let (layer, program) = self.layer;
        let mut waiting: Vec<Option<[Window; 2]>> = vec![None; self.streams[0].windows()];
        for stage in program.stages() {
            let inputs = Inputs::of(program, &stage);
            if !inputs.matrices.iter().flatten().any(|matrix| wants(matrix)) {
                continue;
            }
            let mut sums = inputs.sums();
            for range in batches(self.pass.windows()) {
                let windows =
                    self.advance(&mut waiting[range.clone()], range.start, [weights, rounded], stage[0])?;
                inputs.add(&windows, &mut sums);
                (self.tell)(range.len())?;
                if self.holds {
                    waiting[range].iter_mut().zip(windows).for_each(|(place, pair)| *place = Some(pair));
                }
            }
            for (of_part, sums) in inputs.matrices.iter().zip(sums) {
                let matrices: Vec<&Linear> = of_part.iter().copied().filter(|matrix| wants(matrix)).collect();
                if !matrices.is_empty() {
                    for (index, values) in round(inputs.moments(matrices.clone(), sums), weights)? {
                        rounded.replace(matrices[index], values);
                    }
                }
            }
        }
        for range in batches(self.pass.windows()) {
            let windows = self.advance(
                &mut waiting[range.clone()],
                range.start,
                [weights, rounded],
                program.ops.len(),
            )?;
            for (window, [first, second]) in range.clone().zip(windows) {
                self.streams[0].put_finite(layer, window, first.stream())?;
                self.streams[1].put_finite(layer, window, second.stream())?;
            }
            (self.tell)(range.len())?;
        }
        Ok(())
    }

    /// Takes some windows, those that wait or new ones, to a step.
    fn advance(
        &self,
        waiting: &mut [Option<[Window; 2]>],
        start: usize,
        weights: [&LayerWeights; 2],
        step: usize,
    ) -> Result<Vec<[Window; 2]>, Finding> {
        let layer = self.layer.0;
        waiting
            .par_iter_mut()
            .enumerate()
            .map(|(place, waiting)| {
                let window = start + place;
                let new = |side: usize| self.pass.window(layer, self.streams[side], window);
                let mut pair = match waiting.take() {
                    Some(pair) => pair,
                    None => [new(0)?, new(1)?],
                };
                for (own, weights) in pair.iter_mut().zip(weights) {
                    self.pass.run(layer, weights, (window, own), step, &mut |_, _, _| {});
                }
                Ok(pair)
            })
            .collect()
    }
}

/// Where a stage's inputs are.
struct Inputs<'a> {
    from: Slot,
    /// For each part of the inputs its matrices: one part, or one of each expert.
    matrices: Vec<Vec<&'a Linear>>,
    /// The choice of experts.
    routing: Option<Slot>,
    /// What the products are multiplied by before they are added to the stream, if that is all that happens to them.
    added: Option<f32>,
}

/// Sums over the rows of one part of a stage's inputs.
struct Sums {
    squares: Sum,
    cross: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl<'a> Inputs<'a> {
    fn of(program: &'a Program, stage: &[usize]) -> Self {
        let mut out = Self { from: 0, matrices: Vec::new(), routing: None, added: None };
        for &step in stage {
            match &program.ops[step] {
                Op::Linear { from, to, matrix } => {
                    out.from = *from;
                    out.matrices.resize(1, Vec::new());
                    out.matrices[0].push(matrix);
                    if let ([_], Some(Op::Add { from, to: 0, factor })) = (stage, program.ops.get(step + 1)) {
                        out.added = (from == to && *factor != 0.0).then_some(*factor);
                    }
                }
                Op::Experts { from, routing, matrices, .. } => {
                    (out.from, out.routing) = (*from, Some(*routing));
                    out.matrices.resize(matrices.len(), Vec::new());
                    out.matrices.iter_mut().zip(matrices).for_each(|(of, matrix)| of.push(matrix));
                }
                _ => {}
            }
        }
        out
    }

    fn sums(&self) -> Vec<Sums> {
        let of_part = |matrices: &Vec<&Linear>| {
            let (rows, columns) = matrices.first().map_or((0, 0), |matrix| (matrix.rows, matrix.columns));
            Sums {
                squares: Sum::new(columns),
                cross: self.routing.is_none().then(|| vec![0.0; columns * columns]),
                residual: self.added.map(|_| vec![0.0; rows * columns]),
            }
        };
        self.matrices.iter().map(of_part).collect()
    }

    /// Adds the inputs of some windows that have come to the stage.
    fn add(&self, windows: &[[Window; 2]], sums: &mut [Sums]) {
        let all = |side: usize, slot: Slot| -> Vec<f32> {
            windows.iter().flat_map(|pair| pair[side].rows(slot)).copied().collect()
        };
        if let Some(routing) = self.routing {
            for (expert, sums) in sums.iter_mut().enumerate() {
                let columns = self.matrices[expert][0].columns;
                let of_window = |[_, window]: &[Window; 2]| -> Vec<f32> {
                    let rows = window.routing(routing).map_or(0..0, |routing| routing.rows(expert));
                    window.rows(self.from)[rows.start * columns..rows.end * columns].to_vec()
                };
                sums.squares.add(&windows.iter().flat_map(of_window).collect::<Vec<_>>());
            }
            return;
        }
        let Some(sums) = sums.first_mut() else { return };
        let own = all(1, self.from);
        sums.squares.add(&own);
        let columns = self.matrices[0][0].columns;
        let less_own = |slot: Slot| {
            let mut difference = all(0, slot);
            difference.iter_mut().zip(all(1, slot)).for_each(|(other, own)| *other -= own);
            difference
        };
        if let Some(cross) = &mut sums.cross {
            add_products(cross, &less_own(self.from), &own, columns);
        }
        if let Some(residual) = &mut sums.residual {
            add_products(residual, &less_own(0), &own, columns);
        }
    }

    /// Means of the sums of a part.
    fn moments(&self, matrices: Vec<&'a Linear>, sums: Sums) -> StageMoments<'a> {
        let Sums { squares, cross, residual } = sums;
        let rows = squares.rows();
        #[expect(clippy::cast_precision_loss, reason = "a mean in F32")]
        let share = 1.0 / rows.max(1) as f32;
        let mean = |mut sum: Vec<f32>, share: f32| {
            sum.iter_mut().for_each(|x| *x *= share);
            sum
        };
        StageMoments {
            matrices,
            rows,
            squares: squares.mean_single(),
            cross: cross.map(|sum| mean(sum, share)),
            residual: residual.map(|sum| mean(sum, share / self.added.unwrap_or(1.0))),
        }
    }
}

/// Adds leftᵀ · right, over the same rows, to a sum [columns of left, columns].
fn add_products(sum: &mut [f32], left: &[f32], right: &[f32], columns: usize) {
    let rows = right.len() / columns.max(1);
    if rows == 0 {
        return;
    }
    let width = left.len() / rows;
    sum.par_chunks_mut(STRIP * columns).enumerate().for_each(|(strip, sum)| {
        let left = View { data: &left[strip * STRIP..], ..View::rows(left, width) }.turned();
        let size = (sum.len() / columns, rows, columns);
        multiply(size, left, View::rows(right, columns), (sum, columns), 1.0, true);
    });
}
