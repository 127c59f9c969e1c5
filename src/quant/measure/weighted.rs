//! Energies weighted by the importance of each column: the best approximation of the error of a layer's output
//! without a forward pass.

use super::super::search::fold;
use super::super::{Importance, QuantizedView, Quantizer};
use super::{Reader, SEGMENT, Segment};
use crate::quant::simd::Job;
use crate::quant::simd::machine::{LANES, Machine};

/// Σ importance·w² and Σ importance·e² of a tile, in f64 over 16 lanes.
pub(super) struct WeighTile<'a> {
    pub(super) quantizer: &'a Quantizer,
    pub(super) reader: Reader<'a>,
    pub(super) quantized: QuantizedView<'a>,
    pub(super) tile: &'a [u8],
    pub(super) rows: usize,
    pub(super) importance: &'a Importance,
    pub(super) segment: &'a mut Segment,
}

impl Job for WeighTile<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> (f64, f64) {
        let Self { quantizer, reader, quantized, tile, rows, importance, segment } = self;
        let (source, cols) = (quantizer.source, reader.cols);
        let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
        let mut values = [0.0; SEGMENT];
        for row in 0..rows {
            let mut start = 0;
            while start < cols {
                let columns = reader.segment(start);
                let weights =
                    &tile[(row * cols + start) * source.bytes()..(row * cols + columns.end) * source.bytes()];
                let decoded = reader.decode(machine, quantized, (row, columns.clone()), segment);
                source.widen_all(weights, &mut values[..columns.len()]);
                start = columns.end;
                let (values, last) = values[..columns.len()].as_chunks::<LANES>();
                let (decoded, last_decoded) = decoded.as_chunks::<LANES>();
                let (columns, last_columns) = importance.columns()[columns].as_chunks::<LANES>();
                for ((values, decoded), columns) in values.iter().zip(decoded).zip(columns) {
                    for i in 0..LANES {
                        let terms = weigh(values[i], decoded[i], columns[i]);
                        signal[i] += terms.0;
                        noise[i] += terms.1;
                    }
                }
                for (i, ((&w, &d), &h)) in last.iter().zip(last_decoded).zip(last_columns).enumerate() {
                    let terms = weigh(w, d, h);
                    signal[i] += terms.0;
                    noise[i] += terms.1;
                }
            }
        }
        (fold(signal), fold(noise))
    }
}

/// The contribution of one weight to the signal and to the quantization error.
#[inline(always)]
fn weigh(w: f32, decoded: f32, importance: f32) -> (f64, f64) {
    let (e, w, h) = (f64::from(w - decoded), f64::from(w), f64::from(importance));
    (h * (w * w), h * (e * e))
}
