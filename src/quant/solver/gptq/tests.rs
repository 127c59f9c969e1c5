use super::slow::{self, Matrix, Rows};
use super::*;
use crate::quant::product::{View, multiply};
use crate::quant::test_weights::{Numbers, gaussian, heavy};
use crate::quant::{Bits, FloatType, Isa, Observer, Scheme, Storage};
use safetensors::SafeTensors;

pub(super) const INT4: Scheme = Scheme {
    bits: Bits::Four,
    symmetric: true,
    granularity: Granularity::Group(128),
    scale_type: FloatType::Bf16,
    storage: Storage::Packed,
};

/// Inputs of columns of different strength that depend on each other, and of a model that differs a little: the second
/// moments of the latter, and the cross moments.
pub(super) fn inputs(columns: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let count = 4 * columns + 3;
    let mut numbers = Numbers(seed);
    let strength: Vec<f32> = (0..columns).map(|_| (numbers.gaussian()).exp() as f32).collect();
    let common = gaussian(count, seed + 1);
    let mut other = gaussian(count * columns, seed + 2);
    for (row, common) in other.chunks_exact_mut(columns).zip(&common) {
        row.iter_mut().zip(&strength).for_each(|(x, strength)| *x = (*x + 0.7 * common) * strength);
    }
    let noise = gaussian(count * columns, seed + 3);
    let own: Vec<f32> = other.iter().zip(&noise).map(|(x, noise)| x + 0.05 * noise).collect();
    let difference: Vec<f32> = other.iter().zip(&own).map(|(a, b)| a - b).collect();
    let moments = |left: &[f32]| {
        let mut out = vec![0f32; columns * columns];
        let (left, right) = (View::rows(left, columns).turned(), View::rows(&own, columns));
        multiply((columns, count, columns), left, right, (&mut out, columns), 1.0 / count as f32, false);
        out
    };
    let mut squares = moments(&own);
    for i in 0..columns {
        for j in 0..i {
            squares[j * columns + i] = squares[i * columns + j];
        }
    }
    (squares, moments(&difference))
}

pub(super) fn quantizer(scheme: Scheme, columns: usize, isa: Isa) -> Quantizer {
    Quantizer::new(scheme, Observer::Minmax, FloatType::Bf16, columns, isa)
}

fn solver(scheme: Scheme, metric: &Arc<Metric>) -> Gptq {
    Gptq::new(quantizer(scheme, metric.columns(), Isa::detect()), Arc::clone(metric))
}

/// What was rounded, as the slow twin has it.
pub(super) fn rows(scheme: Scheme, matrix: &Unpacked, columns: usize) -> Rows {
    let groups = scheme.groups_per_row(columns);
    let integers = |values: &[i8], width: usize| {
        values.chunks(width).map(|row| row.iter().copied().map(f64::from).collect()).collect()
    };
    Rows {
        scheme,
        codes: integers(&matrix.codes, columns),
        scales: slow::matrix(&matrix.scales, groups),
        zeros: integers(&matrix.zero_points, groups),
    }
}

