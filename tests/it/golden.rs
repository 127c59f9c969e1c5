//! Every golden case of llm-compressor and compressed-tensors: what must be equal, bit for bit, and what may differ.
//!
//! The numbered sections are those of `tests/golden/README.md`.

use std::collections::HashMap;
use std::path::PathBuf;

use monoquant::quant::reference::{Reference, Unpacked, from_words, words};
use monoquant::quant::{
    BadValue, Bits, FloatType, Granularity, Isa, Mse, Observer, Quantized, QuantizedView, Quantizer, Scheme,
    Scratch, Storage,
};
use safetensors::SafeTensors;
use serde_json::Value;

/// The least sum of errors that the peer's f32 powers can still tell from 0.
const VISIBLE: f64 = 1e-25;

struct Case {
    key: String,
    source: FloatType,
    scheme: Scheme,
    observer: Observer,
    rows: usize,
    cols: usize,
    weight_bytes: Vec<u8>,
    weights: Vec<f32>,
    tensors: HashMap<String, Vec<u8>>,
}

impl Case {
    fn reference(&self, quotient: FloatType) -> Reference {
        Reference { scheme: self.scheme, observer: self.observer, source: self.source, quotient }
    }

    fn bytes(&self, part: &str) -> &[u8] {
        &self.tensors[part]
    }

    fn floats(&self, part: &str) -> Vec<f32> {
        self.source.widen(self.bytes(part))
    }

    fn codes(&self) -> Vec<i8> {
        self.bytes("codes").iter().map(|&byte| byte as i8).collect()
    }

    /// The golden zero points, one a group; 0 where symmetric.
    fn zero_points(&self) -> Vec<i8> {
        let part = if self.scheme.packs_zero_points() { "zero_point_unpacked" } else { "weight_zero_point" };
        match self.scheme.symmetric {
            true => vec![0; self.floats("weight_scale").len()],
            false => self.bytes(part).iter().map(|&byte| byte as i8).collect(),
        }
    }

    fn groups(&self) -> Vec<&[f32]> {
        self.reference(FloatType::F32).groups(&self.weights, self.cols).collect()
    }

    /// Weights that share a scale.
    fn group_len(&self) -> usize {
        self.groups()[0].len()
    }

    /// The stored tensors as a writer would hand them over.
    fn golden_view(&self) -> QuantizedView<'_> {
        QuantizedView {
            codes: self.bytes(if self.scheme.storage == Storage::Packed { "weight_packed" } else { "codes" }),
            scales: self.bytes("weight_scale"),
            zero_points: self.tensors.get("weight_zero_point").map_or(&[], Vec::as_slice),
            global_scale: &[],
        }
    }

    /// Cases whose scale overflows; the peer stores infinity, monoquant refuses.
    fn overflows(&self) -> bool {
        self.floats("weight_scale").iter().any(|scale| !scale.is_finite())
    }

    fn quantizer(&self, isa: Isa) -> Quantizer {
        Quantizer::new(self.scheme, self.observer, self.source, self.cols, isa)
    }

    /// What monoquant makes of the case.
    fn quantize(&self, isa: Isa) -> Quantized {
        let quantizer = self.quantizer(isa);
        let tensor = (self.scheme.granularity == Granularity::Tensor).then(|| {
            let mut survey = quantizer.begin_survey();
            for _ in 0..quantizer.survey_passes() {
                for tile in self.weight_bytes.chunks(2 * quantizer.row_bytes()) {
                    let rows = tile.len() / quantizer.row_bytes();
                    survey.merge(quantizer.survey(&survey, tile, rows).expect("golden weights are finite"));
                }
                quantizer.end_pass(&mut survey);
            }
            quantizer.tensor_params(&survey).expect("the scale is finite")
        });
        let mut out = Quantized::default();
        let mut scratch = Scratch::default();
        quantizer
            .quantize(tensor.as_ref(), &self.weight_bytes, self.rows, &mut out, &mut scratch)
            .expect("golden weights are finite");
        out
    }
}

