use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::quant::small_floats::E4M3;
use crate::quant::{Float4, FloatType, Scratch, Solver};

fn blocks(scale_type: FloatType) -> Scheme {
    Scheme {
        bits: Bits::Eight,
        symmetric: true,
        granularity: Granularity::Block(128),
        scale_type,
        storage: Storage::Float8,
    }
}

/// The numbers that MXFP4 means.
fn meant(of: &Integers) -> Vec<f32> {
    let groups = of.codes.chunks(16).zip(&of.scales);
    let numbers = groups.flat_map(|(codes, &exponent)| {
        let number = move |nibble: u8| E2M1[usize::from(nibble)] * e8m0(exponent);
        codes.iter().flat_map(move |byte| [number(byte & 15), number(byte >> 4)])
    });
    numbers.collect()
}

/// The numbers that FP8 in blocks means.
fn decoded(of: &Quantized, scheme: &Scheme, columns: usize) -> Vec<f32> {
    let scales = scheme.scale_type.widen(&of.scales);
    let across = scheme.groups_per_row(columns);
    let rows = of.codes.chunks(columns).enumerate();
    let numbers = rows.flat_map(|(row, codes)| {
        let scales = &scales[row / 128 * across..];
        codes.iter().enumerate().map(move |(column, code)| E4M3[usize::from(*code)] * scales[column / 128])
    });
    numbers.collect()
}

#[test]
fn blocks_are_those_of_the_goldens_and_wide_ones_are_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mxfp4-blocks.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let part = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let of = |case: &str| Integers {
        codes: part(&format!("{case}/weight_packed")),
        scales: part(&format!("{case}/weight_scale")),
        ..Integers::default()
    };
    let (scheme, mut out) = (blocks(FloatType::F32), Quantized::default());
    of("fits").write_blocks(&scheme, 160, &mut out).unwrap();
    assert!(out.scales == part("fits/fp8_scale_f32"));
    assert!(out.codes == part("fits/fp8_weight"));
    assert!(of("too_wide").write_blocks(&scheme, 160, &mut out) == Err((128, 128)));
}

proptest! {
    /// What is written means the same numbers, if exponents are near enough, in blocks that end at the edges, too.
    #[test]
    fn numbers_stay_the_same(
        rows in 1_usize..200,
        groups in 1_usize..7,
        least in 0_u8..230,
        apart in 0_u8..=MOST_APART,
        seed in prop::collection::vec(any::<u8>(), 97),
        zeros in any::<bool>(),
    ) {
        let mut of = Integers {
            codes: (0..rows * groups * 16).map(|n| seed[n % 97].rotate_left((n / 97 % 7) as u32)).collect(),
            scales: (0..rows * groups).map(|n| least + seed[(n * 5) % 97] % (apart + 1)).collect(),
            ..Integers::default()
        };
        if zeros {
            // A group of zeros may have any exponent.
            of.codes[..16].fill(0x80);
            of.scales[0] = 254;
        }
        let columns = groups * MX_GROUP;
        for scale_type in [FloatType::Bf16, FloatType::F32] {
            let (scheme, mut out) = (blocks(scale_type), Quantized::default());
            of.write_blocks(&scheme, columns, &mut out).unwrap();
            prop_assert_eq!(out.codes.len(), rows * columns);
            prop_assert_eq!(out.scales.len(), scheme.scales_bytes(rows, columns));
            let found = decoded(&out, &scheme, columns);
            for (at, (found, meant)) in found.iter().zip(meant(&of)).enumerate() {
                if meant.is_finite() {
                    prop_assert_eq!(found.to_bits(), meant.to_bits(), "{}", at);
                }
            }
        }
        // One that is further away is found.
        of.codes[0] = 0x77;
        of.scales[0] = least;
        let far = least + MOST_APART + 1;
        let last = of.scales.len() - 1;
        of.scales[last] = far;
        of.codes[last * 16] = 0x11;
        let is_one_block = rows <= 128 && groups <= 4 && last > 0;
        if is_one_block {
            let refused = of.write_blocks(&blocks(FloatType::Bf16), columns, &mut Quantized::default());
            prop_assert_eq!(refused, Err((0, 0)));
        }
    }
}

#[test]
fn what_is_re_labelled_as_it_is_keeps_every_byte() {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(MX_GROUP),
        scale_type: FloatType::Bf16,
        storage: Storage::Mxfp4,
    };
    let bytes: Vec<u8> = (0..256_u16).flat_map(|n| (0x3f00 + n * 3).to_le_bytes()).collect();
    let (mut made, mut out) = (Quantized::default(), Quantized::default());
    let solver = Float4::new(scheme, FloatType::Bf16, 64);
    solver.solve(None, &bytes, 0..4, &mut made, &mut Scratch::default()).unwrap();
    let of = Integers { codes: made.codes.clone(), scales: made.scales.clone(), ..Integers::default() };
    of.write(&scheme, 64, &mut out);
    assert_eq!(out, made);
}
