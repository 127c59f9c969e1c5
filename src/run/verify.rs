//! Verification of a written output: sizes and headers against the plan, files against the checksums of their report.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use super::sums;
use crate::cancel::Cancel;
use crate::digest::checksum;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{Entry, Folder};
use crate::fs::paths;
use crate::fs::regular::{self, Same, limit};
use crate::report::{self, FileRecord, OutputRecord, Report};

mod store;

/// The files that were found to be as they were written.
#[derive(Debug)]
pub struct Verified {
    /// The report.
    pub report: Report,
    /// Names of weight files.
    pub weights: Vec<String>,
    /// Names of files that were carried over.
    pub carried: Vec<String>,
    /// Names of files that were made beside them.
    pub made: Vec<String>,
    /// Names in the folder that the report has no checksum of.
    pub unchecked: Vec<String>,
}

/// Checks an output directory, or an output at a place in an object store, against its own report: all files for which the report
/// has checksums. Nothing outside of it is read.
///
/// # Errors
/// [`Exit::OutputDamaged`] with everything that is not as it was written, or if the report lists no written files;
/// [`Exit::BadModel`] if there is no report.
pub fn verify(folder: &Path) -> Result<Verified, Failure> {
    if let Some(word) = folder.to_str().filter(|word| paths::is_store(word)) {
        return store::verify(word);
    }
    let place = folder.join(report::FILE_NAME);
    let unreadable = |error: io::Error| report::unreadable(&place, &error);
    let opened = paths::real(folder).and_then(|folder| Folder::open(&folder)).map_err(unreadable)?;
    let bytes = opened.open_file(Path::new(report::FILE_NAME), false).and_then(read_report);
    let bytes = bytes.map_err(unreadable)?;
    let report = report::parse(&place, &bytes)?;
    let listed: Vec<&OutputRecord> =
        report.outputs.iter().filter(|output| !output.files.is_empty()).collect();
    if listed.is_empty() {
        return Err(damaged(vec!["the report lists no weight files: nothing can be checked".to_owned()]));
    }
    let tree = opened.tree().map_err(unreadable)?;
    let tree: BTreeMap<&Path, &Entry> = tree.iter().map(|entry| (entry.name.as_path(), entry)).collect();
    // The report lists every output of its run, and a folder may have been moved. The right output is the one whose
    // files the folder holds. If none matches, the folder's name tells which output it should be.
    let name = name_of(folder);
    let mut told: Option<Vec<String>> = None;
    for output in listed {
        let mut damages = damages(&opened, &tree, output);
        if damages.is_empty() {
            damages.extend(contradictions(&bytes, &report, output));
            return if damages.is_empty() {
                Ok(sorted(&tree, output, &report))
            } else {
                Err(damaged(damages))
            };
        }
        let is_named = output.path.trim_end_matches('/').ends_with(&name);
        if told.is_none() || is_named {
            told = Some(damages);
        }
    }
    Err(damaged(told.unwrap_or_default()))
}

fn read_report(file: File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    regular::read_all(file, len, limit::REPORT)
}

/// Every file of an output that is not in the folder as it was written.
fn damages(folder: &Folder, tree: &BTreeMap<&Path, &Entry>, output: &OutputRecord) -> Vec<String> {
    let wrong = |file: &FileRecord| -> Option<String> {
        let (name, path) = (&file.name, Path::new(&file.name));
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Some(format!("{name} is no name of a file in the folder, and is not read"));
        }
        let Some(entry) = tree.get(path) else {
            return Some(format!("{name} cannot be read: it is not there"));
        };
        if !entry.is_file() {
            let what = entry.kind.words();
            return Some(format!("{name} cannot be read: it is {what}, and outputs have files"));
        }
        let opened = folder.open_file(path, false);
        let opened = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        let is_hashed = file.blake3.is_some();
        match opened {
            Err(error) => Some(format!("{name} cannot be read: {error}")),
            Ok((_, len)) if len != file.bytes => {
                Some(format!("{name} has {len} bytes and not {}", file.bytes))
            }
            Ok((opened, _)) => match identify(name, opened, is_hashed, &Cancel::default()) {
                Err(error) => Some(format!("{name} cannot be read: {error}")),
                Ok(found) if found != *file => Some(format!("{name} has other bytes than were written")),
                Ok(_) => None,
            },
        }
    };
    let mut out: Vec<String> = output.files.iter().chain(&output.others).filter_map(wrong).collect();
    // Reports of earlier versions have names alone.
    let is_known = |name: &&String| output.others.iter().any(|file| file.name == **name);
    if let Some(name) = &output.sums {
        let found = folder.open_file(Path::new(name), false).and_then(|file| {
            let mut same = Same::new(file);
            same.write_all(sums::text(folder, [], &Cancel::default())?.as_bytes())?;
            Ok(same.reached_end())
        });
        if !found.is_ok_and(|is_same| is_same) {
            out.push(format!("{name} does not have the hashes of the files"));
        }
    }
    let names = output.copied.iter().filter(|name| !is_known(name) && !tree.contains_key(Path::new(name)));
    out.extend(names.map(|name| format!("{name} cannot be read: it is not there")));
    out
}

