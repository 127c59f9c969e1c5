//! Percentile ranges, which leave a share of the weights outside, from exact order statistics.
//!
//! The percentile p of n sorted values a is at position p/100·(n − 1). With k its integer part and f its fraction, it
//! is a[k] + (a[k+1] − a[k])·f, numpy's default. It is computed in f64, rounded to f32 and then to the weights' type.
//! Symmetric: of |w|. Asymmetric: the upper end is that of w, the lower one minus that of −w; both are then widened
//! to 0.
//!
//! Values are compared by *keys*, integers ordered as the values are. For a group or row, the keys are held in
//! memory. A whole tensor is counted by the high 16 bits of its keys, and F32 a second time by the low ones.

use super::FloatType;
use super::float_type::{F32, Float};
use crate::quant::simd::machine::{LANES, Machine};

/// Bins of a histogram: one for each value of 16 bits.
const BINS: usize = 1 << 16;

/// The percentile to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tails {
    share: f64,
    symmetric: bool,
}

/// Counts of keys by their high 16 bits.
#[derive(Debug, Clone, Default)]
pub(super) struct Histogram(Vec<u64>);

impl Histogram {
    pub(super) fn merge(&mut self, other: &Self) {
        add(&mut self.0, &other.0);
    }
}

fn add(sums: &mut Vec<u64>, counts: &[u64]) {
    sums.resize(counts.len(), 0);
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// The order statistics that a tensor's range needs, as far as they are known: two for each tail.
#[derive(Debug, Clone, Default)]
pub(super) struct Refinement {
    wanted: Vec<Wanted>,
    fraction: f64,
}

/// One order statistic.
#[derive(Debug, Clone)]
struct Wanted {
    /// The high 16 bits of its key.
    prefix: u32,
    /// Its rank, from 0, among the keys with this prefix.
    rank: u64,
    /// Counts of those keys by their low 16 bits; of no use for 16-bit types.
    bins: Vec<u64>,
}

impl Refinement {
    pub(super) fn merge(&mut self, other: &Self) {
        for (wanted, other) in self.wanted.iter_mut().zip(&other.wanted) {
            add(&mut wanted.bins, &other.bins);
        }
    }
}

/// The integer that orders a weight among others: of |w| if symmetric, of w otherwise.
#[inline(always)]
fn key<T: Float>(bits: u32, symmetric: bool) -> u32 {
    let sign = 1 << (T::BITS - 1);
    if symmetric {
        bits & (sign - 1)
    } else if bits & sign != 0 {
        bits ^ (sign | (sign - 1))
    } else {
        bits | sign
    }
}

/// The inverse of [`key`].
#[inline(always)]
fn value<T: Float>(key: u32, symmetric: bool) -> f32 {
    let sign = 1 << (T::BITS - 1);
    T::from_bits(match (symmetric, key & sign != 0) {
        (true, _) => key,
        (false, true) => key ^ sign,
        (false, false) => key ^ (sign | (sign - 1)),
    })
}

/// a + (b − a)·fraction, rounded to the weights' type.
#[inline(always)]
fn between(a: f32, b: f32, fraction: f64, source: FloatType) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    source.round((a + (b - a) * fraction) as f32)
}

impl Tails {
    /// `percent` from 0 to 100 (what lies outside is clamped).
    pub(super) fn new(percent: f64, symmetric: bool) -> Self {
        Self { share: (percent / 100.0).clamp(0.0, 1.0), symmetric }
    }

    /// How many of `count` > 0 values lie above a\[k\], and the fraction f.
    #[inline(always)]
    fn position(&self, count: u64) -> (u64, f64) {
        let last = count - 1;
        let position = self.share * last as f64;
        let k = (position as u64).min(last);
        (last - k, position - k as f64)
    }

    /// The range of one group or row, which is not empty and finite. `values` may end as others.
    #[inline(always)]
    pub(super) fn range<M: Machine>(
        &self,
        m: M,
        values: &mut [f32],
        keys: &mut Vec<u32>,
        source: FloatType,
    ) -> (f32, f32) {
        let (above, fraction) = self.position(values.len() as u64);
        if self.symmetric {
            for x in values.iter_mut() {
                *x = x.abs();
            }
            let (a, b) = greatest_values(m, values, keys, above as usize);
            return (0.0, between(a, b, fraction, source));
        }
        let (a, b) = greatest_values(m, values, keys, above as usize);
        let high = between(a, b, fraction, source);
        for x in values.iter_mut() {
            *x = -*x;
        }
        let (a, b) = greatest_values(m, values, keys, above as usize);
        let low = -between(a, b, fraction, source);
        (if low < 0.0 { low } else { 0.0 }, if high > 0.0 { high } else { 0.0 })
    }

