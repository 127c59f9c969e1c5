//! Selection of the weight files that are the model: the files that `include` names, or those of the index, or those
//! with the names that tools look for, or the only ones there are. Never all weight files in the folder: two copies
//! read as one model would be neither.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;

use super::OtherFile;
use super::complaints::{be, pointer, shown};
use super::files::{INDEX_END, Listing, is_pointer};
use super::names::{self, USUAL};
use crate::finding::Finding;
use crate::format::source::{Reader, Source, cannot_read};
use crate::fs::regular::{self, limit};
use crate::layer::file_glob::FileGlob;
use crate::model::code;
use crate::model::config::Config;
use crate::model::header::{self, Header};
use crate::model::index::Index;

/// The weight files to read.
#[derive(Default)]
pub(super) struct Choice {
    /// The files, ordered by name.
    pub(super) files: Vec<OtherFile>,
    /// The index that they were chosen by, or that speaks of all of them.
    pub(super) index: Option<Index>,
}

/// The name of a weight file without its extension. None for a file in a folder below, or of another type.
pub(super) fn stem(path: &str) -> Option<&str> {
    path.strip_suffix(".safetensors").filter(|stem| !stem.contains('/'))
}

/// Chooses the weight files of a folder.
pub(super) fn choose(
    source: &dyn Source,
    listing: &Listing,
    config: &Config,
    [include, exclude]: [&[&str]; 2],
    findings: &mut Vec<Finding>,
) -> Choice {
    let (Some(included), Some(excluded)) = (globs(include, findings), globs(exclude, findings)) else {
        return Choice::default();
    };
    let weights: Vec<&OtherFile> =
        listing.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
    complain_of_unmatched(&weights, [&included, &excluded], findings);
    if include.is_empty() {
        let candidates: Vec<&OtherFile> =
            weights.iter().copied().filter(|file| !is_match(&excluded, &file.path)).collect();
        return match chosen_index(source, listing, &candidates, findings) {
            Indexed::By(index) => by_index(listing, config, index, &excluded, findings),
            Indexed::Unclear => Choice::default(),
            Indexed::No => Choice { files: by_name(source, &candidates, findings), index: None },
        };
    }
    let is_wanted = |file: &&&OtherFile| is_match(&included, &file.path) && !is_match(&excluded, &file.path);
    let files: Vec<OtherFile> = weights.iter().filter(is_wanted).map(|file| (*file).clone()).collect();
    // An index that speaks of other files says nothing of these, be it right or wrong.
    let speaks_of_all = |index: &Index| {
        let named = index.files();
        files.iter().all(|file| named.binary_search(&file.path.as_str()).is_ok())
    };
    let readable = indices(listing).into_iter().filter_map(|file| read_index(source, file).ok());
    Choice { index: readable.filter(speaks_of_all).min_by_key(|index| rank(&index.file)), files }
}

/// The indices of safetensors at the top of a folder.
fn indices(listing: &Listing) -> Vec<&OtherFile> {
    let is_index = |file: &&OtherFile| file.path.ends_with(INDEX_END) && !file.path.contains('/');
    listing.files.iter().filter(is_index).collect()
}

fn index_stem(path: &str) -> &str {
    path.strip_suffix(INDEX_END).unwrap_or(path)
}

/// The usual names first, then others, then those of second copies.
fn rank(index: &str) -> usize {
    let stem = index_stem(index);
    match USUAL.iter().position(|usual| *usual == stem) {
        Some(position) => position,
        None if names::is_consolidated(stem) || names::is_variant(stem) => USUAL.len() + 1,
        None => USUAL.len(),
    }
}

pub(super) fn read_index(source: &dyn Source, file: &OtherFile) -> Result<Index, Vec<Finding>> {
    if is_pointer(source, file) {
        return Err(vec![pointer(&file.path)]);
    }
    let failed = |e| vec![cannot_read(&source.place(&file.path), &e)];
    let blob = source.open(&file.path).map_err(failed)?;
    regular::check_length(blob.bytes(), limit::INDEX).map_err(failed)?;
    let index = Index::read(Reader::new(&*blob).take(limit::INDEX), &file.path)?;
    if index.is_empty() {
        return Err(vec![Finding::error(code::INDEX, format!("`{}` names no tensor", file.path)).help(
            "Get it again, or delete it: then the names of the files say which of them are the model.",
        )]);
    }
    Ok(index)
}

