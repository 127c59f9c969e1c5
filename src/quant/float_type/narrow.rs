//! Values rounded to a type and stored, as plain bytes.

use super::FloatType;
use crate::quant::simd::machine::Machine;
use crate::quant::simd::{Isa, Job};

/// Values that are rounded at a time.
const STRETCH: usize = 256;

impl FloatType {
    /// Appends `values`, each rounded to this type, as little-endian bytes.
    pub fn narrow(self, values: &[f32], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + values.len() * self.bytes(), 0);
        Isa::detect().run(Narrow { to: self, values, out: &mut out[start..] });
    }
}

/// Values that are rounded to a type and stored, compiled for each instruction set.
struct Narrow<'a> {
    to: FloatType,
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Job for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let Self { to, values, out } = self;
        let mut rounded = [0.0; STRETCH];
        for (values, out) in values.chunks(STRETCH).zip(out.chunks_mut(STRETCH * to.bytes())) {
            let rounded = &mut rounded[..values.len()];
            rounded.copy_from_slice(values);
            to.round_all(rounded);
            to.narrow_all(rounded, out);
        }
    }
}
