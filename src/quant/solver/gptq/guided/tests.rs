use super::super::slow::{self, Rows, damped};
use super::super::tests::{INT4, agreement, assert_close, flat, inputs, quantizer, rows};
use super::super::{BadMoments, Correction, Gptq};
use super::*;
use crate::quant::reference::Unpacked;
use crate::quant::test_weights::{gaussian, heavy};
use crate::quant::{Bits, FloatType};
use safetensors::SafeTensors;

/// Moments of gradients that depend on each other.
fn gradients(rows: usize, seed: u64) -> Vec<f32> {
    inputs(rows, seed + 100).0
}

fn unit(rows: usize) -> Vec<f32> {
    (0..rows * rows).map(|i| f32::from(u8::from(i / rows == i % rows))).collect()
}

fn guided(scheme: Scheme, metric: &Arc<Metric>) -> Guided {
    Guided::new(&quantizer(scheme, metric.columns(), Isa::detect()), Arc::clone(metric))
}

fn metric(columns: usize, seed: u64) -> Arc<Metric> {
    Arc::new(Metric::new(columns, inputs(columns, seed).0).expect("moments"))
}

/// G and H as the metrics have them.
fn wide(outputs: &Outputs, metric: &Metric) -> (slow::Matrix, slow::Matrix) {
    (slow::matrix(&outputs.moments, outputs.rows), slow::matrix(&metric.moments, metric.columns))
}

fn whole(rows: usize, moments: &[f32]) -> Outputs {
    OutputMetric::new(rows, rows, moments).expect("moments").block(&(0..rows))
}

#[test]
fn the_golden_matrix_is_rounded_as_numpy_does() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rounding.safetensors"))
        .expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let numbers = |name: &str| FloatType::F32.widen(file.tensor(name).expect("a tensor").data());
    let codes = |name: &str| -> Vec<f32> {
        file.tensor(name).expect("a tensor").data().iter().map(|&byte| f32::from(byte as i8)).collect()
    };
    let (rows, columns) = (24, 256);
    // Ours are in shares of the damped diagonal's mean.
    let mean = (0..rows).map(|i| f64::from(numbers("gradients")[i * (rows + 1)])).sum::<f64>() / rows as f64;
    let expected = |name: &str| -> f64 {
        let metadata = metadata.metadata().as_ref().expect("metadata");
        metadata[&format!("error.both.{name}")].parse::<f64>().expect("a number") / (1.1 * mean)
    };
    let metric = Arc::new(Metric::new(columns, numbers("moments")).expect("moments"));
    let correction = Correction::new(columns, &numbers("moments"), Some(numbers("cross"))).expect("moments");
    let mut target = numbers("weights");
    correction.apply(&mut target, Some(&numbers("residual"))).expect("finite weights");
    let all = OutputMetric::new(rows, rows, &numbers("gradients")).expect("moments");
    let outputs = all.block(&(0..rows));
    let isa = Isa::detect();
    let mut grids = Grids::search(INT4, false, &target, &metric, isa).expect("scales");
    let of = |codes: &[f32], grids: &Grids| error(grids, codes, &target, &metric, &outputs);
    assert_close(of(&grids.nearest(&target), &grids), expected("nearest"), "to nearest");
    let mut found = feedback::feed_back(&target, &metric, &outputs, &grids, isa);
    assert!(agreement(&found, &codes("codes.both")) >= 0.995);
    assert_close(of(&found, &grids), expected("feedback"), "feedback");
    descent::descend(&mut found, &mut grids, &target, &metric, &outputs, isa);
    assert!(agreement(&found, &codes("codes.whole")) >= 0.98);
    assert_close(of(&found, &grids), expected("whole"), "descent");
    let rounded = guided(INT4, &metric).round(&target, &all).expect("rounded");
    assert_close(rounded.error, expected("whole"), "all steps");
    assert_close(rounded.error_of_nearest, expected("nearest"), "before");
}

