//! Folders that are models, nearly models, or none.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::exit::Exit;
use crate::finding::Severity;
use crate::format::{Dtype, source};
use crate::ids::{ShardId, TensorId};

/// The model at a path.
pub(super) fn open(path: &Path, include: &[&str], exclude: &[&str]) -> Result<ModelFolder, Failure> {
    super::open(source::folder::open(path, &[])?, include, exclude)
}

/// Writes a weight file of U8 zeros. `tensors` gives names with dtype and shape, in the order of the data.
pub(super) fn write_weights(path: &Path, tensors: &[(&str, &str, &[u64])]) {
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
pub(super) fn two_shards() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("config.json"), "{}").unwrap();
    write_weights(&path.join("1.safetensors"), &[("a", "F32", &[2])]);
    write_weights(&path.join("2.safetensors"), &[("b", "F32", &[2]), ("c", "BF16", &[3])]);
    folder
}

pub(super) fn write_index(folder: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<String, Value> = map.iter().map(|(t, f)| ((*t).to_owned(), json!(f))).collect();
    fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

pub(super) const RIGHT: &[(&str, &str)] =
    &[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "2.safetensors")];

pub(super) fn refusal(path: &Path) -> Failure {
    let failure = open(path, &[], &[]).expect_err("refused");
    assert_eq!(failure.exit, Exit::BadModel);
    failure
}

/// The only error of a refusal: its code, and message and help together.
pub(super) fn only(path: &Path) -> (&'static str, String) {
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
    assert_eq!((model.find("c"), model.find("d")), (Some(TensorId::new(2)), None));
    assert_eq!(
        model.tensors[TensorId::new(2)].offset + model.tensors[TensorId::new(2)].bytes,
        model.shards[ShardId::new(1)].len
    );
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
    assert_eq!(model.shards[ShardId::new(0)].len, fs::metadata(path.join("1.safetensors")).unwrap().len());
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
fn links_are_followed_in_the_folder_and_where_it_is_allowed() {
    use std::os::unix::fs::symlink;
    let blobs = two_shards();
    let folder = tempfile::tempdir().unwrap();
    for name in ["1.safetensors", "config.json"] {
        symlink(blobs.path().join(name), folder.path().join(name)).unwrap();
    }
    let failure = refusal(folder.path());
    assert!(failure.findings.iter().any(|finding| finding.code == code::LINK), "{failure}");
    let allowed = [blobs.path().to_owned()];
    let open_following = || super::open(source::folder::open(folder.path(), &allowed)?, &[], &[]);
    assert_eq!(open_following().unwrap().tensors.len(), 1);
    fs::remove_file(blobs.path().join("1.safetensors")).unwrap();
    let failure = open_following().unwrap_err();
    assert!(failure.to_string().contains("1.safetensors"), "{failure}");

    // A folder that is a link itself, and links inside of it.
    let inside = two_shards();
    fs::rename(inside.path().join("2.safetensors"), inside.path().join("stored")).unwrap();
    symlink("stored", inside.path().join("2.safetensors")).unwrap();
    let link = folder.path().join("model");
    symlink(inside.path(), &link).unwrap();
    assert_eq!(open(&link, &["2.safetensors"], &[]).unwrap().tensors.len(), 2);
}

/// The fates of a folder's other files, by path.
pub(super) fn fates(model: &ModelFolder) -> Vec<(&str, &str)> {
    let told = |file: &'_ OtherFile| match &file.fate {
        Fate::Carried => "carried",
        Fate::Left(_) => "left",
        Fate::Broken { .. } => "broken",
    };
    model.others.iter().map(|file| (file.path.as_str(), told(file))).collect()
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
    let hqq = json!({"quantization_config": {"quant_method": "hqq"}});
    let packed =
        json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}});
    let none = json!({});
    type Tensor<'a> = (&'a str, &'a str, &'a [u64]);
    let cases: &[(&Value, Tensor<'_>, &str)] = &[
        (&hqq, ("m.weight", "BF16", &[4, 8]), "hqq"),
        (&packed, ("m.weight_packed", "U8", &[4, 8]), "compressed-tensors (pack-quantized)"),
        (&none, ("m.weight_packed", "U8", &[4, 8]), "compressed-tensors"),
        (&none, ("m.W_q", "U8", &[4, 8]), "HQQ"),
        (&none, ("m.SCB", "F32", &[4]), "bitsandbytes"),
        (&none, ("m.weight", "U32", &[4, 8]), "MLX"),
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
fn codes_without_what_they_need_are_refused_by_encoding() {
    let cases: &[(&str, &str, &[u64], &str)] = &[
        ("m.qweight", "I32", &[4, 8], "model::gptq"),
        ("m.weight_packed", "I32", &[4, 8], "model::packed-integers"),
        ("experts.gate_up_proj_blocks", "U8", &[4, 8, 2, 16], "model::mxfp4"),
    ];
    for (name, dtype, shape, meant) in cases {
        let (code, text) = only(one_shard(&json!({}), &[(*name, *dtype, *shape)]).path());
        assert!(code == *meant && text.contains("has no"), "{name}: {code}: {text}");
    }
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
    for (name, layout) in [
        ("block.weight", "Block { rows: 128, columns: 64 }"),
        ("row.weight", "Channel"),
        ("tensor.weight", "Tensor"),
    ] {
        let tensor = model.by_name(name).unwrap();
        let encoded = tensor.encoded.as_ref().unwrap();
        assert_eq!(encoded.encoding.name(), "fp8-scaled");
        assert_eq!(model.tensors[encoded.parts[0]].part_of, model.find(name));
        assert!(tensor.dtype == Dtype::Bf16 && tensor.stored.is_fp8());
        assert!(format!("{:?}", encoded.matrix).contains(layout), "{:?}", encoded.matrix);
    }
    assert_eq!(model.by_name("row.input_scale").unwrap().part_of, model.find("row.weight"));
    assert!(model.by_name("plain.weight").unwrap().encoded.is_none());
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
        assert_eq!(code, "model::fp8-scales", "{case:?}: {text}");
    }
}

#[test]
fn scales_without_codes_are_told() {
    for (tensors, first) in [
        (
            &[("m.weight_scale_inv", "F32", &[2_u64, 2][..]), ("n.weight", "BF16", &[4, 4])][..],
            "`m.weight_scale_inv` (F32 [2, 2]) scales codes",
        ),
        (
            &[
                ("m.weight", "BF16", &[4, 4]),
                ("m.weight_scale", "F32", &[4, 1]),
                ("n.weight_scale", "F32", &[]),
            ],
            "`m.weight_scale` (F32 [4, 1]) (and 1 more) scales codes",
        ),
    ] {
        let model = open(one_shard(&json!({}), tensors).path(), &[], &[]).unwrap();
        let found: Vec<_> =
            model.warnings.iter().filter(|finding| finding.code == code::LEFT_PARTS).collect();
        assert!(found.len() == 1 && found[0].message.starts_with(first), "{found:?}");
    }
}
