//! Folders that are models, nearly models, or none.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::finding::Severity;
use crate::model::dtype::Dtype;
use crate::model::tensor::Fp8Layout;

/// A weight file of U8 zeros: names with dtype and shape, one after the other.
fn write_weights(path: &Path, tensors: &[(&str, &str, &[u64])]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<u64>() * Dtype::from_name(dtype).unwrap().bits() / 8;
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let text = Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(bytes.len() + usize::try_from(end).unwrap(), 0);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder with a configuration and two shards, `1.safetensors` with `a` and `2.safetensors` with `b` and
/// `c`.
fn two_shards() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("config.json"), "{}").unwrap();
    write_weights(&path.join("1.safetensors"), &[("a", "F32", &[2])]);
    write_weights(&path.join("2.safetensors"), &[("b", "F32", &[2]), ("c", "BF16", &[3])]);
    folder
}

fn write_index(folder: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<String, Value> = map.iter().map(|(t, f)| ((*t).to_owned(), json!(f))).collect();
    fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

const RIGHT: &[(&str, &str)] = &[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "2.safetensors")];

fn refusal(path: &Path) -> Failure {
    let failure = open(path, &[], &[]).expect_err("refused");
    assert_eq!(failure.exit, Exit::BadModel);
    failure
}

/// The only error of a refusal: its code, and message and help together.
fn only(path: &Path) -> (&'static str, String) {
    let failure = refusal(path);
    let errors: Vec<&Finding> = failure.findings.iter().filter(|f| f.is_error()).collect();
    assert_eq!(errors.len(), 1, "{failure}");
    (errors[0].code, format!("{} {}", errors[0].message, errors[0].help.join("\n")))
}

#[test]
fn a_folder_is_opened_in_the_order_of_its_files() {
    let folder = two_shards();
    let path = folder.path();
    write_index(path, RIGHT);
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    fs::write(path.join(".hidden"), "").unwrap();
    fs::create_dir_all(path.join("original")).unwrap();
    fs::write(path.join("original/params.json"), "{ }").unwrap();
    fs::write(path.join("pytorch_model.bin"), "").unwrap();
    let model = open(path, &[], &[]).unwrap();
    let names: Vec<&str> = model.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(
        model.shards.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["1.safetensors", "2.safetensors"]
    );
    assert_eq!((model.find("c"), model.find("d")), (Some(2), None));
    assert_eq!(model.tensors[2].offset + model.tensors[2].bytes, model.shards[1].len);
    assert_eq!(
        fates(&model),
        [
            (".hidden", "left"),
            ("original/params.json", "carried"),
            ("pytorch_model.bin", "left"),
            ("tokenizer.json", "carried")
        ]
    );
    assert!(model.warnings.is_empty());
    assert_eq!(model.shards[0].identity.len, model.shards[0].len);
}

#[test]
fn one_file_is_a_model_too() {
    let folder = two_shards();
    let model = open(&folder.path().join("2.safetensors"), &[], &[]).unwrap();
    assert!(model.is_single_file && model.index.is_none() && model.others.is_empty());
    assert_eq!(model.tensors.len(), 2);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let model = open(&folder.path().join("2.safetensors"), &[], &[]).unwrap();
    assert_eq!(model.warnings.len(), 1);
    assert_eq!((model.warnings[0].code, model.warnings[0].severity), (code::CONFIG, Severity::Warning));
    let (code, text) = only(&folder.path().join("tokenizer.json"));
    assert!(code == code::NOT_FOUND && text.contains("does not exist"), "{text}");
    fs::write(folder.path().join("x.gguf"), "").unwrap();
    assert!(only(&folder.path().join("x.gguf")).1.contains("GGUF"));
}

#[test]
fn what_is_no_model_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model-a");
    let (code, text) = only(&path.join("x"));
    assert!(code == code::NOT_FOUND && text.contains("does not exist either"), "{text}");
    fs::create_dir(&path).unwrap();
    assert!(only(&folder.path().join("model-b")).1.contains("Did you mean"), "a sibling is near");
    assert!(only(&path).1.contains("is empty"));
    fs::write(path.join("config.json"), "{}").unwrap();
    assert!(only(&path).1.contains("no `.safetensors` file"));
    fs::write(path.join("model.gguf"), "").unwrap();
    assert!(only(&path).1.contains("GGUF"));
    fs::write(path.join("pytorch_model.bin"), "").unwrap();
    assert!(only(&path).1.contains("save_pretrained"));
    write_weights(&path.join("below/model.safetensors"), &[("a", "F32", &[1])]);
    assert!(only(&path).1.contains("below`"));
    assert_eq!(open(&path, &["below/*"], &[]).unwrap().tensors.len(), 1);
    let adapter = tempfile::tempdir().unwrap();
    write_weights(&adapter.path().join("mine.safetensors"), &[("a.lora_A.weight", "F32", &[1])]);
    assert!(only(adapter.path()).1.contains("LoRA"));
}