/// All schemes, by the slow twin, whose own orders agree.
#[test]
fn every_scheme_is_rounded_as_the_slow_twin_does() {
    for (count, columns, granularity) in
        [(7, 64, Granularity::Group(16)), (9, 40, Granularity::Group(8)), (5, 45, Granularity::Channel)]
    {
        let metric = metric(columns, columns as u64);
        let moments = gradients(count, 3);
        let outputs = whole(count, &moments);
        let (g, h) = wide(&outputs, &metric);
        // The metric is damped, and has a mean of 1.
        let exact = damped(&slow::matrix(&moments, count), 0.1);
        let mean = (0..count).map(|i| exact[i][i]).sum::<f64>() / count as f64;
        for (g, exact) in g.iter().flatten().zip(exact.iter().flatten()) {
            assert!((g - exact / mean).abs() < 1e-5, "{g} and {}", exact / mean);
        }
        let target = heavy(count * columns, 3);
        let t = slow::matrix(&target, columns);
        let weights: Vec<f64> = metric.weights.iter().map(|x| f64::from(*x)).collect();
        for bits in [Bits::Four, Bits::Eight] {
            for (symmetric, is_signed) in [(true, false), (true, true), (false, false)] {
                let scheme = Scheme { bits, symmetric, granularity, ..INT4 };
                let what = format!("{scheme}, signed {is_signed}, {columns} columns");
                let mut twin = Rows::search(scheme, is_signed, &t, &weights);
                let nearest = twin.harm(&t, &h, &g);
                let mut other = twin.clone();
                twin.feed_back_both(&t, &h, &g, false);
                other.feed_back_both(&t, &h, &g, true);
                assert_eq!(twin, other, "rows first or columns first: {what}");
                let grids =
                    Grids::search(scheme, is_signed, &target, &metric, Isa::detect()).expect("scales");
                let codes = feedback::feed_back(&target, &metric, &outputs, &grids, Isa::detect());
                assert!(agreement(&codes, &flat(&twin.codes)) >= 0.98, "{what}");
                twin.descend_both(&t, &h, &g);
                let all = OutputMetric::new(count, count, &moments).expect("moments");
                let rounded =
                    guided(scheme, &metric).signed(is_signed).round(&target, &all).expect("rounded");
                let stored = rows(scheme, &rounded.matrix, columns).harm(&t, &h, &g);
                assert!((rounded.error - stored).abs() < 2e-3 * stored, "{what}: {} {stored}", rounded.error);
                // A decision near a tie leads elsewhere, which may be better or worse.
                let expected = twin.harm(&t, &h, &g);
                assert!(
                    (rounded.error - expected).abs() < 0.03 * expected,
                    "{what}: {} {expected}",
                    rounded.error
                );
                assert!((rounded.error_of_nearest - nearest).abs() < 0.01 * nearest, "{what}");
                assert!(rounded.error < 0.95 * nearest, "{what}");
            }
        }
    }
}

/// More rows and columns than a tile has, cut at places of no meaning: tiles change nothing but the order of sums.
#[test]
fn tiles_pass_on_all_errors() {
    let (count, columns) = (150, 192);
    let metric = metric(columns, 1);
    let outputs = whole(count, &gradients(count, 1));
    let (g, h) = wide(&outputs, &metric);
    let target = gaussian(count * columns, 2);
    let scheme = Scheme { granularity: Granularity::Group(64), ..INT4 };
    let grids = Grids::search(scheme, false, &target, &metric, Isa::detect()).expect("scales");
    let mut codes = feedback::feed_back(&target, &metric, &outputs, &grids, Isa::detect());
    let unpacked = super::unpacked(&codes, grids.clone());
    let mut twin = rows(scheme, &unpacked, columns);
    let t = slow::matrix(&target, columns);
    let ours = twin.harm(&t, &h, &g);
    twin.feed_back_by_rows(&t, &h, &g);
    let expected = twin.harm(&t, &h, &g);
    assert!(agreement(&codes, &flat(&twin.codes)) > 0.98);
    assert!((ours - expected).abs() < 0.01 * expected, "{ours} and {expected}");
    // The descent's products are kept up to date across bands and strips: it ends where no code alone is better.
    let mut grids = grids;
    for _ in 0..8 {
        descent::descend(&mut codes, &mut grids, &target, &metric, &outputs, Isa::detect());
    }
    let least = error(&grids, &codes, &target, &metric, &outputs);
    assert!(least < 0.99 * ours);
    for (row, column) in [(0, 0), (3, 100), (70, 64), (127, 31), (128, 32), (149, 191)] {
        for step in [-1.0, 1.0] {
            let mut other = codes.clone();
            let code = &mut other[row * columns + column];
            *code = (*code + step).clamp(-8.0, 7.0);
            let error = error(&grids, &other, &target, &metric, &outputs);
            assert!(error >= least * (1.0 - 1e-5), "{row}, {column}: {error} and {least}");
        }
    }
}

