//! The stages that run the model: `calibrate` and `evaluate`, and the commands of these names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use monoquant::exit::Exit;
use monoquant::finding::Failure;
use monoquant::plan::Limits;
use monoquant::recipe::Overrides;
use monoquant::run::calibrate::{calibrate, stage_of, statistics_file};
use monoquant::run::{Event, Options, Silent};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{Workspace, plan_with, root};

/// A workspace with the trained example in `model` and a text to evaluate with in `held-out.txt`.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let example = root().join("examples/tiny-llama");
    for entry in fs::read_dir(example).expect("the example") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        workspace.write(&format!("model/{}", path.file_name().expect("a name").to_string_lossy()), bytes);
    }
    let text = fs::read_to_string(root().join("examples/calibration/held-out.txt")).expect("the text");
    workspace.write("held-out.txt", text.chars().take(20_000).collect::<String>());
    workspace
}

/// Waits until a further change of a weight file would show in its times: nothing is kept of one that is newer.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(2100));
}

const CALIBRATE: &str = "  - stage: calibrate\n    samples: 8\n    sequence_length: 256\n";
const QUANTIZE: &str =
    "  - stage: resolve-skips\n    defaults: auto\n  - stage: quantize-int4\n    observer: mse\n";

fn evaluate(rest: &str) -> String {
    format!("  - stage: evaluate\n    text: [held-out.txt]\n    samples: 4\n{rest}")
}

fn statistics(recipe: &Path, limits: Limits) -> Vec<u8> {
    let plan = plan_with(recipe, &Overrides::default(), limits).expect("a plan");
    let options = Options { fresh: true, ..Options::default() };
    statistics_file(&plan, stage_of(&plan).expect("a stage"), &options, &Silent).expect("statistics")
}

#[test]
fn statistics_are_those_of_the_script_whatever_the_threads_and_the_memory() {
    let workspace = workspace();
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}"));
    let ours = statistics(&recipe, Limits { threads: Some(1), memory: None });
    assert_eq!(ours, statistics(&recipe, Limits { threads: Some(3), memory: None }));
    let theirs = fs::read(root().join("tests/fixtures/network/statistics/tiny-llama-8.safetensors"));
    let theirs = theirs.expect("the file of collect.py");
    let (a, b) =
        (SafeTensors::deserialize(&ours).expect("ours"), SafeTensors::deserialize(&theirs).expect("theirs"));
    assert_eq!(a.len(), b.len());
    for (name, theirs) in b.tensors() {
        let ours = a.tensor(&name).expect("the same modules");
        if name.ends_with(".counts") {
            assert_eq!(ours.data(), theirs.data(), "{name}");
            continue;
        }
        for (a, b) in ours.data().as_chunks().0.iter().zip(theirs.data().as_chunks().0) {
            let (a, b) = (f32::from_le_bytes(*a), f32::from_le_bytes(*b));
            assert!((a - b).abs() <= 1e-5 * b, "{name}: {a} {b}");
        }
    }

    let plan =
        plan_with(&recipe, &Overrides::default(), Limits { threads: Some(2), memory: None }).expect("a plan");
    let least = plan.runs.as_ref().expect("runs").least_memory(2);
    let limits = Limits { threads: Some(2), memory: Some(least + 1024) };
    let plan = plan_with(&recipe, &Overrides::default(), limits).expect("a plan");
    let file = workspace.path(".out.monoquant-pass-0");
    let is_spilled = AtomicBool::new(false);
    let listener = |event: &Event| {
        if let Event::Layer { .. } = event {
            is_spilled.fetch_or(file.exists(), Ordering::Relaxed);
        }
    };
    let stage = stage_of(&plan).expect("a stage");
    let options = Options { fresh: true, ..Options::default() };
    assert_eq!(ours, statistics_file(&plan, stage, &options, &listener).expect("statistics"));
    assert!(is_spilled.into_inner() && !file.exists(), "activations were in a file, which is gone");

    let limits = Limits { threads: Some(2), memory: Some(least - 1024) };
    let failure = plan_with(&recipe, &Overrides::default(), limits).expect_err("too little");
    assert_eq!((failure.exit, failure.findings[0].code), (Exit::BadRecipe, "plan::memory"));
}

