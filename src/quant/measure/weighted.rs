//! Energies in which each column counts by its importance: the nearest thing to the error of a layer's output that needs no
//! forward pass.

use super::super::isa::Job;
use super::super::machine::{LANES, Machine};
use super::super::search::fold;
use super::super::{Importance, Quantizer};
use super::{Reader, Segment};

/// Σ importance·w² and Σ importance·e² of a tile, in f64 over 16 lanes.
pub(super) struct WeighTile<'a> {
    pub(super) quantizer: &'a Quantizer,
    pub(super) reader: Reader<'a>,
    pub(super) tile: &'a [u8],
    pub(super) rows: usize,
    pub(super) importance: &'a Importance,
    pub(super) segment: &'a mut Segment,
}

impl Job for WeighTile<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> (f64, f64) {
        let Self { quantizer, reader, tile, rows, importance, segment } = self;
        let (source, cols) = (quantizer.source, reader.cols);
        let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
        for row in 0..rows {
            let mut start = 0;
            while start < cols {
                let end = reader.segment_end(start);
                let count = end - start;
                let weights =
                    &tile[(row * cols + start) * source.bytes()..(row * cols + end) * source.bytes()];
                source.widen_all(weights, &mut segment.values[..count]);
                reader.decode_segment(machine, row, start..end, segment);
                let values = segment.values[..count].chunks(LANES);
                let decoded = segment.decoded[..count].chunks(LANES);
                let columns = importance.columns()[start..end].chunks(LANES);
                for ((values, decoded), columns) in values.zip(decoded).zip(columns) {
                    for (i, ((&w, &d), &h)) in values.iter().zip(decoded).zip(columns).enumerate() {
                        let (w, e, h) = (f64::from(w), f64::from(w - d), f64::from(h));
                        signal[i] += h * (w * w);
                        noise[i] += h * (e * e);
                    }
                }
                start = end;
            }
        }
        (fold(signal), fold(noise))
    }
}
