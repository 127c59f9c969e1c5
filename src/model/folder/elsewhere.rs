//! Folders near a model: an entry of the Hub's cache, a pipeline of several models, or a folder one level off. The
//! finding says where the model is.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::complaints::{CONVERT, GIVE, file_name, shown};
use super::files::Listing;
use super::names;
use super::root::Root;
use crate::finding::Finding;
use crate::fs::regular::{self, limit};
use crate::model::code;
use crate::model::header;

/// Folders named in one finding.
const MAX_FOLDERS: usize = 5;

/// The finding for a folder of the Hub's cache that is no snapshot: the cache itself, a model's entry in it, or a part of that.
pub(super) fn hub_cache(root: &Path) -> Option<Finding> {
    let real = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let name = file_name(&real);
    let is_entry = |folder: &Path| {
        folder.join("snapshots").is_dir() && (folder.join("refs").is_dir() || folder.join("blobs").is_dir())
            || file_name(folder).starts_with("models--") && folder.join("snapshots").is_dir()
    };
    if real.join("config.json").is_file() {
        return None;
    }
    if is_entry(&real) {
        return Some(entry(root, &real));
    }
    if matches!(name.as_str(), "snapshots" | "blobs" | "refs")
        && let Some(parent) = real.parent().filter(|parent| is_entry(parent))
    {
        return Some(entry(root, parent));
    }
    let mut models: Vec<PathBuf> = folders(&real).into_iter().filter(|folder| is_entry(folder)).collect();
    models.sort();
    if models.is_empty() {
        return None;
    }
    let ways: Vec<String> = models.iter().take(MAX_FOLDERS).map(|model| way(model)).collect();
    let more = models.len().saturating_sub(MAX_FOLDERS);
    let more = if more > 0 { format!(", or one of {more} more") } else { String::new() };
    let finding =
        Finding::error(code::NOT_A_MODEL, format!("`{}` is the Hub's cache, not a model", root.display()));
    Some(finding.help(format!("Give {}{more}.", ways.join(", or "))))
}

fn entry(root: &Path, entry: &Path) -> Finding {
    let message = format!("`{}` is an entry of the Hub's cache, not a model", root.display());
    Finding::error(code::NOT_A_MODEL, message).help(format!("Give {}.", way(entry)))
}

/// How to name the model of an entry: by its name, and by the folder of its snapshot.
fn way(entry: &Path) -> String {
    let mut snapshots: Vec<PathBuf> = folders(&entry.join("snapshots"));
    snapshots.sort();
    let commit = regular::read_text(&entry.join("refs/main"), limit::WORD).ok();
    let main = commit.map(|commit| entry.join("snapshots").join(commit.trim())).filter(|path| path.is_dir());
    if let Some(main) = main {
        snapshots = vec![main];
    }
    let snapshots: Vec<String> =
        snapshots.iter().take(MAX_FOLDERS).map(|snapshot| format!("`{}`", snapshot.display())).collect();
    let name = file_name(entry);
    let name = name.strip_prefix("models--").map(|name| format!("`hf://{}`", name.replacen("--", "/", 1)));
    let ways: Vec<String> = name.into_iter().chain(snapshots).collect();
    ways.join(" or ")
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The finding for a pipeline of diffusers, whose models are in folders of their own.
pub(super) fn pipeline(root: &Root, listing: &Listing) -> Option<Finding> {
    if !listing.has("model_index.json") || listing.has("config.json") {
        return None;
    }
    let text = root.read("model_index.json", limit::CONFIG).ok()?;
    let index: Value = serde_json::from_slice(&text).ok()?;
    let class = |folder: &str| {
        let class = index.get(folder).and_then(|part| part.get(1)).and_then(Value::as_str);
        class.map_or_else(String::new, |class| format!(" ({})", class.escape_debug()))
    };
    let mut parts = quantizable(root, listing);
    parts.retain(|(folder, _)| !folder.contains('/'));
    let parts: Vec<String> = parts
        .iter()
        .take(MAX_FOLDERS)
        .map(|(folder, _)| format!("`{}`{}", root.join(folder).join("").display(), class(folder)))
        .collect();
    let message = format!("`{}` is a pipeline of several models", root.path().display());
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
fn quantizable(root: &Root, listing: &Listing) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = Vec::new();
    for (folder, files) in weight_folders(listing) {
        let (mut matrices, mut all) = (0_u64, 0_u64);
        for file in files {
            let opened = root.open(&file.path).ok();
            let Some(header) = opened.and_then(|(f, _)| header::read(f, file.len, &file.path).ok()) else {
                continue;
            };
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
pub(super) fn below(root: &Path, listing: &Listing) -> Option<Finding> {
    let found = weight_folders(listing);
    // A model is most likely in the folder of its config.
    let has_config = |folder: &str| listing.has(&format!("{folder}/config.json"));
    let mut named: Vec<&str> =
        found.iter().map(|(folder, _)| *folder).filter(|folder| has_config(folder)).collect();
    if named.is_empty() {
        named = found.iter().map(|(folder, _)| *folder).collect();
    }
    let paths: Vec<String> =
        named.iter().take(MAX_FOLDERS).map(|folder| format!("`{}`", root.join(folder).display())).collect();
    let message = format!("`{}` has no weight file of its own", root.display());
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

/// A folder without weights to read: says what it holds instead.
pub(super) fn no_weights(root: &Path, listing: &Listing) -> Finding {
    let folder = root.display();
    let found = |end: &[&str]| listing.files.iter().find(|file| end.iter().any(|e| file.path.ends_with(e)));
    let error = |message| Finding::error(code::NOT_A_MODEL, message);
    if listing.files.is_empty() && listing.folders.is_empty() {
        return error(format!("the folder `{folder}` is empty")).help(GIVE);
    }
    if let Some(finding) = below(root, listing) {
        return finding;
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