fn weights(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("an output")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .map(|path| (path.file_name().expect("a name").into(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_that_calibrates_gives_the_bytes_of_one_with_its_file() {
    let workspace = workspace();
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}"));
    settle();
    let ended = workspace.monoquant(["calibrate", "recipe.yaml", "-o", "statistics.safetensors"]).exits(0);
    assert_eq!(ended.stdout, "statistics.safetensors: statistics of 2,048 tokens, 41.6 KiB\n");
    let ended = workspace.run(&recipe).exits(0);
    assert!(
        ended.stderr.contains("note: the statistics of 2,048 tokens are those of the last run"),
        "{}",
        ended.stderr
    );
    let calibrated = weights(&workspace.path("out"));
    let file = "    calibration:\n      file: statistics.safetensors\n";
    let recipe = workspace.recipe(&format!("{QUANTIZE}{file}"));
    workspace.run(&recipe).exits(0);
    assert_eq!(calibrated, weights(&workspace.path("out")));
    let plain = workspace.recipe(QUANTIZE);
    workspace.run(&plain).exits(0);
    assert_ne!(calibrated, weights(&workspace.path("out")), "statistics choose other ranges");
}

#[test]
fn statistics_are_kept_until_what_decides_them_changes() {
    let workspace = workspace();
    let measured = |options: &Options, recipe: &Path| {
        let mut plan = plan_with(recipe, &Overrides::default(), Limits::default()).expect("a plan");
        let layers = AtomicUsize::new(0);
        let listener = |event: &Event| {
            if let Event::Layer { .. } = event {
                layers.fetch_add(1, Ordering::Relaxed);
            }
        };
        calibrate(&mut plan, options, &listener).expect("calibrated");
        assert!(!plan.is_pending());
        layers.into_inner() > 0
    };
    let trusted = Options::default();
    let untrusted = Options { fresh: true, ..Options::default() };
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}"));
    settle();
    assert!(measured(&trusted, &recipe) && !measured(&trusted, &recipe));
    assert!(measured(&untrusted, &recipe), "never trusted");
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}    group_size: 64\n"));
    assert!(!measured(&trusted, &recipe), "an edit of another stage");
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}").replace("samples: 8", "samples: 7"));
    assert!(measured(&trusted, &recipe), "an edit of the samples");
    let kept = workspace.path(".out.monoquant-statistics");
    let mut bytes = fs::read(&kept).expect("kept");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&kept, bytes).expect("damaged");
    assert!(measured(&trusted, &recipe), "a damaged file is not believed");
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    assert!(!kept.exists());
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a report")).expect("JSON")
}