enum Indexed {
    /// This one says which files are the model.
    By(Index),
    /// There is none.
    No,
    /// There are several, or it cannot be read.
    Unclear,
}

/// The index that counts.
fn chosen_index(
    source: &dyn Source,
    listing: &Listing,
    candidates: &[&OtherFile],
    findings: &mut Vec<Finding>,
) -> Indexed {
    let mut all = indices(listing);
    if let Some(best) = all.iter().map(|file| rank(&file.path).min(USUAL.len())).min() {
        let is_usual = |rank: usize| rank < USUAL.len();
        all.retain(|file| is_usual(rank(&file.path)) == is_usual(best));
    }
    if all.len() > 1 && all.iter().any(|file| rank(&file.path) == USUAL.len()) {
        all.retain(|file| rank(&file.path) <= USUAL.len());
    }
    let is_usual = all.iter().any(|file| rank(&file.path) < USUAL.len());
    let has_usual_files = candidates.iter().any(|file| is_usual_file(&file.path));
    match all[..] {
        [] => Indexed::No,
        [only] => match read_index(source, only) {
            // One of another name counts beside files of the usual names only if it speaks of them.
            Ok(index) if !is_usual && has_usual_files && !index.files().iter().any(|f| is_usual_file(f)) => {
                Indexed::No
            }
            Ok(index) => Indexed::By(index),
            Err(_) if !is_usual && has_usual_files => Indexed::No,
            Err(found) => {
                findings.extend(found);
                Indexed::Unclear
            }
        },
        _ if !is_usual && has_usual_files => Indexed::No,
        _ => {
            let names: Vec<&str> = all.iter().map(|file| file.path.as_str()).collect();
            let files = read_index(source, all[0]).ok().map_or_else(String::new, |index| {
                let files: Vec<String> = index.files().iter().map(|file| format!("\"{file}\"")).collect();
                format!(", such as `include: [{}]`", files.join(", "))
            });
            findings.push(
                Finding::error(code::UNCLEAR, format!("the folder holds several indices: {}", shown(&names))).help(
                    format!("Say with `include` of `load` which weight files are the model{files}, or move the others away."),
                ),
            );
            Indexed::Unclear
        }
    }
}

/// Whether a file has a name that tools look for.
fn is_usual_file(path: &str) -> bool {
    stem(path).is_some_and(|stem| {
        USUAL.contains(&stem) || names::part(stem).is_some_and(|part| USUAL.contains(&part.stem.as_str()))
    })
}

/// The files that the index names.
fn by_index(
    listing: &Listing,
    config: &Config,
    index: Index,
    excluded: &[FileGlob],
    findings: &mut Vec<Finding>,
) -> Choice {
    let named: Vec<&str> = index.files().into_iter().filter(|file| !is_match(excluded, file)).collect();
    let files: Vec<OtherFile> = listing
        .files
        .iter()
        .filter(|file| named.binary_search(&file.path.as_str()).is_ok())
        .cloned()
        .collect();
    // A file that holds only a head tied to the embedding is not needed.
    let mut missing: BTreeSet<&str> = BTreeSet::new();
    let there: HashSet<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    for (tensor, file) in index.iter() {
        let is_wanted = || named.binary_search(&file).is_ok() && !there.contains(file);
        if !missing.contains(file) && is_wanted() && !super::checks::may_be_tied(tensor, config) {
            missing.insert(file);
        }
    }
    // Of what is there and no file it was said already.
    let missing = missing.into_iter().filter(|file| !listing.refused.contains(*file));
    let (folders, missing): (Vec<&str>, Vec<&str>) =
        missing.partition(|file| listing.folders.iter().any(|folder| folder == file));
    for folder in folders {
        let finding = Finding::error(code::NOT_A_MODEL, format!("`{folder}` is a folder, not a file"));
        findings.push(finding.help("Put the file itself there."));
    }
    if !missing.is_empty() {
        let mut help = "The download is not complete; run `hf download` again.".to_owned();
        let others: Vec<&str> = listing
            .files
            .iter()
            .map(|file| file.path.as_str())
            .filter(|path| stem(path).is_some() && named.binary_search(path).is_err())
            .collect();
        if files.is_empty()
            && let Some(first) = others.first()
        {
            help = format!(
                "{help} If {} the model, say so: `include: [\"{first}\"]` in `load`; or delete the index.",
                be(&others)
            );
        }
        let message = format!("{} named by `{}` and not there", be(&missing), index.file);
        findings.push(Finding::error(code::INDEX, message).help(help));
    }
    Choice { files, index: Some(index) }
}

