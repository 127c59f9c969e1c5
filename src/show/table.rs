//! Plain-text tables for a terminal: no borders, numbers to the right, never wider than the terminal.

use std::borrow::Cow;
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use crate::text::fit::{broken, shortened};
use crate::text::visible_part;

/// Characters of a cell beyond which its middle is left out. A cell widens its column in every row.
const MAX_CELL: usize = 400;

/// Before the first column, and behind each.
const GAP: &str = "  ";

/// The width down to which texts are shortened before the first column is, which names the row.
const READABLE: usize = 16;

/// The width below which the last column of a list is not read any more.
const NARROW: usize = 24;

/// The columns of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// Their headings. A last column without one holds sentences: it is broken into lines instead of shortened.
    pub headings: &'a [&'a str],
    /// Those that hold numbers, which are never shortened.
    pub numeric: &'a [usize],
    /// Those that can be left out on a narrow terminal, in this order.
    pub optional: &'a [usize],
}

impl<'a> Columns<'a> {
    /// Columns of which none can be left out.
    #[must_use]
    pub(crate) const fn all(headings: &'a [&'a str], numeric: &'a [usize]) -> Self {
        Self { headings, numeric, optional: &[] }
    }
}

/// A table of at most so many columns of a terminal.
#[must_use]
pub(crate) fn table(columns: Columns<'_>, width: usize, rows: &[Vec<String>]) -> String {
    let mut out = Vec::new();
    let merged = merged(columns, width, rows);
    let (columns, rows) = match &merged {
        Some(rows) => (Columns::all(&["", ""], &[]), rows.as_slice()),
        None => (columns, rows),
    };
    // Memory takes all that is written to it.
    let _ = write_table(&mut out, columns, width, || rows.iter());
    String::from_utf8(out).unwrap_or_default()
}

/// The rows of a list with all cells but the first as one, if the last would be too narrow to read.
fn merged(columns: Columns<'_>, width: usize, rows: &[Vec<String>]) -> Option<Vec<Vec<String>>> {
    if columns.headings.len() < 3 || columns.headings.iter().any(|heading| !heading.is_empty()) {
        return None;
    }
    let widest =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| shown(cell).width()).max();
    let widths: Vec<usize> = (0..columns.headings.len()).map(|column| widest(column).unwrap_or(0)).collect();
    let (last, before) = widths.split_last()?;
    let room = width.saturating_sub(before.iter().sum::<usize>() + widths.len() * GAP.len());
    if *last <= room || room >= NARROW {
        return None;
    }
    let merge = |row: &Vec<String>| {
        let (first, rest) = row.split_first()?;
        let rest: Vec<&str> = rest.iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect();
        Some(vec![first.clone(), rest.join("  ")])
    };
    Some(rows.iter().filter_map(merge).collect())
}

/// Writes a table whose rows may be too many to be held: they are made twice, once to be measured.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_table<I: Iterator<Item: AsRef<[String]>>>(
    out: &mut dyn Write,
    columns: Columns<'_>,
    width: usize,
    rows: impl Fn() -> I,
) -> io::Result<()> {
    let mut widths: Vec<usize> = columns.headings.iter().map(|heading| heading.width()).collect();
    for row in rows() {
        let row = row.as_ref();
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown(cell).width());
        }
    }
    let has_headings = columns.headings.iter().any(|heading| !heading.is_empty());
    let layout = Layout::new(columns, widths, width);
    if has_headings {
        layout.line(out, columns.headings.iter().map(|heading| Cow::Borrowed(*heading)))?;
    }
    rows().try_for_each(|row| layout.line(out, row.as_ref().iter().map(|cell| shown(cell))))
}

fn shown(cell: &str) -> Cow<'_, str> {
    visible_part(cell, MAX_CELL)
}

/// Where the cells of a row stand.
struct Layout<'a> {
    numeric: &'a [usize],
    /// The width of each column; none if it is left out.
    widths: Vec<Option<usize>>,
    /// Whether the last column is broken into lines.
    breaks: bool,
}