    /// Counts the weights of a tile.
    #[inline(always)]
    pub(super) fn histogram<T: Float>(&self, weights: &[T::Raw]) -> Histogram {
        let mut bins = vec![0u64; BINS];
        for &raw in weights {
            bins[(key::<T>(T::bits(raw), self.symmetric) >> (T::BITS - 16)) as usize & (BINS - 1)] += 1;
        }
        Histogram(bins)
    }

    /// Locates the wanted order statistics, after all weights were counted.
    pub(super) fn begin_refinement(&self, histogram: &Histogram, source: FloatType) -> Refinement {
        let count: u64 = histogram.0.iter().sum();
        if count == 0 {
            return Refinement::default();
        }
        let (above, fraction) = self.position(count);
        let last = count - 1;
        let mut ranks = vec![last - above, last - above.saturating_sub(1)];
        if !self.symmetric {
            ranks.extend([above, above.saturating_sub(1)]);
        }
        let bins = if source == FloatType::F32 { vec![0; BINS] } else { Vec::new() };
        let place = |mut rank: u64| {
            for (prefix, &count) in (0..).zip(&histogram.0) {
                if rank < count {
                    return Wanted { prefix, rank, bins: bins.clone() };
                }
                rank -= count;
            }
            Wanted { prefix: 0, rank: 0, bins: bins.clone() }
        };
        Refinement { wanted: ranks.into_iter().map(place).collect(), fraction }
    }

    /// Counts those weights of a tile whose keys have the prefix of a wanted one.
    #[inline(always)]
    pub(super) fn refine<T: Float>(&self, weights: &[T::Raw], so_far: &Refinement) -> Refinement {
        let mut part = so_far.clone();
        for wanted in &mut part.wanted {
            wanted.bins.fill(0);
            if wanted.bins.len() != BINS {
                continue;
            }
            for &raw in weights {
                let key = key::<T>(T::bits(raw), self.symmetric);
                if key >> (T::BITS - 16) == wanted.prefix {
                    wanted.bins[key as usize & (BINS - 1)] += 1;
                }
            }
        }
        part
    }

    /// The range of the tensor, after all passes.
    pub(super) fn range_of(&self, found: &Refinement, source: FloatType) -> (f32, f32) {
        let values: Vec<f32> = found.wanted.iter().map(|wanted| self.wanted_value(wanted, source)).collect();
        let fraction = found.fraction;
        match *values.as_slice() {
            [a, b] => (0.0, between(a, b, fraction, source)),
            [a, b, c, d] => {
                let high = between(a, b, fraction, source);
                let low = -between(-c, -d, fraction, source);
                (low.min(0.0), high.max(0.0))
            }
            _ => (0.0, 0.0),
        }
    }

    fn wanted_value(&self, wanted: &Wanted, source: FloatType) -> f32 {
        let mut rank = wanted.rank;
        let mut low_bits = 0;
        for (bits, &count) in (0..).zip(&wanted.bins) {
            if rank < count {
                low_bits = bits;
                break;
            }
            rank -= count;
        }
        match source {
            FloatType::F32 => value::<F32>(wanted.prefix << 16 | low_bits, self.symmetric),
            FloatType::F16 => value::<super::float_type::F16>(wanted.prefix, self.symmetric),
            FloatType::Bf16 => value::<super::float_type::Bf16>(wanted.prefix, self.symmetric),
        }
    }
}

/// The value that `above` values are at least as great as, and the next greater one (itself if there is none). Of
/// zeros either. There are values, and more than `above`.
#[inline(always)]
fn greatest_values<M: Machine>(m: M, values: &[f32], keys: &mut Vec<u32>, above: usize) -> (f32, f32) {
    if above < 2 {
        let (first, second) = greatest_two(m, values);
        return (if above == 0 { first } else { second }, first);
    }
    keys.resize(values.len(), 0);
    for (to, x) in keys.iter_mut().zip(values) {
        *to = key::<F32>(x.to_bits(), false);
    }
    let few = (2..32).contains(&above) && keys.len() >= 1024;
    let (a, b) = if few { greatest_few(keys, above) } else { select(keys, above) };
    (value::<F32>(a, false), value::<F32>(b, false))
}

