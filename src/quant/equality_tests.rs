//! Equality of the kernels and their slow twin, byte for byte, on every instruction set of the machine. Metrics are
//! compared with plain f64.
//!
//! Longer than 500 lines because it holds the kernels to their slow twin on all shapes, in one list of cases.

mod stored;
mod strategies;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::reference::{Reference, Unpacked};
use super::{
    BadValue, Bits, Distortion, FloatType, Granularity, Importance, Isa, Mse, Observer, Quantized, Quantizer,
    Scheme, Scratch, Storage, TensorParams,
};
use crate::quant::test_weights::gaussian;
use strategies::{case, float_type, importance, weights, wide_case};

/// Matrices of a property; a debug build is too slow for many, and an interpreter for more than a few.
const CASES: u32 = if cfg!(miri) {
    4
} else if cfg!(debug_assertions) {
    80
} else {
    400
};

/// One matrix and how it is quantized.
#[derive(Debug, Clone)]
struct Case {
    scheme: Scheme,
    observer: Observer,
    source: FloatType,
    rows: usize,
    cols: usize,
    importance: Option<Importance>,
    bytes: Vec<u8>,
    /// Rows per tile.
    tile: usize,
}

impl Case {
    fn weights(&self) -> Vec<f32> {
        self.source.widen(&self.bytes)
    }

    fn quantizer(&self, isa: Isa) -> Quantizer {
        let plain = Quantizer::new(self.scheme, self.observer, self.source, self.cols, isa);
        match &self.importance {
            Some(importance) => plain.weighted(importance.clone()),
            None => plain,
        }
    }

    fn twin(&self) -> (Reference, Unpacked) {
        let reference = Reference {
            scheme: self.scheme,
            observer: self.observer,
            source: self.source,
            quotient: FloatType::F32,
        };
        let importance = self.importance.as_ref().map(Importance::columns);
        let unpacked = reference.quantize(&self.weights(), self.cols, importance);
        (reference, unpacked)
    }

    fn tensor_params(&self, quantizer: &Quantizer) -> Result<Option<TensorParams>, BadValue> {
        if self.scheme.granularity != Granularity::Tensor {
            return Ok(None);
        }
        let mut survey = quantizer.begin_survey();
        for _ in 0..quantizer.survey_passes() {
            for tile in self.bytes.chunks(self.tile * quantizer.row_bytes()) {
                let rows = tile.len() / quantizer.row_bytes();
                survey.merge(quantizer.survey(&survey, tile, rows).map_err(|bad| bad.what)?);
            }
            quantizer.end_pass(&mut survey);
        }
        quantizer.tensor_params(&survey).map(Some)
    }

    /// All tiles, joined as a writer would lay them out, and their distortion.
    fn run(&self, isa: Isa, scratch: &mut Scratch) -> Result<(Quantized, Vec<u8>, Distortion), BadValue> {
        let quantizer = self.quantizer(isa);
        let tensor = self.tensor_params(&quantizer)?;
        let (mut all, mut dequantized, mut distortion) =
            (Quantized::default(), Vec::new(), Distortion::default());
        let (mut out, mut again, mut values) = (Quantized::default(), Quantized::default(), Vec::new());
        for (i, tile) in self.bytes.chunks(self.tile * quantizer.row_bytes()).enumerate() {
            let rows = tile.len() / quantizer.row_bytes();
            quantizer.quantize(tensor.as_ref(), tile, rows, &mut out, scratch).map_err(|bad| bad.what)?;
            let measured = quantizer.measure(tile, out.view(), rows, scratch);
            // As it is shipped for this machine, and in the one pass that is shipped for others.
            for run in [Quantizer::quantize_and_measure, Quantizer::quantize_and_measure_in_one_pass] {
                let together = run(&quantizer, tensor.as_ref(), tile, rows, &mut again, scratch);
                assert_eq!(
                    (&again, format!("{together:?}")),
                    (&out, format!("{:?}", Ok::<_, super::BadWeight>(measured)))
                );
            }
            distortion.merge(&measured, i * self.tile);
            quantizer.dequantize(out.view(), rows, &mut values, scratch);
            dequantized.extend_from_slice(&values);
            all.codes.extend_from_slice(&out.codes);
            if tensor.is_none() || i == 0 {
                all.scales.extend_from_slice(&out.scales);
                all.zero_points.extend_from_slice(&out.zero_points);
            }
        }
        Ok((all, dequantized, distortion))
    }
}

