//! Ranges chosen with activation statistics against llm-compressor's `imatrix_mse`: 87 cases and every group of the example model.

use std::collections::HashMap;

use monoquant::quant::reference::{Reference, Unpacked, from_words, words};
use monoquant::quant::{
    Bits, FloatType, Granularity, Importance, Isa, Mse, Observer, Quantized, QuantizedView, Quantizer,
    Scheme, Scratch, Storage,
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::root;

type Tensors = HashMap<String, Vec<u8>>;

/// Steps without any improvement in a tensor after which the peer stops; monoquant never does.
const PATIENCE: usize = 5;

/// The least sum of cubes that the peer's f32 can tell from 0.
const VISIBLE: f64 = 1e-36;

const SEARCH: Mse = Mse::imatrix();

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

fn source_of(dtype: &str) -> FloatType {
    match dtype {
        "F32" => FloatType::F32,
        "F16" => FloatType::F16,
        "BF16" => FloatType::Bf16,
        other => panic!("a dtype {other}"),
    }
}

fn importance(sums: &[u8], counts: &[u8]) -> Importance {
    let count = i64::from_le_bytes(counts.try_into().expect("one count"));
    Importance::new(&floats(sums), count as f64).expect("statistics")
}

struct Case {
    key: String,
    matrix: String,
    source: FloatType,
    scheme: Scheme,
    cols: usize,
    rows: usize,
    bytes: Vec<u8>,
    weights: Vec<f32>,
    importance: Option<Importance>,
    /// The peer's normalised importance.
    golden_importance: Vec<f32>,
    weighted_sqnr_db: Option<f64>,
    tensors: Tensors,
}

fn cases() -> Vec<Case> {
    let manifest = manifest();
    let files: HashMap<String, Tensors> = ["f32", "f16", "bf16"]
        .map(|dtype| format!("imatrix-golden-{dtype}.safetensors"))
        .map(|name| (name.clone(), load(&format!("tests/golden/imatrix/{name}"))))
        .into();
    let case = |case: &Value| {
        let text = |name: &str| case[name].as_str().expect("a string").to_owned();
        let (key, matrix, source) = (text("key"), text("matrix"), source_of(&text("dtype")));
        let file = &files[&text("file")];
        let bytes = file[&text("weight")].clone();
        let cols = manifest["matrices"][&matrix]["shape"][1].as_u64().expect("columns") as usize;
        let weights = source.widen(&bytes);
        let statistics = case["statistics"].as_str();
        let part = |name: &str, part: &str| file[&format!("{name}/{part}")].clone();
        let parts = case["tensors"].as_object().expect("tensors");
        Case {
            scheme: scheme_of(&manifest["schemes"][text("scheme")], source),
            rows: weights.len() / cols,
            importance: statistics.map(|name| importance(&part(name, "in_sum2"), &part(name, "counts"))),
            golden_importance: statistics
                .map_or_else(|| vec![1.0; cols], |name| floats(&part(name, "importance"))),
            weighted_sqnr_db: case["weighted_sqnr_db"].as_f64(),
            tensors: parts.keys().map(|name| (name.clone(), part(&key, name))).collect(),
            key,
            matrix,
            source,
            cols,
            bytes,
            weights,
        }
    };
    let cases: Vec<Case> = manifest["cases"].as_array().expect("cases").iter().map(case).collect();
    assert_eq!(cases.len(), 87);
    cases
}

impl Case {
    fn floats(&self, part: &str) -> Vec<f32> {
        self.source.widen(&self.tensors[part])
    }

    fn signed(&self, part: &str) -> Vec<i8> {
        self.tensors[part].iter().map(|&byte| byte as i8).collect()
    }

    fn reference(&self, quotient: FloatType) -> Reference {
        Reference { scheme: self.scheme, observer: Observer::Mse(SEARCH), source: self.source, quotient }
    }

    fn quantizer(&self, isa: Isa) -> Quantizer {
        let plain = Quantizer::new(self.scheme, Observer::Mse(SEARCH), self.source, self.cols, isa);
        match &self.importance {
            Some(importance) => plain.weighted(importance.clone()),
            None => plain,
        }
    }

    fn quantize(&self, isa: Isa) -> Quantized {
        let mut out = Quantized::default();
        let done =
            self.quantizer(isa).quantize(None, &self.bytes, self.rows, &mut out, &mut Scratch::default());
        done.expect("finite weights");
        out
    }

    fn size(&self) -> usize {
        self.scheme.group_cols(self.cols)
    }

    /// The weights of each group, and the importance of their columns.
    fn groups<'a>(&'a self, importance: &'a [f32]) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        let columns = importance.chunks(self.size()).cycle();
        self.weights.chunks(self.size()).zip(columns)
    }

    /// Whether the peer's search looks at too little of a group: it stops before any outlier can be cut, or its f32 cubes
    /// underflow. `least` is the least error there is.
    fn is_blind(&self, group: &[f32], least: f64) -> bool {
        self.stops_early(group) || self.is_faint(least)
    }

    fn stops_early(&self, group: &[f32]) -> bool {
        self.matrix == "stop" && self.scheme.bits == Bits::Four && group.iter().any(|w| w.abs() > 4.0)
    }

    fn is_faint(&self, least: f64) -> bool {
        self.matrix == "edge" && least > 0.0 && least < VISIBLE
    }

    fn golden_ranges(&self) -> Vec<(f32, f32)> {
        // They are not widened to contain 0.
        let ends = self.floats("range_min").into_iter().zip(self.floats("range_max"));
        ends.map(|(low, high)| (low.min(0.0), high.max(0.0))).collect()
    }

    fn ours(&self) -> Vec<f32> {
        self.importance.as_ref().map_or_else(|| vec![1.0; self.cols], |found| found.columns().to_vec())
    }

    /// The peer's tensors as a writer would hand them over.
    fn golden(&self) -> Quantized {
        let codes = self.signed("codes");
        Quantized {
            codes: codes.chunks(self.cols).flat_map(|row| words(self.scheme.bits, row)).collect(),
            scales: self.tensors["weight_scale"].clone(),
            zero_points: self.tensors.get("weight_zero_point").cloned().unwrap_or_default(),
            global_scale: Vec::new(),
        }
    }

    fn codes_of(&self, codes: &[u8]) -> Vec<i8> {
        let rows = codes.chunks(self.scheme.codes_bytes(1, self.cols));
        rows.flat_map(|row| from_words(self.scheme.bits, row, self.cols)).collect()
    }

    fn golden_zero_points(&self) -> Vec<i8> {
        if self.scheme.symmetric {
            vec![0; self.weights.len() / self.size()]
        } else {
            self.signed("zero_point_unpacked")
        }
    }
}

