//! Rounding to floats of eight bits (E4M3): each weight to the nearest one, with a scale for each row or block.
//!
//! A scale is max|w| / 448, rounded to its type; a code is w / scale in F32, limited to ±448 and rounded once.
//! llm-compressor rounds the quotient to the weights' type first, so that 3 % of its codes are the second nearest.

use std::ops::Range;

use super::Solver;
use super::compare::Blocks;
use crate::quant::small_floats::{E4M3, E4M3_MAX, nearest_e4m3};
use crate::quant::{
    BadValue, BadWeight, Distortion, FloatType, Granularity, Importance, Quantized, QuantizedView, Scheme,
    Scratch, TensorParams,
};

/// Stores matrices of one width as E4M3.
#[derive(Debug, Clone)]
pub struct Float8 {
    scheme: Scheme,
    source: FloatType,
    columns: usize,
    importance: Option<Importance>,
}

impl Float8 {
    /// For matrices of `columns` columns whose weights are stored as `source`.
    ///
    /// # Panics
    /// If one scale holds for a tensor, or for a group: a plan does not ask for it.
    #[must_use]
    pub fn new(scheme: Scheme, source: FloatType, columns: usize) -> Self {
        let is_known = matches!(scheme.granularity, Granularity::Channel | Granularity::Block(_));
        assert!(is_known, "floats have a scale for each row or block");
        Self { scheme, source, columns, importance: None }
    }

    /// Rows and columns that share a scale.
    fn block(&self) -> [usize; 2] {
        match self.scheme.granularity {
            Granularity::Block(size) => [size, size],
            _ => [1, self.columns.max(1)],
        }
    }

    /// Scales of a row.
    fn groups(&self) -> usize {
        self.scheme.groups_per_row(self.columns)
    }

    /// The scales of a tile, block by block.
    fn scales(&self, weights: &[f32]) -> Result<Vec<f32>, BadWeight> {
        let ([height, width], groups) = (self.block(), self.groups());
        let rows = weights.len() / self.columns.max(1);
        // As bits, whose order is that of the magnitudes.
        let mut most = vec![0_u32; rows.div_ceil(height) * groups];
        for (row, line) in weights.chunks(self.columns.max(1)).enumerate() {
            let of_row = &mut most[row / height * groups..];
            for (most, part) in of_row.iter_mut().zip(line.chunks(width)) {
                *most = part.iter().fold(*most, |most, weight| most.max(weight.abs().to_bits()));
            }
        }
        if most.iter().any(|most| !f32::from_bits(*most).is_finite()) {
            return Err(self.first_bad(weights));
        }
        let scale_type = self.scheme.scale_type;
        let scales = most.iter().enumerate().map(|(at, most)| {
            let scale = scale_type.round(f32::from_bits(*most) / E4M3_MAX);
            match scale {
                0.0 => Ok(scale_type.epsilon()),
                _ if scale.is_finite() => Ok(scale),
                _ => Err(self.largest(weights, at, *most)),
            }
        });
        scales.collect()
    }

    /// The first weight that is not finite.
    fn first_bad(&self, weights: &[f32]) -> BadWeight {
        let at = weights.iter().position(|weight| !weight.is_finite()).unwrap_or_default();
        let is_nan = weights.get(at).is_some_and(|weight| weight.is_nan());
        let what = if is_nan { BadValue::NotANumber } else { BadValue::Infinite };
        BadWeight { row: at / self.columns.max(1), col: at % self.columns.max(1), what }
    }

    /// The largest weight of a block, whose scale overflows.
    fn largest(&self, weights: &[f32], block: usize, most: u32) -> BadWeight {
        let ([height, width], groups) = (self.block(), self.groups());
        let is_it = |at: &usize| {
            let (row, column) = (at / self.columns, at % self.columns);
            row / height * groups + column / width == block && weights[*at].abs().to_bits() == most
        };
        let at = (0..weights.len()).find(is_it).unwrap_or_default();
        BadWeight { row: at / self.columns, col: at % self.columns, what: BadValue::ScaleOverflow }
    }

