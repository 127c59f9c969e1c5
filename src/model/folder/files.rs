//! Which files a folder holds, and which of them are weights to read.

use std::fs;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::OtherFile;
use super::complaints::{be, io, shown};
use crate::finding::Finding;
use crate::model::code;
use crate::model::index::Index;

/// How deep folders below the model's are searched for files to carry over.
const MAX_DEPTH: usize = 8;

/// What a folder holds.
#[derive(Default)]
pub(super) struct Listing {
    /// Files at any depth, hidden ones left out.
    pub(super) files: Vec<OtherFile>,
    /// Folders at the top.
    pub(super) folders: Vec<String>,
}

impl Listing {
    fn has(&self, path: &str) -> bool {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }
}

/// Lists a folder. Links to files are followed (the Hub's cache consists of them), links to folders are not.
pub(super) fn list(
    root: &Path,
    below: &str,
    depth: usize,
    listing: &mut Listing,
    findings: &mut Vec<Finding>,
) {
    let folder = root.join(below);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) => return findings.push(io(&folder, &e)),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => return findings.push(io(&folder, &e)),
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_folder {
            if depth < MAX_DEPTH {
                list(root, &path, depth + 1, listing, findings);
            }
            if depth == 0 {
                listing.folders.push(path);
            }
            continue;
        }
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_file() => listing.files.push(OtherFile { path, len: metadata.len() }),
            Ok(_) => {}
            Err(_) if path.ends_with(".safetensors") => findings.push(
                Finding::error(code::NOT_FOUND, format!("`{path}` is a link to a file that does not exist"))
                    .help("The download is not complete; run `hf download` again."),
            ),
            Err(_) => {}
        }
    }
}

/// The index of the folder: `model.safetensors.index.json`, or the only one there is.
pub(super) fn read_index(root: &Path, listing: &Listing, findings: &mut Vec<Finding>) -> Option<Index> {
    const USUAL: &str = "model.safetensors.index.json";
    let all: Vec<&str> = listing
        .files
        .iter()
        .map(|file| file.path.as_str())
        .filter(|path| path.ends_with(".safetensors.index.json") && !path.contains('/'))
        .collect();
    let file = match all[..] {
        [only] => only,
        _ if all.contains(&USUAL) => USUAL,
        _ => return None,
    };
    let text = match fs::read(root.join(file)) {
        Ok(text) => text,
        Err(e) => {
            findings.push(io(&root.join(file), &e));
            return None;
        }
    };
    match Index::parse(&text, file) {
        Ok(index) => Some(index),
        Err(found) => {
            findings.extend(found);
            None
        }
    }
}

/// The weight files to read.
pub(super) fn choose(
    listing: &Listing,
    index: Option<&Index>,
    include: &[&str],
    exclude: &[&str],
    findings: &mut Vec<Finding>,
) -> Vec<OtherFile> {
    let (Some(included), Some(excluded)) = (globs(include, findings), globs(exclude, findings)) else {
        return Vec::new();
    };
    let weights: Vec<&OtherFile> =
        listing.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
    let names: Vec<&str> = weights.iter().map(|file| file.path.as_str()).collect();
    for glob in unmatched(include, &included, &names) {
        let message = format!("`{glob}` of `include` matches no weight file");
        findings.push(
            Finding::error(code::FILTER, message).help(format!("The weight files are {}.", shown(&names))),
        );
    }
    for glob in unmatched(exclude, &excluded, &names) {
        let message = format!("`{glob}` of `exclude` matches no weight file");
        findings.push(
            Finding::warning(code::FILTER, message).help(format!("The weight files are {}.", shown(&names))),
        );
    }
    let passes = |file: &str| (include.is_empty() || included.is_match(file)) && !excluded.is_match(file);
    let named: Vec<&str> = index.map_or(Vec::new(), Index::files);
    let is_named = |file: &str| named.binary_search(&file).is_ok();
    // A weight file in a folder below the model's is read where it is asked for.
    let is_wanted =
        |file: &str| passes(file) && (!include.is_empty() || !file.contains('/') || is_named(file));
    let chosen: Vec<OtherFile> = weights.into_iter().filter(|file| is_wanted(&file.path)).cloned().collect();
    if let Some(index) = index {
        let missing: Vec<&str> =
            named.iter().copied().filter(|file| passes(file) && !listing.has(file)).collect();
        if !missing.is_empty() {
            let message = format!("{} named by `{}` and not there", be(&missing), index.file);
            findings.push(
                Finding::error(code::INDEX, message)
                    .help("The download is not complete; run `hf download` again."),
            );
        }
        let stray: Vec<&str> =
            chosen.iter().map(|file| file.path.as_str()).filter(|file| !is_named(file)).collect();
        if let Some(first) = stray.first() {
            let message = format!("{} not named by `{}`", be(&stray), index.file);
            findings.push(Finding::error(code::INDEX, message).help(format!(
                "If it does not belong to the model, add `exclude: [\"{first}\"]` to `load`."
            )));
        }
    }
    if let [only] = &chosen[..]
        && only.path == "adapter_model.safetensors"
    {
        findings.push(
            Finding::error(code::NOT_A_MODEL, "the folder holds a LoRA adapter, not a model")
                .help("Merge it into its base model first (PEFT's `merge_and_unload`)."),
        );
        return Vec::new();
    }
    chosen
}

/// Those of the globs that match no name.
fn unmatched<'a>(patterns: &[&'a str], set: &GlobSet, names: &[&str]) -> Vec<&'a str> {
    let mut hit = vec![false; patterns.len()];
    names.iter().flat_map(|name| set.matches(name)).for_each(|i| hit[i] = true);
    patterns.iter().zip(hit).filter(|(_, hit)| !hit).map(|(pattern, _)| *pattern).collect()
}

fn globs(patterns: &[&str], findings: &mut Vec<Finding>) -> Option<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        match GlobBuilder::new(pattern).literal_separator(true).build() {
            Ok(glob) => _ = set.add(glob),
            Err(e) => {
                findings.push(Finding::error(code::FILTER, format!("`{pattern}` is no glob: {}", e.kind())))
            }
        }
    }
    let set = set.build();
    if let Err(e) = &set {
        findings.push(Finding::error(code::FILTER, e.to_string()));
    }
    set.ok().filter(|set| set.len() == patterns.len())
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
