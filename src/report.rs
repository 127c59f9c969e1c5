//! Reports: the report of a run, and how runs, plans and models are shown to people and programs.

use std::io::{self, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::finding::Diagnostic;
use crate::ids::StageId;
pub use crate::plan::layout::{Left, REPORT_FILE_NAME as FILE_NAME};
pub use reading::{Ours, ours, parse, read, unreadable};
pub use rounding::{NearestRecord, RoundingRecord};
pub use scheme::{ObserverRecord, SchemeRecord};

pub mod comparison;
pub(crate) mod engines;
pub mod evaluation;
mod failed;
pub(crate) mod ledger;
mod machine;
pub(crate) mod measured;
mod reading;
mod rounding;
mod scheme;

/// The version of the report's format.
pub const VERSION: u32 = 2;

/// The full record of a run, as `monoquant-report.json` holds it. Nothing in it depends on the time or the speed of
/// the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The version of this format.
    pub report_version: u32,
    /// The version of monoquant that wrote it.
    pub monoquant: String,
    /// The outcome.
    pub verdict: Verdict,
    /// The recipe, defaults filled in and overrides applied.
    pub recipe: serde_json::Value,
    /// The model's weight files, as they were read.
    pub source: Vec<FileRecord>,
    /// The outputs, in the order of the `export` stages.
    pub outputs: Vec<OutputRecord>,
    /// Sizes of the whole.
    pub sizes: Sizes,
    /// Quality of the whole. None if nothing was measured.
    pub quality: Option<Quality>,
    /// What the `evaluate` stages have found, one entry per stage and output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<evaluation::Evaluation>,
    /// The stages that judge or publish, in order.
    pub gates: Vec<GateRecord>,
    /// Every warning and error, whatever `on_failure` said.
    pub warnings: Vec<Diagnostic>,
    /// Every tensor of the source, exactly once.
    pub tensors: Vec<TensorRecord>,
    /// Whether bytes in and out add up.
    pub balance: Balance,
    /// The comparison with the report of `--baseline`. Never in the report of an output, which does not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<comparison::Comparison>,
    /// The BLAKE3 hash in hexadecimal of this file with nothing between these quotes: a report that was edited is known by it, and
    /// one without it is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The final verdict on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whether every gate let the run pass.
    pub passed: bool,
    /// The exit status of the process.
    pub exit_status: u8,
    /// One sentence.
    pub summary: String,
}

/// A file with its size and the digests that identify its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRecord {
    /// Its name in its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its CRC-64/NVME in hexadecimal, the checksum that object stores call `crc64nvme`.
    pub crc64nvme: String,
    /// Its BLAKE3 hash in hexadecimal, if an `export` stage says `digest: blake3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// One `export` stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputRecord {
    /// Index of the stage in the recipe, from 0.
    pub stage: StageId,
    /// The path as the recipe has it; the name alone of a path from the root of the machine.
    pub path: String,
    /// `compressed-tensors` or `dequantized`.
    pub format: String,
    /// Whether it was published.
    pub published: bool,
    /// Its weight files.
    pub files: Vec<FileRecord>,
    /// Names of the files that were carried over.
    pub copied: Vec<String>,
    /// The files beside the weights, carried over or made, with what identifies their bytes; but for the report itself. Empty in
    /// reports of earlier versions.
    #[serde(default)]
    pub others: Vec<FileRecord>,
    /// The file with the SHA-256 hashes of all others, if the recipe asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<String>,
    /// Source files that were left behind, and why.
    #[serde(default)]
    pub left: Vec<Left>,
    /// How vLLM and SGLang serve the output, if it targets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<engines::EngineRecord>,
}

/// Sizes of the whole, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sizes {
    /// All weight files of the source.
    pub source: u64,
    /// All weight files of each output.
    pub outputs: Vec<u64>,
    /// Source over the first output.
    pub compression_ratio: f64,
}

/// Quality over all quantized tensors. Decibels are never averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quality {
    /// Energy of all weights over energy of all errors, in dB. None if there is no error or no signal.
    pub sqnr_db: Option<f64>,
    /// As `sqnr_db`, over the tensors whose columns are weighed by activation statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_sqnr_db: Option<f64>,
    /// The lowest SQNR of any tensor, in dB.
    pub min_sqnr_db: Option<f64>,
    /// The 5th percentile of the tensors' SQNR, in dB.
    pub p5_sqnr_db: Option<f64>,
    /// The median of the tensors' SQNR, in dB.
    pub median_sqnr_db: Option<f64>,
    /// How many tensors were measured.
    pub measured: usize,
}

/// The result of a stage that judges or publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GateRecord {
    /// Index of the stage in the recipe, from 0.
    pub stage: StageId,
    /// Its name.
    pub name: String,
    /// The outcome of the stage.
    pub outcome: GateOutcome,
    /// One line for people.
    pub summary: String,
}

/// The outcome of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateOutcome {
    /// Nothing to complain about, or published.
    Passed,
    /// There are warnings; the run goes on.
    Warned,
    /// It failed, and its `on_failure` lets the run go on.
    FailedAndIgnored,
    /// It failed, and the run ended.
    Failed,
    /// An earlier stage failed.
    NotReached,
}

impl GateOutcome {
    /// The outcome in a few words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            GateOutcome::Passed => "passed",
            GateOutcome::Warned => "passed with warnings",
            GateOutcome::FailedAndIgnored => "failed, and the recipe goes on",
            GateOutcome::Failed => "FAILED",
            GateOutcome::NotReached => "not reached",
        }
    }
}

