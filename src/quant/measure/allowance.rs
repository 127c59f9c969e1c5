//! Clipping limits: the point beyond which a weight counts as clipped.

use super::super::{Distortion, FloatType, Quantizer};
use super::reader::Reader;
use super::{BlockFacts, size_bits};

/// Scales from here on have the allowance of 1: they are normal in every type.
const USUAL: f32 = FloatType::F16.least_normal();

/// How far outside the grids of a quantizer's groups weights may lie.
pub(super) struct Allowances<'a> {
    quantizer: &'a Quantizer,
    /// The allowance of usual scales, the least there is.
    usual: f64,
    /// The ends of the grid, in steps.
    qmin: f32,
    qmax: f32,
}

impl<'a> Allowances<'a> {
    pub(super) fn new(quantizer: &'a Quantizer) -> Self {
        let bits = quantizer.scheme.bits;
        Self {
            quantizer,
            usual: quantizer.clip_allowance(1.0),
            qmin: bits.qmin() as f32,
            qmax: bits.qmax() as f32,
        }
    }

    /// Limits and flags of blocks, from their grids.
    ///
    /// If no error of a block is above its reach, no weight is clipped. A weight beyond the ends of the grid differs
    /// from every dequantized code by at least as much as from the dequantized end. A weight of the block may be the
    /// largest so far only if an end lies further out than any weight so far.
    #[inline(always)]
    pub(super) fn fill(
        &self,
        facts: &mut BlockFacts,
        count: usize,
        so_far: &Distortion,
        reader: &Reader<'_>,
    ) {
        let BlockFacts { scales, zeros, bottoms, tops, reaches, limits, flags } = facts;
        let (qmin, qmax) = (self.qmin, self.qmax);
        let grids = scales[..count].iter().zip(&zeros[..count]);
        for ((bottom, top), (&scale, &zero)) in bottoms.iter_mut().zip(tops.iter_mut()).zip(grids.clone()) {
            *bottom = (qmin - zero) * scale;
            *top = (qmax - zero) * scale;
        }
        let scale_type = self.quantizer.scheme.scale_type;
        scale_type.round_numbers(&mut bottoms[..count]);
        scale_type.round_numbers(&mut tops[..count]);
        // Unusual scales, for which the allowance is larger, are looked at more often than they need to be. Rounding here and
        // in the limits of weights is below 1e-4 of a step for numbers of 512 steps, and in proportion for others.
        let allowance = self.usual as f32 - 8e-7 * (qmax - qmin);
        let ends = bottoms.iter().zip(tops.iter());
        let most = so_far.max_abs_error;
        for (((reach, limit), (&bottom, &top)), (&scale, &zero)) in
            reaches.iter_mut().zip(limits).zip(ends.clone()).zip(grids.clone())
        {
            // With a negative scale, the lower end of the grid is the upper one of the weights.
            let turned = 1f32.copysign(scale);
            let below = turned * (bottom - (qmin - zero - allowance) * scale);
            let above = turned * ((qmax - zero + allowance) * scale - top);
            *reach = if below < above { below } else { above };
            *limit = if *reach < most { *reach } else { most };
        }
        let largest = so_far.max_abs_weight.to_bits();
        for ((flag, (&bottom, &top)), (&scale, _)) in flags.iter_mut().zip(ends).zip(grids) {
            let may_be_largest = (size_bits(bottom) > largest) | (size_bits(top) > largest);
            *flag = u32::from(may_be_largest | !reader.is_steady(scale));
        }
    }

    /// The least and the greatest weight of a group that are not clipped.
    #[inline(always)]
    pub(super) fn limits(&self, scale: f32, zero: f32) -> (f32, f32) {
        let size = scale.abs();
        let allowance = if size >= USUAL { self.usual } else { self.quantizer.clip_allowance(size) };
        let (zero, scale) = (f64::from(zero), f64::from(scale));
        let low = ((f64::from(self.qmin) - zero - allowance) * scale) as f32;
        let high = ((f64::from(self.qmax) - zero + allowance) * scale) as f32;
        if scale < 0.0 { (high, low) } else { (low, high) }
    }
}

impl Quantizer {
    /// How far outside its group's grid a weight may lie before it counts as clipped, in steps. This is half a step,
    /// which rounding to codes costs anyway, plus the distance by which rounding scale and zero point to their types
    /// can move the ends.
    fn clip_allowance(&self, scale: f32) -> f64 {
        let steps = f64::from(self.scheme.bits.steps());
        // Relative error of rounding a value about the scale to a type, which grows among subnormal values.
        let rounding = |float: FloatType| {
            let magnified = (float.least_normal() / scale).max(1.0);
            float.unit_roundoff() * f64::from(magnified)
        };
        let source = rounding(self.source);
        let stored =
            if self.source == self.scheme.scale_type { 0.0 } else { rounding(self.scheme.scale_type) };
        if self.scheme.symmetric {
            // One rounding of the scale, to each type, moves the end of half the steps.
            0.5 + steps / 2.0 * (source + stored) * 1.01 + 1e-6
        } else {
            // The range, the scale and the zero point's quotient are rounded; the zero point moves by half a step.
            0.5 + steps * (3.0 * source + stored) * 1.01 + 1e-6
        }
    }
}
