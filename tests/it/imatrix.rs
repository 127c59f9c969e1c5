//! Ranges chosen with activation statistics against llm-compressor's `imatrix_mse`: 87 cases and every group of the example model.

use std::collections::HashMap;

use monoquant::quant::reference::{Reference, from_words};
use monoquant::quant::{
    Bits, FloatType, Granularity, Importance, Isa, Mse, Observer, Quantized, Quantizer, Scheme, Scratch,
    Storage,
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::root;

type Tensors = HashMap<String, Vec<u8>>;

fn load(path: &str) -> Tensors {
    let bytes = std::fs::read(root().join(path)).expect("a golden file");
    let read = SafeTensors::deserialize(&bytes).expect("safetensors");
    read.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
}

fn manifest() -> Value {
    crate::support::json(&root().join("tests/golden/imatrix/imatrix-manifest.json"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    FloatType::F32.widen(bytes)
}

fn scheme_of(described: &Value, scale_type: FloatType) -> Scheme {
    Scheme {
        bits: if described["num_bits"] == 4 { Bits::Four } else { Bits::Eight },
        symmetric: described["symmetric"].as_bool().expect("a flag"),
        granularity: match described["group_size"].as_u64() {
            Some(size) => Granularity::Group(size as usize),
            None => Granularity::Channel,
        },
        scale_type,
        storage: Storage::Packed,
    }
}

fn source_of(dtype: &Value) -> FloatType {
    match dtype.as_str().expect("a type") {
        "F32" => FloatType::F32,
        "F16" => FloatType::F16,
        _ => FloatType::Bf16,
    }
}

fn importance(sums: &[u8], counts: &[u8]) -> Importance {
    let count = i64::from_le_bytes(counts.try_into().expect("one count"));
    Importance::new(&floats(sums), count as f64).expect("statistics")
}

#[test]
fn ranges_are_the_peers_or_better() {
    let manifest = manifest();
    let files: HashMap<&str, Tensors> = ["f32", "f16", "bf16"]
        .map(|dtype| (dtype, load(&format!("tests/golden/imatrix/imatrix-golden-{dtype}.safetensors"))))
        .into();
    let (mut cases, mut better, mut scratch) = (0, 0, Scratch::default());
    for case in manifest["cases"].as_array().expect("cases") {
        cases += 1;
        let key = case["key"].as_str().expect("a key");
        let source = source_of(&case["dtype"]);
        let tensors = &files[source.name().to_lowercase().as_str()];
        let scheme = scheme_of(&manifest["schemes"][case["scheme"].as_str().expect("a scheme")], source);
        let bytes = &tensors[case["weight"].as_str().expect("a weight")];
        let matrix = case["matrix"].as_str().expect("a matrix");
        let cols = manifest["matrices"][matrix]["shape"][1].as_u64().expect("columns") as usize;
        let rows = bytes.len() / source.bytes() / cols;
        let weights = source.widen(bytes);
        let statistics = case["statistics"].as_str();
        let found = statistics.map(|name| {
            let found = importance(&tensors[&format!("{name}/in_sum2")], &tensors[&format!("{name}/counts")]);
            // 1. Importance.
            for (ours, theirs) in found.columns().iter().zip(floats(&tensors[&format!("{name}/importance")]))
            {
                assert!(
                    (ours - theirs).abs() <= 3e-7 * theirs.max(f32::MIN_POSITIVE),
                    "{key}: {ours} {theirs}"
                );
            }
            found
        });
        let columns: Vec<f32> =
            found.as_ref().map_or_else(|| vec![1.0; cols], |found| found.columns().to_vec());
        let reference =
            Reference { scheme, observer: Observer::Mse(Mse::imatrix()), source, quotient: FloatType::F32 };
        let part = |name: &str| &tensors[&format!("{key}/{name}")];
        let (low, high) = (source.widen(part("range_min")), source.widen(part("range_max")));
        let size = match scheme.granularity {
            Granularity::Group(size) => size,
            _ => cols,
        };
        let per_row = cols / size;
        let ranges: Vec<(f32, f32)> = weights
            .chunks(size)
            .enumerate()
            .map(|(i, group)| {
                let columns = &columns[i % per_row * size..][..size];
                let ours = reference.weighted_range(group, columns, Mse::imatrix());
                let theirs = (low[i].min(0.0), high[i].max(0.0));
                let error = |range| reference.weighted_error(group, columns, range, 3.0);
                // 2. and 3.: the same range in F32, and never a worse one; but where the peer stops early or its cubes underflow.
                let is_blind = matrix == "stop" && scheme.bits == Bits::Four
                    || matrix == "edge" && error(ours) > 0.0 && error(ours) < 1e-36;
                if source == FloatType::F32 && !is_blind {
                    assert_eq!(ours, theirs, "{key}, group {i}");
                }
                assert!(error(ours) <= error(theirs), "{key}, group {i}");
                if matrix == "stop" && scheme.bits == Bits::Four {
                    better += usize::from(error(ours) < error(theirs));
                }
                ours
            })
            .collect();
        // The kernels choose the twin's ranges on every instruction set.
        let (want_scales, want_zeros): (Vec<f32>, Vec<i8>) =
            ranges.iter().map(|&range| reference.params(range)).unzip();
        let mut first: Option<Quantized> = None;
        for isa in Isa::available() {
            let mut quantizer = Quantizer::new(scheme, Observer::Mse(Mse::imatrix()), source, cols, isa);
            if let Some(found) = &found {
                quantizer = quantizer.weighted(found.clone());
            }
            let mut out = Quantized::default();
            quantizer.quantize(None, bytes, rows, &mut out, &mut scratch).expect("finite weights");
            assert_eq!(source.widen(&out.scales), want_scales, "{key} on {}", isa.name());
            if !scheme.symmetric {
                let groups = scheme.groups_per_row(cols);
                let zeros = zero_points(&out.zero_points, scheme.bits, rows, groups);
                assert_eq!(zeros, want_zeros, "{key} on {}", isa.name());
            }
            let distortion = quantizer.measure(bytes, out.view(), rows, &mut scratch);
            if let Some(found) = &found {
                // 7. As the definition reads, in f64.
                let mut dequantized = Vec::new();
                quantizer.dequantize(out.view(), rows, &mut dequantized, &mut scratch);
                let want = weighted_sqnr(&weights, &source.widen(&dequantized), found.columns());
                assert!((distortion.weighted_sqnr_db().expect("dB") - want).abs() < 1e-6, "{key}");
            } else {
                assert_eq!(distortion.weighted_sqnr_db(), None);
            }
            match &first {
                Some(first) => assert!(*first == out, "{key} on {}", isa.name()),
                None => first = Some(out),
            }
        }
        // 7. Of the golden's own dequantized tensor.
        if let Some(want) = case["weighted_sqnr_db"].as_f64() {
            let found = weighted_sqnr(&weights, &source.widen(part("dequantized")), &columns);
            assert!((found - want).abs() < 1e-6, "{key}: {found} {want}");
        }
    }
    assert_eq!(cases, 87);
    assert_eq!(better, 72, "groups in which the peer stops early");
}

fn zero_points(bytes: &[u8], bits: Bits, rows: usize, groups: usize) -> Vec<i8> {
    let words = bytes.as_chunks::<4>().0;
    let per_word = 32 / bits.count();
    let mut out = vec![0; rows * groups];
    for group in 0..groups {
        let column: Vec<u8> =
            (0..rows.div_ceil(per_word)).flat_map(|word| words[word * groups + group]).collect();
        for (row, zero) in from_words(bits, &column, rows).into_iter().enumerate() {
            out[row * groups + group] = zero;
        }
    }
    out
}

fn weighted_sqnr(weights: &[f32], dequantized: &[f32], columns: &[f32]) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (i, (&w, &d)) in weights.iter().zip(dequantized).enumerate() {
        let (w, h) = (f64::from(w), f64::from(columns[i % columns.len()]));
        signal += h * w * w;
        noise += h * (w - f64::from(d)).powi(2);
    }
    10.0 * (signal / noise).log10()
}

#[test]
fn equal_importance_is_none() {
    let tensors = load("tests/golden/imatrix/imatrix-golden-f32.safetensors");
    let key = |kind: &str, part: &str| format!("gauss/int4_sym_g128/imatrix_mse-{kind}/{part}");
    for part in ["range_min", "range_max"] {
        assert_eq!(tensors[&key("constant", part)], tensors[&key("none", part)]);
    }
}

#[test]
fn every_group_of_the_example_takes_the_peers_step() {
    let manifest = manifest();
    let steps = load("tests/golden/imatrix/imatrix-steps.safetensors");
    let statistics = load("examples/calibration/tiny-llama.stats.safetensors");
    let mut model = load("examples/tiny-llama/model-00001-of-00002.safetensors");
    model.extend(load("examples/tiny-llama/model-00002-of-00002.safetensors"));
    let factors = Mse::imatrix().factors();
    let (mut groups, mut others) = ([0; 2], [0; 2]);
    for (key, want) in &steps {
        let parts: Vec<&str> = key.split('/').collect();
        let source = source_of(&Value::from(parts[0]));
        let scheme = scheme_of(&manifest["schemes"][parts[1]], source);
        let found = importance(
            &statistics[&format!("{}.in_sum2", parts[2])],
            &statistics[&format!("{}.counts", parts[2])],
        );
        let weights = FloatType::Bf16.widen(&model[&format!("{}.weight", parts[2])]);
        let reference =
            Reference { scheme, observer: Observer::Mse(Mse::imatrix()), source, quotient: FloatType::F32 };
        let Granularity::Group(size) = scheme.granularity else { panic!("{key}") };
        let per_row = found.columns().len() / size;
        let is_narrow = usize::from(source == FloatType::Bf16);
        for (i, (group, &step)) in weights.chunks(size).zip(want).enumerate() {
            let columns = &found.columns()[i % per_row * size..][..size];
            let (low, high) = group.iter().fold((0.0_f32, 0.0_f32), |(l, h), &w| (l.min(w), h.max(w)));
            let range = |p: f32| (source.round(low * p), source.round(high * p));
            let ours = reference.weighted_range(group, columns, Mse::imatrix());
            let theirs = range(factors[usize::from(step)]);
            let error = |range| reference.weighted_error(group, columns, range, 3.0);
            assert!(error(ours) <= error(theirs), "{key}, group {i}");
            groups[is_narrow] += 1;
            others[is_narrow] += usize::from(ours != theirs);
        }
    }
    assert_eq!(groups, [49_152; 2]);
    assert_eq!(others[0], 0, "all F32 steps are the peer's");
    assert!(others[1] <= 1_293, "{others:?}");
}
