//! Measurements of bytes that this crate did not write.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::super::{Bits, Distortion, Granularity, Importance, Isa, Quantized, Scratch, Storage};
use super::strategies::{case, wide_case};
use super::{CASES, Case, close, plain_distortion, weighs_alike};
use crate::quant::test_weights::Numbers;

/// Stored bytes that are not of this crate's making: all codes, and scales of every size.
fn strange(case: &Case, seed: u64) -> Quantized {
    let (scheme, mut numbers) = (&case.scheme, Numbers(seed));
    let mut codes = vec![0; scheme.codes_bytes(case.rows, case.cols)];
    // One byte per code, but only four bits of it are used.
    let shift = if (scheme.bits, scheme.storage) == (Bits::Four, Storage::Plain) { 4 } else { 0 };
    codes.iter_mut().for_each(|code| *code = (numbers.next() as i8 >> shift) as u8);
    let mut zero_points = vec![0; scheme.zero_points_bytes(case.rows, case.cols)];
    zero_points.iter_mut().for_each(|zero_point| *zero_point = numbers.next() as u8);
    let few = numbers.next() % 3 == 0;
    let scales: Vec<f32> = (0..scheme.scales_bytes(case.rows, case.cols) / scheme.scale_type.bytes())
        .map(|_| match numbers.next() % if few { 40 } else { 6 } {
            0 => f32::from_bits(numbers.next() as u32 & 0x7fff_ffff),
            1 => f32::INFINITY,
            2 => -1.0,
            3 => 0.0,
            _ => 0.01 + numbers.uniform() as f32,
        })
        .collect();
    let mut bytes = Vec::new();
    scheme.scale_type.narrow(&scales, &mut bytes);
    Quantized { codes, scales: bytes, zero_points, global_scale: Vec::new() }
}

/// For any stored bytes, the distortion is that of their dequantized weights, on every instruction set.
fn check_strange(case: &Case, seed: u64) -> Result<(), TestCaseError> {
    let (quantized, mut scratch) = (strange(case, seed), Scratch::default());
    let mut first: Option<(Vec<u8>, Distortion)> = None;
    for isa in Isa::available() {
        let quantizer = case.quantizer(isa);
        let mut bytes = Vec::new();
        quantizer.dequantize(quantized.view(), case.rows, &mut bytes, &mut scratch);
        let distortion = quantizer.measure(&case.bytes, quantized.view(), case.rows, &mut scratch);
        let values = case.scheme.scale_type.widen(&bytes);
        if values.iter().all(|value| !value.is_nan()) {
            let importance = case.importance.as_ref().map(Importance::columns);
            let plain = plain_distortion(&case.weights(), &values, case.cols, importance);
            prop_assert_eq!(distortion.max_abs_error, plain.max_abs_error);
            prop_assert_eq!(distortion.max_abs_error_at, plain.max_abs_error_at);
            prop_assert_eq!(distortion.max_abs_weight, plain.max_abs_weight);
            prop_assert!(close(distortion.signal, plain.signal, plain.signal));
            prop_assert!(close(distortion.noise, plain.noise, plain.noise));
            prop_assert!(weighs_alike(&distortion, &plain));
            let size = (plain.signal * plain.noise).sqrt();
            prop_assert!(close(distortion.cross, plain.cross, size));
        } else {
            prop_assert!(distortion.max_abs_error.is_nan() && distortion.noise.is_nan());
        }
        let same = first.get_or_insert_with(|| (bytes.clone(), distortion));
        prop_assert_eq!(format!("{:?}", same.1), format!("{:?}", distortion));
        prop_assert!(same.0 == bytes, "dequantized on {}", isa.name());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn what_others_have_stored_is_measured_as_it_is_dequantized(
        narrow in case(), wide in wide_case(), seed in any::<u64>(),
    ) {
        for case in [narrow, wide] {
            if case.scheme.granularity != Granularity::Tensor {
                check_strange(&case, seed)?;
            }
        }
    }
}