#[test]
fn importance_is_the_peers() {
    for case in cases() {
        for (ours, theirs) in case.ours().into_iter().zip(&case.golden_importance) {
            assert!((ours - theirs).abs() <= 3e-7 * theirs, "{}: {ours} {theirs}", case.key);
        }
    }
}

#[test]
fn in_f32_everything_is_the_peers_but_where_its_search_is_blind() {
    let (mut groups, mut stopped, mut faint, mut faint_differ) = (0, 0, 0, 0);
    for case in cases().iter().filter(|case| case.source == FloatType::F32) {
        let (importance, golden) = (case.ours(), case.golden_ranges());
        let reference = case.reference(FloatType::F32);
        let (scales, zeros, codes) =
            (case.floats("weight_scale"), case.golden_zero_points(), case.signed("codes"));
        let mut same = Vec::new();
        for (i, (group, columns)) in case.groups(&importance).enumerate() {
            let range = reference.range(group, Some(columns));
            let error = |range| reference.error(group, Some(columns), range, SEARCH.norm);
            let (ours, theirs) = (error(range), error(golden[i]));
            assert!(ours <= theirs, "group {i} of {}: {ours:e} against {theirs:e}", case.key);
            if case.stops_early(group) {
                stopped += 1;
                let share = ours / theirs;
                assert!(
                    share > 0.01 && share < 0.77,
                    "{share} of the peer's error in group {i} of {}",
                    case.key
                );
            } else if case.is_faint(ours) {
                let is_narrow = usize::from(case.scheme.bits == Bits::Four);
                faint += is_narrow;
                faint_differ += if range == golden[i] { 0 } else { is_narrow };
            } else {
                assert_eq!(range, golden[i], "group {i} of {}", case.key);
                assert_eq!(reference.params(range), (scales[i], zeros[i]), "group {i} of {}", case.key);
            }
            same.push(!case.is_blind(group, ours));
        }
        groups += same.iter().filter(|&&same| same).count();
        for isa in Isa::available() {
            let ours = case.quantize(isa);
            let (mut dequantized, what) = (Vec::new(), format!("{} on {}", case.key, isa.name()));
            case.quantizer(isa).dequantize(ours.view(), case.rows, &mut dequantized, &mut Scratch::default());
            let (our_codes, our_scales) = (case.codes_of(&ours.codes), floats(&ours.scales));
            let golden = &case.tensors["dequantized"];
            if same.iter().all(|&same| same) {
                assert!(ours == case.golden(), "{what}");
            }
            for (i, _) in same.iter().enumerate().filter(|&(_, &same)| same) {
                let weights = i * case.size()..(i + 1) * case.size();
                assert_eq!(our_scales[i], scales[i], "scale {i} of {what}");
                assert_eq!(our_codes[weights.clone()], codes[weights.clone()], "codes {i} of {what}");
                let bytes = 4 * weights.start..4 * weights.end;
                assert!(dequantized[bytes.clone()] == golden[bytes], "dequantized {i} of {what}");
            }
        }
    }
    assert!(groups > 1000, "only {groups} groups were compared");
    assert_eq!(stopped, 3 * 8, "groups with an outlier, in three schemes");
    assert_eq!((faint_differ, faint), (13, 36), "groups of int4 whose cubes underflow");
}

