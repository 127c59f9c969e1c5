//! The sequence of rounding: stage by stage of a layer, with two streams over the same windows.
//!
//! One stream is that of the unquantized model, the other that of the model whose earlier matrices are rounded. Before
//! a stage both stop; the moments of what they bring there say what the stage's matrices are to make good.

use std::ops::Range;

use rayon::prelude::*;

use super::batches::batches;
use super::execute::{LayerWeights, Window};
use super::listener::Listener;
use super::moments::{self, Sum};
use super::op::{Op, Program, Slot};
use super::parts::Linear;
use super::pass::{After, Hidden, Pass, Tell};
use super::row_products::{Rows, add_products, strip_height};
use super::statistics::MeanSquares;
use crate::finding::Finding;

/// Matrices with the same inputs, and what is known of these.
#[derive(Debug, Clone, PartialEq)]
pub struct StageMoments<'a> {
    /// The matrices; of a stack of experts one at a time.
    pub matrices: Vec<&'a Linear>,
    /// How many rows of inputs were seen.
    pub rows: u64,
    /// The mean of x xᵀ, [columns, columns], of the inputs x of the rounded model.
    pub squares: Vec<f32>,
    /// The mean of (x' − x) xᵀ, [columns, columns], with the inputs x' of the unquantized model, if [`Compared`] has it.
    pub cross: Option<Vec<f32>>,
    /// If the products are added to the stream r: the mean of (r' − r) xᵀ, [rows, columns]; and of W (x' − x) xᵀ with it where
    /// outputs are compared.
    pub residual: Option<Vec<f32>>,
}

/// What is summed of the difference between the models before a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Nothing, of experts: which tokens they have differs between the models.
    Nothing,
    /// The inputs.
    Inputs,
    /// The inputs, and the stream that the products are added to.
    InputsAndStream,
    /// The stream after the products are added: of a matrix with fewer outputs than inputs. It says the same of the matrix, and
    /// takes less room and time.
    Outputs,
}

impl Compared {
    /// Whether there are cross moments of the inputs.
    #[must_use]
    pub fn has_cross(self) -> bool {
        matches!(self, Self::Inputs | Self::InputsAndStream)
    }

    /// Whether there are moments of the stream, or of the outputs.
    #[must_use]
    pub fn has_residual(self) -> bool {
        matches!(self, Self::InputsAndStream | Self::Outputs)
    }
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
    /// Whether the stream of each model is needed after the layer. If not, it stays as it was before, and the rounded model ends
    /// before the last stage. The unquantized one is run to the end, to see that it is finite.
    pub goes_on: [bool; 2],
    /// Hears the unquantized model, if its inputs are to be measured.
    pub statistics: Option<&'a mut MeanSquares>,
    /// Is told how many windows have come to a stage, or to the end. An error ends the work.
    pub tell: Tell<'a>,
}