#[test]
fn the_gate_judges_what_was_written_and_answers_an_edit_of_a_threshold_at_once() {
    let workspace = workspace();
    let recipe = workspace.recipe(&format!("{QUANTIZE}{}", evaluate("    max_kl: 0.000001\n")));
    let ended = workspace.run(&recipe).exits(1);
    assert!(!workspace.path("out").exists(), "nothing is published");
    assert!(ended.stderr.contains("the mean KL divergence is 0.0"), "{}", ended.stderr);
    let failed = report(&workspace.path("out.failed-report.json"));
    let kl = failed["evaluations"][0]["kl"]["mean"].as_f64().expect("kl.mean");
    assert!((0.001..0.1).contains(&kl), "{kl}");
    assert_eq!(failed["evaluations"][0]["layers"].as_array().map(Vec::len), Some(4));

    let recipe = workspace.recipe(&format!(
        "{QUANTIZE}{}",
        evaluate("    max_kl: 0.1\n    max_perplexity_ratio: 1.2\n    min_top1_agreement: 0.5\n")
    ));
    let ended = workspace.run(&recipe).exits(0);
    assert!(
        ended.stderr.contains("the comparison with the original is that of the last run"),
        "{}",
        ended.stderr
    );
    let passed = report(&workspace.path("out/monoquant-report.json"));
    assert_eq!(passed["evaluations"][0], failed["evaluations"][0]);
    for key in
        ["/kl/standard_error", "/kl/p99", "/perplexity/source", "/perplexity/quantized", "/top1_agreement"]
    {
        assert!(passed["evaluations"][0].pointer(key).is_some_and(Value::is_number), "{key}");
    }

    // The published directory, by the command.
    let args = [
        "evaluate",
        "out",
        "--source",
        "model",
        "--text",
        "held-out.txt",
        "--samples",
        "4",
        "--format",
        "json",
    ];
    let found = workspace.monoquant(args).exits(0).json();
    assert_eq!(found["kl"], passed["evaluations"][0]["kl"]);
    assert_eq!(found["layers"], passed["evaluations"][0]["layers"]);
    // A crossed threshold.
    workspace.monoquant(args.iter().copied().chain(["--max-kl", "0.0001"])).exits(1);
    // A model equals itself.
    workspace
        .monoquant([
            "evaluate",
            "model",
            "--source",
            "model",
            "--text",
            "held-out.txt",
            "--samples",
            "2",
            "--max-kl",
            "0",
        ])
        .exits(0);
}

#[test]
fn activations_of_eight_bits_are_rounded_as_engines_do() {
    let workspace = workspace();
    let stage = |activations: &str| {
        format!(
            "  - stage: resolve-skips\n    defaults: auto\n  - stage: quantize-int8\n    granularity: channel\n    activations: {activations}\n{}",
            evaluate("")
        )
    };
    let kl = |activations: &str| {
        workspace.run(&workspace.recipe(&stage(activations))).exits(0);
        report(&workspace.path("out/monoquant-report.json"))["evaluations"][0]["kl"]["mean"]
            .as_f64()
            .expect("kl")
    };
    let (without, with) = (kl("none"), kl("dynamic-token"));
    assert!(with > 2.0 * without, "{with} {without}");
}

#[test]
fn activations_of_fp8_are_rounded_as_engines_do() {
    let workspace = workspace();
    let kl = |granularity: &str, activations: &str| {
        let stage = format!(
            "  - stage: quantize-fp8\n    granularity: {granularity}\n    activations: {activations}\n{}",
            evaluate("")
        );
        workspace.run(&workspace.recipe(&stage)).exits(0);
        report(&workspace.path("out/monoquant-report.json"))["evaluations"][0]["kl"]["mean"]
            .as_f64()
            .expect("kl")
    };
    for granularity in ["channel", "block"] {
        let (without, with) = (kl(granularity, "none"), kl(granularity, "dynamic"));
        assert!(with > 1.2 * without && with < 0.05, "{granularity}: {with} {without}");
    }
}

