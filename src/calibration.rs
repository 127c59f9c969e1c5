//! Activation statistics: what the columns of each layer's weights were multiplied with, from a file that was made by running the
//! model on text.
//!
//! Three formats are told apart by their content: safetensors with `MODULE.in_sum2` and `MODULE.counts`, llama.cpp's importance
//! matrix as GGUF, and its older binary file.

use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::quant::{BadStatistics, Importance};

mod cursor;
mod gguf;
mod legacy;
pub mod names;
mod safetensors;

/// Files above this are no statistics: those of the largest models have some hundred MiB.
const LARGEST: u64 = 1 << 30;

/// The format of a file of statistics.
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

/// What is known of the inputs of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleStatistics {
    /// Its name as the file has it, without `.weight`.
    pub name: String,
    /// Sums of squared activations, one a column; for several matrices one after another.
    pub sums: Vec<f32>,
    /// What the sums are divided by to be means: tokens; one number, or one a matrix.
    pub counts: Vec<f64>,
}

/// A file of statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Its format.
    pub format: Format,
    /// The modules, in the order of the file.
    pub modules: Vec<ModuleStatistics>,
    /// Samples (chunks, for an importance matrix) that were run; none where the file does not say.
    pub samples: Option<u64>,
    /// Tokens that were run; none where the file does not say.
    pub tokens: Option<u64>,
    /// What text was run.
    pub sources: Vec<String>,
}

/// Why a module's statistics do not fit a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongLength {
    /// Columns of the matrix.
    pub expected: u64,
    /// Numbers that there are.
    pub found: usize,
}

impl ModuleStatistics {
    /// The sums and the count of one matrix of `columns` columns; `matrix` is its number where the module is a stack of several.
    fn of(&self, columns: u64, matrix: Option<usize>) -> Result<(&[f32], f64), WrongLength> {
        let wrong = WrongLength { expected: columns, found: self.sums.len() };
        let width = usize::try_from(columns).map_err(|_| wrong)?;
        let (first, count) = match matrix {
            Some(number) if self.sums.len() > width => (number * width, number),
            _ if self.sums.len() == width => (0, 0),
            _ => return Err(wrong),
        };
        let sums =
            self.sums.get(first..first + width).filter(|_| self.sums.len().is_multiple_of(width.max(1)));
        let count = if self.counts.len() == 1 { self.counts.first() } else { self.counts.get(count) };
        sums.zip(count.copied()).ok_or(wrong)
    }

    /// The importance of the columns of one matrix; none where no token was routed to it.
    ///
    /// # Errors
    /// Where there are not as many numbers as columns.
    pub fn importance(&self, columns: u64, matrix: Option<usize>) -> Result<Option<Importance>, WrongLength> {
        let (sums, count) = self.of(columns, matrix)?;
        // Anything else that is wrong was found when the file was read.
        Ok(Importance::new(sums, count).ok())
    }

    /// Tokens that a matrix has seen.
    #[must_use]
    pub fn tokens(&self, matrix: Option<usize>) -> Option<f64> {
        if self.counts.len() == 1 { self.counts.first().copied() } else { self.counts.get(matrix?).copied() }
    }

    /// The first thing that makes these numbers no statistics. A matrix of several that saw no token has none, which is no error.
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

/// Reads a file of statistics.
///
/// # Errors
/// [`Exit::BadModel`] where it cannot be read, is of no known format, is cut off, or holds numbers that are no statistics.
pub fn read(path: &Path) -> Result<Statistics, Failure> {
    let shown = path.display();
    let cannot = |error: std::io::Error| {
        let finding = Finding::error("calibration::unreadable", format!("cannot read {shown}: {error}"));
        Failure::new(Exit::BadModel, finding.help("`calibration` names a file of activation statistics."))
    };
    let len = std::fs::metadata(path).map_err(cannot)?.len();
    if len > LARGEST {
        let message = format!("{shown} is too large for activation statistics ({} MiB)", len >> 20);
        return Err(Failure::new(Exit::BadModel, Finding::error("calibration::unknown-format", message)));
    }
    let bytes = std::fs::read(path).map_err(cannot)?;
    parse(&bytes).map_err(|finding| {
        let message = format!("{shown}: {}", finding.message);
        Failure::new(Exit::BadModel, Finding { message, ..finding })
    })
}

/// Whether a path is a file of statistics rather than a model: by its name, or by the names in its header.
#[must_use]
pub fn is_statistics(path: &Path) -> bool {
    use std::io::Read;
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    if !path.is_file() {
        return false;
    }
    if [".gguf", ".dat", ".imatrix"].iter().any(|end| name.ends_with(end)) {
        return true;
    }
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(1 << 20).read_to_end(&mut head));
    read.is_ok() && head.windows(10).any(|window| window == b".in_sum2\":")
}

/// Parses the bytes of a file of statistics.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<Statistics, Finding> {
    let statistics = if bytes.starts_with(b"GGUF") {
        gguf::parse(bytes)?
    } else if bytes.get(8) == Some(&b'{') {
        safetensors::parse(bytes)?
    } else {
        legacy::parse(bytes)?
    };
    if statistics.modules.is_empty() {
        return Err(Finding::error("calibration::no-modules", "there are no statistics in the file")
            .help("They are tensors named `MODULE.in_sum2` and `MODULE.counts`."));
    }
    for module in &statistics.modules {
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

/// A file that ends before what it promises.
fn truncated() -> Finding {
    Finding::error("calibration::truncated", "the file ends before what its header promises")
        .help("It was cut off while it was written or copied; get it again.")
}
