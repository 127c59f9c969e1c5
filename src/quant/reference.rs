//! Reference implementation: slow quantization as the formulas read, one weight after another.
//!
//! Tests compare the kernels with it byte for byte. It is public because it also answers what *compressed-tensors*
//! would have stored. With `quotient` set to the weights' type, it rounds quotients as compressed-tensors does on
//! CPU. With [`FloatType::F32`], which is what monoquant does, it keeps them as that library's GPU kernel does.

use super::params::Rules;
use super::{Bits, FloatType, Granularity, Mse, Observer, Scheme, Storage};
use crate::quant::powf::power;

/// A quantized matrix, unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpacked {
    /// Signed codes, row by row.
    pub codes: Vec<i8>,
    /// One per group, row by row; a single one for granularity tensor.
    pub scales: Vec<f32>,
    /// In the layout of the scales; all 0 if symmetric.
    pub zero_points: Vec<i8>,
}

/// A slow quantizer, the reference for the kernels.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// How.
    pub scheme: Scheme,
    /// How ranges are chosen.
    pub observer: Observer,
    /// The type of the weights.
    pub source: FloatType,
    /// The type that quotients are rounded to: F32, or that of compressed-tensors, which is `source`.
    pub quotient: FloatType,
}

impl Reference {
    /// Quantizes finite weights whose scales do not overflow. With `importance`, one number per column, the errors of
    /// the search are weighted by it.
    ///
    /// The search over a whole tensor is the only result that may differ from the kernels'. They add errors tile by
    /// tile, and two candidates whose errors are equal to 1e-11 may then change places.
    #[must_use]
    pub fn quantize(&self, weights: &[f32], cols: usize, importance: Option<&[f32]>) -> Unpacked {
        let mut out = Unpacked { codes: Vec::new(), scales: Vec::new(), zero_points: Vec::new() };
        let mut start = 0;
        for group in self.groups(weights, cols) {
            let columns: Option<Vec<f32>> =
                importance.map(|all| (start..start + group.len()).map(|i| all[i % cols]).collect());
            start += group.len();
            let (scale, zero_point) = self.params(self.range(group, columns.as_deref()));
            out.scales.push(scale);
            out.zero_points.push(zero_point);
            out.codes.extend(group.iter().map(|&w| self.code(w, scale, zero_point)));
        }
        out
    }

    /// The weights that share a scale, in order.
    pub fn groups<'a>(&self, weights: &'a [f32], cols: usize) -> impl Iterator<Item = &'a [f32]> {
        let size = match self.scheme.granularity {
            Granularity::Group(size) => size,
            Granularity::Channel | Granularity::Block(_) => cols,
            Granularity::Tensor => weights.len(),
        };
        weights.chunks(size.max(1))
    }

    /// The range of a group, as the observer chooses it; it contains 0. If its scale is to be negative, it is turned: 0, and
    /// below that. With `importance`, one number per weight,
    /// errors are weighted by it.
    #[must_use]
    pub fn range(&self, group: &[f32], importance: Option<&[f32]>) -> (f32, f32) {
        let low = group.iter().copied().fold(0.0, f32::min);
        let high = group.iter().copied().fold(0.0, f32::max);
        match self.observer {
            Observer::SignedMinmax if self.observer.turns(&self.scheme) => {
                if high > -low {
                    (0.0, -high)
                } else {
                    (0.0, -low)
                }
            }
            Observer::Minmax | Observer::SignedMinmax => (low, high),
            Observer::Mse(mse) if self.observer.turns(&self.scheme) => {
                let upright = self.least_error(group, importance, (low, high), mse);
                let other: Vec<f32> = group.iter().map(|w| -w).collect();
                let turned = self.least_error(&other, importance, (-high, -low), mse);
                let error = |group: &[f32], range| self.error(group, importance, range, mse.norm);
                let is_less = error(&other, turned) < error(group, upright);
                if is_less { (0.0, -turned.1.max(-turned.0)) } else { upright }
            }
            Observer::Mse(mse) => self.least_error(group, importance, (low, high), mse),
            Observer::Percentile(percent) => {
                let share = percent / 100.0;
                if self.scheme.symmetric {
                    (0.0, self.percentile(group.iter().map(|w| w.abs()).collect(), share))
                } else {
                    let high = self.percentile(group.to_vec(), share);
                    let low = -self.percentile(group.iter().map(|w| -w).collect(), share);
                    (low.min(0.0), high.max(0.0))
                }
            }
        }
    }

    fn percentile(&self, mut values: Vec<f32>, share: f64) -> f32 {
        values.sort_unstable_by(f32::total_cmp);
        let position = share * (values.len() - 1) as f64;
        let k = position as usize;
        let (a, b) = (f64::from(values[k]), f64::from(values[(k + 1).min(values.len() - 1)]));
        self.source.round((a + (b - a) * (position - k as f64)) as f32)
    }

    fn least_error(
        &self,
        group: &[f32],
        importance: Option<&[f32]>,
        (low, high): (f32, f32),
        mse: Mse,
    ) -> (f32, f32) {
        let mut best = (f64::INFINITY, (low, high));
        for p in mse.factors() {
            let range = (self.source.round(low * p), self.source.round(high * p));
            let error = self.error(group, importance, range, mse.norm);
            if error < best.0 {
                best = (error, range);
            }
        }
        best.1
    }

    /// Σ importance·|(code − zero point)·scale − w|^norm of a group quantized with a range, in f64. Without
    /// importance each weight counts 1.
    #[must_use]
    pub fn error(&self, group: &[f32], importance: Option<&[f32]>, range: (f32, f32), norm: f64) -> f64 {
        let (scale, zero_point) = self.params(range);
        let term = |i: usize| {
            let level = f64::from(self.code(group[i], scale, zero_point)) - f64::from(zero_point);
            let importance = importance.map_or(1.0, |importance| f64::from(importance[i]));
            importance * power((level * f64::from(scale) - f64::from(group[i])).abs(), norm)
        };
        // Sixteen partial sums, added by halves: the order that the kernels have.
        let mut sums = [0.0; 16];
        for i in 0..group.len() {
            sums[i % 16] += term(i);
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        sums[0]
    }

    /// Scale and zero point of a range, which is widened to contain 0 unless it is turned.
    #[must_use]
    pub fn params(&self, range: (f32, f32)) -> (f32, i8) {
        let is_turned = range.0 > range.1;
        let (low, high) = if is_turned { range } else { (range.0.min(0.0), range.1.max(0.0)) };
        let (mut low, mut high) = ([low], [high]);
        let rules = Rules::new(&self.scheme, self.source).of(&self.observer, &self.scheme);
        rules.resolve(&mut low, &mut high);
        (high[0], low[0] as i8)
    }

    /// The code of one weight: round(clamp(w / scale + zero point)), half to even.
    #[must_use]
    pub fn code(&self, w: f32, scale: f32, zero_point: i8) -> i8 {
        let bits = self.scheme.bits;
        let mut t = self.quotient.round(w / scale);
        if !self.scheme.symmetric {
            t = self.quotient.round(t + f32::from(zero_point));
        }
        t.clamp(bits.qmin() as f32, bits.qmax() as f32).round_ties_even() as i8
    }

    /// One dequantized weight, (code − zero point)·scale rounded to the scales' type.
    #[must_use]
    pub fn value(&self, code: i8, scale: f32, zero_point: i8) -> f32 {
        let level = i16::from(code) - i16::from(zero_point);
        self.scheme.scale_type.round(f32::from(level) * scale)
    }
}

