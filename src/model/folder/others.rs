//! Other files: the fate of files without weights that were read. Files that a model may need are carried over. A
//! second copy of its weights, the state of a training run and descriptions of other weights stay behind, because an
//! engine would load them in place of the output, or because they are not needed. In doubt, a file is carried over.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::files::{Listing, is_pointer};
use super::weights::{header_of, is_adapter, stem};
use super::{Fate, OtherFile, names};
use crate::finding::Finding;
use crate::format::source::Source;
use crate::ids::{IdVec, TensorId};
use crate::model::code;
use crate::model::config::DECLARATIONS;
use crate::model::header::{Header, HeaderTensor};
use crate::model::name_index::NameIndex;
use crate::model::tensor::TensorInfo;

/// Extensions of weights in formats that are not read.
const FOREIGN: &[&str] = &[
    "bin",
    "pt",
    "pth",
    "ckpt",
    "onnx",
    "onnx_data",
    "h5",
    "msgpack",
    "ot",
    "tflite",
    "mlmodel",
    "pdparams",
    "npz",
    "data",
];

/// Names that export tools give to the files of a whole model, in each format.
const WHOLE: &[&str] = &[
    "model",
    "pytorch_model",
    "tf_model",
    "flax_model",
    "rust_model",
    "openvino_model",
    "diffusion_pytorch_model",
    "diffusion_flax_model",
    "ggml-model",
    "decoder_model",
    "encoder_model",
    "consolidated",
];

/// Folders that are called as the format of the second copy in them, or as what is kept of the original.
const FORMATS: &[&str] = &[
    "onnx",
    "openvino",
    "coreml",
    "tflite",
    "gguf",
    "ggml",
    "mlx",
    "metal",
    "original",
    "tf",
    "flax",
    "torchscript",
    "tensorrt",
];

/// Files that say how weights were quantized which are not those of the output.
const STALE: &[&str] =
    &["hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"];

/// The longest text that is read to see whether it declares a quantization.
const MAX_TEXT: u64 = 1 << 20;

/// The weights that were read, used to decide if a file holds them again.
pub(super) struct Model<'a> {
    pub(super) tensors: &'a IdVec<TensorId, TensorInfo>,
    pub(super) names: &'a NameIndex,
    /// The index that says which files are the model.
    pub(super) index: Option<&'a str>,
    /// Whether `include` says it.
    pub(super) is_included: bool,
}

impl Model<'_> {
    fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .filter(|tensor| tensor.part_of.is_none())
            .map(|tensor| product(&tensor.shape))
            .sum()
    }

    /// Whether the tensors of a file are all the tensors of the model, by name and shape.
    fn holds(&self, header: &Header) -> bool {
        let is_known = |tensor: HeaderTensor| {
            self.names.find(self.tensors, &tensor.name).is_some_and(|i| self.tensors[i].shape == tensor.shape)
        };
        header.tensors().len() > 0 && header.tensors().all(is_known)
    }
}

fn product(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |all, axis| all.saturating_mul(*axis))
}

/// Whether two numbers are the same but for a hundredth.
fn is_about(a: u64, b: u64) -> bool {
    a.abs_diff(b) <= b / 100
}

