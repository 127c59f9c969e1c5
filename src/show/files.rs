//! Display of a model's other files: those carried over although they hold weights, and those left behind.

use serde_json::{Value, json};

use crate::plan::copies::carried_weights;
use crate::plan::layout::Left;
use crate::plan::{ExportPlan, Plan};
use crate::show::table::{Columns, table};
use crate::text::units::{bytes, counted};

/// Names in one line.
const NAMED: usize = 3;

/// Tables of the files of one export: weights that are carried over as they are, and files left behind. Empty if
/// there are neither. If all are asked for, also the weight files that are written, and every file that is carried over.
#[must_use]
pub(crate) fn tables(plan: &Plan, export: &ExportPlan, all: bool, width: usize) -> String {
    let mut out = String::new();
    let mut add = |name: &'static str, files: Vec<(String, u64)>| {
        let rows: Vec<Vec<String>> = files.into_iter().map(|(name, size)| vec![name, bytes(size)]).collect();
        if !rows.is_empty() {
            out.push('\n');
            out.push_str(&table(Columns::all(&[name, "size"], &[1]), width, &rows));
        }
    };
    if all {
        add("weights written", export.files.iter().map(|file| (file.name.clone(), file.bytes)).collect());
        let files = export.copies.iter().map(|&index| &plan.model.others[index]);
        add("carried over as it is", files.map(|file| (file.path.clone(), file.len)).collect());
    } else {
        add("carried over as it is", carried_weights(plan, export));
    }
    let left: Vec<Vec<String>> = export
        .left
        .iter()
        .map(|left| vec![left.name.clone(), size(left.bytes), left.reason.clone()])
        .collect();
    if !left.is_empty() {
        out.push('\n');
        let columns =
            Columns { headings: &["left behind", "size", "because"], numeric: &[1], optional: &[1] };
        out.push_str(&table(columns, width, &left));
    }
    out
}

/// One line on the files left behind; none if there are none.
#[must_use]
pub(crate) fn left_line(left: &[Left]) -> Option<String> {
    let first: Vec<&str> = left.iter().take(NAMED).map(|left| left.name.as_str()).collect();
    let more = left.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let total = left.iter().map(|left| left.bytes).sum();
    let total = if total > 0 { format!(", {}", bytes(total)) } else { String::new() };
    (!left.is_empty()).then(|| format!("{}{total}: {}{more}", counted(left.len(), "path"), first.join(", ")))
}

fn size(count: u64) -> String {
    if count == 0 { String::new() } else { bytes(count) }
}

/// The files carried over, as JSON.
#[must_use]
pub(crate) fn carried_json(plan: &Plan, export: &ExportPlan) -> Vec<Value> {
    let files = export.copies.iter().map(|&index| &plan.model.others[index]);
    files.map(|file| json!({"name": file.path, "bytes": file.len})).collect()
}