/// One tensor of the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TensorRecord {
    /// Its name in the source.
    pub name: String,
    /// Its type in the source.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its kind, inferred or corrected.
    pub kind: String,
    /// Its role, if it has one.
    pub role: Option<String>,
    /// Its file in the source.
    pub file: String,
    /// `quantized`, `kept`, or `consumed` (the scales of an FP8 source).
    pub action: String,
    /// The scheme, if it is quantized.
    #[serde(default, deserialize_with = "scheme::or_words")]
    pub scheme: Option<SchemeRecord>,
    /// What `rounding: gptq` has made of it, if its stage asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RoundingRecord>,
    /// Index of the deciding stage, if a stage decided.
    pub stage: Option<StageId>,
    /// The deciding rule.
    pub rule: String,
    /// The line of that rule in the recipe, from 1.
    pub line: Option<usize>,
    /// Why, in the words in which tensors are counted together.
    pub reason: String,
    /// Bytes in the source.
    pub bytes_in: u64,
    /// Bytes in each output.
    pub bytes_out: Vec<u64>,
    /// How far the quantized weights are from the source.
    pub metrics: Option<Metrics>,
}

/// The distance of a tensor's quantized weights from the source. Weights are compared as an engine sees them:
/// dequantized, in the type of their scales.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// 10·log10 of Σw² over Σe², in dB. None for a tensor of zeros, or without error.
    pub sqnr_db: Option<f64>,
    /// Why there is no SQNR.
    pub sqnr_note: Option<String>,
    /// 10·log10 of Σ importance·w² over Σ importance·e², in dB, if activation statistics weigh the columns. This is
    /// the closest estimate of the SQNR of the layer's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_sqnr_db: Option<f64>,
    /// The SQNR that the scheme reaches on Gaussian weights of this width, in dB. None for the observers `percentile`
    /// and `imatrix-mse`, and if activation statistics weigh the search for ranges.
    pub expected_sqnr_db: Option<f64>,
    /// Cosine of the angle between source and dequantized weights.
    pub cosine: Option<f64>,
    /// The largest error.
    pub max_abs_error: f64,
    /// Its row and column.
    pub max_abs_error_at: [u64; 2],
    /// The module of the matrix that it is in, if the tensor is a stack of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_abs_error_module: Option<String>,
    /// The largest dequantized magnitude.
    pub max_abs_weight: f64,
    /// Share of the weights that lie outside what the codes can represent.
    pub clipped_share: f64,
    /// The group with the least SQNR.
    pub worst_group: Option<WorstGroup>,
}

/// The group of a tensor with the lowest SQNR.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorstGroup {
    /// The module of the matrix that it is in, if the tensor is a stack of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Its row.
    pub row: u64,
    /// Its first column.
    pub column: u64,
    /// Its SQNR, in dB.
    pub sqnr_db: f64,
}

/// The ledger: source tensors against the output, to the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Balance {
    /// Tensors of the source.
    pub tensors: usize,
    /// Of those, quantized.
    pub quantized: usize,
    /// Of those, kept.
    pub kept: usize,
    /// Bytes of all source tensors.
    pub tensor_bytes_in: u64,
    /// Bytes of headers in the source files.
    pub header_bytes_in: u64,
    /// Bytes of all tensors of each output.
    pub tensor_bytes_out: Vec<u64>,
    /// Bytes of headers in the files of each output.
    pub header_bytes_out: Vec<u64>,
    /// Whether all of it adds up to the sizes of the files.
    pub balanced: bool,
}

/// How the line of a report begins that holds its digest.
const DIGEST: &str = "\n  \"digest\": \"";

/// Gives a report its digest: the hash of its text with none.
pub fn seal(report: &mut Report) {
    report.digest = Some(String::new());
    let mut hasher = blake3::Hasher::new();
    // A hash takes everything.
    let _ = write(report, &mut hasher);
    report.digest = Some(hasher.finalize().to_hex().to_string());
}

/// Writes the text of a report. It has some hundred bytes a tensor, and is not held.
///
/// # Errors
/// If it cannot be written.
pub fn write(report: &Report, out: impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, out);
    serde_json::to_writer_pretty(&mut out, report)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// What is said of a report that was changed.
const EDITED: &str = "was edited since it was written";
const NO_DIGEST: &str = "was edited since it was written: it has no digest of itself";

/// What tells that the text of a report is not as it was written, to follow the name of its file. There is no version that wrote
/// reports without a digest.
#[must_use]
pub fn edited(text: &str, report: &Report) -> Option<&'static str> {
    let Some(digest) = &report.digest else {
        return Some(NO_DIGEST);
    };
    let is_as_written = text.rfind(DIGEST).map(|at| at + DIGEST.len()).is_some_and(|start| {
        text[start..].strip_prefix(digest.as_str()).is_some_and(|rest| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&text.as_bytes()[..start]).update(rest.as_bytes());
            hasher.finalize().to_hex().as_str() == digest
        })
    });
    (!is_as_written).then_some(EDITED)
}

/// The JSON Schema of the report.
#[must_use]
pub fn schema_text() -> String {
    let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.root_schema_for::<Report>();
    schema.insert("title".to_owned(), "monoquant report".into());
    format!("{:#}\n", schema.as_value())
}
