//! Display of a plan, for a person and for a program: per rule the quantized tensors, per reason the kept ones, sizes
//! to the byte.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::finding::{Diagnostic, Failure, diagnostics};
use crate::fs::disk::free_space;
use crate::ids::{ExportId, StageId, TensorId};
use crate::model::Shape;
use crate::plan::layout::Left;
use crate::plan::output_tensor::logical_bytes;
use crate::plan::rounding::{Gradients, Rounded};
use crate::plan::task_list::task_list;
use crate::plan::{Decision, ModelRun, Plan};
use crate::report::SchemeRecord;
use crate::report::ledger::{bytes_out, format_name, written_path};
use crate::show::each::Each;
use crate::show::files;
use crate::show::table::{Columns, table};
use crate::stage::Stage;
use crate::text::fit::{UNBOUNDED, wrapped};
use crate::text::units::{bytes, counted, grouped};
use crate::text::visible;

/// The version of the plan's format for programs.
pub const PLAN_VERSION: u32 = 2;

const QUANTIZED: Columns<'static> = Columns {
    headings: &["quantized by", "line", "tensors", "scheme", "from", "to"],
    numeric: &[1, 2, 4, 5],
    optional: &[1, 4],
};

const SKIPPED: Columns<'static> = Columns {
    headings: &["skipped", "line", "tensors", "size", "first of them"],
    numeric: &[1, 2, 3],
    optional: &[1, 4],
};

/// Tensors that one rule treats alike.
struct Row<'p> {
    decision: &'p Decision,
    scheme: String,
    tensors: usize,
    bytes_in: u64,
    bytes_out: Vec<u64>,
    first: &'p str,
}

/// Rows for the quantized and for the kept tensors of a plan.
fn rows(plan: &Plan) -> (Vec<Row<'_>>, Vec<Row<'_>>) {
    let bytes_out = bytes_out(plan);
    let (mut quantized, mut kept): (Vec<Row<'_>>, Vec<Row<'_>>) = (Vec::new(), Vec::new());
    for ((index, tensor), decision) in plan.model.tensors.numbered().zip(&plan.decisions) {
        if tensor.part_of.is_some() {
            continue;
        }
        let spec = decision.spec();
        let list = if spec.is_some() { &mut quantized } else { &mut kept };
        let scheme = || {
            spec.map_or_else(String::new, |t| {
                if t.is_relabelled {
                    return format!("{}, re-labelled", t.scheme);
                }
                let activations = match t.activations {
                    crate::stage::ActivationScheme::None => "",
                    crate::stage::ActivationScheme::DynamicToken => ", int8 activations",
                    crate::stage::ActivationScheme::DynamicTokenFp8 => ", fp8 activations",
                };
                let weighed = match plan.weighing.of_stage(t.stage) {
                    Some(used) if t.observer.searches() && !t.is_calibrated() => {
                        format!(", weighed by {}", used.file)
                    }
                    Some(used) => format!(", measured with {}", used.file),
                    None => String::new(),
                };
                format!("{}, {}{weighed}{activations}", t.scheme, t.method())
            })
        };
        let same = |row: &Row<'_>| {
            row.decision.is_same(decision)
                || if spec.is_some() {
                    row.decision.rule == decision.rule && row.scheme == scheme()
                } else {
                    row.decision.rule.reason == decision.rule.reason
                }
        };
        let row = match list.iter().position(same) {
            Some(at) => &mut list[at],
            None => {
                let none = vec![0; plan.exports.len()];
                list.push(Row {
                    decision,
                    scheme: scheme(),
                    tensors: 0,
                    bytes_in: 0,
                    bytes_out: none,
                    first: &tensor.name,
                });
                let last = list.len() - 1;
                &mut list[last]
            }
        };
        row.tensors += 1;
        row.bytes_in += logical_bytes(tensor);
        for (sum, bytes) in row.bytes_out.iter_mut().zip(bytes_out.of(index)) {
            *sum += bytes;
        }
    }
    kept.sort_by_key(|row| std::cmp::Reverse(row.bytes_in));
    (quantized, kept)
}

/// The plan for a person.
#[must_use]
pub fn text(plan: &Plan) -> String {
    text_at(plan, UNBOUNDED, false)
}

