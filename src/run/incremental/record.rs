//! Records of finished work, on disk beside the output, so that the next run need not repeat it.
//!
//! A record is one line about the run and one line per finished tensor, as JSON. Each line begins with a hash of
//! itself and of all lines before it, so that no line can be changed, moved or left out. While a run goes on, its
//! record is a journal, to which each finished tensor is added. A line that was cut off ends the journal. The record
//! of a published output is believed as a whole or not at all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::finding::Failure;
use crate::format::source::Identity;
use crate::fs::exclusive;
use crate::fs::identity::FileIdentity;
use crate::fs::processes::boot;
use crate::ids::{ExportId, FileId, TensorId};
use crate::model::Name;
use crate::plan::Checks;
use crate::plan::Plan;
use crate::plan::fingerprint::{BUILD, Fingerprint, Prints};
use crate::publish::{files, hidden};
use crate::quant::Distortion;
use crate::report::FileRecord;
use crate::run::stream::collector::Collector;
use crate::sync::lock;

/// The version of the format.
const VERSION: u32 = 2;

/// Bytes of a record that are read.
const LONGEST: u64 = 1 << 30;

/// The number of digits of a line's hash.
const DIGITS: usize = 32;

/// The run that made a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    record_version: u32,
    /// The version of monoquant.
    pub monoquant: String,
    /// The build of monoquant.
    build: String,
    /// How many tensors follow, once they are all there.
    tensors: Option<usize>,
    /// The start of the system in which files were looked at: after another one, what was not flushed may be lost.
    pub boot: String,
    /// The checks that were made on the way.
    pub checks: Checks,
    /// The layout of everything in the weight files.
    pub layout: Fingerprint,
    /// The model's weight files.
    pub sources: Vec<SourceFile>,
    /// The weight files that were written.
    pub files: Vec<WrittenFile>,
    /// The files that were carried over.
    pub carried: Vec<CarriedFile>,
}

/// A weight file of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub name: String,
    pub identity: Identity,
    /// Whether it had been unchanged for long enough that any later change shows in its times.
    pub is_settled: bool,
    pub blake3: Option<String>,
}

/// A weight file of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WrittenFile {
    pub name: String,
    /// None while it is being written, if a later change might not show, or if it is uploaded.
    pub identity: Option<FileIdentity>,
    pub blake3: Option<String>,
    /// What else is known of a file that is no longer on this machine.
    #[serde(default)]
    pub uploaded: Option<UploadedFile>,
}

/// A weight file that is uploaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct UploadedFile {
    /// In hexadecimal, if the output lists such hashes.
    pub sha256: Option<String>,
}

impl WrittenFile {
    /// Whether the file is complete, here or elsewhere.
    fn is_there(&self) -> bool {
        self.identity.is_some() || self.uploaded.is_some()
    }
}

/// A file that was carried over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CarriedFile {
    pub file: FileRecord,
    pub source: Identity,
    pub is_settled: bool,
    /// None if a later change might not show.
    pub written: Option<FileIdentity>,
}

/// A source tensor that was read, treated, written and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub name: Name,
    /// The fingerprint of everything that decides the measurements.
    pub numbers: Fingerprint,
    /// The fingerprint of everything that decides the written bytes.
    pub output: Fingerprint,
    /// The checksum of the tensor's bytes, and of the scales that they are multiplied with.
    pub source: Box<[u64]>,
    /// The distortion of each of its tasks.
    #[serde(rename = "pieces")]
    pub tasks: Box<[Option<Distortion>]>,
    /// The first element that is not finite.
    pub not_finite: Option<u64>,
    /// The places of its results, in the order of its fingerprint.
    pub parts: Box<[WrittenPart]>,
}

/// A tensor of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenPart {
    /// The weight file.
    pub file: FileId,
    pub offset: u64,
    pub bytes: u64,
    pub checksum: u64,
}

