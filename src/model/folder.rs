//! Opened model folders: every header read and checked, the index compared with the files, all problems reported at
//! once.

use std::sync::Arc;

use super::code;
use super::config::Config;
use super::header::{self, Header};
use super::name_index::NameIndex;
use super::quantized;
use super::tensor::{Shard, TensorInfo};
use crate::finding::{Failure, Finding, Severity};
use crate::format::source::{Blob, Dangling, Reader, Source, cannot_read, failure};
use crate::fs::regular::limit;
use crate::ids::{IdVec, ShardId, TensorId};
use crate::threads;

use checks::{Held, check_copies, check_duplicates, check_index};
use complaints::{adapter, broken_link, no_config, not_safetensors, pointer};
use elsewhere::no_weights;
use files::{Listing, is_pointer};
use weights::Choice;

#[cfg(feature = "cli")]
pub(crate) mod arriving;
mod checks;
mod complaints;
mod elsewhere;
mod files;
mod names;
mod others;
mod weights;
mod wrappers;

/// A model, as its headers describe it.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// The place that it is read from.
    pub source: Arc<dyn Source>,
    /// Whether one file was named instead of a folder.
    pub is_single_file: bool,
    /// The weight files, ordered by name.
    pub shards: IdVec<ShardId, Shard>,
    /// All tensors, ordered by shard, then by offset.
    pub tensors: IdVec<TensorId, TensorInfo>,
    /// `config.json`, or an empty one.
    pub config: Config,
    /// The file name of the index, if there is one.
    pub index: Option<String>,
    /// Every other file of the folder but `config.json` and the index, ordered by name. None for a single
    /// file.
    pub others: Vec<OtherFile>,
    /// Warnings about doubtful contents.
    pub warnings: Vec<Finding>,
    names: NameIndex,
}

/// A file without weights that were read. If its path ends with `/`, it is a folder from which nothing was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherFile {
    /// The path relative to the folder, with `/`.
    pub path: String,
    /// Bytes; of a hidden file or folder they are not counted.
    pub len: u64,
    /// How an export treats it.
    pub fate: Fate,
}

/// The fate of a file without weights that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It belongs to the model and is carried over as it is.
    Carried,
    /// It stays behind, for this reason.
    Left(String),
    /// It belongs to the model and cannot be carried over.
    Broken {
        /// The problem, behind the name.
        what: String,
        /// How to solve it, in full sentences.
        help: String,
    },
}

impl ModelFolder {
    /// Puts a folder together from its parts; `tensors` must be ordered by shard, then offset.
    #[cfg(test)]
    pub(super) fn from_parts(
        source: Arc<dyn Source>,
        shards: Vec<Shard>,
        tensors: Vec<TensorInfo>,
        config: Config,
    ) -> Self {
        let (shards, tensors) = (shards.into(), tensors.into());
        let names = NameIndex::of(&tensors);
        let (index, others, warnings) = (None, Vec::new(), Vec::new());
        Self { source, is_single_file: false, shards, tensors, config, index, others, warnings, names }
    }

    /// The number of the tensor with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.names.find(&self.tensors, name)
    }

    /// The tensor with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|i| &self.tensors[i])
    }

    /// The tensors whose bytes say the weights of a tensor: itself, and its other parts if an encoding stores it.
    pub fn parts_of(&self, tensor: TensorId) -> impl Iterator<Item = TensorId> {
        std::iter::once(tensor).chain(self.tensors[tensor].parts().iter().copied())
    }

    /// The tensor of a module with this last part, such as its `bias`.
    #[must_use]
    pub fn parameter_of(&self, module: &str, parameter: &str) -> Option<&TensorInfo> {
        if module.is_empty() {
            return self.by_name(parameter);
        }
        // Without putting the name together: this is asked for every tensor.
        let found = self.names.find_where(&self.tensors, |known| {
            let wanted = module.bytes().chain([b'.']).chain(parameter.bytes());
            known.bytes().cmp(wanted)
        });
        found.map(|i| &self.tensors[i])
    }

    /// Opens one of the other files.
    ///
    /// # Errors
    /// If it cannot be opened, or is no longer a file in a place where the model's files may lie.
    pub fn open_other(&self, path: &str) -> Result<Box<dyn Blob>, Failure> {
        self.source.open(path).map_err(|e| failure(vec![cannot_read(&self.source.place(path), &e)]))
    }

    /// Bytes of all tensors in the files.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }
}

