//! Rounding with calibration, from the recipe to the output.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use monoquant::cancel::Cancel;
use monoquant::exit::Exit;
use monoquant::finding::Failure;
use monoquant::plan::{Limits, Plan};
use monoquant::recipe::Overrides;
use monoquant::report::Report;
use monoquant::run::calibrate::calibrate;
use monoquant::run::prepare::prepare;
use monoquant::run::rounding::round;
use monoquant::run::{Event, Options, Outcome, Silent};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{Workspace, files, plan_with, report, root};

mod given;
mod guided;

const HELD_OUT: &str = "examples/calibration/held-out.txt";
const CALIBRATE: &str = "  - stage: calibrate\n    samples: 12\n    sequence_length: 128\n";
const SKIPS: &str = "  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n";

/// Stages that calibrate and quantize, with these lines of a quantize stage.
fn stages(quantize: &str) -> String {
    format!("{SKIPS}{CALIBRATE}{quantize}")
}

fn int4(rest: &str) -> String {
    format!("  - stage: quantize-int4\n    rounding: gptq\n{rest}")
}

/// A workspace with the trained example, whose files are old enough to be known by their identity.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    for entry in fs::read_dir(root().join("examples/tiny-llama")).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        workspace.write(&format!("model/{name}"), fs::read(&path).expect("a file"));
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    workspace
}

fn plan_of(recipe: &Path, threads: usize, memory: Option<u64>) -> Plan {
    plan_with(recipe, &Overrides::default(), Limits { threads: Some(threads), memory }).expect("a plan")
}

/// Plans, calibrates, rounds and runs.
fn carry_out(plan: &mut Plan, options: &Options) -> Result<Outcome, Failure> {
    calibrate(plan, options, &Silent)?;
    round(plan, options, &Silent)?;
    monoquant::run::run(plan, options, &Silent)
}

fn weights(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    files(&workspace.path("out")).into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

fn kept(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    files(&workspace.path(".out.monoquant-rounding"))
}

fn fresh() -> Options {
    Options { fresh: true, ..Options::default() }
}

/// Windows that went through a layer while codes were chosen.
fn windows(plan: &mut Plan, options: &Options) -> usize {
    let told = AtomicUsize::new(0);
    let listener = |event: &Event| {
        if let Event::Layer { name: "round", .. } = event {
            told.fetch_add(1, Ordering::Relaxed);
        }
    };
    calibrate(plan, options, &Silent).expect("calibrated");
    round(plan, options, &listener).expect("rounded");
    told.into_inner()
}

#[test]
fn answers_are_nearer_and_bytes_the_same_whatever_the_threads_and_the_memory() {
    let workspace = workspace();
    let text = fs::read_to_string(root().join("examples/calibration/held-out.txt")).expect("the text");
    workspace.write("held-out.txt", text.chars().take(20_000).collect::<String>());
    let evaluate = "  - stage: evaluate\n    text: [held-out.txt]\n    samples: 8\n";
    let kl = |stages: String| {
        let ended = workspace.run(&workspace.recipe(&format!("{stages}{evaluate}"))).exits(0);
        let report = report(&workspace.path("out"));
        (report.evaluations[0].kl.as_ref().expect("a divergence").mean, report, ended.stdout)
    };
    // A sequence makes good what it sees: with few tokens it learns them by heart.
    let more = |quantize: &str| stages(quantize).replace("samples: 12", "samples: 64");
    let (nearest, ..) = kl(stages("  - stage: quantize-int4\n"));
    let (alone, ..) = kl(more(&int4("    sequential: false\n")));
    let (ours, report, said) = kl(more(&int4("")));
    assert!(ours < 0.6 * nearest && alone < 0.6 * nearest, "{ours} {alone} {nearest}");
    assert!(said.contains("gptq") && said.contains("28 matrices"), "{said}");
    let told: Vec<_> = report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref()).collect();
    assert_eq!(told.len(), 28);
    assert!(told.iter().all(|told| told.tokens == Some(64 * 128) && told.error < told.error_of_nearest));
    workspace.monoquant(["verify", "out"]).exits(0);

    let recipe = workspace.recipe(&stages(&int4("")));
    carry_out(&mut plan_of(&recipe, 2, None), &fresh()).expect("two threads");
    let first = weights(&workspace);
    let mut plan = plan_of(&recipe, 1, None);
    carry_out(&mut plan, &fresh()).expect("one thread");
    assert!(first == weights(&workspace), "one thread");
    let plan = plan_of(&recipe, 3, None);
    let runs = plan.runs.as_ref().expect("runs");
    let least = plan.roundings.as_ref().expect("rounded").least_memory(runs, 3);
    let limits = Limits { threads: Some(3), memory: Some(least + 1024) };
    let mut plan = plan_with(&recipe, &Overrides::default(), limits).expect("a plan");
    carry_out(&mut plan, &fresh()).expect("three threads, activations in files");
    assert!(first == weights(&workspace), "three threads and little memory");
    let limits = Limits { threads: Some(3), memory: Some(least - 1024) };
    let failure = plan_with(&recipe, &Overrides::default(), limits).expect_err("too little memory");
    assert_eq!((failure.exit, failure.findings[0].code), (Exit::BadRecipe, "plan::memory"));
}

