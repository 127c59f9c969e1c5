//! Activation statistics: the three formats, what is said of bad ones, and what they change.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::support::statistics::{Module, safetensors};
use crate::support::{Model, Workspace, files, report, root};
use monoquant::calibration::{self, Format, ModuleStatistics, Statistics};
use monoquant::exit::Exit;
use monoquant::run::{Options, Silent, run};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/calibration").join(name)
}

fn read(name: &str) -> Statistics {
    calibration::read(&fixture(name)).expect("statistics")
}

fn example() -> Statistics {
    calibration::read(&root().join("examples/calibration/tiny-llama.stats.safetensors")).expect("statistics")
}

fn means(module: &ModuleStatistics) -> Vec<f64> {
    let width = module.sums.len() / module.counts.len();
    let sums = module.sums.iter().enumerate();
    sums.map(|(i, &sum)| f64::from(sum) / module.counts[i / width]).collect()
}

fn by_name(statistics: &Statistics) -> HashMap<&str, &ModuleStatistics> {
    statistics.modules.iter().map(|module| (module.name.as_str(), module)).collect()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs().max(1e-30)).fold(0.0, f64::max)
}

/// The name of a module of the example in an importance matrix.
fn translated(module: &str) -> String {
    let (names, expert) = calibration::names::in_importance_matrix(module);
    assert_eq!(expert, None);
    names.into_iter().next().expect("a name")
}

#[test]
fn the_three_formats_tell_the_same() {
    let (gguf, dat, own) = (
        read("tiny-llama.imatrix.gguf"),
        read("tiny-llama.imatrix.dat"),
        read("tiny-llama.bos-stats.safetensors"),
    );
    assert_eq!((gguf.format, dat.format, own.format), (Format::Gguf, Format::Legacy, Format::Safetensors));
    for statistics in [&gguf, &dat, &own] {
        assert_eq!(statistics.modules.len(), 28);
        assert_eq!(statistics.samples, Some(128));
    }
    assert_eq!((gguf.tokens, own.tokens, dat.tokens), (Some(32_768), Some(32_768), None));
    let (in_gguf, in_dat) = (by_name(&gguf), by_name(&dat));
    for module in &own.modules {
        let name = translated(&module.name);
        let reference = means(in_gguf[name.as_str()]);
        assert!(furthest(&means(in_dat[name.as_str()]), &reference) <= 1e-6, "{name}");
        assert!(furthest(&means(module), &reference) <= 1e-4, "{name}");
    }
    for statistics in [&example(), &own] {
        let modules = by_name(statistics);
        for layer in 0..4 {
            let sums = |part: &str| &modules[format!("model.layers.{layer}.{part}").as_str()].sums;
            assert_eq!(sums("self_attn.q_proj"), sums("self_attn.k_proj"));
            assert_eq!(sums("self_attn.q_proj"), sums("self_attn.v_proj"));
            assert_eq!(sums("mlp.gate_proj"), sums("mlp.up_proj"));
        }
    }
}

#[test]
fn experts_have_their_own_counts() {
    let (gguf, dat, converted) =
        (read("tiny-moe.imatrix.gguf"), read("tiny-moe.imatrix.dat"), read("tiny-moe.from-dat.gguf"));
    let (in_gguf, in_dat, in_converted) = (by_name(&gguf), by_name(&dat), by_name(&converted));
    assert!(in_gguf.contains_key("blk.0.ffn_gate_inp"), "the router");
    for (name, columns) in [("ffn_gate_exps", 32), ("ffn_up_exps", 32), ("ffn_down_exps", 64)] {
        let name = format!("blk.0.{name}");
        let (a, b, c) = (in_gguf[name.as_str()], in_dat[name.as_str()], in_converted[name.as_str()]);
        assert_eq!(a.counts, [69.0, 145.0, 170.0, 0.0]);
        let width = columns as usize;
        let (a_means, b_means, c_means) = (means(a), means(b), means(c));
        assert!(furthest(&a_means[..3 * width], &b_means[..3 * width]) <= 5e-7, "{name}");
        assert!(furthest(&c_means, &b_means) <= 5e-7, "{name}");
        assert!(a.sums[3 * width..].iter().all(|&sum| sum == 0.0));
        assert!(b_means[3 * width..].iter().chain(&c_means[3 * width..]).all(|&mean| mean == 1.0));
        // An expert that no token was routed to has no data; the others have as many numbers as columns.
        assert_eq!(a.importance(columns, Some(3)).expect("a row"), None);
        for expert in 0..3 {
            let importance = a.importance(columns, Some(expert)).expect("a row").expect("data");
            assert_eq!(importance.columns().len(), width);
        }
        assert!(a.importance(columns + 1, Some(0)).is_err());
        assert!(b.importance(columns, Some(2)).expect("a row").is_some());
    }
}