impl<'a> Layout<'a> {
    fn new(columns: Columns<'a>, natural: Vec<usize>, width: usize) -> Self {
        let mut widths: Vec<Option<usize>> = natural.into_iter().map(Some).collect();
        let beyond = |widths: &[Option<usize>]| {
            let all: usize = widths.iter().flatten().map(|width| width + GAP.len()).sum();
            all.saturating_sub(width)
        };
        let is_broken = beyond(&widths) > 0 && columns.headings.last() == Some(&"");
        for dropped in columns.optional {
            if beyond(&widths) > 0
                && let Some(width) = widths.get_mut(*dropped)
            {
                *width = None;
            }
        }
        let texts = |least: usize, from: usize, widths: &mut [Option<usize>]| {
            // Column by column, the widest first, so that all end at about the same width.
            while beyond(widths) > 0 {
                let shown = widths.iter_mut().enumerate().skip(from);
                let texts = shown.filter(|(index, _)| !columns.numeric.contains(index));
                let widest = texts.filter_map(|(_, width)| width.as_mut()).max_by_key(|width| **width);
                match widest {
                    Some(width) if *width > least => *width -= 1,
                    _ => break,
                }
            }
        };
        texts(READABLE, 1, &mut widths);
        texts(0, 0, &mut widths);
        Self { numeric: columns.numeric, widths, breaks: is_broken }
    }

    fn line<'c>(&self, out: &mut dyn Write, cells: impl Iterator<Item = Cow<'c, str>>) -> io::Result<()> {
        let mut line = String::new();
        let mut more = Vec::new();
        let last = self.widths.len().saturating_sub(1);
        for (column, (cell, width)) in cells.zip(&self.widths).enumerate() {
            let Some(width) = *width else { continue };
            line.push_str(GAP);
            let cell = if self.breaks && column == last {
                more = broken(&cell, width.max(1), 0);
                Cow::Owned(more.remove(0))
            } else {
                shortened(&cell, width)
            };
            let space = " ".repeat(width.saturating_sub(cell.width()));
            let (before, after) =
                if self.numeric.contains(&column) { (space.as_str(), "") } else { ("", space.as_str()) };
            line.extend([before, &cell, after]);
        }
        writeln!(out, "{}", line.trim_end())?;
        let before: usize = self.widths[..last].iter().flatten().map(|width| width + GAP.len()).sum();
        more.iter().try_for_each(|rest| writeln!(out, "{}{GAP}{rest}", " ".repeat(before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fit::UNBOUNDED;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let cells = rows(&[&["a", "1", "x"], &["größe", "234", ""], &["漢字", "5", "\u{1b}[0m"]]);
        let with = |headings, numeric| Columns { headings, numeric, optional: &[] };
        assert_eq!(
            table(with(&["name", "size", ""], &[1]), UNBOUNDED, &cells),
            "  name   size\n  a         1  x\n  größe   234\n  漢字      5  \\u{1b}[0m\n"
        );
        assert_eq!(table(with(&["", ""], &[]), UNBOUNDED, &rows(&[&["a", "b"]])), "  a  b\n");
        assert_eq!(table(with(&["none"], &[0]), UNBOUNDED, &[]), "  none\n");
        assert_eq!(table(with(&[""], &[]), UNBOUNDED, &[]), "");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let cells = rows(&[
            &[
                "model.layers.10.self_attn.q_proj.weight",
                "128",
                "int4 symmetric, groups of 128",
                "first of them",
            ],
            &["lm_head", "1", "漢字漢字漢字漢字漢字漢字", "x"],
        ]);
        let headings: &[&str] = &["tensor", "size", "scheme", "because"];
        for optional in [&[][..], &[3], &[3, 2]] {
            for width in 20..120 {
                let text = table(Columns { headings, numeric: &[1], optional }, width, &cells);
                assert!(text.lines().all(|line| line.width() <= width), "{width}: {text}");
                assert_eq!(text.lines().count(), 3);
            }
        }
        let columns = Columns { headings, numeric: &[1], optional: &[3] };
        assert_eq!(
            table(columns, 60, &cells),
            "  tensor                              size  scheme\n\
             \x20 model.la…0.self_attn.q_proj.weight   128  int…roups of 128\n\
             \x20 lm_head                                1  漢…漢字漢字漢字\n"
        );
    }

    #[test]
    fn the_last_column_of_a_list_is_broken_into_lines() {
        let cells = rows(&[&["SQNR", "19.1 dB", "18.7 dB worst, 19.0 dB median of 14 layers"]]);
        assert_eq!(
            table(Columns::all(&["", "", ""], &[]), 44, &cells),
            "  SQNR  19.1 dB  18.7 dB worst, 19.0 dB\n                 median of 14 layers\n"
        );
        // With too little room for that, everything behind the name is one text.
        assert_eq!(
            table(Columns::all(&["", "", ""], &[]), 40, &cells),
            "  SQNR  19.1 dB  18.7 dB worst, 19.0 dB\n        median of 14 layers\n"
        );
    }
}