impl Finished {
    /// The entry of a finished tensor in the record of an export; none if the tensor was not read back as written, or
    /// its measurements cannot be written down.
    pub(crate) fn of(
        plan: &Plan,
        prints: &Prints,
        export: ExportId,
        tensor: TensorId,
        collector: &Collector<'_>,
    ) -> Option<Self> {
        let info = &plan.model.tensors[tensor];
        let inputs = plan.model.parts_of(tensor);
        let parts = plan.exports[export].tensors_of(plan, tensor).map(|output| {
            let planned = &plan.exports[export].tensors[output];
            let checksum = collector
                .output_checksum(export, output)
                .filter(|_| !collector.is_mismatch(export, output))?;
            let bytes = planned.bytes(plan.content());
            Some(WrittenPart { file: planned.file(), offset: planned.offset, bytes, checksum })
        });
        let distortions: Box<[_]> = plan.tasks_of(tensor).map(|task| collector.distortion_of(task)).collect();
        // JSON has no numbers that are not finite.
        if distortions.iter().flatten().any(|distortion| !distortion.is_finite()) {
            return None;
        }
        Some(Self {
            name: info.name.clone(),
            numbers: prints.numbers(tensor),
            output: prints.output(export, tensor),
            source: inputs.map(|input| collector.source_checksum(input)).collect::<Option<_>>()?,
            tasks: distortions,
            not_finite: collector.not_finite_of(tensor),
            parts: parts.collect::<Option<_>>()?,
        })
    }
}

impl Header {
    pub(crate) fn new(checks: Checks, layout: Fingerprint) -> Self {
        Self {
            record_version: VERSION,
            monoquant: env!("CARGO_PKG_VERSION").to_owned(),
            build: BUILD.to_owned(),
            tensors: None,
            boot: boot(),
            checks,
            layout,
            sources: Vec::new(),
            files: Vec::new(),
            carried: Vec::new(),
        }
    }

    /// Takes what the record of another part of the same run says of files. False if it is none: then nothing is taken.
    pub(crate) fn add_part(&mut self, other: &Self) -> bool {
        let is_same = (self.checks, self.layout) == (other.checks, other.layout)
            && self.files.len() == other.files.len()
            && self.sources.len() == other.sources.len()
            && self.sources.iter().zip(&other.sources).all(|(one, other)| {
                (&one.name, one.identity.anywhere()) == (&other.name, other.identity.anywhere())
            });
        if !is_same {
            return false;
        }
        for (file, other) in self.files.iter_mut().zip(&other.files).filter(|(_, other)| other.is_there()) {
            file.clone_from(other);
        }
        for (source, other) in self.sources.iter_mut().zip(&other.sources) {
            source.is_settled &= other.is_settled;
            source.blake3 = source.blake3.take().or_else(|| other.blake3.clone());
        }
        true
    }

    /// Whether files that have not changed since are as they were written.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == boot()
    }
}

/// The hash over the lines of a record so far.
#[derive(Debug, Default)]
struct Seal(String);

impl Seal {
    fn of(&self, line: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.0.as_bytes());
        hasher.update(line);
        hasher.finalize().to_hex()[..DIGITS].to_owned()
    }

    /// A JSON object as the next line.
    fn sealed(&mut self, object: &str) -> String {
        let rest = object.strip_prefix('{').unwrap_or(object);
        self.0 = self.of(object.as_bytes());
        format!("{{\"hash\":\"{}\",{rest}\n", self.0)
    }

    /// The JSON object in the next line; none if it is not the line that was written there.
    fn opened(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let line = line.strip_prefix(b"{\"hash\":\"")?;
        let (hash, rest) = line.split_at_checked(DIGITS)?;
        let rest = rest.strip_prefix(b"\",")?.strip_suffix(b"\n")?;
        let object = [b"{", rest].concat();
        let found = self.of(&object);
        (found.as_bytes() == hash).then(|| {
            self.0 = found;
            object
        })
    }
}

