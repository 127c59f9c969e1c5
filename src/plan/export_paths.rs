//! Paths of outputs: told without the file system, and held against the model and each other.

use std::path::PathBuf;

use super::ExportPlan;
use crate::finding::Finding;
use crate::fs::paths;
use crate::plan::output_tensor::Content;
use crate::recipe::Loaded;
use crate::stage::export::Overwrite;

/// A path without `.` and `..`, as far as that can be told without the file system.
pub(crate) fn normalized(path: &std::path::Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    // The working directory, or one above it: told by its own name, beside which the output is staged.
    match std::path::absolute(if out.as_os_str().is_empty() { std::path::Path::new(".") } else { &out }) {
        Ok(absolute) if out.file_name().is_none() && absolute != out => normalized(&absolute),
        _ => out,
    }
}

/// A path with its links resolved, as far as it exists; the rest need not.
fn canonical(path: &std::path::Path) -> PathBuf {
    paths::canonical(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// What is wrong with outputs in object stores, as far as their words tell.
pub(super) fn stores(loaded: &Loaded, exports: &[ExportPlan]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (position, export) in exports.iter().enumerate() {
        let Some(word) = &export.store else { continue };
        let place = |key: &str| loaded.place(&format!("/stages/{}/{key}", export.stage));
        if cfg!(not(feature = "cloud")) {
            let message = "this build of monoquant does not write to object stores";
            let finding = Finding::error("export::not-built", message).at_opt(place("path"), "this place");
            findings.push(finding.help(
                "Build it with `cargo build --release --locked --features cloud`, or give the folder of an output.",
            ));
        }
        if export.overwrite == Overwrite::Replace
            && loaded.says(&format!("/stages/{}/overwrite", export.stage))
        {
            let message = "an output in an object store is never replaced";
            let finding =
                Finding::error("export::store-replace", message).at_opt(place("overwrite"), "this word");
            findings.push(finding.help(
                "Readers could see half of the old one and half of the new one. Choose a new prefix for each output, and leave out \
                 `overwrite`.",
            ));
        }
        let is_below =
            |word: &str, other: &str| word.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let mut others = exports[..position].iter().filter_map(|other| other.store.as_ref());
        if others.any(|other| is_below(word, other) || is_below(other, word)) {
            let finding = Finding::error("plan::output-path", "one export lies inside another");
            findings.push(finding.at_opt(place("path"), "choose another path"));
        }
    }
    findings
}

/// Output paths that would destroy the model or each other.
pub(super) fn export_paths(content: Content<'_>, exports: &[ExportPlan]) -> Vec<Finding> {
    let Content { loaded, model, .. } = content;
    let mut findings = Vec::new();
    let source = model.source.folder().map(canonical);
    let source = source.as_deref();
    for (position, export) in exports.iter().enumerate() {
        let place = loaded.place(&format!("/stages/{}/path", export.stage));
        let path = canonical(&export.path);
        let message = if source == Some(&*path) {
            Some("the output would replace the model")
        } else if !model.is_single_file && source.is_some_and(|source| path.starts_with(source)) {
            Some("the output lies inside the model's folder")
        } else if source.is_some_and(|source| source.starts_with(&path)) {
            Some("the model lies inside the output's folder")
        } else {
            exports[..position].iter().map(|other| canonical(&other.path)).find_map(|other| {
                if other == path {
                    Some("two exports write to the same folder")
                } else if other.starts_with(&path) || path.starts_with(&other) {
                    Some("one export lies inside another")
                } else {
                    None
                }
            })
        };
        if let Some(message) = message {
            let finding = Finding::error("plan::output-path", message).at_opt(place, "choose another path");
            let model = source.map_or_else(|| model.source.name(), |source| source.display().to_string());
            findings.push(finding.help(format!("The model is {model}.")));
        }
    }
    findings
}
