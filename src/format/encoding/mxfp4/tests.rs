use proptest::prelude::*;
use serde_json::json;

use super::super::test_model::TestModel;
use super::*;

/// What a code is, by its bits: a sign, two of the exponent with bias 1, one of the significand.
fn value(code: u8) -> f64 {
    let (exponent, significand) = (i32::from(code >> 1 & 3), f64::from(code & 1));
    let magnitude = match exponent {
        0 => significand / 2.0,
        _ => (1.0 + significand / 2.0) * 2_f64.powi(exponent - 1),
    };
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Codes and exponents of [rows, columns].
fn bytes(codes: &[u8], exponents: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect(), exponents.to_vec())
}

proptest! {
    /// Under each name it means the same, exactly.
    #[test]
    fn weights_are_those_that_were_stored(
        (rows, groups) in (1_u64..9, 1_u64..4),
        (from, to) in (0_u64..9, 0_u64..9),
        naming in 0_usize..4,
        exponents in prop::collection::vec(0_u8..=252, 40),
        seed in prop::collection::vec(any::<u8>(), 83),
    ) {
        let columns = groups * 32;
        let codes: Vec<u8> = (0..(rows * columns) as usize).map(|n| seed[n % 83].wrapping_add((n / 83) as u8) & 15).collect();
        let exponents: Vec<u8> = (0..(rows * groups) as usize).map(|n| exponents[n % 40]).collect();
        let (packed, scales) = bytes(&codes, &exponents);
        let (name, model) = match naming {
            0 => ("e.down_proj_blocks", TestModel::default()
                .with("e.down_proj_blocks", Dtype::U8, &[1, rows, groups, 16], packed)
                .with("e.down_proj_scales", Dtype::U8, &[1, rows, groups], scales)),
            1 => ("m.weight", TestModel::default()
                .with("m.weight", Dtype::I8, &[rows, columns / 2], packed)
                .with("m.scale", Dtype::F8E8m0, &[rows, groups], scales)),
            2 => ("m.weight", TestModel::default()
                .with("m.weight", Dtype::I8, &[rows, columns / 2], packed)
                .with("m.weight_scale_inv", Dtype::F8E8m0, &[rows, groups], scales)),
            _ => ("m.weight_packed", TestModel::default()
                .with("m.weight_packed", Dtype::U8, &[rows, columns / 2], packed)
                .with("m.weight_scale", Dtype::U8, &[rows, groups], scales)),
        };
        let found = model.recognize(&Mxfp4, name).unwrap().unwrap();
        prop_assert_eq!(&found.shape[found.shape.len() - 2..], &[rows, columns]);
        let meant = [Some("e.down_proj"), None, None, Some("m.weight")][naming];
        prop_assert_eq!((found.name.as_deref(), found.dtype), (meant, Dtype::Bf16));
        let range = from.min(to).min(rows)..from.max(to).min(rows);
        let read = model.rows(name, &found, range.clone()).unwrap();
        for (n, weight) in ((range.start * columns) as usize..).zip(&read) {
            let exact = value(codes[n]) * 2_f64.powi(i32::from(exponents[n / 32]) - 127);
            prop_assert_eq!(f64::from(*weight).to_bits(), exact.to_bits());
        }
    }
}

fn expert(dtype: Dtype, shape: &[u64]) -> TestModel {
    let size = shape.iter().product::<u64>() * dtype.bits() / 8;
    TestModel::default().with("l.experts.0.w1.weight", Dtype::I8, &[2, 32], vec![0; 64]).with(
        "l.experts.0.w1.scale",
        dtype,
        shape,
        vec![127; size as usize],
    )
}

#[test]
fn contradictions_are_refused() {
    let read = |model: &TestModel| model.recognize(&Mxfp4, "l.experts.0.w1.weight");
    assert!(read(&expert(Dtype::F8E8m0, &[2, 2])).unwrap().is_ok());
    assert!(read(&expert(Dtype::F8E8m0, &[1, 2])).unwrap().unwrap_err().contains("[1, 2]"));
    // Scales of another type belong to another encoding.
    assert!(read(&expert(Dtype::F32, &[2, 2])).is_none());
    let mut fp8 = expert(Dtype::F8E8m0, &[2, 2]);
    fp8.config = json!({"expert_dtype": "fp8"});
    assert!(read(&fp8).unwrap().unwrap_err().contains("says fp8"));
    fp8.config = json!({"expert_dtype": "fp4"});
    assert!(read(&fp8).unwrap().is_ok());

    let blocks = |shape: &[u64]| {
        let size = shape.iter().product::<u64>() as usize;
        TestModel::default().with("e.up_blocks", Dtype::U8, shape, vec![0; size])
    };
    let stack = |model: &TestModel| model.recognize(&Mxfp4, "e.up_blocks").unwrap().unwrap_err();
    assert!(stack(&blocks(&[1, 2, 1, 16])).contains("e.up_scales"));
    let other = blocks(&[1, 2, 1, 16]).with("e.up_scales", Dtype::U8, &[1, 1, 2], vec![0; 2]);
    assert!(stack(&other).contains("[1, 1, 2]"));
    let odd = blocks(&[1, 2, 1, 8]).with("e.up_scales", Dtype::U8, &[1, 2, 1], vec![0; 2]);
    assert!(stack(&odd).contains("16 bytes"));
}

#[test]
fn an_exponent_of_255_is_refused() {
    let model = TestModel::default().with("m.weight_packed", Dtype::U8, &[2, 16], vec![0x21; 32]).with(
        "m.weight_scale",
        Dtype::U8,
        &[2, 1],
        vec![254, 255],
    );
    let found = model.recognize(&Mxfp4, "m.weight_packed").unwrap().unwrap();
    let first = model.rows("m.weight_packed", &found, 0..1).unwrap();
    assert_eq!(first[..2], [2_f32.powi(126), 2_f32.powi(127)]);
    assert!(model.rows("m.weight_packed", &found, 0..2).unwrap_err().contains("255"));
}
