//! Where gradients begin: tokens that the model itself would say, drawn from its softmax, and not those of the text.
//!
//! The mean of g gᵀ over such tokens is how much the model's answers change with its activations (Fisher's information).
//! Logits are made in pieces of the vocabulary, once for the draw and once for the gradients, and never kept.

use rayon::prelude::*;

use super::super::batches::{batches, blocks};
use super::super::compare::{CHUNK, Side};
use super::super::description::Description;
use super::super::execute::LayerWeights;
use super::super::math::exp;
use super::super::pass::{Hidden, Pass, Tell};
use super::super::product::{View, multiply};
use super::super::weights::Weights;
use super::rows::norm_back;
use crate::finding::Finding;

/// One token's softmax while its logits pass by, and what was drawn of those that have passed.
#[derive(Debug, Clone, Copy)]
struct Draw {
    largest: f32,
    sum: f64,
    label: usize,
}

impl Draw {
    const NEW: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, label: 0 };

    /// Some more logits; `chance` is a number from 0 up to 1. Each label so far stays with the probability that it has
    /// beside the new ones.
    fn add(&mut self, start: usize, logits: &[f32], chance: f64) {
        let largest = logits.iter().copied().fold(self.largest, f32::max);
        let before = match self.largest {
            // Nothing has passed yet, and −∞ − −∞ is no number.
            f32::NEG_INFINITY => 0.0,
            _ => self.sum * f64::from(self.largest - largest).exp(),
        };
        let sum: f64 = logits.iter().map(|x| f64::from(exp(x - largest))).sum();
        (self.largest, self.sum) = (largest, before + sum);
        let mut left = chance * self.sum;
        if left >= sum {
            return;
        }
        for (label, x) in (start..).zip(logits) {
            let share = f64::from(exp(x - largest));
            if share > 0.0 {
                // The last one that could be said, if sums were rounded.
                self.label = label;
                left -= share;
                if left < 0.0 {
                    return;
                }
            }
        }
    }
}

/// A number from 0 up to 1 of a place, the same wherever it is computed.
fn chance(seed: u64, place: [usize; 3]) -> f64 {
    let mut z = seed;
    for part in place {
        z = (z ^ part as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
    }
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let number = (z >> 11) as f64;
    number / (1u64 << 53) as f64
}

/// How a gradient begins: the labels of the tokens of a window, by its number.
enum Labels<'a> {
    /// Drawn, with this seed.
    Drawn(u64),
    /// Given, one a token.
    Given(&'a [Vec<usize>]),
}

impl Pass<'_> {
    /// Gradients of −log p of tokens that the model draws itself, one at each position, with respect to the stream after
    /// the last layer, which is `last`. The same `seed` draws the same tokens. Gradients go to `to`, which is made by
    /// [`Hidden::new`].
    ///
    /// # Errors
    /// As [`super::can_go_back`]; a tensor or a file cannot be read or written, or `tell` says so.
    pub fn answers_back(
        &self,
        weights: &dyn Weights,
        last: &Hidden,
        seed: u64,
        to: &mut Hidden,
        tell: Tell<'_>,
    ) -> Result<(), Finding> {
        self.back_from(weights, last, &Labels::Drawn(seed), to, tell)
    }

    /// The same of labels that are given, one for each token of each window.
    ///
    /// # Errors
    /// As [`Pass::answers_back`].
    ///
    /// # Panics
    /// If there are fewer labels than tokens.
    pub fn labels_back(
        &self,
        weights: &dyn Weights,
        last: &Hidden,
        labels: &[Vec<usize>],
        to: &mut Hidden,
    ) -> Result<(), Finding> {
        self.back_from(weights, last, &Labels::Given(labels), to, &|_| Ok(()))
    }

    fn back_from(
        &self,
        weights: &dyn Weights,
        last: &Hidden,
        labels: &Labels<'_>,
        to: &mut Hidden,
        tell: Tell<'_>,
    ) -> Result<(), Finding> {
        super::can_go_back(self.description())?;
        let description = self.description();
        let Some(head) = &description.head else { return Ok(()) };
        let side = Side::new(head, weights)?;
        let mut small = LayerWeights::default();
        for name in description.norm.iter().flat_map(|norm| norm.weight.iter().chain(&norm.bias)) {
            small.read_small(name, weights)?;
        }
        for range in batches(self.windows()) {
            let mut rows = Vec::new();
            for window in range.clone() {
                let mut stream = last.get(window)?;
                if let Some(norm) = &description.norm {
                    small.norm(&mut stream, norm);
                }
                let draws = vec![Draw::NEW; self.windows()[window].len()];
                rows.push(Answers { window, gradient: vec![0.0; stream.len()], stream, draws });
            }
            each_piece(description, &side, &mut rows, |answers, start, logits| {
                answers.draw(start, logits, labels);
            })?;
            each_piece(description, &side, &mut rows, |answers, start, logits| {
                answers.slopes(&side, start, logits);
            })?;
            for Answers { window, mut gradient, .. } in rows {
                if let Some(norm) = &description.norm {
                    norm_back(&small, norm, &last.get(window)?, &mut gradient);
                }
                to.put(window, gradient)?;
            }
            tell(range.len())?;
        }
        Ok(())
    }
}

