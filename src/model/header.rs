//! The header of a safetensors file: 8 bytes of length, JSON, and then the data it describes.
//!
//! Stricter than the reference implementation in one respect: a tensor name that occurs twice is refused,
//! where that drops one of the two silently. A file is read no further than its header; that its length is
//! the one promised is checked all the same. The text is never held as a whole: it may have a hundred megabytes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::code;
use super::json::{Entries, duplicates, named};
use super::name::{Name, Names, SharedNames, Span};
use super::shape::Shape;
use crate::finding::Finding;
use crate::format::Dtype;
use crate::format::source::Trouble;

/// The longest header that is accepted, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// Bytes that are read at a time: from a store, a request costs more than its bytes.
pub(super) const READ_AHEAD: usize = 256 << 10;

/// Findings shown for one file; more are counted.
const MAX_FINDINGS: usize = 8;

/// The content of a header.
#[derive(Debug, Clone)]
pub struct Header {
    /// The first byte after the header.
    pub data_start: u64,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    names: SharedNames,
    entries: Vec<Entry>,
}

impl Header {
    /// The tensors, ordered by the start of their data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = HeaderTensor> + Clone {
        self.entries.iter().map(|entry| entry.tensor(&self.names, self.data_start))
    }
}

/// One entry of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Its name.
    pub name: Name,
    /// Its element type.
    pub dtype: Dtype,
    /// Sizes of its axes.
    pub shape: Shape,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// Whether a finding of this code may be of a file that is not whole yet.
#[cfg(feature = "cli")]
pub(crate) fn is_cut_off(code: &str) -> bool {
    [code::LENGTH, code::HEADER].contains(&code)
}

/// Reads and checks the header of `source`, a file of `len` bytes that is called `file` in findings.
///
/// # Errors
/// All problems with the header and with the file's length.
pub fn read(mut source: impl Read, len: u64, file: &str) -> Result<Header, Vec<Finding>> {
    let one = |finding: Finding| vec![finding];
    let mut prefix = [0u8; 8];
    if len < 8 {
        return Err(one(Finding::error(
            code::LENGTH,
            format!("`{file}` has {len} bytes, too few for a safetensors file"),
        )
        .help("The file is empty or was cut off; get it again.")));
    }
    source.read_exact(&mut prefix).map_err(|e| one(unreadable(file, &e)))?;
    if &prefix == b"version " {
        return Err(one(Finding::error(
            code::HEADER,
            format!("`{file}` is a Git LFS pointer, not the weights"),
        )
        .help("Run `git lfs pull` in the model's folder, or download the model with `hf download`.")));
    }
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER || header_len > len - 8 {
        let limit = if header_len > MAX_HEADER { MAX_HEADER } else { len - 8 };
        return Err(one(Finding::error(
            code::HEADER,
            format!("`{file}` claims a header of {header_len} bytes, where at most {limit} are possible"),
        )
        .help("It is no safetensors file, or was cut off inside its header; get it again.")));
    }
    let mut text = BufReader::with_capacity(READ_AHEAD.min(header_len as usize), source.take(header_len));
    let raw = serde_json::from_reader(&mut text);
    // Where the JSON is wrong there is more of it, or the file ended within it.
    let rest = std::io::copy(&mut text, &mut std::io::sink());
    let missing = text.into_inner().limit();
    if missing > 0 {
        rest.map_err(|e| one(unreadable(file, &e)))?;
        return Err(one(Finding::error(
            code::HEADER,
            format!("the header of `{file}` has {} bytes instead of {header_len}", header_len - missing),
        )));
    }
    check(raw, 8 + header_len, len, file)
}

fn unreadable(file: &str, error: &std::io::Error) -> Finding {
    match Trouble::of(error) {
        Some(trouble) => trouble.finding(file),
        None => Finding::error(code::IO, format!("cannot read `{file}`: {error}")),
    }
}

/// Checks the JSON of a header whose file has `len` bytes and its data from `data_start` on.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &[u8], data_start: u64, len: u64, file: &str) -> Result<Header, Vec<Finding>> {
    check(serde_json::from_slice(text), data_start, len, file)
}

