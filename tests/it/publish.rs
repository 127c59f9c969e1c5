//! What is left on disk: whole outputs, or nothing new; never a staging folder, a lock, or somebody else's folder replaced.

use std::fs;

use monoquant::exit::Exit;
use monoquant::run::{Event, Options, Silent, run};

use crate::support::{Model, Workspace, files, json, report, tensors};

const INT4: &str = "  - stage: quantize-int4\n";

#[test]
fn a_run_that_panics_leaves_nothing() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let before = files(&workspace.path("out"));
    let plan = workspace.plan(&recipe).expect("a plan");
    let options = Options { fresh: true, ..Options::default() };
    let listener = |event: &Event| assert!(!matches!(event, Event::Written { .. }), "a listener with a bug");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&plan, &options, &listener)));
    assert!(caught.is_err());
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    assert_eq!(files(&workspace.path("out")), before);
}

#[test]
fn a_durable_output_is_the_same_also_where_files_are_taken_over() {
    let workspace = Workspace::with(&Model::llama());
    for stage in ["", "    targets: [layers.1]\n"] {
        let recipe = workspace.recipe(&format!("{INT4}{stage}"));
        workspace.run(&recipe).exits(0);
        let args = ["run", "recipe.yaml", "--durable", "--output", "durable"];
        workspace.monoquant(args).exits(0);
        assert_eq!(tensors(&workspace.path("durable")), tensors(&workspace.path("out")));
    }
}

#[test]
fn an_output_that_is_up_to_date_can_still_be_made_durable() {
    let workspace = Workspace::with(&Model::llama());
    workspace.run(&workspace.recipe(INT4)).exits(0);
    let before = files(&workspace.path("out"));
    let said = workspace.monoquant(["run", "recipe.yaml", "--durable"]).exits(0);
    assert!(said.stdout.contains("up to date"), "{}", said.stdout);
    assert_eq!(files(&workspace.path("out")), before);
}

#[test]
fn a_durable_run_ends_where_a_worker_panics() {
    let workspace = Workspace::with(&Model::llama());
    let plan = workspace.plan(&workspace.recipe(INT4)).expect("a plan");
    let options = Options { durable: true, ..Options::default() };
    let listener = |event: &Event| assert!(!matches!(event, Event::Tile { .. }), "a listener with a bug");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&plan, &options, &listener)));
    assert!(caught.is_err());
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn a_weight_that_stops_the_run_leaves_an_older_output() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let before = files(&workspace.path("out"));
    Model::llama()
        .with_value("model.layers.1.mlp.down_proj.weight", 77, f32::NAN)
        .write(&workspace.path("model"));
    workspace.run(&recipe).exits(3);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    assert_eq!(files(&workspace.path("out")), before);
}

#[test]
fn what_a_killed_run_left_is_cleared_by_the_next() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write(".out.monoquant-staging/model.safetensors", "half of it");
    workspace.write(".out.monoquant-staging/stale.txt", "from the killed run");
    workspace.write(".out.monoquant-lock", "");
    workspace.run(&workspace.recipe(INT4)).exits(0);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    assert!(!workspace.path("out/stale.txt").exists());
}

#[test]
fn an_older_output_is_replaced_as_a_whole_or_not_at_all() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.run(&recipe).exits(0);
    let int4 = files(&workspace.path("out"));
    // Somebody's file in it would be lost.
    let extra = workspace.write("out/extra.txt", "notes on the older output");
    let int8 = workspace.recipe("  - stage: quantize-int8\n");
    assert!(workspace.run(&int8).exits(4).stderr.contains("extra.txt"));
    fs::remove_file(extra).expect("the file is still there");
    assert_eq!(files(&workspace.path("out")), int4);
    workspace.run(&int8).exits(0);
    assert_ne!(files(&workspace.path("out")), int4);
    let refusing = workspace.whole_recipe(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: export\n    path: out\n    overwrite: refuse\n",
    );
    let int8 = files(&workspace.path("out"));
    workspace.run(&refusing).exits(4);
    assert_eq!(files(&workspace.path("out")), int8);
    // An empty folder is nobody's.
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    fs::create_dir(workspace.path("out")).expect("a folder");
    workspace.run(&refusing).exits(0);
    assert_eq!(tensors(&workspace.path("out")).len(), 49);
}