const UP: &str = "model.layers.1.mlp.up_proj";

/// Statistics of every linear layer of the small model; `columns` says of which widths.
fn of_the_model(change: impl Fn(&str, &mut Vec<f32>)) -> Vec<(String, Vec<f32>)> {
    let mut out = Vec::new();
    for layer in 0..2 {
        for (part, columns) in PARTS {
            let name = format!("model.layers.{layer}.{part}");
            let mut sums = (0..*columns).map(|column| 1.0 + (column * 7 % 13) as f32).collect();
            change(&name, &mut sums);
            out.push((name, sums));
        }
    }
    out
}

const PARTS: &[(&str, usize)] = &[
    ("self_attn.q_proj", 128),
    ("self_attn.k_proj", 128),
    ("self_attn.v_proj", 128),
    ("self_attn.o_proj", 128),
    ("mlp.gate_proj", 128),
    ("mlp.up_proj", 128),
    ("mlp.down_proj", 256),
];

fn write(workspace: &Workspace, modules: &[(String, Vec<f32>)], counts: i64, samples: Option<u64>) {
    let shapes: Vec<[usize; 1]> = modules.iter().map(|(_, sums)| [sums.len()]).collect();
    let counts = [counts];
    let modules: Vec<Module<'_>> = modules
        .iter()
        .zip(&shapes)
        .map(|((name, sums), shape)| (name.as_str(), &shape[..], &sums[..], &counts[..]))
        .collect();
    std::fs::write(workspace.path("stats"), safetensors(&modules, samples)).expect("a file");
}

fn stages(observer: &str, more: &str) -> String {
    format!(
        "  - stage: load\n    model: model\n    calibration:\n      file: stats\n{more}  - stage: quantize-int4\n    observer: {observer}\n\
         \x20 - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 12\n  - stage: export\n    path: out\n"
    )
}

#[test]
fn statistics_change_what_they_weigh_and_nothing_else() {
    let workspace = Workspace::with(&Model::llama());
    write(&workspace, &of_the_model(|_, _| {}), 1000, Some(128));
    let go = |stages: &str| {
        let plan = workspace.plan(&workspace.whole_recipe(stages)).expect("a plan");
        run(&plan, &Options::default(), &Silent).expect("an outcome")
    };
    assert_eq!(go(&stages("mse", "")).work.redone, 21);
    let told = report(&workspace.path("out"));
    assert!(told.quality.as_ref().expect("quality").weighted_sqnr_db.is_some());
    let quantized = told.tensors.iter().filter(|tensor| tensor.action == "quantized");
    assert!(
        quantized.clone().all(|tensor| tensor.metrics.as_ref().expect("metrics").weighted_sqnr_db.is_some())
    );
    // A changed file redoes what changed in it; scaling all numbers of a module, or another `on_missing`, changes nothing.
    write(
        &workspace,
        &of_the_model(|name, sums| {
            if name == UP {
                sums[5] = 400.0
            }
        }),
        1000,
        Some(128),
    );
    assert_eq!(go(&stages("mse", "")).work.redone, 1);
    let scaled = of_the_model(|name, sums| {
        if name == UP {
            sums[5] = 400.0;
        }
        sums.iter_mut().for_each(|sum| *sum *= 4.0);
    });
    write(&workspace, &scaled, 1000, Some(128));
    assert_eq!(go(&stages("mse", "      on_missing: warn\n")).work.redone, 0);
    let with = files(&workspace.path("out"));
    go(&stages("imatrix-mse", ""));
    assert_ne!(files(&workspace.path("out")), with);
    // Equal importance is that of no statistics at all.
    write(&workspace, &of_the_model(|_, sums| sums.fill(3.0)), 1000, Some(128));
    go(&stages("mse", ""));
    let equal = crate::support::tensors(&workspace.path("out"));
    go(&stages("mse", "").replace("    calibration:\n      file: stats\n", ""));
    assert_eq!(crate::support::tensors(&workspace.path("out")), equal);
}

#[test]
fn the_stored_recipe_finds_the_statistics_again() {
    let workspace = Workspace::with(&Model::llama());
    write(&workspace, &of_the_model(|_, _| {}), 1000, Some(128));
    workspace.run(&workspace.whole_recipe(&stages("mse", ""))).exits(0);
    let stored = std::fs::read_to_string(workspace.path("out/monoquant-recipe.yaml")).expect("the recipe");
    assert!(stored.contains("file: ../stats"), "{stored}");
    let said = workspace.run(&workspace.path("out/monoquant-recipe.yaml"));
    assert!(said.exits(0).stdout.contains("no weight was touched"));
}