impl Unpacked {
    /// What the codes of rows with so many columns stand for, as engines see them: rounded to the scales' type.
    #[must_use]
    pub fn values(&self, scheme: &Scheme, cols: usize) -> Vec<f32> {
        let size = scheme.group_cols(cols).max(1);
        let groups = self.codes.chunks(size).zip(self.scales.iter().zip(&self.zero_points));
        let mut values = Vec::with_capacity(self.codes.len());
        for (codes, (scale, zero)) in groups {
            let value = |code: &i8| f32::from(i16::from(*code) - i16::from(*zero)) * scale;
            values.extend(codes.iter().map(|code| scheme.scale_type.round(value(code))));
        }
        values
    }

    /// The bytes of the codes' tensor.
    #[must_use]
    pub fn code_bytes(&self, scheme: &Scheme, cols: usize) -> Vec<u8> {
        match scheme.storage {
            Storage::Packed => {
                self.codes.chunks(cols.max(1)).flat_map(|row| words(scheme.bits, row)).collect()
            }
            _ => self.codes.iter().map(|&code| code as u8).collect(),
        }
    }

    /// The bytes of the scales' tensor.
    #[must_use]
    pub fn scale_bytes(&self, scheme: &Scheme) -> Vec<u8> {
        let mut bytes = Vec::new();
        scheme.scale_type.narrow(&self.scales, &mut bytes);
        bytes
    }

    /// The bytes of the zero-point tensor; none if symmetric.
    #[must_use]
    pub fn zero_point_bytes(&self, scheme: &Scheme, cols: usize) -> Vec<u8> {
        if scheme.symmetric {
            return Vec::new();
        }
        if !scheme.packs_zero_points() {
            return self.zero_points.iter().map(|&z| z as u8).collect();
        }
        let groups = scheme.groups_per_row(cols);
        let columns: Vec<Vec<u8>> = (0..groups)
            .map(|group| {
                let column: Vec<i8> = self.zero_points.iter().skip(group).step_by(groups).copied().collect();
                words(scheme.bits, &column)
            })
            .collect();
        let height = columns.first().map_or(0, |column| column.len() / 4);
        let word = |row: usize, group: usize| columns[group][4 * row..4 * row + 4].to_vec();
        (0..height).flat_map(|row| (0..groups).flat_map(move |group| word(row, group))).collect()
    }
}

/// Signed codes in 32-bit words, as little-endian bytes: unsigned code i at bit i·width, the rest of the last word 0.
#[must_use]
pub fn words(bits: Bits, codes: &[i8]) -> Vec<u8> {
    let pack = |word: &[i8]| {
        word.iter().enumerate().fold(0u32, |sum, (i, &code)| {
            sum | ((i32::from(code) - bits.qmin()) as u32) << (i * bits.count())
        })
    };
    codes.chunks(bits.per_word()).flat_map(|word| pack(word).to_le_bytes()).collect()
}

/// `count` signed codes out of the bytes of [`words`].
#[must_use]
pub fn from_words(bits: Bits, bytes: &[u8], count: usize) -> Vec<i8> {
    let unpack = |word: &[u8; 4]| {
        let word = u32::from_le_bytes(*word);
        let mask = (1u32 << bits.count()) - 1;
        (0..bits.per_word()).map(move |i| ((word >> (i * bits.count()) & mask) as i32 + bits.qmin()) as i8)
    };
    bytes.as_chunks().0.iter().flat_map(unpack).take(count).collect()
}