#[test]
fn globs_choose_the_files() {
    let folder = two_shards();
    let path = folder.path();
    write_index(path, RIGHT);
    assert_eq!(open(path, &["2*"], &[]).unwrap().tensors.len(), 2);
    assert_eq!(open(path, &[], &["2*"]).unwrap().tensors.len(), 1);
    let model = open(path, &[], &["3*"]).unwrap();
    assert_eq!(model.warnings[0].code, code::FILTER);
    for include in [&["3*"][..], &["1*", "3*"], &["[1"]] {
        let failure = open(path, include, &[]).unwrap_err();
        assert!(
            failure.findings.iter().any(|f| f.code == code::FILTER && f.is_error()),
            "{include:?}: {failure}"
        );
    }
}

#[test]
fn the_index_must_agree_with_the_files() {
    let folder = two_shards();
    let path = folder.path();
    let (a, b, c) = (RIGHT[0], RIGHT[1], RIGHT[2]);
    let check = |map: &[(&str, &str)], words: &str| {
        write_index(path, map);
        let (code, text) = only(path);
        assert!(code == code::INDEX && text.contains(words), "{text}");
    };
    check(&[a, b, c, ("d", "2.safetensors")], "`d` is in");
    check(&[a, b, c, ("d", "3.safetensors")], "`3.safetensors` is named by");
    check(&[a, b], "`c` is in `2.safetensors` and not in");
    write_index(path, &[b, c]);
    let model = open(path, &[], &[]).unwrap();
    assert_eq!((model.tensors.len(), model.warnings[0].code), (2, code::LEFT_OUT));
    check(&[a, b, ("c", "1.safetensors")], "`c` is in `2.safetensors`, where");
    write_index(path, &[a, b, c, ("d", "../2.safetensors")]);
    assert_eq!(only(path).0, code::PATH);
}

