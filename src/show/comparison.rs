//! Comparisons of two models, for a terminal.

use std::fmt::Write;

use crate::report::comparison::{Comparison, Side};
use crate::show::table::{Columns, table};
use crate::text::units::{bytes, counted, decibels};
use crate::text::visible;

/// Layers that are listed.
const LAYERS: usize = 20;

/// Names of layers that only one model has.
const NAMED: usize = 5;

/// The comparison as text, for so many columns of a terminal.
#[must_use]
pub(crate) fn text(found: &Comparison, width: usize) -> String {
    let change = |change: Option<f64>, unit: &str| {
        change.map_or_else(|| "–".to_owned(), |change| format!("{change:+.2} {unit}"))
    };
    let size = |side: &Side| side.bytes.map_or_else(|| "–".to_owned(), bytes);
    let kl = |side: &Side| side.kl.map_or_else(|| "–".to_owned(), |kl| format!("{kl:.6}"));
    let (a, b) = (&found.a, &found.b);
    let row = |name: &str, cell: &dyn Fn(&Side) -> String, change: String| {
        vec![name.to_owned(), cell(a), cell(b), change]
    };
    let least = a.min_sqnr_db.zip(b.min_sqnr_db).map(|(a, b)| b - a);
    let mut rows = vec![
        row("weight files", &size, change(found.growth_percent, "%")),
        row("quantized layers", &|side| side.quantized.to_string(), String::new()),
        row("SQNR of the model", &|side| decibels(side.sqnr_db), change(found.sqnr_change_db, "dB")),
        row("SQNR of the worst layer", &|side| decibels(side.min_sqnr_db), change(least, "dB")),
    ];
    if a.kl.is_some() || b.kl.is_some() {
        rows.push(row("mean KL", &kl, change(found.kl_rise_percent, "%")));
    }
    if let Some(difference) = found.difference_db {
        rows.push(vec![
            "weights of A over A − B".to_owned(),
            String::new(),
            decibels(Some(difference)),
            String::new(),
        ]);
    }
    let mut out = format!("A  {}\nB  {}\n\n", visible(&a.name), visible(&b.name));
    out.push_str(&table(Columns::all(&["", "A", "B", "B − A"], &[1, 2, 3]), width, &rows));
    let by_weights = found.layers.iter().any(|layer| layer.difference_db.is_some());
    let layers: Vec<Vec<String>> = found
        .layers
        .iter()
        .take(LAYERS)
        .map(|layer| {
            let scheme =
                |scheme: &Option<String>| scheme.clone().unwrap_or_else(|| "not quantized".to_owned());
            let schemes = if layer.a.scheme == layer.b.scheme {
                scheme(&layer.a.scheme)
            } else {
                format!("{} → {}", scheme(&layer.a.scheme), scheme(&layer.b.scheme))
            };
            let last =
                if by_weights { decibels(layer.difference_db) } else { change(layer.sqnr_change_db, "dB") };
            let name = layer.name.trim_end_matches(".weight").to_owned();
            vec![name, decibels(layer.a.sqnr_db), decibels(layer.b.sqnr_db), last, schemes]
        })
        .collect();
    if !layers.is_empty() {
        let last = if by_weights { "A over A − B" } else { "B − A" };
        let columns = Columns {
            headings: &["layers that differ", "A", "B", last, "scheme"],
            numeric: &[1, 2, 3],
            optional: &[4, 1],
        };
        let _ = write!(out, "\n{}", table(columns, width, &layers));
    }
    if found.layers.len() > LAYERS {
        let _ = writeln!(out, "  and {} more", counted(found.layers.len() - LAYERS, "layer"));
    }
    let _ = writeln!(out, "\n  {} alike in both", counted(found.unchanged, "layer"));
    for (side, names) in [("A", &found.only_in_a), ("B", &found.only_in_b)] {
        if !names.is_empty() {
            let named: Vec<_> = names.iter().take(NAMED).map(|name| visible(name)).collect();
            let dots = if names.len() > NAMED { ", …" } else { "" };
            let count = counted(names.len(), "quantized layer");
            let _ = writeln!(out, "  {count} only in {side}: {}{dots}", named.join(", "));
        }
    }
    out
}
