//! The parts of rounding with second moments on shapes of large models: `cargo bench --bench rounding -- [WORD]`.
//!
//! For each matrix (whose name contains the word): seconds, 10⁹ operations a second, and their share of the speed of the
//! library's product of 512 × c × 512 in the same numbers on as many threads. Moments are synthetic: those of
//! columns of different strength that depend on each other. Operations are those of products; the
//! descent counts as if it went three rounds, and single codes and scales count nothing.

#![expect(unsafe_code, reason = "the library's products are an unsafe function")]

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use monoquant::quant::{
    Bits, Correction, FloatType, Gptq, Granularity, Guided, Isa, Metric, Observer, OutputMetric, Quantizer,
    Scheme, Storage,
};
use rayon::prelude::*;

/// Rows that are rounded: parts that go over rows are told for all rows of the matrix.
const ROWS: usize = 512;

/// A matrix: its name, its outputs and its inputs.
const SHAPES: [(&str, usize, usize); 6] = [
    ("1B q", 2048, 2048),
    ("1B gate", 8192, 2048),
    ("1B down", 2048, 8192),
    ("8B q", 4096, 4096),
    ("8B gate", 14336, 4096),
    ("8B down", 4096, 14336),
];

/// Rows that are rounded together, as two threads have them of so many.
const TILE: usize = 256;

/// Outputs of a block of the gradients' moments.
const BLOCK: usize = 512;

fn main() {
    let word = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    say(&format!("{:10} {:10} {:>9} {:>9} {:>7}", "matrix", "part", "seconds", "GFLOP/s", "share"));
    for (name, rows, columns) in SHAPES.iter().filter(|(name, ..)| name.contains(&word)) {
        matrix(name, *rows, *columns);
    }
}

fn matrix(name: &str, rows: usize, columns: usize) {
    let (r, c, n) = (rows as f64, columns as f64, ROWS.min(rows));
    let (single, double) = (product_speed(columns, in_f32), product_speed(columns, in_f64));
    let tell_of = |peak: f64, part: &str, seconds: f64, operations: f64| {
        let speed = operations / seconds / 1e9;
        say(&format!("{name:10} {part:10} {seconds:9.2} {speed:9.1} {:6.0}%", 100.0 * speed / peak));
    };
    let tell = |part: &str, seconds: f64, operations: f64| tell_of(single, part, seconds, operations);
    let moments = moments(columns);
    let weights: Vec<f32> = gaussian(n * columns, 5).iter().map(|x| 0.02 * x).collect();
    let all = r / n as f64;

    let (correction, seconds) = timed(|| {
        let cross: Vec<f32> = moments.iter().map(|x| 0.01 * x).collect();
        Correction::new(columns, &moments, Some(cross)).expect("moments")
    });
    // The factor and its inverse, in F64.
    tell_of(double, "target L", seconds, 2.0 / 3.0 * c * c * c);
    let mut target = weights;
    let ((), seconds) = timed(|| {
        target.par_chunks_mut(TILE * columns).for_each(|tile| {
            correction.apply(tile, None).expect("finite weights");
        });
    });
    tell_of(double, "target", seconds * all, 4.0 * r * c * c);
    drop(correction);
    let (metric, seconds) = timed(|| Arc::new(Metric::new(columns, moments).expect("moments")));
    tell_of(double, "metric", seconds, 2.0 / 3.0 * c * c * c);

    let nearest = quantizer(columns);
    let solver = Gptq::new(nearest.clone(), Arc::clone(&metric));
    let (found, seconds) = timed(|| {
        target.par_chunks(TILE * columns).map(|tile| solver.round(tile).expect("rounded").error).sum::<f64>()
    });
    assert!(found.is_finite());
    // Feedback, a few rounds of products and of fits, and the two errors that are told.
    tell("gptq", seconds * all, r * c * c * (1.0 + 2.0 * 3.0 * 4.0 + 4.0));

    let block = BLOCK.min(n);
    let outputs = OutputMetric::new(n, block, &self_moments(n, block)).expect("moments");
    let solver = Guided::new(&nearest, Arc::clone(&metric));
    let (found, seconds) = timed(|| solver.round(&target, &outputs).expect("rounded").error);
    assert!(found.is_finite());
    let b = block as f64;
    // Feedback on both sides; three rounds of products, levels and slopes, and four sweeps; the two errors.
    let operations =
        r * c * (c + b + 3.0 * (2.0 * c + 2.0 * c + 2.0 * b + 4.0 * 2.0 * b) + 2.0 * (2.0 * c + 2.0 * b));
    tell("guided", seconds * all, operations);
}