/// The plan for a person, in lines of at most so many columns; with every file if all are asked for.
pub(crate) fn text_at(plan: &Plan, width: usize, all: bool) -> String {
    let mut out = String::new();
    let name = visible(plan.loaded.name().unwrap_or("recipe"));
    let model = &plan.model;
    let _ = writeln!(
        out,
        "{name}: {} of {} in {} will be quantized\n",
        grouped(plan.quantized_tensors() as u64),
        counted(model.tensors.len(), "tensor"),
        counted(model.shards.len(), "file"),
    );
    let (quantized, kept) = rows(plan);
    let first = |row: &Row<'_>| row.bytes_out.first().copied().unwrap_or(0);
    let line =
        |row: &Row<'_>| plan.line(&row.decision.rule).map_or_else(|| "–".to_owned(), |line| line.to_string());
    let lines: Vec<_> = quantized
        .iter()
        .map(|row| {
            vec![
                row.decision.rule.text.to_string(),
                line(row),
                row.tensors.to_string(),
                row.scheme.clone(),
                bytes(row.bytes_in),
                bytes(first(row)),
            ]
        })
        .collect();
    let _ = write!(out, "{}", table(QUANTIZED, width, &lines));
    let lines: Vec<_> = kept
        .iter()
        .map(|row| {
            vec![
                row.decision.rule.reason.to_string(),
                line(row),
                row.tensors.to_string(),
                bytes(row.bytes_in),
                row.first.to_owned(),
            ]
        })
        .collect();
    let _ = write!(out, "\n{}", table(SKIPPED, width, &lines));
    let mut rows = vec![vec![
        "reads".to_owned(),
        format!("{} bytes", grouped(plan.source_bytes())),
        bytes(plan.source_bytes()),
        String::new(),
    ]];
    for (id, export) in plan.exports.numbered() {
        let (needed, free) = (plan.room_needed(id), free_space(&export.path));
        let free = free.map_or_else(String::new, |free| format!("of {} free", bytes(free)));
        let (what, how) = match (&export.store, plan.uploads_as_made()) {
            (None, _) => ("disk", ""),
            (Some(_), true) => ("scratch", "; weight files are uploaded as they are made"),
            (Some(_), false) => ("scratch", "; uploaded when all is made and judged"),
        };
        rows.push(vec![
            "writes".to_owned(),
            format!("{} bytes", grouped(export.weight_bytes())),
            bytes(export.weight_bytes()),
            format!("{} in {}", counted(export.files.len(), "file"), plan.told_path(&export.path)),
        ]);
        rows.push(vec![
            what.to_owned(),
            format!("{} bytes", grouped(needed)),
            bytes(needed),
            format!("{free}{how}").trim_start_matches("; ").to_owned(),
        ]);
        rows.extend(crate::report::engines::rows(plan, export.stage));
    }
    for run in plan.runs.iter().flat_map(|runs| &runs.runs) {
        let stage = run.stage.and_then(|stage| plan.recipe().stages.get(stage));
        rows.push(vec![
            stage.map_or("evaluate", Stage::name).to_owned(),
            counted(run.tokens(), "token"),
            String::new(),
            format!("{} of {}", counted(run.windows.len(), "sample"), run.texts.join(", ")),
        ]);
    }
    if let Some(runs) = &plan.runs {
        let least = runs.least_memory(plan.budget.workers);
        let activations = runs.activation_bytes();
        rows.push(vec![
            "model runs in".to_owned(),
            format!("{} bytes", grouped(least)),
            bytes(least),
            format!("and {} of activations, in memory or in a file", bytes(activations)),
        ]);
    }
    rows.extend(rounding_row(plan));
    let budget = plan.budget;
    rows.push(vec![
        "memory".to_owned(),
        format!("{} bytes", grouped(budget.bound)),
        bytes(budget.bound),
        format!("at most, with {}", counted(budget.workers, "thread")),
    ]);
    let _ = write!(out, "\n{}", table(Columns::all(&["", "", "", ""], &[1, 2]), width, &rows));
    for export in &plan.exports {
        out.push_str(&files::tables(plan, export, all, width));
    }
    for note in &plan.notes {
        let _ = writeln!(out, "\n  note: {}", visible(note));
    }
    wrapped(&out, width).into_owned()
}