/// The greatest and the second greatest value.
#[inline(always)]
fn greatest_two<M: Machine>(m: M, values: &[f32]) -> (f32, f32) {
    let (chunks, rest) = values.as_chunks();
    let (mut first, mut second) = (m.splat(f32::NEG_INFINITY), m.splat(f32::NEG_INFINITY));
    for chunk in chunks {
        let x = m.load(chunk);
        second = m.max(second, m.min(first, x));
        first = m.max(first, x);
    }
    if !rest.is_empty() {
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let x = m.load(&last);
        second = m.max(second, m.min(first, x));
        first = m.max(first, x);
    }
    let top = m.greatest(first);
    let (others, count) = m.replace_equal(first, m.splat(top), second);
    (top, if count > 1 { top } else { m.greatest(others) })
}

/// [`select`] for a few of many: the `above + 1`-th of the maxima of 64 lanes bounds the answer from below, and few
/// keys are that great.
#[inline(always)]
fn greatest_few(keys: &[u32], above: usize) -> (u32, u32) {
    const STRIPES: usize = 4 * LANES;
    let (chunks, rest) = keys.as_chunks::<STRIPES>();
    let mut maxima = [0u32; STRIPES];
    for chunk in chunks {
        for i in 0..STRIPES {
            maxima[i] = maxima[i].max(chunk[i]);
        }
    }
    let mut sorted = maxima;
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let bound = sorted[above.min(STRIPES - 1)];
    let mut few = Vec::with_capacity(4 * STRIPES);
    for chunk in chunks {
        let mut any = false;
        for &key in chunk {
            any |= key >= bound;
        }
        if any {
            few.extend(chunk.iter().filter(|&&key| key >= bound));
        }
    }
    few.extend(rest.iter().filter(|&&key| key >= bound));
    select(&mut few, above)
}

/// The key that `above` keys are at least as great as, and the next greater one. `keys` may end in another order.
fn select(keys: &mut [u32], above: usize) -> (u32, u32) {
    let (greater, &mut found, _) = keys.select_nth_unstable_by(above, |a, b| b.cmp(a));
    (found, greater.iter().copied().min().unwrap_or(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::simd::machine::PORTABLE;
    use crate::quant::test_weights::{gaussian, heavy};

    /// The definition, by sorting.
    fn percentile(mut values: Vec<f32>, share: f64) -> f32 {
        values.sort_unstable_by(f32::total_cmp);
        let position = share * (values.len() - 1) as f64;
        let k = position as usize;
        let (a, b) = (f64::from(values[k]), f64::from(values[(k + 1).min(values.len() - 1)]));
        (a + (b - a) * (position - k as f64)) as f32
    }

    #[test]
    fn ranges_are_the_percentiles_of_sorted_values() {
        for count in [1, 2, 7, 31, 32, 128, 1000, 1024, 4097] {
            let values = heavy(count, count as u64);
            for percent in [50.0, 75.0, 99.0, 99.9, 99.99, 100.0] {
                let mut keys = Vec::new();
                let tails = Tails::new(percent, true);
                let (low, high) = tails.range(PORTABLE, &mut values.clone(), &mut keys, FloatType::F32);
                let want = percentile(values.iter().map(|x| x.abs()).collect(), percent / 100.0);
                assert_eq!((low, high), (0.0, want), "{count} {percent}");

                let tails = Tails::new(percent, false);
                let (low, high) = tails.range(PORTABLE, &mut values.clone(), &mut keys, FloatType::F32);
                let upper = percentile(values.clone(), percent / 100.0).max(0.0);
                let lower = percentile(values.iter().map(|x| -x).collect(), percent / 100.0).max(0.0);
                assert_eq!((-low, high), (lower, upper), "{count} {percent}");
            }
        }
    }

    #[test]
    fn histograms_of_tiles_give_the_range_of_the_whole() {
        fn check<T: Float>(source: FloatType) {
            for symmetric in [true, false] {
                for percent in [50.0, 99.0, 99.9, 100.0] {
                    let mut bytes = Vec::new();
                    source.narrow(&gaussian(3000, 5), &mut bytes);
                    let raw = T::elements(&bytes);
                    let tails = Tails::new(percent, symmetric);
                    let want = tails.range(PORTABLE, &mut source.widen(&bytes), &mut Vec::new(), source);
                    let mut histogram = Histogram::default();
                    for tile in raw.chunks(700) {
                        histogram.merge(&tails.histogram::<T>(tile));
                    }
                    let mut found = tails.begin_refinement(&histogram, source);
                    for tile in raw.chunks(700) {
                        let part = tails.refine::<T>(tile, &found);
                        found.merge(&part);
                    }
                    assert_eq!(tails.range_of(&found, source), want);
                }
            }
        }
        check::<F32>(FloatType::F32);
        check::<super::super::float_type::F16>(FloatType::F16);
        check::<super::super::float_type::Bf16>(FloatType::Bf16);
    }
}
