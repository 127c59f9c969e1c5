//! SQNR that a scheme reaches on Gaussian weights, for judging a tensor relative to its scheme.
//!
//! The tables were simulated with this module's own kernels: Gaussian weights of standard deviation 1, 2^23 to 2^27
//! for each entry, quantized with one scale for every n of them, Σw² over Σe² of all. They agree with the values that
//! other projects' documents give (int4: 19.12 dB at n = 128 and 20.47 at 32, with `mse` 19.87 and 21.13; int8: 41.3
//! at 4096). Between entries the ratio is interpolated linearly in log n. Beyond the last entry it is extrapolated. A
//! tensor of more than a few thousand Gaussian weights comes within 0.1 dB. BF16 has its own table for int8, because
//! rounding scales and dequantized weights to 8 significant bits is not negligible there.

use super::{Bits, FloatType, Observer, Scheme, Storage};

/// Entries per row: n = 2^3 … 2^16, then 2^20 and 2^24.
const COLUMNS: usize = 16;

/// log2 of the n of each entry.
const LOG2_N: [f64; COLUMNS] =
    [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 20.0, 24.0];

/// Signal to noise in dB, int4, any scale type.
const INT4: [[f64; COLUMNS]; 6] = [
    // symmetric, minmax
    [
        21.94, 21.20, 20.46, 19.76, 19.12, 18.52, 18.00, 17.50, //
        17.06, 16.68, 16.28, 15.94, 15.59, 15.32, 14.24, 13.30,
    ],
    // symmetric, mse
    [
        23.02, 22.00, 21.13, 20.41, 19.87, 19.49, 19.24, 18.97, //
        18.67, 18.39, 18.04, 17.73, 17.38, 17.14, 16.07, 15.13,
    ],
    // asymmetric, minmax
    [
        24.88, 23.16, 21.86, 20.82, 19.95, 19.23, 18.59, 18.03, //
        17.54, 17.10, 16.67, 16.30, 15.93, 15.64, 14.52, 13.49,
    ],
    // asymmetric, mse
    [
        25.14, 23.42, 22.15, 21.17, 20.43, 19.89, 19.55, 19.30, //
        19.04, 18.75, 18.40, 18.07, 17.72, 17.45, 16.35, 15.32,
    ],
    // signed scales, minmax
    [
        23.84, 22.40, 21.32, 20.46, 19.73, 19.11, 18.57, 18.07, //
        17.62, 17.23, 16.84, 16.51, 16.15, 15.85, 14.81, 14.00,
    ],
    // signed scales, mse
    [
        24.44, 22.91, 21.77, 20.92, 20.27, 19.78, 19.42, 19.08, //
        18.74, 18.41, 18.05, 17.75, 17.40, 17.11, 16.08, 15.27,
    ],
];

/// The same of int8, scales F32 or F16.
const INT8: [[f64; COLUMNS]; 6] = [
    // symmetric, minmax
    [
        46.55, 45.81, 45.07, 44.37, 43.73, 43.13, 42.60, 42.11, //
        41.67, 41.29, 40.89, 40.55, 40.20, 39.93, 38.85, 37.91,
    ],
    // symmetric, mse
    [
        46.57, 45.87, 45.15, 44.45, 43.80, 43.20, 42.67, 42.18, //
        41.74, 41.39, 41.02, 40.77, 40.52, 40.43, 40.23, 39.72,
    ],
    // asymmetric, minmax
    [
        49.49, 47.77, 46.47, 45.43, 44.56, 43.83, 43.20, 42.64, //
        42.14, 41.71, 41.28, 40.91, 40.54, 40.25, 39.13, 38.10,
    ],
    // asymmetric, mse
    [
        49.49, 47.77, 46.47, 45.42, 44.56, 43.83, 43.21, 42.66, //
        42.18, 41.76, 41.37, 41.04, 40.74, 40.56, 40.25, 39.88,
    ],
    // signed scales, minmax
    [
        48.11, 46.63, 45.51, 44.61, 43.86, 43.21, 42.66, 42.16, //
        41.71, 41.32, 40.92, 40.59, 40.23, 39.93, 38.89, 38.08,
    ],
    // signed scales, mse
    [
        46.59, 45.92, 45.23, 44.54, 43.88, 43.27, 42.72, 42.22, //
        41.78, 41.41, 41.06, 40.81, 40.56, 40.42, 40.27, 39.85,
    ],
];