#[test]
fn what_cannot_run_is_said_before_the_first_weight_is_read() {
    let workspace = workspace();
    let code = |stages: &str| -> (Exit, &'static str) {
        let Failure { exit, findings } = workspace.plan(&workspace.recipe(stages)).expect_err("an error");
        (exit, findings[0].code)
    };
    let calibrate = |rest: &str| format!("  - stage: calibrate\n{rest}{QUANTIZE}");
    assert_eq!(code(&calibrate("    text: [gone.txt]\n")), (Exit::BadRecipe, "tokens::unreadable"));
    workspace.write("latin.txt", b"caf\xe9");
    assert_eq!(code(&calibrate("    text: [latin.txt]\n")), (Exit::BadRecipe, "tokens::bad-text"));
    workspace.write("short.txt", "few words");
    assert_eq!(code(&calibrate("    text: [short.txt]\n")), (Exit::BadRecipe, "tokens::too-little-text"));
    workspace.write("chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n");
    assert_eq!(code(&calibrate("    text: [chat.jsonl]\n")), (Exit::BadRecipe, "tokens::no-chat-template"));
    assert_eq!(code(&calibrate("    sequence_length: 40000\n")), (Exit::BadRecipe, "network::too-long"));
    let plan = workspace.plan(&workspace.recipe(&calibrate("    text: [held-out.txt]\n    samples: 1000\n")));
    let told = &plan.expect("a plan").warnings[0];
    assert_eq!(told.code, "tokens::fewer-samples");
    assert!(told.message.ends_with("samples of 512 tokens, and 1,000 are asked for"), "{}", told.message);
    let tokenizer = fs::read(workspace.path("model/tokenizer.json")).expect("a tokenizer");
    fs::remove_file(workspace.path("model/tokenizer.json")).expect("removed");
    assert_eq!(code(&calibrate("")), (Exit::BadModel, "tokens::no-tokenizer"));
    workspace.write("model/tokenizer.json", "{}");
    assert_eq!(code(&calibrate("")), (Exit::BadModel, "tokens::bad-tokenizer"));
    workspace.write("model/tokenizer.json", tokenizer);
    let config = fs::read_to_string(workspace.path("model/config.json")).expect("a config");
    workspace.write("model/config.json", config.replace("\"llama\"", "\"new_thing\""));
    assert_eq!(code(&calibrate("")), (Exit::BadModel, "network::not-admitted"));
}

/// Puts another content into a file that a run has kept, as if it had been the run's.
fn forge(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let bytes = fs::read(path).expect("kept");
    let (key, mut content) = (bytes[..64].to_vec(), bytes[128..].to_vec());
    change(&mut content);
    let hash = blake3::hash(&content).to_hex();
    fs::write(path, [key.as_slice(), hash.as_bytes(), &content].concat()).expect("forged");
}

#[test]
fn an_untrusted_run_believes_nothing_that_an_earlier_one_kept() {
    let workspace = workspace();
    workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}{}", evaluate("    max_kl: 0.5\n")));
    settle();
    let run = |more: &[&str]| {
        let ended = workspace.monoquant(["run", "recipe.yaml"].iter().chain(more)).exits(0);
        let report = report(&workspace.path("out/monoquant-report.json"));
        (weights(&workspace.path("out")), report["evaluations"][0]["kl"]["mean"].clone(), ended.stderr)
    };
    let (honest, kl, _) = run(&[]);
    forge(&workspace.path(".out.monoquant-statistics"), |content| {
        // The last sums of squares: those columns now count for nothing.
        let end = content.len();
        content[end - 1024..].fill(0);
        content[end - 4..].copy_from_slice(&1e9_f32.to_le_bytes());
    });
    forge(&workspace.path(".out.monoquant-evaluation"), |content| {
        let mut found: Value = serde_json::from_slice(content).expect("JSON");
        found[0]["kl"]["mean"] = 0.125.into();
        *content = found.to_string().into_bytes();
    });
    let (made, found, told) = run(&["--untrusted"]);
    assert!(made == honest && found == kl, "{found} {kl}");
    assert!(!told.contains("those of the last run") && !told.contains("that of the last run"), "{told}");

    // The lies are good: who trusts them is deceived. (An untrusted run may keep what it has measured itself.)
    forge(&workspace.path(".out.monoquant-evaluation"), |content| {
        let mut found: Value = serde_json::from_slice(content).expect("JSON");
        found[0]["kl"]["mean"] = 0.125.into();
        *content = found.to_string().into_bytes();
    });
    let (_, found, told) = run(&[]);
    assert_eq!(found, Value::from(0.125));
    assert!(told.contains("that of the last run"), "{told}");
    forge(&workspace.path(".out.monoquant-statistics"), |content| {
        let end = content.len();
        content[end - 1024..].fill(0);
        content[end - 4..].copy_from_slice(&1e9_f32.to_le_bytes());
    });
    let (made, ..) = run(&[]);
    assert!(made != honest, "other statistics choose other ranges");
}