/// Judges the files that were not read, and reports weights whose purpose is unknown.
pub(super) fn judge(
    source: &dyn Source,
    listing: Listing,
    is_used: impl Fn(&str) -> bool,
    model: &Model<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<OtherFile> {
    let mut files: Vec<OtherFile> = listing.files.into_iter().filter(|file| !is_used(&file.path)).collect();
    let copies = copies_by_folder(source, &files, model);
    let (mut has_adapter, mut unknown) = (false, Vec::new());
    for file in &mut files {
        let reason = if let Some(stem) = stem(&file.path) {
            let (reason, is_known) = beside(source, file, stem, model, &copies);
            has_adapter |= reason == ADAPTER;
            if !is_known {
                unknown.push(file.path.clone());
            }
            Some(reason)
        } else {
            training(&file.path).or_else(|| second_copy(file, model, &copies))
        };
        if let Some(reason) = reason {
            file.fate = Fate::Left(reason);
        }
    }
    leave_what_describes_them(source, &mut files, has_adapter);
    let mut files = as_folders(files);
    for file in files.iter_mut().filter(|file| file.fate == Fate::Carried && is_pointer(source, file)) {
        file.fate = Fate::Broken {
            what: "is a Git LFS pointer, not the file that it stands for".to_owned(),
            help: "Run `git lfs pull` in the model's folder, or download the model with `hf download`."
                .to_owned(),
        };
    }
    files.extend(listing.odd);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if !unknown.is_empty() {
        let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
        findings.push(
            Finding::warning(
                code::LEFT_OUT,
                format!("{} not read, and not carried over", super::complaints::be(&unknown)),
            )
            .help(
                "If a part of the model is in there, name all of its weight files with `include` of `load`.",
            ),
        );
    }
    files
}

const ADAPTER: &str = "an adapter, no part of the model";

/// Why weights beside those that were read stay behind, and whether that is all that there is to say.
fn beside(
    source: &dyn Source,
    file: &OtherFile,
    stem: &str,
    model: &Model<'_>,
    copies: &BTreeMap<String, bool>,
) -> (String, bool) {
    if names::is_training(stem) {
        return ("state of a training".to_owned(), true);
    }
    if is_adapter(source, file) {
        return (ADAPTER.to_owned(), true);
    }
    if names::is_consolidated(stem) || copies.get(&file.path).is_some_and(|is_copy| *is_copy) {
        return ("the weights once more, in another format".to_owned(), true);
    }
    if names::is_variant(stem) {
        return ("the weights once more, of another kind".to_owned(), true);
    }
    if model.is_included {
        return ("left out by `include` or `exclude`".to_owned(), true);
    }
    match model.index {
        Some(index) => (format!("not named by {index}"), false),
        None => ("not a file of the model by its name".to_owned(), false),
    }
}

/// The folder of a path, empty at the top, and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Stem and extension of a path's name.
fn split_name(path: &str) -> (&str, &str) {
    let (_, name) = split(path);
    name.rsplit_once('.').unwrap_or((name, ""))
}

fn training(path: &str) -> Option<String> {
    let (folders, name) = split(path);
    let (stem, extension) = split_name(path);
    if folders.split('/').any(|folder| folder == "__pycache__") || extension == "pyc" {
        return Some("made by Python when it runs".to_owned());
    }
    if folders.split('/').any(names::is_checkpoint) {
        return Some("checkpoint of a training".to_owned());
    }
    let is_state =
        matches!(extension, "bin" | "pt" | "pth" | "pkl" | "safetensors") && names::is_training(stem);
    (is_state || name.ends_with("_optim_states.pt") || name.ends_with("_model_states.pt"))
        .then(|| "state of a training".to_owned())
}

/// The reason why a file is known to hold the model's weights once more.
fn second_copy(file: &OtherFile, model: &Model<'_>, copies: &BTreeMap<String, bool>) -> Option<String> {
    let (folder, _) = split(&file.path);
    let (stem, extension) = split_name(&file.path);
    let again = || Some("the weights once more, in another format".to_owned());
    if extension == "gguf" {
        return again();
    }
    let is_weights = extension == "safetensors" || FOREIGN.contains(&extension);
    if !is_weights {
        return None;
    }
    if folder.split('/').any(|part| FORMATS.contains(&part.to_ascii_lowercase().as_str())) {
        return again();
    }
    if extension == "safetensors" {
        return copies.get(&file.path).copied().unwrap_or(false).then(again)?;
    }
    let is_of_whole = |whole: &&str| stem.strip_prefix(*whole).is_some_and(names::is_only_of_a_kind);
    let is_whole = folder.is_empty() && WHOLE.iter().any(is_of_whole);
    // In F32, in 16 bits, in 8 bits.
    let is_as_large = [4, 2, 1].iter().any(|bytes| is_about(file.len, model.parameters() * bytes));
    (is_whole || is_as_large).then(again)?
}

/// For each safetensors file that was not read: whether it holds the model's tensors again, alone or together with
/// the other files of its folder.
fn copies_by_folder(source: &dyn Source, files: &[OtherFile], model: &Model<'_>) -> BTreeMap<String, bool> {
    // Of each header only this is kept: there may be many, and each as long as the model's.
    struct Held<'f> {
        path: &'f str,
        parameters: u64,
        is_of_model: bool,
    }
    let mut folders: BTreeMap<&str, Vec<Held<'_>>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.ends_with(".safetensors")) {
        let Some(header) = header_of(source, file) else { continue };
        folders.entry(split(&file.path).0).or_default().push(Held {
            path: &file.path,
            parameters: header.tensors().map(|tensor| product(&tensor.shape)).sum(),
            is_of_model: model.holds(&header),
        });
    }
    let parameters = model.parameters();
    let mut out = BTreeMap::new();
    for files in folders.into_values() {
        let all: u64 = files.iter().map(|file| file.parameters).sum();
        for file in files {
            let is_copy =
                file.is_of_model || is_about(all, parameters) || is_about(file.parameters, parameters);
            out.insert(file.path.to_owned(), is_copy);
        }
    }
    out
}

