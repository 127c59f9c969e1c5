//! The text of a model card: the source's, and a section on how the model was quantized.

use std::fmt::Write;
use std::path::Path;

use indexmap::IndexMap;

use crate::digest::{Digest, checksum};
use crate::gates::Judgement;
use crate::ids::{ExportId, FileId, IdVec, StageId, TensorId};
use crate::plan::card::Card;
use crate::plan::layout::spec_at;
use crate::plan::{ExportPlan, Plan};
use crate::quant::Distortion;
use crate::report::{GateOutcome, ledger};
use crate::stage::Stage;
use crate::stage::export::Format;
use crate::text::units::{bytes, counted, decibels};
use crate::text::visible;

/// The results that a card tells.
pub(super) struct Measured<'a> {
    /// The distortion of each tensor.
    pub distortions: &'a IdVec<TensorId, Option<Distortion>>,
    /// The digests of the weight files of each export.
    pub files: &'a IdVec<ExportId, IdVec<FileId, Digest>>,
    /// What the gates found.
    pub judgement: &'a Judgement,
}

/// The text of the card of an export; `recipe` is what the output holds of it.
pub(super) fn text(plan: &Plan, id: ExportId, card: &Card, results: &Measured<'_>, recipe: &str) -> String {
    let export = &plan.exports[id];
    let mut out = format!("---\n{}\n---\n", card.front.trim_end());
    let body = card.body.trim_end();
    if body.trim().is_empty() {
        let name = card.base_model.as_deref().and_then(|name| name.rsplit('/').next()).unwrap_or("Model");
        let _ = writeln!(out, "\n# {}, quantized", line(name));
    } else {
        let _ = writeln!(out, "{body}");
    }
    let of = card.base_model.as_deref().map_or("its source", |_| "the base model");
    let _ = write!(
        out,
        "\n## Quantization\n\nThis model was quantized from {of} by [monoquant](https://github.com/monoquant/monoquant) {}.\n\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = write!(out, "| | |\n| --- | --- |\n");
    for (name, cell) in rows(plan, export, results) {
        let _ = writeln!(out, "| {name} | {} |", line(&cell));
    }
    let _ = writeln!(out);
    gates(&mut out, export.stage, results.judgement);
    if export.format == Format::CompressedTensors {
        let _ = write!(
            out,
            "### Serving\n\n```sh\nvllm serve ./{}\n```\n\nThe argument is the folder of this model, or its name on the Hub.\n\n",
            folder_name(plan, export)
        );
    }
    let _ = write!(out, "### Recipe\n\n{}\n", fenced("yaml", recipe));
    let _ = write!(out, "### Files\n\n| file | bytes | CRC-64/NVME |");
    let files = &results.files[id];
    let is_hashed = files.iter().any(|digest| digest.blake3.is_some());
    let _ = write!(
        out,
        "{}\n| --- | --- | --- |{}\n",
        if is_hashed { " BLAKE3 |" } else { "" },
        if is_hashed { " --- |" } else { "" }
    );
    for (file, digest) in export.files.iter().zip(files) {
        let crc = digest.crc64.map(checksum::text).unwrap_or_default();
        let _ = write!(out, "| {} | {} | `{crc}` |", line(&file.name), file.bytes);
        let blake3 = digest.blake3.as_deref().map_or(String::new(), |hash| format!(" `{hash}` |"));
        let _ = writeln!(out, "{blake3}");
    }
    out
}

/// The table of facts.
fn rows(plan: &Plan, export: &ExportPlan, results: &Measured<'_>) -> Vec<(&'static str, String)> {
    let mut schemes: IndexMap<String, usize> = IndexMap::new();
    let mut kept = 0;
    for decision in &plan.decisions {
        match spec_at(decision, export.stage) {
            Some(spec) => *schemes.entry(format!("{}, {}", spec.scheme, spec.method())).or_default() += 1,
            None => kept += 1,
        }
    }
    let mut out: Vec<(&'static str, String)> = schemes
        .into_iter()
        .map(|(scheme, count)| ("scheme", format!("{scheme}: {}", counted(count, "tensor"))))
        .collect();
    out.push(("not quantized", counted(kept, "tensor")));
    out.push(("format", ledger::format_name(export.format).to_owned()));
    let (source, size) = (plan.source_bytes(), export.weight_bytes());
    let ratio = source as f64 / size.max(1) as f64;
    out.push(("size", format!("{}, from {} ({ratio:.2} : 1)", bytes(size), bytes(source))));
    if let Some(quality) = ledger::quality(results.distortions) {
        let (model, least) = (decibels(quality.sqnr_db), decibels(quality.min_sqnr_db));
        out.push(("SQNR", format!("{model} (model), {least} (worst layer)")));
    }
    out.extend(results.judgement.evaluations.iter().map(|found| ("answers", found.line())));
    out
}

/// The gates before an export.
fn gates(out: &mut String, export: StageId, judgement: &Judgement) {
    let before: Vec<_> = judgement
        .gates
        .iter()
        .filter(|gate| {
            gate.stage < export && gate.name != "export" && gate.outcome != GateOutcome::NotReached
        })
        .collect();
    if before.is_empty() {
        return;
    }
    for gate in before {
        let _ = writeln!(out, "- `{}`: {}, {}", gate.name, gate.outcome.words(), line(&gate.summary));
    }
    out.push('\n');
}

/// The name of an output's folder as the recipe has it, in a command for a shell; a general one if it would have to be quoted, or
/// is a variable's value.
fn folder_name(plan: &Plan, export: &ExportPlan) -> String {
    let written = plan.loaded.written(&format!("/stages/{}/path", export.stage)).map(Path::new);
    let path = written.unwrap_or(&export.path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.chars().all(is_plain) { name } else { "model".to_owned() }
}

/// A text in a cell or a line of Markdown.
fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        if matches!(c, '|' | '<' | '`' | '*' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A text as a block of code, whose fence is longer than any in it.
fn fenced(language: &str, text: &str) -> String {
    let longest = text.lines().map(|line| line.trim_start().chars().take_while(|c| *c == '`').count()).max();
    let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// Whether a stage exports, and wants a card without knowing its base model.
pub(super) fn lacks_base_model(plan: &Plan, export: &ExportPlan) -> bool {
    let is_wanted = matches!(&plan.recipe().stages[export.stage], Stage::Export(stage) if stage.card);
    is_wanted && export.card.as_ref().is_some_and(|card| card.base_model.is_none())
}