/// The share of codes that are the same.
pub(super) fn agreement(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

pub(super) fn flat(a: &Matrix) -> Vec<f32> {
    a.iter().flatten().map(|x| *x as f32).collect()
}

pub(super) fn assert_close(a: f64, b: f64, what: &str) {
    assert!((a - b).abs() <= 1e-3 * b.abs(), "{what}: {a} and {b}");
}

#[test]
fn the_golden_matrix_is_rounded_as_numpy_does() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rounding.safetensors"))
        .expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let error = |name: &str| -> f64 {
        let metadata = metadata.metadata().as_ref().expect("metadata");
        metadata[&format!("error.{name}")].parse().expect("a number")
    };
    let numbers = |name: &str| FloatType::F32.widen(file.tensor(name).expect("a tensor").data());
    let codes = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).expect("a tensor");
        tensor.data().iter().map(|&byte| f32::from(byte as i8)).collect()
    };
    let columns = 256;
    let moments = numbers("moments");
    let metric = Metric::new(columns, moments.clone()).expect("moments");
    assert_eq!(metric.damping(), 0.05);

    let mut target = numbers("weights");
    let correction = Correction::new(columns, &moments, Some(numbers("cross"))).expect("moments");
    correction.apply(&mut target, Some(&numbers("residual"))).expect("finite weights");
    let expected = numbers("target");
    let size = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (a, b) in target.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-5 * size, "{a} and {b}");
    }

    let mut grids = Grids::search(INT4, false, &target, &metric, Isa::detect()).expect("scales");
    assert_eq!(grids.scales, numbers("scales.search"));
    let of = |codes: &[f32], grids: &Grids| -> f64 {
        row_errors(&grids.errors(codes, &target), &metric).iter().sum()
    };
    let nearest = grids.nearest(&target);
    assert!(agreement(&nearest, &codes("codes.search")) >= 0.995);
    assert_close(of(&nearest, &grids), error("nearest"), "to nearest");

    let mut found = feedback::feed_back(&target, &metric, &grids, Isa::detect());
    assert!(agreement(&found, &codes("codes.feedback")) >= 0.995);
    assert_close(of(&found, &grids), error("feedback"), "feedback");

    descent::descend(&mut found, &mut grids, &target, &metric, Isa::detect());
    assert!(agreement(&found, &codes("codes.descent")) >= 0.98);
    assert_close(of(&found, &grids), error("descent"), "descent");

    let metric = Arc::new(metric);
    let rounded = solver(INT4, &metric).round(&target).expect("rounded");
    assert_close(rounded.error, error("descent"), "all steps");
    assert_close(rounded.error_of_nearest, error("nearest"), "before");
}

/// All schemes, by the slow twin: shapes that are no multiple of anything too.
#[test]
fn every_scheme_is_rounded_as_the_slow_twin_does() {
    for (columns, granularity) in
        [(96, Granularity::Group(32)), (64, Granularity::Group(8)), (45, Granularity::Channel)]
    {
        let (moments, cross) = inputs(columns, columns as u64);
        let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
        let h = slow::matrix(&moments, columns);
        let damped = slow::damped(&h, 0.05);
        let weights: Vec<f64> =
            slow::inverse(&damped).iter().enumerate().map(|(i, row)| 1.0 / row[i]).collect();
        for (a, b) in metric.weights.iter().zip(&weights) {
            assert!((f64::from(*a) - b).abs() < 1e-5 * b, "{a} and {b}");
        }
        let values = heavy(7 * columns, 3);
        let residual = gaussian(7 * columns, 9).iter().map(|x| 1e-3 * x).collect::<Vec<_>>();
        let w = slow::matrix(&values, columns);
        let target =
            slow::target(&w, &h, &slow::matrix(&cross, columns), Some(&slow::matrix(&residual, columns)));
        for bits in [Bits::Four, Bits::Eight] {
            for (symmetric, is_signed) in [(true, false), (true, true), (false, false)] {
                let scheme = Scheme { bits, symmetric, granularity, ..INT4 };
                let mut twin = Rows::search(scheme, is_signed, &target, &weights);
                let nearest = twin.error(&target, &damped);
                twin.feed_back(&target, &damped);
                let fed_back = twin.clone();
                twin.descend(&target, &damped);

                let targets = flat(&target);
                let grids =
                    Grids::search(scheme, is_signed, &targets, &metric, Isa::detect()).expect("scales");
                let codes = feedback::feed_back(&targets, &metric, &grids, Isa::detect());
                assert!(agreement(&codes, &flat(&fed_back.codes)) >= 0.98, "{scheme}, {columns}");

                let correction = Correction::new(columns, &moments, Some(cross.clone())).expect("moments");
                let mut ours = values.clone();
                correction.apply(&mut ours, Some(&residual)).expect("finite weights");
                let rounded = solver(scheme, &metric).signed(is_signed).round(&ours).expect("rounded");
                let what = format!("{scheme}, signed {is_signed}, {columns} columns");
                let stored = rows(scheme, &rounded.matrix, columns).error(&target, &damped);
                assert!((rounded.error - stored).abs() < 2e-3 * stored, "{what}: {} {stored}", rounded.error);
                let (ours, expected) = (rounded.error, twin.error(&target, &damped));
                // A decision near a tie leads elsewhere, which may be better or worse.
                assert!((ours - expected).abs() < 0.03 * expected, "{what}: {ours} and {expected}");
                assert!((rounded.error_of_nearest - nearest).abs() < 0.01 * nearest, "{what}");
                assert!(rounded.error < 0.95 * rounded.error_of_nearest, "{what}");
            }
        }
    }
}

