//! Matrices that tools have stored are decoded to what the tools' own code makes of them, bit for bit, and re-labelled to
//! the codes and scales that compressed-tensors' code makes of them.
//! `tests/interop/make_source_golden.py` makes the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::test_model::TestModel;
use super::{Catalog, Recognized, readable, unquantized};
use crate::format::Dtype;
use crate::quant::Quantized;

/// A tensor of the file.
struct Tensor {
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// The tensors of the goldens by case, and each case's declaration.
fn goldens() -> (BTreeMap<String, BTreeMap<String, Tensor>>, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sources.safetensors");
    let all = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&all[8..8 + len]).unwrap();
    let mut cases: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (name, tensor) in header.as_object().unwrap() {
        let Some((case, name)) = name.split_once('/') else { continue };
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let offsets = &tensor["data_offsets"];
        let tensor = Tensor {
            dtype: Dtype::from_name(tensor["dtype"].as_str().unwrap()).unwrap(),
            shape: tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect(),
            bytes: all[8 + len + number(&offsets[0])..8 + len + number(&offsets[1])].to_vec(),
        };
        cases.entry(case.to_owned()).or_default().insert(name.to_owned(), tensor);
    }
    let config = serde_json::from_str(header["__metadata__"]["config"].as_str().unwrap()).unwrap();
    (cases, config)
}

#[test]
fn sources_mean_what_their_tools_decode() {
    let (cases, config) = goldens();
    let (mut read, mut relabelled) = (BTreeSet::new(), 0);
    for (case, tensors) in &cases {
        let mut model = TestModel::default();
        model.declaration = Some(config[case].clone());
        for (name, tensor) in tensors.iter().filter(|(name, _)| name.starts_with("m.")) {
            model = model.with(name, tensor.dtype, &tensor.shape, tensor.bytes.clone());
        }
        let names = tensors.keys().filter(|name| name.starts_with("m."));
        let mut found: Vec<(&str, &str, Recognized)> = Vec::new();
        let mut refused: Vec<(&str, String)> = Vec::new();
        for name in names {
            for encoding in readable() {
                match model.recognize(encoding, name) {
                    Some(Ok(recognized)) => found.push((name, encoding.name(), recognized)),
                    Some(Err(why)) => refused.push((name, why)),
                    None => {}
                }
            }
        }
        let [(codes, encoding, recognized)] = &found[..] else { panic!("{case}: {found:?}") };
        // Parts of one encoding may look like codes of another.
        let parts: Vec<&str> = recognized.parts.iter().map(|part| model.tensor(*part).name).collect();
        refused.retain(|(name, _)| !parts.contains(name));
        assert!(refused.is_empty(), "{case}: {refused:?}");
        let meant = &tensors["meant"];
        assert_eq!((&recognized.shape, recognized.dtype), (&meant.shape, meant.dtype), "{case}");
        let rows = recognized.shape[..recognized.shape.len() - 1].iter().product();
        let weights = model.rows(codes, recognized, 0..rows).unwrap();
        let mut bytes = Vec::new();
        unquantized::write(&weights, meant.dtype, &mut bytes);
        assert!(bytes == meant.bytes, "{case}");
        if let Some(packed) = tensors.get("ct.weight_packed") {
            let scheme = recognized.matrix.exact().unwrap().scheme;
            let mut quantized = Quantized::default();
            let columns = recognized.shape[1] as usize;
            model.integers(codes, recognized, 0..rows).unwrap().write(&scheme, columns, &mut quantized);
            let zero_points = tensors.get("ct.weight_zero_point").map_or(&[][..], |zeros| &zeros.bytes);
            assert!(quantized.codes == packed.bytes, "{case}");
            assert!(quantized.scales == tensors["ct.weight_scale"].bytes, "{case}");
            assert!(quantized.zero_points == zero_points, "{case}");
            relabelled += 1;
        }
        read.insert(*encoding);
    }
    let known: BTreeSet<&str> = readable().map(|encoding| encoding.name()).collect();
    assert_eq!(read, known, "every encoding has a golden");
    assert_eq!((cases.len(), relabelled), (32, 9));
}
