//! Activation statistics: measurements of the activations that multiply the columns of each layer's weights. They
//! come from a file that was made by running the model on text.
//!
//! Three formats are told apart by their content: safetensors with `MODULE.in_sum2` and `MODULE.counts`, llama.cpp's
//! importance matrix as GGUF, and its older binary file.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::regular;
use crate::quant::{BadStatistics, Importance};

mod cursor;
mod gguf;
pub(crate) mod imatrix_dat;
pub mod names;
mod safetensors;

/// Files above this are no statistics: those of the largest mixtures of experts have a GiB or two.
const LARGEST: u64 = 4 << 30;

/// Number of leading bytes that are read to decide if a file holds statistics.
const HEAD: u64 = 1 << 20;

/// The format of a statistics file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `MODULE.in_sum2` and `MODULE.counts`, with the model's own names.
    Safetensors,
    /// llama.cpp's importance matrix.
    Gguf,
    /// llama.cpp's older binary file.
    Legacy,
}

impl Format {
    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "GGUF importance matrix",
            Self::Legacy => "binary importance matrix",
        }
    }
}

/// Statistics of the inputs of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleStatistics {
    /// Its name as the file has it, without `.weight`.
    pub name: String,
    /// Sums of squared activations, one per column. The sums of several matrices follow one another.
    pub sums: Vec<f32>,
    /// Token counts by which the sums are divided to get means: one number, or one per matrix.
    pub counts: Vec<f64>,
}

/// The content of a statistics file.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Its format.
    pub format: Format,
    /// The modules, in the order of the file.
    pub modules: Vec<ModuleStatistics>,
    /// Number of samples (chunks, for an importance matrix) that were run. None if the file does not say.
    pub samples: Option<u64>,
    /// Number of tokens that were run. None if the file does not say.
    pub tokens: Option<u64>,
    /// The texts that were run.
    pub sources: Vec<String>,
}

/// The reason why a module's statistics do not fit a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongLength {
    /// The expected number of values: one per column.
    pub expected: u64,
    /// Numbers that there are.
    pub found: usize,
}

impl ModuleStatistics {
    /// The sums and the count of one matrix of `columns` columns. `matrix` is its index if the module is a stack of
    /// several matrices.
    fn of(&self, columns: u64, matrix: Option<usize>) -> Result<(&[f32], f64), WrongLength> {
        let wrong = WrongLength { expected: columns, found: self.sums.len() };
        let width = usize::try_from(columns).ok().filter(|width| *width > 0).ok_or(wrong)?;
        // Several counts give the number of matrices. With a single count, only the columns do.
        if self.counts.len() > 1 && self.counts.len().checked_mul(width) != Some(self.sums.len()) {
            return Err(wrong);
        }
        let number = match matrix {
            Some(number) if self.sums.len() > width => number,
            _ if self.sums.len() == width => 0,
            _ => return Err(wrong),
        };
        let first = number.checked_mul(width).ok_or(wrong)?;
        let sums = self.sums.get(first..).and_then(|sums| sums.get(..width)).ok_or(wrong)?;
        let count = if self.counts.len() == 1 { self.counts.first() } else { self.counts.get(number) };
        Ok((sums, *count.ok_or(wrong)?))
    }

    /// Whether the sums are those of `matrices` matrices of `columns` columns, or of one matrix that represents all
    /// of them.
    ///
    /// # Errors
    /// If there are more or fewer.
    pub fn fits(&self, columns: u64, matrices: usize) -> Result<(), WrongLength> {
        let expected = columns.saturating_mul(matrices as u64);
        let found = self.sums.len() as u64;
        if found == expected || found == columns {
            return Ok(());
        }
        Err(WrongLength { expected, found: self.sums.len() })
    }

    /// The importance of the columns of one matrix. None if no token was routed to it.
    ///
    /// # Errors
    /// If the number of values differs from the number of columns.
    pub fn importance(&self, columns: u64, matrix: Option<usize>) -> Result<Option<Importance>, WrongLength> {
        let (sums, count) = self.of(columns, matrix)?;
        // The older binary file, and what is made of it, has a mean square of exactly 1 in every column of an expert that no
        // token was routed to. Measured columns are never all equal to 1.
        if matrix.is_some() && sums.iter().all(|&sum| f64::from(sum) == count) {
            return Ok(None);
        }
        // Anything else that is wrong was found when the file was read.
        Ok(Importance::new(sums, count).ok())
    }

    /// The number of tokens that a matrix has seen.
    #[must_use]
    pub fn tokens(&self, matrix: Option<usize>) -> Option<f64> {
        if self.counts.len() == 1 { self.counts.first().copied() } else { self.counts.get(matrix?).copied() }
    }