#[test]
fn no_row_is_worse_than_to_nearest_and_no_phase_raises_the_error() {
    for seed in 0..6 {
        let columns = 64;
        let (moments, _) = inputs(columns, seed);
        let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
        let targets = heavy(16 * columns, seed + 7);
        let scheme = Scheme { granularity: Granularity::Group(16), symmetric: seed % 2 == 0, ..INT4 };
        let isa = Isa::detect();
        let mut grids = Grids::search(scheme, false, &targets, &metric, isa).expect("scales");
        let nearest = row_errors(&grids.errors(&grids.nearest(&targets), &targets), &metric);
        let mut codes = feedback::feed_back(&targets, &metric, &grids, isa);
        let mut before = row_errors(&grids.errors(&codes, &targets), &metric);
        let mut is_at_rest = false;
        for _ in 0..20 {
            let last = (codes.clone(), grids.clone());
            descent::descend(&mut codes, &mut grids, &targets, &metric, isa);
            let after = row_errors(&grids.errors(&codes, &targets), &metric);
            assert!(after.iter().zip(&before).all(|(after, before)| *after <= before * (1.0 + 1e-5)));
            before = after;
            is_at_rest = last == (codes.clone(), grids.clone());
            if is_at_rest {
                break;
            }
        }
        assert!(is_at_rest, "a descent ends");
        for (row, nearest) in nearest.iter().enumerate() {
            let own = &targets[row * columns..(row + 1) * columns];
            let rounded = solver(scheme, &metric).round(own).expect("rounded");
            assert!(rounded.error <= nearest * (1.0 + 1e-5));
            assert!(rounded.error <= rounded.error_of_nearest);
        }
    }
}

#[test]
fn independent_inputs_of_one_strength_give_the_nearest_codes() {
    let columns = 64;
    let mut moments = vec![0f32; columns * columns];
    (0..columns).for_each(|i| moments[i * (columns + 1)] = 3.0);
    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    let values = heavy(8 * columns, 5);
    for symmetric in [true, false] {
        let scheme = Scheme { symmetric, granularity: Granularity::Group(32), ..INT4 };
        let grids = Grids::search(scheme, false, &values, &metric, Isa::detect()).expect("scales");
        let codes = feedback::feed_back(&values, &metric, &grids, Isa::detect());
        assert_eq!(codes, grids.nearest(&values));
        // The codes of fitted scales are the nearest as well.
        let matrix = solver(scheme, &metric).round(&values).expect("rounded").matrix;
        for (group, (values, codes)) in values.chunks(32).zip(matrix.codes.chunks(32)).enumerate() {
            for (value, code) in values.iter().zip(codes) {
                let exact = value / matrix.scales[group] + f32::from(matrix.zero_points[group]);
                let off = (exact.clamp(-8.0, 7.0) - f32::from(*code)).abs();
                assert!(off <= 0.5001, "{exact} is {code}");
            }
        }
    }
}

#[test]
fn equal_inputs_need_no_correction_and_weights_on_a_grid_no_error() {
    let columns = 64;
    let (moments, _) = inputs(columns, 2);
    let mut numbers = Numbers(1);
    let scale = 0.03125;
    let mut values: Vec<f32> = (0..4 * columns).map(|_| (numbers.next() % 16) as f32 * scale).collect();
    values.iter_mut().for_each(|x| *x -= 8.0 * scale);
    values.chunks_exact_mut(columns).for_each(|row| row[5] = -8.0 * scale);
    let correction = Correction::new(columns, &moments, Some(vec![0.0; columns * columns])).expect("moments");
    let mut target = values.clone();
    correction.apply(&mut target, None).expect("finite weights");
    assert_eq!(target, values);
    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    let scheme = Scheme { granularity: Granularity::Channel, ..INT4 };
    let rounded = solver(scheme, &metric).round(&values).expect("rounded");
    assert_eq!(rounded.error, 0.0);
    assert_eq!(rounded.matrix.scales, [scale; 4]);
    let again: Vec<f32> = rounded.matrix.codes.iter().map(|&code| f32::from(code) * scale).collect();
    assert_eq!(again, values);
}

