//! Display of what the parts of a run have to do.

use crate::show::table::{Columns, table};
use crate::text::units::bytes;

const PARTS: Columns<'static> = Columns {
    headings: &["part", "files", "reads and writes", "of a fair share"],
    numeric: &[0, 1, 2, 3],
    optional: &[3],
};

/// What parts of a run have to do: the files of each, and the bytes that it reads and writes.
pub(crate) fn text(shares: &[(usize, u64)], width: usize) -> String {
    let fair = shares.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 / shares.len().max(1) as f64;
    let line = |(number, &(files, all)): (usize, &(usize, u64))| {
        let share = if fair > 0.0 { format!("{:.0} %", 100.0 * all as f64 / fair) } else { "–".to_owned() };
        vec![number.to_string(), files.to_string(), bytes(all), share]
    };
    let lines: Vec<Vec<String>> = shares.iter().enumerate().map(line).collect();
    format!("\n{}", table(PARTS, width, &lines))
}