/// Leaves files that describe weights which stay behind: indices, the config of an adapter, and declarations of a quantization.
fn leave_what_describes_them(source: &dyn Source, files: &mut [OtherFile], has_adapter: bool) {
    let is_weights = |file: &&OtherFile| {
        let (_, extension) = split_name(&file.path);
        extension == "safetensors" || FOREIGN.contains(&extension)
    };
    let with_carried: BTreeSet<String> = files
        .iter()
        .filter(is_weights)
        .filter(|file| file.fate == Fate::Carried)
        .map(|file| split(&file.path).0.to_owned())
        .collect();
    for file in files.iter_mut().filter(|file| file.fate == Fate::Carried) {
        let (folder, name) = split(&file.path);
        let reason = if name.ends_with(".index.json") && (folder.is_empty() || !with_carried.contains(folder))
        {
            "index of weights that stay behind"
        } else if has_adapter && file.path == "adapter_config.json" {
            "describes the adapter, which would be loaded in place of the model"
        } else if folder.is_empty() && declares_quantization(source, file) {
            "says how other weights were quantized"
        } else {
            continue;
        };
        file.fate = Fate::Left(reason.to_owned());
    }
}

/// Whether a file at the top level says how weights were quantized, by its name or by its contents.
fn declares_quantization(source: &dyn Source, file: &OtherFile) -> bool {
    if STALE.contains(&file.path.as_str()) {
        return true;
    }
    let (stem, extension) = split_name(&file.path);
    let text = || source.read(&file.path, MAX_TEXT).ok();
    match extension {
        // A recipe of llm-compressor: stages of modifiers.
        "yaml" | "yml" => {
            stem == "recipe" && text().is_some_and(|text| String::from_utf8_lossy(&text).contains("odifier"))
        }
        // Not the tokenizer's, which are long, and have nothing of the kind.
        "json" if !stem.starts_with("tokenizer") => {
            let json = text().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            json.is_some_and(|json| declares(&json) || json.get("quantization").is_some_and(declares))
        }
        _ => false,
    }
}

fn declares(json: &Value) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| json.get(key).is_some());
    has(&["quant_method", "quant_algo"])
        || has(&DECLARATIONS)
        || has(&["bits", "w_bit", "wbits"]) && has(&["group_size", "q_group_size", "groupsize"])
}

/// Replaces files by their folder if all of it stays behind, or if all weights of a format's folder do.
fn as_folders(files: Vec<OtherFile>) -> Vec<OtherFile> {
    let mut folders: BTreeMap<String, (String, u64)> = BTreeMap::new();
    let tops: BTreeSet<&str> = files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    for top in tops {
        let inside =
            || files.iter().filter(|file| file.path.split_once('/').is_some_and(|(first, _)| first == top));
        let reason = inside().find_map(|file| match &file.fate {
            Fate::Left(reason) => Some(reason.clone()),
            _ => None,
        });
        let is_left = |file: &OtherFile| matches!(file.fate, Fate::Left(_));
        let goes = if FORMATS.contains(&top.to_ascii_lowercase().as_str()) {
            inside().any(is_left)
        } else {
            inside().all(is_left)
        };
        if let Some(reason) = reason.filter(|_| goes) {
            folders.insert(top.to_owned(), (reason, inside().map(|file| file.len).sum()));
        }
    }
    let in_folder =
        |file: &OtherFile| file.path.split_once('/').is_some_and(|(top, _)| folders.contains_key(top));
    let mut out: Vec<OtherFile> = files.into_iter().filter(|file| !in_folder(file)).collect();
    out.extend(folders.into_iter().map(|(top, (reason, len))| OtherFile {
        path: format!("{top}/"),
        len,
        fate: Fate::Left(reason),
    }));
    out
}
