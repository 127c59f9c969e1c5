//! `rounding: guided`.

use super::*;

/// Stages that calibrate with these gradients and quantize.
fn guided(gradients: &str, quantize: &str) -> String {
    let calibrate = format!("{CALIBRATE}    gradient_samples: 6\n{gradients}");
    format!("{SKIPS}{calibrate}  - stage: quantize-int4\n    rounding: guided\n{quantize}")
}

/// How many events tell of windows on the way back, and of layers that are rounded.
fn told(plan: &mut Plan, options: &Options) -> (usize, usize) {
    let (back, rounded) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let listener = |event: &Event| {
        if let Event::Layer { name, .. } = event {
            let counter = if *name == "gradients" { &back } else { &rounded };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    calibrate(plan, options, &Silent).expect("calibrated");
    round(plan, options, &listener).expect("rounded");
    (back.into_inner(), rounded.into_inner())
}

#[test]
fn gradients_guide_rounding_whatever_the_threads_and_where_streams_are() {
    let workspace = workspace();
    let evaluate =
        format!("  - stage: evaluate\n    text: ['{}']\n    samples: 16\n", root().join(HELD_OUT).display());
    let kl = |stages: &str, name: &str| {
        let stages = stages
            .replace("samples: 12", "samples: 48")
            .replace("gradient_samples: 6", "gradient_samples: 24");
        let ended = workspace.run(&workspace.recipe(&format!("{stages}{evaluate}"))).exits(0);
        let report = report(&workspace.path("out"));
        assert!(ended.stdout.contains(name), "{}", ended.stdout);
        (report.evaluations[0].kl.as_ref().expect("a divergence").mean, report)
    };
    let (gptq, _) = kl(&stages(&int4("")), "gptq");
    let (alone, _) = kl(&guided("", "    sequential: false\n"), "guided");
    let (ours, report) = kl(&guided("", ""), "guided");
    assert!(ours < 0.85 * gptq && alone < gptq, "{ours} {alone} {gptq}");
    let records: Vec<_> = report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref()).collect();
    assert_eq!(records.len(), 28);
    assert!(records.iter().all(|record| record.guided == 1 && record.error < record.error_of_nearest));
    assert_eq!(
        report
            .tensors
            .iter()
            .filter(|t| t.scheme.as_ref().is_some_and(|s| s.rounding.as_deref() == Some("guided")))
            .count(),
        28
    );
    workspace.monoquant(["verify", "out"]).exits(0);
    let said = workspace.monoquant(["explain", "recipe.yaml", "model.layers.1.mlp.up_proj.weight"]).exits(0);
    assert!(
        said.stdout.contains("guided") && said.stdout.contains("error of the model's answers"),
        "{}",
        said.stdout
    );

    let recipe = workspace.recipe(&guided("", ""));
    carry_out(&mut plan_of(&recipe, 2, None), &fresh()).expect("two threads");
    let first = weights(&workspace);
    assert_eq!(kept(&workspace).keys().collect::<Vec<_>>(), ["layer-0", "layer-1", "layer-2", "layer-3"]);
    carry_out(&mut plan_of(&recipe, 1, None), &fresh()).expect("one thread");
    assert!(first == weights(&workspace), "one thread");
    let plan = plan_of(&recipe, 3, None);
    let (runs, roundings) = (plan.runs.as_ref().expect("runs"), plan.roundings.as_ref().expect("rounded"));
    // Streams go to files, and moments are whole still.
    let least = roundings.least_memory(runs, 3);
    let limits = Limits { threads: Some(3), memory: Some(least + 1024) };
    let mut plan = plan_with(&recipe, &Overrides::default(), limits).expect("a plan");
    let gradients = plan.roundings.as_ref().and_then(|of| of.gradients).expect("gradients");
    assert!(gradients.are_whole() && !gradients.hold_streams(least, limits.memory));
    carry_out(&mut plan, &fresh()).expect("three threads, streams in files");
    assert!(first == weights(&workspace), "three threads and little memory");
    let limits = Limits { threads: Some(3), memory: Some(least - 1024) };
    let failure = plan_with(&recipe, &Overrides::default(), limits).expect_err("too little memory");
    assert_eq!((failure.exit, failure.findings[0].code), (Exit::BadRecipe, "plan::memory"));
    // Another draw of answers is another result.
    carry_out(&mut plan_of(&workspace.recipe(&guided("    seed: 1\n", "")), 2, None), &Options::default())
        .expect("a seed");
    assert!(first != weights(&workspace));
}

#[test]
fn a_killed_run_takes_its_gradients_once() {
    let workspace = workspace();
    let recipe = workspace.recipe(&guided("", ""));
    let until = |of: &str, at: usize| {
        let mut plan = plan_of(&recipe, 2, None);
        let options = Options { cancel: Cancel::default(), ..Options::default() };
        calibrate(&mut plan, &options, &Silent).expect("calibrated");
        let listener = |event: &Event| {
            if let Event::Layer { name, layer, done, .. } = event
                && *name == of
                && *layer == at
                && *done > 0
            {
                options.cancel.cancel();
            }
        };
        let failure = round(&mut plan, &options, &listener).expect_err("cancelled");
        assert_eq!(failure.exit, Exit::Interrupted);
        kept(&workspace).into_keys().collect::<Vec<_>>()
    };
    // On the way forwards nothing is kept yet; while layers are rounded, all gradients.
    assert!(until("gradients", 2).is_empty());
    let gradients = ["gradients-0", "gradients-1", "gradients-2", "gradients-3"];
    assert_eq!(until("round", 3), [&gradients[..], &["layer-0", "layer-1"]].concat());
    // A gradient that is damaged is not believed.
    let path = workspace.path(".out.monoquant-rounding/gradients-1");
    let whole = fs::read(&path).expect("a file");
    let (back, rounded) = told(&mut plan_of(&recipe, 2, None), &Options::default());
    assert!(back == 0 && rounded > 0);
    assert_eq!(kept(&workspace).keys().collect::<Vec<_>>(), ["layer-0", "layer-1", "layer-2", "layer-3"]);
    let resumed = kept(&workspace);
    assert_eq!(told(&mut plan_of(&recipe, 2, None), &Options::default()), (0, 0));
    let (back, rounded) = told(&mut plan_of(&recipe, 2, None), &fresh());
    assert!(back > 0 && rounded > 0 && resumed == kept(&workspace));
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    fs::write(&path, &damaged).expect("damaged");
    fs::remove_file(workspace.path(".out.monoquant-rounding/layer-1")).expect("removed");
    let (back, _) = told(&mut plan_of(&recipe, 2, None), &Options::default());
    assert!(back > 0 && resumed == kept(&workspace));
}

#[test]
fn gptq_and_guided_go_through_the_layers_together() {
    let workspace = workspace();
    let halves = |group: usize, seed: usize| {
        format!(
            "{SKIPS}{CALIBRATE}    gradient_samples: 6\n    seed: {seed}\n{}  - stage: quantize-int4\n    \
             rounding: guided\n    targets: ['model.layers.2', 'model.layers.3']\n    group_size: {group}\n",
            int4("    targets: ['model.layers.0', 'model.layers.1']\n")
        )
    };
    let run = |stages: &str| {
        let recipe = workspace.recipe(stages);
        let (back, _) = told(&mut plan_of(&recipe, 2, None), &Options::default());
        (back > 0, kept(&workspace))
    };
    let (_, first) = run(&halves(128, 0));
    let of = |layers: &BTreeMap<String, Vec<u8>>, name: &str| layers[name].clone();
    // An edit of the guided half takes gradients again, and so does another seed; the first half is none of their business.
    for (stages, what) in [(halves(64, 0), "groups"), (halves(64, 7), "seed")] {
        let (is_back, edited) = run(&stages);
        assert!(is_back, "{what}");
        assert_eq!(of(&first, "layer-1"), of(&edited, "layer-1"), "{what}");
        assert_ne!(of(&first, "layer-2"), of(&edited, "layer-2"), "{what}");
    }
    let plan = plan_of(&workspace.recipe(&halves(64, 7)), 2, None);
    let roundings = plan.roundings.as_ref().expect("roundings");
    assert_eq!((roundings.methods(), roundings.gradients.expect("some").matrices), ("gptq and guided", 14));
}

#[test]
fn small_memory_keeps_moments_in_blocks_and_says_so() {
    let wide = 3072;
    let workspace = family_with("llama", |config, shapes| {
        config["intermediate_size"] = json!(wide);
        for (name, shape) in shapes {
            let side = usize::from(name.contains("down_proj"));
            if name.contains(".mlp.") {
                shape[side] = wide;
            }
        }
    });
    let recipe = workspace.recipe(
        "  - stage: calibrate\n    samples: 30\n    sequence_length: 32\n  - stage: quantize-int4\n    rounding: guided\n    \
         group_size: 16\n",
    );
    let plan = plan_of(&recipe, 1, None);
    let roundings = plan.roundings.as_ref().expect("rounded");
    let gradients = roundings.gradients.expect("gradients");
    assert!(gradients.are_whole() && gradients.block(wide) == wide);
    assert!(!monoquant::show::plan::text(&plan).contains("in blocks of"));
    // A bound in which whole moments would fit, but not beside all else.
    let memory = roundings.least_memory(plan.runs.as_ref().expect("runs"), 1);
    let mut plan = plan_of(&recipe, 1, Some(memory));
    let blocks = plan.roundings.as_ref().and_then(|of| of.gradients).expect("gradients");
    assert!(!blocks.are_whole() && blocks.most < wide && blocks.kept_bytes < gradients.kept_bytes);
    // Not even threads change the blocks.
    let more = plan_with(&recipe, &Overrides::default(), Limits { threads: Some(2), memory: Some(memory) });
    let more = more.ok().and_then(|plan| plan.roundings?.gradients);
    assert!(more.is_none_or(|more| more.most == blocks.most));
    let said = monoquant::show::plan::text(&plan);
    assert!(said.contains("in blocks of at most"), "{said}");
    let outcome = carry_out(&mut plan, &Options::default()).expect("a run");
    let records: Vec<_> =
        outcome.report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref()).collect();
    assert!(
        records.iter().all(|record| record.guided == record.matrices && record.matrices > 0),
        "{records:?}"
    );
    assert!(records.iter().all(|record| record.error < record.error_of_nearest), "{records:?}");
}

