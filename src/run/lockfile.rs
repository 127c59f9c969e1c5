//! `monoquant.lock`: what the recipes of a folder have made from which source, so that a run elsewhere can be held to it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::verify;
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::Reader;
use crate::fs::exclusive;
use crate::fs::regular::{self, limit};
use crate::plan::Plan;
use crate::publish::{files, hidden};
use crate::report::{FileRecord, Report};
use crate::stage::Stage;

/// The name of the file, beside the recipes.
pub const FILE_NAME: &str = "monoquant.lock";

/// The version of its format.
const VERSION: u32 = 1;

/// Codes of findings about locks.
mod code {
    pub(super) const DIFFERS: &str = "lock::differs";
    pub(super) const MISSING: &str = "lock::missing";
    pub(super) const STALE: &str = "lock::stale";
    pub(super) const UNREADABLE: &str = "lock::unreadable";
}

/// The lock of a folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    lock_version: u32,
    /// By the name of the recipe's file.
    recipes: BTreeMap<String, Entry>,
}

/// The lock of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The version of monoquant.
    pub monoquant: String,
    /// The BLAKE3 hash of the recipe's values, defaults filled in and overrides applied; comments do not count.
    pub recipe: String,
    /// The commit of a model of the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The weight files of the source.
    pub source: Vec<FileRecord>,
    /// All files of each output but its report, in the order of the `export` stages.
    pub outputs: Vec<Vec<FileRecord>>,
}

impl Entry {
    fn of(report: &Report, revision: Option<String>) -> Self {
        let files = report.outputs.iter().map(|output| output.files.iter().chain(&output.others).cloned());
        Self {
            monoquant: report.monoquant.clone(),
            recipe: hash_of(&report.recipe),
            revision,
            source: report.source.clone(),
            outputs: files.map(Iterator::collect).collect(),
        }
    }

    /// How a plan differs from what is locked, as far as headers tell.
    ///
    /// # Errors
    /// If the recipe cannot be written as JSON.
    pub fn differences_before(&self, plan: &Plan) -> Result<Vec<Finding>, Failure> {
        let mut out = self.of_tool_and_recipe(env!("CARGO_PKG_VERSION"), &plan.loaded.written_recipe()?);
        let revision = revision(plan);
        if self.revision != revision {
            let shown = |revision: &Option<String>| revision.clone().unwrap_or_else(|| "none".to_owned());
            out.push(differs(format!(
                "the model's revision is {}, and {} is locked",
                shown(&revision),
                shown(&self.revision)
            )));
        }
        let found: Vec<(&str, u64)> =
            plan.model.shards.iter().map(|shard| (shard.name.as_str(), shard.len)).collect();
        let locked: Vec<(&str, u64)> =
            self.source.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        out.extend(listed("the source", &locked, &found));
        Ok(out)
    }

    /// How a report differs from what is locked.
    #[must_use]
    pub fn differences(&self, report: &Report) -> Vec<Finding> {
        let mut out = self.of_tool_and_recipe(&report.monoquant, &report.recipe);
        out.extend(of_files("the source", &self.source, &report.source));
        let found = Self::of(report, None).outputs;
        if found.len() != self.outputs.len() {
            out.push(differs(format!(
                "there are {} outputs, and {} are locked",
                found.len(),
                self.outputs.len()
            )));
        }
        // If the source is another one, so is the output.
        if out.is_empty() {
            for ((locked, found), output) in self.outputs.iter().zip(&found).zip(&report.outputs) {
                out.extend(of_files(
                    &format!("the output of stage {}", output.stage.index() + 1),
                    locked,
                    found,
                ));
            }
        }
        out
    }

    fn of_tool_and_recipe(&self, version: &str, recipe: &serde_json::Value) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.monoquant != version {
            out.push(differs(format!("this is monoquant {version}, and {} is locked", self.monoquant)));
        }
        if self.recipe != hash_of(recipe) {
            out.push(differs("the recipe or an override is another one than is locked".to_owned()));
        }
        out
    }
}

fn of_files(of: &str, locked: &[FileRecord], found: &[FileRecord]) -> Vec<Finding> {
    let sizes = |files: &[FileRecord]| -> Vec<(String, u64)> {
        files.iter().map(|file| (file.name.clone(), file.bytes)).collect()
    };
    let (sizes_locked, sizes_found) = (sizes(locked), sizes(found));
    fn borrowed(files: &[(String, u64)]) -> Vec<(&str, u64)> {
        files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect()
    }
    let mut out = listed(of, &borrowed(&sizes_locked), &borrowed(&sizes_found));
    for file in locked {
        let other = found.iter().find(|other| other.name == file.name && other.bytes == file.bytes);
        if other.is_some_and(|other| {
            other.crc64nvme != file.crc64nvme
                || other.blake3.as_ref().zip(file.blake3.as_ref()).is_some_and(|(a, b)| a != b)
        }) {
            out.push(differs(format!("`{}` of {of} has other bytes than are locked", file.name)));
        }
    }
    out
}

