//! Plain-text tables for a terminal: no borders, numbers to the right.

use std::borrow::Cow;
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use crate::text::visible_part;

/// Characters of a cell beyond which its middle is left out. A cell widens its column in every row.
const MAX_CELL: usize = 400;

/// Before the first column, and behind each.
const GAP: &str = "  ";

/// A table with headings; `numeric` tells which columns hold numbers.
#[must_use]
pub(crate) fn table(headings: &[&str], numeric: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut out = Vec::new();
    // Memory takes all that is written to it.
    let _ = write_table(&mut out, headings, numeric, || rows.iter());
    String::from_utf8(out).unwrap_or_default()
}

/// Writes a table whose rows may be too many to be held: they are made twice, once to be measured.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_table<I: Iterator<Item: AsRef<[String]>>>(
    out: &mut dyn Write,
    headings: &[&str],
    numeric: &[usize],
    rows: impl Fn() -> I,
) -> io::Result<()> {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.width()).collect();
    for row in rows() {
        let row = row.as_ref();
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown(cell).width());
        }
    }
    if headings.iter().any(|heading| !heading.is_empty()) {
        line(out, headings.iter().map(|heading| Cow::Borrowed(*heading)), numeric, &widths)?;
    }
    rows().try_for_each(|row| line(out, row.as_ref().iter().map(|cell| shown(cell)), numeric, &widths))
}

fn shown(cell: &str) -> Cow<'_, str> {
    visible_part(cell, MAX_CELL)
}

fn line<'c>(
    out: &mut dyn Write,
    cells: impl Iterator<Item = Cow<'c, str>>,
    numeric: &[usize],
    widths: &[usize],
) -> io::Result<()> {
    let mut line = String::new();
    for (column, (cell, width)) in cells.zip(widths).enumerate() {
        line.push_str(GAP);
        let space = " ".repeat(width.saturating_sub(cell.width()));
        let (before, after) =
            if numeric.contains(&column) { (space.as_str(), "") } else { ("", space.as_str()) };
        line.extend([before, &cell, after]);
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use crate::show::table::table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = |rows: &[&[&str]]| -> Vec<Vec<String>> {
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
        };
        let cells = rows(&[&["a", "1", "x"], &["größe", "234", ""], &["漢字", "5", "\u{1b}[0m"]]);
        assert_eq!(
            table(&["name", "size", ""], &[1], cells),
            "  name   size\n  a         1  x\n  größe   234\n  漢字      5  \\u{1b}[0m\n"
        );
        assert_eq!(table(&["", ""], &[], rows(&[&["a", "b"]])), "  a  b\n");
        assert_eq!(table(&["none"], &[0], Vec::new()), "  none\n");
        assert_eq!(table(&[""], &[], Vec::new()), "");
    }
}