/// The distortion by its definition, in f64; the clipped weights are not counted here.
fn plain_distortion(
    weights: &[f32],
    dequantized: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Distortion {
    let mut all = Distortion { count: weights.len() as u64, ..Distortion::default() };
    for (i, (&w, &d)) in weights.iter().zip(dequantized).enumerate() {
        let e = w - d;
        all.signal += f64::from(w).powi(2);
        all.noise += f64::from(e).powi(2);
        all.cross += f64::from(w) * f64::from(e);
        if let Some(importance) = importance {
            all.weighted_signal += f64::from(importance[i % cols]) * f64::from(w).powi(2);
            all.weighted_noise += f64::from(importance[i % cols]) * f64::from(e).powi(2);
        }
        if e.abs() > all.max_abs_error {
            (all.max_abs_error, all.max_abs_error_at) = (e.abs(), (i / cols, i % cols));
        }
        all.max_abs_weight = all.max_abs_weight.max(d.abs());
    }
    all
}

fn close(a: f64, b: f64, size: f64) -> bool {
    a == b || (a - b).abs() <= 2e-6 * size || (a.is_nan() && b.is_nan())
}

/// Whether weighted energies are those of the definition: both are in f64 throughout, so the ratio is closer than 1e-6 dB.
fn weighs_alike(ours: &Distortion, plain: &Distortion) -> bool {
    let alike = |a: f64, b: f64| a == b || (a - b).abs() <= 1e-9 * b || (a.is_nan() && b.is_nan());
    alike(ours.weighted_signal, plain.weighted_signal) && alike(ours.weighted_noise, plain.weighted_noise)
}

/// Whether a search over a whole tensor, whose errors are summed tile by tile, took another candidate with the
/// same error.
fn ties_over_tiles(case: &Case, reference: &Reference, twin: &Unpacked, ours: &Quantized) -> bool {
    let (Observer::Mse(mse), Granularity::Tensor) = (case.observer, case.scheme.granularity) else {
        return false;
    };
    if ours.scales == twin.scale_bytes(&case.scheme)
        && ours.zero_points == twin.zero_point_bytes(&case.scheme, case.cols)
    {
        return false;
    }
    let error = |scale: f32, zero_point: i8| -> f64 {
        let level = |w: f32| f64::from(reference.code(w, scale, zero_point)) - f64::from(zero_point);
        let importance = |i: usize| {
            case.importance.as_ref().map_or(1.0, |found| f64::from(found.columns()[i % case.cols]))
        };
        let error = |w: f32| (level(w) * f64::from(scale) - f64::from(w)).abs().powf(mse.norm);
        case.weights().into_iter().enumerate().map(|(i, w)| importance(i) * error(w)).sum()
    };
    let zero_point = ours.zero_points.first().map_or(0, |&z| z as i8);
    let (ours, twins) = (
        error(case.scheme.scale_type.widen(&ours.scales)[0], zero_point),
        error(twin.scales[0], twin.zero_points[0]),
    );
    (ours - twins).abs() <= 1e-11 * twins
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let (reference, unpacked) = case.twin();
    let mut scratch = Scratch::default();
    let mut first: Option<Distortion> = None;
    for isa in Isa::available() {
        let run = case.run(isa, &mut scratch);
        if unpacked.scales.iter().any(|scale| !scale.is_finite()) {
            prop_assert_eq!(run.err(), Some(BadValue::ScaleOverflow));
            continue;
        }
        let (quantized, dequantized, distortion) = run.map_err(|bad| TestCaseError::fail(bad.to_string()))?;
        if ties_over_tiles(case, &reference, &unpacked, &quantized) {
            continue;
        }
        prop_assert!(quantized.scales == unpacked.scale_bytes(&case.scheme), "scales on {}", isa.name());
        let zero_points = unpacked.zero_point_bytes(&case.scheme, case.cols);
        prop_assert!(quantized.zero_points == zero_points, "zero points on {}", isa.name());
        let codes = unpacked.code_bytes(&case.scheme, case.cols);
        prop_assert!(quantized.codes == codes, "codes on {}", isa.name());
        prop_assert_eq!(codes.len(), case.scheme.codes_bytes(case.rows, case.cols));
        prop_assert_eq!(zero_points.len(), case.scheme.zero_points_bytes(case.rows, case.cols));

        let (weights, importance) = (case.weights(), case.importance.as_ref().map(Importance::columns));
        let size = weights.len() / unpacked.scales.len();
        let values: Vec<f32> = (0..weights.len())
            .map(|i| {
                reference.value(unpacked.codes[i], unpacked.scales[i / size], unpacked.zero_points[i / size])
            })
            .collect();
        let mut bytes = Vec::new();
        case.scheme.scale_type.narrow(&values, &mut bytes);
        prop_assert!(dequantized == bytes, "dequantized on {}", isa.name());

        // Metrics: the same bits everywhere, and close to the definition.
        let same = first.get_or_insert(distortion);
        prop_assert_eq!(format!("{:?}", same), format!("{:?}", distortion));
        let plain = plain_distortion(&weights, &values, case.cols, importance);
        prop_assert_eq!(distortion.count, plain.count);
        prop_assert_eq!(distortion.max_abs_error, plain.max_abs_error);
        prop_assert_eq!(distortion.max_abs_error_at, plain.max_abs_error_at);
        prop_assert_eq!(distortion.max_abs_weight, plain.max_abs_weight);
        prop_assert!(close(distortion.signal, plain.signal, plain.signal));
        prop_assert!(close(distortion.noise, plain.noise, plain.noise + 1e-12 * plain.signal));
        prop_assert!(weighs_alike(&distortion, &plain));
        let size = (plain.signal * plain.noise).sqrt() + 1e-12 * plain.signal;
        prop_assert!(close(distortion.cross, plain.cross, size));
        if case.observer == Observer::Minmax {
            prop_assert_eq!(distortion.clipped, 0, "min and max clip nothing");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES / 4, ..ProptestConfig::default() })]

    #[test]
    fn wide_matrices_equal_the_slow_twin(case in wide_case()) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn kernels_equal_the_slow_twin_on_every_instruction_set(case in case()) {
        check(&case)?;
    }

    #[test]
    fn tiles_may_lie_at_any_alignment(case in case(), shift in 1..8usize) {
        let quantizer = case.quantizer(Isa::detect());
        if case.scheme.granularity == Granularity::Tensor {
            return Ok(());
        }
        let mut moved = vec![0xaa; shift];
        moved.extend_from_slice(&case.bytes);
        let (mut a, mut b, mut scratch) = (Quantized::default(), Quantized::default(), Scratch::default());
        let first = quantizer.quantize(None, &case.bytes, case.rows, &mut a, &mut scratch);
        let second = quantizer.quantize(None, &moved[shift..], case.rows, &mut b, &mut scratch);
        prop_assert_eq!(first, second);
        if first.is_ok() {
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn the_fast_search_picks_the_step_of_the_exact_one(
        seed in any::<u64>(), kind in 0..10usize, four in any::<bool>(), symmetric in any::<bool>(),
        source in float_type(), norm in prop::sample::select(vec![2.0, 2.4, 3.0, 8.0]),
    ) {
        let mut bytes = Vec::new();
        source.narrow(&weights(kind, 1024, seed, source), &mut bytes);
        let scheme = Scheme {
            bits: if four { Bits::Four } else { Bits::Eight },
            symmetric,
            granularity: Granularity::Group(64),
            scale_type: source,
            storage: Storage::Packed,
        };
        let importance = importance((seed % 8) as usize, 128, seed);
        for mse in [
            Mse { norm, ..Mse::default() },
            Mse { norm, ..Mse::imatrix() },
            Mse { norm, signed: true, ..Mse::default() },
        ] {
            let (observer, importance, bytes) = (Observer::Mse(mse), importance.clone(), bytes.clone());
            check(&Case { scheme, observer, source, rows: 8, cols: 128, importance, bytes, tile: 8 })?;
        }
    }

    #[test]
    fn equal_importance_changes_nothing(case in case()) {
        let mut scratch = Scratch::default();
        let run = |importance, scratch: &mut Scratch| {
            let case = Case { importance, ..case.clone() };
            case.run(Isa::detect(), scratch).map(|(quantized, ..)| quantized)
        };
        let plain = run(None, &mut scratch);
        prop_assert_eq!(run(importance(0, case.cols, 1), &mut scratch), plain);
    }

    #[test]
    fn columns_of_no_importance_matter_only_as_ends_of_the_range(
        seed in any::<u64>(), kind in prop::sample::select(vec![0usize, 1, 4, 8]), four in any::<bool>(),
        symmetric in any::<bool>(), source in float_type(), wide in any::<bool>(),
    ) {
        let scheme = Scheme {
            bits: if four { Bits::Four } else { Bits::Eight },
            symmetric,
            granularity: Granularity::Group(32),
            scale_type: source,
            storage: Storage::Packed,
        };
        let observer = Observer::Mse(if wide { Mse::imatrix() } else { Mse::default() });
        let importance = importance(2, 128, seed);
        let mut values = weights(kind, 8 * 128, seed, source);
        let run = |values: &[f32]| {
            let (mut bytes, importance) = (Vec::new(), importance.clone());
            source.narrow(values, &mut bytes);
            let case = Case { scheme, observer, source, rows: 8, cols: 128, importance, bytes, tile: 8 };
            case.run(Isa::detect(), &mut Scratch::default())
        };
        let (before, _, measured) = run(&values).map_err(|bad| TestCaseError::fail(bad.to_string()))?;
        let columns = importance.as_ref().map_or(&[][..], Importance::columns);
        let mut changed = 0;
        for (i, group) in values.chunks_mut(32).enumerate() {
            let ends = group.iter().fold((0.0f32, 0.0f32), |(low, high), &w| (low.min(w), high.max(w)));
            for (w, &h) in group.iter_mut().zip(&columns[i % 4 * 32..]) {
                if h == 0.0 && *w > ends.0 && *w < ends.1 && *w != 0.0 {
                    (*w, changed) = (0.0, changed + 1);
                }
            }
        }
        let (after, _, again) = run(&values).map_err(|bad| TestCaseError::fail(bad.to_string()))?;
        prop_assert!(changed > 0, "nothing was tried");
        prop_assert!(before.scales == after.scales && before.zero_points == after.zero_points);
        prop_assert_eq!(measured.weighted_sqnr_db(), again.weighted_sqnr_db());
    }
}

#[test]
fn a_survey_may_end_as_soon_as_it_is_settled() {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Tensor,
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    let mut early = 0;
    for seed in 0..20 {
        let mut bytes = Vec::new();
        FloatType::Bf16.narrow(&gaussian(64 * 128, seed), &mut bytes);
        let observer = Observer::Mse(Mse::default());
        let quantizer = Quantizer::new(scheme, observer, FloatType::Bf16, 128, Isa::detect());
        let params = |stop: bool| {
            let mut survey = quantizer.begin_survey();
            let mut passes = 0;
            while passes < quantizer.survey_passes() && !(stop && quantizer.is_settled(&survey)) {
                for tile in bytes.chunks(16 * 256) {
                    let part = quantizer.survey(&survey, tile, 16);
                    survey.merge(part.map_err(|bad| bad.what)?);
                }
                quantizer.end_pass(&mut survey);
                passes += 1;
            }
            Ok::<_, BadValue>((quantizer.tensor_params(&survey)?, passes))
        };
        let (all, some) = (params(false), params(true));
        assert_eq!(all.map(|(params, _)| params), some.map(|(params, _)| params));
        assert_eq!(all.map(|(_, passes)| passes), Ok(3));
        early += usize::from(some.is_ok_and(|(_, passes)| passes == 2));
    }
    assert!(early > 0, "no search over a tensor ended early");
}

#[test]
fn near_ties_of_the_search_are_decided_exactly() {
    // One weight, whose error is the same for the two widest candidates but for the rounding of their scales.
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Channel,
        scale_type: FloatType::F32,
        storage: Storage::Plain,
    };
    let observer = Observer::Mse(Mse { maxshrink: 1.0, grid: 8.0, norm: 8.0, last: false, signed: false });
    let bytes = (-2.125f32).to_le_bytes().to_vec();
    let case =
        Case { scheme, observer, source: FloatType::F32, rows: 1, cols: 1, importance: None, bytes, tile: 8 };
    assert!(check(&case).is_ok());
}

#[test]
fn scales_that_vanish_during_the_search_are_compared_exactly() {
    // Subnormal halves: the scales of the narrower candidates are 0, and BF16's epsilon stands in for them.
    let scheme = Scheme {
        bits: Bits::Eight,
        symmetric: false,
        granularity: Granularity::Channel,
        scale_type: FloatType::Bf16,
        storage: Storage::Plain,
    };
    let observer = Observer::Mse(Mse { maxshrink: 1.0, grid: 8.0, norm: 8.0, last: false, signed: false });
    for seed in 0..64 {
        let mut bytes = Vec::new();
        FloatType::F16.narrow(&weights(2, 128, seed, FloatType::F16), &mut bytes);
        let case = Case {
            scheme,
            observer,
            source: FloatType::F16,
            rows: 1,
            cols: 128,
            importance: None,
            bytes,
            tile: 8,
        };
        assert!(check(&case).is_ok());
    }
}

#[test]
fn groups_of_no_importance_take_the_widest_range_whose_scale_is_finite() {
    let scheme = Scheme {
        bits: Bits::Eight,
        symmetric: false,
        granularity: Granularity::Group(2),
        scale_type: FloatType::F32,
        storage: Storage::Plain,
    };
    let mut bytes = Vec::new();
    FloatType::F32.narrow(&[-1.8e38, 1.8e38, -1.0, 1.0, 0.25, 0.5], &mut bytes);
    let importance = Importance::new(&[0.0, 0.0, 0.0, 0.0, 1.0, 1.0], 1.0).ok();
    let observer = Observer::Mse(Mse::default());
    let case =
        Case { scheme, observer, source: FloatType::F32, rows: 1, cols: 6, importance, bytes, tile: 8 };
    assert!(check(&case).is_ok());
    let scales =
        case.run(Isa::detect(), &mut Scratch::default()).map(|(out, ..)| FloatType::F32.widen(&out.scales));
    // 3.6e38 is beyond f32, and so is 0.95 of it.
    let found = scales.map(|scales| [scales[0], scales[1] * 255.0]);
    assert_eq!(found, Ok([(1.8e38f32 * 0.94 * 2.0) / 255.0, 2.0]));
}

#[test]
fn bad_weights_are_named_by_row_and_column() {
    for source in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        for symmetric in [true, false] {
            for granularity in [Granularity::Group(32), Granularity::Channel, Granularity::Tensor] {
                for (value, what) in [
                    (f32::NAN, BadValue::NotANumber),
                    (f32::INFINITY, BadValue::Infinite),
                    (f32::NEG_INFINITY, BadValue::Infinite),
                ] {
                    let mut weights = gaussian(4 * 96, 1);
                    weights[2 * 96 + 70] = value;
                    weights[3 * 96] = value;
                    let mut bytes = Vec::new();
                    source.narrow(&weights, &mut bytes);
                    let scheme = Scheme {
                        bits: Bits::Four,
                        symmetric,
                        granularity,
                        scale_type: source,
                        storage: Storage::Packed,
                    };
                    for isa in Isa::available() {
                        let quantizer = Quantizer::new(scheme, Observer::Minmax, source, 96, isa);
                        let bad = if granularity == Granularity::Tensor {
                            quantizer.survey(&quantizer.begin_survey(), &bytes, 4).err()
                        } else {
                            let mut out = Quantized::default();
                            quantizer.quantize(None, &bytes, 4, &mut out, &mut Scratch::default()).err()
                        };
                        let found = bad.map(|bad| (bad.row, bad.col, bad.what));
                        assert_eq!(found, Some((2, 70, what)));
                    }
                }
            }
        }
    }
}

