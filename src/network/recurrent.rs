//! What layers without attention remember: a short convolution, and the state of the gated delta rule.

use super::math::{self, activate};
use super::parts::Activation;

/// A causal convolution of each column.
pub(super) fn convolve(
    rows: &[f32],
    columns: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    width: usize,
) -> Vec<f32> {
    let tokens = rows.len() / columns;
    let mut out = match bias {
        Some(bias) => bias.repeat(tokens),
        None => vec![0.0; rows.len()],
    };
    for token in 0..tokens {
        let out = &mut out[token * columns..(token + 1) * columns];
        for tap in 0..width.min(token + 1) {
            let row = &rows[(token - tap) * columns..(token - tap + 1) * columns];
            for (column, (out, x)) in out.iter_mut().zip(row).enumerate() {
                *out += x * weight[column * width + width - 1 - tap];
            }
        }
    }
    out
}

/// The gated delta rule over one window.
pub(super) struct Delta<'a> {
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) decay: &'a [f32],
    pub(super) rates: &'a [f32],
    pub(super) offset: &'a [f32],
    pub(super) heads: usize,
    pub(super) shared: usize,
    pub(super) size: usize,
    pub(super) value_size: usize,
}

impl Delta<'_> {
    pub(super) fn run(&self, tokens: usize) -> Vec<f32> {
        let (size, value_size) = (self.size, self.value_size);
        let width = self.heads * value_size;
        let mut out = vec![0.0; tokens * width];
        #[expect(clippy::cast_precision_loss, reason = "widths are far below 2²⁴")]
        let scale = 1.0 / (size as f32).sqrt();
        for head in 0..self.heads {
            let mut state = vec![0f32; size * value_size];
            let mut error = vec![0f32; value_size];
            for token in 0..tokens {
                let at = (token * (self.heads / self.shared) + head / self.shared) * size;
                let (query, key) = (&self.queries[at..at + size], &self.keys[at..at + size]);
                let at = token * width + head * value_size;
                let value = &self.values[at..at + value_size];
                let gate = token * self.heads + head;
                let mut beta = [self.beta[gate]];
                activate(&mut beta, Activation::Sigmoid);
                let fade =
                    (-self.rates[head].exp() * math::softplus(self.decay[gate] + self.offset[head])).exp();
                state.iter_mut().for_each(|x| *x *= fade);
                error.copy_from_slice(value);
                for (row, key) in state.chunks_exact(value_size).zip(key) {
                    error.iter_mut().zip(row).for_each(|(error, x)| *error -= x * key);
                }
                let out = &mut out[at..at + value_size];
                for (row, (key, query)) in state.chunks_exact_mut(value_size).zip(key.iter().zip(query)) {
                    let (step, read) = (key * beta[0], query * scale);
                    for ((x, error), out) in row.iter_mut().zip(&error).zip(out.iter_mut()) {
                        *x += step * error;
                        *out += *x * read;
                    }
                }
            }
        }
        out
    }
}