/// Passes through the first layer that were told, by the name of the stage.
fn passes(plan: &mut Plan, options: &Options) -> BTreeMap<&'static str, usize> {
    let told = std::sync::Mutex::new(BTreeMap::new());
    let listener = |event: &Event| {
        if let Event::Layer { name, layer: 1, done: 0, .. } = event {
            *told.lock().expect("unpoisoned").entry(*name).or_insert(0) += 1;
        }
    };
    prepare(plan, options, &listener).expect("prepared");
    told.into_inner().expect("unpoisoned")
}

#[test]
fn statistics_that_choose_nothing_take_no_pass_of_their_own() {
    let workspace = workspace();
    let statistics = || fs::read(workspace.path(".out.monoquant-statistics")).expect("kept statistics");
    let recipe = |rest: &str| workspace.recipe(&stages(&int4(rest)));
    for rest in ["", "    sequential: false\n"] {
        let recipe = recipe(rest);
        let mut apart = plan_of(&recipe, 2, None);
        calibrate(&mut apart, &fresh(), &Silent).expect("calibrated");
        round(&mut apart, &fresh(), &Silent).expect("rounded");
        let (expected, codes) = (statistics(), kept(&workspace));
        let mut plan = plan_of(&recipe, 2, None);
        assert_eq!(passes(&mut plan, &fresh()), BTreeMap::from([("round", 1)]), "{rest}");
        assert!(statistics() == expected && kept(&workspace) == codes, "{rest}");
        assert!(plan.weighing == apart.weighing && !plan.is_pending());
        // Nothing is left to do.
        assert_eq!(passes(&mut plan_of(&recipe, 2, None), &Options::default()), BTreeMap::new());
        // Layers that are known do not run for the statistics alone.
        fs::remove_file(workspace.path(".out.monoquant-statistics")).expect("removed");
        let mut plan = plan_of(&recipe, 2, None);
        assert_eq!(passes(&mut plan, &Options::default()), BTreeMap::from([("calibrate", 1)]), "{rest}");
        assert!(statistics() == expected && plan.weighing == apart.weighing);
    }
    // Layers after the last one that is rounded are only listened to; a run that was killed has heard nothing.
    let last = stages(&int4("")).replace("[lm_head]", "[lm_head, layers.3]");
    let recipe = workspace.recipe(&last);
    assert_eq!(passes(&mut plan_of(&recipe, 2, None), &fresh()), BTreeMap::from([("round", 1)]));
    let heard = statistics();
    calibrate(&mut plan_of(&recipe, 2, None), &fresh(), &Silent).expect("calibrated");
    assert!(heard == statistics());
    fs::remove_file(workspace.path(".out.monoquant-statistics")).expect("removed");
    fs::remove_file(workspace.path(".out.monoquant-rounding/layer-1")).expect("removed");
    assert_eq!(passes(&mut plan_of(&recipe, 2, None), &Options::default()), BTreeMap::from([("round", 1)]));
    assert!(heard == statistics());
    // A search for scales needs them first, and so does an error that might end the run.
    let experts = family("mixtral");
    let experts = experts.recipe(
        "  - stage: calibrate\n    samples: 8\n    sequence_length: 32\n  - stage: quantize-int4\n    rounding: gptq\n    group_size: 16\n",
    );
    let mut plan = plan_of(&experts, 2, None);
    assert_eq!(passes(&mut plan, &fresh()), BTreeMap::from([("calibrate", 1), ("round", 1)]));
    let mixed = format!(
        "{SKIPS}{CALIBRATE}  - stage: quantize-int4\n    targets: [down_proj]\n    observer: mse\n{}",
        int4("")
    );
    let mut plan = plan_of(&workspace.recipe(&mixed), 2, None);
    assert_eq!(passes(&mut plan, &fresh()), BTreeMap::from([("calibrate", 1), ("round", 1)]));
}

