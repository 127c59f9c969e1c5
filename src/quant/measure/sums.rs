//! Sums of squares of a block: in f32 over lanes, in an order that depends on nothing but shapes and types.

use super::super::machine::{LANES, Machine};
use super::super::search::fold;

/// Columns whose squares are summed in f32 before they go into f64 sums: 16 terms a lane.
pub(super) const BLOCK: usize = 16 * LANES;

/// Block sums of squares that f32 holds to its full precision. Others are summed again in f64.
const SAFE: std::ops::RangeInclusive<f32> = 1e-18..=1e30;

/// Σw², Σe², Σw·e.
pub(super) type Energies = [f64; 3];

/// Energies of a block in f32.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) signal: f32,
    pub(super) noise: f32,
    pub(super) cross: f32,
    /// Whether an |e| is above the limit, if `noise` is a number.
    pub(super) exceeds: bool,
}

impl Sums {
    /// Whether f32 has held the squares to its full precision.
    #[inline(always)]
    pub(super) fn is_usual(&self) -> bool {
        SAFE.contains(&self.signal) && self.noise.is_finite()
    }

    /// Of equally long slices.
    #[inline(always)]
    pub(super) fn of<M: Machine>(m: M, values: &[f32], decoded: &[f32], limit: f32) -> Self {
        let mut running = Running::new(m);
        let (values, last_values) = values.as_chunks();
        let (decoded, last_decoded) = decoded.as_chunks();
        for (w, d) in values.iter().zip(decoded) {
            running.add(m, m.load(w), m.load(d));
        }
        if !last_values.is_empty() {
            // Past the end there are zeros, which add nothing.
            let (mut w, mut d) = ([0.0; LANES], [0.0; LANES]);
            w[..last_values.len()].copy_from_slice(last_values);
            d[..last_decoded.len()].copy_from_slice(last_decoded);
            running.add(m, m.load(&w), m.load(&d));
        }
        running.end(m, limit)
    }

    /// Of the bytes of bfloat16 weights and of their nibbles: the same terms, in another order.
    #[inline(always)]
    pub(super) fn of_pairs<M: Machine>(
        m: M,
        weights: &[u8],
        nibbles: &[u8],
        table: M::Lanes,
        limit: f32,
    ) -> Self {
        let mut running = Running::new(m);
        for (weights, nibbles) in weights.as_chunks().0.iter().zip(nibbles.as_chunks().0) {
            let [even, odd] = m.bf16_pairs(weights);
            let [low, high] = m.nibble_pairs(table, nibbles);
            running.add(m, even, low);
            running.add(m, odd, high);
        }
        running.end(m, limit)
    }
}

/// Sums of a block while it is walked through.
#[derive(Clone, Copy)]
struct Running<M: Machine> {
    signal: M::Lanes,
    noise: M::Lanes,
    cross: M::Lanes,
    most: M::Lanes,
}

impl<M: Machine> Running<M> {
    #[inline(always)]
    fn new(m: M) -> Self {
        let zero = m.splat(0.0);
        Self { signal: zero, noise: zero, cross: zero, most: zero }
    }

    #[inline(always)]
    fn add(&mut self, m: M, w: M::Lanes, d: M::Lanes) {
        let e = m.sub(w, d);
        self.signal = m.fused(w, w, self.signal);
        self.noise = m.fused(e, e, self.noise);
        self.cross = m.fused(w, e, self.cross);
        self.most = m.max_abs(self.most, e);
    }

    #[inline(always)]
    fn end(self, m: M, limit: f32) -> Sums {
        let (signal, noise) = m.sum_two(self.signal, self.noise);
        Sums { signal, noise, cross: m.sum(self.cross), exceeds: m.exceeds(self.most, limit) }
    }
}

/// The energies in f64, for weights whose squares f32 cannot hold.
#[cold]
pub(super) fn wide_energies(values: &[f32], decoded: &[f32]) -> Energies {
    let mut sums = [[0f64; LANES]; 3];
    for (values, decoded) in values.chunks(LANES).zip(decoded.chunks(LANES)) {
        for (i, (&w, &d)) in values.iter().zip(decoded).enumerate() {
            let (w, e) = (f64::from(w), f64::from(w - d));
            sums[0][i] += w * w;
            sums[1][i] += e * e;
            sums[2][i] += w * e;
        }
    }
    sums.map(fold)
}
