//! Assembly of a run's report: every source tensor exactly once, with the action and its reason, and bytes that must
//! add up.

use std::path::Path;

use super::{
    Balance, FileRecord, GateRecord, Metrics, OutputRecord, Quality, Report, SchemeRecord, Sizes,
    TensorRecord, Verdict, WorstGroup,
};
use crate::digest::Digest;
use crate::finding::{Diagnostic, Failure, Finding};
use crate::ids::{ExportId, FileId, IdVec, ShardId, StageId, TaskId, TensorId};
use crate::plan::copies::SUMS_FILE_NAME;
use crate::plan::select::matrix_shape;
use crate::plan::{Action, Plan};
use crate::quant::{Distortion, Granularity};
use crate::recipe::public_path;
use crate::report::evaluation::Evaluation;
use crate::report::measured::Extremes;
use crate::stage::Stage;
use crate::stage::export::Format;

/// The results that a run adds to its plan.
#[derive(Debug)]
pub(crate) struct Results<'a> {
    /// The distortion of each source tensor that was quantized.
    pub distortions: &'a IdVec<TensorId, Option<Distortion>>,
    /// Where the extremes of each of these are.
    pub extremes: &'a IdVec<TensorId, Option<Extremes>>,
    /// The digest of each source file.
    pub source_files: &'a IdVec<ShardId, Digest>,
    /// The digest of each file of each export.
    pub output_files: &'a IdVec<ExportId, IdVec<FileId, Digest>>,
    /// Size and digest of the files of each export that are not weights.
    pub other_files: Vec<Vec<FileRecord>>,
    /// What the comparisons with the original have found.
    pub evaluations: Vec<Evaluation>,
    /// The decisions of the stages that judge or publish.
    pub gates: Vec<GateRecord>,
    /// Complaints of gates; the critical ones are errors, whatever `on_failure` says.
    pub complaints: Vec<Finding>,
    /// Whether each export is published.
    pub published: Vec<bool>,
    /// The outcome.
    pub verdict: Verdict,
}

/// Builds the report.
///
/// # Errors
/// If the recipe cannot be written as JSON.
pub(crate) fn report(plan: &Plan, results: Results<'_>) -> Result<Report, Failure> {
    let file = |name: &str, bytes: u64, digest: &Digest| FileRecord {
        name: name.to_owned(),
        bytes,
        crc64nvme: digest.crc64.map(|crc| format!("{crc:016x}")).unwrap_or_default(),
        blake3: digest.blake3.clone(),
    };
    let source = plan
        .model
        .shards
        .iter()
        .zip(results.source_files)
        .map(|(shard, digest)| file(&shard.name, shard.len, digest))
        .collect();
    let outputs = plan
        .exports
        .iter()
        .zip(results.output_files)
        .zip(&results.published)
        .zip(results.other_files)
        .map(|(((export, digests), published), others)| OutputRecord {
            stage: export.stage,
            path: written_path(plan, export.stage),
            format: format_name(export.format).to_owned(),
            published: *published,
            files: export
                .files
                .iter()
                .zip(digests)
                .map(|(f, digest)| file(&f.name, f.bytes, digest))
                .collect(),
            copied: export.copies.iter().map(|&index| plan.model.others[index].path.clone()).collect(),
            others,
            sums: export.sums.then(|| SUMS_FILE_NAME.to_owned()),
            left: export.left.clone(),
            engines: super::engines::of(plan, export.stage),
        })
        .collect();
    let findings = results.complaints.iter().chain(&plan.warnings);
    let mut warnings: Vec<Diagnostic> =
        findings.map(|finding| Diagnostic::of(finding).without_folders()).collect();
    warnings.extend(plan.notes.iter().map(|note| Diagnostic::note("plan::note", note)));
    let tensors = tensors(plan, results.distortions, results.extremes);
    // A file has a checksum once every byte of it was seen. A file without one was not read or written whole.
    let mut digests = results.source_files.iter().chain(results.output_files.iter().flatten());
    let is_whole = digests.all(|digest| digest.crc64.is_some());
    let balance = balance(plan, &tensors);
    let mut report = Report {
        report_version: super::VERSION,
        monoquant: env!("CARGO_PKG_VERSION").to_owned(),
        verdict: results.verdict,
        recipe: plan.loaded.written_recipe()?,
        source,
        outputs,
        sizes: sizes(plan),
        quality: quality(results.distortions),
        evaluations: results.evaluations,
        gates: results.gates,
        warnings,
        balance: Balance { balanced: balance.balanced && is_whole, ..balance },
        tensors,
        baseline: None,
        digest: None,
    };
    report.tell_without(
        [Some(plan.loaded.base.as_path()), plan.model.source.folder()]
            .into_iter()
            .flatten()
            .map(Path::to_owned),
    );
    Ok(report)
}