fn check(
    raw: serde_json::Result<Raw>,
    data_start: u64,
    len: u64,
    file: &str,
) -> Result<Header, Vec<Finding>> {
    let raw = raw.map_err(|e| {
        vec![
            Finding::error(code::HEADER, format!("the header of `{file}` cannot be read: {e}"))
                .help("The file is damaged or no safetensors file; get it again."),
        ]
    })?;
    let Raw { metadata, names, tensors: mut entries, unknown } = raw;
    let twice = |name: &str, what: &str| {
        Finding::error(code::DUPLICATE, format!("`{file}` has {what} `{name}` twice"))
            .help("Which of the two is meant cannot be told; the file must be written again.")
    };
    let mut findings = Vec::new();
    findings.extend((metadata.len() > 1).then(|| twice("__metadata__", "the entry")));
    findings
        .extend(metadata.iter().flat_map(Entries::duplicates).map(|name| twice(name, "the metadata key")));
    let metadata = metadata.into_iter().flat_map(|entries| entries.0).collect();
    findings.extend(
        duplicates(entries.iter().map(|entry| names.get(entry.name))).map(|name| twice(name, "the tensor")),
    );
    let order =
        |a: &Entry, b: &Entry| (a.start, a.end, names.get(a.name)).cmp(&(b.start, b.end, names.get(b.name)));
    entries.sort_by(order);
    let data_len = len.saturating_sub(data_start);
    check_offsets(&entries, &names, data_len, file, &mut findings);
    for entry in &entries {
        findings.extend(check_entry(entry, names.get(entry.name), &unknown, data_start, file).err());
    }
    if findings.is_empty() {
        Ok(Header { data_start, metadata, names: names.shared(), entries })
    } else {
        Err(shortened(findings, file))
    }
}

/// A tensor's entry; offsets count from the end of the header.
#[derive(Debug, Clone)]
struct Entry {
    name: Span,
    dtype: EntryDtype,
    shape: Shape,
    start: u64,
    end: u64,
}

