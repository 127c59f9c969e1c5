//! Second moments of inputs, Σ x xᵀ: what rounding with calibration works with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use rayon::prelude::*;

use super::parts::{Linear, Part};
use super::pass::Listener;
use super::product::{View, multiply};
use crate::finding::Finding;

/// Columns that one product makes: the unit of parallel work.
const STRIP: usize = 128;

/// Windows whose inputs are held and summed in F32 before they join the F64 sums of all.
const BLOCK: usize = 8;

/// A matrix's place in a pass: its module and, in a stack, its expert.
pub(super) type Place = (String, Option<usize>);

/// Σ x xᵀ of the inputs of chosen matrices, and how many rows were summed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    chosen: BTreeMap<Place, Sum>,
}

/// One matrix's sum; the lower triangle and the diagonal are kept up to date while it grows.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sum {
    columns: usize,
    rows: u64,
    sum: Vec<f64>,
}

pub(super) fn place(matrix: &Linear) -> Place {
    let expert = if let Part::Expert(expert) = matrix.part { Some(expert) } else { None };
    (matrix.module().to_owned(), expert)
}

/// Rows that were heard at each place, put side by side in their order: of one place at a time, so that only its rows are there
/// twice.
pub(super) fn each_together(
    heard: impl IntoIterator<Item = (Place, Vec<f32>)>,
    mut with: impl FnMut(&Place, &[f32]),
) {
    let mut pieces: BTreeMap<Place, Vec<Vec<f32>>> = BTreeMap::new();
    for (place, rows) in heard {
        pieces.entry(place).or_default().push(rows);
    }
    for (place, pieces) in pieces {
        let together = pieces.concat();
        drop(pieces);
        with(&place, &together);
    }
}

impl Moments {
    /// For these matrices. Of matrices with the same inputs one is enough.
    #[must_use]
    pub fn of<'a>(matrices: impl Iterator<Item = &'a Linear>) -> Self {
        let one = |matrix: &Linear| (place(matrix), Sum::new(matrix.columns));
        Self { chosen: matrices.map(one).collect() }
    }

    /// The mean of x xᵀ, whole, and how many rows it is of.
    #[must_use]
    pub fn mean(&self, matrix: &Linear) -> Option<(Vec<f64>, u64)> {
        let sum = self.chosen.get(&place(matrix))?;
        Some((sum.mean(), sum.rows))
    }

    /// How many rows the sum of a matrix is of. None if it was not chosen.
    #[must_use]
    pub fn rows(&self, matrix: &Linear) -> Option<u64> {
        Some(self.chosen.get(&place(matrix))?.rows)
    }

    /// Writes the mean of x xᵀ of a matrix as F32: the lower triangle with its diagonal, row by row. Nothing if it was not chosen.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_triangle(&self, matrix: &Linear, out: &mut dyn Write) -> io::Result<()> {
        let Some(Sum { columns, rows, sum }) = self.chosen.get(&place(matrix)) else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2⁵²")]
        let factor = 1.0 / (*rows).max(1) as f64;
        let mut bytes = Vec::with_capacity(columns * 4);
        for (row, sum) in sum.chunks_exact(*columns).enumerate() {
            bytes.clear();
            #[expect(clippy::cast_possible_truncation, reason = "the file holds F32")]
            bytes.extend(sum[..=row].iter().flat_map(|sum| ((sum * factor) as f32).to_le_bytes()));
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Bytes of the sums.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chosen.values().map(|sum| sum.sum.len() * 8).sum()
    }
}

impl Sum {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, rows: 0, sum: vec![0.0; columns * columns] }
    }

    /// How many rows were summed.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The mean of x xᵀ, whole.
    pub(super) fn mean(&self) -> Vec<f64> {
        let columns = self.columns;
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2⁵²")]
        let factor = 1.0 / self.rows.max(1) as f64;
        let at = |i: usize, j: usize| self.sum[i.max(j) * columns + i.min(j)] * factor;
        (0..columns * columns).map(|index| at(index / columns, index % columns)).collect()
    }

    /// The same in F32, as rounding takes it.
    pub(super) fn mean_single(&self) -> Vec<f32> {
        let columns = self.columns;
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2⁵²")]
        let factor = 1.0 / self.rows.max(1) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
        let at = |i: usize, j: usize| (self.sum[i.max(j) * columns + i.min(j)] * factor) as f32;
        (0..columns * columns).map(|index| at(index / columns, index % columns)).collect()
    }

    pub(super) fn add(&mut self, inputs: &[f32]) {
        let columns = self.columns;
        let rows = inputs.len() / columns;
        self.rows += rows as u64;
        let view = View::rows(inputs, columns);
        // Rows of the sum in strips: each up to its own diagonal.
        self.sum.par_chunks_mut(STRIP * columns).enumerate().for_each(|(strip, sum)| {
            let (start, height) = (strip * STRIP, sum.len() / columns);
            let width = start + height;
            let mut add = vec![0f32; height * width];
            if rows > 0 {
                let left = View { data: &inputs[start..], ..view }.turned();
                multiply((height, rows, width), left, view, (&mut add, width), 1.0, false);
            }
            for (sum, add) in sum.chunks_exact_mut(columns).zip(add.chunks_exact(width)) {
                sum.iter_mut().zip(add).for_each(|(sum, add)| *sum += f64::from(*add));
            }
        });
    }
}

impl Listener for Moments {
    type Heard = Vec<(Place, Vec<f32>)>;

    fn start(&self) -> Self::Heard {
        Vec::new()
    }

    fn hear(&self, heard: &mut Self::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        let place = place(matrix);
        if self.chosen.contains_key(&place) {
            heard.push((place, inputs.to_vec()));
        }
    }

    fn keep(&mut self, heard: Vec<Self::Heard>) -> Result<(), Finding> {
        each_together(heard.into_iter().flatten(), |place, inputs| {
            if let Some(sum) = self.chosen.get_mut(place) {
                sum.add(inputs);
            }
        });
        Ok(())
    }

    fn block(&self) -> usize {
        BLOCK
    }
}