/// The word for a format in reports.
#[must_use]
pub(crate) fn format_name(format: Format) -> &'static str {
    match format {
        Format::CompressedTensors => "compressed-tensors",
        Format::Dequantized => "dequantized",
    }
}

/// The path of an `export` stage as the recipe has it; of a path from the root its last name.
#[must_use]
pub(crate) fn written_path(plan: &Plan, stage: StageId) -> String {
    match &plan.recipe().stages[stage] {
        Stage::Export(export) => {
            let written = plan.loaded.written(&format!("/stages/{stage}/path")).unwrap_or(&export.path);
            public_path("path", written).unwrap_or_else(|| written.to_owned())
        }
        _ => String::new(),
    }
}

/// Sizes of a plan's source and outputs.
#[must_use]
pub(crate) fn sizes(plan: &Plan) -> Sizes {
    let source = plan.source_bytes();
    let outputs: Vec<u64> = plan.exports.iter().map(crate::plan::ExportPlan::weight_bytes).collect();
    let first = outputs.first().copied().unwrap_or(0).max(1);
    Sizes { source, outputs, compression_ratio: source as f64 / first as f64 }
}

/// Quality over all measured tensors. None if nothing was measured.
#[must_use]
pub(crate) fn quality(distortions: &[Option<Distortion>]) -> Option<Quality> {
    let mut all = Distortion::default();
    let mut values = Vec::new();
    let mut measured = 0;
    for distortion in distortions.iter().flatten() {
        all.merge(distortion, 0);
        measured += 1;
        values.extend(distortion.sqnr_db());
    }
    values.sort_by(f64::total_cmp);
    let finite = |value: f64| value.is_finite().then_some(value);
    // The nearest rank: an SQNR that some tensor really has.
    let rank = |share: f64| {
        let index = (share * values.len() as f64).ceil() as usize;
        values.get(index.max(1) - 1).copied().and_then(finite)
    };
    (measured > 0).then(|| Quality {
        sqnr_db: all.sqnr_db().and_then(finite),
        weighted_sqnr_db: all.weighted_sqnr_db().and_then(finite),
        min_sqnr_db: values.first().copied().and_then(finite),
        p5_sqnr_db: rank(0.05),
        median_sqnr_db: rank(0.5),
        measured,
    })
}

/// Bytes that each source tensor has in each export.
pub(crate) struct BytesOut {
    exports: usize,
    bytes: Vec<u64>,
}

impl BytesOut {
    /// Those of one tensor.
    pub(crate) fn of(&self, tensor: TensorId) -> &[u64] {
        &self.bytes[tensor.index() * self.exports..][..self.exports]
    }
}

/// Bytes that each source tensor has in each export of a plan.
pub(crate) fn bytes_out(plan: &Plan) -> BytesOut {
    let (exports, content) = (plan.exports.len(), plan.content());
    let mut bytes = vec![0; exports * plan.model.tensors.len()];
    for (index, export) in plan.exports.iter().enumerate() {
        for tensor in &export.tensors {
            bytes[tensor.tensor(content).index() * exports + index] += tensor.bytes(content);
        }
    }
    BytesOut { exports, bytes }
}

fn tensors(
    plan: &Plan,
    distortions: &IdVec<TensorId, Option<Distortion>>,
    extremes: &IdVec<TensorId, Option<Extremes>>,
) -> Vec<TensorRecord> {
    let bytes_out = bytes_out(plan);
    plan.model
        .tensors
        .numbered()
        .map(|(index, tensor)| {
            let (decision, class) = (&plan.decisions[index], &plan.classes[index]);
            let action = match decision.action {
                _ if tensor.part_of.is_some() => "consumed",
                Action::Quantize(ref spec) if spec.is_relabelled => "re-labelled",
                Action::Quantize(_) => "quantized",
                Action::Keep => "kept",
            };
            TensorRecord {
                name: tensor.name.to_string(),
                dtype: tensor.stored.name().to_owned(),
                shape: tensor.shape.to_vec(),
                kind: class.kind.name().to_owned(),
                role: class.role.map(|role| role.name().to_owned()),
                file: plan.model.shards[tensor.shard].name.clone(),
                action: action.to_owned(),
                scheme: decision.spec().map(SchemeRecord::of),
                rounding: super::rounding::of(plan, index),
                stage: decision.spec().map(|spec| spec.stage),
                rule: decision.rule.text.to_string(),
                line: plan.line(&decision.rule),
                reason: decision.rule.reason.to_string(),
                bytes_in: tensor.bytes,
                bytes_out: bytes_out.of(index).to_vec(),
                metrics: distortions[index]
                    .as_ref()
                    .map(|distortion| metrics(plan, index, distortion, extremes[index])),
            }
        })
        .collect()
}