#[test]
fn scales_beyond_their_own_type_are_refused() {
    let scheme = Scheme {
        bits: Bits::Eight,
        symmetric: true,
        granularity: Granularity::Channel,
        scale_type: FloatType::F16,
        storage: Storage::Plain,
    };
    let mut bytes = Vec::new();
    FloatType::Bf16.narrow(&[1.0, 2.0, 1.0, -1e9], &mut bytes);
    let quantizer = Quantizer::new(scheme, Observer::Minmax, FloatType::Bf16, 2, Isa::detect());
    let bad = quantizer.quantize(None, &bytes, 2, &mut Quantized::default(), &mut Scratch::default());
    let bad = bad.err().map(|bad| (bad.row, bad.col, bad.what));
    assert_eq!(bad, Some((1, 1, BadValue::ScaleOverflow)));
}

#[test]
fn weights_outside_the_grid_are_counted_as_clipped() {
    // A percentile that cuts the outliers of both rows.
    let mut weights = vec![0.01f32; 2 * 256];
    for (i, w) in weights.iter_mut().enumerate() {
        *w *= if i % 2 == 0 { 1.0 } else { -0.5 };
    }
    weights[10] = 1.0;
    weights[300] = -1.0;
    let mut bytes = Vec::new();
    FloatType::Bf16.narrow(&weights, &mut bytes);
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Channel,
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    let quantizer = Quantizer::new(scheme, Observer::Percentile(99.0), FloatType::Bf16, 256, Isa::detect());
    let (mut out, mut scratch) = (Quantized::default(), Scratch::default());
    assert_eq!(quantizer.quantize(None, &bytes, 2, &mut out, &mut scratch), Ok(()));
    let distortion = quantizer.measure(&bytes, out.view(), 2, &mut scratch);
    assert_eq!((distortion.clipped, distortion.max_abs_error_at), (2, (0, 10)));
    assert_eq!(distortion.worst_group.map(|group| (group.row, group.group)), Some((0, 0)));
}