#[test]
fn a_foreign_folder_is_never_replaced() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    // A report that is none does not make a folder ours, nor does the folder of another tool's model.
    for (name, text) in [("monoquant-report.json", "{}"), ("config.json", "{\"model_type\": \"llama\"}")] {
        workspace.write(&format!("out/{name}"), text);
        workspace.run(&recipe).exits(4);
        assert_eq!(fs::read(workspace.path("out").join(name)).expect("the file"), text.as_bytes());
        fs::remove_dir_all(workspace.path("out")).expect("a folder");
    }
    // One that appears while the run goes on is not replaced either.
    let plan = workspace.plan(&recipe).expect("a plan");
    let listener = |event: &Event| {
        if matches!(event, Event::Written { .. }) {
            workspace.write("out/notes.txt", "mine");
        }
    };
    let failure = run(&plan, &Options::default(), &listener).expect_err("somebody was faster");
    assert_eq!(failure.exit, Exit::CannotWrite);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    assert_eq!(files(&workspace.path("out")).keys().collect::<Vec<_>>(), ["notes.txt"]);
}

#[test]
fn the_model_is_never_in_the_way_of_its_output() {
    let workspace = Workspace::with(&Model::llama());
    let before = files(&workspace.path("model"));
    workspace.recipe(INT4);
    for path in ["model", "./model/", "elsewhere/../model", "model/out", "."] {
        let said = workspace.monoquant(["run", "recipe.yaml", "--output", path]).exits(2);
        assert!(said.stderr.contains("plan::output-path"), "{path}: {}", said.stderr);
    }
    assert_eq!(files(&workspace.path("model")), before);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn two_exports_read_the_weights_once() {
    let workspace = Workspace::with(&Model::llama());
    let stages = "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: validate\n  - stage: export\n    path: packed\n  - stage: export\n    path: plain\n    format: dequantized\n    shards: 100KB\n";
    let recipe = workspace.whole_recipe(stages);
    let plan = workspace.plan(&recipe).expect("a plan");
    let read = std::sync::atomic::AtomicU64::new(0);
    let listener = |event: &Event| {
        if let Event::Tile { bytes, .. } = event {
            read.fetch_add(*bytes, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let outcome = run(&plan, &Options::default(), &listener).expect("a run");
    assert_eq!(outcome.exit, Exit::Done);
    assert_eq!(read.into_inner(), plan.model.tensor_bytes());
    assert_eq!(workspace.names(), ["model", "packed", "plain", "recipe.yaml"]);

    let (source, plain, packed) = (
        tensors(&workspace.path("model")),
        tensors(&workspace.path("plain")),
        tensors(&workspace.path("packed")),
    );
    assert_eq!(plain.keys().collect::<Vec<_>>(), source.keys().collect::<Vec<_>>());
    for (name, tensor) in &plain {
        assert_eq!((&tensor.dtype, &tensor.shape), (&source[name].dtype, &source[name].shape), "{name}");
        let is_quantized = packed.contains_key(&name.replace(".weight", ".weight_packed"));
        assert_eq!(tensor.bytes != source[name].bytes, is_quantized, "{name}");
    }
    assert_eq!(
        dequantized(&packed, "model.layers.0.mlp.down_proj"),
        plain["model.layers.0.mlp.down_proj.weight"].bytes
    );
    assert_eq!(
        dequantized(&packed, "model.layers.1.self_attn.v_proj"),
        plain["model.layers.1.self_attn.v_proj.weight"].bytes
    );
    assert_eq!(json(&workspace.path("plain/config.json")), json(&workspace.path("model/config.json")));
    assert_eq!(report(&workspace.path("plain")), report(&workspace.path("packed")));
    workspace.monoquant(["verify", "packed"]).exits(0);
    let found = workspace.monoquant(["verify", "packed", "--format", "json"]).exits(0).json();
    assert_eq!(found["verified"], true);
    assert_eq!(found["verdict"]["passed"], true);
    // A folder is known by what is in it, wherever it was moved.
    fs::rename(workspace.path("plain"), workspace.path("elsewhere")).expect("a move");
    workspace.monoquant(["verify", "elsewhere"]).exits(0);
    fs::rename(workspace.path("packed"), workspace.path("plain")).expect("a move");
    workspace.monoquant(["verify", "plain"]).exits(0);
}

/// The weights of a module packed in groups of 128, as an engine sees them: (code - 8) · scale, in BF16.
fn dequantized(packed: &std::collections::BTreeMap<String, crate::support::Stored>, module: &str) -> Vec<u8> {
    use half::bf16;
    let (codes, scales) =
        (&packed[&format!("{module}.weight_packed")], &packed[&format!("{module}.weight_scale")]);
    let columns = codes.shape[1] * 8;
    let weight = |index: usize| {
        let word = u32::from_le_bytes(codes.bytes[index / 8 * 4..][..4].try_into().expect("four bytes"));
        let code = (word >> (index % 8 * 4) & 15) as f32 - 8.0;
        let group = index / columns * scales.shape[1] + index % columns / 128;
        let scale = bf16::from_le_bytes(scales.bytes[group * 2..][..2].try_into().expect("two bytes"));
        bf16::from_f32(code * scale.to_f32()).to_le_bytes()
    };
    (0..codes.shape[0] * columns).flat_map(weight).collect()
}

#[test]
fn shards_are_kept_or_cut_to_size() {
    let model = Model::sized(256, 768);
    let workspace = Workspace::with(&model);
    let with = |line: &str| {
        let stages = format!(
            "  - stage: load\n    model: model\n{INT4}  - stage: validate\n  - stage: export\n    path: out\n{line}"
        );
        workspace.run(&workspace.whole_recipe(&stages)).exits(0);
        let names: Vec<String> = files(&workspace.path("out"))
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .map(|(name, bytes)| format!("{name} {}", if bytes.len() > 300_000 { "large" } else { "small" }))
            .collect();
        (names, tensors(&workspace.path("out")))
    };
    let (names, kept) = with("");
    assert_eq!(names, ["model-00001-of-00002.safetensors large", "model-00002-of-00002.safetensors large"]);
    let (names, cut) = with("    shards: 200KB\n");
    assert!(names.len() > 3, "{names:?}");
    let ending = format!("-of-{:05}.safetensors small", names.len());
    assert!(names.iter().all(|name| name.ends_with(&ending)), "{names:?}");
    let index = json(&workspace.path("out/model.safetensors.index.json"));
    for (name, tensor) in &cut {
        assert_eq!(tensor.bytes, kept[name].bytes, "{name}");
        assert_eq!(index["weight_map"][name].as_str(), Some(tensor.file.as_str()), "{name}");
    }
    let (names, whole) = with("    shards: 1MiB\n");
    assert_eq!(names, ["model.safetensors large"]);
    assert_eq!(whole.len(), kept.len());
}

#[test]
fn other_files_are_carried_over_and_old_weights_are_not() {
    let workspace = Workspace::with(&Model::llama());
    workspace.write("model/chat_template.jinja", "{{ messages }}");
    workspace.write("model/assets/picture.png", [0x89, b'P']);
    workspace.write("model/pytorch_model.bin", "old weights");
    workspace.write("model/pytorch_model.bin.index.json", "{}");
    workspace.write("model/.cache/secret", "no");
    workspace.run(&workspace.recipe(INT4)).exits(0);
    let out = files(&workspace.path("out"));
    assert_eq!(
        out.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "README.md",
            "assets/picture.png",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "monoquant-recipe.yaml",
            "monoquant-report.json",
            "tokenizer.json",
        ]
    );
    for name in ["assets/picture.png", "chat_template.jinja", "generation_config.json", "tokenizer.json"] {
        assert_eq!(out[name], fs::read(workspace.path("model").join(name)).expect("the source"), "{name}");
    }
    let copied = &report(&workspace.path("out")).outputs[0].copied;
    assert_eq!(
        *copied,
        ["assets/picture.png", "chat_template.jinja", "generation_config.json", "tokenizer.json"]
    );

    let bare = "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: export\n    path: out\n    copy: false\n";
    workspace.run(&workspace.whole_recipe(bare)).exits(0);
    let names: Vec<String> = files(&workspace.path("out")).into_keys().collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("model") || name.starts_with("monoquant-") || name == "config.json")
    );
}

#[test]
fn one_file_without_an_index_stays_one() {
    let workspace = Workspace::with(&Model::tied().in_shards(1));
    workspace.run(&workspace.recipe(INT4)).exits(0);
    assert!(!workspace.path("out/model.safetensors.index.json").exists());
    assert_eq!(json(&workspace.path("out/config.json"))["tie_word_embeddings"], true);
    // The file itself can be named as well; what lies beside it is then none of its business.
    let stages = "  - stage: load\n    model: model/model.safetensors\n  - stage: quantize-int4\n  - stage: export\n    path: single\n";
    workspace.run(&workspace.whole_recipe(stages)).exits(0);
    assert_eq!(
        tensors(&workspace.path("single")).into_values().map(|tensor| tensor.bytes).collect::<Vec<_>>(),
        tensors(&workspace.path("out")).into_values().map(|tensor| tensor.bytes).collect::<Vec<_>>()
    );
}

#[test]
fn folders_above_an_output_are_made() {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe(INT4);
    workspace.monoquant(["run", "recipe.yaml", "--output", "a/b/c"]).exits(0);
    assert_eq!(tensors(&workspace.path("a/b/c")).len(), 49);
    let plan = workspace.plan(&recipe).expect("a plan");
    let outcome = run(&plan, &Options::default(), &Silent).expect("a run");
    assert_eq!(outcome.published, [workspace.path("out")]);
}
