//! Codes that were chosen before the weights are read again: those of rounding that looks at a whole matrix.

use std::ops::Range;
use std::sync::Arc;

use super::Solver;
use crate::quant::reference::Unpacked;
use crate::quant::{
    BadWeight, Distortion, Importance, Quantized, QuantizedView, Quantizer, Scheme, Scratch, TensorParams,
};

/// Stores the codes, scales and zero points of one matrix, and measures them.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Knows how the matrix is measured.
    quantizer: Quantizer,
    /// The first row that `matrix` has.
    first: usize,
    matrix: Arc<Unpacked>,
}

impl Chosen {
    /// For the matrix that `matrix` was chosen for, which is stored as those of `quantizer`.
    ///
    /// # Panics
    /// If there is one scale for the whole tensor: rounding does not choose it.
    #[must_use]
    pub fn new(quantizer: Quantizer, matrix: Arc<Unpacked>) -> Self {
        Self::of_rows(quantizer, 0, matrix)
    }

    /// For some rows of such a matrix, from `first` on: those of `matrix`. Other rows are not solved.
    ///
    /// # Panics
    /// As [`Chosen::new`].
    #[must_use]
    pub fn of_rows(quantizer: Quantizer, first: usize, matrix: Arc<Unpacked>) -> Self {
        assert!(!quantizer.scheme().is_per_tensor(), "rows are rounded one by one");
        Self { quantizer, first, matrix }
    }

    /// The same of some rows.
    fn rows(&self, rows: &Range<usize>) -> Unpacked {
        let rows = rows.start - self.first..rows.end - self.first;
        let (columns, scheme) = (self.quantizer.cols, &self.quantizer.scheme);
        let groups = scheme.groups_per_row(columns);
        Unpacked {
            codes: self.matrix.codes[rows.start * columns..rows.end * columns].to_vec(),
            scales: self.matrix.scales[rows.start * groups..rows.end * groups].to_vec(),
            zero_points: self.matrix.zero_points[rows.start * groups..rows.end * groups].to_vec(),
        }
    }
}

impl Solver for Chosen {
    fn scheme(&self) -> &Scheme {
        self.quantizer.scheme()
    }

    fn weighted(&self, importance: Importance) -> Box<dyn Solver> {
        let quantizer = self.quantizer.clone().weighted(importance);
        Box::new(Self { quantizer, first: self.first, matrix: Arc::clone(&self.matrix) })
    }

    fn solve(
        &self,
        _: Option<&TensorParams>,
        _: &[u8],
        rows: Range<usize>,
        out: &mut Quantized,
        _: &mut Scratch,
    ) -> Result<(), BadWeight> {
        let (scheme, columns, matrix) = (&self.quantizer.scheme, self.quantizer.cols, self.rows(&rows));
        out.codes = matrix.code_bytes(scheme, columns);
        out.scales = matrix.scale_bytes(scheme);
        out.zero_points = matrix.zero_point_bytes(scheme, columns);
        Ok(())
    }

    fn measure(
        &self,
        tile: &[u8],
        quantized: QuantizedView<'_>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Distortion {
        self.quantizer.measure(tile, quantized, rows, scratch)
    }

    fn faint_signal(&self, tile: &[u8], quantized: QuantizedView<'_>, rows: usize) -> f64 {
        self.quantizer.faint_signal(tile, quantized, rows)
    }