/// The same of int8, scales and weights BF16.
const INT8_BF16: [[f64; COLUMNS]; 6] = [
    // symmetric, minmax
    [
        46.72, 45.76, 44.94, 44.20, 43.54, 42.92, 42.37, 41.86, //
        41.40, 41.02, 40.63, 40.32, 40.00, 39.76, 38.79, 37.85,
    ],
    // symmetric, mse
    [
        46.91, 45.91, 45.06, 44.29, 43.62, 43.00, 42.45, 41.94, //
        41.48, 41.13, 40.77, 40.53, 40.30, 40.21, 40.04, 39.59,
    ],
    // asymmetric, minmax
    [
        48.56, 46.99, 45.85, 44.99, 44.26, 43.60, 42.98, 42.40, //
        41.88, 41.43, 41.00, 40.64, 40.30, 40.04, 39.06, 38.02,
    ],
    // asymmetric, mse
    [
        48.57, 46.99, 45.85, 44.99, 44.26, 43.60, 43.01, 42.44, //
        41.93, 41.49, 41.08, 40.76, 40.49, 40.33, 40.05, 39.73,
    ],
    // signed scales, minmax
    [
        47.57, 46.15, 45.13, 44.33, 43.64, 43.01, 42.45, 41.92, //
        41.45, 41.05, 40.68, 40.37, 40.05, 39.79, 38.85, 38.03,
    ],
    // signed scales, mse
    [
        47.10, 46.07, 45.17, 44.39, 43.69, 43.07, 42.51, 41.98, //
        41.52, 41.15, 40.81, 40.56, 40.33, 40.21, 40.06, 39.71,
    ],
];

/// The same of E4M3. The spaces between floats grow with the weights, so it hardly depends on n.
const FLOAT8: f64 = 31.5;

/// The same of NVFP4, in groups of 16.
const NVFP4: f64 = 20.43;

/// The same of MXFP4, in groups of 32.
const MXFP4: f64 = 19.05;