    /// The first reason why these numbers are not valid statistics. In a stack, a matrix that saw no token has no
    /// statistics, which is not an error.
    fn check(&self) -> Option<BadStatistics> {
        let matrices = self.counts.len().max(1);
        let width = self.sums.len() / matrices;
        for (matrix, &count) in self.counts.iter().enumerate() {
            let sums = &self.sums[matrix * width..(matrix + 1) * width];
            match Importance::new(sums, count) {
                Err(BadStatistics::NoTokens) if matrices > 1 => {}
                Err(BadStatistics::NotANumber(column)) => {
                    return Some(BadStatistics::NotANumber(matrix * width + column));
                }
                Err(BadStatistics::Infinite(column)) => {
                    return Some(BadStatistics::Infinite(matrix * width + column));
                }
                Err(BadStatistics::Negative(column)) => {
                    return Some(BadStatistics::Negative(matrix * width + column));
                }
                Err(bad) => return Some(bad),
                Ok(_) => {}
            }
        }
        None
    }
}

/// What a recipe can give.
const NAMES: &str = "`calibration` names a file of activation statistics.";

/// Reads a statistics file.
///
/// # Errors
/// [`Exit::BadModel`] if the file cannot be read, has an unknown format, is truncated, or holds numbers that are not
/// valid statistics.
pub fn read(path: &Path) -> Result<Statistics, Failure> {
    let shown = path.display();
    let cannot = |error: std::io::Error| {
        let finding = Finding::error("calibration::unreadable", format!("cannot read {shown}: {error}"));
        Failure::new(Exit::BadModel, finding.help(NAMES))
    };
    let (file, metadata) = regular::open_with_metadata(path).map_err(cannot)?;
    if metadata.len() > LARGEST {
        let mib = metadata.len() >> 20;
        let message = format!("{shown} is too large for activation statistics ({mib} MiB)");
        let finding = Finding::error("calibration::unknown-format", message);
        return Err(Failure::new(Exit::BadModel, finding.help(NAMES)));
    }
    let bytes = regular::read_all(file, metadata.len(), LARGEST).map_err(cannot)?;
    parse(&bytes).map_err(|finding| {
        let message = format!("{shown}: {}", finding.message);
        Failure::new(Exit::BadModel, Finding { message, ..finding })
    })
}

/// Whether a path is a statistics file rather than a model. The first bytes of the file decide. If they are
/// inconclusive, its name decides.
#[must_use]
pub fn is_statistics(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = regular::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if read.is_err() {
        return false;
    }
    if begins_as_safetensors(&head) {
        return head.windows(10).any(|window| window == b".in_sum2\":");
    }
    let is_named =
        |name: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(name));
    head.starts_with(gguf::MAGIC)
        || crate::calibration::imatrix_dat::begins(&head)
        || ["gguf", "dat", "imatrix"].into_iter().any(is_named)
}

/// Whether bytes begin as a safetensors file does: a length, and a JSON object of that length.
fn begins_as_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// Parses the bytes of a statistics file.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<Statistics, Finding> {
    let statistics = if bytes.starts_with(gguf::MAGIC) {
        gguf::parse(bytes)?
    } else if begins_as_safetensors(bytes) {
        safetensors::parse(bytes)?
    } else {
        crate::calibration::imatrix_dat::parse(bytes)?
    };
    if statistics.modules.is_empty() {
        return Err(Finding::error("calibration::no-modules", "there are no statistics in the file")
            .help("They are tensors named `MODULE.in_sum2` and `MODULE.counts`."));
    }
    let mut names = HashSet::new();
    for module in &statistics.modules {
        if !names.insert(module.name.as_str()) {
            return Err(same_name(&module.name));
        }
        if module.sums.is_empty() || module.counts.is_empty() {
            let message = format!("the statistics of `{}` are empty", module.name);
            return Err(Finding::error("calibration::wrong-shape", message)
                .help("They are one sum per column, and at least one count; collect them again."));
        }
        if let Some(bad) = module.check() {
            let code = match bad {
                BadStatistics::NoTokens | BadStatistics::BadCount(_) => "calibration::bad-count",
                _ => "calibration::bad-value",
            };
            return Err(Finding::error(
                code,
                format!("the statistics of `{}` are unusable: {bad}", module.name),
            )
            .help("Collect them again; `examples/calibration/collect.py` makes them for any model."));
        }
    }
    Ok(statistics)
}

/// A name that occurs twice.
fn same_name(name: &str) -> Finding {
    Finding::error("calibration::same-name", format!("there are two tensors or entries named `{name}`"))
        .help("Only one of them could be used; collect the statistics again.")
}

/// The finding for a file that is shorter than it declares.
fn truncated() -> Finding {
    Finding::error("calibration::truncated", "the file ends before what its header promises")
        .help("It was cut off while it was written or copied; get it again.")
}