/// The library's product of 512 × c × 512: of two matrices into a third.
type Product<T> = fn(usize, &[T], &[T], &mut [T]);

fn in_f32(columns: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    let wide = columns.cast_signed();
    assert!(a.len() == 512 * columns && b.len() == 512 * columns && out.len() == 512 * 512);
    // SAFETY: the lengths are those of 512 rows of `columns` numbers, of as many of 512, and of 512 rows of 512 that nobody else has.
    unsafe {
        let (a, b, to) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr());
        matrixmultiply::sgemm(512, columns, 512, 1.0, a, wide, 1, b, 512, 1, 0.0, to, 512, 1);
    }
}

fn in_f64(columns: usize, a: &[f64], b: &[f64], out: &mut [f64]) {
    let wide = columns.cast_signed();
    assert!(a.len() == 512 * columns && b.len() == 512 * columns && out.len() == 512 * 512);
    // SAFETY: as in F32.
    unsafe {
        let (a, b, to) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr());
        matrixmultiply::dgemm(512, columns, 512, 1.0, a, wide, 1, b, 512, 1, 0.0, to, 512, 1);
    }
}

/// 10⁹ operations a second of the library's product, on all threads of the pool.
fn product_speed<T: From<f32> + Copy + Send + Sync>(columns: usize, product: Product<T>) -> f64 {
    let threads = rayon::current_num_threads();
    let numbers = |seed| -> Vec<T> { gaussian(512 * columns, seed).into_iter().map(T::from).collect() };
    let (a, b) = (numbers(1), numbers(2));
    let rounds = (2_000_000_000 / (2 * 512 * 512 * columns)).max(1);
    let all = || {
        (0..threads).into_par_iter().for_each(|_| {
            let mut out = vec![T::from(0.0); 512 * 512];
            (0..rounds).for_each(|_| product(columns, &a, &b, &mut out));
            std::hint::black_box(out);
        });
    };
    all();
    let best = (0..3).map(|_| timed(all).1).fold(f64::INFINITY, f64::min);
    (threads * rounds * 2 * 512 * 512 * columns) as f64 / best / 1e9
}

fn quantizer(columns: usize) -> Quantizer {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(128),
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    Quantizer::new(scheme, Observer::Minmax, FloatType::Bf16, columns, Isa::detect())
}

/// a aᵀ of a few common inputs, and columns of their own strength.
fn moments(columns: usize) -> Vec<f32> {
    let common = 8;
    let strength: Vec<f32> = gaussian(columns, 3).iter().map(|x| x.exp()).collect();
    let shared = gaussian(columns * common, 4);
    let mut out = vec![0f32; columns * columns];
    out.par_chunks_mut(columns).enumerate().for_each(|(i, row)| {
        let own = &shared[i * common..(i + 1) * common];
        for (j, x) in row.iter_mut().enumerate() {
            let other = &shared[j * common..(j + 1) * common];
            let in_common: f32 = own.iter().zip(other).map(|(a, b)| a * b).sum();
            *x = strength[i] * strength[j] * (0.1 * in_common + f32::from(u8::from(i == j)));
        }
    });
    out
}

/// The same of gradients, block by block.
fn self_moments(rows: usize, block: usize) -> Vec<f32> {
    let starts = (0..rows).step_by(block);
    starts.flat_map(|start| moments(block.min(rows - start))).collect()
}

fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f32) / 2f32.powi(31)
    };
    (0..count).map(|_| (0..4).map(|_| next()).sum::<f32>() * 1.73 - 3.46).collect()
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let out = run();
    (out, start.elapsed().as_secs_f64())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}
