//! Second moments of gradients of outputs, Σ g gᵀ: how errors of a matrix's outputs work together.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::batches::blocks;
use super::moments::{Place, place, with_rows};
use super::parts::Linear;
use super::row_products::{Rows, add_squares, strip_height};

/// Σ g gᵀ of the gradients g of the outputs of chosen matrices of one layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutputMoments {
    chosen: BTreeMap<Place, OutputSum>,
}

/// One matrix's sum, in F32: whole, or only its blocks of neighbouring outputs along the diagonal.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSum {
    /// Outputs.
    pub rows: usize,
    /// Outputs of a block; the last may have fewer.
    pub block: usize,
    /// How many tokens' gradients were summed.
    pub tokens: u64,
    /// The blocks one after another, each a square, row by row.
    pub sums: Vec<f32>,
}

impl OutputMoments {
    /// For these matrices, with blocks of so many outputs.
    pub fn of<'a>(matrices: impl Iterator<Item = (&'a Linear, usize)>) -> Self {
        let one = |(matrix, block): (&Linear, usize)| (place(matrix), OutputSum::new(matrix.rows, block));
        Self { chosen: matrices.map(one).collect() }
    }

    /// The sum of a matrix, if it was chosen.
    #[must_use]
    pub fn get(&self, matrix: &Linear) -> Option<&OutputSum> {
        self.chosen.get(&place(matrix))
    }

    /// Bytes of the sums.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chosen.values().map(|sum| sum.sums.len() * 4).sum()
    }

    /// The place of a matrix, if it was chosen.
    pub(super) fn place(&self, matrix: &Linear) -> Option<Place> {
        Some(place(matrix)).filter(|place| self.chosen.contains_key(place))
    }

    /// Adds rows of gradients, those of one matrix in their order. Sums are whole after [`OutputMoments::complete`].
    pub(super) fn add(&mut self, heard: &[(Place, Vec<f32>)]) {
        let mut all = with_rows(&mut self.chosen, heard, |sum| sum.rows);
        // Those of all matrices side by side: one alone has few.
        let height = strip_height(all.iter().map(|(sum, _)| sum.rows).sum());
        let strips: Vec<Strip<'_>> =
            all.iter_mut().flat_map(|(sum, rows)| sum.strips(rows, height)).collect();
        strips.into_par_iter().for_each(Strip::add);
    }

    /// Makes sums whole: only what is below their diagonals grows.
    pub(super) fn complete(&mut self) {
        self.chosen.values_mut().for_each(OutputSum::mirror);
    }
}

impl OutputSum {
    fn new(rows: usize, block: usize) -> Self {
        let block = block.clamp(1, rows.max(1));
        let size = blocks(rows, block).map(|range| range.len() * range.len()).sum();
        Self { rows, block, tokens: 0, sums: vec![0.0; size] }
    }

    /// Bytes of the sum of a matrix with so many outputs, in blocks of so many.
    #[must_use]
    pub fn bytes_of(rows: usize, block: usize) -> u64 {
        blocks(rows, block.clamp(1, rows.max(1))).map(|range| (range.len() * range.len() * 4) as u64).sum()
    }

    /// Blocks that are as large as each other, of no more than so many outputs.
    #[must_use]
    pub fn block_of_at_most(rows: usize, most: usize) -> usize {
        rows.div_ceil(rows.div_ceil(most.max(1)).max(1)).max(1)
    }

    /// The mean of g gᵀ, block by block.
    #[must_use]
    pub fn mean(&self) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "a mean in F32")]
        let share = 1.0 / self.tokens.max(1) as f32;
        self.sums.iter().map(|sum| sum * share).collect()
    }

    /// Puts what is below the diagonals above them, too.
    fn mirror(&mut self) {
        let mut rest = self.sums.as_mut_slice();
        for range in blocks(self.rows, self.block) {
            let size = range.len();
            let (sums, after) = rest.split_at_mut(size * size);
            rest = after;
            for row in 0..size {
                for column in row + 1..size {
                    sums[row * size + column] = sums[column * size + row];
                }
            }
        }
    }

    /// What is to be done to add rows of gradients, in strips of so many rows.
    fn strips<'s>(&'s mut self, gradients: &'s Rows<'s>, height: usize) -> Vec<Strip<'s>> {
        self.tokens += gradients.count() as u64;
        let (mut out, mut rest) = (Vec::new(), self.sums.as_mut_slice());
        for range in blocks(self.rows, self.block) {
            let size = range.len();
            let (sums, after) = rest.split_at_mut(size * size);
            rest = after;
            let strips = sums.chunks_mut(height * size).enumerate();
            out.extend(strips.map(|(strip, sums)| Strip {
                size,
                block: range.start,
                start: strip * height,
                sums,
                gradients,
            }));
        }
        out
    }
}

/// Some rows of a block: each up to its own diagonal.
struct Strip<'s> {
    /// Outputs of the block, the first of them, and the first of these rows within it.
    size: usize,
    block: usize,
    start: usize,
    sums: &'s mut [f32],
    gradients: &'s Rows<'s>,
}

impl Strip<'_> {
    fn add(self) {
        let Self { size, block, start, sums, gradients } = self;
        add_squares((sums, size), gradients, block, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Layout, Part};
    use crate::quant::test_weights::gaussian;

    #[test]
    fn blocks_are_about_as_large_as_each_other() {
        for (rows, most, expected) in
            [(100, 100, 100), (100, 1 << 30, 100), (100, 99, 50), (100, 33, 25), (7, 0, 1), (0, 9, 1)]
        {
            assert_eq!(OutputSum::block_of_at_most(rows, most), expected, "{rows} in blocks of {most}");
        }
        assert_eq!(OutputSum::bytes_of(100, 33), 4 * (3 * 33 * 33 + 1));
        assert!(
            OutputSum::bytes_of(100, OutputSum::block_of_at_most(100, 33)) < OutputSum::bytes_of(100, 33)
        );
    }

    #[test]
    fn blocks_are_those_of_the_whole_sum() {
        let rows = 150;
        let matrix = Linear {
            tensor: "a.weight".to_owned(),
            part: Part::Whole,
            layout: Layout::OutIn,
            columns: 3,
            rows,
            bias: None,
        };
        let gradients = gaussian(rows * 20, 1);
        let sum = |block: usize| {
            let mut moments = OutputMoments::of([(&matrix, block)].into_iter());
            let place = moments.place(&matrix).expect("chosen");
            moments.add(&[(place.clone(), gradients[..rows * 7].to_vec())]);
            moments.add(&[(place, gradients[rows * 7..].to_vec())]);
            moments.complete();
            assert_eq!(moments.bytes() as u64, OutputSum::bytes_of(rows, block));
            moments.get(&matrix).expect("chosen").clone()
        };
        let whole = sum(1000);
        assert_eq!((whole.block, whole.tokens), (rows, 20));
        let exact = |i: usize, j: usize| -> f32 {
            gradients.chunks_exact(rows).map(|row| row[i] * row[j]).sum::<f32>() / 20.0
        };
        let mean = whole.mean();
        for (i, j) in [(0, 0), (3, 140), (149, 149), (130, 2)] {
            assert!((mean[i * rows + j] - exact(i, j)).abs() < 1e-5);
        }
        let parts = sum(64).mean();
        let mut at = 0;
        for range in blocks(rows, 64) {
            for i in range.clone() {
                for j in range.clone() {
                    assert!((parts[at] - mean[i * rows + j]).abs() < 1e-5, "{i}, {j}");
                    at += 1;
                }
            }
        }
        assert_eq!(at, parts.len());
    }
}
