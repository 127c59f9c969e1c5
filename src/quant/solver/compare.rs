//! Comparison of weights with what their codes mean, for floats, whose scales are for blocks of rows and columns.

use crate::quant::{Distortion, Importance, WorstGroup};

/// How a matrix is divided into blocks that share a scale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// Columns of the matrix.
    pub columns: usize,
    /// Rows and columns of a block.
    pub block: [usize; 2],
}

impl Blocks {
    /// Blocks beside each other.
    pub(super) fn across(&self) -> usize {
        self.columns.div_ceil(self.block[1].max(1))
    }

    /// The distortion of a tile whose codes mean other weights. The first row of the tile begins a block.
    pub(super) fn distortion(
        &self,
        weights: &[f32],
        meant: &[f32],
        importance: Option<&Importance>,
    ) -> Distortion {
        let (columns, groups, [height, width]) = (self.columns.max(1), self.across(), self.block);
        let importance = importance.map(Importance::columns);
        let mut all = Distortion { count: weights.len() as u64, ..Distortion::default() };
        let rows = weights.len() / columns;
        let mut of_blocks = vec![[0.0_f64; 2]; rows.div_ceil(height.max(1)) * groups];
        for (row, (line, meant)) in weights.chunks(columns).zip(meant.chunks(columns)).enumerate() {
            for (column, (&weight, &meant)) in line.iter().zip(meant).enumerate() {
                let error = weight - meant;
                let (w, e) = (f64::from(weight), f64::from(weight) - f64::from(meant));
                all.cross += w * e;
                let block = &mut of_blocks[row / height * groups + column / width];
                block[0] += w * w;
                block[1] += e * e;
                if let Some(importance) = importance {
                    all.weighted_signal += f64::from(importance[column]) * w * w;
                    all.weighted_noise += f64::from(importance[column]) * e * e;
                }
                if error.abs() > all.max_abs_error || error.is_nan() {
                    (all.max_abs_error, all.max_abs_error_at) = (error.abs(), (row, column));
                }
                all.max_abs_weight = all.max_abs_weight.max(meant.abs());
            }
        }
        for (block, [signal, noise]) in of_blocks.into_iter().enumerate() {
            all.signal += signal;
            all.noise += noise;
            let (row, group) = (block / groups.max(1) * height, block % groups.max(1));
            all.offer_group(WorstGroup { row, group, signal, noise });
        }
        all
    }
}