/// The one code more can be on the side of the largest weight: less error, and scales of both signs.
#[test]
fn negative_scales_lessen_the_error() {
    let columns = 64;
    let mut errors = [0.0; 2];
    for seed in 0..6 {
        let metric = Arc::new(Metric::new(columns, inputs(columns, seed).0).expect("moments"));
        let scheme = Scheme { granularity: Granularity::Group(16), ..INT4 };
        let target = heavy(8 * columns, seed);
        for (is_signed, sum) in [false, true].into_iter().zip(&mut errors) {
            let rounded = solver(scheme, &metric).signed(is_signed).round(&target).expect("rounded");
            assert_eq!(rounded.matrix.scales.iter().any(|scale| *scale < 0.0), is_signed);
            *sum += rounded.error;
        }
        // Beside zero points they are of no use.
        let scheme = Scheme { symmetric: false, ..scheme };
        let [plain, signed] =
            [false, true].map(|is_signed| solver(scheme, &metric).signed(is_signed).round(&target));
        assert_eq!(plain, signed);
    }
    assert!(errors[1] < 0.98 * errors[0], "{errors:?}");
}

/// Against all codes that five weights may have, with the scale that was found.
#[test]
fn codes_are_a_minimum_that_no_single_code_can_better() {
    for seed in 0..8 {
        let columns = 5;
        let (moments, _) = inputs(columns, 20 + seed);
        let metric = Metric::new(columns, moments.clone()).expect("moments");
        let target = gaussian(columns, 40 + seed);
        let scheme = Scheme { granularity: Granularity::Channel, ..INT4 };
        let mut grids = search(scheme, &target, &metric);
        let mut codes = feedback::feed_back(&target, &metric, &grids, Isa::detect());
        descent::descend(&mut codes, &mut grids, &target, &metric, Isa::detect());
        let error = |codes: &[f32]| row_errors(&grids.errors(codes, &target), &metric)[0];
        let found = error(&codes);
        for column in 0..columns {
            for code in -8..8 {
                let mut other = codes.clone();
                other[column] = code as f32;
                assert!(error(&other) >= found * (1.0 - 1e-5), "{code} at {column}");
            }
        }
        let mut least = f64::INFINITY;
        for number in 0..16u32.pow(5) {
            let code = |place: usize| (number >> (4 * place) & 15) as f32 - 8.0;
            least = least.min(error(&[code(0), code(1), code(2), code(3), code(4)]));
        }
        assert!(found >= least * (1.0 - 1e-6), "{found} is below the least, {least}");
    }
}

fn search(scheme: Scheme, target: &[f32], metric: &Metric) -> Grids {
    Grids::search(scheme, false, target, metric, Isa::detect()).expect("scales")
}

#[test]
fn the_codes_of_all_instruction_sets_and_of_scaled_moments_are_the_same() {
    let columns = 96;
    let (moments, _) = inputs(columns, 11);
    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    // By a power of four, whose root is exact.
    let scaled: Vec<f32> = moments.iter().map(|x| 4.0 * x).collect();
    let scaled = Arc::new(Metric::new(columns, scaled).expect("moments"));
    let targets = heavy(8 * columns, 2);
    let scheme = Scheme { granularity: Granularity::Group(32), symmetric: false, ..INT4 };
    let round = |metric: &Arc<Metric>, isa: Isa| {
        let solver = Gptq::new(quantizer(scheme, columns, isa), Arc::clone(metric));
        solver.round(&targets).expect("rounded").matrix
    };
    let expected = round(&metric, Isa::Portable);
    for isa in Isa::available() {
        assert_eq!(round(&metric, isa), expected);
        assert_eq!(round(&scaled, isa), expected);
    }
}

