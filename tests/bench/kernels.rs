//! How many weights a second the kernels take, on one thread: `cargo bench --bench kernels -- [WORD]`.
//!
//! For each scheme (whose name contains the word) and each instruction set of this machine: 10⁹ weights a second, the best of many
//! rounds over a tile that stays in the second cache, and in brackets the ratio to the portable code. `both` is quantizing and
//! measuring as a run does it, in one pass where that is faster.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use monoquant::quant::{
    Bits, FloatType, Granularity, Isa, Mse, Observer, Quantized, Quantizer, Scheme, Scratch, Storage,
};

const ROWS: usize = 64;
const COLS: usize = 4096;

/// How long each number is measured.
const TIME: Duration = Duration::from_millis(300);

/// A scheme, and weights of a type.
struct Case {
    name: &'static str,
    scheme: Scheme,
    observer: Observer,
    source: FloatType,
}

fn main() {
    let word = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let weights = gaussian(ROWS * COLS);
    let heads = ["quantize", "measure", "both", "dequantize"].map(|head| format!("{head:>14}"));
    say(&format!("{:26} {:9} {}", "scheme", "", heads.join(" ")));
    for case in cases().iter().filter(|case| case.name.contains(&word)) {
        let mut tile = Vec::new();
        case.source.narrow(&weights, &mut tile);
        let mut portable = None;
        for isa in Isa::available() {
            let speeds = speeds(case, isa, &tile);
            let portable = *portable.get_or_insert(speeds);
            let cell =
                |i: usize| format!("{:>14}", format!("{:.2} ({:.1})", speeds[i], speeds[i] / portable[i]));
            let cells = [0, 1, 2, 3].map(cell);
            let name = if isa == Isa::Portable { case.name } else { "" };
            say(&format!("{name:26} {:9} {}", isa.name(), cells.join(" ")));
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |name, bits, symmetric, granularity, observer, source| Case {
        name,
        scheme: Scheme { bits, symmetric, granularity, scale_type: source, storage: Storage::Packed },
        observer,
        source,
    };
    let (minmax, mse, percentile) =
        (Observer::Minmax, Observer::Mse(Mse::default()), Observer::Percentile(99.9));
    let (four, eight) = (Bits::Four, Bits::Eight);
    let (g128, g32, channel) = (Granularity::Group(128), Granularity::Group(32), Granularity::Channel);
    let (bf16, f16, f32) = (FloatType::Bf16, FloatType::F16, FloatType::F32);
    vec![
        case("int4 g128 symmetric", four, true, g128, minmax, bf16),
        case("int4 g128 asymmetric", four, false, g128, minmax, bf16),
        case("int4 g32 symmetric", four, true, g32, minmax, bf16),
        case("int4 channel symmetric", four, true, channel, minmax, bf16),
        case("int8 channel symmetric", eight, true, channel, minmax, bf16),
        case("int8 channel asymmetric", eight, false, channel, minmax, bf16),
        case("int4 g128 symmetric F16", four, true, g128, minmax, f16),
        case("int4 g128 symmetric F32", four, true, g128, minmax, f32),
        case("int4 g128 percentile", four, true, g128, percentile, bf16),
        case("int4 g128 mse", four, true, g128, mse, bf16),
        case("int8 channel mse", eight, true, channel, mse, bf16),
    ]
}

/// 10⁹ weights a second: quantized, measured, both, dequantized.
fn speeds(case: &Case, isa: Isa, tile: &[u8]) -> [f64; 4] {
    let quantizer = Quantizer::new(case.scheme, case.observer, case.source, COLS, isa);
    let (mut out, mut values, mut scratch) = (Quantized::default(), Vec::new(), Scratch::default());
    let quantize = best(|| {
        quantizer.quantize(None, tile, ROWS, &mut out, &mut scratch).expect("finite weights");
    });
    let measure = best(|| {
        black_box(quantizer.measure(tile, out.view(), ROWS, &mut scratch));
    });
    let both = best(|| {
        black_box(quantizer.quantize_and_measure(None, tile, ROWS, &mut out, &mut scratch))
            .expect("finite weights");
    });
    let dequantize = best(|| quantizer.dequantize(out.view(), ROWS, &mut values, &mut scratch));
    [quantize, measure, both, dequantize].map(|seconds| (ROWS * COLS) as f64 / seconds / 1e9)
}

/// The shortest time of a piece of work, in seconds.
fn best(mut work: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < TIME {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Normally distributed numbers with σ = 0.02.
fn gaussian(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut number = || {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform()).cos() * 0.02
    };
    (0..count).map(|_| number() as f32).collect()
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
