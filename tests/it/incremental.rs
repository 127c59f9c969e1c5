//! Only what changed is done again, an interrupted run is taken up, and the result is that of a run from nothing.

use std::collections::BTreeMap;
use std::fs;

#[cfg(unix)]
use monoquant::exit::Exit;
use monoquant::run::{Cancel, Event, Options, Outcome, Silent, run};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::{Model, Workspace, files, rounds};

const INT4: &str = "  - stage: quantize-int4\n  - stage: validate\n  - stage: check-warnings\n";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Runs a recipe in process; says which tensors were read.
fn carry_out(workspace: &Workspace, stages: &str, options: &Options) -> (Outcome, Vec<String>) {
    let plan = workspace.plan(&workspace.recipe(stages)).expect("a plan");
    let read = std::sync::Mutex::new(Vec::new());
    let listener = |event: &Event| {
        if let Event::Tensor { name, .. } = event {
            read.lock().expect("a lock").push(name.clone());
        }
    };
    let outcome = run(&plan, options, &listener).expect("an outcome");
    let mut read = read.into_inner().expect("a lock");
    read.sort();
    assert_eq!(read.len(), outcome.work.redone);
    (outcome, read)
}

/// The first weight file of a folder, which is the larger one.
fn weights(folder: &str) -> String {
    format!("{folder}/model-00001-of-00002.safetensors")
}

/// What a run from nothing makes of the same model and recipe.
fn from_nothing(workspace: &Workspace, stages: &str) -> BTreeMap<String, Vec<u8>> {
    let kept = workspace.path("kept");
    fs::rename(workspace.path("out"), &kept).expect("the output");
    carry_out(workspace, stages, &Options { fresh: true, ..Options::default() });
    let made = files(&workspace.path("out"));
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    fs::rename(kept, workspace.path("out")).expect("the output");
    made
}

/// What tells a file from another one of the same name.
#[cfg(unix)]
fn inode(path: &std::path::Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a file"))
}

#[cfg(unix)]
#[test]
fn nothing_changed_is_up_to_date_and_says_why() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let inode = |name: &str| inode(&workspace.path(name));
    let before = (inode("out"), inode(&weights("out")), files(&workspace.path("out")));
    let said = workspace.run(&recipe).exits(0);
    assert!(
        said.stdout.contains("up to date: recipe, model and version are those of the output"),
        "{}",
        said.stdout
    );
    let after = (inode("out"), inode(&weights("out")), files(&workspace.path("out")));
    assert_eq!(before, after);
    // A touched source has the same bytes, and so has one that was written anew.
    fs::File::options()
        .write(true)
        .open(workspace.path(&weights("model")))
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .expect("a file");
    assert!(workspace.run(&recipe).exits(0).stdout.contains("up to date"));
    Model::llama().write(&workspace.path("model"));
    assert!(workspace.run(&recipe).exits(0).stdout.contains("up to date"));
    let said = workspace.monoquant(["run", "recipe.yaml", "--fresh"]).exits(0).stdout;
    assert!(said.contains("quantized") && !said.contains("up to date"), "{said}");
    // Made anew, and the same.
    assert!(inode("out") != before.0 && inode(&weights("out")) != before.1);
    assert_eq!(files(&workspace.path("out")), before.2);
}

#[cfg(unix)]
#[test]
fn a_threshold_touches_no_weight_and_a_comment_nothing() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace, INT4, &Options::default());
    let linked = inode(&workspace.path(&weights("out")));
    let stages = INT4.replace("check-warnings\n", "check-warnings\n    sqnr_warning_threshold: 15\n");
    let (outcome, read) = carry_out(&workspace, &stages, &Options::default());
    assert!(read.is_empty() && !outcome.is_up_to_date);
    assert_eq!(inode(&workspace.path(&weights("out"))), linked);
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace, &stages));
    let (outcome, _) = carry_out(&workspace, &format!("{stages}  # a comment\n"), &Options::default());
    assert!(outcome.is_up_to_date);
    // A gate that fails on what is there leaves it there.
    let failing = INT4.replace(
        "check-warnings\n",
        "check-warnings\n    sqnr_error_threshold: 40\n    sqnr_warning_threshold: 41\n    on_failure: error\n",
    );
    let before = files(&workspace.path("out"));
    let (outcome, read) = carry_out(&workspace, &failing, &Options::default());
    assert_eq!((outcome.exit, read.len()), (Exit::GateFailed, 0));
    assert_eq!(files(&workspace.path("out")), before);
}

#[test]
fn one_layers_rule_redoes_that_layer() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace, INT4, &Options::default());
    let stages = format!(
        "  - stage: quantize-int4\n    targets: [model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj]\n    group_size: 64\n{INT4}"
    );
    let (_, read) = carry_out(&workspace, &stages, &Options::default());
    assert_eq!(read, ["model.layers.1.mlp.gate_proj.weight", UP]);
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace, &stages));
}