impl Scheme {
    /// The SQNR in dB that this scheme reaches on Gaussian weights with rows of `cols` columns. With one scale per
    /// tensor, `cols` is the number of all its weights. For `mse` it is the value of the default search. None for
    /// `imatrix-mse`, whose result depends on the calibration statistics, for `percentile`, whose result depends on the
    /// percentage, and if no weight shares a scale with another.
    #[must_use]
    pub fn expected_sqnr(&self, observer: &Observer, cols: usize) -> Option<f64> {
        match self.storage {
            Storage::Float8 => return Some(FLOAT8),
            Storage::Mxfp4 => return Some(MXFP4),
            Storage::Nvfp4 => return Some(NVFP4),
            Storage::Packed | Storage::Plain => {}
        }
        let mse = match observer {
            Observer::Minmax | Observer::SignedMinmax => 0,
            // `imatrix-mse`.
            Observer::Mse(mse) if mse.last => return None,
            Observer::Mse(_) => 1,
            Observer::Percentile(_) => return None,
        };
        let table = match (self.bits, self.scale_type) {
            (Bits::Four, _) => &INT4,
            (Bits::Eight, FloatType::F32 | FloatType::F16) => &INT8,
            (Bits::Eight, FloatType::Bf16) => &INT8_BF16,
        };
        let of_scheme = match self.symmetric {
            true if observer.turns(self) => 4,
            true => 0,
            false => 2,
        };
        let row = &table[of_scheme + mse];
        let sharing = self.group_cols(cols);
        if sharing < 2 {
            return None;
        }
        let x = (sharing as f64).log2();
        let right = LOG2_N.iter().position(|&entry| entry >= x).unwrap_or(COLUMNS - 1).max(1);
        let (x0, x1) = (LOG2_N[right - 1], LOG2_N[right]);
        Some(row[right - 1] + (row[right] - row[right - 1]) * (x - x0) / (x1 - x0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Granularity, Isa, Mse, Quantized, Quantizer, Scratch, Storage};
    use super::*;
    use crate::quant::test_weights::gaussian;

    fn scheme(bits: Bits, symmetric: bool, granularity: Granularity, scale_type: FloatType) -> Scheme {
        Scheme { bits, symmetric, granularity, scale_type, storage: Storage::Packed }
    }

    fn expected(scheme: Scheme, observer: Observer, cols: usize) -> f64 {
        scheme.expected_sqnr(&observer, cols).unwrap_or(f64::NAN)
    }

    #[test]
    fn published_values_are_met() {
        let group = |size| scheme(Bits::Four, true, Granularity::Group(size), FloatType::Bf16);
        let (minmax, mse) = (Observer::Minmax, Observer::Mse(Mse::default()));
        for (size, observer, want) in [
            (128, minmax, 19.12),
            (64, minmax, 19.77),
            (32, minmax, 20.47),
            (128, mse, 19.87),
            (32, mse, 21.13),
            (128, Observer::SignedMinmax, 19.73),
        ] {
            assert!((expected(group(size), observer, 4096) - want).abs() < 0.05);
        }
        let asymmetric = scheme(Bits::Four, false, Granularity::Group(128), FloatType::F32);
        assert!((expected(asymmetric, minmax, 4096) - 19.96).abs() < 0.05);
        let channel = scheme(Bits::Eight, true, Granularity::Channel, FloatType::F32);
        for (cols, want) in
            [(2048, 41.7), (4096, 41.3), (5120, 41.1), (8192, 40.9), (11008, 40.7), (28672, 40.3)]
        {
            assert!((expected(channel, minmax, cols) - want).abs() < 0.1, "{cols}");
        }
        let tensor = scheme(Bits::Eight, true, Granularity::Tensor, FloatType::F32);
        assert!((expected(tensor, minmax, 1 << 30) - 36.5).abs() < 0.5, "continued beyond the table");
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let channel = scheme(Bits::Eight, true, Granularity::Channel, FloatType::F32);
        assert_eq!(channel.expected_sqnr(&Observer::Percentile(99.9), 4096), None);
        assert_eq!(channel.expected_sqnr(&Observer::Mse(Mse::imatrix()), 4096), None);
        assert_eq!(channel.expected_sqnr(&Observer::Minmax, 1), None);
        assert_eq!(channel.expected_sqnr(&Observer::Minmax, 0), None);
    }

    #[test]
    fn gaussian_weights_reach_what_is_expected() {
        let weights = gaussian(1 << 17, 3);
        for source in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let mut bytes = Vec::new();
            source.narrow(&weights, &mut bytes);
            for bits in [Bits::Four, Bits::Eight] {
                for symmetric in [true, false] {
                    for (granularity, cols) in [
                        (Granularity::Group(64), 512),
                        (Granularity::Group(96), 384),
                        (Granularity::Channel, 1024),
                    ] {
                        let mse = |signed| Observer::Mse(Mse { signed, ..Mse::default() });
                        for observer in [Observer::Minmax, Observer::SignedMinmax, mse(false), mse(true)] {
                            let scheme = scheme(bits, symmetric, granularity, source);
                            let quantizer = Quantizer::new(scheme, observer, source, cols, Isa::detect());
                            let rows = bytes.len() / quantizer.row_bytes();
                            let tile = &bytes[..rows * quantizer.row_bytes()];
                            let (mut out, mut scratch) = (Quantized::default(), Scratch::default());
                            assert_eq!(quantizer.quantize(None, tile, rows, &mut out, &mut scratch), Ok(()));
                            let found = quantizer.measure(tile, out.view(), rows, &mut scratch).sqnr_db();
                            let gap = expected(scheme, observer, cols) - found.unwrap_or(f64::NAN);
                            // A hundred rows of 1024 vary by this much; groups by far less.
                            let limit = if granularity == Granularity::Channel { 0.3 } else { 0.1 };
                            assert!(gap.abs() < limit, "{gap} dB: {scheme:?} {observer:?} {source:?}");
                        }
                    }
                }
            }
        }
    }
}