/// Opens the model of a source. `include` and `exclude` are globs over file names relative to the folder; with no
/// `include` the index says which files are the model, or else their names. Reads headers, index and `config.json`,
/// no weight.
///
/// # Errors
/// Everything that is wrong, together.
pub fn open(source: Arc<dyn Source>, include: &[&str], exclude: &[&str]) -> Result<ModelFolder, Failure> {
    read(source, None, include, exclude, true)
}

/// As [`open`], for looking only: a model that is already quantized is none to quantize, but can be shown.
///
/// # Errors
/// As [`open`].
pub fn look(source: Arc<dyn Source>) -> Result<ModelFolder, Failure> {
    read(source, None, &[], &[], false)
}

/// As [`look`], at a model whose `config.json` is this one: an output may not have its own yet.
///
/// # Errors
/// As [`open`].
pub fn look_with(source: Arc<dyn Source>, config: Config) -> Result<ModelFolder, Failure> {
    read(source, Some(config), &[], &[], false)
}

fn read(
    shared: Arc<dyn Source>,
    config: Option<Config>,
    include: &[&str],
    exclude: &[&str],
    refuses_quantized: bool,
) -> Result<ModelFolder, Failure> {
    let source = &*shared;
    let is_single_file = source.single().is_some();
    let mut findings = Vec::new();
    if let Some(name) = source.single() {
        let unreadable = || source.open(name).err().map(|e| cannot_read(&source.name(), &e));
        if let Some(finding) = not_safetensors(name).or_else(unreadable) {
            return Err(failure(vec![finding]));
        }
    }
    let listing = Listing::of(source, &mut findings);
    if !is_single_file
        && include.is_empty()
        && let Some(finding) = elsewhere::pipeline(source, &listing)
    {
        return Err(failure(vec![finding]));
    }
    let config = config.unwrap_or_else(|| read_config(source, &listing, &mut findings));
    let Choice { files: chosen, index } = if is_single_file {
        Choice { files: listing.files.clone(), index: None }
    } else {
        weights::choose(source, &listing, &config, [include, exclude], &mut findings)
    };
    if chosen.is_empty() {
        if !findings.iter().any(Finding::is_error) {
            findings.push(no_weights(source, &listing));
        }
        return Err(failure(findings));
    }
    let (shards, mut tensors) = read_headers(source, &chosen, &mut findings);
    let mut names = NameIndex::of(&tensors);
    let held = Held { shards: &shards, tensors: &tensors, names: &names };
    check_duplicates(&held, &mut findings);
    if !include.is_empty() {
        check_copies(&shards, &tensors, &mut findings);
    }
    // Of the index only its name is needed from here on: it is as long as all headers.
    let index = index.map(|index| {
        check_index(&index, &config, &held, &mut findings);
        index.file
    });
    if !findings.iter().any(Finding::is_error) {
        if tensors.is_empty() {
            let message = format!("`{}` holds no tensor", source.name());
            findings.push(Finding::error(code::NOT_A_MODEL, message));
        } else if names::are_adapter(tensors.iter().map(|tensor| tensor.name.as_str())) {
            findings.push(adapter(&chosen));
        } else if wrappers::take_out(&mut tensors, &mut findings) {
            names = NameIndex::of(&tensors);
            check_duplicates(&Held { shards: &shards, tensors: &tensors, names: &names }, &mut findings);
        }
    }
    let separate = quantized::separate_declaration(source, &tensors);
    let model = quantized::Stored {
        source,
        config: &config,
        declaration: config.quantization_config().or(separate.as_ref()),
        shards: &shards,
        tensors: &tensors,
        names: &names,
    };
    let (matrices, refused) = quantized::recognize(&model, findings.iter().any(Finding::is_error));
    // Whoever only looks is told what is not known.
    let told = |finding| {
        if refuses_quantized { finding } else { Finding { severity: Severity::Warning, ..finding } }
    };
    findings.extend(refused.into_iter().map(told));
    if quantized::decode(matrices, &mut tensors) {
        names = NameIndex::of(&tensors);
        check_duplicates(&Held { shards: &shards, tensors: &tensors, names: &names }, &mut findings);
    }
    if findings.iter().any(Finding::is_error) {
        return Err(failure(findings));
    }
    if refuses_quantized {
        findings.extend(quantized::left_parts(&tensors));
    }
    let used = |path: &str| {
        path == "config.json" || index.as_deref() == Some(path) || chosen.iter().any(|c| c.path == path)
    };
    let others = if is_single_file {
        Vec::new()
    } else {
        let model = others::Model {
            tensors: &tensors,
            names: &names,
            index: index.as_deref(),
            is_included: !include.is_empty() || !exclude.is_empty(),
        };
        others::judge(source, listing, used, &model, &mut findings)
    };
    Ok(ModelFolder {
        source: shared,
        is_single_file,
        shards,
        tensors,
        config,
        index,
        others,
        warnings: findings,
        names,
    })
}