#[test]
fn empty_tiles_and_empty_rows_are_nothing() {
    for granularity in [Granularity::Channel, Granularity::Tensor, Granularity::Group(8)] {
        for (rows, cols) in [(0, 8), (3, 0), (0, 0)] {
            let scheme = Scheme {
                bits: Bits::Four,
                symmetric: false,
                granularity,
                scale_type: FloatType::F32,
                storage: Storage::Packed,
            };
            let case = Case {
                scheme,
                observer: Observer::Minmax,
                source: FloatType::F32,
                rows,
                cols,
                importance: None,
                bytes: Vec::new(),
                tile: 8,
            };
            let quantizer = case.quantizer(Isa::detect());
            let tensor = TensorParams { scale: 1.0, zero_point: 0 };
            let tensor = (granularity == Granularity::Tensor).then_some(&tensor);
            let (mut out, mut values, mut scratch) = (Quantized::default(), Vec::new(), Scratch::default());
            assert_eq!(quantizer.quantize(tensor, &[], rows, &mut out, &mut scratch), Ok(()));
            quantizer.dequantize(out.view(), rows, &mut values, &mut scratch);
            assert!(out.codes.is_empty() && values.is_empty());
            assert_eq!(quantizer.measure(&[], out.view(), rows, &mut scratch).sqnr_db(), None);
        }
    }
}