fn cases() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let manifest = std::fs::read(folder.join("manifest.json")).expect("the manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a golden file");
    let files: HashMap<&str, Vec<u8>> = manifest["files"]
        .as_object()
        .expect("files")
        .keys()
        .map(|name| (name.as_str(), read(name)))
        .collect();
    let files: HashMap<&str, SafeTensors<'_>> = files
        .iter()
        .map(|(&name, bytes)| (name, SafeTensors::deserialize(bytes).expect("safetensors")))
        .collect();
    let cases = manifest["cases"].as_array().expect("cases");
    cases
        .iter()
        .map(|case| {
            let text = |name: &str| case[name].as_str().expect("a string");
            let file = &files[text("file")];
            let source = match text("dtype") {
                "F32" => FloatType::F32,
                "F16" => FloatType::F16,
                "BF16" => FloatType::Bf16,
                other => panic!("a dtype {other}"),
            };
            let arguments = &manifest["schemes"][text("scheme")];
            let scheme = Scheme {
                bits: if arguments["num_bits"] == 4 { Bits::Four } else { Bits::Eight },
                symmetric: arguments["symmetric"] == true,
                granularity: match arguments["strategy"].as_str() {
                    Some("tensor") => Granularity::Tensor,
                    Some("channel") => Granularity::Channel,
                    _ => Granularity::Group(arguments["group_size"].as_u64().expect("a size") as usize),
                },
                scale_type: source,
                storage: if text("format") == "int-quantized" { Storage::Plain } else { Storage::Packed },
            };
            let weight = file.tensor(text("weight")).expect("the weight");
            let tensors = case["tensors"].as_object().expect("tensors").keys().map(|part| {
                let tensor = file.tensor(&format!("{}/{part}", text("key"))).expect("a part");
                (part.clone(), tensor.data().to_vec())
            });
            let minmax = text("observer") == "minmax";
            Case {
                key: format!("{} {}", text("dtype"), text("key")),
                source,
                scheme,
                observer: if minmax { Observer::Minmax } else { Observer::Mse(Mse::default()) },
                rows: weight.shape()[0],
                cols: weight.shape()[1],
                weight_bytes: weight.data().to_vec(),
                weights: source.widen(weight.data()),
                tensors: tensors.collect(),
            }
        })
        .collect()
}

/// Cases that can be compared: all but those whose scale overflows.
fn sound_cases() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !case.overflows())
}

fn minmax(case: &Case) -> bool {
    case.observer == Observer::Minmax
}

#[test]
fn there_are_180_cases_of_which_six_overflow() {
    let all = cases();
    assert_eq!(all.len(), 180);
    let overflowing: Vec<&Case> = all.iter().filter(|case| case.overflows()).collect();
    assert_eq!(overflowing.len(), 6);
    for case in overflowing {
        let bad = case
            .quantizer(Isa::detect())
            .quantize(None, &case.weight_bytes, case.rows, &mut Quantized::default(), &mut Scratch::default())
            .expect_err("refused");
        assert_eq!((bad.row, bad.col, bad.what), (0, 0, BadValue::ScaleOverflow), "{}", case.key);
    }
}

#[test]
fn section_1_scales_and_zero_points_of_minmax_are_the_peers() {
    for case in sound_cases().filter(minmax) {
        for isa in Isa::available() {
            let ours = case.quantize(isa);
            let golden = case.golden_view();
            assert!(ours.scales == golden.scales, "scales of {} on {}", case.key, isa.name());
            // The peer's zero point of an all-zero group comes from 0/0 and is 0 where the files were made, as ours.
            assert!(ours.zero_points == golden.zero_points, "zero points of {} on {}", case.key, isa.name());
        }
    }
}

