use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::*;
use crate::quant::test_weights::{gaussian, heavy};
use crate::quant::{Bits, Observer, Storage};

fn scheme(granularity: Granularity, scale_type: FloatType) -> Scheme {
    Scheme { bits: Bits::Eight, symmetric: true, granularity, scale_type, storage: Storage::Float8 }
}

fn solved(solver: &Float8, tile: &[u8], rows: Range<usize>) -> (Quantized, Distortion) {
    let (mut out, mut scratch) = (Quantized::default(), Scratch::default());
    let measured = solver.solve_and_measure(None, tile, rows, &mut out, &mut scratch).unwrap();
    (out, measured)
}

/// Scales are compressed-tensors' bit for bit, and so are codes in F32. Elsewhere it rounds the quotient to the weights' type
/// first: a code is then the next one at most, and never nearer to the weight than ours.
#[test]
fn scales_and_codes_are_those_of_compressed_tensors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fp8.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let (mut cases, mut others, mut all) = (0, 0, 0);
    for (name, tensor) in golden.tensors() {
        let Some((matrix, granularity)) = name
            .strip_suffix("/weight")
            .and_then(|name| Some((name.rsplit_once('/')?.0, name.rsplit_once('/')?.1)))
        else {
            continue;
        };
        let granularity = match granularity {
            "channel" => Granularity::Channel,
            "block" => Granularity::Block(128),
            _ => continue,
        };
        assert_eq!(tensor.dtype(), Dtype::F8_E4M3);
        let weights = golden.tensor(&format!("{matrix}/weight")).unwrap();
        let scales = golden.tensor(&format!("{}_scale", name)).unwrap();
        let source = match weights.dtype() {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            _ => FloatType::Bf16,
        };
        let [rows, columns] = weights.shape()[..] else { panic!("{name}") };
        let solver = Float8::new(scheme(granularity, source), source, columns);
        let (out, _) = solved(&solver, weights.data(), 0..rows);
        assert!(out.scales == scales.data(), "{name}");
        cases += 1;
        all += out.codes.len();
        if source == FloatType::F32 {
            assert!(out.codes == tensor.data(), "{name}");
            continue;
        }
        let (values, scales) = (source.widen(weights.data()), source.widen(scales.data()));
        let peers = solver.rows(tensor.data(), &scales).flat_map(|(codes, scales)| {
            codes.iter().enumerate().map(|(column, code)| (*code, scales[column / solver.block()[1]]))
        });
        for ((ours, (theirs, scale)), weight) in out.codes.iter().zip(peers).zip(&values) {
            if *ours == theirs {
                continue;
            }
            others += 1;
            let error =
                |code: u8| (f64::from(E4M3[usize::from(code)]) * f64::from(scale) - f64::from(*weight)).abs();
            assert_eq!(ours.abs_diff(theirs), 1, "{name}: {weight}");
            assert!(error(*ours) <= error(theirs) * (1.0 + 1e-6), "{name}: {weight}");
        }
    }
    assert_eq!(cases, 32);
    assert!(others > 0 && others * 20 < all, "{others} of {all}");
}

