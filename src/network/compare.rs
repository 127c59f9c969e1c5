//! Two models side by side: what a change of weights does to what a model says.

use rayon::prelude::*;

use super::description::Description;
use super::execute::LayerWeights;
use super::parts::Head;
use super::pass::Hidden;
use super::product;
use super::weights::Weights;
use crate::finding::Finding;

/// Rows of the vocabulary whose logits are made at a time.
pub(super) const CHUNK: usize = 8192;

/// How far the answers of two models are apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Mean of KL(first ‖ second) over tokens, in nats.
    pub mean: f64,
    /// Its standard error, over windows: tokens of one are not independent.
    pub standard_error: f64,
    /// The 99th percentile over tokens.
    pub p99: f64,
    /// exp of the first model's mean negative log-likelihood of the text.
    pub first_perplexity: f64,
    /// The same of the second.
    pub second_perplexity: f64,
    /// The share of tokens for which both say the same next token first.
    pub top1_agreement: f64,
    /// How many predicted tokens this is of.
    pub tokens: usize,
}

/// One token's softmaxes, while their logits pass by.
#[derive(Debug, Clone, Copy)]
struct Online {
    largest: [f32; 2],
    best: [u32; 2],
    sums: [f64; 2],
    /// Σ e^(a − largest a) · (a − b).
    difference: f64,
    /// The logits of the token that the text goes on with.
    wanted: [f32; 2],
}

impl Online {
    const NEW: Self = Self {
        largest: [f32::NEG_INFINITY; 2],
        best: [0; 2],
        sums: [0.0; 2],
        difference: 0.0,
        wanted: [0.0; 2],
    };

    fn add(&mut self, start: u32, logits: [&[f32]; 2], wanted: u32) {
        for (side, logits) in logits.iter().enumerate() {
            let mut largest = self.largest[side];
            for (token, x) in (start..).zip(*logits) {
                if *x > largest {
                    (largest, self.best[side]) = (*x, token);
                }
            }
            let fade = f64::from(self.largest[side] - largest).exp();
            // Nothing has been summed before the first chunk, and −∞ − −∞ is no number.
            let fade = if self.largest[side] == f32::NEG_INFINITY { 0.0 } else { fade };
            self.sums[side] *= fade;
            if side == 0 {
                self.difference *= fade;
            }
            self.largest[side] = largest;
            if let Some(x) = wanted.checked_sub(start).and_then(|at| logits.get(at as usize)) {
                self.wanted[side] = *x;
            }
        }
        let [a, b] = logits;
        // Short sums in F32, then in F64.
        for (a, b) in a.chunks(64).zip(b.chunks(64)) {
            let mut sums = [0f32; 3];
            for (a, b) in a.iter().zip(b) {
                let p = super::math::exp(a - self.largest[0]);
                sums[0] += p;
                sums[1] += super::math::exp(b - self.largest[1]);
                sums[2] += p * (a - b);
            }
            self.sums[0] += f64::from(sums[0]);
            self.sums[1] += f64::from(sums[1]);
            self.difference += f64::from(sums[2]);
        }
    }

    fn log_of_sum(&self, side: usize) -> f64 {
        f64::from(self.largest[side]) + self.sums[side].ln()
    }

    fn kl(&self) -> f64 {
        let kl = self.difference / self.sums[0] - self.log_of_sum(0) + self.log_of_sum(1);
        // Rounding makes equal ones differ by less than nothing.
        if kl.is_nan() { kl } else { kl.max(0.0) }
    }
}

/// What a head needs in memory beside its matrix, and the rows that its matrix works on.
pub(super) struct Side<'a> {
    pub(super) head: &'a Head,
    pub(super) weights: &'a dyn Weights,
    small: LayerWeights,
    bias: Option<Vec<f32>>,
}