/// What rounding with calibration costs.
fn rounding_row(plan: &Plan) -> Option<Vec<String>> {
    let (roundings, runs) = (plan.roundings.as_ref()?, plan.runs.as_ref()?);
    let least = roundings.least_memory(runs, plan.budget.workers);
    let how = match &roundings.moments {
        Some(given) => format!("each layer for itself with the moments of `{}`", given.named),
        None if roundings.is_sequential => "one layer after another".to_owned(),
        None => "each layer for itself".to_owned(),
    };
    Some(vec![
        "rounds in".to_owned(),
        format!("{} bytes", grouped(least)),
        bytes(least),
        format!(
            "{} {} by {}, {how}, {:.1e} operations; and {} of activations, in memory or in a file{}; {} of codes are kept beside the output",
            grouped(roundings.matrices as u64),
            if roundings.matrices == 1 { "matrix" } else { "matrices" },
            roundings.methods(),
            roundings.cost.operations,
            bytes(roundings.cost.stream_bytes),
            roundings.gradients.map_or_else(String::new, |gradients| gradients_text(&gradients)),
            bytes(roundings.codes_bytes)
        ),
    ])
}

/// What gradients are taken, and where they are kept.
fn gradients_text(gradients: &Gradients) -> String {
    let blocks = match gradients.are_whole() {
        true => String::new(),
        false => format!(" in blocks of at most {} outputs", grouped(gradients.most as u64)),
    };
    format!(
        "; gradients on {} with {} of activations, and {} of their moments{blocks} in files until layers are rounded",
        counted(gradients.samples, "sample"),
        bytes(gradients.stream_bytes),
        bytes(gradients.kept_bytes)
    )
}

fn rounding_json(plan: &Plan) -> Option<Value> {
    let (roundings, runs) = (plan.roundings.as_ref()?, plan.runs.as_ref()?);
    let nearest = plan.tasks.numbered().filter_map(|(number, task)| match roundings.of(number)? {
        Rounded::Nearest(reason) => Some(json!({"module": task.module(&plan.model), "reason": reason})),
        Rounded::Chosen(_) => None,
    });
    Some(json!({
        "method": roundings.methods(),
        "calibrate": roundings.calibrate,
        "sequential": roundings.is_sequential,
        "moments": roundings.moments.as_ref().map(|given| &given.named),
        "matrices": roundings.matrices,
        "nearest": nearest.collect::<Vec<_>>(),
        "tokens": roundings.cost.tokens,
        "operations": roundings.cost.operations,
        "memory": roundings.least_memory(runs, plan.budget.workers),
        "activations": roundings.cost.stream_bytes,
        "kept": roundings.codes_bytes,
        "gradients": roundings.gradients.map(|gradients| json!({
            "matrices": gradients.matrices,
            "samples": gradients.samples,
            "tokens": gradients.tokens,
            "seed": gradients.seed,
            "block": gradients.most,
            "whole": gradients.are_whole(),
            "activations": gradients.stream_bytes,
            "kept": gradients.kept_bytes,
        })),
    }))
}

/// The plan for a program: everything that the text says, and every tensor. Tensors are written as they come: as a tree of values
/// they would take more memory than the plan.
///
/// # Errors
/// If the recipe cannot be written as JSON.
pub fn json(plan: &Plan) -> Result<impl Serialize, Failure> {
    let (quantized, kept) = rows(plan);
    let group = |row: &Row<'_>| {
        json!({
            "rule": &*row.decision.rule.text,
            "reason": &*row.decision.rule.reason,
            "line": plan.line(&row.decision.rule),
            "stage": row.decision.spec().map(|spec| spec.stage),
            "scheme": row.decision.spec().map(SchemeRecord::of),
            "scheme_text": row.decision.spec().map(|_| &row.scheme),
            "tensors": row.tensors,
            "bytes_in": row.bytes_in,
            "bytes_out": row.bytes_out,
        })
    };
    Ok(AsJson {
        plan_version: PLAN_VERSION,
        monoquant: env!("CARGO_PKG_VERSION"),
        name: plan.loaded.name(),
        recipe: plan.loaded.written_recipe()?,
        source_bytes: plan.source_bytes(),
        quantized: quantized.iter().map(group).collect(),
        kept: kept.iter().map(group).collect(),
        model_runs: plan.runs.iter().flat_map(|runs| &runs.runs).map(model_run_json).collect(),
        rounding: rounding_json(plan),
        exports: plan.exports.ids().map(|export| export_json(plan, export)).collect(),
        memory_bound: plan.budget.bound,
        threads: plan.budget.workers,
        warnings: diagnostics(&plan.warnings),
        notes: &plan.notes,
        tensors: Each(|| plan.model.tensors.ids().map(|index| tensor_json(plan, index))),
        tasks: Each(|| task_list(plan)),
    })
}