#[test]
fn a_changed_weight_is_redone_and_no_other() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace, INT4, &Options::default());
    Model::llama().with_value(UP, 5, 0.25).write(&workspace.path("model"));
    let (_, read) = carry_out(&workspace, INT4, &Options::default());
    assert_eq!(read, [UP]);
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace, INT4));
}

#[test]
fn a_damaged_output_is_not_taken_over() {
    let workspace = Workspace::with(&Model::llama());
    carry_out(&workspace, INT4, &Options::default());
    let good = files(&workspace.path("out"));
    let path = workspace.path(&weights("out"));
    let mut bytes = fs::read(&path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("a file");
    let (outcome, read) = carry_out(&workspace, INT4, &Options::default());
    assert!(!outcome.is_up_to_date);
    assert_eq!(read.len(), 1, "{read:?}");
    assert_eq!(files(&workspace.path("out")), good);
}

#[test]
fn hashes_are_those_of_a_run_from_nothing() {
    let workspace = Workspace::with(&Model::llama());
    let whole = |stages: &str| {
        format!(
            "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n    digest: blake3\n"
        )
    };
    let stages = [INT4.to_owned(), INT4.replace("int4\n", "int4\n    targets: [mlp.down_proj]\n")];
    let mut made = Vec::new();
    for stages in &stages {
        let plan = workspace.plan(&workspace.whole_recipe(&whole(stages))).expect("a plan");
        run(&plan, &Options::default(), &Silent).expect("an outcome");
        made.push(files(&workspace.path("out")));
    }
    for (stages, made) in stages.iter().zip(made) {
        let plan = workspace.plan(&workspace.whole_recipe(&whole(stages))).expect("a plan");
        run(&plan, &Options { fresh: true, ..Options::default() }, &Silent).expect("an outcome");
        assert_eq!(files(&workspace.path("out")), made);
    }
}

/// An edit of recipe or model, as a number for each choice.
#[derive(Debug, Clone)]
struct State {
    scheme: usize,
    layer: usize,
    skip: usize,
    shards: usize,
    dequantized: bool,
    threshold: usize,
    weights: usize,
    interrupt_at: Option<u64>,
}

fn state() -> impl Strategy<Value = State> {
    (
        0..4_usize,
        0..3_usize,
        0..2_usize,
        0..2_usize,
        any::<bool>(),
        0..2_usize,
        0..3_usize,
        proptest::option::of(0..40_u64),
    )
        .prop_map(|(scheme, layer, skip, shards, dequantized, threshold, weights, interrupt_at)| State {
            scheme,
            layer,
            skip,
            shards,
            dequantized,
            threshold,
            weights,
            interrupt_at,
        })
}

impl State {
    fn recipe(&self) -> String {
        let scheme = [
            "quantize-int4",
            "quantize-int8",
            "quantize-int4\n    symmetric: false",
            "quantize-int4\n    group_size: 64",
        ][self.scheme];
        let layer = [
            "",
            "  - stage: quantize-int8\n    targets: [layers.0]\n",
            "  - stage: quantize-int4\n    targets: [mlp.down_proj]\n    observer: mse\n",
        ][self.layer];
        let skip = ["", "  - stage: resolve-skips\n    skip_layer_names: [o_proj]\n"][self.skip];
        let shards = ["keep", "40kB"][self.shards];
        let format = if self.dequantized { "dequantized" } else { "compressed-tensors" };
        let threshold = [12, 14][self.threshold];
        format!(
            "  - stage: load\n    model: model\n{skip}{layer}  - stage: {scheme}\n  - stage: validate\n  - stage: check-warnings\n\
             \x20   sqnr_warning_threshold: {threshold}\n  - stage: export\n    path: out\n    shards: {shards}\n    format: {format}\n"
        )
    }

    fn model(&self) -> Model {
        match self.weights {
            0 => Model::llama(),
            n => Model::llama().with_value(UP, n * 3, 0.125),
        }
    }
}

#[test]
fn any_sequence_of_edits_and_interruptions_ends_as_a_run_from_nothing() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: rounds(4) as u32,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    });
    runner
        .run(&proptest::collection::vec(state(), 2..6), |states| {
            let (workspace, fresh) = (Workspace::new(), Workspace::new());
            for state in &states {
                state.model().write(&workspace.path("model"));
                let plan = workspace.plan(&workspace.whole_recipe(&state.recipe())).expect("a plan");
                if let Some(at) = state.interrupt_at {
                    let cancel = Cancel::default();
                    let (switch, tiles) = (cancel.clone(), std::sync::atomic::AtomicU64::new(0));
                    let listener = move |event: &Event| {
                        let is_tile = matches!(event, Event::Tile { .. });
                        if is_tile && tiles.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == at {
                            switch.cancel();
                        }
                    };
                    // With less to do than tiles before the interruption, the run ends by itself.
                    let _ = run(&plan, &Options { cancel, ..Options::default() }, &listener);
                }
                run(&plan, &Options::default(), &Silent).expect("an outcome");
            }
            let last = states.last().expect("a state");
            last.model().write(&fresh.path("model"));
            let plan = fresh.plan(&fresh.whole_recipe(&last.recipe())).expect("a plan");
            run(&plan, &Options::default(), &Silent).expect("an outcome");
            prop_assert!(files(&workspace.path("out")) == files(&fresh.path("out")), "{states:?}");
            prop_assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
            Ok(())
        })
        .expect("every sequence");
}