#[test]
fn equal_outputs_are_rounded_as_without_them() {
    let (count, columns) = (32, 96);
    let metric = metric(columns, 5);
    let target = heavy(count * columns, 6);
    for symmetric in [true, false] {
        let scheme = Scheme { symmetric, granularity: Granularity::Group(32), ..INT4 };
        let grids = Grids::search(scheme, false, &target, &metric, Isa::detect()).expect("scales");
        let outputs = whole(count, &unit(count));
        let both = feedback::feed_back(&target, &metric, &outputs, &grids, Isa::detect());
        let rows = super::super::feedback::feed_back(&target, &metric, &grids, Isa::detect());
        assert!(agreement(&both, &rows) >= 0.999);
        // The descent goes over the matrix in another order, and less often.
        let all = OutputMetric::new(count, count, &unit(count)).expect("moments");
        let ours = guided(scheme, &metric).round(&target, &all).expect("rounded");
        let theirs = Gptq::new(quantizer(scheme, columns, Isa::detect()), Arc::clone(&metric));
        let theirs = theirs.round(&target).expect("rounded");
        assert!((ours.error - theirs.error).abs() < 0.01 * theirs.error, "{} {}", ours.error, theirs.error);
        assert_close(ours.error_of_nearest, theirs.error_of_nearest, "to nearest");
    }
}

#[test]
fn independent_inputs_and_outputs_give_the_nearest_codes() {
    let (count, columns) = (8, 64);
    let strengths = |n: usize, of: fn(usize) -> f32| -> Vec<f32> {
        (0..n * n).map(|i| if i / n == i % n { of(i / n) } else { 0.0 }).collect()
    };
    let moments = strengths(columns, |i| 1.0 + (i % 5) as f32);
    let metric = Arc::new(Metric::new(columns, moments).expect("moments"));
    let outputs = whole(count, &strengths(count, |i| 2.0 + i as f32));
    let target = heavy(count * columns, 5);
    let scheme = Scheme { granularity: Granularity::Group(32), ..INT4 };
    let grids = Grids::search(scheme, false, &target, &metric, Isa::detect()).expect("scales");
    let codes = feedback::feed_back(&target, &metric, &outputs, &grids, Isa::detect());
    assert_eq!(codes, grids.nearest(&target));
}

#[test]
fn blocks_are_rounded_as_matrices_of_their_own() {
    let (count, columns, block) = (20, 64, 8);
    let metric = metric(columns, 2);
    let target = heavy(count * columns, 4);
    let scheme = Scheme { granularity: Granularity::Group(16), ..INT4 };
    // Blocks of one mean: what is damped and scaled by it is then the same alone.
    let mut blocks: Vec<Vec<f32>> = [8, 8, 4].iter().map(|size| gradients(*size, 9)).collect();
    for block in &mut blocks {
        let size = if block.len() == 64 { 8 } else { 4 };
        let mean = (0..size).map(|i| block[i * (size + 1)]).sum::<f32>() / size as f32;
        block.iter_mut().for_each(|x| *x /= mean);
    }
    let solver = guided(scheme, &metric);
    let together = OutputMetric::new(count, block, &blocks.concat()).expect("moments");
    let together = solver.round(&target, &together).expect("rounded");
    let mut apart = Rounded::default();
    for (start, block) in [0, 8, 16].into_iter().zip(&blocks) {
        let size = 8.min(count - start);
        let outputs = OutputMetric::new(size, size, block).expect("moments");
        let target = &target[start * columns..(start + size) * columns];
        apart.append(solver.round(target, &outputs).expect("rounded"));
    }
    assert!(codes_agree(&together.matrix, &apart.matrix) >= 0.999);
    assert_close(together.error, apart.error, "blocks");
}

fn codes_agree(a: &Unpacked, b: &Unpacked) -> f64 {
    let wide = |matrix: &Unpacked| matrix.codes.iter().map(|code| f32::from(*code)).collect::<Vec<_>>();
    agreement(&wide(a), &wide(b))
}

#[test]
fn strength_of_gradients_and_threads_and_instruction_sets_change_nothing() {
    let (count, columns) = (40, 96);
    let metric = metric(columns, 7);
    let moments = gradients(count, 7);
    let target = heavy(count * columns, 8);
    let scheme = Scheme { granularity: Granularity::Group(32), ..INT4 };
    let round = |factor: f32, threads: usize, isa: Isa| {
        let moments: Vec<f32> = moments.iter().map(|x| x * factor).collect();
        let outputs = OutputMetric::new(count, count, &moments).expect("moments");
        let solver = Guided::new(&quantizer(scheme, columns, isa), Arc::clone(&metric));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| solver.round(&target, &outputs).expect("rounded"))
    };
    let expected = round(1.0, 1, Isa::Portable);
    assert_eq!(round(8.0, 3, Isa::Portable), expected);
    for isa in Isa::available() {
        assert_eq!(round(1.0, 2, isa).matrix, expected.matrix);
    }
}

