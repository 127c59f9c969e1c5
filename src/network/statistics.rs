//! Mean squared inputs of every matrix, and the file of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::listener::Listener;
use super::parts::{Linear, Part};
use crate::finding::Finding;
use crate::format::container::{Entry, SAFETENSORS};

/// Sums of squares and counts of rows, of one module or of the experts of a stack.
#[derive(Debug, Clone, PartialEq, Default)]
struct Sums {
    columns: usize,
    is_stack: bool,
    /// One list a matrix.
    squares: BTreeMap<usize, (Vec<f64>, u64)>,
}

/// Mean squared inputs of every matrix that a pass multiplied with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MeanSquares {
    modules: BTreeMap<String, Sums>,
}

impl MeanSquares {
    /// Makes room for matrices that may see no token, such as experts that none is sent to.
    pub fn prepare<'a>(&mut self, matrices: impl Iterator<Item = &'a Linear>) {
        for matrix in matrices {
            let sums = self.modules.entry(matrix.module().to_owned()).or_default();
            (sums.columns, sums.is_stack) = (matrix.columns, matrix.part != Part::Whole);
            let index = if let Part::Expert(expert) = matrix.part { expert } else { 0 };
            sums.squares.entry(index).or_insert_with(|| (vec![0.0; matrix.columns], 0));
        }
    }

    /// Matrices and the rows that they saw.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize, u64)> {
        self.modules.iter().flat_map(|(name, sums)| {
            sums.squares.iter().map(move |(index, (_, count))| (name.as_str(), *index, *count))
        })
    }

    /// The mean squares of a matrix's columns; of a stack those of one expert.
    #[must_use]
    pub fn means(&self, module: &str, expert: usize) -> Option<Vec<f64>> {
        let (sums, count) = self.modules.get(module)?.squares.get(&expert)?;
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2⁵²")]
        let count = (*count).max(1) as f64;
        Some(sums.iter().map(|sum| sum / count).collect())
    }

    /// The file: `MODULE.in_sum2` F32 `[columns]` or [experts, columns], `MODULE.counts` I64, and what `metadata` says.
    #[must_use]
    pub fn to_bytes(&self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let metadata = serde_json::json!(metadata);
        let mut entries = self.entries();
        let header_len = SAFETENSORS.header_len(&metadata, &mut entries.iter().cloned());
        let mut out = Vec::new();
        // Memory takes everything.
        let _ = SAFETENSORS.write_header(header_len, &metadata, &mut entries.drain(..), &mut out);
        for sums in self.modules.values() {
            out.extend(sums.squares.values().flat_map(|(_, count)| count.to_le_bytes()));
            for (squares, _) in sums.squares.values() {
                #[expect(clippy::cast_possible_truncation, reason = "the file holds F32")]
                out.extend(squares.iter().flat_map(|sum| (*sum as f32).to_le_bytes()));
            }
        }
        out
    }

    fn entries(&self) -> Vec<Entry> {
        let (mut entries, mut end) = (Vec::new(), 0);
        let mut entry = |name: String, dtype: &'static str, shape: Vec<u64>, size: u64| {
            let start = end;
            end += shape.iter().product::<u64>() * size;
            entries.push(Entry { name, dtype, shape, start, end });
        };
        for (name, sums) in &self.modules {
            let (matrices, columns) = (sums.squares.len() as u64, sums.columns as u64);
            entry(format!("{name}.counts"), "I64", vec![matrices], 8);
            let shape = if sums.is_stack { vec![matrices, columns] } else { vec![columns] };
            entry(format!("{name}.in_sum2"), "F32", shape, 4);
        }
        entries
    }
}

/// What one window adds: a matrix, sums of its squared inputs, and rows.
type Added = Vec<(Linear, Vec<f64>, u64)>;

impl Listener for MeanSquares {
    type Heard = Added;

    fn start(&self) -> Added {
        Vec::new()
    }

    fn hear(&self, heard: &mut Added, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        let mut sums = vec![0f64; matrix.columns];
        for row in inputs.chunks_exact(matrix.columns) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
        heard.push((matrix.clone(), sums, (inputs.len() / matrix.columns) as u64));
    }

    fn keep(&mut self, heard: Vec<Added>) -> Result<(), Finding> {
        for (matrix, squares, count) in heard.into_iter().flatten() {
            self.prepare([&matrix].into_iter());
            let index = if let Part::Expert(expert) = matrix.part { expert } else { 0 };
            if let Some((sums, total)) =
                self.modules.get_mut(matrix.module()).and_then(|s| s.squares.get_mut(&index))
            {
                sums.iter_mut().zip(&squares).for_each(|(sum, add)| *sum += add);
                *total += count;
            }
        }
        Ok(())
    }
}