#[test]
fn an_interrupted_run_is_taken_up_where_it_ended() {
    let workspace = Workspace::with(&Model::llama());
    let plan = workspace.plan(&workspace.recipe(INT4)).expect("a plan");
    let cancel = Cancel::default();
    let (switch, tensors) = (cancel.clone(), std::sync::atomic::AtomicUsize::new(0));
    let listener = move |event: &Event| {
        let is_tensor = matches!(event, Event::Tensor { .. });
        if is_tensor && tensors.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 11 {
            switch.cancel();
        }
    };
    run(&plan, &Options { cancel, ..Options::default() }, &listener).expect_err("it was interrupted");
    let (outcome, read) = carry_out(&workspace, INT4, &Options::default());
    assert!(outcome.work.taken_over >= 12, "{:?}", outcome.work);
    assert!(!read.is_empty());
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace, INT4));
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn a_staged_file_that_was_damaged_is_made_again() {
    let workspace = Workspace::with(&Model::llama());
    let plan = workspace.plan(&workspace.recipe(INT4)).expect("a plan");
    let cancel = Cancel::default();
    let switch = cancel.clone();
    let listener = move |event: &Event| {
        if matches!(event, Event::Written { .. }) {
            switch.cancel();
        }
    };
    run(&plan, &Options { cancel, ..Options::default() }, &listener).expect_err("it was interrupted");
    // As after a power cut: the journal says that all is there, and the pages never reached the disk.
    let staged = workspace.path(&weights(".out.monoquant-staging"));
    let len = fs::metadata(&staged).expect("a file").len();
    fs::write(&staged, vec![0; len as usize]).expect("a file");
    let (outcome, _) = carry_out(&workspace, INT4, &Options::default());
    assert!(outcome.work.redone > 0);
    assert_eq!(files(&workspace.path("out")), from_nothing(&workspace, INT4));
}

/// A pseudo-random number below a bound.
fn random(seed: &mut u64, bound: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % bound.max(1)
}

#[test]
fn after_kills_the_published_folder_is_a_whole_old_or_new_one() {
    let workspace = Workspace::with(&Model::llama());
    let made: Vec<_> = ["quantize-int4", "quantize-int8"]
        .map(|stage| {
            let recipe = workspace.recipe(&format!("  - stage: {stage}\n  - stage: validate\n"));
            let renamed = workspace.path(&format!("{stage}.yaml"));
            fs::rename(recipe, &renamed).expect("the recipe");
            let start = std::time::Instant::now();
            workspace.run(&renamed).exits(0);
            let took = start.elapsed();
            let whole = files(&workspace.path("out"));
            fs::remove_dir_all(workspace.path("out")).expect("the output");
            (renamed, whole, took)
        })
        .into();
    let (mut seed, mut published, mut interrupted) = (7, 0, 0);
    for kill in 0..rounds(12) {
        let (recipe, _, took) = &made[kill % 2];
        let mut child = workspace
            .command([std::ffi::OsStr::new("run"), recipe.as_os_str()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs");
        // At its start, after its end, and somewhere in it: when exactly makes no difference to what must hold.
        let moment = match kill % 4 {
            0 => 0,
            1 => u64::MAX,
            _ => random(&mut seed, took.as_micros() as u64 + 1),
        };
        if moment == u64::MAX {
            assert!(child.wait().expect("a child").success(), "kill {kill}: nobody disturbed this run");
        }
        let start = std::time::Instant::now();
        while moment != u64::MAX && start.elapsed().as_micros() < u128::from(moment) {
            std::thread::yield_now();
        }
        let _ = child.kill();
        let status = child.wait().expect("a child");
        interrupted += usize::from(!status.success());
        if workspace.path("out").exists() {
            published += 1;
            let found = files(&workspace.path("out"));
            assert!(made.iter().any(|(_, whole, _)| *whole == found), "kill {kill} left {:?}", found.keys());
        }
    }
    // Those that were killed at their start, and those that found what an undisturbed one had published.
    assert!(interrupted > 0 && published > 0, "{interrupted} were interrupted, {published} left an output");
    for (recipe, whole, _) in &made {
        workspace.run(recipe).exits(0);
        assert!(files(&workspace.path("out")) == *whole);
    }
    assert_eq!(workspace.names(), ["model", "out", "quantize-int4.yaml", "quantize-int8.yaml"]);
}