/// Differences of names and sizes.
fn listed(of: &str, locked: &[(&str, u64)], found: &[(&str, u64)]) -> Vec<Finding> {
    let mut out = Vec::new();
    for (name, bytes) in locked {
        match found.iter().find(|(other, _)| other == name) {
            None => out.push(differs(format!("`{name}` of {of} is locked and not there"))),
            Some((_, other)) if other != bytes => {
                out.push(differs(format!("`{name}` of {of} has {other} bytes, and {bytes} are locked")));
            }
            Some(_) => {}
        }
    }
    let is_new = |(name, _): &&(&str, u64)| !locked.iter().any(|(other, _)| other == name);
    out.extend(
        found
            .iter()
            .filter(is_new)
            .map(|(name, _)| differs(format!("`{name}` of {of} is there and not locked"))),
    );
    out
}

fn differs(message: String) -> Finding {
    Finding::error(code::DIFFERS, message)
        .help("Restore what is locked, or review the change and write the lock again with `monoquant lock`.")
}

fn hash_of(recipe: &serde_json::Value) -> String {
    blake3::hash(recipe.to_string().as_bytes()).to_hex().to_string()
}

/// The commit of a model of the Hub: the name of its snapshot's folder.
fn revision(plan: &Plan) -> Option<String> {
    let is_of_hub = plan
        .recipe()
        .stages
        .iter()
        .any(|stage| matches!(stage, Stage::Load(load) if load.model.starts_with("hf://")));
    if let Some(commit) = plan.model.source.revision() {
        return Some(commit.to_owned());
    }
    let folder = plan.model.source.folder().filter(|_| is_of_hub)?;
    folder.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// The path of the lock of a recipe.
#[must_use]
pub fn path_of(recipe: &Path) -> PathBuf {
    recipe.with_file_name(FILE_NAME)
}

fn key_of(recipe: &Path) -> String {
    recipe.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Option<Lock>, Failure> {
    if !exclusive::is_there(path) {
        return Ok(None);
    }
    let unreadable = |why: String| {
        let finding = Finding::error(code::UNREADABLE, format!("{} cannot be read: {why}", path.display()));
        Failure::new(Exit::BadRecipe, finding.help("Restore it, or remove it and run `monoquant lock`."))
    };
    let text = regular::read_text(path, limit::REPORT).map_err(|error| unreadable(error.to_string()))?;
    let lock: Lock = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    match lock.lock_version {
        VERSION => Ok(Some(lock)),
        other => Err(unreadable(format!("it has version {other}, and this monoquant knows {VERSION}"))),
    }
}

/// The locked entry of a recipe.
///
/// # Errors
/// If there is none, or the lock cannot be read.
pub fn entry(recipe: &Path) -> Result<Entry, Failure> {
    let (path, key) = (path_of(recipe), key_of(recipe));
    read(&path)?.and_then(|mut lock| lock.recipes.remove(&key)).ok_or_else(|| {
        let message = format!("{} has no entry for `{key}`", path.display());
        let help = format!("Write it with `monoquant lock {}`, and commit it.", recipe.display());
        Failure::new(Exit::BadRecipe, Finding::error(code::MISSING, message).help(help))
    })
}

/// Makes the entry of a recipe from its outputs, after their files and those of the source were read and found to be what the
/// report says.
///
/// # Errors
/// If there are no outputs, they are not those of the recipe and the source, or something cannot be read.
pub fn locked(plan: &Plan, cancel: &Cancel) -> Result<Entry, Failure> {
    let stale = |message: String| {
        let finding = Finding::error(code::STALE, message);
        Failure::new(Exit::BadRecipe, finding.help("Run the recipe first: a lock says what a run has made."))
    };
    let mut report = None;
    for export in &plan.exports {
        if !exclusive::is_there(&export.path) {
            return Err(stale(format!("there is no output at {}", plan.told_path(&export.path))));
        }
        report = Some(verify::verify(&export.path)?.report);
    }
    let Some(report) = report else { return Err(stale("the recipe has no output".to_owned())) };
    if report.monoquant != env!("CARGO_PKG_VERSION") || report.recipe != plan.loaded.written_recipe()? {
        return Err(stale("the output is of another recipe or version".to_owned()));
    }
    let is_hashed = plan.asks_for_hashes();
    let mut source = Vec::new();
    for shard in &plan.model.shards {
        cancel.check()?;
        let unreadable = |error: std::io::Error| {
            let message = format!("cannot read {}: {error}", plan.model.source.place(&shard.name));
            Failure::new(Exit::BadModel, Finding::error("model::io", message))
        };
        let blob = plan.model.source.open(&shard.name).map_err(unreadable)?;
        source
            .push(verify::identify(&shard.name, Reader::new(&*blob), is_hashed, cancel).map_err(unreadable)?);
    }
    cancel.check()?;
    if source != report.source {
        return Err(stale("the output is of another source".to_owned()));
    }
    Ok(Entry::of(&report, revision(plan)))
}

/// Writes an entry into the lock beside its recipe, whose other entries stay.
///
/// # Errors
/// If the lock cannot be read or written.
pub fn write(recipe: &Path, entry: Entry) -> Result<PathBuf, Failure> {
    let path = path_of(recipe);
    let empty = || Lock { lock_version: VERSION, recipes: BTreeMap::new() };
    let mut lock = read(&path)?.unwrap_or_else(empty);
    lock.recipes.insert(key_of(recipe), entry);
    let mut text = serde_json::to_string_pretty(&lock).unwrap_or_default();
    text.push('\n');
    files::replace(&path, &hidden::new(&path), |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}