#[derive(Serialize)]
struct AsJson<'p, E, T, K> {
    plan_version: u32,
    monoquant: &'static str,
    name: Option<&'p str>,
    recipe: Value,
    source_bytes: u64,
    quantized: Vec<Value>,
    kept: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_runs: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rounding: Option<Value>,
    exports: Vec<E>,
    memory_bound: u64,
    threads: usize,
    warnings: Vec<Diagnostic>,
    notes: &'p [String],
    tensors: T,
    tasks: K,
}

fn model_run_json(run: &ModelRun) -> Value {
    json!({"stage": run.stage, "texts": run.texts, "samples": run.windows.len(), "tokens": run.tokens()})
}

fn export_json(plan: &Plan, id: ExportId) -> impl Serialize {
    let export = &plan.exports[id];
    #[derive(Serialize)]
    struct Export<'p, C, T> {
        stage: StageId,
        path: String,
        format: &'static str,
        bytes: u64,
        disk_needed: u64,
        disk_free: Option<u64>,
        carried: C,
        left: &'p [Left],
        engines: Vec<crate::report::engines::EngineRecord>,
        files: Vec<Value>,
        tensors: T,
    }
    #[derive(Serialize)]
    struct Tensor<'p> {
        name: String,
        dtype: &'static str,
        shape: Shape,
        file: &'p str,
        offset: u64,
        bytes: u64,
    }
    let content = plan.content();
    Export {
        stage: export.stage,
        path: written_path(plan, export.stage),
        format: format_name(export.format),
        bytes: export.weight_bytes(),
        disk_needed: plan.room_needed(id),
        disk_free: free_space(Path::new(&export.path)),
        carried: files::carried_json(plan, export),
        left: &export.left,
        engines: crate::report::engines::of(plan, export.stage),
        files: export.files.iter().map(|file| json!({"name": file.name, "bytes": file.bytes})).collect(),
        tensors: Each(move || {
            export.tensors.iter().map(move |tensor| Tensor {
                name: tensor.name(content),
                dtype: tensor.dtype(content),
                shape: tensor.shape(content),
                file: &export.files[tensor.file()].name,
                offset: tensor.offset,
                bytes: tensor.bytes(content),
            })
        }),
    }
}

fn tensor_json(plan: &Plan, index: TensorId) -> impl Serialize {
    #[derive(Serialize)]
    struct Tensor<'p> {
        name: &'p str,
        dtype: &'static str,
        shape: &'p [u64],
        kind: &'static str,
        role: Option<&'static str>,
        quantized: bool,
        scheme: Option<SchemeRecord>,
        rule: &'p str,
        reason: &'p str,
        line: Option<usize>,
        bytes: u64,
    }
    let (tensor, decision, class) =
        (&plan.model.tensors[index], &plan.decisions[index], &plan.classes[index]);
    Tensor {
        name: &tensor.name,
        dtype: tensor.stored.name(),
        shape: &tensor.shape,
        kind: class.kind.name(),
        role: class.role.map(crate::layer::LayerType::name),
        quantized: decision.spec().is_some(),
        scheme: decision.spec().map(SchemeRecord::of),
        rule: &decision.rule.text,
        reason: &decision.rule.reason,
        line: plan.line(&decision.rule),
        bytes: tensor.bytes,
    }
}
