//! A plan as a person reads it and as a program does: per rule what is quantized, per reason what is kept, sizes to the byte.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::files_text;
use super::ledger::{format_name, written_path};
use super::table::table;
use super::units::{bytes, counted, grouped};
use crate::export::disk::free_space;
use crate::plan::layout::logical_bytes;
use crate::plan::{Decision, Plan};
use crate::run::disk_needed;
use crate::text::visible;

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
    let mut bytes_out = vec![vec![0; plan.exports.len()]; plan.model.tensors.len()];
    for (index, export) in plan.exports.iter().enumerate() {
        for tensor in &export.tensors {
            bytes_out[tensor.tensor][index] += tensor.bytes;
        }
    }
    let (mut quantized, mut kept): (Vec<Row<'_>>, Vec<Row<'_>>) = (Vec::new(), Vec::new());
    for (index, (tensor, decision)) in plan.model.tensors.iter().zip(&plan.decisions).enumerate() {
        if tensor.scale_of.is_some() {
            continue;
        }
        let treatment = decision.treatment();
        let scheme = treatment.map_or_else(String::new, |t| {
            let activations = match t.activations {
                crate::stage::ActivationScheme::None => "",
                crate::stage::ActivationScheme::DynamicToken => ", int8 activations",
            };
            let weighed = match plan.weighing.of_stage(t.stage) {
                Some(used) if t.observer.searches() => format!(", weighed by {}", used.file),
                Some(used) => format!(", measured with {}", used.file),
                None => String::new(),
            };
            format!("{}, {}{weighed}{activations}", t.scheme, t.observer)
        });
        let list = if treatment.is_some() { &mut quantized } else { &mut kept };
        let same = |row: &&mut Row<'_>| {
            row.scheme == scheme
                && if treatment.is_some() {
                    row.decision.rule == decision.rule
                } else {
                    row.decision.rule.reason == decision.rule.reason
                }
        };
        let row = match list.iter_mut().find(same) {
            Some(row) => row,
            None => {
                let none = vec![0; plan.exports.len()];
                list.push(Row {
                    decision,
                    scheme,
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
        for (sum, bytes) in row.bytes_out.iter_mut().zip(&bytes_out[index]) {
            *sum += bytes;
        }
    }
    kept.sort_by_key(|row| std::cmp::Reverse(row.bytes_in));
    (quantized, kept)
}

/// The plan for a person.
#[must_use]
pub fn text(plan: &Plan) -> String {
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
    let lines = quantized
        .iter()
        .map(|row| {
            vec![
                row.decision.rule.text.clone(),
                line(row),
                row.tensors.to_string(),
                row.scheme.clone(),
                bytes(row.bytes_in),
                bytes(first(row)),
            ]
        })
        .collect();
    let _ = write!(
        out,
        "{}",
        table(&["quantized by", "line", "tensors", "scheme", "from", "to"], &[1, 2, 4, 5], lines)
    );
    let lines = kept
        .iter()
        .map(|row| {
            vec![
                row.decision.rule.reason.clone(),
                line(row),
                row.tensors.to_string(),
                bytes(row.bytes_in),
                row.first.to_owned(),
            ]
        })
        .collect();
    let _ = write!(
        out,
        "\n{}",
        table(&["left alone", "line", "tensors", "size", "first of them"], &[1, 2, 3], lines)
    );
    let mut rows = vec![vec![
        "reads".to_owned(),
        format!("{} bytes", grouped(plan.source_bytes())),
        bytes(plan.source_bytes()),
        String::new(),
    ]];
    for export in &plan.exports {
        let free = free_space(&export.path);
        rows.push(vec![
            "writes".to_owned(),
            format!("{} bytes", grouped(export.weight_bytes())),
            bytes(export.weight_bytes()),
            format!("{} in {}", counted(export.files.len(), "file"), plan.told_path(&export.path)),
        ]);
        rows.push(vec![
            "disk".to_owned(),
            format!("{} bytes", grouped(disk_needed(plan, export))),
            bytes(disk_needed(plan, export)),
            free.map_or_else(String::new, |free| format!("of {} free", bytes(free))),
        ]);
        rows.extend(super::engines::rows(plan, export.stage));
    }
    let budget = plan.budget;
    rows.push(vec![
        "memory".to_owned(),
        format!("{} bytes", grouped(budget.bound)),
        bytes(budget.bound),
        format!("at most, with {}", counted(budget.workers, "thread")),
    ]);
    let _ = write!(out, "\n{}", table(&["", "", "", ""], &[1, 2], rows));
    for export in &plan.exports {
        out.push_str(&files_text::tables(plan, export));
    }
    for note in &plan.notes {
        let _ = writeln!(out, "\n  note: {}", visible(note));
    }
    out
}

/// The plan for a program: everything that the text says, and every tensor.
#[must_use]
pub fn json(plan: &Plan) -> Value {
    let (quantized, kept) = rows(plan);
    let group = |row: &Row<'_>| {
        json!({
            "rule": row.decision.rule.text,
            "reason": row.decision.rule.reason,
            "line": plan.line(&row.decision.rule),
            "stage": row.decision.treatment().map(|treatment| treatment.stage),
            "scheme": row.decision.treatment().map(|_| &row.scheme),
            "tensors": row.tensors,
            "bytes_in": row.bytes_in,
            "bytes_out": row.bytes_out,
        })
    };
    let exports: Vec<Value> = plan
        .exports
        .iter()
        .map(|export| {
            json!({
                "stage": export.stage,
                "path": written_path(plan, export.stage),
                "format": format_name(export.format),
                "bytes": export.weight_bytes(),
                "disk_needed": disk_needed(plan, export),
                "disk_free": free_space(Path::new(&export.path)),
                "carried": files_text::carried_json(plan, export),
                "left": export.left,
                "engines": super::engines::of(plan, export.stage),
                "files": export.files.iter().map(|file| json!({"name": file.name, "bytes": file.bytes})).collect::<Vec<_>>(),
                "tensors": export.tensors.iter().map(|tensor| json!({
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": tensor.shape,
                    "file": export.files[tensor.file].name,
                    "offset": tensor.offset,
                    "bytes": tensor.bytes,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    let tensors: Vec<Value> = plan
        .model
        .tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let (decision, class) = (&plan.decisions[index], &plan.classes[index]);
            json!({
                "name": tensor.name,
                "dtype": tensor.stored.name(),
                "shape": tensor.shape,
                "kind": class.kind.name(),
                "role": class.role.map(crate::layer::LayerType::name),
                "quantized": decision.treatment().is_some(),
                "scheme": decision.treatment().map(|treatment| treatment.scheme.to_string()),
                "rule": decision.rule.text,
                "reason": decision.rule.reason,
                "line": plan.line(&decision.rule),
                "bytes": tensor.bytes,
            })
        })
        .collect();
    json!({
        "name": plan.loaded.name(),
        "recipe": plan.loaded.written_recipe(),
        "source_bytes": plan.source_bytes(),
        "quantized": quantized.iter().map(group).collect::<Vec<_>>(),
        "kept": kept.iter().map(group).collect::<Vec<_>>(),
        "exports": exports,
        "memory_bound": plan.budget.bound,
        "threads": plan.budget.workers,
        "warnings": plan.warnings.iter().map(|finding| json!({
            "code": finding.code,
            "message": finding.message,
            "line": crate::plan::places::line_of(&plan.loaded, finding),
            "help": finding.help_text(),
        })).collect::<Vec<_>>(),
        "notes": plan.notes,
        "tensors": tensors,
    })
}
