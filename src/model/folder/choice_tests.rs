//! File selection: the files of a folder that are the model, the fate of the others, and the findings for a folder
//! near a model.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::tests::{RIGHT, fates, only, open, refusal, two_shards, write_index, write_weights};
use super::*;

/// The names of the files that are read.
fn read_files(model: &ModelFolder) -> Vec<&str> {
    model.shards.iter().map(|shard| shard.name.as_str()).collect()
}

/// A folder with an empty configuration and one file per name. Each file holds one tensor with the name of the file.
fn weights(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    for name in names {
        write_weights(&folder.path().join(name), &[(name, "F32", &[2])]);
    }
    folder
}

#[test]
fn without_an_index_names_say_which_files_are_the_model() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["anything.safetensors"], &["anything.safetensors"]),
        (&["model.safetensors", "consolidated.safetensors"], &["model.safetensors"]),
        (&["model.safetensors", "other.safetensors"], &["model.safetensors"]),
        (&["model.safetensors", "model-00001-of-00002.safetensors"], &["model.safetensors"]),
        (
            &["model-1-of-2.safetensors", "model-2-of-2.safetensors", "ema.safetensors"],
            &["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
        (
            &["x-00000-of-00002.safetensors", "x-00001-of-00002.safetensors"],
            &["x-00000-of-00002.safetensors", "x-00001-of-00002.safetensors"],
        ),
        (&["unet.safetensors", "unet.fp16.safetensors", "unet_ema.safetensors"], &["unet.safetensors"]),
        (
            &["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
            &["diffusion_pytorch_model.safetensors"],
        ),
        (&["model.fp16.safetensors"], &["model.fp16.safetensors"]),
        (&["consolidated.safetensors"], &["consolidated.safetensors"]),
        (&["model.safetensors", "optimizer.safetensors"], &["model.safetensors"]),
        (
            &["model-00001-of-00001.safetensors", "model-00001-of-00003.safetensors"],
            &["model-00001-of-00001.safetensors"],
        ),
    ];
    for (files, read) in cases {
        let folder = weights(files);
        let model = open(folder.path(), &[], &[]).unwrap_or_else(|failure| panic!("{files:?}: {failure}"));
        assert_eq!(read_files(&model), *read, "{files:?}");
    }
    for (files, code, words) in [
        (&["a.safetensors", "b.safetensors"][..], code::UNCLEAR, "`a.safetensors`, `b.safetensors`"),
        (&["model.safetensors", "diffusion_pytorch_model.safetensors"], code::UNCLEAR, "`model.safetensors`"),
        (&["a-1-of-1.safetensors", "b.safetensors"], code::UNCLEAR, "a-"),
        (
            &["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
            code::INDEX,
            "`model-00002-of-00003.safetensors` is missing",
        ),
        (&["optimizer.safetensors"], code::NOT_A_MODEL, "optimizer"),
    ] {
        let folder = weights(files);
        let (found, text) = only(folder.path());
        assert!(found == code && text.contains(words), "{files:?}: {text}");
        // Files that a recipe asks for are read all the same.
        if code == code::UNCLEAR {
            assert_eq!(open(folder.path(), &["*"], &[]).unwrap().shards.len(), files.len());
            assert_eq!(open(folder.path(), &[], &[files[1]]).unwrap().shards.len(), 1);
        }
    }
}

#[test]
fn of_several_indices_the_usual_one_counts() {
    let folder = two_shards();
    let path = folder.path();
    let index = |name: &str, file: &str| {
        let text = json!({"weight_map": {"x": file}}).to_string();
        fs::write(path.join(format!("{name}.safetensors.index.json")), text).unwrap();
    };
    write_index(path, RIGHT);
    for other in ["model.fp16", "consolidated", "mine"] {
        index(other, &format!("{other}.safetensors"));
    }
    let model = open(path, &[], &[]).unwrap();
    assert_eq!(model.tensors.len(), 3);
    assert!(fates(&model).iter().all(|(_, fate)| *fate == "left"), "{:?}", model.others);
    // Two that could be meant are asked about.
    fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    index("yours", "2.safetensors");
    let (code, text) = only(path);
    assert!(code == code::UNCLEAR && text.contains("`mine.safetensors.index.json`"), "{text}");
    assert_eq!(open(path, &["[12].safetensors"], &[]).unwrap().tensors.len(), 3);
    // A file with a usual name takes precedence over an index with an unusual one.
    write_weights(&path.join("model.safetensors"), &[("a", "F32", &[2])]);
    assert_eq!(read_files(&open(path, &[], &[]).unwrap()), ["model.safetensors"]);
    fs::write(path.join("model.safetensors.index.json"), r#"{"weight_map": {}}"#).unwrap();
    assert!(only(path).1.contains("names no tensor"));
    // If the index is stale, the finding says where the missing files are.
    write_index(path, &[("a", "model-1-of-1.safetensors")]);
    assert!(only(path).1.contains("include: ["), "{}", only(path).1);
    assert_eq!(read_files(&open(path, &["model.safetensors"], &[]).unwrap()), ["model.safetensors"]);
}

#[test]
fn one_model_twice_is_told_where_a_recipe_asks_for_it() {
    let folder = weights(&[]);
    let path = folder.path();
    write_weights(&path.join("model.safetensors"), &[("model.layers.0.q.weight", "BF16", &[30, 10])]);
    write_weights(&path.join("native.safetensors"), &[("layers.0.wq.weight", "BF16", &[30, 10])]);
    assert!(open(path, &[], &[]).unwrap().warnings.is_empty());
    let model = open(path, &["*.safetensors"], &[]).unwrap();
    assert_eq!((model.tensors.len(), model.warnings[0].code), (2, code::UNCLEAR));
    // Two halves of one stack are none.
    write_weights(&path.join("native.safetensors"), &[("model.layers.1.q.weight", "BF16", &[30, 10])]);
    assert!(open(path, &["*.safetensors"], &[]).unwrap().warnings.is_empty());
}

#[test]
fn a_tied_head_need_not_be_there() {
    let folder = two_shards();
    let path = folder.path();
    let mut map = RIGHT.to_vec();
    map.extend([("lm_head.weight", "2.safetensors"), ("model.proj_out.weight", "3.safetensors")]);
    write_index(path, &map);
    assert!(refusal(path).findings.iter().all(|finding| finding.code == code::INDEX));
    for config in
        [json!({"tie_word_embeddings": true}), json!({"text_config": {"tie_word_embeddings": true}})]
    {
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        assert_eq!(open(path, &[], &[]).unwrap().tensors.len(), 3);
    }
    write_index(path, &[map, vec![("model.mlp.weight", "2.safetensors")]].concat());
    assert!(only(path).1.contains("`model.mlp.weight`"));
}

#[test]
fn what_a_model_may_need_is_carried_and_copies_stay_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let put = |name: &str, text: &str| {
        fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
        fs::write(path.join(name), text).unwrap();
    };
    put("config.json", "{}");
    let model: &[(&str, &str, &[u64])] = &[("a.weight", "BF16", &[300, 10]), ("b.weight", "BF16", &[7])];
    write_weights(&path.join("model.safetensors"), model);
    write_weights(&path.join("backup/part.safetensors"), &model[..1]);
    write_weights(&path.join("native/all.safetensors"), &[("w", "F32", &[3007])]);
    write_weights(&path.join("vocoder/model.safetensors"), &[("w", "F32", &[50])]);
    write_weights(
        &path.join("style/adapter_model.safetensors"),
        &[("base_model.model.a.lora_A.weight", "F32", &[4])],
    );
    write_weights(
        &path.join("lightning.safetensors"),
        &[("a.lora_down.weight", "F32", &[4]), ("a.alpha", "F32", &[])],
    );
    for name in [
        "speakers.pt",
        "campplus.onnx",
        "model_speakers.pt",
        "voices/a.bin",
        "2_Dense/pytorch_model.bin",
        "filters.npz",
        "modeling.py",
        "vocoder/pytorch_model.bin.index.json",
        "training_args.bin",
        "trainer_state.json",
        "params.json",
    ] {
        put(name, "{}");
    }
    for name in [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "model.onnx",
        "model_q4f16.onnx",
        "model.onnx_data",
        "tf_model.h5",
        "flax_model.msgpack",
        "mmproj.gguf",
        "optimizer.pt",
        "rng_state_0.pth",
        "adapter_config.json",
        "hf_quant_config.json",
        "other.safetensors.index.json",
        ".gitattributes",
    ] {
        put(name, "{}");
    }
    fs::write(path.join("weights.pth"), vec![0; 6014]).unwrap();
    put("recipe.yaml", "quant_stage:\n  quant_modifiers:\n    GPTQModifier: {}\n");
    put("any.json", r#"{"quantization": {"quant_algo": "NVFP4"}}"#);
    for name in [
        "onnx/model.onnx",
        "onnx/tokenizer.json",
        "original/consolidated.00.pth",
        "original/params.json",
        "checkpoint-500/config.json",
        "__pycache__/a.pyc",
        ".git/HEAD",
    ] {
        put(name, "{}");
    }
    let model = open(path, &[], &[]).unwrap();
    let with = |fate: &str| -> Vec<&str> {
        fates(&model).into_iter().filter(|(_, found)| *found == fate).map(|(path, _)| path).collect()
    };
    assert_eq!(
        with("carried"),
        [
            "2_Dense/pytorch_model.bin",
            "campplus.onnx",
            "filters.npz",
            "model_speakers.pt",
            "modeling.py",
            "params.json",
            "speakers.pt",
            "style/adapter_model.safetensors",
            "trainer_state.json",
            "training_args.bin",
            "vocoder/model.safetensors",
            "vocoder/pytorch_model.bin.index.json",
            "voices/a.bin",
        ]
    );
    assert_eq!(
        with("left"),
        [
            ".git/",
            ".gitattributes",
            "__pycache__/",
            "adapter_config.json",
            "any.json",
            "backup/",
            "checkpoint-500/",
            "flax_model.msgpack",
            "hf_quant_config.json",
            "lightning.safetensors",
            "mmproj.gguf",
            "model.onnx",
            "model.onnx_data",
            "model_q4f16.onnx",
            "native/",
            "onnx/",
            "optimizer.pt",
            "original/",
            "other.safetensors.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "recipe.yaml",
            "rng_state_0.pth",
            "tf_model.h5",
            "weights.pth",
        ]
    );
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    // Weights whose purpose is unknown.
    write_weights(&path.join("mtp.safetensors"), &[("mtp.weight", "BF16", &[20])]);
    assert_eq!(open(path, &[], &[]).unwrap().warnings[0].code, code::LEFT_OUT);
}

#[cfg(unix)]
#[test]
fn what_cannot_be_carried_over_is_known_before_a_run() {
    use std::os::unix::ffi::OsStrExt;
    let folder = weights(&["model.safetensors"]);
    let path = folder.path();
    fs::write(path.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("tokenizer.json")).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
    fs::write(path.join("vocab.json"), pointer).unwrap();
    // A file that stays behind may be a pointer.
    fs::write(path.join("pytorch_model.bin"), pointer).unwrap();
    let model = open(path, &[], &[]).unwrap();
    let broken = [
        ("caf\\xE9.txt", "broken"),
        ("pytorch_model.bin", "left"),
        ("tokenizer.json", "broken"),
        ("vocab.json", "broken"),
    ];
    assert_eq!(fates(&model), broken);
    fs::write(path.join("config.json"), pointer).unwrap();
    assert_eq!(only(path).0, code::POINTER);
}

#[test]
fn a_folder_near_a_model_says_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, path) = (folder.path(), folder.path().join("models--org--a--b"));
    let snapshot = path.join("snapshots/abc");
    write_weights(&snapshot.join("model.safetensors"), &[("a", "F32", &[1])]);
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    fs::create_dir_all(path.join("refs")).unwrap();
    fs::create_dir_all(path.join("blobs")).unwrap();
    fs::create_dir_all(path.join("snapshots/def")).unwrap();
    for at in [&path, &path.join("snapshots"), &path.join("blobs"), &hub.to_path_buf()] {
        let (code, text) = only(at);
        assert!(
            code == code::NOT_A_MODEL && text.contains("`hf://org/a--b`") && text.contains("snapshots/def"),
            "{text}"
        );
    }
    fs::write(path.join("refs/main"), "abc\n").unwrap();
    assert!(!only(&path).1.contains("snapshots/def"));
    assert!(open(&snapshot, &[], &[]).is_ok());
    // A folder off.
    let (code, text) = only(&path.join("snapshots/.."));
    assert!(code == code::NOT_A_MODEL && text.contains("hf://"), "{text}");
    let above = tempfile::tempdir().unwrap();
    write_weights(&above.path().join("x/y/model.safetensors"), &[("a", "F32", &[1])]);
    assert!(only(above.path()).1.contains("x/y`"));
    write_weights(&above.path().join("z/model.safetensors"), &[("a", "F32", &[1])]);
    assert!(only(above.path()).1.contains("one of the folders"));
}

#[test]
fn wrappers_are_taken_out_of_the_names() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let path = folder.path().join("model.safetensors");
    write_weights(&path, &[("module._orig_mod.a.weight", "F32", &[2]), ("module.b.weight", "F32", &[2])]);
    let model = open(folder.path(), &[], &[]).unwrap();
    assert!(model.by_name("a.weight").is_some() && model.by_name("b.weight").is_some());
    assert_eq!(model.warnings[0].code, code::WRAPPED);
    write_weights(&path, &[("_orig_mod.a.weight", "F32", &[2]), ("a.weight", "F32", &[2])]);
    assert_eq!(only(folder.path()).0, code::DUPLICATE);
}
