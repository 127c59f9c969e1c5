//! `validate` and `check-warnings`: what they complain of, what `on_failure` makes of it, and that a failing gate publishes
//! nothing.

use std::fs;

use monoquant::exit::Exit;
use monoquant::report::{GateOutcome, Report};

use crate::support::{Model, Workspace, files, report};

/// Thresholds that int4 in groups of 128 can reach and these layers do not.
const BELOW_WARNING: &str = "    sqnr_warning_threshold: 19.09\n    sqnr_error_threshold: 5\n";
const BELOW_ERROR: &str = "    sqnr_warning_threshold: 19.09\n    sqnr_error_threshold: 19.09\n";
const MET: &str = "    sqnr_warning_threshold: 5\n    sqnr_error_threshold: 1\n";

/// Layers of heavy tails, and one weight that is far larger than all others.
fn uneven() -> Model {
    Model::heavy().with_value("model.layers.1.mlp.down_proj.weight", 1000, 2.0)
}

fn run(workspace: &Workspace, gates: &str) -> (Exit, Report, String) {
    let recipe = workspace.recipe(&format!("  - stage: quantize-int4\n{gates}"));
    let outcome = workspace.run_in_process(&recipe).unwrap_or_else(|failure| panic!("{failure}"));
    let drawn = workspace.drawn(&outcome.findings);
    (outcome.exit, outcome.report, drawn)
}

fn codes(report: &Report) -> Vec<(&str, &str)> {
    // Some of these recipes say of a threshold only where it is, and not what comes of it.
    let warnings = report.warnings.iter().filter(|warning| warning.code != "recipe::never-fails");
    warnings
        .map(|warning| (warning.code.as_str(), monoquant::show::plain::severity(warning.severity)))
        .collect()
}

#[test]
fn on_failure_and_fail_on_decide_what_a_complaint_does() {
    use GateOutcome::{Failed, FailedAndIgnored, Passed, Warned};
    let workspace = Workspace::with(&uneven());
    for (thresholds, fail_on, on_failure, outcome, is_shown) in [
        (MET, "critical", "error", Passed, false),
        (MET, "warning", "error", Passed, false),
        (BELOW_WARNING, "critical", "error", Warned, true),
        (BELOW_WARNING, "critical", "ignore", Warned, false),
        (BELOW_WARNING, "warning", "error", Failed, true),
        (BELOW_WARNING, "warning", "warn", FailedAndIgnored, true),
        (BELOW_WARNING, "warning", "ignore", FailedAndIgnored, false),
        (BELOW_ERROR, "critical", "error", Failed, true),
        (BELOW_ERROR, "critical", "warn", FailedAndIgnored, true),
        (BELOW_ERROR, "critical", "ignore", FailedAndIgnored, false),
    ] {
        let gate = format!(
            "  - stage: check-warnings\n{thresholds}    fail_on: {fail_on}\n    on_failure: {on_failure}\n"
        );
        let (exit, report, drawn) = run(&workspace, &gate);
        let case = format!("{thresholds}{fail_on} {on_failure}");
        assert_eq!(report.gates[0].outcome, outcome, "{case}");
        assert_eq!(exit, if outcome == Failed { Exit::GateFailed } else { Exit::Done }, "{case}");
        assert_eq!(report.verdict.exit_status, exit.code(), "{case}");
        assert_eq!(!drawn.is_empty(), is_shown, "{case}: {drawn}");
        assert_eq!(report.outputs[0].published, outcome != Failed, "{case}");
        let last = report.gates.last().expect("the export");
        assert_eq!(last.outcome, if outcome == Failed { GateOutcome::NotReached } else { Passed }, "{case}");
        // Whatever `on_failure` says, the report has it.
        assert_eq!(!codes(&report).is_empty(), outcome != Passed, "{case}");
        assert_eq!(workspace.path("out.failed-report.json").exists(), outcome == Failed, "{case}");
    }
}