#[test]
fn values_are_codes_times_scales_in_the_type_of_the_scales() {
    let columns = 40;
    let (moments, _) = inputs(columns, 4);
    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    for symmetric in [true, false] {
        let scheme = Scheme { symmetric, granularity: Granularity::Group(8), ..INT4 };
        let matrix = solver(scheme, &metric).round(&heavy(10 * columns, 8)).expect("rounded").matrix;
        let twin = rows(scheme, &matrix, columns);
        for (at, value) in matrix.values(&scheme, columns).iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let level = twin.codes[row][column] - twin.zeros[row][column / 8];
            let expected = (level * twin.scales[row][column / 8]) as f32;
            assert_eq!(*value, FloatType::Bf16.round(expected), "{scheme} at {row}, {column}");
        }
    }
}

#[test]
fn inputs_that_were_never_seen_and_extreme_weights_are_rounded() {
    let columns = 16;
    let (mut moments, _) = inputs(columns, 6);
    for i in 0..columns {
        (moments[3 * columns + i], moments[i * columns + 3]) = (0.0, 0.0);
    }
    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    let scheme = Scheme { granularity: Granularity::Group(8), scale_type: FloatType::F32, ..INT4 };
    for size in [1e-42f32, 1e-30, 1.0, 1e30, 2e37] {
        let values: Vec<f32> = heavy(4 * columns, 1).iter().map(|x| x * size).collect();
        let rounded = solver(scheme, &metric).round(&values).expect("rounded");
        assert!(rounded.matrix.scales.iter().all(|scale| *scale > 0.0 && scale.is_finite()), "{size}");
        if (1e-30..=1.0).contains(&size) {
            assert!(rounded.matrix.codes.iter().any(|code| code.abs() > 4), "{size}");
        }
    }
    let zeros = solver(scheme, &metric).round(&vec![0.0; 2 * columns]).expect("rounded");
    assert_eq!(zeros.error, 0.0);
    assert!(zeros.matrix.codes.iter().all(|code| *code == 0));
    assert!(solver(scheme, &metric).round(&Vec::new()).expect("rounded").matrix.codes.is_empty());
    // One input in the whole text: singular, and factored by its damping.
    let one: Vec<f32> =
        (0..columns * columns).map(|i| ((i / columns + 1) * (i % columns + 1)) as f32).collect();
    assert!(Metric::new(columns, one).is_ok());
}

#[test]
fn bad_weights_and_bad_moments_are_named() {
    let columns = 16;
    let (moments, _) = inputs(columns, 6);
    let with = |at: usize, x: f32| {
        let mut moments = moments.clone();
        moments[at] = x;
        Metric::new(columns, moments).map(drop)
    };
    assert_eq!(with(5 * columns + 2, f32::NAN), Err(BadMoments::Column(5)));
    assert_eq!(with(7 * columns + 7, -1.0), Err(BadMoments::Column(7)));
    assert_eq!(Metric::new(4, vec![0.0; 16]).map(drop), Err(BadMoments::AllZero));
    assert_eq!(Metric::new(0, Vec::new()).map(drop), Err(BadMoments::AllZero));
    // No moments: what two columns have in common is more than each has.
    assert_eq!(Metric::new(2, vec![1.0, 1e6, 1e6, 1.0]).map(drop), Err(BadMoments::Singular));
    let cross = vec![f32::INFINITY; columns * columns];
    assert_eq!(Correction::new(columns, &moments, Some(cross)).map(drop), Err(BadMoments::Column(0)));

    let metric = Arc::new(Metric::new(columns, moments.clone()).expect("moments"));
    let scheme = Scheme { granularity: Granularity::Group(8), scale_type: FloatType::F16, ..INT4 };
    let with = |at: usize, x: f32| {
        let mut values = heavy(3 * columns, 1);
        values[at] = x;
        solver(scheme, &metric).round(&values).map(drop)
    };
    let bad = |row, col, what| Err(BadWeight { row, col, what });
    assert_eq!(with(20, f32::NAN), bad(1, 4, BadValue::NotANumber));
    assert_eq!(with(40, f32::NEG_INFINITY), bad(2, 8, BadValue::Infinite));
    assert_eq!(with(33, -1e30), bad(2, 1, BadValue::ScaleOverflow));
}