impl<'a> Side<'a> {
    pub(super) fn new(head: &'a Head, weights: &'a dyn Weights) -> Result<Self, Finding> {
        let mut small = LayerWeights::default();
        if let Some((dense, _, norm)) = &head.transform {
            small.read_matrix(dense, weights)?;
            for name in norm.weight.iter().chain(&norm.bias) {
                small.read_small(name, weights)?;
            }
        }
        let bias =
            head.matrix.bias.as_ref().map(|name| weights.read(name, 0..head.matrix.rows)).transpose()?;
        Ok(Self { head, weights, small, bias })
    }

    fn transformed(&self, stream: Vec<f32>) -> Vec<f32> {
        let Some((dense, activation, norm)) = &self.head.transform else { return stream };
        let mut rows = self.small.product(dense, &stream);
        super::math::activate(&mut rows, *activation);
        self.small.norm(&mut rows, norm);
        rows
    }

    pub(super) fn logits(&self, rows: &[f32], matrix: &[f32], range: std::ops::Range<usize>) -> Vec<f32> {
        let columns = self.head.matrix.columns;
        let bias = self.bias.as_ref().map(|bias| &bias[range.clone()]);
        let mut out = product::linear(rows, (range.len(), columns), matrix, self.head.matrix.layout, bias);
        if self.head.scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= self.head.scale);
        }
        if let Some(cap) = self.head.cap {
            out.iter_mut().for_each(|x| *x = cap * super::math::tanh(*x / cap));
        }
        out
    }
}

/// Logits of all tokens of a window, for tests and small models.
///
/// # Errors
/// A tensor cannot be read, or there is no head.
pub fn logits(
    description: &Description,
    weights: &dyn Weights,
    stream: Vec<f32>,
) -> Result<Vec<f32>, Finding> {
    let head = description.head.as_ref().ok_or_else(no_head)?;
    let side = Side::new(head, weights)?;
    let rows = side.transformed(stream);
    let matrix = weights.read(&head.matrix.tensor, 0..head.matrix.rows)?;
    Ok(side.logits(&rows, &matrix, 0..head.matrix.rows))
}

fn no_head() -> Finding {
    Finding::error(super::code::NOT_ADMITTED, "the model has no head that makes logits")
        .help("Encoders are compared by their pooled states.")
}

/// Compares two models over the same windows by their last hidden states, after the last norm. Each window's first token is
/// predicted by nothing. Logits are made in pieces of the vocabulary and of the windows, and never kept.
///
/// # Errors
/// A tensor cannot be read, or there is no head.
pub fn compare_logits(
    description: &Description,
    windows: &[Vec<u32>],
    first: (&dyn Weights, &Hidden),
    second: (&dyn Weights, &Hidden),
) -> Result<Divergence, Finding> {
    let head = description.head.as_ref().ok_or_else(no_head)?;
    let sides = [Side::new(head, first.0)?, Side::new(head, second.0)?];
    let hidden = [first.1, second.1];
    let mut states: Vec<Vec<Online>> =
        windows.iter().map(|window| vec![Online::NEW; window.len().saturating_sub(1)]).collect();
    let vocabulary = head.matrix.rows.min(description.vocabulary.max(1));
    let is_shared = std::ptr::addr_eq(first.0, second.0);
    for range in super::batches::blocks(vocabulary, CHUNK) {
        let a = sides[0].weights.read(&head.matrix.tensor, range.clone())?;
        let b =
            if is_shared { None } else { Some(sides[1].weights.read(&head.matrix.tensor, range.clone())?) };
        let matrices = [&a, b.as_ref().unwrap_or(&a)];
        let start = u32::try_from(range.start).unwrap_or(u32::MAX);
        states.par_iter_mut().enumerate().try_for_each(|(index, states)| {
            let logits = |side: usize| -> Result<Vec<f32>, Finding> {
                let mut stream = hidden[side].get(index)?;
                stream.truncate(states.len() * head.matrix.columns);
                let rows = sides[side].transformed(stream);
                Ok(sides[side].logits(&rows, matrices[side], range.clone()))
            };
            let (a, b) = (logits(0)?, logits(1)?);
            let rows = a.chunks_exact(range.len()).zip(b.chunks_exact(range.len()));
            for ((state, (a, b)), wanted) in states.iter_mut().zip(rows).zip(&windows[index][1..]) {
                state.add(start, [a, b], *wanted);
            }
            Ok::<(), Finding>(())
        })?;
    }
    Ok(summary(&states))
}

