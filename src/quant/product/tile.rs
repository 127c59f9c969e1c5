//! A tile of a product, summed in registers.

use super::number::Number;
use crate::quant::simd::machine::{LANES, Machine};

/// A tile of a product: that of two panels.
pub(super) struct Tile<'a, T> {
    pub(super) left: &'a [T],
    pub(super) right: &'a [T],
    pub(super) to: &'a mut [T],
    pub(super) to_step: usize,
    pub(super) factor: T,
    pub(super) adds: bool,
    /// What there is of it.
    pub(super) size: (usize, usize),
}

impl<T: Number> Tile<'_, T> {
    /// The first H rows of panels of C.
    #[inline(always)]
    pub(super) fn run<M: Machine, const C: usize, const H: usize, const V: usize>(self, machine: M) {
        let zero = T::splat(machine, T::UNITS[0]);
        let mut sums = [[zero; V]; H];
        let (left, _) = self.left.as_chunks::<C>();
        for (left, right) in left.iter().zip(self.right.chunks_exact(V * T::BESIDE)) {
            let mut lanes = [zero; V];
            for v in 0..V {
                lanes[v] = T::load(machine, &right[v * T::BESIDE..]);
            }
            for h in 0..H {
                let x = T::splat(machine, left[h]);
                for v in 0..V {
                    sums[h][v] = T::mul_add(machine, x, lanes[v], sums[h][v]);
                }
            }
        }
        let factor = T::splat(machine, self.factor);
        let (height, width) = self.size;
        for (h, sums) in sums.iter().enumerate() {
            if h == height {
                break;
            }
            let to = &mut self.to[h * self.to_step..][..width];
            if width == V * T::BESIDE {
                for v in 0..V {
                    let to = &mut to[v * T::BESIDE..];
                    let old = if self.adds { T::load(machine, to) } else { zero };
                    T::store(machine, T::mul_add(machine, factor, sums[v], old), to);
                }
            } else {
                for v in 0..V {
                    let to = &mut to[width.min(v * T::BESIDE)..width.min((v + 1) * T::BESIDE)];
                    let mut numbers = [T::UNITS[0]; LANES];
                    if self.adds {
                        numbers[..to.len()].copy_from_slice(to);
                    }
                    let old = T::load(machine, &numbers);
                    T::store(machine, T::mul_add(machine, factor, sums[v], old), &mut numbers);
                    to.copy_from_slice(&numbers[..to.len()]);
                }
            }
        }
    }
}