/// One window at the head.
struct Answers {
    window: usize,
    /// Normed.
    stream: Vec<f32>,
    /// Of the normed stream.
    gradient: Vec<f32>,
    draws: Vec<Draw>,
}

/// Logits of all windows, one piece of the vocabulary after another: the first token of a piece, its logits.
fn each_piece(
    description: &Description,
    side: &Side<'_>,
    rows: &mut [Answers],
    with: impl Fn(&mut Answers, usize, Piece<'_>) + Sync,
) -> Result<(), Finding> {
    let matrix = &side.head.matrix;
    let vocabulary = matrix.rows.min(description.vocabulary.max(1));
    for range in blocks(vocabulary, CHUNK) {
        let piece = side.weights.read(&matrix.tensor, range.clone())?;
        rows.par_iter_mut().for_each(|answers| {
            let logits = side.logits(&answers.stream, &piece, range.clone());
            with(answers, range.start, Piece { logits, matrix: &piece });
        });
    }
    Ok(())
}

/// Logits of a window, and the rows of the head that they are of.
struct Piece<'a> {
    logits: Vec<f32>,
    matrix: &'a [f32],
}

impl Answers {
    fn draw(&mut self, start: usize, piece: Piece<'_>, labels: &Labels<'_>) {
        let width = piece.logits.len() / self.draws.len().max(1);
        let rows = self.draws.iter_mut().zip(piece.logits.chunks_exact(width.max(1)));
        for (position, (draw, logits)) in rows.enumerate() {
            match labels {
                Labels::Drawn(seed) => {
                    draw.add(start, logits, chance(*seed, [self.window, position, start]));
                }
                Labels::Given(labels) => {
                    draw.add(start, logits, 0.0);
                    draw.label = labels[self.window][position];
                }
            }
        }
    }

    /// The slopes of −log p: of logits the softmax less the label, and then of the stream.
    fn slopes(&mut self, side: &Side<'_>, start: usize, piece: Piece<'_>) {
        let Piece { mut logits, matrix } = piece;
        let head = side.head;
        let (tokens, columns) = (self.draws.len(), head.matrix.columns);
        let width = logits.len() / tokens.max(1);
        for (draw, logits) in self.draws.iter().zip(logits.chunks_exact_mut(width.max(1))) {
            #[expect(clippy::cast_possible_truncation, reason = "a share in F32")]
            let factor = (1.0 / draw.sum) as f32;
            for (label, x) in (start..).zip(logits) {
                let slope = head.cap.map_or(1.0, |cap| 1.0 - (*x / cap) * (*x / cap));
                let label = if label == draw.label { 1.0 } else { 0.0 };
                *x = (exp(*x - draw.largest) * factor - label) * slope * head.scale;
            }
        }
        let right = View::rows(matrix, columns);
        let to = (self.gradient.as_mut_slice(), columns);
        multiply((tokens, width, columns), View::rows(&logits, width), right, to, 1.0, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_drawn_as_often_as_they_are_likely() {
        let logits = [0.0f32, 1.0, -1.0, 2.0, 0.5, f32::NEG_INFINITY];
        let total: f64 = logits.iter().map(|x| f64::from(x.exp())).sum();
        for piece in [6, 4, 1] {
            let mut counts = [0u32; 6];
            for draw in 0..20_000 {
                let mut state = Draw::NEW;
                for range in blocks(6, piece) {
                    let chance = chance(5, [draw, 3, range.start]);
                    state.add(range.start, &logits[range.clone()], chance);
                }
                assert!((state.sum * f64::from(state.largest).exp() - total).abs() < 1e-5 * total);
                counts[state.label] += 1;
            }
            for (count, logit) in counts.iter().zip(logits) {
                let expected = 20_000.0 * f64::from(logit.exp()) / total;
                // Five standard deviations.
                assert!(
                    (f64::from(*count) - expected).abs() <= 5.0 * expected.sqrt() + 0.1,
                    "{count} {expected}"
                );
            }
        }
    }

    #[test]
    fn chances_are_spread_and_depend_on_each_part_of_their_place() {
        let mean = (0..1000).map(|i| chance(7, [i, 2, 3])).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05);
        let own = chance(1, [2, 3, 4]);
        for other in [chance(2, [2, 3, 4]), chance(1, [3, 3, 4]), chance(1, [2, 4, 4]), chance(1, [2, 3, 5])]
        {
            assert_ne!(own, other);
        }
    }
}