impl Entry {
    /// The tensor of an entry that was checked.
    fn tensor(&self, names: &SharedNames, data_start: u64) -> HeaderTensor {
        HeaderTensor {
            name: names.at(self.name),
            dtype: match self.dtype {
                EntryDtype::Known(dtype) => dtype,
                EntryDtype::Unknown(_) => Dtype::U8,
            },
            shape: self.shape.clone(),
            offset: data_start + self.start,
            bytes: self.end - self.start,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum EntryDtype {
    Known(Dtype),
    /// No version of the format has it: its place among such names.
    Unknown(u32),
}

/// The data must be covered without hole or overlap, to its last byte. `entries` are in order of offset.
fn check_offsets(entries: &[Entry], names: &Names, data_len: u64, file: &str, findings: &mut Vec<Finding>) {
    let promised = entries.iter().map(|s| s.end).max().unwrap_or(0);
    if promised > data_len {
        let short = promised - data_len;
        let message =
            format!("`{file}` is {short} bytes short of the {promised} bytes of data in its header");
        findings.push(
            Finding::error(code::LENGTH, message)
                .help("The file was cut off, by a broken download or a full disk; get it again."),
        );
    } else if promised < data_len {
        let extra = data_len - promised;
        let message = format!("`{file}` has {extra} bytes beyond the {promised} bytes of data in its header");
        findings.push(
            Finding::error(code::LENGTH, message).help(
                "The header does not belong to this data, or something was appended; get the file again.",
            ),
        );
    }
    let offsets = |entry: &Entry, what: &str| {
        let (name, start, end) = (names.get(entry.name), entry.start, entry.end);
        Finding::error(
            code::OFFSETS,
            format!("`{name}` in `{file}` has the offsets [{start}, {end}]: {what}"),
        )
        .help("The header is damaged; get the file again.")
    };
    let mut previous: Option<&Entry> = None;
    let mut covered = 0;
    for entry in entries {
        if entry.end < entry.start {
            findings.push(offsets(entry, "its end lies before its start"));
            continue;
        }
        if entry.start < covered {
            let other = previous.map_or("", |previous| names.get(previous.name));
            findings.push(offsets(entry, &format!("it overlaps `{other}`, which ends at {covered}")));
        } else if entry.start > covered {
            let hole = entry.start - covered;
            findings.push(offsets(entry, &format!("{hole} bytes before it belong to no tensor")));
        }
        if entry.end > covered {
            covered = entry.end;
            previous = Some(entry);
        }
    }
}

/// Checks dtype and size of one tensor.
fn check_entry(
    entry: &Entry,
    name: &str,
    unknown: &[Box<str>],
    data_start: u64,
    file: &str,
) -> Result<(), Finding> {
    let Entry { dtype, shape, start, end, .. } = entry;
    if name.chars().any(char::is_control) {
        // It would reach terminals and reports from here.
        return Err(Finding::error(
            code::HEADER,
            format!("`{name}` in `{file}` has control characters in its name"),
        ));
    }
    let dtype = match dtype {
        EntryDtype::Known(dtype) => *dtype,
        EntryDtype::Unknown(at) => {
            let dtype = unknown.get(*at as usize).map_or("", |dtype| dtype);
            let known: Vec<&str> = Dtype::ALL.iter().map(|d| d.name()).collect();
            return Err(Finding::error(
                code::DTYPE,
                format!("`{name}` in `{file}` has the unknown dtype `{dtype}`"),
            )
            .help(format!("The dtypes of the format are {}.", known.join(", "))));
        }
    };
    let bits = shape.iter().try_fold(dtype.bits(), |bits, &axis| bits.checked_mul(axis));
    let Some(bits) = bits else {
        return Err(Finding::error(
            code::OFFSETS,
            format!("`{name}` in `{file}`: the shape {shape:?} has more bytes than can be counted"),
        )
        .help("The header is damaged; get the file again."));
    };
    let found = end.saturating_sub(*start);
    if !bits.is_multiple_of(8) || bits / 8 != found {
        let wanted = bits.div_ceil(8);
        return Err(Finding::error(
            code::OFFSETS,
            format!("`{name}` in `{file}` has {found} bytes where {dtype} {shape:?} needs {wanted}"),
        )
        .help("The header is damaged; get the file again."));
    }
    if data_start.checked_add(*start).is_none() {
        return Err(Finding::error(code::OFFSETS, format!("`{name}` in `{file}` begins beyond any file")));
    }
    Ok(())
}

/// A damaged header can be wrong in every tensor; the first few tell enough.
fn shortened(mut findings: Vec<Finding>, file: &str) -> Vec<Finding> {
    if findings.len() > MAX_FINDINGS {
        let more = findings.len() - MAX_FINDINGS;
        findings.truncate(MAX_FINDINGS);
        findings.push(Finding::error(
            code::HEADER,
            format!("and {more} more problems in the header of `{file}`"),
        ));
    }
    findings
}

/// The JSON of a header, before it is checked.
#[derive(Default)]
struct Raw {
    metadata: Vec<Entries<String>>,
    names: Names,
    tensors: Vec<Entry>,
    /// Names of dtypes that are not known.
    unknown: Vec<Box<str>>,
}

/// The description of a tensor. Unknown keys mean nothing to any reader; the reference implementation skips
/// them too.
#[derive(Deserialize)]
struct Description {
    dtype: DtypeName,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A dtype by its name, which is kept only if it is not known.
enum DtypeName {
    Known(Dtype),
    Unknown(Box<str>),
}

impl<'de> Deserialize<'de> for DtypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DtypeVisitor)
    }
}

struct DtypeVisitor;

impl Visitor<'_> for DtypeVisitor {
    type Value = DtypeName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<DtypeName, E> {
        Ok(Dtype::from_name(name).map_or_else(|| DtypeName::Unknown(name.into()), DtypeName::Known))
    }
}

/// Reads the key of an entry: a name among the others, or none if it is that of the metadata.
struct Key<'n>(&'n mut Names);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<Span>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Span>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<Span>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<Span>, E> {
        if name == METADATA {
            return Ok(None);
        }
        self.0.push(name).map(Some).ok_or_else(|| E::custom("the names are longer than any header"))
    }
}

const METADATA: &str = "__metadata__";

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that describes tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(name) = map.next_key_seed(Key(&mut raw.names))? {
            let Some(name) = name else {
                raw.metadata.push(map.next_value().map_err(|e| named(METADATA, &e))?);
                continue;
            };
            let Description { dtype, shape, data_offsets: [start, end] } =
                map.next_value().map_err(|e| named(raw.names.get(name), &e))?;
            let dtype = match dtype {
                DtypeName::Known(dtype) => EntryDtype::Known(dtype),
                DtypeName::Unknown(dtype) => {
                    raw.unknown.push(dtype);
                    EntryDtype::Unknown((raw.unknown.len() - 1) as u32)
                }
            };
            raw.tensors.push(Entry { name, dtype, shape, start, end });
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests;
