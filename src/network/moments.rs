//! Second moments of inputs, Σ x xᵀ: what rounding with calibration works with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use rayon::prelude::*;

use super::listener::Listener;
use super::parts::{Linear, Part};
use super::row_products::{Rows, add_squares, strip_height};
use crate::finding::Finding;

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

/// Sums that something was heard of, with the rows that were heard at their place, in their order. `width` is that of a sum's rows.
pub(super) fn with_rows<'s, S>(
    sums: &'s mut BTreeMap<Place, S>,
    heard: &'s [(Place, Vec<f32>)],
    width: impl Fn(&S) -> usize,
) -> Vec<(&'s mut S, Rows<'s>)> {
    let mut pieces: BTreeMap<&Place, Vec<&[f32]>> = BTreeMap::new();
    for (place, rows) in heard {
        pieces.entry(place).or_default().push(rows);
    }
    let heard = |(place, sum): (&Place, &'s mut S)| {
        let rows = Rows { width: width(sum), pieces: pieces.remove(place)? };
        Some((sum, rows))
    };
    sums.iter_mut().filter_map(heard).collect()
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

    /// What is to be done to add some inputs, in strips of so many rows.
    pub(super) fn strips<'s>(&'s mut self, inputs: &'s Rows<'s>, height: usize) -> Vec<Strip<'s>> {
        let columns = self.columns;
        self.rows += inputs.count() as u64;
        let strips = self.sum.chunks_mut((height * columns).max(1)).enumerate();
        strips.map(|(strip, sum)| Strip { columns, start: strip * height, sum, inputs }).collect()
    }
}

/// Some rows of a sum: each up to its own diagonal, in F32 before it joins the F64 sum.
pub(super) struct Strip<'s> {
    columns: usize,
    start: usize,
    sum: &'s mut [f64],
    inputs: &'s Rows<'s>,
}

impl Strip<'_> {
    pub(super) fn add(self) {
        let Self { columns, start, sum, inputs } = self;
        let width = start + sum.len() / columns;
        let mut add = vec![0f32; sum.len() / columns * width];
        add_squares((&mut add, width), inputs, 0, start);
        for (row, (sum, add)) in sum.chunks_exact_mut(columns).zip(add.chunks_exact(width)).enumerate() {
            let below = &mut sum[..=start + row];
            below.iter_mut().zip(add).for_each(|(sum, add)| *sum += f64::from(*add));
        }
    }
}

/// Adds inputs to sums, those of all sums side by side: one alone has few strips.
pub(super) fn add(all: &mut [(&mut Sum, Rows<'_>)]) {
    let height = strip_height(all.iter().map(|(sum, _)| sum.columns).sum());
    let strips: Vec<Strip<'_>> =
        all.iter_mut().flat_map(|(sum, inputs)| sum.strips(inputs, height)).collect();
    strips.into_par_iter().for_each(Strip::add);
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
        let heard: Vec<_> = heard.into_iter().flatten().collect();
        add(&mut with_rows(&mut self.chosen, &heard, |sum| sum.columns));
        Ok(())
    }

    fn block(&self) -> usize {
        BLOCK
    }
}
