//! The header of a safetensors file: 8 bytes of length, JSON, and then the data it describes.
//!
//! Stricter than the reference implementation in one respect: a tensor name that occurs twice is refused,
//! where that drops one of the two silently. A file is read no further than its header; that its length is
//! the one promised is checked all the same.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::code;
use super::dtype::Dtype;
use super::json::{Entries, duplicates, named};
use crate::finding::Finding;

/// The longest header that is accepted, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// Findings shown for one file; more are counted.
const MAX_FINDINGS: usize = 8;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The first byte after the header.
    pub data_start: u64,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, ordered by where their data begins.
    pub tensors: Vec<HeaderTensor>,
}

/// One entry of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Sizes of its axes.
    pub shape: Vec<u64>,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// Reads and checks the header of `source`, a file of `len` bytes that is called `file` in findings.
///
/// # Errors
/// Everything that is wrong with the header, and with the file's length.
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
    // The length was checked against the file's, so it cannot ask for more memory than the file has bytes.
    let mut text = Vec::new();
    let read = source.take(header_len).read_to_end(&mut text).map_err(|e| one(unreadable(file, &e)))?;
    if read as u64 != header_len {
        return Err(one(Finding::error(
            code::HEADER,
            format!("the header of `{file}` has {read} bytes instead of {header_len}"),
        )));
    }
    parse(&text, 8 + header_len, len, file)
}

fn unreadable(file: &str, error: &std::io::Error) -> Finding {
    Finding::error(code::IO, format!("cannot read `{file}`: {error}"))
}

/// Checks the JSON of a header whose file has `len` bytes and its data from `data_start` on.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &[u8], data_start: u64, len: u64, file: &str) -> Result<Header, Vec<Finding>> {
    let raw: Raw = serde_json::from_slice(text).map_err(|e| {
        vec![
            Finding::error(code::HEADER, format!("the header of `{file}` cannot be read: {e}"))
                .help("The file is damaged or no safetensors file; get it again."),
        ]
    })?;
    let twice = |name: &str, what: &str| {
        Finding::error(code::DUPLICATE, format!("`{file}` has {what} `{name}` twice"))
            .help("Which of the two is meant cannot be told; the file must be written again.")
    };
    let mut findings = Vec::new();
    findings.extend((raw.metadata.len() > 1).then(|| twice("__metadata__", "the entry")));
    findings.extend(
        raw.metadata.iter().flat_map(Entries::duplicates).map(|name| twice(name, "the metadata key")),
    );
    let metadata = raw.metadata.into_iter().flat_map(|entries| entries.0).collect();
    findings
        .extend(duplicates(raw.tensors.iter().map(|(name, _)| name)).map(|name| twice(name, "the tensor")));
    let mut spans: Vec<Span> = raw.tensors.into_iter().map(Span::from).collect();
    spans.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let data_len = len.saturating_sub(data_start);
    check_offsets(&spans, data_len, file, &mut findings);
    let mut tensors = Vec::with_capacity(spans.len());
    for span in spans {
        match checked(span, data_start, file) {
            Ok(tensor) => tensors.push(tensor),
            Err(finding) => findings.push(finding),
        }
    }
    if findings.is_empty() {
        Ok(Header { data_start, metadata, tensors })
    } else {
        Err(shortened(findings, file))
    }
}

/// A tensor's entry before it is checked; offsets count from the end of the header.
struct Span {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    start: u64,
    end: u64,
}

impl From<(String, Entry)> for Span {
    fn from((name, entry): (String, Entry)) -> Self {
        let [start, end] = entry.data_offsets;
        Self { name, dtype: entry.dtype, shape: entry.shape, start, end }
    }
}

/// The data must be covered without hole or overlap, to its last byte. `spans` are in order of offset.
fn check_offsets(spans: &[Span], data_len: u64, file: &str, findings: &mut Vec<Finding>) {
    let promised = spans.iter().map(|s| s.end).max().unwrap_or(0);
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
    let mut previous: Option<&Span> = None;
    let mut covered = 0;
    for span in spans {
        if span.end < span.start {
            findings.push(offsets(file, span, "its end lies before its start"));
            continue;
        }
        if span.start < covered {
            let other = previous.map_or("", |p| p.name.as_str());
            findings.push(offsets(file, span, &format!("it overlaps `{other}`, which ends at {covered}")));
        } else if span.start > covered {
            let hole = span.start - covered;
            findings.push(offsets(file, span, &format!("{hole} bytes before it belong to no tensor")));
        }
        if span.end > covered {
            covered = span.end;
            previous = Some(span);
        }
    }
}

fn offsets(file: &str, span: &Span, what: &str) -> Finding {
    Finding::error(
        code::OFFSETS,
        format!("`{}` in `{file}` has the offsets [{}, {}]: {what}", span.name, span.start, span.end),
    )
    .help("The header is damaged; get the file again.")
}

/// Checks dtype and size of one tensor.
fn checked(span: Span, data_start: u64, file: &str) -> Result<HeaderTensor, Finding> {
    let Span { name, dtype, shape, start, end } = span;
    if name.chars().any(char::is_control) {
        // It would reach terminals and reports from here.
        return Err(Finding::error(
            code::HEADER,
            format!("`{name}` in `{file}` has control characters in its name"),
        ));
    }
    let Some(dtype) = Dtype::from_name(&dtype) else {
        let known: Vec<&str> = Dtype::ALL.iter().map(|d| d.name()).collect();
        return Err(Finding::error(
            code::DTYPE,
            format!("`{name}` in `{file}` has the unknown dtype `{dtype}`"),
        )
        .help(format!("The dtypes of the format are {}.", known.join(", "))));
    };
    let bits = shape.iter().try_fold(dtype.bits(), |bits, &axis| bits.checked_mul(axis));
    let Some(bits) = bits else {
        return Err(Finding::error(
            code::OFFSETS,
            format!("`{name}` in `{file}`: the shape {shape:?} has more bytes than can be counted"),
        )
        .help("The header is damaged; get the file again."));
    };
    let found = end.saturating_sub(start);
    if !bits.is_multiple_of(8) || bits / 8 != found {
        let wanted = bits.div_ceil(8);
        return Err(Finding::error(
            code::OFFSETS,
            format!("`{name}` in `{file}` has {found} bytes where {dtype} {shape:?} needs {wanted}"),
        )
        .help("The header is damaged; get the file again."));
    }
    let Some(offset) = data_start.checked_add(start) else {
        return Err(Finding::error(code::OFFSETS, format!("`{name}` in `{file}` begins beyond any file")));
    };
    Ok(HeaderTensor { name, dtype, shape, offset, bytes: found })
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
    tensors: Vec<(String, Entry)>,
}

/// The description of a tensor. Unknown keys mean nothing to any reader; the reference implementation skips
/// them too.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object that describes tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                raw.metadata.push(map.next_value().map_err(|e| named(&name, &e))?);
            } else {
                let entry = map.next_value().map_err(|e| named(&name, &e))?;
                raw.tensors.push((name, entry));
            }
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests;