    fn dequantize(
        &self,
        quantized: QuantizedView<'_>,
        rows: usize,
        out: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) {
        self.quantizer.dequantize(quantized, rows, out, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::reference::Reference;
    use crate::quant::test_weights::heavy;
    use crate::quant::{Bits, FloatType, Granularity, Isa, Observer, Storage};

    /// Codes of the nearest solver, chosen before: the same bytes, tile by tile.
    #[test]
    fn tiles_have_the_bytes_of_their_rows() {
        let (rows, columns) = (29, 40);
        let mut bytes = Vec::new();
        FloatType::Bf16.narrow(&heavy(rows * columns, 8), &mut bytes);
        for bits in [Bits::Four, Bits::Eight] {
            for (symmetric, storage) in
                [(true, Storage::Packed), (false, Storage::Packed), (true, Storage::Plain)]
            {
                for granularity in [Granularity::Group(8), Granularity::Channel] {
                    let scheme =
                        Scheme { bits, symmetric, granularity, scale_type: FloatType::Bf16, storage };
                    let source = FloatType::Bf16;
                    let slow =
                        Reference { scheme, observer: Observer::Minmax, source, quotient: FloatType::F32 };
                    let matrix = Arc::new(slow.quantize(&source.widen(&bytes), columns, None));
                    let nearest = Quantizer::new(scheme, Observer::Minmax, source, columns, Isa::detect());
                    let chosen = Chosen::new(nearest.clone(), matrix);
                    let mut scratch = Scratch::default();
                    for range in [0..8, 8..24, 24..29] {
                        let tile = &bytes[range.start * columns * 2..range.end * columns * 2];
                        let [mut expected, mut out] = [Quantized::default(), Quantized::default()];
                        let measured = nearest.quantize_and_measure(
                            None,
                            tile,
                            range.len(),
                            &mut expected,
                            &mut scratch,
                        );
                        let found =
                            chosen.solve_and_measure(None, tile, range.clone(), &mut out, &mut scratch);
                        assert_eq!(out, expected, "{scheme}");
                        assert_eq!(found, measured);
                        let (first, rows) = (range.start, Arc::new(chosen.rows(&range)));
                        let alone = Chosen::of_rows(nearest.clone(), first, rows);
                        alone.solve(None, tile, range, &mut out, &mut scratch).unwrap();
                        assert_eq!(out, expected, "{scheme}");
                    }
                }
            }
        }
    }

    /// Groups whose scale and codes have the other sign stand for the same weights.
    #[test]
    fn negative_scales_are_measured_as_positive_ones() {
        let (rows, columns) = (37, 128);
        let mut bytes = Vec::new();
        FloatType::Bf16.narrow(&heavy(rows * columns, 3), &mut bytes);
        for (bits, storage) in
            [(Bits::Four, Storage::Packed), (Bits::Eight, Storage::Packed), (Bits::Eight, Storage::Plain)]
        {
            for granularity in [Granularity::Group(32), Granularity::Channel] {
                let scheme =
                    Scheme { bits, symmetric: true, granularity, scale_type: FloatType::Bf16, storage };
                let source = FloatType::Bf16;
                let slow = Reference { scheme, observer: Observer::Minmax, source, quotient: FloatType::F32 };
                let mut plain = slow.quantize(&source.widen(&bytes), columns, None);
                // No code that has no counterpart, and no weight that is clipped on one side only.
                plain.scales.iter_mut().for_each(|scale| *scale = FloatType::Bf16.round(*scale * 1.25));
                for (group, codes) in plain.codes.chunks_mut(scheme.group_cols(columns)).enumerate() {
                    let weights = &source.widen(&bytes)[group * codes.len()..];
                    for (code, weight) in codes.iter_mut().zip(weights) {
                        *code = (weight / plain.scales[group]).round_ties_even() as i8;
                    }
                }
                let mut turned = plain.clone();
                for (group, codes) in turned.codes.chunks_mut(scheme.group_cols(columns)).enumerate() {
                    if group % 3 != 1 {
                        codes.iter_mut().for_each(|code| *code = -*code);
                        turned.scales[group] = -turned.scales[group];
                    }
                }
                assert_eq!(plain.values(&scheme, columns), turned.values(&scheme, columns));
                for isa in Isa::available() {
                    let nearest = Quantizer::new(scheme, Observer::Minmax, source, columns, isa);
                    let mut scratch = Scratch::default();
                    let measured = [&plain, &turned].map(|matrix| {
                        let chosen = Chosen::new(nearest.clone(), Arc::new(matrix.clone()));
                        let mut out = Quantized::default();
                        let found = chosen.solve_and_measure(None, &bytes, 0..rows, &mut out, &mut scratch);
                        (found.expect("codes"), chosen.faint_signal(&bytes, out.view(), rows))
                    });
                    assert_eq!(measured[0], measured[1], "{scheme}, {isa:?}");
                }
            }
        }
    }
}