/// The configuration. If there is none to read, an empty one and a finding.
fn read_config(source: &dyn Source, listing: &Listing, findings: &mut Vec<Finding>) -> Config {
    let mut listed = listing.files.iter().filter(|file| file.path == "config.json");
    let config = match source.read("config.json", limit::CONFIG) {
        Ok(_) if listed.any(|file| is_pointer(source, file)) => Err(pointer("config.json")),
        Ok(text) => Config::parse(&text),
        Err(_) if listing.refused.contains("config.json") => return Config::default(),
        Err(e) if Dangling::is(&e) => Err(broken_link(source, "config.json", &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(no_config(source.single().is_some())),
        Err(e) => Err(cannot_read(&source.place("config.json"), &e)),
    };
    config.unwrap_or_else(|finding| {
        findings.push(finding);
        Config::default()
    })
}

/// Reads all headers in parallel. The result does not depend on the order in which they finish.
fn read_headers(
    source: &dyn Source,
    chosen: &[OtherFile],
    findings: &mut Vec<Finding>,
) -> (IdVec<ShardId, Shard>, IdVec<TensorId, TensorInfo>) {
    let read = |file: &OtherFile| read_shard(source, &file.path);
    let read: Vec<Result<(Shard, Header), Vec<Finding>>> =
        if source.is_remote() { threads::map_waiting(chosen, read) } else { threads::map_each(chosen, read) };
    let (mut shards, mut tensors) = (IdVec::new(), Vec::new());
    for result in read {
        match result {
            Ok((shard, header)) => {
                let number = shards.push(shard);
                // By the length of the list, which would else grow to twice what is needed.
                tensors.reserve_exact(header.tensors().len());
                tensors.extend(header.tensors().map(|t| TensorInfo {
                    name: t.name,
                    stored: t.dtype,
                    dtype: t.dtype,
                    shape: t.shape,
                    shard: number,
                    offset: t.offset,
                    bytes: t.bytes,
                    encoded: None,
                    part_of: None,
                }));
            }
            Err(found) => findings.extend(found),
        }
    }
    (shards, tensors.into())
}

fn read_shard(source: &dyn Source, name: &str) -> Result<(Shard, Header), Vec<Finding>> {
    let blob = source.open(name).map_err(|e| vec![cannot_read(&source.place(name), &e)])?;
    let mut header = header::read(Reader::new(&*blob), blob.bytes(), name)?;
    let metadata = std::mem::take(&mut header.metadata);
    let (len, data_start, identity) = (blob.bytes(), header.data_start, blob.identity().clone());
    Ok((Shard { name: name.to_owned(), len, data_start, metadata, identity }, header))
}

#[cfg(test)]
mod choice_tests;
#[cfg(test)]
mod tests;