#[test]
fn what_does_not_fit_is_said_at_the_word() {
    let workspace = Workspace::with(&Model::llama());
    let refused = |stages: &str, exit: Exit, code: &str, words: &[&str]| {
        let failure = workspace.plan(&workspace.whole_recipe(stages)).expect_err("it does not fit");
        let finding = failure.findings.iter().find(|finding| finding.is_error()).expect("an error");
        assert_eq!((failure.exit, finding.code), (exit, code), "{finding:?}");
        let text = format!("{} {}", finding.message, finding.help.join("\n"));
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!finding.labels.is_empty(), "{code} has a place");
    };
    let all = of_the_model(|_, _| {});
    refused(&stages("mse", ""), Exit::BadModel, "calibration::unreadable", &["cannot read"]);
    write(
        &workspace,
        &of_the_model(|name, sums| {
            if name == UP {
                sums.truncate(100)
            }
        }),
        1000,
        Some(9),
    );
    refused(
        &stages("mse", ""),
        Exit::BadModel,
        "calibration::wrong-length",
        &[UP, "100 numbers", "128 columns"],
    );
    let bad = |value: f32| {
        of_the_model(move |name, sums| {
            if name == UP {
                sums[7] = value
            }
        })
    };
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinite"), (-1.0, "negative")] {
        write(&workspace, &bad(value), 1000, Some(9));
        refused(&stages("mse", ""), Exit::BadModel, "calibration::bad-value", &[UP, "column 7", word]);
    }
    write(
        &workspace,
        &of_the_model(|name, sums| {
            if name == UP {
                sums.fill(0.0)
            }
        }),
        1000,
        Some(9),
    );
    refused(&stages("mse", ""), Exit::BadModel, "calibration::bad-value", &[UP, "all columns are 0"]);
    write(&workspace, &all, 0, Some(9));
    refused(&stages("mse", ""), Exit::BadModel, "calibration::bad-count", &["no token"]);
    let mut strange = all.clone();
    strange[5].0 = "model.layers.0.mlp.upp_proj".to_owned();
    write(&workspace, &strange, 1000, Some(9));
    refused(
        &stages("mse", ""),
        Exit::BadModel,
        "calibration::unknown-module",
        &["`model.layers.0.mlp.upp_proj`", "`model.layers.0.mlp.up_proj`"],
    );
    write(&workspace, &all[1..], 1000, Some(9));
    refused(
        &stages("mse", ""),
        Exit::BadRecipe,
        "plan::missing-statistics",
        &["model.layers.0.self_attn.q_proj"],
    );
    let plan =
        workspace.plan(&workspace.whole_recipe(&stages("mse", "      on_missing: warn\n"))).expect("a plan");
    assert!(plan.warnings.iter().any(|finding| finding.code == "plan::missing-statistics"));
    let plan = workspace
        .plan(&workspace.whole_recipe(&stages("mse", "      on_missing: ignore\n")))
        .expect("a plan");
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let without = |text: &str| text.replace("    calibration:\n      file: stats\n", "");
    refused(&without(&stages("imatrix-mse", "")), Exit::BadRecipe, "recipe::no-statistics", &["imatrix-mse"]);
    let outputs = stages("mse", "").replace("sqnr_warning_threshold: 12", "sqnr: outputs");
    refused(&without(&outputs), Exit::BadRecipe, "recipe::no-statistics", &["sqnr: outputs"]);
}

#[test]
fn few_samples_and_hardly_used_modules_are_warned_of() {
    let workspace = Workspace::with(&Model::llama());
    let warned = |samples: Option<u64>| {
        write(&workspace, &of_the_model(|_, _| {}), 1000, samples);
        workspace.run(&workspace.whole_recipe(&stages("mse", ""))).exits(0);
        let told = report(&workspace.path("out"));
        let found = told.warnings.iter().find(|warning| warning.code == "check::low-calibration");
        found.map(|warning| warning.message.clone()).unwrap_or_default()
    };
    assert_eq!(warned(Some(128)), "");
    assert!(warned(Some(49)).contains("made of 49 samples, fewer than 50"));
    assert!(warned(None).contains("does not say how many samples"));
}

#[test]
fn a_gate_can_ask_for_the_outputs_quality() {
    let workspace = Workspace::with(&Model::llama());
    write(&workspace, &of_the_model(|_, _| {}), 1000, Some(128));
    let outputs = |threshold: &str| {
        let gate = format!("sqnr: outputs\n    sqnr_error_threshold: {threshold}\n    on_failure: error");
        stages("minmax", "").replace("sqnr_warning_threshold: 12", &gate)
    };
    workspace.run(&workspace.whole_recipe(&outputs("10"))).exits(0);
    let said = workspace.run(&workspace.whole_recipe(&outputs("60"))).exits(1);
    assert!(said.stderr.contains("weighted by activations"), "{}", said.stderr);
}

