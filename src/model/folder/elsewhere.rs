//! Folders near a model: a pipeline of several models, or a folder one level off. The finding says where the model is.

use serde_json::Value;

use super::complaints::{CONVERT, shown};
use super::files::Listing;
use super::names;
use super::weights::header_of;
use crate::finding::Finding;
use crate::format::source::{GIVE, Source};
use crate::fs::paths;
use crate::fs::regular::limit;
use crate::model::code;

/// Folders named in one finding.
const MAX_FOLDERS: usize = 5;

/// The finding for a pipeline of diffusers, whose models are in folders of their own.
pub(super) fn pipeline(source: &dyn Source, listing: &Listing) -> Option<Finding> {
    if !listing.has("model_index.json") || listing.has("config.json") {
        return None;
    }
    let text = source.read("model_index.json", limit::CONFIG).ok()?;
    let index: Value = serde_json::from_slice(&text).ok()?;
    let class = |folder: &str| {
        let class = index.get(folder).and_then(|part| part.get(1)).and_then(Value::as_str);
        class.map_or_else(String::new, |class| format!(" ({})", class.escape_debug()))
    };
    let mut parts = quantizable(source, listing);
    parts.retain(|(folder, _)| !folder.contains('/'));
    let parts: Vec<String> = parts
        .iter()
        .take(MAX_FOLDERS)
        .map(|(folder, _)| format!("`{}`{}", source.place(&format!("{folder}/")), class(folder)))
        .collect();
    let message = format!("`{}` is a pipeline of several models", source.name());
    let finding = Finding::error(code::NOT_A_MODEL, message);
    Some(if parts.is_empty() {
        finding.help("Give the folder of one of them; none in safetensors has weights to quantize.")
    } else {
        finding.help(format!(
            "Give the folder of one of them; those with weights to quantize: {}.",
            parts.join(", ")
        ))
    })
}

/// Folders below that hold weights of linear layers for the most part, and how many; the largest first.
fn quantizable(source: &dyn Source, listing: &Listing) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = Vec::new();
    for (folder, files) in weight_folders(listing) {
        let (mut matrices, mut all) = (0_u64, 0_u64);
        for file in files {
            let Some(header) = header_of(source, file) else { continue };
            for tensor in header.tensors() {
                all += tensor.bytes;
                // The codes of a table of tokens are none of these, but a model of nothing else is rare.
                matrices += if tensor.shape.len() == 2 { tensor.bytes } else { 0 };
            }
        }
        if matrices > all / 2 {
            found.push((folder.to_owned(), matrices));
        }
    }
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found
}

/// Folders below that hold weight files, adapters and states of a training aside.
fn weight_folders(listing: &Listing) -> Vec<(&str, Vec<&super::OtherFile>)> {
    let mut found: Vec<(&str, Vec<&super::OtherFile>)> = Vec::new();
    for file in &listing.files {
        let Some((folder, name)) = file.path.rsplit_once('/') else { continue };
        let Some(stem) = name.strip_suffix(".safetensors") else { continue };
        if stem == "adapter_model" || names::is_training(stem) {
            continue;
        }
        match found.iter_mut().find(|(known, _)| *known == folder) {
            Some((_, files)) => files.push(file),
            None => found.push((folder, vec![file])),
        }
    }
    found
}

/// The finding for a folder that has its weights in folders below.
fn below(source: &dyn Source, listing: &Listing) -> Option<Finding> {
    let found = weight_folders(listing);
    // A model is most likely in the folder of its config.
    let has_config = |folder: &str| listing.has(&format!("{folder}/config.json"));
    let mut named: Vec<&str> =
        found.iter().map(|(folder, _)| *folder).filter(|folder| has_config(folder)).collect();
    if named.is_empty() {
        named = found.iter().map(|(folder, _)| *folder).collect();
    }
    let paths: Vec<String> =
        named.iter().take(MAX_FOLDERS).map(|folder| format!("`{}`", source.place(folder))).collect();
    let message = format!("`{}` has no weight file of its own", source.name());
    let finding = Finding::error(code::NOT_A_MODEL, message);
    match &paths[..] {
        [] => None,
        [only] => Some(finding.help(format!("Give the folder that has: {only}."))),
        several => {
            let more = named.len().saturating_sub(MAX_FOLDERS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Some(finding.help(format!("Give one of the folders that have: {}{more}.", several.join(", "))))
        }
    }
}

/// The folder that the given one lies in, if it is the folder of a model.
fn above(source: &dyn Source) -> Option<String> {
    let parent = paths::real(source.folder()?).ok()?.parent()?.to_owned();
    let names = paths::names_in(&parent, 10_000);
    let is_model = names.iter().any(|name| name == "config.json")
        && names.iter().any(|name| name.ends_with(".safetensors"));
    is_model.then(|| parent.display().to_string())
}

/// A folder without weights to read: says what it holds instead.
pub(super) fn no_weights(source: &dyn Source, listing: &Listing) -> Finding {
    let folder = source.name();
    let found = |end: &[&str]| listing.files.iter().find(|file| end.iter().any(|e| file.path.ends_with(e)));
    let error = |message| Finding::error(code::NOT_A_MODEL, message);
    if listing.files.is_empty() && listing.folders.is_empty() && above(source).is_none() {
        return error(format!("the folder `{folder}` is empty")).help(GIVE);
    }
    if let Some(finding) = below(source, listing) {
        return finding;
    }
    if let Some(above) = above(source) {
        return error(format!("`{folder}` has no weight file of its own"))
            .help(format!("Give the folder above, which has: `{above}`."));
    }
    if let Some(file) = found(&[".safetensors"]) {
        return error(format!("`{folder}` has no weight file of a model")).help(format!(
            "There is `{}`; `include` of `load` reads a file whatever it is called.",
            file.path
        ));
    }
    if let Some(file) = found(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return error(format!("`{folder}` has its weights in `{}` and none in safetensors", file.path))
            .help(CONVERT);
    }
    if let Some(file) = found(&[".gguf"]) {
        return error(format!("`{folder}` has only GGUF weights (`{}`)", file.path))
            .help("GGUF files are quantized already; give the model that they were made from.");
    }
    error(format!("`{folder}` has no `.safetensors` file")).help(format!(
        "It holds {}.",
        shown(&listing.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>())
    ))
}
