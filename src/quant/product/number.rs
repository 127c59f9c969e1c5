//! Numbers that matrices are made of.

use std::cell::RefCell;

use crate::quant::simd::machine::{DOUBLES, LANES, Machine};

/// Numbers that matrices are made of: F32 or F64.
pub(crate) trait Number: Copy + Send + Sync {
    /// 0 and 1.
    const UNITS: [Self; 2];
    /// How many are summed side by side.
    const BESIDE: usize;
    /// So many.
    type Lanes<M: Machine>: Copy;

    /// The first ones of a slice.
    fn load<M: Machine>(machine: M, from: &[Self]) -> Self::Lanes<M>;

    /// Into the first places of a slice.
    fn store<M: Machine>(machine: M, x: Self::Lanes<M>, to: &mut [Self]);

    /// The same in every lane.
    fn splat<M: Machine>(machine: M, x: Self) -> Self::Lanes<M>;

    /// a · b + c.
    fn mul_add<M: Machine>(
        machine: M,
        a: Self::Lanes<M>,
        b: Self::Lanes<M>,
        c: Self::Lanes<M>,
    ) -> Self::Lanes<M>;

    /// Copies R rows, at most sixteen, which are `step` apart, on their side: the numbers of a column come beside each other, those
    /// of two columns `to_step` apart. As many columns as fill registers are copied, and counted: none where it would gain nothing.
    /// Behind the last one, what is missing in its last register is overwritten.
    fn turn<M: Machine, const R: usize>(
        machine: M,
        from: (&[Self], usize),
        columns: usize,
        to: (&mut [Self], usize),
    ) -> usize;

    /// [`Number::turn`] of as many rows as fill a register.
    fn turn_lanes<M: Machine>(
        machine: M,
        from: (&[Self], usize),
        columns: usize,
        to: (&mut [Self], usize),
    ) -> usize;

    /// Does work with this thread's copies of both sides, whose memory it keeps.
    fn panels(work: impl FnOnce(&mut [Vec<Self>; 2]));
}

impl Number for f32 {
    const UNITS: [Self; 2] = [0.0, 1.0];
    const BESIDE: usize = LANES;
    type Lanes<M: Machine> = M::Lanes;

    #[inline(always)]
    fn load<M: Machine>(machine: M, from: &[Self]) -> M::Lanes {
        machine.load(from.first_chunk().unwrap_or(&[0.0; LANES]))
    }

    #[inline(always)]
    fn store<M: Machine>(machine: M, x: M::Lanes, to: &mut [Self]) {
        if let Some(to) = to.first_chunk_mut() {
            machine.store(x, to);
        }
    }

    #[inline(always)]
    fn splat<M: Machine>(machine: M, x: Self) -> M::Lanes {
        machine.splat(x)
    }

    #[inline(always)]
    fn mul_add<M: Machine>(machine: M, a: M::Lanes, b: M::Lanes, c: M::Lanes) -> M::Lanes {
        machine.mul_add(a, b, c)
    }

    #[inline(always)]
    fn turn<M: Machine, const R: usize>(
        machine: M,
        (from, step): (&[Self], usize),
        columns: usize,
        (to, to_step): (&mut [Self], usize),
    ) -> usize {
        if !M::ONE_PASS {
            return 0;
        }
        let whole = columns - columns % LANES;
        for column in (0..whole).step_by(LANES) {
            let mut rows = [machine.splat(0.0); LANES];
            for row in 0..R {
                rows[row] = Self::load(machine, &from[row * step + column..]);
            }
            let turned = machine.turn(rows);
            for place in 0..LANES {
                Self::store(machine, turned[place], &mut to[(column + place) * to_step..]);
            }
        }
        whole
    }

    #[inline(always)]
    fn turn_lanes<M: Machine>(
        machine: M,
        from: (&[Self], usize),
        columns: usize,
        to: (&mut [Self], usize),
    ) -> usize {
        Self::turn::<M, LANES>(machine, from, columns, to)
    }

    fn panels(work: impl FnOnce(&mut [Vec<Self>; 2])) {
        thread_local! {
            static PANELS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
        }
        PANELS.with_borrow_mut(work);
    }
}

impl Number for f64 {
    const UNITS: [Self; 2] = [0.0, 1.0];
    const BESIDE: usize = DOUBLES;
    type Lanes<M: Machine> = M::Doubles;

    #[inline(always)]
    fn load<M: Machine>(machine: M, from: &[Self]) -> M::Doubles {
        machine.load_doubles(from.first_chunk().unwrap_or(&[0.0; DOUBLES]))
    }

    #[inline(always)]
    fn store<M: Machine>(machine: M, x: M::Doubles, to: &mut [Self]) {
        if let Some(to) = to.first_chunk_mut() {
            machine.store_doubles(x, to);
        }
    }

    #[inline(always)]
    fn splat<M: Machine>(machine: M, x: Self) -> M::Doubles {
        machine.splat_double(x)
    }

    #[inline(always)]
    fn mul_add<M: Machine>(machine: M, a: M::Doubles, b: M::Doubles, c: M::Doubles) -> M::Doubles {
        machine.mul_add_doubles(a, b, c)
    }

    #[inline(always)]
    fn turn<M: Machine, const R: usize>(
        machine: M,
        (from, step): (&[Self], usize),
        columns: usize,
        (to, to_step): (&mut [Self], usize),
    ) -> usize {
        if !M::ONE_PASS {
            return 0;
        }
        let whole = columns - columns % DOUBLES;
        for column in (0..whole).step_by(DOUBLES) {
            let mut turned = [[machine.splat_double(0.0); DOUBLES]; 2];
            for first in (0..R).step_by(DOUBLES) {
                let mut rows = [machine.splat_double(0.0); DOUBLES];
                for row in first..R.min(first + DOUBLES) {
                    rows[row - first] = Self::load(machine, &from[row * step + column..]);
                }
                turned[first / DOUBLES] = machine.turn_doubles(rows);
            }
            for place in 0..DOUBLES {
                for first in (0..R).step_by(DOUBLES) {
                    let numbers = turned[first / DOUBLES][place];
                    Self::store(machine, numbers, &mut to[(column + place) * to_step + first..]);
                }
            }
        }
        whole
    }

    #[inline(always)]
    fn turn_lanes<M: Machine>(
        machine: M,
        from: (&[Self], usize),
        columns: usize,
        to: (&mut [Self], usize),
    ) -> usize {
        Self::turn::<M, DOUBLES>(machine, from, columns, to)
    }

    fn panels(work: impl FnOnce(&mut [Vec<Self>; 2])) {
        thread_local! {
            static PANELS: RefCell<[Vec<f64>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
        }
        PANELS.with_borrow_mut(work);
    }
}