#[test]
fn in_16_bits_no_range_is_worse_than_the_peers() {
    let (mut groups, mut differ) = ([0; 2], [0; 2]);
    for case in cases().iter().filter(|case| case.source != FloatType::F32) {
        let is_bf16 = usize::from(case.source == FloatType::Bf16);
        let (importance, golden) = (case.ours(), case.golden_ranges());
        let reference = case.reference(FloatType::F32);
        for (i, (group, columns)) in case.groups(&importance).enumerate() {
            let range = reference.range(group, Some(columns));
            let error = |range| reference.error(group, Some(columns), range, SEARCH.norm);
            let (ours, theirs) = (error(range), error(golden[i]));
            assert!(ours <= theirs, "group {i} of {}: {ours:e} against {theirs:e}", case.key);
            if !case.is_blind(group, ours) {
                groups[is_bf16] += 1;
                differ[is_bf16] += usize::from(range != golden[i]);
            }
        }
    }
    // That many because the peer sums errors of weights rounded to 16 bits.
    assert_eq!((differ, groups), ([2, 25], [1196, 1162]), "groups with another range, of F16 and of BF16");
}

#[test]
fn kernels_give_what_the_twin_does() {
    for case in cases() {
        let importance = case.importance.as_ref().map(Importance::columns);
        let twin = case.reference(FloatType::F32).quantize(&case.weights, case.cols, importance);
        let twin = Quantized {
            codes: twin.code_bytes(&case.scheme, case.cols),
            scales: twin.scale_bytes(&case.scheme),
            zero_points: twin.zero_point_bytes(&case.scheme, case.cols),
            global_scale: Vec::new(),
        };
        for isa in Isa::available() {
            assert!(case.quantize(isa) == twin, "{} on {}", case.key, isa.name());
        }
    }
}

/// The ranges of the peer's own search: quotient and dequantized weight in the weights' type, errors in f32, and its stop.
fn peers_ranges(case: &Case) -> Vec<(f32, f32)> {
    let peer = case.reference(case.source);
    let groups: Vec<(&[f32], &[f32])> = case.groups(&case.golden_importance).collect();
    let whole = |group: &[f32]| group.iter().fold((0.0f32, 0.0f32), |(l, h), &w| (l.min(w), h.max(w)));
    let mut best: Vec<(f32, (f32, f32))> = groups.iter().map(|(group, _)| (f32::MAX, whole(group))).collect();
    let mut idle = 0;
    for p in SEARCH.factors() {
        idle += 1;
        for (&(group, columns), best) in groups.iter().zip(&mut best) {
            let (low, high) = whole(group);
            let range = (case.source.round(low * p), case.source.round(high * p));
            let (scale, zero_point) = peer.params(range);
            let cubes = group.iter().zip(columns).map(|(&w, &h)| {
                let e = (peer.value(peer.code(w, scale, zero_point), scale, zero_point) - w).abs();
                f64::from(e * e * e * h)
            });
            let error = cubes.sum::<f64>() as f32;
            if error < best.0 {
                (*best, idle) = ((error, range), 0);
            }
        }
        if idle == PATIENCE {
            break;
        }
    }
    best.into_iter().map(|(_, range)| range).collect()
}

#[test]
fn the_twin_with_the_peers_rounding_gives_the_peers_ranges_and_codes() {
    for case in cases() {
        assert_eq!(peers_ranges(&case), case.golden_ranges(), "{}", case.key);
        let peer = case.reference(case.source);
        let (scales, zero_points) = (case.floats("weight_scale"), case.golden_zero_points());
        let mut codes = Vec::new();
        for (i, group) in case.weights.chunks(case.size()).enumerate() {
            codes.extend(group.iter().map(|&w| peer.code(w, scales[i], zero_points[i])));
        }
        assert!(codes == case.signed("codes"), "codes of {}", case.key);
        let unpacked = Unpacked { codes, scales, zero_points };
        if !case.scheme.symmetric {
            let bytes = unpacked.zero_point_bytes(&case.scheme, case.cols);
            assert!(bytes == case.tensors["weight_zero_point"], "zero points of {}", case.key);
        }
    }
}

