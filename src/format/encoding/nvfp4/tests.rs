use proptest::prelude::*;

use super::super::test_model::TestModel;
use super::*;

fn model(is_packed: bool, size: [u64; 2], codes: Vec<u8>, scales: Vec<u8>, of_all: f32) -> TestModel {
    let [rows, columns] = size;
    let (name, global) = if is_packed {
        ("m.weight_packed", "m.weight_global_scale")
    } else {
        ("m.weight", "m.weight_scale_2")
    };
    TestModel::default()
        .with(name, Dtype::U8, &[rows, columns / 2], codes)
        .with("m.weight_scale", Dtype::F8E4m3, &[rows, columns / 16], scales)
        .with(global, Dtype::F32, &[1], of_all.to_le_bytes().to_vec())
}

proptest! {
    #[test]
    fn weights_are_those_that_were_stored(
        (rows, groups) in (1_u64..9, 1_u64..5),
        (from, to) in (0_u64..9, 0_u64..9),
        is_packed in any::<bool>(),
        of_all in 0.001_f32..1000.0,
        seed in prop::collection::vec(any::<u8>(), 83),
    ) {
        let columns = groups * 16;
        let draw = |n: u64| seed[n as usize % 83].wrapping_add((n / 83) as u8);
        let codes: Vec<u8> = (0..rows * columns / 2).map(draw).collect();
        // Without NaN.
        let scales: Vec<u8> = (0..rows * groups).map(|n| draw(n + 11) & 0x77).collect();
        let model = model(is_packed, [rows, columns], codes.clone(), scales.clone(), of_all);
        let name = if is_packed { "m.weight_packed" } else { "m.weight" };
        let found = model.recognize(&Nvfp4, name).unwrap().unwrap();
        prop_assert_eq!(&found.shape, &[rows, columns]);
        let range = from.min(to).min(rows)..from.max(to).min(rows);
        let read = model.rows(name, &found, range.clone()).unwrap();
        for (n, weight) in ((range.start * columns) as usize..).zip(&read) {
            let code = codes[n / 2] >> (n % 2 * 4) & 15;
            let local = E4M3[usize::from(scales[n / 16])];
            let scale = if is_packed { local / of_all } else { local * of_all };
            prop_assert_eq!(weight.to_bits(), (E2M1[usize::from(code)] * scale).to_bits());
        }
    }
}

#[test]
fn what_is_incomplete_is_refused() {
    let no_global = TestModel::default().with("m.weight_packed", Dtype::U8, &[1, 8], vec![0; 8]).with(
        "m.weight_scale",
        Dtype::F8E4m3,
        &[1, 1],
        vec![0],
    );
    let refused = |model: &TestModel| model.recognize(&Nvfp4, "m.weight_packed").unwrap().unwrap_err();
    assert!(refused(&no_global).contains("m.weight_global_scale"));
    let two = no_global.with("m.weight_global_scale", Dtype::F32, &[2], vec![0; 8]);
    assert!(refused(&two).contains("not one F32"));
    // Exponents alone are MXFP4's.
    let other = TestModel::default().with("m.weight_packed", Dtype::U8, &[1, 16], vec![0; 16]).with(
        "m.weight_scale",
        Dtype::U8,
        &[1, 1],
        vec![0],
    );
    assert!(other.recognize(&Nvfp4, "m.weight_packed").is_none());

    for (scale, of_all) in [(0x7f, 1.0), (0x38, 0.0), (0x38, f32::NAN)] {
        let model = model(true, [1, 16], vec![0; 8], vec![scale], of_all);
        let found = model.recognize(&Nvfp4, "m.weight_packed").unwrap().unwrap();
        assert!(model.rows("m.weight_packed", &found, 0..1).unwrap_err().contains("no finite number"));
    }
}

/// The declaration of ModelOpt, and whether its weights alone are quantized.
fn modelopt(algorithm: &str, inputs: Option<Value>) -> Value {
    let mut declared = serde_json::json!({"quant_method": "modelopt", "quant_algo": algorithm});
    if let Some(inputs) = inputs {
        let weights = serde_json::json!({"num_bits": 4, "type": "float", "group_size": 16});
        declared["config_groups"] =
            serde_json::json!({"group_0": {"input_activations": inputs, "weights": weights}});
    }
    declared
}

#[test]
fn powers_of_two_of_modelopt_have_a_reciprocal_that_means_the_same() {
    let columns = 32;
    let codes: Vec<u8> = (0..columns).map(|n| (n * 37 + 11) as u8).collect();
    let scales = vec![0x38, 0x01, 0x7e, 0x40];
    for (of_all, is_exact) in [
        (2.0_f32.powi(-13), true),
        (2.0_f32.powi(110), true),
        // Its reciprocal is not a normal number.
        (2.0_f32.powi(127), false),
        (0.0001, false),
        (-0.25, false),
    ] {
        let mut model = model(false, [2, columns], codes.clone(), scales.clone(), of_all);
        model.declaration = Some(modelopt("W4A16_NVFP4", None));
        let found = model.recognize(&Nvfp4, "m.weight").unwrap().unwrap();
        let exact = found.matrix.exact();
        assert_eq!(exact.is_ok(), is_exact, "{of_all}: {exact:?}");
        if !is_exact {
            assert!(exact.unwrap_err().contains("no power of two"));
            continue;
        }
        let integers = model.integers("m.weight", &found, 0..2).unwrap();
        assert_eq!((&integers.codes, &integers.scales), (&codes, &scales));
        let divisor = f32::from_le_bytes(integers.global_scale.as_slice().try_into().unwrap());
        let mut packed = self::model(true, [2, columns], codes.clone(), scales.clone(), divisor);
        packed.declaration = Some(serde_json::json!({"quant_method": "compressed-tensors"}));
        let same = packed.recognize(&Nvfp4, "m.weight_packed").unwrap().unwrap();
        let bits = |rows: Vec<f32>| rows.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        assert_eq!(
            bits(model.rows("m.weight", &found, 0..2).unwrap()),
            bits(packed.rows("m.weight_packed", &same, 0..2).unwrap())
        );
    }
}

#[test]
fn what_quantizes_its_inputs_is_not_relabelled() {
    let inputs = serde_json::json!({"num_bits": 4, "type": "float", "group_size": 16, "dynamic": false});
    for (declared, is_exact) in [
        (modelopt("NVFP4", None), false),
        (modelopt("NVFP4", Some(inputs.clone())), false),
        (modelopt("NVFP4", Some(Value::Null)), true),
        (modelopt("W4A16_NVFP4", None), true),
    ] {
        let mut model = model(false, [1, 16], vec![0x21; 8], vec![0x38], 0.25);
        model.declaration = Some(declared.clone());
        let exact = model.recognize(&Nvfp4, "m.weight").unwrap().unwrap().matrix.exact();
        assert_eq!(exact.is_ok(), is_exact, "{declared}: {exact:?}");
    }
}