#[test]
fn a_killed_run_goes_on_at_the_last_finished_layer() {
    let workspace = workspace();
    let recipe = workspace.recipe(&stages(&int4("")));
    let mut plan = plan_of(&recipe, 2, None);
    let options = Options { cancel: Cancel::default(), ..Options::default() };
    calibrate(&mut plan, &options, &Silent).expect("calibrated");
    let listener = |event: &Event| {
        if let Event::Layer { name: "round", layer: 3, .. } = event {
            options.cancel.cancel();
        }
    };
    let failure = round(&mut plan, &options, &listener).expect_err("cancelled");
    assert_eq!(failure.exit, Exit::Interrupted);
    let half = kept(&workspace);
    assert_eq!(half.keys().collect::<Vec<_>>(), ["layer-0", "layer-1"]);

    let ended = workspace.run(&recipe).exits(0);
    assert!(ended.stderr.contains("the codes of 2 layers are those of the last run"), "{}", ended.stderr);
    let (resumed, whole) = (weights(&workspace), kept(&workspace));
    assert!(half.iter().all(|(name, bytes)| whole[name] == *bytes) && whole.len() == 4);
    let ended = workspace.run(&recipe).exits(0);
    assert!(ended.stdout.contains("up to date"), "{}", ended.stdout);
    carry_out(&mut plan_of(&recipe, 2, None), &fresh()).expect("from the start");
    assert!(resumed == weights(&workspace) && whole == kept(&workspace));

    // A damaged file is made again, and nothing is believed that a stranger may have left.
    let layer = workspace.path(".out.monoquant-rounding/layer-2");
    let mut bytes = whole["layer-2"].clone();
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&layer, bytes).expect("damaged");
    assert!(windows(&mut plan_of(&recipe, 2, None), &Options::default()) > 0);
    assert_eq!(windows(&mut plan_of(&recipe, 2, None), &Options::default()), 0);
    assert!(windows(&mut plan_of(&recipe, 2, None), &fresh()) > 0);
    assert!(whole == kept(&workspace));
    let mut untrusted = workspace.command(["run", "--untrusted", "recipe.yaml"]);
    let said = workspace.ended(untrusted.output().expect("runs")).exits(0);
    assert!(said.stderr.contains("round: 1,536 tokens"), "{}", said.stderr);
    let mut ci = workspace.command(["run", "recipe.yaml"]);
    let said = workspace.ended(ci.env("CI", "true").output().expect("runs")).exits(0);
    assert!(said.stderr.contains("round: 1,536 tokens"), "{}", said.stderr);
    assert!(resumed == weights(&workspace));
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    assert!(!workspace.path(".out.monoquant-rounding").exists());
}

/// Layers 0 and 1 by one stage, 2 and 3 by another.
fn halves(sequential: bool, second: &str) -> String {
    let rest = format!("    sequential: {sequential}\n");
    let first = int4(&format!("    targets: ['model.layers.0', 'model.layers.1']\n{rest}"));
    stages(&format!(
        "{first}{}",
        int4(&format!("    targets: ['model.layers.2', 'model.layers.3']\n{rest}{second}"))
    ))
}

#[test]
fn an_edit_redoes_the_layers_that_it_concerns() {
    let workspace = workspace();
    let run = |stages: &str| {
        carry_out(&mut plan_of(&workspace.recipe(stages), 2, None), &Options::default()).expect("a run");
        (kept(&workspace), weights(&workspace))
    };
    let changed = |a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
        b.iter().filter(|(name, bytes)| a.get(*name) != Some(*bytes)).map(|(name, _)| name.clone()).collect()
    };
    let (before, _) = run(&halves(true, ""));
    let (after, edited) = run(&halves(true, "    group_size: 64\n"));
    assert_eq!(changed(&before, &after), ["layer-2", "layer-3"]);
    let fresh_plan = &mut plan_of(&workspace.recipe(&halves(true, "    group_size: 64\n")), 2, None);
    carry_out(fresh_plan, &fresh()).expect("from the start");
    assert!(edited == weights(&workspace));
    // An edit of the first half concerns all, or, if each layer is rounded for itself, that half alone.
    let first = |sequential: bool| {
        let all = halves(sequential, "");
        all.replacen("'model.layers.1']", "'model.layers.1']\n    group_size: 64", 1)
    };
    let (before, _) = run(&halves(true, ""));
    assert_eq!(changed(&before, &run(&first(true)).0), ["layer-0", "layer-1", "layer-2", "layer-3"]);
    let (before, _) = run(&halves(false, ""));
    assert_eq!(changed(&before, &run(&first(false)).0), ["layer-0", "layer-1"]);
    // Matrices that another stage rounds to nearest are in the stream as they will be.
    let mixed = |bits: u8| {
        let nearest = format!(
            "  - stage: quantize-int{bits}\n    targets: ['model.layers.0']\n    granularity: channel\n"
        );
        stages(&format!("{nearest}{}", int4("")))
    };
    let (before, _) = run(&mixed(8));
    assert_eq!(before.keys().collect::<Vec<_>>(), ["layer-1", "layer-2", "layer-3"]);
    assert_eq!(changed(&before, &run(&mixed(4)).0), ["layer-1", "layer-2", "layer-3"]);
}

