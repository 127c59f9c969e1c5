//! Files of second moments: written layer by layer while a model runs, read matrix by matrix.
//!
//! A safetensors file. `MODULE.moments` is F32: the lower triangle of the mean of x xᵀ, row by row with its diagonal, of the inputs x
//! of the unquantized model; for a stack [experts, triangle]. `MODULE.counts` is I64: rows that the mean is of, one number or one an
//! expert. Matrices that see the same inputs have one entry: `same` in the metadata says whose.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::code;
use super::moments::Moments;
use super::op::{Op, Program};
use super::parts::{Linear, Part};
use crate::finding::Finding;
use crate::format::Dtype;
use crate::format::container::{Entry, SAFETENSORS};
use crate::format::source::Identity;
use crate::fs::{positioned, regular};
use crate::model::header;

/// What `format` in the metadata says.
const FORMAT: &str = "monoquant-moments";

/// Numbers in the lower triangle of a square matrix, with its diagonal.
const fn triangle(columns: u64) -> u64 {
    columns * (columns + 1) / 2
}

/// Whose moments a file holds, in its order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MomentsLayout {
    /// The matrices of each layer whose moments are measured; of a stack all experts.
    pub layers: Vec<Vec<Linear>>,
    /// For modules without moments of their own: the module whose inputs are the same.
    same: BTreeMap<String, String>,
}

impl MomentsLayout {
    /// For the layers of a model: of neighbouring products with the same inputs the first is measured.
    #[must_use]
    pub fn new(layers: &[Program]) -> Self {
        let mut layout = Self::default();
        for program in layers {
            let mut measured = Vec::new();
            for stage in program.stages() {
                let matrices = stage.iter().map(|step| match &program.ops[*step] {
                    Op::Linear { matrix, .. } => std::slice::from_ref(matrix),
                    Op::Experts { matrices, .. } => matrices.as_slice(),
                    _ => &[],
                });
                let mut matrices = matrices.peekable();
                let first = matrices.next().unwrap_or_default();
                for others in matrices {
                    let pairs = others.iter().zip(first).filter(|(other, own)| other.tensor != own.tensor);
                    layout.same.extend(
                        pairs.map(|(other, own)| (other.module().to_owned(), own.module().to_owned())),
                    );
                }
                measured.extend_from_slice(first);
            }
            layout.layers.push(measured);
        }
        layout
    }

    /// The modules of the file with their columns, and the experts of a stack.
    fn modules(&self) -> Vec<(&str, u64, Option<u64>)> {
        let mut modules: Vec<(&str, u64, Option<u64>)> = Vec::new();
        for matrix in self.layers.iter().flatten() {
            match (matrix.part, modules.last_mut()) {
                (Part::Expert(_), Some((name, _, Some(experts)))) if *name == matrix.module() => {
                    *experts += 1
                }
                (Part::Expert(_), _) => modules.push((matrix.module(), matrix.columns as u64, Some(1))),
                (Part::Whole, _) => modules.push((matrix.module(), matrix.columns as u64, None)),
            }
        }
        modules
    }

    /// Bytes of the whole file, but for its header.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flatten().map(|matrix| 8 + 4 * triangle(matrix.columns as u64)).sum()
    }
}

/// Writes a file of moments, matrix by matrix in the order of its layout.
#[derive(Debug)]
pub struct MomentsWriter<'f> {
    file: BufWriter<&'f mut File>,
    counts_at: u64,
    counts: Vec<u64>,
}

impl<'f> MomentsWriter<'f> {
    /// Writes the header.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(
        file: &'f mut File,
        layout: &MomentsLayout,
        metadata: &BTreeMap<String, String>,
    ) -> io::Result<Self> {
        let (mut entries, mut end) = (Vec::new(), 0);
        let mut entry = |name: String, dtype: &'static str, shape: Vec<u64>, size: u64| {
            let start = end;
            end += shape.iter().product::<u64>() * size;
            entries.push(Entry { name, dtype, shape, start, end });
        };
        // Counts come first: eight bytes each, so that all else lies as it should.
        let modules = layout.modules();
        for (name, _, experts) in &modules {
            entry(format!("{name}.counts"), "I64", vec![experts.unwrap_or(1)], 8);
        }
        for (name, columns, experts) in &modules {
            let shape = experts.iter().copied().chain([triangle(*columns)]).collect();
            entry(format!("{name}.moments"), "F32", shape, 4);
        }
        let mut metadata = metadata.clone();
        metadata.insert("format".to_owned(), FORMAT.to_owned());
        metadata.insert("same".to_owned(), serde_json::json!(layout.same).to_string());
        let metadata = serde_json::json!(metadata);
        let counts_at = SAFETENSORS.header_len(&metadata, &mut entries.iter().cloned());
        let mut file = BufWriter::with_capacity(1 << 16, file);
        SAFETENSORS.write_header(counts_at, &metadata, &mut entries.drain(..), &mut file)?;
        let matrices = layout.layers.iter().flatten().count();
        for _ in 0..matrices {
            file.write_all(&0_u64.to_le_bytes())?;
        }
        Ok(Self { file, counts_at, counts: Vec::with_capacity(matrices) })
    }

    /// Writes the moments of the next matrix.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn add(&mut self, moments: &Moments, matrix: &Linear) -> io::Result<()> {
        self.counts.push(moments.rows(matrix).unwrap_or(0));
        moments.write_triangle(matrix, &mut self.file)
    }

    /// Writes what is known at the end only.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.counts_at))?;
        for count in &self.counts {
            self.file.write_all(&count.to_le_bytes())?;
        }
        self.file.flush()
    }
}