/// The text of a record with these lines, each a JSON object, hashes and all: for tests of what a record may say.
#[must_use]
pub fn sealed(lines: &[String]) -> String {
    let mut seal = Seal::default();
    lines.iter().map(|line| seal.sealed(line)).collect()
}

/// The lines of a record, whatever they say.
struct Lines<R>(std::io::Take<R>);

impl Lines<BufReader<File>> {
    fn open(path: &Path) -> Option<Self> {
        let file = exclusive::open_existing(path).ok()?;
        Some(Self(BufReader::new(file).take(LONGEST)))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let read = self.0.fill_buf().ok()?;
            let end = read.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let taken = &read[..end.unwrap_or(read.len())];
            // Zeros without end, as a power cut or a stranger leaves them, are not read into memory.
            if taken.contains(&0) {
                return None;
            }
            line.extend_from_slice(taken);
            let count = taken.len();
            self.0.consume(count);
            if end.is_some() || count == 0 {
                return (!line.is_empty()).then_some(line);
            }
        }
    }
}

/// The outcome of reading a record.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// It was written by another version or build, which is named.
    OfAnother(String),
    Record(Header, Vec<Finished>),
}

/// Reads a record. What cannot be understood is as good as missing: it only costs work. Of its tensors those are kept that
/// `known` gives back.
pub(crate) fn read(path: &Path, known: impl FnMut(Finished) -> Option<Finished>) -> Found {
    Lines::open(path).map_or(Found::Nothing, |lines| read_lines(lines, known))
}

/// As [`read`], of a record that is no file here.
#[cfg(feature = "cloud")]
pub(crate) fn read_text(text: &str, known: impl FnMut(Finished) -> Option<Finished>) -> Found {
    read_lines(Lines(text.as_bytes().take(LONGEST)), known)
}

fn read_lines(mut lines: Lines<impl BufRead>, mut known: impl FnMut(Finished) -> Option<Finished>) -> Found {
    #[derive(Deserialize)]
    struct Versions {
        record_version: u32,
        monoquant: String,
        #[serde(default)]
        build: String,
    }
    let Some(first) = lines.next() else { return Found::Nothing };
    let Ok(versions) = serde_json::from_slice::<Versions>(&first) else { return Found::Nothing };
    if versions.monoquant != env!("CARGO_PKG_VERSION") {
        return Found::OfAnother(format!("version {}", versions.monoquant));
    }
    if (versions.record_version, versions.build.as_str()) != (VERSION, BUILD) {
        return Found::OfAnother(format!("another build of version {}", versions.monoquant));
    }
    let mut seal = Seal::default();
    let header = seal.opened(&first).and_then(|line| serde_json::from_slice::<Header>(&line).ok());
    let Some(header) = header else { return Found::Nothing };
    let (mut finished, mut count, mut is_whole) = (Vec::new(), 0, true);
    for line in lines {
        match seal.opened(&line).and_then(|line| serde_json::from_slice(&line).ok()) {
            Some(tensor) => {
                count += 1;
                finished.extend(known(tensor));
            }
            None => {
                is_whole = false;
                break;
            }
        }
    }
    match header.tensors {
        Some(meant) if !is_whole || meant != count => Found::Nothing,
        _ => Found::Record(header, finished),
    }
}

/// What a complete record tells of: tensors one by one, or those of a journal.
pub(crate) enum Tensors<'a> {
    /// So many.
    Each(usize, &'a mut dyn Iterator<Item = Finished>),
    /// All of a journal, as far as it is still what was written there.
    Of(&'a Journal),
}

/// Puts the record of a complete output in its place in one step, and returns it open.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(
    path: &Path,
    temporary: &Path,
    header: &Header,
    tensors: Tensors<'_>,
) -> Result<File, Failure> {
    let count = match &tensors {
        Tensors::Each(count, _) => *count,
        Tensors::Of(journal) => lock(&journal.state).count,
    };
    let header = Header { tensors: Some(count), ..header.clone() };
    let write = |file: &mut File| {
        let mut lines = Sealing::begin(file, &header)?;
        match tensors {
            Tensors::Each(_, each) => {
                for tensor in each {
                    lines.add(&tensor)?;
                }
            }
            Tensors::Of(journal) => lines.copy(journal)?,
        }
        lines.out.flush()
    };
    exclusive::replace(path, temporary, write).map_err(|error| files::cannot_write("write", path, &error))
}