#[test]
fn section_2_everything_of_f32_is_the_peers() {
    for case in sound_cases().filter(|case| case.source == FloatType::F32) {
        let mut invisible = Vec::new();
        if let Observer::Mse(mse) = case.observer {
            let reference = case.reference(FloatType::F32);
            for (i, group) in case.groups().into_iter().enumerate() {
                let least = reference.error(group, None, reference.range(group, None), mse.norm);
                if least > 0.0 && least < VISIBLE {
                    invisible.push(i);
                }
            }
        }
        for isa in Isa::available() {
            let ours = case.quantize(isa);
            let golden = case.golden_view();
            if invisible.is_empty() {
                assert!(ours.view().codes == golden.codes, "codes of {} on {}", case.key, isa.name());
                assert!(ours.scales == golden.scales, "scales of {} on {}", case.key, isa.name());
                assert!(ours.zero_points == golden.zero_points, "zero points of {}", case.key);
                continue;
            }
            // Groups whose errors the peer's f32 powers cannot see keep their whole range there.
            let quantizer = case.quantizer(isa);
            let (mut mine, mut theirs, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
            quantizer.dequantize(ours.view(), case.rows, &mut mine, &mut scratch);
            quantizer.dequantize(golden, case.rows, &mut theirs, &mut scratch);
            let scales = case.source.widen(&ours.scales);
            let size = case.group_len();
            for (i, (mine, theirs)) in mine.chunks(4 * size).zip(theirs.chunks(4 * size)).enumerate() {
                if !invisible.contains(&i) {
                    assert!(mine == theirs, "group {i} of {} on {}", case.key, isa.name());
                    assert_eq!(scales[i], case.floats("weight_scale")[i], "scale {i} of {}", case.key);
                }
            }
        }
    }
}

#[test]
fn section_2_ranges_of_the_f32_search_are_the_peers() {
    let mut searched = 0;
    for case in sound_cases().filter(|case| case.source == FloatType::F32) {
        let Observer::Mse(mse) = case.observer else { continue };
        let reference = case.reference(FloatType::F32);
        let (lows, highs) = (case.floats("range_min"), case.floats("range_max"));
        for (i, group) in case.groups().into_iter().enumerate() {
            let range = reference.range(group, None);
            let least = reference.error(group, None, range, mse.norm);
            if least == 0.0 || least > VISIBLE {
                // The golden range is not widened to contain 0.
                assert_eq!(range, (lows[i].min(0.0), highs[i].max(0.0)), "group {i} of {}", case.key);
                searched += 1;
            }
        }
    }
    assert!(searched > 500, "only {searched} groups were compared");
}

#[test]
fn section_3_the_twin_with_the_peers_rounding_gives_the_peers_codes() {
    for case in sound_cases() {
        let peer = case.reference(case.source);
        let (scales, zero_points) = (case.floats("weight_scale"), case.zero_points());
        let want = case.codes();
        let mut codes = Vec::new();
        for ((group, &scale), &zero_point) in case.groups().into_iter().zip(&scales).zip(&zero_points) {
            codes.extend(group.iter().map(|&w| peer.code(w, scale, zero_point)));
        }
        assert!(codes == want, "codes of {}", case.key);
        let unpacked = Unpacked { codes, scales, zero_points };
        let golden = case.golden_view();
        assert!(unpacked.code_bytes(&case.scheme, case.cols) == golden.codes, "words of {}", case.key);
    }
}

/// Half the distance between neighbours of a type around x.
fn half_ulp(x: f64, float: FloatType) -> f64 {
    let exponent = x.abs().max(1e-30).log2().floor();
    exponent.exp2() * float.unit_roundoff() * 1.000_000_1
}

#[test]
fn section_3_codes_with_f32_quotients_differ_at_ties_only_and_are_never_worse() {
    let mut shares: HashMap<(FloatType, Bits), (usize, usize)> = HashMap::new();
    for case in sound_cases() {
        let ours = case.reference(FloatType::F32);
        let (scales, zero_points, want) = (case.floats("weight_scale"), case.zero_points(), case.codes());
        let size = case.group_len();
        let (mut noise, mut golden_noise) = (0.0, 0.0);
        for (i, group) in case.groups().into_iter().enumerate() {
            let (scale, zero_point) = (scales[i], zero_points[i]);
            for (&w, &golden) in group.iter().zip(&want[i * size..]) {
                let code = ours.code(w, scale, zero_point);
                let error =
                    |code: i8| (f64::from(code) - f64::from(zero_point)) * f64::from(scale) - f64::from(w);
                noise += error(code).powi(2);
                golden_noise += error(golden).powi(2);
                let share = shares.entry((case.source, case.scheme.bits)).or_default();
                share.1 += 1;
                if code == golden {
                    continue;
                }
                share.0 += 1;
                assert_eq!((code - golden).abs(), 1, "{}", case.key);
                let quotient = f64::from(w / scale);
                let t = quotient + f64::from(zero_point);
                let symmetric = case.scheme.symmetric;
                let near =
                    half_ulp(quotient, case.source) + if symmetric { 0.0 } else { half_ulp(t, case.source) };
                assert!((t - (t.floor() + 0.5)).abs() <= near, "{w} of {} is not near a tie", case.key);
            }
        }
        assert!(noise <= golden_noise * (1.0 + 1e-9), "{} has more noise", case.key);
    }
    for ((source, bits), (differ, all)) in shares {
        let limit = match (source, bits) {
            (FloatType::F32, _) => 0.0,
            (_, Bits::Four) => 0.007,
            (FloatType::F16, Bits::Eight) => 0.025,
            (FloatType::Bf16, Bits::Eight) => 0.125,
        };
        assert!(differ as f64 <= limit * all as f64, "{differ} of {all} codes of {source:?} {bits:?}");
    }
}

#[test]
fn section_3_kernels_give_the_codes_of_the_twin() {
    for case in sound_cases() {
        let twin = case.reference(FloatType::F32).quantize(&case.weights, case.cols, None);
        for isa in Isa::available() {
            let ours = case.quantize(isa);
            let what = format!("{} on {}", case.key, isa.name());
            assert!(ours.codes == twin.code_bytes(&case.scheme, case.cols), "codes of {what}");
            assert!(ours.scales == twin.scale_bytes(&case.scheme), "scales of {what}");
            assert!(
                ours.zero_points == twin.zero_point_bytes(&case.scheme, case.cols),
                "zero points of {what}"
            );
        }
    }
}

#[test]
fn section_4_ranges_of_the_16_bit_search_are_never_worse_than_the_peers() {
    let mut differ = 0;
    for case in sound_cases() {
        let Observer::Mse(mse) = case.observer else { continue };
        let reference = case.reference(FloatType::F32);
        let (lows, highs) = (case.floats("range_min"), case.floats("range_max"));
        for (i, group) in case.groups().into_iter().enumerate() {
            let range = reference.range(group, None);
            let golden = (lows[i], highs[i]);
            let (ours, theirs) = (
                reference.error(group, None, range, mse.norm),
                reference.error(group, None, golden, mse.norm),
            );
            assert!(ours <= theirs, "group {i} of {}: {ours:e} against {theirs:e}", case.key);
            differ += usize::from(range != (golden.0.min(0.0), golden.1.max(0.0)));
        }
    }
    assert!(differ > 0, "the peer's coarse errors are expected to matter somewhere");
}

#[test]
fn section_5_packing_and_unpacking_are_the_peers() {
    for case in cases() {
        let (bits, codes) = (case.scheme.bits, case.codes());
        if case.scheme.storage == Storage::Plain {
            continue;
        }
        let packed = case.bytes("weight_packed");
        let rows = codes.chunks(case.cols);
        let words_of_rows: Vec<u8> = rows.flat_map(|row| words(bits, row)).collect();
        assert!(words_of_rows == packed, "words of {}", case.key);
        let row_bytes = case.scheme.codes_bytes(1, case.cols);
        let back: Vec<i8> =
            packed.chunks(row_bytes).flat_map(|row| from_words(bits, row, case.cols)).collect();
        assert!(back == codes, "codes of {}", case.key);
        if case.scheme.packs_zero_points() {
            let unpacked = Unpacked { codes, scales: Vec::new(), zero_points: case.zero_points() };
            let bytes = unpacked.zero_point_bytes(&case.scheme, case.cols);
            assert!(bytes == case.bytes("weight_zero_point"), "zero points of {}", case.key);
        }
    }
}

#[test]
fn section_6_dequantized_weights_are_the_peers() {
    for case in cases() {
        for isa in Isa::available() {
            let mut ours = Vec::new();
            let mut scratch = Scratch::default();
            case.quantizer(isa).dequantize(case.golden_view(), case.rows, &mut ours, &mut scratch);
            let what = format!("{} on {}", case.key, isa.name());
            if case.overflows() {
                for (ours, golden) in case.source.widen(&ours).iter().zip(case.floats("dequantized")) {
                    assert!(*ours == golden || (ours.is_nan() && golden.is_nan()), "{what}");
                }
            } else {
                assert!(ours == case.bytes("dequantized"), "{what}");
            }
        }
    }
}

#[test]
fn measured_ratios_are_those_of_the_manifest_for_golden_bytes() {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest.json");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(manifest).expect("the manifest")).expect("JSON");
    for (case, entry) in cases().iter().zip(manifest["cases"].as_array().expect("cases")) {
        let Some(want) = entry["sqnr_db"].as_f64() else { continue };
        for isa in Isa::available() {
            let quantizer = case.quantizer(isa);
            let mut scratch = Scratch::default();
            let found = quantizer.measure(&case.weight_bytes, case.golden_view(), case.rows, &mut scratch);
            let db = found.sqnr_db().expect("a ratio");
            assert!((db - want).abs() < 1e-5, "{}: {db} against {want}", case.key);
        }
    }
}
