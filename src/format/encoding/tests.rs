use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{ALL, Contents, of, readable};
use crate::quant::{
    Bits, Float4, Float8, FloatType, Granularity, Isa, Observer, Quantized, Quantizer, Role, Scheme, Scratch,
    Solver, Storage,
};

fn schemes() -> impl Strategy<Value = Scheme> {
    let bits = prop_oneof![Just(Bits::Four), Just(Bits::Eight)];
    let granularity =
        prop_oneof![Just(Granularity::Group(8)), Just(Granularity::Group(32)), Just(Granularity::Channel)];
    let scale_type = prop_oneof![Just(FloatType::Bf16), Just(FloatType::F16), Just(FloatType::F32)];
    let storage = prop_oneof![Just(Storage::Packed), Just(Storage::Plain)];
    let blocks =
        prop_oneof![Just(Granularity::Block(8)), Just(Granularity::Block(24)), Just(Granularity::Channel)];
    let floats = (blocks, scale_type.clone()).prop_map(|(granularity, scale_type)| Scheme {
        bits: Bits::Eight,
        symmetric: true,
        granularity,
        scale_type,
        storage: Storage::Float8,
    });
    let nibbles = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(32),
        scale_type: FloatType::Bf16,
        storage: Storage::Mxfp4,
    };
    let scaled = Scheme { granularity: Granularity::Group(16), storage: Storage::Nvfp4, ..nibbles };
    let integers = (bits, any::<bool>(), granularity, scale_type, storage).prop_map(
        |(bits, symmetric, granularity, scale_type, storage)| Scheme {
            bits,
            symmetric,
            granularity,
            scale_type,
            storage,
        },
    );
    prop_oneof![4 => integers, 1 => floats, 1 => Just(nibbles), 1 => Just(scaled)]
}

proptest! {
    /// Decoding the parts gives the weights that the kernels encoded, and tiles fill every part exactly.
    #[test]
    fn parts_go_round(
        scheme in schemes(),
        rows in 1_usize..40,
        groups in 1_usize..4,
        seed in prop::collection::vec(-1.0_f32..1.0, 64),
    ) {
        let columns = groups * 32;
        let solver: Box<dyn Solver> = match scheme.storage {
            Storage::Float8 => Box::new(Float8::new(scheme, FloatType::F32, columns)),
            Storage::Mxfp4 | Storage::Nvfp4 => Box::new(Float4::new(scheme, FloatType::F32, columns)),
            _ => Box::new(Quantizer::new(scheme, Observer::Minmax, FloatType::F32, columns, Isa::Portable)),
        };
        let weights: Vec<f32> = (0..rows * columns).map(|i| seed[i * 7 % 64] * (1 + i % 5) as f32).collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let (mut quantized, mut scratch) = (Quantized::default(), Scratch::default());

        let params = (solver.survey_passes() > 0).then(|| {
            let mut survey = solver.begin_survey();
            survey.merge(solver.survey(&survey, &bytes, rows).unwrap());
            solver.tensor_params(&survey).unwrap()
        });
        let written = ALL.iter().filter_map(|encoding| encoding.written());
        for encoding in written.filter(|encoding| encoding.stores(&scheme)) {
        let parts = encoding.parts(&scheme, rows as u64, columns as u64);
        let mut stored: Vec<Vec<Option<u8>>> =
            parts.iter().map(|part| vec![None; part.bytes as usize]).collect();
        let step = scheme.row_multiple();
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let tile = &bytes[first * columns * 4..(first + count) * columns * 4];
            solver.solve(params.as_ref(), tile, first..first + count, &mut quantized, &mut scratch).unwrap();
            for (part, stored) in parts.iter().zip(&mut stored) {
                let Some((start, bytes)) = part.of_tile(first as u64, quantized.part(part.role)) else {
                    continue;
                };
                for (slot, byte) in stored[start as usize..].iter_mut().zip(bytes) {
                    prop_assert!(slot.is_none(), "a byte is written once");
                    *slot = Some(*byte);
                }
            }
        }
        let stored: Vec<Vec<u8>> = stored
            .into_iter()
            .map(|part| part.into_iter().map(|byte| byte.expect("every byte is written")).collect())
            .collect();

        let of_role = |role: Role| {
            let at = parts.iter().position(|part| part.role == role)?;
            Some(stored[at].as_slice())
        };
        let decoded = encoding.decode(&scheme, rows, columns, &of_role).expect("all parts are there");
        solver.solve(params.as_ref(), &bytes, 0..rows, &mut quantized, &mut scratch).unwrap();
        let mut meant = Vec::new();
        solver.dequantize(quantized.view(), rows, &mut meant, &mut scratch);
        prop_assert_eq!(decoded, scheme.scale_type.widen(&meant));

        let without = |role: Role| of_role(role).filter(|_| role != Role::Scales);
        prop_assert!(encoding.decode(&scheme, rows, columns, &without).is_none());
        let cut = |role: Role| of_role(role).map(|bytes| &bytes[..bytes.len() - 1]);
        prop_assert!(encoding.decode(&scheme, rows, columns, &cut).is_none());
        }
    }

    #[test]
    fn a_scheme_has_an_encoding(scheme in schemes()) {
        prop_assert!(of(&scheme).stores(&scheme));
    }
}

#[test]
fn encodings_have_names_of_their_own() {
    let names: BTreeSet<&str> = ALL.iter().map(|encoding| encoding.name()).collect();
    assert_eq!(names.len(), ALL.len());
    assert!(readable().count() > 0);
}

#[test]
fn one_scale_per_tensor_is_written_once() {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: false,
        granularity: Granularity::Tensor,
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    let parts = of(&scheme).parts(&scheme, 5, 13);
    let names = of(&scheme).roles(&scheme).iter().map(|(_, name)| *name);
    let shapes: Vec<(&str, &[u64])> = names.zip(parts.iter().map(|part| part.shape.as_slice())).collect();
    assert_eq!(
        shapes,
        [
            ("weight_packed", &[5, 2][..]),
            ("weight_scale", &[1]),
            ("weight_zero_point", &[1]),
            ("weight_shape", &[2])
        ]
    );
    assert_eq!(parts[1].contents, Contents::Same);
    assert_eq!(parts[1].of_tile(0, &[1, 2]), Some((0, &[1, 2][..])));
    assert_eq!(parts[1].of_tile(2, &[1, 2]), None);
    assert_eq!(parts[0].of_tile(2, &[9; 16]), Some((16, &[9; 16][..])));
}
