//! Verification of an output at a place in an object store.

use std::path::Path;

use super::{Verified, contradictions, damaged, identify};
use crate::cancel::Cancel;
use crate::finding::Failure;
use crate::format::source::{self, Kind, Reader, Source};
use crate::fs::regular::limit;
use crate::report::{self, FileRecord, OutputRecord};
use crate::run::sums;

/// Checks an output against the report beside it, as [`super::verify`] does. The report lists every output of its run: that
/// of the place is the one whose files are there.
///
/// # Errors
/// As those of that function, and if the store cannot be reached.
pub(super) fn verify(word: &str) -> Result<Verified, Failure> {
    let source = source::open(word, Path::new("."), &[])?;
    let place = source.place(report::FILE_NAME);
    let bytes = source.read(report::FILE_NAME, limit::REPORT);
    let bytes = bytes.map_err(|error| source::failure(vec![source::cannot_read(&place, &error)]))?;
    let report = report::parse(Path::new(&place), &bytes)?;
    let mut told = vec!["the report lists no weight files: nothing can be checked".to_owned()];
    for output in report.outputs.iter().filter(|output| !output.files.is_empty()) {
        let mut damages = damages(&*source, output)?;
        if damages.is_empty() {
            damages = contradictions(&bytes, &report, output);
            return if damages.is_empty() {
                Ok(sorted(&*source, output, &report))
            } else {
                Err(damaged(damages))
            };
        }
        told = damages;
    }
    Err(damaged(told))
}

/// Every file of an output that is not there as it was written. A store that does not answer is no damage.
fn damages(source: &dyn Source, output: &OutputRecord) -> Result<Vec<String>, Failure> {
    let cancel = Cancel::default();
    let mut out = Vec::new();
    for file in output.files.iter().chain(&output.others) {
        let name = &file.name;
        let unreadable = |error| source::failure(vec![source::cannot_read(&source.place(name), &error)]);
        let blob = match source.open(name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                out.push(format!("{name} cannot be read: it is not there"));
                continue;
            }
            opened => opened.map_err(unreadable)?,
        };
        if blob.bytes() != file.bytes {
            out.push(format!("{name} has {} bytes and not {}", blob.bytes(), file.bytes));
            continue;
        }
        let found =
            identify(name, Reader::new(&*blob), file.blake3.is_some(), &cancel).map_err(unreadable)?;
        if found != *file {
            out.push(format!("{name} has other bytes than were written"));
        }
    }
    if let Some(name) = &output.sums {
        let unreadable = |error| source::failure(vec![source::cannot_read(&source.place(name), &error)]);
        let mut text = String::new();
        let mut names = names(source);
        names.retain(|other| other != name);
        names.sort_unstable();
        for name in names {
            let blob = source.open(&name).map_err(unreadable)?;
            let hash = sums::hash_of(Reader::new(&*blob), &cancel).map_err(unreadable)?;
            text.push_str(&sums::line(&hash, &name));
        }
        if source.read(name, limit::REPORT).map_err(unreadable)? != text.as_bytes() {
            out.push(format!("{name} does not have the hashes of the files"));
        }
    }
    Ok(out)
}

fn names(source: &dyn Source) -> Vec<String> {
    let entries = source.list().into_iter();
    entries.filter(|entry| matches!(entry.kind, Kind::Blob(_))).map(|entry| entry.path).collect()
}

/// Tells what was checked, and what was not.
fn sorted(source: &dyn Source, output: &OutputRecord, report: &report::Report) -> Verified {
    let of = |files: &[FileRecord]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    let weights = of(&output.files);
    let (carried, made): (Vec<_>, Vec<_>) =
        of(&output.others).into_iter().partition(|name| output.copied.contains(name));
    let mut unchecked = names(source);
    unchecked.retain(|name| {
        let mut known = weights.iter().chain(&carried).chain(&made).chain(&output.sums);
        name != report::FILE_NAME && !known.any(|known| known == name)
    });
    Verified { report: report.clone(), weights, carried, made, unchecked }
}
