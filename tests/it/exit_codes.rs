//! The documented exit statuses, each end to end.

use std::fs;
use std::path::Path;

use monoquant::exit::Exit;
use monoquant::plan::Limits;
use monoquant::recipe::Overrides;
use monoquant::run::{Cancel, Event, Options, run};

#[cfg(unix)]
use crate::support::headers::{FixtureTensor, write_sparse};
use crate::support::{Model, Workspace, folder_of_the_first, plan_with};

const INT4: &str = "  - stage: quantize-int4\n";

#[test]
fn done_is_0() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(INT4)).exits(0);
    workspace.monoquant(["--version"]).exits(0);
}

#[test]
fn a_failed_gate_is_1() {
    let workspace = Workspace::with(&Model::llama());
    let gate = "  - stage: check-warnings\n    sqnr_error_threshold: 25\n    sqnr_warning_threshold: 25\n    on_failure: error\n";
    let said = workspace.run(&workspace.recipe(&format!("{INT4}{gate}"))).exits(1);
    assert!(said.stdout.starts_with("✗ test: `check-warnings` failed"), "{}", said.stdout);
}

#[test]
fn a_wrong_recipe_or_command_line_is_2() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe("  - stage: quantise-int4\n")).exits(2);
    workspace.run(&workspace.path("none.yaml")).exits(2);
    let said = workspace.monoquant(["rnu", "recipe.yaml"]).exits(2);
    assert!(
        said.stderr.contains("the commands are: init, run, calibrate, plan, evaluate, explain,"),
        "{}",
        said.stderr
    );
    workspace.monoquant(["run"]).exits(2);
    workspace.recipe(INT4);
    workspace.monoquant(["run", "recipe.yaml", "--isa", "abacus"]).exits(2);
    workspace.monoquant(["run", "recipe.yaml", "--memory", "much"]).exits(2);
    workspace.monoquant(["run", "recipe.yaml", "--set", "nothing.at.all=1"]).exits(2);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn a_wrong_or_damaged_model_is_3() {
    let workspace = Workspace::new();
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(3);
    fs::create_dir(workspace.path("model")).expect("a folder");
    workspace.run(&recipe).exits(3);
    Model::llama().in_shards(1).write(&workspace.path("model"));
    let weights = workspace.path("model/model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() - 1]).expect("weights");
    let said = workspace.run(&recipe).exits(3);
    assert!(said.stderr.contains("model.safetensors"), "{}", said.stderr);
    let poisoned = Model::llama().with_value("model.layers.0.mlp.up_proj.weight", 128 * 3 + 5, f32::NAN);
    poisoned.in_shards(1).write(&workspace.path("model"));
    let said = workspace.run(&recipe).exits(3);
    insta::assert_snapshot!(
        "nan-weight",
        said.stderr.lines().filter(|line| !line.contains("%")).collect::<Vec<_>>().join("\n")
    );
    workspace.monoquant(["inspect", "nowhere"]).exits(3);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn a_model_that_changes_while_it_is_read_is_3() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    let plan = workspace.plan(&recipe).expect("a plan");
    let weights = workspace.path("model/model-00001-of-00002.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("weights");
    let failure = run(&plan, &Options::default(), &monoquant::run::Silent).expect_err("the file is shorter");
    assert_eq!(failure.exit, Exit::BadModel, "{failure}");
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn what_cannot_be_written_is_4() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    let to = |path: &str| workspace.monoquant(["run", "recipe.yaml", "--output", path]);
    // A file is there.
    workspace.write("out", "a file");
    assert!(workspace.run(&recipe).exits(4).stderr.contains("exists and was not written by monoquant"));
    assert_eq!(fs::read(workspace.path("out")).expect("the file"), b"a file");
    // The folder above it is a file.
    to("out/below").exits(4);
    // Somebody's folder is there.
    workspace.write("foreign/notes.txt", "mine");
    assert!(to("foreign").exits(4).stderr.contains("exists and was not written by monoquant"));
    assert_eq!(fs::read(workspace.path("foreign/notes.txt")).expect("the file"), b"mine");
    // No space.
    #[cfg(target_os = "linux")]
    assert!(to("/proc/out").exits(4).stderr.contains("0 B free"));
    // An output is there, and the recipe refuses to replace it.
    to("ours").exits(0);
    let said =
        workspace.monoquant(["run", "recipe.yaml", "--output", "ours", "--set", "export.overwrite=refuse"]);
    assert!(said.exits(4).stderr.contains("overwrite: refuse"));
    assert_eq!(workspace.names(), ["foreign", "model", "ours", "out", "recipe.yaml"]);
}

#[test]
fn an_output_locked_by_another_run_is_4() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    let plan = workspace.plan(&recipe).expect("a plan");
    // While a run in this process has written its weights and not yet published, another process wants the same output.
    let listener = |event: &Event| {
        if matches!(event, Event::Written { .. }) {
            let said = workspace.run(&recipe).exits(4);
            assert!(said.stderr.contains("another run is writing this output"), "{}", said.stderr);
        }
    };
    let outcome = run(&plan, &Options::default(), &listener).expect("the first run is undisturbed");
    assert_eq!(outcome.exit, Exit::Done);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    workspace.monoquant(["verify", "out"]).exits(0);
}

#[test]
fn an_output_that_fails_its_own_check_is_5() {
    let damages: [fn(&Path); 3] = [
        |file| {
            fs::File::options()
                .append(true)
                .open(file)
                .and_then(|file| file.set_len(4096))
                .expect("a staged file")
        },
        |file| {
            // A letter of a name in the header.
            let mut bytes = fs::read(file).expect("a staged file");
            let at = bytes.windows(5).position(|five| five == b"layer").expect("a name");
            bytes[at] = b'L';
            fs::write(file, bytes).expect("a staged file");
        },
        |file| fs::remove_file(file).expect("a staged file"),
    ];
    for damage in damages {
        let workspace = Workspace::with(&Model::llama());
        let plan =
            workspace.plan(&workspace.recipe(&format!("{INT4}  - stage: validate\n"))).expect("a plan");
        let listener = |event: &Event| {
            if let Event::Written { staging } = event {
                damage(&staging[0].join("model-00001-of-00002.safetensors"));
            }
        };
        let outcome = run(&plan, &Options::default(), &listener).expect("a failed gate is an outcome");
        assert_eq!(outcome.exit, Exit::OutputDamaged, "{:?}", outcome.findings);
        assert!(!outcome.report.verdict.passed && outcome.published.is_empty());
        assert_eq!(workspace.names(), ["model", "out.failed-report.json", "recipe.yaml"]);
    }
}

/// A bug: what listens to a run panics. The process that this ends is this program, run once more.
#[cfg(unix)]
#[test]
fn what_nobody_reckoned_with_is_70() {
    let Some(root) = folder_of_the_first() else {
        let workspace = Workspace::with(&Model::llama());
        workspace.recipe(INT4);
        let output = workspace.again("exit_codes::what_nobody_reckoned_with_is_70", ":");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{stderr}");
        assert!(
            stderr.contains("a bug on purpose") && stderr.contains("This is a bug in monoquant"),
            "{stderr}"
        );
        assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
        return;
    };
    let exit = monoquant::cli::as_process(|| {
        let plan =
            plan_with(&root.join("recipe.yaml"), &Overrides::default(), Limits::default()).expect("a plan");
        let listener = |event: &Event| assert!(!matches!(event, Event::Tile { .. }), "a bug on purpose");
        run(&plan, &Options::default(), &listener).map_or_else(|failure| failure.exit, |outcome| outcome.exit)
    });
    #[expect(clippy::exit, reason = "the status of this process is what is looked at")]
    std::process::exit(exit.code().into());
}

#[test]
fn an_interrupted_run_is_130() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let before = crate::support::files(&workspace.path("out"));
    let plan = workspace.plan(&recipe).expect("a plan");
    // In the middle of the weights, and after the last of them.
    let moments: [fn(&Event) -> bool; 2] = [
        |event| matches!(event, Event::Tile { tensor, .. } if tensor.index() == 9),
        |event| matches!(event, Event::Written { .. }),
    ];
    for moment in moments {
        let cancel = Cancel::default();
        let switch = cancel.clone();
        let listener = move |event: &Event| {
            if moment(event) {
                switch.cancel();
            }
        };
        let options = Options { cancel, fresh: true, ..Options::default() };
        let failure = run(&plan, &options, &listener).expect_err("it was interrupted");
        assert_eq!(failure.exit, Exit::Interrupted);
        // What is finished stays for the next run.
        let left = [".out.monoquant-journal", ".out.monoquant-staging", "model", "out", "recipe.yaml"];
        assert_eq!(workspace.names(), left);
        assert_eq!(crate::support::files(&workspace.path("out")), before);
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_with_130_and_publishes_nothing() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("model")).expect("a folder");
    workspace.write("model/config.json", r#"{"model_type": "llama"}"#);
    // Zeros that take no disk: so many that the run cannot end before the signal.
    let tensors: Vec<FixtureTensor> = (0..24)
        .map(|layer| FixtureTensor {
            name: format!("model.layers.{layer}.mlp.down_proj.weight"),
            dtype: "BF16".to_owned(),
            shape: vec![16384, 16384],
            class: "Linear".to_owned(),
        })
        .collect();
    write_sparse(&workspace.path("model/model.safetensors"), &tensors);
    let recipe = workspace.recipe(INT4);
    let mut child = workspace
        .command([std::ffi::OsStr::new("run"), recipe.as_os_str()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    while !workspace.path(".out.monoquant-staging/model.safetensors").exists() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill").success());
    let output = child.wait_with_output().expect("a child");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("Nothing was published"), "{stderr}");
    let left = [".out.monoquant-journal", ".out.monoquant-staging", "model", "recipe.yaml"];
    assert_eq!(workspace.names(), left);
}
