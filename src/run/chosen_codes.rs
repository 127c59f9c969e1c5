//! Codes that rounding with calibration has chosen, kept in a folder beside an output: one file per layer; in a run of parts one
//! per layer and unit.
//!
//! A file begins with its key, which is a hash of all that decides the codes, and with a hash of its index. The index names the
//! matrices and says where they lie in the data behind it, and the hash of that. A matrix is its codes, packed row by row, then
//! its scales in F32 and its zero points.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Folder};
use crate::fs::positioned::read_exact_at;
use crate::fs::processes::own_name;
use crate::plan::rounding::{ChosenCodes, KeptFile, Rounded};
use crate::publish::files::{self, cannot_write};
use crate::publish::hidden;
use crate::quant::Scheme;
use crate::quant::reference::{Unpacked, from_words, words};

/// Digits of a hash in hexadecimal.
const DIGITS: usize = 64;

/// A longer index is not read.
const LONGEST_INDEX: u64 = 1 << 28;

/// Bytes that are hashed at once.
const STRETCH: usize = 1 << 20;

/// Where files of layers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerFiles<'a> {
    /// The output that they are beside.
    pub target: &'a Path,
    /// The first file of the unit whose matrices they hold; none if they hold all.
    pub unit: Option<&'a str>,
}

impl LayerFiles<'_> {
    fn path_of(&self, layer: usize) -> PathBuf {
        let unit = self.unit.map(|unit| format!("-of-{}", &blake3::hash(unit.as_bytes()).to_hex()[..16]));
        hidden::rounding(self.target).join(format!("layer-{layer}{}", unit.unwrap_or_default()))
    }

    /// Where a file is written. Parts take no lock, so that each has a name of its own.
    fn temporary(&self) -> PathBuf {
        match self.unit {
            None => hidden::new(self.target),
            Some(_) => hidden::rounding(self.target).join(format!("new-{}", own_name())),
        }
    }
}

/// The matrices of a file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    matrices: Vec<Entry>,
    bytes: u64,
    hash: String,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The module that the task is in the output.
    module: String,
    #[serde(flatten)]
    result: Kept,
}

/// What has come of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
enum Kept {
    Chosen { start: u64, hash: String, tokens: u64, error: f64, error_of_nearest: f64, is_guided: bool },
    Nearest { why: String },
}

/// A layer's file while it is made.
#[derive(Debug, Default)]
pub(super) struct NewFile {
    index: Index,
    data: Vec<u8>,
}

/// What is known of a matrix whose codes were chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Errors {
    pub tokens: u64,
    pub error: f64,
    pub error_of_nearest: f64,
    pub is_guided: bool,
}

impl NewFile {
    /// Adds the codes of a matrix.
    pub(super) fn chosen(
        &mut self,
        module: &str,
        matrix: &Unpacked,
        (scheme, columns): (&Scheme, usize),
        of: Errors,
    ) {
        let start = self.data.len();
        for row in matrix.codes.chunks(columns.max(1)) {
            self.data.extend(words(scheme.bits, row));
        }
        self.data.extend(matrix.scales.iter().flat_map(|scale| scale.to_le_bytes()));
        self.data.extend(matrix.zero_points.iter().map(|zero| *zero as u8));
        let hash = blake3::hash(&self.data[start..]).to_hex().to_string();
        let Errors { tokens, error, error_of_nearest, is_guided } = of;
        let result = Kept::Chosen { start: start as u64, hash, tokens, error, error_of_nearest, is_guided };
        self.index.matrices.push(Entry { module: module.to_owned(), result });
    }

    /// Adds a matrix that is rounded to nearest, and why.
    pub(super) fn nearest(&mut self, module: &str, why: String) {
        self.index.matrices.push(Entry { module: module.to_owned(), result: Kept::Nearest { why } });
    }

    /// Writes the file of a layer, and gives back what is in it. If it is not of a unit, the lock of the output must be held.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(mut self, of: &LayerFiles<'_>, layer: usize, key: &str) -> Result<Layer, Failure> {
        self.index.bytes = self.data.len() as u64;
        self.index.hash = blake3::hash(&self.data).to_hex().to_string();
        let path = of.path_of(layer);
        let text = serde_json::to_vec(&self.index)
            .map_err(|error| cannot_write("write", &path, &io::Error::other(error)))?;
        let head = format!("{key}{}", blake3::hash(&text).to_hex());
        let folder = hidden::rounding(of.target);
        Folder::open_or_create(&folder).map_err(|error| cannot_write("make", &folder, &error))?;
        files::replace(&path, &of.temporary(), |file| {
            file.write_all(head.as_bytes())?;
            file.write_all(&(text.len() as u64).to_le_bytes())?;
            file.write_all(&text)?;
            file.write_all(&self.data)
        })?;
        Ok(Layer::of(self.index, path, head, text.len() as u64))
    }
}

/// What is to be done with the codes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// Weights are written by them.
    AreRead,
    /// A join takes the files that parts have written by them.
    AreWritten,
}

/// What the file of a layer says.
#[derive(Debug)]
pub(super) struct Layer {
    /// The module of each matrix, and what has come of it.
    pub(super) matrices: Vec<(String, Rounded)>,
}

impl Layer {
    /// A layer in which nothing is rounded.
    pub(super) fn empty() -> Self {
        Self { matrices: Vec::new() }
    }