#[test]
fn the_recipes_on_failure_is_the_default_of_its_gates() {
    let workspace = Workspace::with(&uneven());
    let stages = format!(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: validate\n    max_abs_weight: 1\n  - stage: check-warnings\n{BELOW_ERROR}"
    );
    let export = "  - stage: export\n    path: out\n";
    let with = |on_failure: &str| {
        let text = format!("version: 1\nname: test\n{on_failure}stages:\n{stages}{export}");
        let outcome = workspace.run_in_process(&workspace.write("recipe.yaml", text)).expect("an outcome");
        let gates: Vec<GateOutcome> = outcome.report.gates.iter().map(|gate| gate.outcome).collect();
        (outcome.exit, gates)
    };
    use GateOutcome::{Failed, FailedAndIgnored, NotReached, Passed};
    // Without a word of the recipe `validate` fails and `check-warnings` warns.
    assert_eq!(with(""), (Exit::GateFailed, vec![Failed, NotReached, NotReached]));
    assert_eq!(with("on_failure: error\n"), (Exit::GateFailed, vec![Failed, NotReached, NotReached]));
    assert_eq!(with("on_failure: warn\n"), (Exit::Done, vec![FailedAndIgnored, FailedAndIgnored, Passed]));
}

#[test]
fn a_failing_gate_leaves_an_older_output_as_it_was() {
    let workspace = Workspace::with(&uneven());
    workspace.run(&workspace.recipe("  - stage: quantize-int8\n")).exits(0);
    let before = files(&workspace.path("out"));
    let gate =
        format!("  - stage: quantize-int4\n  - stage: check-warnings\n{BELOW_ERROR}    on_failure: error\n");
    let recipe = workspace.recipe(&gate);
    let said = workspace.run(&recipe).exits(1);
    insta::assert_snapshot!("failed-gate", said.stdout);
    let drawn: String = said
        .stderr
        .lines()
        .filter(|line| !line.contains(" of ") || !line.contains('%'))
        .collect::<Vec<_>>()
        .join("\n");
    insta::assert_snapshot!("failed-gate-findings", drawn);
    assert_eq!(files(&workspace.path("out")), before);
    assert_eq!(workspace.names(), ["model", "out", "out.failed-report.json", "recipe.yaml"]);
    let kept =
        monoquant::report::read(&workspace.path("out.failed-report.json")).expect("the report is kept");
    assert!(!kept.verdict.passed && !kept.outputs[0].published);
    assert_eq!(kept.tensors.len(), 21);
    // The next run that passes takes the report of the failed one away.
    workspace.run(&workspace.recipe("  - stage: quantize-int4\n")).exits(0);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn an_export_before_a_gate_is_published_and_one_after_is_not() {
    let workspace = Workspace::with(&uneven());
    let stages = format!(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: export\n    path: early\n  - stage: check-warnings\n{BELOW_ERROR}    on_failure: error\n  - stage: export\n    path: late\n"
    );
    let said = workspace.run(&workspace.whole_recipe(&stages)).exits(1);
    assert!(said.stderr.contains("recipe::"), "the order is doubtful: {}", said.stderr);
    assert_eq!(workspace.names(), ["early", "late.failed-report.json", "model", "recipe.yaml"]);
    let outputs = report(&workspace.path("early")).outputs;
    assert_eq!(outputs.iter().map(|output| output.published).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn scope_says_what_the_thresholds_are_held_against() {
    // One small layer is bad, so the model as a whole is not.
    let mut model = Model::llama();
    let heavy =
        crate::support::gaussian("heavy", 64 * 128).iter().map(|value| value.powi(3)).collect::<Vec<_>>();
    model.add_values("model.layers.0.self_attn.k_proj.weight", &[64, 128], &heavy);
    let workspace = Workspace::with(&model);
    let with = |scope: &str| {
        let gate = format!(
            "  - stage: check-warnings\n    scope: {scope}\n    sqnr_error_threshold: 18\n    sqnr_warning_threshold: 18\n"
        );
        let (_, report, _) = run(&workspace, &gate);
        codes(&report).into_iter().map(|(code, _)| code.to_owned()).collect::<Vec<_>>()
    };
    let quality = {
        let (_, report, _) = run(&workspace, "  - stage: validate\n");
        report.quality.expect("it was measured")
    };
    let (model, least) = (quality.sqnr_db.expect("a number"), quality.min_sqnr_db.expect("a number"));
    assert!(model > 18.0 && least < 18.0, "{model} {least}");
    assert_eq!(with("model"), [""; 0]);
    assert_eq!(with("layer"), ["check::low-sqnr"]);
    assert_eq!(with("both"), ["check::low-sqnr"]);
    let workspace = Workspace::with(&Model::heavy());
    let (_, report, _) =
        run(&workspace, &format!("  - stage: check-warnings\n    scope: both\n{BELOW_ERROR}"));
    assert_eq!(codes(&report), [("check::model-sqnr", "error"), ("check::low-sqnr", "error")]);
}

#[test]
fn gaps_are_held_against_what_the_scheme_reaches() {
    let workspace = Workspace::with(&uneven());
    let gate = |lines: &str| {
        format!(
            "  - stage: check-warnings\n    sqnr_error_threshold: 0\n    sqnr_warning_threshold: 0\n{lines}    on_failure: error\n"
        )
    };
    let (exit, report, drawn) = run(&workspace, &gate("    gap_warning: 1\n"));
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![("check::gap", "warning")]), "{drawn}");
    let (exit, report, drawn) = run(&workspace, &gate("    gap_error: 1\n"));
    assert_eq!((exit, codes(&report)), (Exit::GateFailed, vec![("check::gap", "error")]), "{drawn}");
    assert_eq!(drawn.matches(" dB below  model.").count(), 5, "the five worst: {drawn}");
    let worst = report.tensors.iter().filter_map(|tensor| {
        let metrics = tensor.metrics.as_ref()?;
        Some(metrics.expected_sqnr_db? - metrics.sqnr_db?)
    });
    let worst = worst.fold(f64::MIN, f64::max);
    let (exit, report, _) = run(&workspace, &gate(&format!("    gap_error: {}\n", worst + 0.1)));
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
}

#[test]
fn max_abs_weight_bounds_the_weights() {
    let workspace = Workspace::with(&uneven());
    let (exit, report, drawn) = run(&workspace, "  - stage: validate\n    max_abs_weight: 1.5\n");
    assert_eq!((exit, codes(&report)), (Exit::GateFailed, vec![("check::weight-range", "error")]));
    insta::assert_snapshot!("weight-range", drawn);
    let (exit, report, _) = run(&workspace, "  - stage: validate\n    max_abs_weight: 2.5\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
    let (exit, ..) = run(&workspace, "  - stage: validate\n    checks: [finite, size]\n");
    assert_eq!(exit, Exit::Done);
}

#[test]
fn a_nan_in_a_tensor_that_is_kept_fails_the_finite_check() {
    let model = Model::llama().with_value("model.norm.weight", 5, f32::NAN);
    let workspace = Workspace::with(&model.with_value("lm_head.weight", 128 * 2 + 1, f32::INFINITY));
    let (exit, report, drawn) = run(&workspace, "  - stage: validate\n");
    assert_eq!((exit, codes(&report)), (Exit::GateFailed, vec![("check::not-finite", "error"); 2]));
    insta::assert_snapshot!("not-finite", drawn);
    let (exit, report, _) = run(&workspace, "  - stage: validate\n    checks: [size]\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
    let (exit, report, drawn) = run(&workspace, "  - stage: validate\n    on_failure: ignore\n");
    assert_eq!((exit, codes(&report).len(), drawn.as_str()), (Exit::Done, 2, ""));
}

#[test]
fn an_int4_run_that_skips_nothing_is_warned_of() {
    let mut model = Model::llama();
    model.config.remove("tie_word_embeddings");
    let bare =
        model.without("lm_head.weight").without("model.embed_tokens.weight").without("model.norm.weight");
    let bare = (0..2).fold(bare, |model, layer| {
        model
            .without(&format!("model.layers.{layer}.input_layernorm.weight"))
            .without(&format!("model.layers.{layer}.post_attention_layernorm.weight"))
    });
    let workspace = Workspace::with(&bare);
    let gate = "  - stage: check-warnings\n    sqnr_error_threshold: 1\n    sqnr_warning_threshold: 1\n";
    let (_, report, drawn) = run(&workspace, gate);
    assert_eq!(codes(&report), [("check::nothing-skipped", "warning")], "{drawn}");
    let (_, report, _) = run(&workspace, &format!("{gate}    all_layers_quantized_warning: false\n"));
    assert_eq!(codes(&report), []);
    let workspace = Workspace::with(&Model::llama());
    let (_, report, _) = run(&workspace, gate);
    assert_eq!(codes(&report), []);
}

#[test]
fn an_unreachable_threshold_is_said_before_the_run() {
    let workspace = Workspace::with(&Model::llama());
    let gate = "  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_warning_threshold: 25\n    sqnr_error_threshold: 12\n    \
                on_failure: error\n";
    let recipe = workspace.recipe(gate);
    insta::assert_snapshot!("unreachable-threshold", workspace.plan_findings(&recipe));
    // A default of 20 dB, which this scheme does not reach, is not asked of it.
    for stage in ["quantize-int4", "quantize-int8"] {
        let recipe = workspace.recipe(&format!("  - stage: {stage}\n  - stage: check-warnings\n"));
        assert_eq!(workspace.plan_findings(&recipe), "");
    }
}

#[test]
fn a_bare_gate_complains_of_no_healthy_model_and_of_every_damaged_one() {
    let schemes = [
        "quantize-int4",
        "quantize-int4\n    group_size: 32",
        "quantize-int4\n    group_size: 32\n    symmetric: false\n    observer: mse",
        "quantize-int4\n    symmetric: false",
        "quantize-int4\n    observer: percentile\n    percentile: 99.9",
        "quantize-int8",
        "quantize-int8\n    granularity: channel\n    activations: dynamic-token",
        "quantize-int8\n    granularity: tensor",
    ];
    let gauss = Workspace::with(&Model::llama());
    let (laplace, damaged) = (Workspace::with(&Model::laplace()), Workspace::with(&Model::stretched()));
    for scheme in schemes {
        for scope in ["both", "layer", "model"] {
            let stages = format!(
                "  - stage: {scheme}\n  - stage: check-warnings\n    scope: {scope}\n    fail_on: warning\n    on_failure: error\n"
            );
            let run = |workspace: &Workspace| {
                let recipe = workspace.recipe(&stages);
                // What engines do with one scale per tensor is another matter.
                let told = workspace.plan_findings(&recipe);
                let of_engines =
                    scheme.contains("granularity: tensor") && told.starts_with("plan::vllm-tensor-scale");
                assert!(told.is_empty() || of_engines && !told.contains("sqnr"), "{stages}: {told}");
                workspace.run_in_process(&recipe).unwrap_or_else(|failure| panic!("{failure}"))
            };
            for workspace in [&gauss, &laplace] {
                let outcome = run(workspace);
                assert_eq!(outcome.exit, Exit::Done, "{stages}: {}", workspace.drawn(&outcome.findings));
            }
            if scheme.starts_with("quantize-int4") && scope != "model" {
                let outcome = run(&damaged);
                assert_eq!(outcome.exit, Exit::GateFailed, "{stages}");
                assert!(
                    codes(&outcome.report).iter().all(|(code, _)| code.starts_with("check::")),
                    "{stages}"
                );
            }
        }
    }
}

#[test]
fn warnings_of_one_kind_are_one_message_with_the_five_worst() {
    let workspace = Workspace::with(&uneven());
    let (_, report, drawn) =
        run(&workspace, &format!("  - stage: check-warnings\n    scope: layer\n{BELOW_ERROR}"));
    assert_eq!(codes(&report), [("check::low-sqnr", "error")]);
    let mut sqnr: Vec<f64> = report
        .tensors
        .iter()
        .filter_map(|tensor| tensor.metrics.as_ref()?.sqnr_db)
        .filter(|sqnr| *sqnr < 19.09)
        .collect();
    sqnr.sort_by(f64::total_cmp);
    assert!(sqnr.len() > 5, "{sqnr:?}");
    assert!(drawn.contains(&format!("{} of 14 quantized layers", sqnr.len())), "{drawn}");
    assert_eq!(drawn.matches("(line 6)").count(), 5, "each with its rule's line: {drawn}");
    assert_eq!(drawn.matches(" dB  model.").count(), 5, "{drawn}");
    assert!(drawn.contains("19.1 dB"), "what the scheme can reach: {drawn}");
}

#[test]
fn a_tensor_of_zeros_has_no_sqnr_and_says_so() {
    let mut model = Model::llama();
    model.add_values("model.layers.0.mlp.up_proj.weight", &[256, 128], &vec![0.0; 256 * 128]);
    let workspace = Workspace::with(&model);
    let (exit, report, drawn) =
        run(&workspace, "  - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 15\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]), "{drawn}");
    let zeros = report.tensors.iter().find(|tensor| tensor.name.ends_with("layers.0.mlp.up_proj.weight"));
    let metrics = zeros.and_then(|tensor| tensor.metrics.as_ref()).expect("it was measured");
    assert_eq!((metrics.sqnr_db, metrics.sqnr_note.as_deref()), (None, Some("all weights are zero")));
}

#[test]
fn success_is_never_printed_where_nothing_was_quantized() {
    let workspace = Workspace::with(&Model::llama());
    for stages in [
        "  - stage: resolve-skips\n    skip_layer_types: [Linear]\n  - stage: quantize-int4\n",
        "  - stage: resolve-skips\n    skip_param_threshold: 1000000\n  - stage: quantize-int8\n",
    ] {
        let said = workspace.run(&workspace.recipe(stages)).exits(2);
        assert!(!said.stdout.contains('✓') && said.stderr.contains("quantizes nothing"), "{}", said.stderr);
        assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
    }
    let none = workspace.recipe("");
    let said = workspace.run(&none).exits(2);
    assert!(!said.stdout.contains('✓'), "{}", said.stdout);
    assert!(fs::metadata(workspace.path("out")).is_err());
}

#[test]
fn a_failure_is_said_even_where_only_what_is_wrong_is_wanted() {
    let workspace = Workspace::with(&uneven());
    let quiet = |on_failure: &str| {
        let gate = format!("  - stage: check-warnings\n{BELOW_ERROR}    on_failure: {on_failure}\n");
        workspace.recipe(&format!("  - stage: quantize-int4\n{gate}"));
        workspace.monoquant(["run", "recipe.yaml", "-q"])
    };
    let warned = quiet("warn").exits(0);
    assert!(warned.stderr.contains("check::low-sqnr") || warned.stderr.contains("SQNR"), "{}", warned.stderr);
    assert_eq!(warned.stdout, "");
    assert_eq!(quiet("ignore").exits(0).stderr, "");
    assert_ne!(quiet("error").exits(1).stderr, "");
}

/// A Llama in F16 in which some matrices are so small that F16 holds no scales for them.
fn faint(modules: &[&str]) -> Model {
    let small = |model: Model, module: &&str| model.scaled(&format!("{module}.weight"), 2e-6);
    modules.iter().fold(Model::llama(), small).in_f16()
}

#[test]
fn scales_that_vanish_in_f16_are_named() {
    let (down, up) = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj");
    let workspace = Workspace::with(&faint(&[down, up]));
    let (exit, report, drawn) = run(&workspace, "  - stage: validate\n");
    assert_eq!((exit, codes(&report)), (Exit::GateFailed, vec![("check::vanished-scales", "error")]));
    assert!(!report.outputs[0].published);
    let words: Vec<&str> = drawn.split_whitespace().filter(|word| *word != "│").collect();
    let flat = words.join(" ");
    for word in [down, up, "too small for F16", "100 %"] {
        assert!(flat.contains(word), "{word}: {drawn}");
    }
    insta::assert_snapshot!("vanished-scales", drawn);
    let (exit, report, _) = run(&workspace, "  - stage: validate\n    on_failure: warn\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![("check::vanished-scales", "error")]));
    let (exit, report, _) = run(&workspace, "  - stage: validate\n    checks: [size]\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
    // Every scheme that engines read, and a run that takes over what the last one measured.
    for stage in [
        "  - stage: quantize-int4\n    symmetric: false\n",
        "  - stage: quantize-int4\n    granularity: channel\n    observer: mse\n",
        "  - stage: quantize-int8\n    activations: dynamic-token\n",
        "  - stage: quantize-int8\n    activations: dynamic-token\n",
    ] {
        let recipe = workspace.recipe(&format!("{stage}  - stage: validate\n    on_failure: warn\n"));
        let outcome = workspace.run_in_process(&recipe).unwrap_or_else(|failure| panic!("{failure}"));
        let found = codes(&outcome.report);
        assert!(found.contains(&("check::vanished-scales", "error")), "{stage}: {found:?}");
    }
    // The same numbers in BF16 have scales.
    let model = Model::llama().scaled(&format!("{down}.weight"), 2e-6);
    let (exit, report, _) = run(&Workspace::with(&model), "  - stage: validate\n");
    assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
}

#[test]
fn rows_of_zeros_and_a_few_faint_ones_are_legal() {
    let name = "model.layers.0.mlp.down_proj.weight";
    let row = |model: Model, (row, value): (usize, f32)| {
        (256 * row..256 * (row + 1)).fold(model, |model, element| model.with_value(name, element, value))
    };
    let model = [(0, 0.0), (1, 1e-7)].into_iter().fold(Model::llama(), row);
    for model in [model, Model::llama().scaled(name, 0.0)] {
        let (exit, report, _) = run(&Workspace::with(&model.in_f16()), "  - stage: validate\n");
        assert_eq!((exit, codes(&report)), (Exit::Done, vec![]));
    }
}

#[test]
fn a_tensor_that_holds_most_of_the_signal_is_named() {
    let name = "model.layers.1.self_attn.q_proj";
    let workspace = Workspace::with(&Model::llama().scaled(&format!("{name}.weight"), 100.0));
    for gates in [
        "  - stage: validate\n    max_abs_weight: 1000\n",
        "  - stage: check-warnings\n    fail_on: warning\n    sqnr_warning_threshold: 5\n    sqnr_error_threshold: 1\n",
    ] {
        let (exit, report, drawn) = run(&workspace, gates);
        assert_eq!(
            (exit, codes(&report)),
            (Exit::Done, vec![("check::dominant-tensor", "warning")]),
            "{drawn}"
        );
        assert!(drawn.contains(&format!("`{name}.weight` holds over 9")), "{drawn}");
        assert!(drawn.contains("13 tensors"), "{drawn}");
    }
    let (_, report, _) = run(&Workspace::with(&Model::llama()), "  - stage: validate\n");
    assert_eq!(codes(&report), vec![]);
    // One alone has no others, of two like ones neither dominates.
    for target in ["model.layers.0.self_attn.o_proj", "o_proj"] {
        let workspace = Workspace::with(&Model::llama());
        let stages = format!("  - stage: quantize-int4\n    targets: [{target}]\n  - stage: validate\n");
        let outcome = workspace.run_in_process(&workspace.recipe(&stages));
        let report = outcome.unwrap_or_else(|failure| panic!("{failure}")).report;
        assert_eq!(codes(&report), vec![], "{target}");
    }
}