/// The text of a complete record of these tensors.
///
/// # Errors
/// If it cannot be written as JSON.
#[cfg(feature = "cloud")]
pub(crate) fn text(header: &Header, tensors: &[Finished]) -> io::Result<String> {
    let header = Header { tensors: Some(tensors.len()), ..header.clone() };
    let mut lines = Sealing::begin(Vec::new(), &header)?;
    tensors.iter().try_for_each(|tensor| lines.add(tensor))?;
    let bytes = lines.out.into_inner().map_err(io::IntoInnerError::into_error)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Writes a record line by line.
struct Sealing<W: Write> {
    seal: Seal,
    out: BufWriter<W>,
}

impl<W: Write> Sealing<W> {
    fn begin(out: W, header: &Header) -> io::Result<Self> {
        let mut lines = Self { seal: Seal::default(), out: BufWriter::new(out) };
        lines.line(&serde_json::to_string(header)?)?;
        Ok(lines)
    }

    fn line(&mut self, object: &str) -> io::Result<()> {
        self.out.write_all(self.seal.sealed(object).as_bytes())
    }

    fn add(&mut self, tensor: &Finished) -> io::Result<()> {
        self.line(&serde_json::to_string(tensor)?)
    }

    /// Adds the tensors of a journal, which are not held in memory.
    fn copy(&mut self, journal: &Journal) -> io::Result<()> {
        let state = lock(&journal.state);
        let changed = || io::Error::other("the journal of the run was changed while it went on");
        let mut seal = Seal::default();
        let mut lines = Lines::open(&journal.path).ok_or_else(changed)?;
        lines.next().and_then(|header| seal.opened(&header)).ok_or_else(changed)?;
        for _ in 0..state.count {
            let object = lines.next().and_then(|line| seal.opened(&line)).ok_or_else(changed)?;
            self.line(&String::from_utf8(object).map_err(|_| changed())?)?;
        }
        // The last hash is over all lines.
        if seal.0 == state.seal.0 { Ok(()) } else { Err(changed()) }
    }
}

/// The record of a run in progress.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    state: Mutex<Written>,
}

/// How far a journal was written.
#[derive(Debug)]
struct Written {
    file: File,
    seal: Seal,
    /// How many tensors are in it.
    count: usize,
}

impl Journal {
    /// Begins the journal of an output in place of an older one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn begin(target: &Path, header: &Header) -> Result<Self, Failure> {
        let path = hidden::journal(target);
        let mut seal = Seal::default();
        // Later lines follow the ones just written, in the same open file.
        let write = |file: &mut File| {
            let mut lines = Sealing::begin(file, header)?;
            lines.out.flush()?;
            seal = lines.seal;
            Ok(())
        };
        let file = exclusive::replace(&path, &hidden::new(target), write)
            .map_err(|error| files::cannot_write("write", &path, &error))?;
        Ok(Self { path, state: Mutex::new(Written { file, seal, count: 0 }) })
    }

    /// Adds a finished tensor.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn add(&self, finished: &Finished) -> Result<(), Failure> {
        let object = serde_json::to_string(finished)
            .map_err(|error| files::cannot_write("write", &self.path, &error.into()))?;
        let mut state = lock(&self.state);
        let line = state.seal.sealed(&object);
        state.count += 1;
        let written = state.file.write_all(line.as_bytes());
        written.map_err(|error| files::cannot_write("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests;