#[test]
fn a_tensor_in_two_files_is_refused() {
    let folder = two_shards();
    write_weights(&folder.path().join("3.safetensors"), &[("a", "F32", &[2])]);
    let failure = open(folder.path(), &["*"], &[]).unwrap_err();
    let (code, text) = (failure.findings[0].code, failure.to_string());
    assert!(
        code == code::DUPLICATE && text.contains("`1.safetensors`") && text.contains("`3.safetensors`"),
        "{text}"
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let folder = two_shards();
    let path = folder.path();
    fs::write(path.join("config.json"), "{").unwrap();
    fs::write(path.join("1.safetensors"), "short").unwrap();
    let bytes = fs::read(path.join("2.safetensors")).unwrap();
    fs::write(path.join("2.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    let codes: Vec<&str> = open(path, &["*"], &[]).unwrap_err().findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, [code::CONFIG, code::LENGTH, code::LENGTH]);
}

#[cfg(unix)]
#[test]
fn links_to_files_are_followed() {
    let blobs = two_shards();
    let folder = tempfile::tempdir().unwrap();
    for name in ["1.safetensors", "config.json"] {
        std::os::unix::fs::symlink(blobs.path().join(name), folder.path().join(name)).unwrap();
    }
    assert_eq!(open(folder.path(), &[], &[]).unwrap().tensors.len(), 1);
    fs::remove_file(blobs.path().join("1.safetensors")).unwrap();
    assert!(only(folder.path()).1.contains("hf download"));
}

/// What becomes of a folder's other files, by path.
fn fates(model: &ModelFolder) -> Vec<(&str, &str)> {
    let told = |file: &'_ OtherFile| match &file.fate {
        Fate::Carried => "carried",
        Fate::Left(_) => "left",
        Fate::Broken { .. } => "broken",
    };
    model.others.iter().map(|file| (file.path.as_str(), told(file))).collect()
}

/// The names of the files that are read.
fn read_files(model: &ModelFolder) -> Vec<&str> {
    model.shards.iter().map(|shard| shard.name.as_str()).collect()
}

/// A folder with an empty configuration and a file a name, each of one tensor with the name of the file.
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
        // What a recipe asks for is read all the same.
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
    // A file of the usual name counts before an index of another.
    write_weights(&path.join("model.safetensors"), &[("a", "F32", &[2])]);
    assert_eq!(read_files(&open(path, &[], &[]).unwrap()), ["model.safetensors"]);
    fs::write(path.join("model.safetensors.index.json"), r#"{"weight_map": {}}"#).unwrap();
    assert!(only(path).1.contains("names no tensor"));
    // One that says where the files are that a stale one misses.
    write_index(path, &[("a", "model-1-of-1.safetensors")]);
    assert!(only(path).1.contains("include: ["), "{}", only(path).1);
    assert_eq!(read_files(&open(path, &["model.safetensors"], &[]).unwrap()), ["model.safetensors"]);
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
    // Weights of which nobody knows what they are.
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
    // What stays behind may be one.
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

/// A folder with one file of these tensors and this configuration.
fn one_shard(config: &Value, tensors: &[(&str, &str, &[u64])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_weights(&folder.path().join("model.safetensors"), tensors);
    folder
}

#[test]
fn quantized_models_are_refused_by_name() {
    let gptq = json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
    let packed =
        json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}});
    let none = json!({});
    type Tensor<'a> = (&'a str, &'a str, &'a [u64]);
    let cases: &[(&Value, Tensor<'_>, &str)] = &[
        (&gptq, ("m.qweight", "I32", &[4, 8]), "gptq"),
        (&gptq, ("m.weight", "BF16", &[4, 8]), "gptq"),
        (&packed, ("m.weight_packed", "I32", &[4, 8]), "compressed-tensors (pack-quantized)"),
        (&none, ("m.weight_packed", "I32", &[4, 8]), "compressed-tensors"),
        (&none, ("m.qweight", "I32", &[4, 8]), "GPTQ"),
        (&none, ("experts.gate_up_proj_blocks", "U8", &[4, 8, 2, 16]), "MXFP4"),
        (&none, ("m.weight", "I8", &[4, 8]), "int8"),
        (&none, ("m.weight", "U8", &[32, 1]), "packed"),
        (&none, ("m.weight.absmax", "F32", &[4]), "bitsandbytes"),
    ];
    for (config, tensor, words) in cases {
        let folder = one_shard(config, &[*tensor]);
        let (code, text) = only(folder.path());
        assert!(code == code::ALREADY_QUANTIZED && text.contains(words), "{tensor:?}: {text}");
    }
    let fp8 = json!({"quantization_config": {"quant_method": "fp8"}});
    let (code, text) = only(one_shard(&fp8, &[("m.weight", "BF16", &[4, 8])]).path());
    assert!(code == code::ALREADY_QUANTIZED && text.contains("no weight is"), "{text}");
}

#[test]
fn scaled_fp8_means_bf16() {
    let fp8 = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}});
    let folder = one_shard(
        &fp8,
        &[
            ("block.weight", "F8_E4M3", &[256, 130]),
            ("block.weight_scale_inv", "F32", &[2, 3]),
            ("row.weight", "F8_E5M2", &[256, 130]),
            ("row.weight_scale", "BF16", &[256, 1]),
            ("row.input_scale", "F32", &[]),
            ("tensor.weight", "F8_E4M3", &[256, 130]),
            ("tensor.weight_scale", "F32", &[]),
            ("plain.weight", "BF16", &[4, 4]),
        ],
    );
    let model = open(folder.path(), &[], &[]).unwrap();
    let layout = |name: &str| {
        let tensor = model.by_name(name).unwrap();
        let scales = tensor.fp8.unwrap();
        assert_eq!(model.tensors[scales.tensor].scale_of, model.find(name));
        assert!(tensor.dtype == Dtype::Bf16 && tensor.stored.is_fp8());
        scales.layout
    };
    assert_eq!(layout("block.weight"), Fp8Layout::Block { rows: 128, columns: 64 });
    assert_eq!(layout("row.weight"), Fp8Layout::Channel);
    assert_eq!(layout("tensor.weight"), Fp8Layout::Tensor);
    assert_eq!(model.by_name("row.input_scale").unwrap().scale_of, model.find("row.weight"));
    assert_eq!(model.by_name("plain.weight").unwrap().fp8, None);
}

#[test]
fn fp8_is_never_read_without_its_scale() {
    let weight = ("m.weight", "F8_E4M3", &[256u64, 256][..]);
    let cases: &[&[(&str, &str, &[u64])]] = &[
        &[weight],
        &[weight, ("m.weight_scale_inv", "F32", &[3, 2])],
        &[weight, ("m.weight_scale", "F32", &[256, 8])],
        &[weight, ("m.weight_scale", "I32", &[1])],
        &[weight, ("m.weight_scale", "F32", &[1]), ("m.weight_scale_inv", "F32", &[1])],
        &[("m.experts.gate_up_proj", "F8_E4M3", &[4, 8, 8]), ("m.experts.weight_scale", "F32", &[1])],
        &[("m.weight", "F8_E4M3FNUZ", &[4, 4]), ("m.weight_scale", "F32", &[1])],
    ];
    for case in cases {
        let (code, text) = only(one_shard(&json!({}), case).path());
        assert_eq!(code, code::FP8, "{case:?}: {text}");
    }
}