    /// Each row of a tile with its codes, and the scales of the blocks that it crosses.
    fn rows<'a>(
        &self,
        codes: &'a [u8],
        scales: &'a [f32],
    ) -> impl Iterator<Item = (&'a [u8], &'a [f32])> + use<'a> {
        let ([height, _], groups) = (self.block(), self.groups());
        let of_row = move |row: usize| &scales[row / height * groups..][..groups];
        codes.chunks(self.columns.max(1)).enumerate().map(move |(row, codes)| (codes, of_row(row)))
    }
}

impl Float8 {
    /// The weights that codes and scales mean, rounded to the type of the scales.
    fn meant(&self, quantized: QuantizedView<'_>) -> Vec<f32> {
        let scale_type = self.scheme.scale_type;
        let scales = scale_type.widen(quantized.scales);
        let [_, width] = self.block();
        let mut meant = Vec::with_capacity(quantized.codes.len());
        for (codes, scales) in self.rows(quantized.codes, &scales) {
            for (codes, scale) in codes.chunks(width).zip(scales) {
                meant.extend(codes.iter().map(|code| scale_type.round(E4M3[usize::from(*code)] * scale)));
            }
        }
        meant
    }
}

impl Solver for Float8 {
    fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    fn weighted(&self, importance: Importance) -> Box<dyn Solver> {
        Box::new(Self { importance: Some(importance), ..self.clone() })
    }

    fn solve(
        &self,
        _: Option<&TensorParams>,
        tile: &[u8],
        _: Range<usize>,
        out: &mut Quantized,
        _: &mut Scratch,
    ) -> Result<(), BadWeight> {
        let weights = self.source.widen(tile);
        let scales = self.scales(&weights)?;
        let ([height, width], groups) = (self.block(), self.groups());
        out.zero_points.clear();
        out.codes.clear();
        out.codes.reserve(weights.len());
        for (row, line) in weights.chunks(self.columns.max(1)).enumerate() {
            for (part, scale) in line.chunks(width).zip(&scales[row / height * groups..]) {
                out.codes.extend(part.iter().map(|weight| nearest_e4m3(weight / scale)));
            }
        }
        out.scales.clear();
        self.scheme.scale_type.narrow(&scales, &mut out.scales);
        Ok(())
    }

    fn measure(&self, tile: &[u8], quantized: QuantizedView<'_>, _: usize, _: &mut Scratch) -> Distortion {
        let weights = self.source.widen(tile);
        let blocks = Blocks { columns: self.columns, block: self.block() };
        blocks.distortion(&weights, &self.meant(quantized), self.importance.as_ref())
    }

    fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, _: usize) -> f64 {
        let scale_type = self.scheme.scale_type;
        let scales = scale_type.widen(quantized.scales);
        // No code may be another than zero if a scale of zero was replaced by epsilon.
        let is_faint = |scale: f32, codes: &[u8]| {
            scale < scale_type.faint_below()
                || scale == scale_type.epsilon() && codes.iter().all(|code| code & 0x7f == 0)
        };
        let [_, width] = self.block();
        let weights = self.source.widen(tile);
        let mut lost = 0.0;
        let lines = weights.chunks(self.columns.max(1)).zip(self.rows(quantized.codes, &scales));
        for (line, (codes, scales)) in lines {
            for ((part, codes), &scale) in line.chunks(width).zip(codes.chunks(width)).zip(scales) {
                if is_faint(scale, codes) {
                    lost += part.iter().map(|weight| f64::from(*weight) * f64::from(*weight)).sum::<f64>();
                }
            }
        }
        lost
    }

    fn dequantize(&self, quantized: QuantizedView<'_>, _: usize, out: &mut Vec<u8>, _: &mut Scratch) {
        out.clear();
        self.scheme.scale_type.narrow(&self.meant(quantized), out);
    }
}

#[cfg(test)]
mod tests;