    fn of(index: Index, path: PathBuf, head: String, text: u64) -> Self {
        let file = Arc::new(KeptFile { path, head });
        let data = data_start(text);
        let matrix = |entry: Entry| {
            let result = match entry.result {
                Kept::Nearest { why } => Rounded::Nearest(why),
                Kept::Chosen { start, hash, tokens, error, error_of_nearest, is_guided } => {
                    Rounded::Chosen(ChosenCodes {
                        file: Arc::clone(&file),
                        start: data.saturating_add(start),
                        hash,
                        tokens,
                        error,
                        error_of_nearest,
                        is_guided,
                    })
                }
            };
            (entry.module, result)
        };
        Self { matrices: index.matrices.into_iter().map(matrix).collect() }
    }

    /// What an earlier run has kept of a layer, if it is of this key and whole. Codes that nobody is going to read are not looked at:
    /// then the hash of the index has to do.
    pub(super) fn read(of: &LayerFiles<'_>, layer: usize, key: &str, codes: Codes) -> Option<Self> {
        let path = of.path_of(layer);
        Folder::open(&hidden::rounding(of.target)).ok()?;
        let mut file = exclusive::open_existing(&path).ok()?;
        let mut start = [0; 2 * DIGITS + 8];
        file.read_exact(&mut start).ok()?;
        let (head, len) = start.split_at(2 * DIGITS);
        let head = std::str::from_utf8(head).ok().filter(|head| head.starts_with(key))?.to_owned();
        let len = u64::from_le_bytes(len.try_into().ok()?);
        if len > LONGEST_INDEX || file.metadata().ok()?.len() < data_start(len) {
            return None;
        }
        let mut text = vec![0; len as usize];
        file.read_exact(&mut text).ok()?;
        if blake3::hash(&text).to_hex().as_str() != &head[DIGITS..] {
            return None;
        }
        let index: Index = serde_json::from_slice(&text).ok()?;
        let is_inside = |entry: &Entry| match &entry.result {
            Kept::Chosen { start, .. } => *start <= index.bytes,
            Kept::Nearest { .. } => true,
        };
        if !index.matrices.iter().all(is_inside) {
            return None;
        }
        if file.metadata().ok()?.len() != data_start(len).checked_add(index.bytes)?
            || codes == Codes::AreRead && hash_of(&mut file).ok()? != index.hash
        {
            return None;
        }
        Some(Self::of(index, path, head, len))
    }
}

/// Removes the files of layers but for these, those of units among them, and what was kept to make them: gradients and streams.
pub(super) fn remove_others(target: &Path, kept: &[usize]) {
    let Ok(folder) = Folder::open(&hidden::rounding(target)) else { return };
    let Ok(mut tree) = folder.tree() else { return };
    let is_over = |name: &Path| {
        let (what, number) = name.to_str()?.split_once('-')?;
        Some(match what {
            "layer" => !number.parse().is_ok_and(|number| kept.contains(&number)),
            _ => matches!(what, "gradients" | "stream" | "new"),
        })
    };
    tree.retain(|entry| entry.is_file() && is_over(&entry.name).unwrap_or(false));
    // What cannot be removed is in nobody's way.
    let _ = folder.remove_listed(&tree);
}

fn data_start(text: u64) -> u64 {
    (2 * DIGITS + 8) as u64 + text
}

/// The hash of the rest of a file.
fn hash_of(file: &mut File) -> io::Result<String> {
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; STRETCH]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

/// Reads some rows of a matrix [rows, columns].
///
/// # Errors
/// If they cannot be read, or the file is another one by now.
pub(crate) fn read_rows(
    codes: &ChosenCodes,
    scheme: &Scheme,
    (rows, columns): (usize, usize),
    range: Range<usize>,
) -> Result<Unpacked, Failure> {
    let path = &codes.file.path;
    let failed = |error: io::Error| {
        let message = format!("the codes in {} cannot be read: {error}", path.display());
        Failure::new(
            Exit::CannotWrite,
            Finding::error("run::codes", message).help("Run again: what is missing there is chosen anew."),
        )
    };
    let file = exclusive::open_existing(path).map_err(failed)?;
    let read = |start: u64, bytes: usize| {
        let mut buffer = vec![0; bytes];
        read_exact_at(&file, &mut buffer, start).map(|()| buffer).map_err(failed)
    };
    if read(0, 2 * DIGITS)? != codes.file.head.as_bytes() {
        return Err(failed(io::Error::other("another run has replaced it")));
    }
    let words = columns.div_ceil(scheme.bits.per_word()) * 4;
    let groups = scheme.groups_per_row(columns);
    let packed = read(codes.start + (range.start * words) as u64, range.len() * words)?;
    let scales = codes.start + (rows * words) as u64;
    let zeros = scales + (rows * groups * 4) as u64;
    let values = read(scales + (range.start * groups * 4) as u64, range.len() * groups * 4)?;
    let zeros = read(zeros + (range.start * groups) as u64, range.len() * groups)?;
    Ok(Unpacked {
        codes: packed.chunks(words.max(1)).flat_map(|row| from_words(scheme.bits, row, columns)).collect(),
        scales: values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        zero_points: zeros.iter().map(|zero| *zero as i8).collect(),
    })
}