#[test]
fn experts_are_guided_by_what_comes_through_them() {
    let quantize =
        "  - stage: quantize-int4\n    rounding: guided\n    group_size: 16\n    siblings: ignore\n";
    for name in ["mixtral", "gpt-oss", "phi3", "gpt2"] {
        let (workspace, report, told) = run_family(name, 64, quantize);
        let records: Vec<_> = report.tensors.iter().filter_map(|tensor| tensor.rounding.as_ref()).collect();
        let (chosen, guided): (usize, usize) =
            records.iter().fold((0, 0), |sum, record| (sum.0 + record.matrices, sum.1 + record.guided));
        assert!(chosen > 0 && guided * 4 >= chosen * 3, "{name}: {guided} of {chosen}: {told:?}");
        assert!(records.iter().all(|record| record.error <= record.error_of_nearest), "{name}");
        workspace.monoquant(["verify", "out"]).exits(0);
    }
}

#[test]
fn models_without_gradients_and_words_without_effect_are_told() {
    let quantize =
        "  - stage: quantize-int4\n    rounding: guided\n    granularity: channel\n    siblings: ignore\n";
    for (name, why) in [("qwen3-next", "gated delta rule"), ("bert", "predicts no next token")] {
        let workspace = family(name);
        let stages = format!("{CALIBRATE}    on_missing: warn\n{quantize}")
            .replace("sequence_length: 128", "sequence_length: 32");
        let Failure { findings, exit } = workspace.plan(&workspace.recipe(&stages)).expect_err(name);
        let error = findings.iter().find(|finding| finding.is_error()).expect("an error");
        assert_eq!(
            (exit, error.code),
            (Exit::BadRecipe, "network::no-gradients"),
            "{name}: {}",
            error.message
        );
        assert!(error.message.contains(why), "{name}: {}", error.message);
        assert!(error.help_text().is_some_and(|help| help.contains("`rounding: gptq`")), "{name}");
        let stages = stages.replace("guided", "gptq");
        workspace.plan(&workspace.recipe(&stages)).expect("without gradients");
    }
    let workspace = workspace();
    let with_file = "    calibration:\n      file: a.safetensors\n";
    let failure = workspace.plan(&workspace.recipe(&guided("", with_file))).expect_err("a file");
    let is_told = |finding: &monoquant::finding::Finding| {
        finding.message == "`rounding: guided` needs a `calibrate` stage"
    };
    assert!(failure.findings.iter().any(is_told), "{:?}", failure.findings);
    let idle = format!("{CALIBRATE}    gradient_samples: 4\n    seed: 3\n{}", int4(""));
    let told = workspace.plan_findings(&workspace.recipe(&idle));
    assert!(
        told.contains("`gradient_samples` has no effect") && told.contains("`seed` has no effect"),
        "{told}"
    );
    let many = guided("", "").replace("gradient_samples: 6", "gradient_samples: 99");
    let told = workspace.plan_findings(&workspace.recipe(&many));
    assert!(told.contains("the text has 12 samples, and gradients are asked for on 99"), "{told}");
}

#[test]
fn after_kills_at_any_moment_the_result_is_that_of_an_undisturbed_run() {
    let workspace = workspace();
    workspace.recipe(&guided("", ""));
    let arguments = ["run", "recipe.yaml", "-q", "--threads", "1"];
    workspace.monoquant(arguments).exits(0);
    let (whole, codes) = (weights(&workspace), kept(&workspace));
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    let mut killed = 0;
    for file in ["gradients-3", "gradients-2", "gradients-0", "layer-0", "layer-2"] {
        let path = workspace.path(".out.monoquant-rounding").join(file);
        let mut child = workspace.command(arguments).spawn().expect("the binary runs");
        while !path.exists() && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        killed += usize::from(!child.wait().expect("a child").success());
        assert!(!workspace.path("out").exists() || whole == weights(&workspace), "{file}");
    }
    assert!(killed >= 3, "{killed} were killed");
    workspace.monoquant(arguments).exits(0);
    assert!(whole == weights(&workspace));
    assert!(codes == kept(&workspace), "{:?}", kept(&workspace).keys());
}