#[expect(clippy::cast_precision_loss, reason = "tokens are far below 2⁵²")]
fn summary(states: &[Vec<Online>]) -> Divergence {
    let mut all = Vec::new();
    let (mut sums, mut equal, mut means) = ([0.0; 2], 0usize, Vec::new());
    for states in states.iter().filter(|states| !states.is_empty()) {
        let mut window = 0.0;
        for state in states {
            let kl = state.kl();
            window += kl;
            all.push(kl);
            for (side, sum) in sums.iter_mut().enumerate() {
                *sum += state.log_of_sum(side) - f64::from(state.wanted[side]);
            }
            equal += usize::from(state.best[0] == state.best[1]);
        }
        means.push(window / states.len() as f64);
    }
    let tokens = all.len();
    let count = tokens.max(1) as f64;
    let mean = all.iter().sum::<f64>() / count;
    let windows = means.len() as f64;
    let middle = means.iter().sum::<f64>() / windows.max(1.0);
    let spread = means.iter().map(|x| (x - middle) * (x - middle)).sum::<f64>();
    let standard_error = if windows > 1.0 { (spread / (windows - 1.0) / windows).sqrt() } else { f64::NAN };
    all.sort_unstable_by(f64::total_cmp);
    Divergence {
        mean,
        standard_error,
        p99: percentile(&all, 0.99),
        first_perplexity: (sums[0] / count).exp(),
        second_perplexity: (sums[1] / count).exp(),
        top1_agreement: equal as f64 / count,
        tokens,
    }
}

/// A percentile of sorted numbers, between neighbours in a straight line, as numpy has it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index"
)]
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = last as f64 * share;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// How far two streams are apart after a layer: ‖a − b‖ / ‖a‖ over all tokens.
///
/// # Errors
/// A file of activations cannot be read.
pub fn layer_error(first: &Hidden, second: &Hidden) -> Result<f64, Finding> {
    let sums = (0..first.windows())
        .into_par_iter()
        .map(|window| {
            let (a, b) = (first.get(window)?, second.get(window)?);
            let each = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b), f64::from(*a));
            let add = |sum: (f64, f64), (error, a): (f64, f64)| (sum.0 + error * error, sum.1 + a * a);
            Ok(a.iter().zip(&b).map(each).fold((0.0, 0.0), add))
        })
        .collect::<Result<Vec<_>, Finding>>()?;
    let (error, size) = sums.iter().fold((0.0, 0.0), |sum, (error, size)| (sum.0 + error, sum.1 + size));
    Ok(if error == 0.0 { 0.0 } else { (error / size).sqrt() })
}

/// The mean cosine of the mean states of two encoders' windows.
///
/// # Errors
/// A file of activations cannot be read.
pub fn pooled_cosine(width: usize, first: &Hidden, second: &Hidden) -> Result<f64, Finding> {
    let pooled = |hidden: &Hidden, window: usize| -> Result<Vec<f64>, Finding> {
        let mut sums = vec![0f64; width];
        for row in hidden.get(window)?.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        Ok(sums)
    };
    let mut total = 0.0;
    for window in 0..first.windows() {
        let (a, b) = (pooled(first, window)?, pooled(second, window)?);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        total += dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    }
    #[expect(clippy::cast_precision_loss, reason = "windows are far below 2⁵²")]
    let count = first.windows().max(1) as f64;
    Ok(total / count)
}