/// Where the moments of a module lie in a file.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    offset: u64,
    columns: usize,
    /// Rows that the mean is of, one number or one an expert.
    counts: Vec<u64>,
}

/// A file of moments that was made before.
#[derive(Debug)]
pub struct MomentsFile {
    name: String,
    identity: Identity,
    file: File,
    places: BTreeMap<String, Place>,
    same: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl MomentsFile {
    /// Opens a file and checks all but its moments, which are checked when they are read.
    ///
    /// # Errors
    /// It cannot be read, or is no file of moments.
    pub fn open(path: &Path) -> Result<Self, Finding> {
        Self::open_as(path, &path.display().to_string())
    }

    /// The same of a file that messages name so.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: &Path, name: &str) -> Result<Self, Finding> {
        let name = name.to_owned();
        let unreadable = |error: &io::Error| wrong(format!("cannot read the moments `{name}`: {error}"));
        let (file, metadata) = regular::open_with_metadata(path).map_err(|error| unreadable(&error))?;
        let header = header::read(&file, metadata.len(), &name).map_err(|mut all| all.swap_remove(0))?;
        if header.metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(wrong(format!("`{name}` holds no second moments")));
        }
        let same = header.metadata.get("same").map_or("{}", String::as_str);
        let same: BTreeMap<String, String> = serde_json::from_str(same).map_err(|error| {
            wrong(format!("`same` of the moments `{name}` cannot be understood: {error}"))
        })?;
        let tensors: BTreeMap<String, _> = header.tensors().map(|t| (t.name.to_string(), t)).collect();
        let mut places = BTreeMap::new();
        for (tensor, found) in &tensors {
            let Some(module) = tensor.strip_suffix(".moments") else { continue };
            let bad = |what: &str| wrong(format!("`{tensor}` of `{name}` {what}"));
            let (experts, numbers) = match found.shape[..] {
                [numbers] => (1, numbers),
                [experts, numbers] => (experts, numbers),
                _ => return Err(bad("is no triangle and no stack of some")),
            };
            let columns = columns(numbers).ok_or_else(|| bad("is no triangle of a square matrix"))?;
            if found.dtype != Dtype::F32 {
                return Err(bad("is not F32"));
            }
            let counts = tensors
                .get(&format!("{module}.counts"))
                .filter(|counts| counts.dtype == Dtype::I64 && counts.shape == [experts])
                .ok_or_else(|| bad("has no counts of rows beside it"))?;
            let bytes = read(&file, counts.offset, counts.bytes).map_err(|error| unreadable(&error))?;
            let counts = bytes.as_chunks().0.iter().map(|b| u64::try_from(i64::from_le_bytes(*b)).ok());
            let counts = counts.collect::<Option<Vec<u64>>>().ok_or_else(|| bad("has counts below zero"))?;
            places.insert(module.to_owned(), Place { offset: found.offset, columns, counts });
        }
        if let Some((of, owner)) = same.iter().find(|(_, owner)| !places.contains_key(*owner)) {
            return Err(wrong(format!(
                "`{name}` has no moments of `{owner}`, which are those of `{of}` too"
            )));
        }
        let identity = Identity::of_file(&metadata);
        let metadata = header.metadata.into_iter().collect();
        Ok(Self { name, identity, file, places, same, metadata })
    }

    /// The identity of the file that was opened.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How many rows the moments of a matrix's inputs are of. None if the file says nothing of it.
    ///
    /// # Errors
    /// They are of another width, or of fewer experts.
    pub fn rows(&self, matrix: &Linear) -> Result<Option<u64>, Finding> {
        Ok(self.find(matrix)?.map(|(_, rows)| rows))
    }

    /// The place of a matrix's moments, and how many rows they are of.
    fn find(&self, matrix: &Linear) -> Result<Option<(&Place, u64)>, Finding> {
        let module = self.module(matrix);
        let Some(place) = self.places.get(module) else { return Ok(None) };
        let bad = |what: String| wrong(format!("the moments of `{module}` in `{}` {what}", self.name));
        if place.columns != matrix.columns {
            return Err(bad(format!("are of {} columns, not {}", place.columns, matrix.columns)));
        }
        let expert = expert(matrix);
        let rows = place.counts.get(expert).ok_or_else(|| bad(format!("have no expert {expert}")))?;
        Ok(Some((place, *rows)))
    }

    /// The module whose moments are those of a matrix.
    fn module<'a>(&'a self, matrix: &'a Linear) -> &'a str {
        self.same.get(matrix.module()).map_or(matrix.module(), String::as_str)
    }

    /// The mean of x xᵀ of a matrix's inputs, whole, and how many rows it is of. None if the file has none, or of no rows.
    ///
    /// # Errors
    /// They cannot be read, are of another width, or can be no moments: not finite, or larger off the diagonal than on it.
    pub fn mean(&self, matrix: &Linear) -> Result<Option<(Vec<f64>, u64)>, Finding> {
        let Some((place, rows)) = self.find(matrix)?.filter(|(_, rows)| *rows > 0) else { return Ok(None) };
        let module = self.module(matrix);
        let bad = |what: String| wrong(format!("the moments of `{module}` in `{}` {what}", self.name));
        let columns = place.columns;
        let bytes = 4 * triangle(columns as u64);
        let read = read(&self.file, place.offset + bytes * expert(matrix) as u64, bytes);
        let bytes = read.map_err(|error| bad(format!("cannot be read: {error}")))?;
        let mut values = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
        let mut whole = vec![0.0; columns * columns];
        for row in 0..columns {
            for (column, value) in (0..=row).zip(&mut values) {
                whole[row * columns + column] = value;
                whole[column * columns + row] = value;
            }
        }
        for row in 0..columns {
            let square = whole[row * columns + row];
            for column in 0..=row {
                let value = whole[row * columns + column];
                // By Cauchy and Schwarz, but for rounding.
                let most =
                    (square * whole[column * columns + column]).sqrt() * 1.001 + f64::from(f32::MIN_POSITIVE);
                if !value.is_finite() || square < 0.0 || value.abs() > most {
                    return Err(bad(format!(
                        "hold {value} for the columns {row} and {column}, which is no moment"
                    )));
                }
            }
        }
        Ok(Some((whole, rows)))
    }

    /// The mean square of each column of a matrix's inputs, which is the diagonal of its moments, and how many rows it is of. None if
    /// the file has none, or of no rows.
    ///
    /// # Errors
    /// As [`Self::mean`]; only the diagonal is looked at.
    pub fn mean_squares(&self, matrix: &Linear) -> Result<Option<(Vec<f32>, u64)>, Finding> {
        let Some((place, rows)) = self.find(matrix)?.filter(|(_, rows)| *rows > 0) else { return Ok(None) };
        let bad = |what: String| {
            wrong(format!("the moments of `{}` in `{}` {what}", self.module(matrix), self.name))
        };
        let numbers = triangle(place.columns as u64);
        let start = place.offset + 4 * numbers * expert(matrix) as u64;
        let mut squares = Vec::with_capacity(place.columns);
        for column in 0..place.columns as u64 {
            let mut number = [0; 4];
            positioned::read_exact_at(&self.file, &mut number, start + 4 * (triangle(column + 1) - 1))
                .map_err(|error| bad(format!("cannot be read: {error}")))?;
            let square = f32::from_le_bytes(number);
            if !square.is_finite() || square < 0.0 {
                return Err(bad(format!("hold {square} for the column {column}, which is no square")));
            }
            squares.push(square);
        }
        Ok(Some((squares, rows)))
    }

    /// What its metadata says of something.
    #[must_use]
    pub fn metadata(&self, what: &str) -> Option<&str> {
        self.metadata.get(what).map(String::as_str)
    }

    /// The modules that the file has moments of, of its own or of others with the same inputs.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.places.keys().chain(self.same.keys()).map(String::as_str)
    }
}

/// The number of a matrix in its stack.
fn expert(matrix: &Linear) -> usize {
    if let Part::Expert(expert) = matrix.part { expert } else { 0 }
}

fn read(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    // The header was refused if a tensor reaches beyond the file, so this is no more than the file has.
    let mut buffer = vec![0; usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?];
    positioned::read_exact_at(file, &mut buffer, offset)?;
    Ok(buffer)
}

/// Columns of a matrix whose triangle has so many numbers.
fn columns(numbers: u64) -> Option<usize> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "near enough, and then checked"
    )]
    let guess = ((numbers as f64 * 2.0).sqrt()) as u64;
    let found = (guess.saturating_sub(1)..=guess + 1)
        .find(|columns| *columns > 0 && triangle(*columns) == numbers)?;
    usize::try_from(found).ok()
}

fn wrong(message: String) -> Finding {
    Finding::error(code::MOMENTS, message)
        .help("`monoquant calibrate RECIPE -o FILE --moments FILE` makes one anew.")
}
