//! Display of activation statistics, for a person and for programs: their origin, and the columns that dominate.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::calibration::{ModuleStatistics, Statistics};
use crate::show::table::{Columns, table};
use crate::text::fit::UNBOUNDED;
use crate::text::units::counted;
use crate::text::visible;

/// The number of columns that are named for each module.
const LARGEST: usize = 3;

/// The displayed facts about one matrix of a module.
struct Shown {
    name: String,
    columns: usize,
    tokens: f64,
    /// The mean over the columns of the mean squared activation.
    mean: f64,
    /// Columns and how many times the mean they are, largest first.
    largest: Vec<(usize, f64)>,
    /// How many columns make half of the sum.
    half: usize,
}

fn shown(module: &ModuleStatistics) -> Vec<Shown> {
    let matrices = module.counts.len().max(1);
    let columns = module.sums.len() / matrices;
    (0..matrices)
        .map(|matrix| {
            let sums = &module.sums[matrix * columns..(matrix + 1) * columns];
            let tokens = module.counts[matrix];
            let all: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
            let mut order: Vec<(usize, f64)> =
                sums.iter().map(|&sum| f64::from(sum) / all * columns as f64).enumerate().collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut so_far = 0.0;
            let until_half = order.iter().take_while(|(_, times)| {
                let is_before = so_far < columns as f64 / 2.0;
                so_far += times;
                is_before
            });
            let half = until_half.count();
            order.truncate(if all > 0.0 { LARGEST } else { 0 });
            let name =
                if matrices > 1 { format!("{}, expert {matrix}", module.name) } else { module.name.clone() };
            let mean = if tokens > 0.0 { all / tokens / columns as f64 } else { 0.0 };
            Shown { name, columns, tokens, mean, largest: order, half }
        })
        .collect()
}

fn number(found: Option<u64>) -> String {
    found.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

/// The statistics as a table.
#[must_use]
pub fn text(path: &str, statistics: &Statistics) -> String {
    text_at(path, statistics, UNBOUNDED)
}

/// The statistics as a table in lines of at most so many columns.
pub(crate) fn text_at(path: &str, statistics: &Statistics, width: usize) -> String {
    let mut out = format!(
        "{}: {}, {} with activation statistics\n  samples {}, tokens {}\n",
        visible(path),
        statistics.format.name(),
        counted(statistics.modules.len(), "module"),
        number(statistics.samples),
        number(statistics.tokens),
    );
    for source in &statistics.sources {
        let _ = writeln!(out, "  made of {}", visible(source));
    }
    let rows = statistics.modules.iter().flat_map(shown).map(|shown| {
        let largest: Vec<String> =
            shown.largest.iter().map(|(column, times)| format!("{column} ({times:.2})")).collect();
        vec![
            shown.name,
            shown.columns.to_string(),
            format!("{:.0}", shown.tokens),
            format!("{:.4}", shown.mean),
            if largest.is_empty() { "no data".to_owned() } else { largest.join(", ") },
            shown.half.to_string(),
        ]
    });
    let headings = &["module", "columns", "count", "mean", "largest columns (times the mean)", "make half"];
    let columns = Columns { headings, numeric: &[1, 2, 3, 5], optional: &[5, 3] };
    let rows: Vec<_> = rows.collect();
    let _ = write!(out, "\n{}", table(columns, width, &rows));
    out
}

/// The statistics as JSON, with the content of [`text`].
#[must_use]
pub fn json(statistics: &Statistics) -> Value {
    let modules = statistics.modules.iter().flat_map(shown).map(|shown| {
        json!({
            "name": shown.name,
            "columns": shown.columns,
            "count": shown.tokens,
            "mean": shown.mean,
            "largest": shown.largest.iter().map(|(column, times)| json!({"column": column, "times_mean": times})).collect::<Vec<_>>(),
            "columns_that_make_half": shown.half,
        })
    });
    json!({
        "format": statistics.format.name(),
        "samples": statistics.samples,
        "tokens": statistics.tokens,
        "sources": statistics.sources,
        "modules": modules.collect::<Vec<_>>(),
    })
}