#[test]
fn a_plan_says_what_statistics_are_for() {
    let workspace = Workspace::with(&Model::llama());
    write(&workspace, &of_the_model(|_, _| {}), 1000, Some(128));
    for (observer, says, explains) in [
        ("mse", "mse, weighed by ", "weighs its columns\n"),
        ("minmax", "minmax, measured with ", "its observer does not search"),
    ] {
        workspace.whole_recipe(&stages(observer, ""));
        let plan = workspace.monoquant(["plan", "recipe.yaml"]).exits(0).stdout;
        assert!(plan.contains(says), "{plan}");
        let explained =
            workspace.monoquant(["explain", "recipe.yaml", "model.layers.0.mlp.up_proj"]).exits(0);
        assert!(explained.stdout.contains(explains), "{}", explained.stdout);
    }
}

#[test]
fn files_of_other_kinds_are_told_apart() {
    let code = |bytes: &[u8]| calibration::parse(bytes).expect_err("no statistics").code;
    let model =
        std::fs::read(root().join("examples/tiny-llama/model-00002-of-00002.safetensors")).expect("a model");
    assert_eq!(code(&model), "calibration::no-modules");
    assert_eq!(code(b"\xff\xff\xff\x7f and some text"), "calibration::bad-count");
    assert_eq!(code(b"version: 1\nstages: []\n"), "calibration::unknown-format");
    assert_eq!(code(b""), "calibration::truncated");
    let gguf = std::fs::read(fixture("tiny-llama.imatrix.gguf")).expect("a fixture");
    assert_eq!(code(&gguf[..gguf.len() / 2]), "calibration::truncated");
    assert_eq!(code(&gguf[..200]), "calibration::truncated");
    let at = gguf.windows(7).position(|window| window == b"imatrix").expect("the type");
    let mut other = gguf.clone();
    other[at..at + 7].copy_from_slice(b"adapter");
    assert_eq!(code(&other), "calibration::not-statistics");
    // A promise of more tensors than the file can hold.
    let mut many = gguf;
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(code(&many), "calibration::bad-count");
    let dat = std::fs::read(fixture("tiny-llama.imatrix.dat")).expect("a fixture");
    assert_eq!(code(&dat[..3000]), "calibration::bad-count");
    let own = std::fs::read(fixture("tiny-llama.bos-stats.safetensors")).expect("a fixture");
    assert!(calibration::parse(&own[..own.len() - 4]).is_err());
}

#[test]
fn inspect_shows_what_dominates() {
    let workspace = Workspace::new();
    let path = root().join("examples/calibration/tiny-llama.stats.safetensors").display().to_string();
    let said = workspace.monoquant(["inspect", &path]).exits(0);
    for words in [
        "28 modules",
        "samples 128, tokens 32768",
        "592 (17.10), 347 (16.67), 379 (12.91)",
        "calibration.txt",
    ] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    let said =
        workspace.monoquant(["inspect", "--json", &fixture("tiny-moe.imatrix.gguf").display().to_string()]);
    assert_eq!(said.exits(0).json()["format"], "GGUF importance matrix");
    workspace.monoquant(["inspect", &fixture("nothing.gguf").display().to_string()]).exits(3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever bytes there are, a reader ends with statistics or with an error.
    #[test]
    fn no_bytes_make_a_reader_panic(which in 0..6_usize, cut in any::<prop::sample::Index>(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
        let names = ["tiny-llama.imatrix.gguf", "tiny-llama.imatrix.dat", "tiny-llama.bos-stats.safetensors", "tiny-moe.imatrix.gguf", "tiny-moe.imatrix.dat", "tiny-moe.from-dat.gguf"];
        let mut bytes = std::fs::read(fixture(names[which])).expect("a fixture");
        for (at, value) in flips {
            // Headers are at the start: most flips go there.
            let end = if value % 3 == 0 { bytes.len() } else { bytes.len().min(600) };
            let at = at.index(end);
            bytes[at] = value;
        }
        let _ = calibration::parse(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = calibration::parse(&bytes);
    }

    #[test]
    fn no_noise_makes_a_reader_panic(head in 0..3_usize, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut all = [b"GGUF\x03\0\0\0".to_vec(), Vec::new(), b"\x40\0\0\0\0\0\0\0{".to_vec()][head].clone();
        all.extend(bytes);
        let _ = calibration::parse(&all);
    }
}
