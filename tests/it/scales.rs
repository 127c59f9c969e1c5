//! `scales: signed`, from the recipe to the output.

use std::fs;

use half::bf16;
use monoquant::quant::reference::Reference;
use monoquant::quant::{
    Bits, FloatType, Granularity, Isa, Mse, Observer, Quantized, Quantizer, Scheme, Scratch, Storage,
};
use serde_json::Value;

use crate::support::{Workspace, files, gaussian, report, root, tensors};

const SKIPS: &str = "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n";

/// A workspace with the trained example.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    for entry in fs::read_dir(root().join("examples/tiny-llama")).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        workspace.write(&format!("model/{name}"), fs::read(&path).expect("a file"));
    }
    workspace
}

fn held_out() -> String {
    root().join("examples/calibration/held-out.txt").display().to_string()
}

/// The divergence of an output, and how many scales are negative, of how many.
fn run(workspace: &Workspace, quantize: &str, samples: usize) -> (f64, usize, usize) {
    let evaluate = format!(
        "  - stage: evaluate\n    text: ['{}']\n    samples: {samples}\n    sequence_length: 256\n",
        held_out()
    );
    let recipe = workspace.recipe(&format!("{SKIPS}{quantize}  - stage: validate\n{evaluate}"));
    workspace.run(&recipe).exits(0);
    let kl = report(&workspace.path("out")).evaluations[0].kl.as_ref().expect("a divergence").mean;
    let (mut negative, mut all) = (0, 0);
    for (name, tensor) in tensors(&workspace.path("out")) {
        if name.ends_with("weight_scale") {
            let scales = tensor.bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
            let signs: Vec<bool> = scales.map(|scale| scale.to_f32() < 0.0).collect();
            negative += signs.iter().filter(|is_negative| **is_negative).count();
            all += signs.len();
        }
    }
    (kl, negative, all)
}

#[test]
fn negative_scales_bring_answers_nearer() {
    let workspace = workspace();
    for (observer, most) in [("minmax", 0.0112), ("mse", 0.0099)] {
        let quantize = format!("  - stage: quantize-int4\n    observer: {observer}\n");
        let (plain, none, _) = run(&workspace, &quantize, 64);
        let (signed, negative, all) = run(&workspace, &format!("{quantize}    scales: signed\n"), 64);
        assert_eq!(none, 0);
        assert!(negative * 5 > all && negative * 5 < all * 4, "{negative} of {all} scales are negative");
        assert!(signed < 0.96 * plain && signed < most, "{observer}: {signed} and {plain}");
        let record = report(&workspace.path("out"));
        let scheme = record.tensors.iter().find_map(|tensor| tensor.scheme.as_ref()).expect("a scheme");
        assert_eq!(scheme.scales.as_deref(), Some("signed"));
        let said = workspace.monoquant(["plan", "recipe.yaml"]).exits(0);
        assert!(said.stdout.contains(&format!("{observer}, signed scales")), "{}", said.stdout);
    }
    // All that reads an output takes them as they are.
    workspace.monoquant(["verify", "out"]).exits(0);
    workspace.monoquant(["inspect", "out"]).exits(0);
    let mut evaluate = vec!["evaluate", "out", "--source", "model", "--text"];
    let text = held_out();
    evaluate.extend([text.as_str(), "--samples", "64", "--sequence-length", "256", "--format", "json"]);
    let said = workspace.monoquant(&evaluate).exits(0).json();
    let again = said["kl"]["mean"].as_f64().expect("a divergence");
    let before = report(&workspace.path("out")).evaluations[0].kl.as_ref().expect("a divergence").mean;
    assert!((again - before).abs() < 1e-9, "{again} {before}");
}