/// A single weight file, or the files of a set.
struct Unit<'a> {
    stem: String,
    /// Number of files in the set. None for a single file.
    total: Option<u64>,
    files: Vec<(u64, &'a OtherFile)>,
}

impl Unit<'_> {
    fn is_usual(&self) -> bool {
        USUAL.contains(&self.stem.as_str())
    }

    /// The numbers of the files that are missing. Most sets count from 1, some from 0.
    fn missing(&self) -> Vec<u64> {
        let Some(total) = self.total else { return Vec::new() };
        let has = |number: u64| self.files.iter().any(|(known, _)| *known == number);
        let first = u64::from(!has(0));
        // More than are shown need not be found.
        (first..first.saturating_add(total)).filter(|number| !has(*number)).take(1000).collect()
    }

    fn glob(&self) -> String {
        match &self.files[..] {
            [(_, only)] => only.path.clone(),
            files => {
                let first = &files[0].1.path;
                let (name, _) = first.split_once("-of-").unwrap_or((first, ""));
                let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
                let end = first.rfind("-of-").map_or("", |at| &first[at..]);
                format!("{name}*{end}")
            }
        }
    }
}

fn units<'a>(candidates: &[&'a OtherFile]) -> Vec<Unit<'a>> {
    let mut units: BTreeMap<(String, Option<u64>), Unit<'a>> = BTreeMap::new();
    for &file in candidates {
        let Some(stem) = stem(&file.path) else { continue };
        let (stem, total, number) = match names::part(stem) {
            Some(part) => (part.stem, Some(part.total), part.number),
            None => (stem.to_owned(), None, 0),
        };
        let new = || Unit { stem: stem.clone(), total, files: Vec::new() };
        units.entry((stem.clone(), total)).or_insert_with(new).files.push((number, file));
    }
    units.into_values().collect()
}

/// The files that are the model by their names, if no index names them.
fn by_name(source: &dyn Source, candidates: &[&OtherFile], findings: &mut Vec<Finding>) -> Vec<OtherFile> {
    let mut units = units(candidates);
    units.retain(|unit| !names::is_training(&unit.stem));
    let are_adapters = |unit: &Unit<'_>| unit.files.iter().all(|(_, file)| is_adapter(source, file));
    if units.len() > 1 && units.iter().any(|unit| !are_adapters(unit)) {
        units.retain(|unit| !are_adapters(unit));
    }
    // The usual names first, then any other, then those of second copies.
    let is_second = |unit: &Unit<'_>| names::is_consolidated(&unit.stem) || names::is_variant(&unit.stem);
    if units.iter().any(Unit::is_usual) {
        units.retain(Unit::is_usual);
    } else if units.iter().any(|unit| !is_second(unit)) {
        units.retain(|unit| !is_second(unit));
    }
    // Of one name a whole file comes before a set, and a complete set before what is left of another.
    for usual in USUAL {
        let of_name = |unit: &Unit<'_>| unit.stem == usual;
        if units.iter().any(|unit| of_name(unit) && unit.total.is_none()) {
            units.retain(|unit| !of_name(unit) || unit.total.is_none());
        }
    }
    if units.len() > 1 && units.iter().any(|unit| unit.missing().is_empty()) {
        units.retain(|unit| unit.missing().is_empty());
    }
    match &units[..] {
        [] => Vec::new(),
        [only] => {
            let missing = only.missing();
            if !missing.is_empty() {
                findings.push(incomplete(only, &missing));
                return Vec::new();
            }
            let mut files: Vec<OtherFile> = only.files.iter().map(|(_, file)| (*file).clone()).collect();
            files.sort_by(|a, b| a.path.cmp(&b.path));
            files
        }
        several => {
            let globs: Vec<String> = several.iter().map(Unit::glob).collect();
            let shown_globs: Vec<&str> = globs.iter().map(String::as_str).collect();
            findings.push(
                Finding::error(
                    code::UNCLEAR,
                    format!("the folder holds several weight files, and no index says which of them are the model: {}", shown(&shown_globs)),
                )
                .help(format!(
                    "Say it with `include` of `load`: `include: [\"{}\"]` reads one, `include: [\"*.safetensors\"]` reads all of them \
                     as parts of one model.",
                    globs[0]
                )),
            );
            Vec::new()
        }
    }
}