#[test]
fn every_scheme_can_be_rounded() {
    let workspace = workspace();
    for quantize in [
        int4("    symmetric: false\n    group_size: 32\n"),
        int4("    granularity: channel\n"),
        "  - stage: quantize-int8\n    rounding: gptq\n    granularity: group\n".to_owned(),
        "  - stage: quantize-int8\n    rounding: gptq\n    symmetric: false\n".to_owned(),
        "  - stage: quantize-int8\n    rounding: gptq\n    activations: dynamic-token\n".to_owned(),
    ] {
        let recipe = workspace.recipe(&stages(&format!("{quantize}  - stage: validate\n")));
        let outcome = carry_out(&mut plan_of(&recipe, 2, None), &Options::default()).expect("a run");
        assert_eq!(outcome.exit, Exit::Done, "{quantize}");
        let rounded = outcome.report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref());
        assert_eq!(rounded.map(|record| record.matrices).sum::<usize>(), 28, "{quantize}");
        workspace.monoquant(["verify", "out"]).exits(0);
    }
    // One choice of codes serves all exports.
    let two = format!(
        "  - stage: load\n    model: model\n{}  - stage: export\n    path: out\n  - stage: export\n    path: plain\n    \
         format: dequantized\n",
        stages(&int4(""))
    );
    let recipe = workspace.whole_recipe(&two);
    let outcome = carry_out(&mut plan_of(&recipe, 2, None), &Options::default()).expect("a run");
    assert_eq!(outcome.published.len(), 2);
}

/// A small model of a family, as `tests/interop/make_network_fixtures.py` makes it but for its vocabulary, which is the example's.
fn family(name: &str) -> Workspace {
    family_with(name, |_, _| {})
}

/// The same with another configuration and other shapes.
fn family_with(name: &str, change: impl Fn(&mut Value, &mut BTreeMap<String, Vec<usize>>)) -> Workspace {
    let workspace = Workspace::new();
    let bytes =
        fs::read(root().join(format!("tests/fixtures/network/{name}.safetensors"))).expect("a fixture");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = metadata.metadata().clone().expect("metadata");
    let mut config: Value = serde_json::from_str(&metadata["config"]).expect("config");
    config["vocab_size"] = json!(2048);
    let mut shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_str(&metadata["tensors"]).expect("shapes");
    change(&mut config, &mut shapes);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, mut shape)| {
            if shape[0] == 96 && (name.contains("embed") || name.contains("wte") || name.contains("lm_head"))
            {
                shape[0] = 2048;
            }
            let is_norm = shape.len() == 1 && name.ends_with("weight");
            let values = crate::support::gaussian(&name, shape.iter().product());
            let value = |x: &f32| if is_norm { 1.0 + x } else { 10.0 * x };
            (name, shape, values.iter().flat_map(|x| value(x).to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("a file");
    workspace.write("model/model.safetensors", file);
    workspace.write("model/config.json", config.to_string());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let bytes = fs::read(root().join("examples/tiny-llama").join(file)).expect("a file");
        workspace.write(&format!("model/{file}"), bytes);
    }
    workspace
}

fn run_family(name: &str, samples: usize, quantize: &str) -> (Workspace, Report, Vec<String>) {
    let workspace = family(name);
    let calibrate = format!(
        "  - stage: load\n    model: model\n  - stage: calibrate\n    samples: {samples}\n    sequence_length: 32\n    \
         on_missing: warn\n"
    );
    // No engine has a quantized form of GPT-2's layers.
    let (quantize, format) = match name {
        "gpt2" => (format!("{quantize}    targets: [Conv1D]\n"), "dequantized"),
        _ => (quantize.to_owned(), "compressed-tensors"),
    };
    let recipe = workspace.whole_recipe(&format!(
        "{calibrate}{quantize}  - stage: validate\n  - stage: export\n    path: out\n    format: {format}\n"
    ));
    let mut plan = plan_of(&recipe, 2, None);
    let outcome = carry_out(&mut plan, &Options::default()).expect(name);
    assert_eq!(outcome.exit, Exit::Done, "{name}");
    let told = plan.warnings.iter().filter(|finding| finding.code == "plan::rounded-to-nearest");
    let told = told.map(|finding| format!("{} {}", finding.message, finding.help_text().unwrap_or_default()));
    (workspace, outcome.report, told.collect())
}

#[test]
fn experts_and_fused_and_lying_matrices_are_rounded() {
    let quantize = "  - stage: quantize-int4\n    rounding: gptq\n    group_size: 16\n    siblings: ignore\n";
    for name in ["mixtral", "qwen3-moe", "gpt-oss", "gpt2", "phi3", "llama-tied-biased"] {
        let (workspace, report, told) = run_family(name, 64, quantize);
        let quantized = report.tensors.iter().filter(|tensor| tensor.action == "quantized").count();
        let rounded: Vec<_> = report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref()).collect();
        assert_eq!(rounded.len(), quantized, "{name}");
        assert!(rounded.iter().all(|record| record.error <= record.error_of_nearest), "{name}");
        let (chosen, nearest): (usize, usize) = rounded
            .iter()
            .fold((0, 0), |sum, record| (sum.0 + record.matrices, sum.1 + record.nearest.len()));
        assert!(chosen > 0 && nearest * 4 <= chosen, "{name}: {chosen} and {nearest}: {told:?}");
        assert!(told.len() <= 4, "{told:?}");
        workspace.monoquant(["verify", "out"]).exits(0);
    }
}