#[test]
fn rows_of_int8_have_less_error() {
    let workspace = workspace();
    let sqnr = |rest: &str| {
        let quantize = format!("  - stage: quantize-int8\n    observer: mse\n{rest}  - stage: validate\n");
        workspace.run(&workspace.recipe(&format!("{SKIPS}{quantize}"))).exits(0);
        let report = report(&workspace.path("out"));
        let all = report.tensors.iter().filter_map(|tensor| tensor.metrics.as_ref()?.sqnr_db);
        let all: Vec<f64> = all.collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let (plain, signed) = (sqnr(""), sqnr("    scales: signed\n"));
    assert!(signed > plain, "{signed} dB and {plain} dB");
}

/// Rounding with calibration finds better scales among those of both signs.
#[test]
fn calibrated_scales_of_both_signs_bring_answers_nearer() {
    let workspace = workspace();
    let calibrate =
        "  - stage: calibrate\n    samples: 48\n    sequence_length: 128\n    gradient_samples: 12\n";
    for rounding in ["gptq", "guided"] {
        let quantize = format!("{calibrate}  - stage: quantize-int4\n    rounding: {rounding}\n");
        let (plain, none, _) = run(&workspace, &quantize, 24);
        let (signed, negative, all) = run(&workspace, &format!("{quantize}    scales: signed\n"), 24);
        assert_eq!(none, 0);
        assert!(negative * 5 > all && negative * 5 < all * 4, "{negative} of {all} scales are negative");
        assert!(signed < plain, "{rounding}: {signed} and {plain}");
        let explain = ["explain", "recipe.yaml", "model.layers.1.mlp.up_proj.weight"];
        let said = workspace.monoquant(explain).exits(0).stdout;
        assert!(said.contains(rounding) && said.contains("signed scales"), "{said}");
    }
    // Nothing is done twice, and another choice of signs is another result.
    let said = workspace.monoquant(["run", "recipe.yaml"]).exits(0).stdout;
    assert!(said.contains("up to date"), "{said}");
}

/// Whatever goes on from an output with negative scales reads them as they are.
#[test]
fn negative_scales_go_through_all_that_reads_or_divides_the_work() {
    let workspace = workspace();
    let stages = format!("{SKIPS}  - stage: quantize-int4\n    scales: signed\n  - stage: validate\n");
    workspace.run(&workspace.recipe(&stages)).exits(0);
    let whole = files(&workspace.path("out"));
    let clear = || {
        fs::remove_dir_all(workspace.path("out")).expect("the output");
        fs::remove_file(workspace.path(".out.monoquant-record")).expect("the record");
    };

    clear();
    for part in ["0/2", "1/2"] {
        workspace.monoquant(["run", "recipe.yaml", "--part", part]).exits(0);
    }
    workspace.monoquant(["run", "recipe.yaml", "--join"]).exits(0);
    assert!(files(&workspace.path("out")) == whole, "two parts give the bytes of one run");

    // Measured from the bytes alone, it is as good as the run has told.
    let sqnr = report(&workspace.path("out")).quality.and_then(|of| of.sqnr_db).expect("an SQNR");
    let compare = ["compare", "model", "out", "--format", "json"];
    let found = workspace.monoquant(compare).exits(0).json()["b"]["sqnr_db"].as_f64().expect("an SQNR");
    assert!((found - sqnr).abs() < 1e-6, "{found} and {sqnr}");

    // As a source, its weights are codes times scales: decoded, and carried over as they are.
    fs::rename(workspace.path("out"), workspace.path("coded")).expect("a folder moves");
    let source = |stages: &str, to: &str| {
        let recipe = format!(
            "version: 1\nname: of-codes\nstages:\n  - stage: load\n    model: coded\n{stages}  - stage: export\n    path: {to}\n"
        );
        workspace.write("codes.yaml", recipe)
    };
    let decoded = source("  - stage: convert\n", "decoded").display().to_string();
    let text = fs::read_to_string(&decoded).expect("a recipe") + "    format: dequantized\n";
    fs::write(&decoded, text).expect("a recipe");
    workspace.monoquant(["run", "codes.yaml"]).exits(0);
    let (coded, decoded) = (tensors(&workspace.path("coded")), tensors(&workspace.path("decoded")));
    let (mut negative, mut all) = (0, 0);
    for (name, packed) in coded.iter().filter(|(name, _)| name.ends_with("weight_packed")) {
        let module = name.trim_end_matches("_packed");
        let scales = &coded[&format!("{module}_scale")].bytes;
        let values = &decoded[module].bytes;
        let words = packed.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let codes = words.flat_map(|word| (0..8).map(move |at| (word >> (4 * at) & 15) as f32 - 8.0));
        let values = values.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
        let scale =
            |at: usize| bf16::from_le_bytes([scales[2 * (at / 128)], scales[2 * (at / 128) + 1]]).to_f32();
        for (at, (code, value)) in codes.zip(values).enumerate() {
            assert_eq!(bf16::from_f32(code * scale(at)), value, "{module} {at}");
            (negative, all) = (negative + usize::from(scale(at) < 0.0), all + 1);
        }
    }
    assert!(all > 1_000_000 && negative * 5 > all, "{negative} of {all}");
    source("  - stage: convert\n", "carried");
    workspace.monoquant(["run", "codes.yaml"]).exits(0);
    let carried = tensors(&workspace.path("carried"));
    for (name, tensor) in coded.iter().filter(|(name, _)| name.contains("weight_")) {
        assert!(carried[name].bytes == tensor.bytes, "{name}");
    }

    let sets = ["--set", "quantize-int4.scales=positive,signed"];
    let said =
        workspace.monoquant([&["sweep", "recipe.yaml", "--format", "json"][..], &sets].concat()).exits(0);
    let said = said.json();
    let of = |word: &str| {
        let mut settings = said["settings"].as_array().expect("settings").iter();
        let is_own = |setting: &&Value| setting["set"].to_string().contains(word);
        settings.find(is_own).expect(word)["quality"]["sqnr_db"].as_f64().expect("an SQNR")
    };
    assert_eq!(of("signed"), sqnr);
    assert!(of("positive") < sqnr - 0.3, "{} dB and {sqnr} dB", of("positive"));
}

/// A scale has 8 steps on the side that is longer, and no weight is further from its code than half a step.
#[test]
fn the_longer_side_of_a_group_has_eight_steps() {
    let mut groups: Vec<Vec<f32>> = gaussian("steps", 512 * 16).chunks(16).map(<[f32]>::to_vec).collect();
    groups.push(vec![0.0; 16]);
    groups.push((0..16).map(|n| n as f32).collect());
    groups.push((0..16).map(|n| -(n as f32)).collect());
    groups.push((0..16).map(|n| if n % 2 == 0 { 1.0 } else { -1.0 }).collect());
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(16),
        scale_type: FloatType::F32,
        storage: Storage::Packed,
    };
    let (observer, source) = (Observer::SignedMinmax, FloatType::F32);
    let slow = Reference { scheme, observer, source, quotient: FloatType::F32 };
    for group in groups {
        let found = slow.quantize(&group, 16, None);
        let scale = found.scales[0];
        let most = group.iter().fold(0.0f32, |most, w| if w.abs() > most.abs() { *w } else { most });
        if most == 0.0 {
            assert!(scale > 0.0 && found.codes.iter().all(|code| *code == 0), "{scale}");
            continue;
        }
        assert!((most / scale).abs() == 8.0, "{most} {scale}");
        for (weight, code) in group.iter().zip(&found.codes) {
            // The other side ends at 7 steps, and a weight beyond 7.5 there is the price of the choice.
            let steps = weight / scale;
            let error = (steps - f32::from(*code)).abs();
            assert!((-8..=7).contains(code) && (error <= 0.5001 || steps > 7.5), "{weight} {scale} {code}");
        }
    }
}

