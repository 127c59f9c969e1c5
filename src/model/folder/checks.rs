//! Consistency checks between several headers and the index.

use std::collections::{BTreeMap, BTreeSet};

use super::complaints::{MAX_NAMES, be};
use crate::finding::Finding;
use crate::ids::{IdVec, ShardId, TensorId};
use crate::model::code;
use crate::model::config::Config;
use crate::model::index::Index;
use crate::model::name_index::NameIndex;
use crate::model::tensor::{Shard, TensorInfo};

/// What the files hold, by their headers.
pub(super) struct Held<'a> {
    pub(super) shards: &'a IdVec<ShardId, Shard>,
    pub(super) tensors: &'a IdVec<TensorId, TensorInfo>,
    pub(super) names: &'a NameIndex,
}

/// Checks for a tensor in two files: it cannot be decided which of them counts.
pub(super) fn check_duplicates(held: &Held<'_>, findings: &mut Vec<Finding>) {
    let Held { shards, tensors, names } = *held;
    let twice: Vec<[&TensorInfo; 2]> = names.duplicates(tensors).collect();
    for [a, b] in twice.iter().take(MAX_NAMES) {
        let (first, second) = (&shards[a.shard].name, &shards[b.shard].name);
        findings.push(
            Finding::error(code::DUPLICATE, format!("`{}` is in `{first}` and in `{second}`", a.name))
                .help("Leave one of the files out with `exclude`."),
        );
    }
    if twice.len() > MAX_NAMES {
        let message = format!("and {} more tensors are in two files", twice.len() - MAX_NAMES);
        findings.push(Finding::error(code::DUPLICATE, message));
    }
}

/// Compares what the index says with what the files hold.
pub(super) fn check_index(index: &Index, config: &Config, held: &Held<'_>, findings: &mut Vec<Finding>) {
    let Held { shards, tensors, names } = *held;
    let number =
        |file: &str| shards.binary_search_by(|shard| shard.name.as_str().cmp(file)).ok().map(ShardId::new);
    let (mut absent, mut elsewhere) = (Vec::new(), Vec::new());
    for (tensor, file) in index.iter() {
        // The tensors of a file that is left out, missing or damaged are unknown.
        let Some(shard) = number(file) else { continue };
        match names.find(tensors, tensor) {
            None if may_be_tied(tensor, config) => {}
            None => absent.push(tensor),
            Some(i) if tensors[i].shard != shard => elsewhere.push((tensor, file, i)),
            Some(_) => {}
        }
    }
    // A file that the index does not name at all has its own finding.
    let files = index.files();
    let is_named = shards.map(|shard| files.binary_search(&shard.name.as_str()).is_ok());
    let mut unnamed: IdVec<ShardId, Vec<&str>> = shards.map(|_| Vec::new());
    for tensor in tensors {
        if is_named[tensor.shard] && !index.names(&tensor.name) {
            unnamed[tensor.shard].push(&tensor.name);
        }
    }
    let file = &index.file;
    let mut complain = |message: String| {
        let help = "Index and files are of different versions of the model; get both again.";
        findings.push(Finding::error(code::INDEX, message).help(help));
    };
    if !absent.is_empty() {
        complain(format!("{} in `{file}` and not in the weight file that it names", be(&absent)));
    }
    let unnamed: Vec<_> = shards.iter().zip(&unnamed).filter(|(_, names)| !names.is_empty()).collect();
    for (shard, names) in unnamed.iter().take(MAX_NAMES) {
        complain(format!("{} in `{}` and not in `{file}`", be(names), shard.name));
    }
    if unnamed.len() > MAX_NAMES {
        let more = unnamed.len() - MAX_NAMES;
        complain(format!("and {more} more files hold tensors that are not in `{file}`"));
    }
    if let Some((tensor, named, i)) = elsewhere.first() {
        let (holder, count) = (&shards[tensors[*i].shard].name, elsewhere.len());
        complain(format!(
            "`{tensor}` is in `{holder}`, where `{file}` says `{named}` (tensors misplaced: {count})"
        ));
    }
}

/// Whether a tensor may be absent because the model's config ties it to the token table: the output head, and the
/// tables of an encoder and a decoder that share one.
pub(super) fn may_be_tied(tensor: &str, config: &Config) -> bool {
    const TIED: &[&str] = &["lm_head", "embed_out", "proj_out", "output", "head", "embed_tokens", "decoder"];
    let module = tensor.strip_suffix(".weight").or_else(|| tensor.strip_suffix(".bias"));
    let last = module.map(|module| module.rsplit('.').next().unwrap_or(module));
    config.tie_word_embeddings() == Some(true) && last.is_some_and(|last| TIED.contains(&last))
}

/// Tells of files that look like one model twice, by other names: as many parameters in both, and no name in both. A recipe may have
/// asked for it.
pub(super) fn check_copies(
    shards: &IdVec<ShardId, Shard>,
    tensors: &IdVec<TensorId, TensorInfo>,
    findings: &mut Vec<Finding>,
) {
    // The set that a file belongs to, or the file itself.
    let unit = |shard: &Shard| {
        let stem = shard.name.trim_end_matches(".safetensors");
        super::names::part(stem).map_or_else(|| stem.to_owned(), |part| part.stem)
    };
    let mut units: BTreeMap<String, (u64, BTreeSet<String>)> = BTreeMap::new();
    for tensor in tensors {
        let (parameters, names) = units.entry(unit(&shards[tensor.shard])).or_default();
        *parameters += tensor.shape.iter().product::<u64>();
        names.insert(numberless(&tensor.name));
    }
    let units: Vec<(String, (u64, BTreeSet<String>))> = units.into_iter().collect();
    for (position, (name, (parameters, names))) in units.iter().enumerate() {
        let is_copy = |(_, (others, theirs)): &&(String, (u64, BTreeSet<String>))| {
            others.abs_diff(*parameters) <= parameters / 1000 && names.is_disjoint(theirs)
        };
        if let Some((other, _)) = units[..position].iter().find(is_copy) {
            let message = format!("`{other}` and `{name}` look like one model twice, by other names");
            findings.push(Finding::warning(code::UNCLEAR, message).help(
                "Both are read as parts of one model, because `include` names both. Name one of them.",
            ));
        }
    }
}

/// A name with its numbers left out, so that the layers of one stack have one.
fn numberless(name: &str) -> String {
    let parts =
        name.split('.').filter(|part| part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()));
    parts.collect::<Vec<_>>().join(".")
}
