//! Inputs of the property tests: weights, importance, schemes and shapes.

use proptest::prelude::*;

use super::super::{Bits, FloatType, Granularity, Importance, Mse, Observer, Scheme, Storage};
use super::Case;
use crate::quant::test_weights::{Numbers, gaussian, heavy};

/// Weights of one character, of values that the type can hold.
pub(super) fn weights(kind: usize, count: usize, seed: u64, source: FloatType) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let top = greatest(source);
    let least = match source {
        FloatType::F32 => f32::from_bits(1),
        FloatType::F16 => 2f32.powi(-24),
        FloatType::Bf16 => f32::from_bits(1 << 16),
    };
    match kind {
        0 => gaussian(count, seed),
        1 => heavy(count, seed),
        2 => gaussian(count, seed).iter().map(|x| x * 40.0 * least).collect(),
        3 => gaussian(count, seed).iter().map(|x| x.clamp(-4.0, 4.0) / 4.0 * top).collect(),
        // Ties: multiples of half a step, with the ends of the range now and then.
        4 => (0..count).map(|_| (numbers.next() % 61) as f32 / 8.0 - 3.75).collect(),
        5 => (0..count).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
        6 => vec![0.5; count],
        // Every magnitude there is.
        7 => (0..count)
            .map(|_| {
                let exponent = numbers.uniform() * 60.0 - 40.0;
                (numbers.gaussian().signum() * exponent.exp2()).clamp(-f64::from(top), f64::from(top)) as f32
            })
            .collect(),
        8 => gaussian(count, seed).iter().map(|x| x.abs() + 3.0).collect(),
        _ => gaussian(count, seed).iter().map(|x| if x.abs() > 2.0 { x * 1e4 } else { 0.0 }).collect(),
    }
}

/// Makes some rows much smaller or larger than the others.
fn spread(weights: &mut [f32], cols: usize, seed: u64, source: FloatType) {
    let (mut numbers, top) = (Numbers(seed), greatest(source));
    for row in weights.chunks_mut(cols) {
        let factor = [1.0, 1.0, 1e-20, 1e19][numbers.next() as usize % 4];
        row.iter_mut().for_each(|weight| *weight = (*weight * factor).clamp(-top, top));
    }
}

/// The greatest value of a type.
fn greatest(source: FloatType) -> f32 {
    match source {
        FloatType::F32 => f32::MAX,
        FloatType::F16 => 65504.0,
        FloatType::Bf16 => f32::from_bits(0x7f7f_0000),
    }
}

/// Importance of one kind; none for some kinds, and if all columns would be 0.
pub(super) fn importance(kind: usize, cols: usize, seed: u64) -> Option<Importance> {
    let mut numbers = Numbers(seed);
    let mut sum = |column: usize| match kind {
        0 => 1.0,
        1 => numbers.gaussian().exp(),
        // Columns that never get an activation, some of them consecutive.
        2 if column < 16 || numbers.next().is_multiple_of(5) => 0.0,
        2 => numbers.gaussian().exp(),
        // Down to numbers that have no precision left.
        3 => (-149.0 * numbers.uniform()).exp2(),
        _ => f64::NAN,
    };
    let sums: Vec<f32> = (0..cols).map(|column| sum(column) as f32).collect();
    Importance::new(&sums, 1.0).ok()
}

pub(super) fn float_type() -> impl Strategy<Value = FloatType> {
    prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)]
}

fn observer() -> impl Strategy<Value = Observer> {
    prop_oneof![
        3 => Just(Observer::Minmax),
        2 => Just(Observer::Mse(Mse::default())),
        1 => Just(Observer::Mse(Mse { maxshrink: 0.9, grid: 10.0, norm: 3.0, last: false, signed: false })),
        1 => Just(Observer::Mse(Mse::imatrix())),
        2 => Just(Observer::SignedMinmax),
        2 => Just(Observer::Mse(Mse { signed: true, ..Mse::default() })),
        1 => Just(Observer::Mse(Mse { maxshrink: 0.5, grid: 16.0, norm: 1.5, last: false, signed: false })),
        1 => Just(Observer::Mse(Mse { maxshrink: 0.5, grid: 16.0, norm: 1.5, last: true, signed: true })),
        1 => Just(Observer::Mse(Mse { maxshrink: 1.0, grid: 8.0, norm: 8.0, last: false, signed: false })),
        2 => (50.0..100.0).prop_map(Observer::Percentile),
        1 => Just(Observer::Percentile(99.9)),
        1 => Just(Observer::Percentile(100.0)),
    ]
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let granularity = prop_oneof![
        (prop::sample::select(vec![8usize, 16, 32, 40, 128]), 1..4usize)
            .prop_map(|(size, groups)| (Granularity::Group(size), size * groups)),
        (1..400usize).prop_map(|cols| (Granularity::Channel, cols)),
        (1..60usize).prop_map(|cols| (Granularity::Tensor, cols)),
    ];
    let types = (float_type(), float_type(), any::<bool>())
        .prop_map(|(source, other, same)| (source, if same { source } else { other }));
    (any::<[bool; 3]>(), granularity, types, observer(), 1..20usize, 0..10usize, any::<u64>()).prop_map(of)
}

/// Whether it is of four bits, symmetric, packed; granularity and columns; types of weights and scales; observer; rows; the
/// character of the weights; a seed.
type Drawn = ([bool; 3], (Granularity, usize), (FloatType, FloatType), Observer, usize, usize, u64);

/// Weights of some character, with importance or without.
fn of(drawn: Drawn) -> Case {
    let ([four, symmetric, packed], (granularity, cols), (source, scale_type), observer, rows, kind, seed) =
        drawn;
    let scheme = Scheme {
        bits: if four { Bits::Four } else { Bits::Eight },
        symmetric,
        granularity,
        scale_type,
        storage: if packed { Storage::Packed } else { Storage::Plain },
    };
    let mut bytes = Vec::new();
    let mut weights = weights(kind, rows * cols, seed, source);
    if seed.is_multiple_of(3) {
        spread(&mut weights, cols, seed, source);
    }
    source.narrow(&weights, &mut bytes);
    // Kinds above 3 are none.
    let importance = importance((seed % 8) as usize, cols, seed);
    Case { scheme, observer, source, rows, cols, importance, bytes, tile: 8 }
}

/// Shapes at the edges of what kernels take in pairs and in one segment: groups of several blocks, rows of several segments, and sizes
/// next to them.
pub(super) fn wide_case() -> impl Strategy<Value = Case> {
    let granularity = prop_oneof![
        (prop::sample::select(vec![32usize, 48, 64, 96, 256, 264, 288, 512, 2048, 4096]), 1..5usize)
            .prop_map(|(size, groups)| (Granularity::Group(size), size * groups)),
        prop::sample::select(vec![224usize, 256, 1152, 2880, 4096, 16_384, 16_416, 20_000, 2049, 4097])
            .prop_map(|cols| (Granularity::Channel, cols)),
        prop::sample::select(vec![256usize, 288, 4096, 16_640]).prop_map(|cols| (Granularity::Tensor, cols)),
    ];
    let observer = prop_oneof![
        3 => Just(Observer::Minmax),
        2 => Just(Observer::SignedMinmax),
        1 => Just(Observer::Percentile(99.9)),
        1 => Just(Observer::Percentile(90.0)),
    ];
    let float = prop_oneof![4 => Just(FloatType::Bf16), 1 => Just(FloatType::F16), 1 => Just(FloatType::F32)];
    let types = (float.clone(), float);
    (any::<[bool; 3]>(), granularity, types, observer, 1..4usize, 0..10usize, any::<u64>()).prop_map(of)
}