#[test]
fn rows_in_another_order_are_rounded_the_same() {
    let (count, columns) = (12, 48);
    let metric = metric(columns, 3);
    let moments = gradients(count, 4);
    let target = gaussian(count * columns, 5);
    let scheme = Scheme { granularity: Granularity::Group(16), ..INT4 };
    let grids =
        |target: &[f32]| Grids::search(scheme, false, target, &metric, Isa::detect()).expect("scales");
    let own = feedback::feed_back(&target, &metric, &whole(count, &moments), &grids(&target), Isa::detect());
    let from: Vec<usize> = (0..count).map(|i| i * 5 % count).collect();
    let turned: Vec<f32> =
        from.iter().flat_map(|row| &target[row * columns..(row + 1) * columns]).copied().collect();
    let of: Vec<f32> =
        from.iter().flat_map(|i| from.iter().map(|j| moments[i * count + j]).collect::<Vec<_>>()).collect();
    let other = feedback::feed_back(&turned, &metric, &whole(count, &of), &grids(&turned), Isa::detect());
    for (place, row) in from.iter().enumerate() {
        let (a, b) =
            (&own[row * columns..(row + 1) * columns], &other[place * columns..(place + 1) * columns]);
        assert!(agreement(a, b) >= 0.97, "row {row}");
    }
}

#[test]
fn nothing_is_worse_than_to_nearest_and_signs_help() {
    let mut errors = [0.0; 2];
    for seed in 0..6 {
        let (count, columns) = (16, 64);
        let metric = metric(columns, seed);
        let moments = blocks_of(&gradients(count, seed), count, 5);
        let outputs = OutputMetric::new(count, 5, &moments).expect("moments");
        let target = heavy(count * columns, seed + 1);
        for granularity in [Granularity::Group(16), Granularity::Channel] {
            let scheme = Scheme { granularity, ..INT4 };
            for (is_signed, sum) in [false, true].into_iter().zip(&mut errors) {
                let solver = guided(scheme, &metric).signed(is_signed);
                let rounded = solver.round(&target, &outputs).expect("rounded");
                assert!(rounded.error <= rounded.error_of_nearest);
                assert_eq!(rounded.matrix.scales.iter().any(|scale| *scale < 0.0), is_signed);
                *sum += rounded.error;
            }
        }
    }
    assert!(errors[1] < 0.98 * errors[0], "{errors:?}");
}

/// Blocks along the diagonal of a square.
fn blocks_of(all: &[f32], rows: usize, block: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for start in (0..rows).step_by(block) {
        let end = rows.min(start + block);
        (start..end).for_each(|i| out.extend(&all[i * rows + start..i * rows + end]));
    }
    out
}

#[test]
fn bad_gradients_and_weights_are_named_and_dead_outputs_are_rounded() {
    let moments = gradients(6, 1);
    let with = |at: usize, x: f32| {
        let mut moments = moments.clone();
        moments[at] = x;
        OutputMetric::new(6, 6, &moments).map(drop)
    };
    assert_eq!(with(2 * 6 + 4, f32::NAN), Err(BadMoments::Row(2)));
    assert_eq!(with(3 * 7, -1.0), Err(BadMoments::Row(3)));
    assert_eq!(OutputMetric::new(6, 6, &[0.0; 36]).map(drop), Err(BadMoments::AllZero));
    assert_eq!(OutputMetric::new(0, 6, &[]).map(drop), Err(BadMoments::AllZero));
    let columns = 32;
    let metric = metric(columns, 1);
    let scheme = Scheme { granularity: Granularity::Group(16), ..INT4 };
    let solver = guided(scheme, &metric);
    let mut target = heavy(6 * columns, 2);
    // An output without gradients, gradients of one token only, and squares that are none.
    let mut dead = moments.clone();
    (0..6).for_each(|i| (dead[6 + i], dead[6 * i + 1]) = (0.0, 0.0));
    let one: Vec<f32> = (0..36).map(|i| ((i / 6 + 1) * (i % 6 + 1)) as f32).collect();
    let mut none = unit(6);
    (none[1], none[6]) = (1e6, 1e6);
    for moments in [dead, one, none] {
        let outputs = OutputMetric::new(6, 6, &moments).expect("moments");
        let rounded = solver.round(&target, &outputs).expect("rounded");
        assert!(rounded.error.is_finite() && rounded.error <= rounded.error_of_nearest);
    }
    let outputs = OutputMetric::new(6, 4, &blocks_of(&moments, 6, 4)).expect("moments");
    target[5 * columns + 3] = f32::INFINITY;
    let bad = solver.round(&target, &outputs).expect_err("infinite");
    assert_eq!((bad.row, bad.col), (5, 3));
    let scheme = Scheme { scale_type: FloatType::F16, ..scheme };
    target[5 * columns + 3] = 1e30;
    let bad = guided(scheme, &metric).round(&target, &outputs).expect_err("too large");
    assert_eq!((bad.row, bad.col, bad.what), (5, 3, crate::quant::BadValue::ScaleOverflow));
}