#[test]
fn tiles_are_parts_of_the_whole_and_blocks_end_at_the_edges() {
    let (rows, columns, source) = (300, 200, FloatType::Bf16);
    let mut bytes = Vec::new();
    source.narrow(&heavy(rows * columns, 5), &mut bytes);
    for (granularity, step) in [(Granularity::Channel, 7), (Granularity::Block(128), 128)] {
        let scheme = scheme(granularity, source);
        let solver = Float8::new(scheme, source, columns);
        let (whole, measured) = solved(&solver, &bytes, 0..rows);
        assert_eq!(whole.scales.len(), scheme.scales_bytes(rows, columns));
        let (mut parts, mut merged) = (Quantized::default(), Distortion::default());
        for first in (0..rows).step_by(step) {
            let range = first..rows.min(first + step);
            let tile = &bytes[range.start * columns * 2..range.end * columns * 2];
            let (part, of_part) = solved(&solver, tile, range);
            parts.codes.extend(part.codes);
            parts.scales.extend(part.scales);
            merged.merge(&of_part, first);
        }
        assert!(parts == whole);
        assert_eq!(merged.worst_group, measured.worst_group);
        assert_eq!(
            (merged.max_abs_error, merged.max_abs_error_at),
            (measured.max_abs_error, measured.max_abs_error_at)
        );
        assert!((merged.noise / measured.noise - 1.0).abs() < 1e-9 && merged.is_of(300, 200));

        // What is measured is what engines see.
        let mut meant = Vec::new();
        solver.dequantize(whole.view(), rows, &mut meant, &mut Scratch::default());
        let (weights, meant) = (source.widen(&bytes), source.widen(&meant));
        let noise: f64 =
            weights.iter().zip(&meant).map(|(w, d)| (f64::from(*w) - f64::from(*d)).powi(2)).sum();
        assert!((noise / measured.noise - 1.0).abs() < 1e-9);
        let worst = measured.worst_group.unwrap();
        let of_block = |n: &usize| {
            let (row, column) = (n / columns, n % columns);
            let height = if granularity == Granularity::Channel { 1 } else { 128 };
            row / height * height == worst.row && (height == 1 || column / 128 == worst.group)
        };
        let signal: f64 = (0..weights.len()).filter(of_block).map(|n| f64::from(weights[n]).powi(2)).sum();
        assert!((signal / worst.signal - 1.0).abs() < 1e-9);
    }
}

#[test]
fn gaussian_weights_reach_what_is_expected() {
    for source in [FloatType::Bf16, FloatType::F32] {
        for (granularity, rows, columns) in [
            (Granularity::Channel, 256, 512),
            (Granularity::Channel, 32, 4096),
            (Granularity::Block(128), 256, 512),
        ] {
            let mut bytes = Vec::new();
            source.narrow(&gaussian(rows * columns, 11), &mut bytes);
            let scheme = scheme(granularity, source);
            let (_, measured) = solved(&Float8::new(scheme, source, columns), &bytes, 0..rows);
            let expected = scheme.expected_sqnr(&Observer::Minmax, columns).unwrap();
            let found = measured.sqnr_db().unwrap();
            assert!((found - expected).abs() < 0.25, "{scheme}, {source:?}: {found} {expected}");
        }
    }
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let bad = |source: FloatType, scale_type: FloatType, weights: &[f32]| {
        let mut bytes = Vec::new();
        source.narrow(weights, &mut bytes);
        let solver = Float8::new(scheme(Granularity::Channel, scale_type), source, 3);
        solver.solve(None, &bytes, 0..2, &mut Quantized::default(), &mut Scratch::default()).unwrap_err()
    };
    let f32s = FloatType::F32;
    let found = bad(f32s, f32s, &[1.0, 2.0, 3.0, 0.0, f32::NAN, f32::INFINITY]);
    assert_eq!(found, BadWeight { row: 1, col: 1, what: BadValue::NotANumber });
    let found = bad(f32s, f32s, &[1.0, f32::NEG_INFINITY, 3.0, 0.0, f32::NAN, 0.0]);
    assert_eq!(found, BadWeight { row: 0, col: 1, what: BadValue::Infinite });
    let found = bad(f32s, FloatType::F16, &[1.0, 2.0, 3.0, 0.0, 1.0, -1e9]);
    assert_eq!(found, BadWeight { row: 1, col: 2, what: BadValue::ScaleOverflow });
}

#[test]
fn rows_of_zeros_are_exact_and_vanished_scales_are_told() {
    let source = FloatType::F16;
    let solver = Float8::new(scheme(Granularity::Channel, source), source, 2);
    let mut bytes = Vec::new();
    source.narrow(&[0.0, -0.0, 1e-7, 0.0, 0.5, -1.0], &mut bytes);
    let (out, measured) = solved(&solver, &bytes, 0..3);
    assert_eq!(out.codes[..2], [0, 0x80]);
    let tiny = f64::from(source.round(1e-7)).powi(2);
    assert_eq!(solver.faint_signal(&bytes, out.view(), 3), tiny, "the second row is lost");
    assert!(measured.is_finite() && measured.is_of(3, 2));
}