fn incomplete(set: &Unit<'_>, missing: &[u64]) -> Finding {
    let total = set.total.unwrap_or(0);
    let example = &set.files[0].1.path;
    // As many digits as the others have.
    let (before, after) = example.split_once("-of-").unwrap_or((example, ""));
    let name = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let width = before.len() - name.len();
    let names: Vec<String> =
        missing.iter().map(|number| format!("{name}{number:0width$}-of-{after}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let message = format!(
        "{} missing: the folder holds {} of {total} files of `{}`",
        be(&names),
        set.files.len(),
        set.stem
    );
    Finding::error(code::INDEX, message).help("The download is not complete; run `hf download` again.")
}

/// Whether a file holds nothing but an adapter, by the names of its tensors. A file that cannot be read is judged
/// later.
pub(super) fn is_adapter(source: &dyn Source, file: &OtherFile) -> bool {
    let header = header_of(source, file);
    header.is_some_and(|header| names::are_adapter(header.tensors().map(|tensor| tensor.name)))
}

/// The header of a weight file. None if it cannot be read.
pub(super) fn header_of(source: &dyn Source, file: &OtherFile) -> Option<Header> {
    let blob = source.open(&file.path).ok()?;
    header::read(Reader::new(&*blob), file.len, &file.path).ok()
}

fn complain_of_unmatched(
    weights: &[&OtherFile],
    [include, exclude]: [&[FileGlob]; 2],
    findings: &mut Vec<Finding>,
) {
    let names: Vec<&str> = weights.iter().map(|file| file.path.as_str()).collect();
    let help = || format!("The weight files are {}.", shown(&names));
    for glob in unmatched(include, &names) {
        let message = format!("`{glob}` of `include` matches no weight file");
        findings.push(Finding::error(code::FILTER, message).help(help()));
    }
    for glob in unmatched(exclude, &names) {
        let message = format!("`{glob}` of `exclude` matches no weight file");
        findings.push(Finding::warning(code::FILTER, message).help(help()));
    }
}

/// Those of the globs that match no name.
fn unmatched<'a>(globs: &'a [FileGlob], names: &[&str]) -> impl Iterator<Item = &'a str> {
    globs.iter().filter(|glob| !names.iter().any(|name| glob.matches(name))).map(FileGlob::as_str)
}

fn is_match(globs: &[FileGlob], path: &str) -> bool {
    globs.iter().any(|glob| glob.matches(path))
}

/// The globs that some texts are; none if one of them is not one.
fn globs(patterns: &[&str], findings: &mut Vec<Finding>) -> Option<Vec<FileGlob>> {
    let mut out = Vec::new();
    for pattern in patterns {
        match FileGlob::parse(pattern) {
            Ok(glob) => out.push(glob),
            Err(error) => {
                findings.push(Finding::error(code::FILTER, format!("`{pattern}` is no glob: {error}")))
            }
        }
    }
    (out.len() == patterns.len()).then_some(out)
}