fn metrics(plan: &Plan, tensor: TensorId, distortion: &Distortion, extremes: Option<Extremes>) -> Metrics {
    // The name of a tensor does not tell in which of the matrices of a stack a row is.
    let module = |of: fn(Extremes) -> TaskId| plan.tasks[extremes.map(of)?].own_module().map(str::to_owned);
    let spec = plan.decisions[tensor].spec();
    let columns = matrix_shape(&plan.model.tensors[tensor]).map_or(1, |(_, columns)| columns) as usize;
    let sqnr = distortion.sqnr_db();
    let sqnr_note = match sqnr {
        Some(sqnr) if sqnr.is_finite() => None,
        Some(_) => Some("nothing was lost"),
        None if distortion.signal == 0.0 => Some("all weights are zero"),
        None => Some("not measurable"),
    };
    let group = spec.map_or(columns, |spec| match spec.scheme.granularity {
        Granularity::Group(size) | Granularity::Block(size) => size,
        Granularity::Channel | Granularity::Tensor => columns,
    });
    Metrics {
        sqnr_db: sqnr.filter(|sqnr| sqnr.is_finite()),
        weighted_sqnr_db: distortion.weighted_sqnr_db().filter(|sqnr| sqnr.is_finite()),
        sqnr_note: sqnr_note.map(str::to_owned),
        expected_sqnr_db: plan.expected_sqnr(tensor),
        cosine: distortion.cosine(),
        max_abs_error: f64::from(distortion.max_abs_error),
        max_abs_error_at: [distortion.max_abs_error_at.0 as u64, distortion.max_abs_error_at.1 as u64],
        max_abs_error_module: module(|extremes| extremes.max_abs_error),
        max_abs_weight: f64::from(distortion.max_abs_weight),
        clipped_share: distortion.clipped_share(),
        worst_group: distortion.worst_group.map(|worst| WorstGroup {
            module: module(|extremes| extremes.worst_group),
            row: worst.row as u64,
            column: (worst.group * group) as u64,
            sqnr_db: worst.sqnr_db(),
        }),
    }
}

fn balance(plan: &Plan, tensors: &[TensorRecord]) -> Balance {
    let tensor_bytes_in: u64 = tensors.iter().map(|tensor| tensor.bytes_in).sum();
    let header_bytes_in: u64 = plan.model.shards.iter().map(|shard| shard.data_start).sum();
    let exports = plan.exports.len();
    let tensor_bytes_out: Vec<u64> =
        (0..exports).map(|export| tensors.iter().map(|tensor| tensor.bytes_out[export]).sum()).collect();
    let header_bytes_out: Vec<u64> =
        plan.exports.iter().map(|export| export.files.iter().map(|file| file.header_len).sum()).collect();
    let in_balances = tensor_bytes_in + header_bytes_in == plan.source_bytes();
    let sums = tensor_bytes_out.iter().zip(&header_bytes_out);
    let out_balances = sums
        .zip(&plan.exports)
        .all(|((tensors, headers), export)| tensors + headers == export.weight_bytes());
    // A tensor that reaches the output in no form at all is lost, unless it held the scales of another.
    let none_lost = tensors.iter().all(|tensor| {
        tensor.action == "consumed" || tensor.bytes_in == 0 || tensor.bytes_out.iter().all(|bytes| *bytes > 0)
    });
    let quantized =
        tensors.iter().filter(|tensor| matches!(tensor.action.as_str(), "quantized" | "re-labelled")).count();
    let kept = tensors.iter().filter(|tensor| tensor.action == "kept").count();
    Balance {
        tensors: tensors.len(),
        quantized,
        kept,
        tensor_bytes_in,
        header_bytes_in,
        tensor_bytes_out,
        header_bytes_out,
        balanced: in_balances && out_balances && none_lost,
    }
}