#[test]
fn where_scales_cannot_be_negative_is_told() {
    let workspace = workspace();
    for (stage, with) in [
        ("int4", "symmetric: false"),
        ("int8", "granularity: tensor"),
        ("int4", "observer: percentile"),
        ("int8", "activations: dynamic-token"),
        ("int4", "activations: dynamic-token-fp8"),
    ] {
        let stages = format!("{SKIPS}  - stage: quantize-{stage}\n    scales: signed\n    {with}\n");
        let failure = workspace.plan(&workspace.recipe(&stages)).expect_err(with);
        let error = failure.findings.iter().find(|finding| finding.is_error()).expect("an error");
        assert_eq!(error.code, "recipe::signed-scales", "{with}");
        let named = match with {
            "activations: dynamic-token" => "int8 activations",
            "activations: dynamic-token-fp8" => "FP8 activations",
            _ => with,
        };
        assert!(error.message.contains(named), "{}", error.message);
    }
}

/// The kernels on each instruction set against the slow twin, with and without measuring on the way.
#[test]
fn signed_scales_are_those_of_the_slow_twin() {
    let (rows, columns) = (24, 256);
    let weights = gaussian("signed", rows * columns);
    let (mut scratch, mut negative) = (Scratch::default(), 0);
    for source in [FloatType::Bf16, FloatType::F16, FloatType::F32] {
        let mut bytes = Vec::new();
        source.narrow(&weights, &mut bytes);
        let weights = source.widen(&bytes);
        for (bits, storage) in
            [(Bits::Four, Storage::Packed), (Bits::Eight, Storage::Packed), (Bits::Eight, Storage::Plain)]
        {
            for granularity in [Granularity::Group(8), Granularity::Group(128), Granularity::Channel] {
                let scheme = Scheme { bits, symmetric: true, granularity, scale_type: source, storage };
                for observer in
                    [Observer::SignedMinmax, Observer::Mse(Mse { signed: true, ..Mse::default() })]
                {
                    let slow = Reference { scheme, observer, source, quotient: FloatType::F32 };
                    let slow = slow.quantize(&weights, columns, None);
                    negative += slow.scales.iter().filter(|scale| **scale < 0.0).count();
                    for isa in Isa::available() {
                        let quantizer = Quantizer::new(scheme, observer, source, columns, isa);
                        let [mut alone, mut measured] = [Quantized::default(), Quantized::default()];
                        quantizer.quantize(None, &bytes, rows, &mut alone, &mut scratch).expect("codes");
                        let told = format!("{scheme}, {observer}, {source:?}, {isa:?}");
                        assert_eq!(alone.codes, slow.code_bytes(&scheme, columns), "{told}");
                        assert_eq!(alone.scales, slow.scale_bytes(&scheme), "{told}");
                        let found = quantizer
                            .quantize_and_measure(None, &bytes, rows, &mut measured, &mut scratch)
                            .expect("codes");
                        assert_eq!(alone, measured, "{told}");
                        let again = quantizer.measure(&bytes, measured.view(), rows, &mut scratch);
                        assert_eq!(format!("{found:?}"), format!("{again:?}"), "{told}");
                    }
                }
            }
        }
    }
    assert!(negative > 1000, "{negative} scales are negative");
}