#[test]
fn matrices_that_text_hardly_reaches_are_rounded_to_nearest_and_told_together() {
    let quantize = "  - stage: quantize-int4\n    rounding: gptq\n    group_size: 16\n";
    let (workspace, report, told) = run_family("mixtral", 1, quantize);
    assert!(told.len() == 1 && told[0].contains("few tokens came there"), "{told:?}");
    let thin = report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref());
    let thin: Vec<_> = thin.flat_map(|record| &record.nearest).collect();
    assert!(!thin.is_empty() && thin.iter().all(|record| record.module.contains("experts")), "{thin:?}");
    // They have the bytes of rounding to nearest.
    let before = crate::support::tensors(&workspace.path("out"));
    let plain = "  - stage: quantize-int4\n    group_size: 16\n";
    workspace.run_in_process(&workspace.recipe(plain)).expect("a run");
    let after = crate::support::tensors(&workspace.path("out"));
    for record in thin {
        let name = format!("{}.weight_packed", record.module);
        assert_eq!(before[&name].bytes, after[&name].bytes, "{name}");
    }
}

#[test]
fn recipes_that_cannot_be_rounded_so_are_told() {
    let workspace = workspace();
    let code = |stages: &str| -> (&'static str, String) {
        let Failure { findings, .. } = workspace.plan(&workspace.recipe(stages)).expect_err("an error");
        let error = findings.iter().find(|finding| finding.is_error()).expect("an error");
        (error.code, error.message.clone())
    };
    let needs = |stages: &str, what: &str| {
        let (code, message) = code(stages);
        assert!(code == "recipe::rounding" && message.contains(what), "{code}: {message}");
    };
    needs(&int4(""), "needs a `calibrate` stage");
    needs(&stages(&int4("    calibration:\n      file: a.safetensors\n")), "needs a `calibrate` stage");
    needs(&stages(&int4("    granularity: tensor\n")), "one scale between all rows");
    let two = int4("    targets: ['model.layers.0']\n") + &int4("    sequential: false\n");
    needs(&stages(&two), "the same `sequential`");
    let two = int4("    targets: ['model.layers.0']\n") + CALIBRATE + &int4("");
    needs(&stages(&two), "one `calibrate` stage");
    let recipe = workspace.whole_recipe(&format!("  - stage: load\n    model: model\n{}", stages(&int4(""))));
    let failure = workspace.plan(&recipe).expect_err("no export");
    assert_eq!(failure.findings[0].code, "recipe::rounding");
    let idle =
        workspace.plan_findings(&workspace.recipe("  - stage: quantize-int4\n    sequential: false\n"));
    assert!(idle.contains("`sequential` has no effect"), "{idle}");
    // The head is asked for, and no layer has it.
    let anyway = format!("  - stage: resolve-skips\n    quantize_anyway: [lm_head]\n{CALIBRATE}{}", int4(""));
    let told = workspace.plan_findings(&workspace.recipe(&anyway));
    assert!(told.contains("the forward pass does not reach it") && told.contains("`lm_head`"), "{told}");
}