/// Claims of a report that cannot be true, although all files match it.
fn contradictions(bytes: &[u8], report: &Report, output: &OutputRecord) -> Vec<String> {
    let mut out = Vec::new();
    let edited = std::str::from_utf8(bytes).map_or(Some("is not text"), |text| report::edited(text, report));
    out.extend(edited.map(|why| format!("{} {why}", report::FILE_NAME)));
    if !output.published {
        out.push("the report is of a run that did not publish this output".to_owned());
    }
    let size = report.outputs.iter().position(|other| other == output);
    let size = size.and_then(|at| report.sizes.outputs.get(at)).copied();
    let sum = output.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
    if sum != size {
        out.push("the report does not add up: its sizes are not those of its files".to_owned());
    }
    out
}

/// Tells what of a folder was checked, and what was not.
fn sorted(tree: &BTreeMap<&Path, &Entry>, output: &OutputRecord, report: &Report) -> Verified {
    let names = |files: &[FileRecord]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    let weights = names(&output.files);
    let (carried, made): (Vec<_>, Vec<_>) =
        names(&output.others).into_iter().partition(|name| output.copied.contains(name));
    let known: HashSet<&Path> = [report::FILE_NAME]
        .into_iter()
        .chain(weights.iter().chain(&carried).chain(&made).map(String::as_str))
        .chain(output.sums.as_deref())
        .map(Path::new)
        .collect();
    let others = tree.values().filter(|entry| !entry.is_folder() && !known.contains(entry.name.as_path()));
    let unchecked = others.map(|entry| entry.name.display().to_string()).collect();
    Verified { report: report.clone(), weights, carried, made, unchecked }
}

fn damaged(messages: Vec<String>) -> Failure {
    let findings = messages
        .into_iter()
        .map(|message| {
            Finding::error("output::damaged", message).help(
                "Run the recipe again with `--fresh`. If the folder must not be replaced, or is no longer one of monoquant's, \
                 move it away first.",
            )
        })
        .collect();
    Failure { exit: Exit::OutputDamaged, findings }
}

fn name_of(folder: &Path) -> String {
    let folder = paths::real(folder).unwrap_or_else(|_| folder.to_owned());
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The identity of the bytes of a file, with its hash if `is_hashed`.
///
/// # Errors
/// If they cannot be read, or reading is cancelled.
pub(super) fn identify(
    name: &str,
    mut file: impl Read,
    is_hashed: bool,
    cancel: &Cancel,
) -> io::Result<FileRecord> {
    let mut digester = Digester::new(is_hashed);
    let mut buffer = vec![0; 1 << 20];
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => digester.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(digester.of(name))
}

/// Sums over the bytes that are written to it.
pub(super) struct Digester {
    bytes: u64,
    crc: u64,
    hasher: Option<blake3::Hasher>,
}

impl Digester {
    /// With a hash if that is wanted.
    pub(super) fn new(is_hashed: bool) -> Self {
        Self { bytes: 0, crc: 0, hasher: is_hashed.then(blake3::Hasher::new) }
    }

    /// As the record of a file of a name.
    pub(super) fn of(self, name: &str) -> FileRecord {
        let blake3 = self.hasher.map(|hasher| hasher.finalize().to_hex().to_string());
        FileRecord { name: name.to_owned(), bytes: self.bytes, crc64nvme: checksum::text(self.crc), blake3 }
    }
}

impl Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.crc = checksum::joined(self.crc, checksum::of(bytes), bytes.len() as u64);
        self.bytes += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zeros for ever, and a signal after some of them.
    struct Endless<'a>(&'a Cancel, usize);

    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1 == 3 {
                self.0.cancel();
            }
            assert!(self.1 <= 3, "it reads on");
            buffer.fill(0);
            Ok(buffer.len())
        }
    }

    #[test]
    fn hashing_ends_when_it_is_cancelled() {
        for is_hashed in [false, true] {
            let cancel = Cancel::default();
            assert!(identify("endless", Endless(&cancel, 0), is_hashed, &cancel).is_err());
        }
    }
}
