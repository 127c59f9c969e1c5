//! What a run has finished, on disk beside its output, so that the next one need not do it again.
//!
//! A record is a line about the run and a line for each finished tensor, as JSON. While a run goes on its record is a journal,
//! to which each finished tensor is added; a line that was cut off ends it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::measured::lock;
use super::stream::Checks;
use crate::export::{files, siblings};
use crate::finding::Failure;
use crate::fs::exclusive;
use crate::fs::regular::{self, limit};
use crate::model::FileIdentity;
use crate::plan::fingerprint::{ARITHMETIC, Fingerprint};
use crate::quant::Distortion;

/// The version of the format.
const VERSION: u32 = 1;

/// The run that made a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    record_version: u32,
    /// The version of monoquant.
    pub monoquant: String,
    arithmetic: u32,
    /// The start of the system in which files were looked at: after another one, what was not flushed may be lost.
    pub boot: String,
    /// What was looked at on the way.
    pub checks: Checks,
    /// Where everything lies in the weight files.
    pub layout: Fingerprint,
    /// The model's weight files.
    pub sources: Vec<SourceFile>,
    /// The weight files that were written.
    pub files: Vec<WrittenFile>,
    /// The files that were carried over.
    pub copies: Vec<CopiedFile>,
}

/// A weight file of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SourceFile {
    pub name: String,
    pub identity: FileIdentity,
    /// Whether it had been left alone for long enough that any later change shows in its times.
    pub is_settled: bool,
    pub blake3: Option<String>,
}

/// A weight file of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WrittenFile {
    pub name: String,
    /// None while it is being written.
    pub identity: Option<FileIdentity>,
    pub blake3: Option<String>,
}

/// A file that was carried over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CopiedFile {
    pub path: String,
    pub source: FileIdentity,
    pub is_settled: bool,
    pub written: FileIdentity,
}

/// A source tensor that was read, treated, written and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub name: String,
    /// What decides what was measured.
    pub numbers: Fingerprint,
    /// What decides what was written.
    pub output: Fingerprint,
    /// The checksum of the tensor's bytes, and of the scales that they are multiplied with.
    pub source: Vec<u64>,
    /// The distortion of each of its pieces.
    pub pieces: Vec<Option<Distortion>>,
    /// The first element that is not finite.
    pub not_finite: Option<u64>,
    /// Where what came of it is, in the order of its fingerprint.
    pub parts: Vec<WrittenPart>,
}

/// A tensor of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenPart {
    /// Index among the weight files.
    pub file: usize,
    pub offset: u64,
    pub bytes: u64,
    pub checksum: u64,
}

impl Header {
    pub fn new(checks: Checks, layout: Fingerprint) -> Self {
        Self {
            record_version: VERSION,
            monoquant: env!("CARGO_PKG_VERSION").to_owned(),
            arithmetic: ARITHMETIC,
            boot: boot(),
            checks,
            layout,
            sources: Vec::new(),
            files: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Whether files that have not changed since are as they were written.
    pub fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == boot()
    }
}

/// What tells one start of the system from another; empty where that is not known.
fn boot() -> String {
    regular::read_text(Path::new("/proc/sys/kernel/random/boot_id"), limit::WORD)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What came of reading a record.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// It was written by another version, which is named.
    OfAnotherVersion(String),
    Record(Header, Vec<Finished>),
}

/// Reads a record. What cannot be understood is as good as missing: it only costs work.
pub(super) fn read(path: &Path) -> Found {
    #[derive(Deserialize)]
    struct Versions {
        record_version: u32,
        monoquant: String,
        arithmetic: u32,
    }
    let Ok(file) = regular::open(path) else { return Found::Nothing };
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return Found::Nothing };
    let Ok(versions) = serde_json::from_str::<Versions>(&first) else { return Found::Nothing };
    if (versions.record_version, versions.arithmetic) != (VERSION, ARITHMETIC)
        || versions.monoquant != env!("CARGO_PKG_VERSION")
    {
        return Found::OfAnotherVersion(versions.monoquant);
    }
    let Ok(header) = serde_json::from_str::<Header>(&first) else { return Found::Nothing };
    Found::Record(header, lines.map_while(|line| serde_json::from_str(&line).ok()).collect())
}

/// Puts a record in its place in one step, and returns it open.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn write(
    path: &Path,
    temporary: &Path,
    header: &Header,
    finished: &[Finished],
) -> Result<File, Failure> {
    let write = |file: &mut File| {
        let mut out = BufWriter::new(file);
        writeln!(out, "{}", serde_json::to_string(header)?)?;
        for tensor in finished {
            writeln!(out, "{}", serde_json::to_string(tensor)?)?;
        }
        out.flush()
    };
    exclusive::replace(path, temporary, write).map_err(|error| files::cannot_write("write", path, &error))
}

/// The record of a run that goes on.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    state: Mutex<(File, Vec<Finished>)>,
}

impl Journal {
    /// Begins the journal of an output in place of an older one.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn begin(target: &Path, header: &Header) -> Result<Self, Failure> {
        let path = siblings::journal(target);
        // What is added follows what was just written, in the same open file.
        let file = write(&path, &siblings::new(target), header, &[])?;
        Ok(Self { path, state: Mutex::new((file, Vec::new())) })
    }

    /// Adds a finished tensor.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(&self, finished: Finished) -> Result<(), Failure> {
        let mut line = serde_json::to_string(&finished).unwrap_or_default();
        line.push('\n');
        let mut state = lock(&self.state);
        state.1.push(finished);
        state.0.write_all(line.as_bytes()).map_err(|error| files::cannot_write("write", &self.path, &error))
    }

    /// Everything that was added.
    pub fn finished(&self) -> Vec<Finished> {
        lock(&self.state).1.clone()
    }
}