/// The matrices of each stage of a layer, together if their inputs are the same: one list, or one of each expert. With what is
/// compared before the stage.
#[must_use]
pub fn stage_parts(program: &Program) -> Vec<(Vec<Vec<&Linear>>, Compared)> {
    let parts = |stage: &Vec<usize>| {
        let inputs = Inputs::of(program, stage);
        let compared = inputs.compared();
        (inputs.matrices, compared)
    };
    program.stages().iter().map(parts).collect()
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
        let mut heard = 0;
        for stage in program.stages() {
            let inputs = Inputs::of(program, &stage);
            if !inputs.matrices.iter().flatten().any(|matrix| wants(matrix)) {
                continue;
            }
            let mut sums = inputs.sums();
            for range in batches(self.pass.windows()) {
                let steps = heard..stage[0];
                let windows =
                    self.advance(&mut waiting[range.clone()], range.start, [weights, rounded], steps)?;
                inputs.add(&windows, &mut sums, weights);
                (self.tell)(range.len())?;
                if self.holds {
                    waiting[range].iter_mut().zip(windows).for_each(|(place, pair)| *place = Some(pair));
                }
            }
            heard = stage[0];
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
            let steps = heard..program.ops.len();
            let windows =
                self.advance(&mut waiting[range.clone()], range.start, [weights, rounded], steps)?;
            let ends = |pair: [Window; 2]| pair.map(|window| self.pass.after(window));
            let ended: Vec<[After; 2]> = windows.into_par_iter().map(ends).collect();
            for (window, ended) in range.clone().zip(ended) {
                self.pass.check(layer, weights, self.streams[0], (window, &ended[0]))?;
                for (side, after) in ended.into_iter().enumerate() {
                    if self.goes_on[side] {
                        self.streams[side].put_after(layer, window, after)?;
                    }
                }
            }
            (self.tell)(range.len())?;
        }
        Ok(())
    }

    /// Takes some windows, those that wait or new ones, to the end of some steps: the first of them that were not heard yet.
    fn advance(
        &mut self,
        waiting: &mut [Option<[Window; 2]>],
        start: usize,
        weights: [&LayerWeights; 2],
        steps: Range<usize>,
    ) -> Result<Vec<[Window; 2]>, Finding> {
        let ((layer, program), pass) = (self.layer, self.pass);
        let is_over = !self.goes_on[1] && steps.end == program.ops.len();
        let (streams, statistics) = (&self.streams, self.statistics.as_deref());
        let one = |(place, waiting): (usize, &mut Option<[Window; 2]>)| {
            let window = start + place;
            let new = |side: usize| pass.window(layer, streams[side], window);
            let mut pair = match waiting.take() {
                Some(pair) => pair,
                None => [new(0)?, new(1)?],
            };
            let mut heard = statistics.map(MeanSquares::start);
            let [first, second] = &mut pair;
            pass.run(layer, weights[0], (window, first), steps.end, &mut |step, matrix, inputs| {
                if let (Some(statistics), Some(heard), true) = (statistics, &mut heard, step >= steps.start) {
                    statistics.hear(heard, matrix, inputs);
                }
            });
            if !is_over {
                pass.run(layer, weights[1], (window, second), steps.end, &mut |_, _, _| {});
            }
            Ok((pair, heard))
        };
        let done: Result<Vec<_>, Finding> = waiting.par_iter_mut().enumerate().map(one).collect();
        let (pairs, heard): (Vec<_>, Vec<_>) = done?.into_iter().unzip();
        if let Some(statistics) = &mut self.statistics {
            statistics.keep(heard.into_iter().flatten().collect())?;
        }
        Ok(pairs)
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

    fn compared(&self) -> Compared {
        match (self.added, self.matrices.first().and_then(|matrices| matrices.first())) {
            _ if self.routing.is_some() => Compared::Nothing,
            (Some(_), Some(matrix)) if matrix.rows < matrix.columns => Compared::Outputs,
            (Some(_), _) => Compared::InputsAndStream,
            (None, _) => Compared::Inputs,
        }
    }

    fn sums(&self) -> Vec<Sums> {
        let compared = self.compared();
        let of_part = |matrices: &Vec<&Linear>| {
            let (rows, columns) = matrices.first().map_or((0, 0), |matrix| (matrix.rows, matrix.columns));
            Sums {
                squares: Sum::new(columns),
                cross: compared.has_cross().then(|| vec![0.0; columns * columns]),
                residual: compared.has_residual().then(|| vec![0.0; rows * columns]),
            }
        };
        self.matrices.iter().map(of_part).collect()
    }

    /// Adds the inputs of some windows that have come to the stage. `weights` are those of the unquantized model.
    fn add<'w>(&self, windows: &'w [[Window; 2]], sums: &mut [Sums], weights: &LayerWeights) {
        if let Some(routing) = self.routing {
            let mut all: Vec<(&mut Sum, Rows<'_>)> = Vec::new();
            for (expert, sums) in sums.iter_mut().enumerate() {
                let width = self.matrices[expert][0].columns;
                let of_window = |[_, window]: &'w [Window; 2]| -> &'w [f32] {
                    let rows = window.routing(routing).map_or(0..0, |routing| routing.rows(expert));
                    &window.rows(self.from)[rows.start * width..rows.end * width]
                };
                all.push((
                    &mut sums.squares,
                    Rows { width, pieces: windows.iter().map(of_window).collect() },
                ));
            }
            moments::add(&mut all);
            return;
        }
        let Some(Sums { squares, cross, residual }) = sums.first_mut() else { return };
        let width = self.matrices[0][0].columns;
        let own = Rows { width, pieces: windows.iter().map(|[_, own]| own.rows(self.from)).collect() };
        let of_inputs = differences(windows, self.from);
        let of_stream = residual.as_ref().and_then(|_| differences(windows, 0));
        let (of_inputs, of_stream) = match self.compared() {
            Compared::Outputs => (None, self.of_outputs(of_inputs, of_stream, weights)),
            _ => (of_inputs, of_stream),
        };
        let stream = windows.first().map_or(0, |[_, own]| own.width(0));
        let of_inputs = of_inputs.as_deref().map(|rows| Rows::of(rows, width));
        let of_stream = of_stream.as_deref().map(|rows| Rows::of(rows, stream));
        let widths = [&of_inputs, &of_stream].into_iter().flatten().map(|rows| rows.width);
        let height = strip_height(width + widths.sum::<usize>());
        let mut pieces: Vec<Piece<'_>> =
            squares.strips(&own, height).into_iter().map(Piece::Squares).collect();
        for (sum, left) in [(cross, &of_inputs), (residual, &of_stream)] {
            if let (Some(sum), Some(left)) = (sum, left) {
                let strips = sum.chunks_mut(height * width).enumerate();
                pieces.extend(strips.map(|(index, sum)| Piece::Products {
                    sum,
                    left,
                    start: index * height,
                }));
            }
        }
        pieces.into_par_iter().for_each(|piece| match piece {
            Piece::Squares(strip) => strip.add(),
            Piece::Products { sum, left, start } => {
                add_products(sum, (left, start), &own);
            }
        });
    }

    /// Differences of the stream after the products are added, from those of the inputs and of the stream before. None if both are.
    fn of_outputs(
        &self,
        of_inputs: Option<Vec<Vec<f32>>>,
        of_stream: Option<Vec<Vec<f32>>>,
        weights: &LayerWeights,
    ) -> Option<Vec<Vec<f32>>> {
        let (Some(of_inputs), Some(factor)) = (of_inputs, self.added) else { return of_stream };
        let matrix = self.matrices[0][0];
        let of_window = |(window, rows): (usize, &Vec<f32>)| {
            let mut products = weights.product_alone(matrix, rows);
            products.iter_mut().for_each(|x| *x *= factor);
            if let Some(of_stream) = &of_stream {
                products.iter_mut().zip(&of_stream[window]).for_each(|(x, add)| *x += add);
            }
            products
        };
        Some(of_inputs.par_iter().enumerate().map(of_window).collect())
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

/// Strips of the sums of a stage, side by side: those of one sum alone are few.
enum Piece<'s> {
    Squares(moments::Strip<'s>),
    /// Some rows of a sum of products, from this column of the left side on.
    Products {
        sum: &'s mut [f32],
        left: &'s Rows<'s>,
        start: usize,
    },
}

/// The unquantized model's rows less those of the rounded one, window by window. None if both are the same, as they are before the
/// first matrix that is rounded.
fn differences(windows: &[[Window; 2]], slot: Slot) -> Option<Vec<Vec<f32>>> {
    let of_window = |[other, own]: &[Window; 2]| -> Vec<f32> {
        other.rows(slot).iter().zip(own.rows(slot)).map(|(other, own)| other - own).collect()
    };
    let rows: Vec<Vec<f32>> = windows.par_iter().map(of_window).collect();
    rows.iter().flatten().any(|x| *x != 0.0).then_some(rows)
}
