//! Plain columns for a terminal: no borders, numbers to the right.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::text::visible_part;

/// Characters of a cell beyond which its middle is left out. A cell widens its column in every row.
const MAX_CELL: usize = 400;

/// A table with headings; `numeric` tells which columns hold numbers.
#[must_use]
pub fn table(headings: &[&str], numeric: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if headings.iter().any(|heading| !heading.is_empty()) {
        table.set_header(headings.to_vec());
    }
    table.add_rows(rows.into_iter().map(|row| {
        row.into_iter().map(|cell| visible_part(&cell, MAX_CELL).into_owned()).collect::<Vec<_>>()
    }));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 0 }, 2));
        if numeric.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = String::new();
    for line in table.to_string().lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
