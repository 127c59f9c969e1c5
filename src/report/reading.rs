//! Reading of reports: whole, or only what an output is known by.

use std::fmt::Display;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{
    Balance, DIGEST, EDITED, FileRecord, GateRecord, NO_DIGEST, OutputRecord, Quality, Report, Sizes,
    TensorRecord, VERSION, Verdict,
};
use crate::exit::Exit;
use crate::finding::{Diagnostic, Failure, Finding};
use crate::fs::regular::{self, limit};

/// What is kept of a report to know an output by it.
#[derive(Debug)]
pub struct Ours {
    /// The outputs, in the order of the `export` stages.
    pub outputs: Vec<OutputRecord>,
}

/// What a report says of its outputs, where it was written by this monoquant or an older one and not changed since. Of its tensors
/// none is held.
///
/// # Errors
/// What is wrong with it, to follow the name of its file.
pub fn ours(mut file: impl Read + Seek) -> Result<Ours, String> {
    #[derive(Deserialize)]
    struct Version {
        report_version: u32,
    }
    /// As [`Report`].
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "what is not used must be there and right all the same")]
    struct Skimmed {
        report_version: u32,
        monoquant: String,
        verdict: Verdict,
        recipe: IgnoredAny,
        source: Vec<FileRecord>,
        outputs: Vec<OutputRecord>,
        sizes: Sizes,
        quality: Option<Quality>,
        gates: Vec<GateRecord>,
        warnings: Vec<Diagnostic>,
        tensors: Looked,
        balance: Balance,
        #[serde(default)]
        digest: Option<String>,
    }
    if let Ok(Version { report_version }) = serde_json::from_reader(BufReader::new(&mut file))
        && report_version > VERSION
    {
        return Err(format!(
            "was written by a newer monoquant: it has version {report_version}, and this one knows {VERSION}"
        ));
    }
    let misread = |error: &dyn Display| format!("cannot be understood: {error}");
    file.rewind().map_err(|error| misread(&error))?;
    let mut text = Digested::new(file);
    let report: Skimmed =
        serde_json::from_reader(BufReader::new(&mut text)).map_err(|error| misread(&error))?;
    if !(1..=VERSION).contains(&report.report_version) {
        return Err("has no version that there was".to_owned());
    }
    match report.digest {
        None => return Err(NO_DIGEST.to_owned()),
        Some(digest) if !text.is(&digest) => return Err(EDITED.to_owned()),
        Some(_) => {}
    }
    Ok(Ours { outputs: report.outputs })
}

/// Tensors of a report that were understood and not kept.
struct Looked;

impl<'de> Deserialize<'de> for Looked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Looked)
    }
}

impl<'de> Visitor<'de> for Looked {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tensors: A) -> Result<Self, A::Error> {
        while tensors.next_element::<TensorRecord>()?.is_some() {}
        Ok(self)
    }
}

/// Hashes a report while it is read, but for its end, where its digest is.
struct Digested<R> {
    file: R,
    hasher: blake3::Hasher,
    end: Vec<u8>,
}

impl<R: Read> Digested<R> {
    /// Bytes from the line with the digest to the end, and more.
    const END: usize = 512;

    fn new(file: R) -> Self {
        Self { file, hasher: blake3::Hasher::new(), end: Vec::new() }
    }

    /// Whether this is the hash of what was read without it.
    fn is(mut self, digest: &str) -> bool {
        let mut at = self.end.windows(DIGEST.len());
        let Some(start) = at.rposition(|text| text == DIGEST.as_bytes()).map(|at| at + DIGEST.len()) else {
            return false;
        };
        let Some(rest) = self.end[start..].strip_prefix(digest.as_bytes()) else { return false };
        self.hasher.update(&self.end[..start]).update(rest);
        self.hasher.finalize().to_hex().as_str() == digest
    }
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.end.extend_from_slice(&buffer[..count]);
        if self.end.len() > 1 << 16 {
            let hashed = self.end.len() - Self::END;
            self.hasher.update(&self.end[..hashed]);
            self.end.drain(..hashed);
        }
        Ok(count)
    }
}

/// Reads a report.
///
/// # Errors
/// If it cannot be read or is not a report of this version.
pub fn read(path: &Path) -> Result<Report, Failure> {
    parse(path, &regular::read_bounded(path, limit::REPORT).map_err(|error| unreadable(path, &error))?)
}

/// Parses the bytes of the report at a path.
///
/// # Errors
/// If they are not a report of this version.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Report, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| not_a_report(format!("{} is not a report: {error}", path.display())))
}

/// That the report at a path cannot be read.
#[must_use]
pub fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    not_a_report(format!("cannot read {}: {error}", path.display()))
}

fn not_a_report(message: String) -> Failure {
    let finding = Finding::error("report::unreadable", message);
    Failure::new(Exit::BadModel, finding.help("A directory that monoquant wrote holds its report."))
}