#[test]
fn f32_quotients_move_a_code_by_one_at_most() {
    for case in cases() {
        let ours = case.reference(FloatType::F32);
        let (scales, zero_points, want) =
            (case.floats("weight_scale"), case.golden_zero_points(), case.signed("codes"));
        for (i, (&w, &golden)) in case.weights.iter().zip(&want).enumerate() {
            let code = ours.code(w, scales[i / case.size()], zero_points[i / case.size()]);
            let most = i16::from(case.source != FloatType::F32);
            assert!((i16::from(code) - i16::from(golden)).abs() <= most, "code {i} of {}", case.key);
        }
    }
}

#[test]
fn equal_importance_is_none() {
    let cases = cases();
    let find = |kind: &str, source: FloatType| {
        let key = format!("gauss/int4_sym_g128/imatrix_mse-{kind}");
        cases.iter().find(|case| case.key == key && case.source == source).expect("a case")
    };
    for source in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        let (constant, none) = (find("constant", source), find("none", source));
        assert_eq!(constant.golden_ranges(), none.golden_ranges());
        assert!(constant.importance.is_some() && none.importance.is_none());
        for isa in Isa::available() {
            assert!(constant.quantize(isa) == none.quantize(isa), "{} on {}", source.name(), isa.name());
        }
    }
}

#[test]
fn measured_ratios_are_those_of_the_manifest_for_golden_bytes() {
    let mut measured = 0;
    for case in cases() {
        let golden = case.golden();
        let view: QuantizedView<'_> = golden.view();
        for isa in Isa::available() {
            let found = case.quantizer(isa).measure(&case.bytes, view, case.rows, &mut Scratch::default());
            assert_eq!(found.weighted_sqnr_db().is_some(), case.importance.is_some(), "{}", case.key);
            if let (Some(found), Some(want)) = (found.weighted_sqnr_db(), case.weighted_sqnr_db) {
                assert!((found - want).abs() < 1e-6, "{}: {found} against {want}", case.key);
                measured += 1;
            }
        }
    }
    assert!(measured >= 80, "{measured}");
}

#[test]
fn every_group_of_the_example_takes_the_peers_step() {
    let manifest = manifest();
    let steps = load("tests/golden/imatrix/imatrix-steps.safetensors");
    let statistics = load("examples/calibration/tiny-llama.stats.safetensors");
    let mut model = load("examples/tiny-llama/model-00001-of-00002.safetensors");
    model.extend(load("examples/tiny-llama/model-00002-of-00002.safetensors"));
    let factors = SEARCH.factors();
    let (mut groups, mut others, mut scratch) = ([0; 2], [0; 2], Scratch::default());
    for (key, want) in &steps {
        let parts: Vec<&str> = key.split('/').collect();
        let source = source_of(parts[0]);
        let scheme = scheme_of(&manifest["schemes"][parts[1]], source);
        let found = importance(
            &statistics[&format!("{}.in_sum2", parts[2])],
            &statistics[&format!("{}.counts", parts[2])],
        );
        let cols = found.columns().len();
        let weights = FloatType::Bf16.widen(&model[&format!("{}.weight", parts[2])]);
        let reference =
            Reference { scheme, observer: Observer::Mse(SEARCH), source, quotient: FloatType::F32 };
        let size = scheme.group_cols(cols);
        let is_narrow = usize::from(source == FloatType::Bf16);
        let mut scales = Vec::new();
        let columns = found.columns().chunks(size).cycle();
        for (i, ((group, columns), &step)) in weights.chunks(size).zip(columns).zip(want).enumerate() {
            let (low, high) = group.iter().fold((0.0_f32, 0.0_f32), |(l, h), &w| (l.min(w), h.max(w)));
            let range = |p: f32| (source.round(low * p), source.round(high * p));
            let ours = reference.range(group, Some(columns));
            let theirs = range(factors[usize::from(step)]);
            let error = |range| reference.error(group, Some(columns), range, SEARCH.norm);
            assert!(error(ours) <= error(theirs), "{key}, group {i}");
            groups[is_narrow] += 1;
            others[is_narrow] += usize::from(ours != theirs);
            scales.push(reference.params(ours).0);
        }
        let mut bytes = Vec::new();
        source.narrow(&weights, &mut bytes);
        for isa in Isa::available() {
            let quantizer = Quantizer::new(scheme, Observer::Mse(SEARCH), source, cols, isa);
            let mut out = Quantized::default();
            let rows = weights.len() / cols;
            let done = quantizer.weighted(found.clone()).quantize(None, &bytes, rows, &mut out, &mut scratch);
            done.expect("finite weights");
            assert!(source.widen(&out.scales) == scales, "{key} on {}", isa.name());
        }
    }
    assert_eq!(groups, [49_152; 2]);
    assert_eq!(others, [0, 1_293], "groups with another step than the peer's, in F32 and in BF16");
}
