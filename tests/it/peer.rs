//! What llm-compressor's `model_free_ptq` makes of a small Llama, made again: section 7 of `tests/golden/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Workspace, json, root, tensors};

/// The peer's preset, and the stage that does the same.
const PRESETS: [(&str, &str); 4] = [
    ("W4A16", "  - stage: quantize-int4\n    group_size: 128\n"),
    ("W4A16_ASYM", "  - stage: quantize-int4\n    group_size: 128\n    symmetric: false\n"),
    ("W8A16", "  - stage: quantize-int8\n    granularity: group\n    group_size: 128\n"),
    ("W8A8", "  - stage: quantize-int8\n    activations: dynamic-token\n"),
];

fn folder() -> PathBuf {
    root().join("tests/golden/model_free_ptq")
}

/// The untied input as it is stored; the tied one is made of it: no head, in the index neither, and the config says so.
fn write_input(workspace: &Workspace, is_tied: bool) {
    let (from, to) = (folder().join("tiny-llama"), workspace.path("model"));
    fs::create_dir_all(&to).expect("a folder");
    for entry in fs::read_dir(&from).expect("the input") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file");
    }
    if !is_tied {
        return;
    }
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value = json(&to.join(name));
        change(&mut value);
        fs::write(to.join(name), value.to_string()).expect("a file");
    };
    edit("config.json", &|config| config["tie_word_embeddings"] = json!(true));
    edit("model.safetensors.index.json", &|index| {
        index["weight_map"]
            .as_object_mut()
            .expect("a map")
            .remove("lm_head.weight")
            .expect("the head was there");
    });
    let shard = to.join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).expect("a shard");
    let read = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let kept: Vec<(String, TensorView<'_>)> =
        read.tensors().into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
    safetensors::serialize_to_file(kept, None, &shard).expect("a shard");
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name → (file, dtype, shape, SHA-256) of a record.
type Described = BTreeMap<String, (String, String, Vec<u64>, String)>;

fn recorded(record: &Value) -> Described {
    let one = |tensor: &Value| {
        let text = |key: &str| tensor[key].as_str().expect("text").to_owned();
        let shape =
            tensor["shape"].as_array().expect("a shape").iter().map(|n| n.as_u64().expect("a number"));
        (text("file"), text("dtype"), shape.collect(), text("sha256"))
    };
    record["tensors"].as_object().expect("tensors").iter().map(|(name, t)| (name.clone(), one(t))).collect()
}

fn described(folder: &Path) -> Described {
    tensors(folder)
        .into_iter()
        .map(|(name, t)| {
            let shape = t.shape.iter().map(|&n| n as u64).collect();
            (name, (t.file, t.dtype, shape, sha256(&t.bytes)))
        })
        .collect()
}

#[test]
fn the_inputs_are_those_of_the_records() {
    for (word, is_tied) in [("untied", false), ("tied", true)] {
        let workspace = Workspace::new();
        write_input(&workspace, is_tied);
        let record = json(&folder().join(format!("input-{word}.json")));
        assert_eq!(described(&workspace.path("model")), recorded(&record), "{word}");
        assert_eq!(json(&workspace.path("model/config.json")), record["config.json"], "{word}");
    }
}

#[test]
fn the_peers_directories_are_made_again() {
    let quotients = json(&folder().join("f32-quotient.json"));
    for (word, is_tied) in [("untied", false), ("tied", true)] {
        for (preset, stage) in PRESETS {
            let case = format!("{word}-{preset}");
            let workspace = Workspace::new();
            write_input(&workspace, is_tied);
            let recipe = workspace
                .recipe(&format!("  - stage: resolve-skips\n    modules_to_not_convert: [lm_head]\n{stage}"));
            workspace.run(&recipe).exits(0);
            let record = json(&folder().join(format!("record-{case}.json")));
            let mut expected = recorded(&record);
            for (name, hash) in quotients[&case].as_object().expect("hashes") {
                // Codes come of the quotient in f32, where the peer's CPU rounds it to BF16 first.
                expected.get_mut(name).expect("codes of the record").3 =
                    hash.as_str().expect("a hash").to_owned();
            }
            let found = described(&workspace.path("out"));
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{case}");
            for (name, tensor) in &found {
                assert_eq!(tensor, &expected[name], "{case}: {name}");
            }
            let config = json(&workspace.path("out/config.json"));
            let modules = modules(&workspace.path("model"));
            assert_eq!(
                meaning(&config["quantization_config"], &modules),
                meaning(&record["config.json"]["quantization_config"], &modules),
                "{case}"
            );
        }
    }
}

fn modules(model: &Path) -> Vec<String> {
    let mut modules: Vec<String> =
        tensors(model).keys().filter_map(|name| name.strip_suffix(".weight").map(str::to_owned)).collect();
    // A tied head is a module all the same.
    modules.push("lm_head".to_owned());
    modules.sort();
    modules.dedup();
    modules
}

/// What a `quantization_config` says to a loader: the format, the schemes, and which linear modules are none of its business.
fn meaning(config: &Value, modules: &[String]) -> Value {
    let schemes: Vec<Value> = config["config_groups"]
        .as_object()
        .expect("groups")
        .values()
        .map(|group| {
            let fields = |part: &Value| {
                [
                    "num_bits",
                    "type",
                    "symmetric",
                    "strategy",
                    "group_size",
                    "dynamic",
                    "actorder",
                    "block_structure",
                ]
                .map(|key| part[key].clone())
            };
            json!({
                "targets": group["targets"],
                "format": group["format"],
                "weights": fields(&group["weights"]),
                "input_activations": fields(&group["input_activations"]),
                "output_activations": group["output_activations"],
            })
        })
        .collect();
    let is_ignored = |module: &str| {
        config["ignore"].as_array().expect("a list").iter().any(|entry| {
            let entry = entry.as_str().expect("text");
            match entry.strip_prefix("re:") {
                // Anchored at the start, as Python's `re.match`.
                Some(pattern) => {
                    regex::Regex::new(&format!("^(?:{pattern})")).expect("a pattern").is_match(module)
                }
                None => entry == module,
            }
        })
    };
    // Norms and embeddings are no linear modules, so whether they are named makes no difference.
    let ignored: BTreeSet<&String> = modules
        .iter()
        .filter(|module| !module.contains("norm") && !module.contains("embed"))
        .filter(|module| is_ignored(module))
        .collect();
    json!({
        "quant_method": config["quant_method"],
        "format": config["format"],
        "quantization_status": config["quantization_status"],
        "kv_cache_scheme": config["kv_cache_scheme"],
        "schemes": schemes,
        "ignored": ignored,
    })
}
