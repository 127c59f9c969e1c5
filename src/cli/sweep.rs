//! `monoquant sweep`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::output::Output;
use super::run::listener;
use super::signals::Signals;
use super::{Format, LinkArgs};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::gates::outlook;
use crate::plan::{Limits, Plan};
use crate::recipe::{self, Overrides};
use crate::report::{Quality, ledger};
use crate::run::Options;
use crate::run::sweep::{Measured, Point, measure, pareto};
use crate::show::table::{Columns, table};
use crate::text::units::{bytes, decibels};

/// Combinations beyond which a sweep is refused.
const MOST: usize = 100;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// The recipe.
    recipe: PathBuf,
    /// Values to try, such as `quantize-int4.group_size=32,64,128`. May be repeated: all combinations are measured.
    #[arg(long, value_name = "PATH=VALUES", required = true)]
    set: Vec<String>,
    /// Use this model instead of the one of `load`; relative to the current folder.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    #[command(flatten)]
    links: LinkArgs,
    /// Worker threads. Results do not depend on it. Default: the number of cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// A combination.
struct Setting {
    sets: Vec<String>,
    planned: Result<Plan, Failure>,
}

/// A combination with its results.
struct Row<'s> {
    setting: &'s Setting,
    size: u64,
    quality: Option<Quality>,
    failures: usize,
    is_best: bool,
}

pub(super) fn sweep(args: &SweepArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let options = Options::default();
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let limits = Limits { threads: args.threads.map(usize::from), memory: None };
    let mut settings = Vec::new();
    for sets in combinations(&args.set)? {
        let (model, follow_links) = (args.model.clone(), args.links.follow_links.clone());
        let overrides = Overrides { set: sets.clone(), model, follow_links, ..Overrides::default() };
        let planned = recipe::load(&args.recipe, &overrides)
            .and_then(|loaded| crate::plan::plan(loaded, limits))
            .and_then(|mut plan| {
                crate::run::calibrate::calibrate(&mut plan, &options, listener.as_ref())?;
                Ok(plan)
            });
        options.cancel.check()?;
        settings.push(Setting { sets, planned });
    }
    let plans: Vec<&Plan> = settings.iter().filter_map(|setting| setting.planned.as_ref().ok()).collect();
    if plans.is_empty()
        && let Some(Setting { planned: Err(failure), .. }) = settings.first()
    {
        return Err(failure.clone());
    }
    if plans.iter().any(|plan| plan.awaits_rounding()) {
        let finding = Finding::warning(
            "sweep::rounding",
            "`rounding: gptq` is measured as rounding to nearest",
        )
        .help(
            "It runs the model for each setting. Compare runs of those that matter with `monoquant compare`.",
        );
        output.findings(&[finding]);
    }
    let measured = measure(&plans, &options, listener.as_ref())?;
    drop(listener);
    drop(running);
    let rows = ranked(&settings, &measured);
    let failed: Vec<&Setting> = settings.iter().filter(|setting| setting.planned.is_err()).collect();
    if output.format() == Format::Json {
        output.json(&json(&rows, &failed));
    } else {
        output.result(&text(&rows, &failed, output.width()));
    }
    Ok(Exit::Done)
}

/// All combinations of the values.
fn combinations(sets: &[String]) -> Result<Vec<Vec<String>>, Failure> {
    let wrong = |message: String| {
        let finding = Finding::error("sweep::values", message)
            .help("Write `PATH=VALUE,VALUE`, such as `quantize-int4.group_size=32,64,128`.");
        Failure::new(Exit::BadRecipe, finding)
    };
    let mut out: Vec<Vec<String>> = vec![Vec::new()];
    for set in sets {
        let Some((path, values)) = set.split_once('=') else {
            return Err(wrong(format!("`--set {set}` has no values")));
        };
        let values = split(values);
        if values.iter().any(|value| value.trim().is_empty()) {
            return Err(wrong(format!("`--set {set}` has an empty value")));
        }
        let mut next = Vec::with_capacity(out.len() * values.len());
        for before in &out {
            for value in &values {
                let mut sets = before.clone();
                sets.push(format!("{path}={value}"));
                next.push(sets);
            }
        }
        if next.len() > MOST {
            return Err(wrong(format!("there are more than {MOST} combinations")));
        }
        out = next;
    }
    Ok(out)
}

/// The values between commas, but for commas in lists, mappings and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start, mut out) = (0_i32, None, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth -= 1,
            (None, ',') if depth == 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

/// The combinations by size, then by quality.
fn ranked<'s>(settings: &'s [Setting], measured: &[Measured]) -> Vec<Row<'s>> {
    let planned = settings.iter().filter_map(|setting| Some((setting, setting.planned.as_ref().ok()?)));
    let mut rows: Vec<Row<'s>> = planned
        .zip(measured)
        .map(|((setting, plan), measured)| Row {
            setting,
            size: ledger::sizes(plan).outputs.first().copied().unwrap_or(0),
            quality: ledger::quality(measured),
            failures: outlook::failures(plan, measured).len(),
            is_best: false,
        })
        .collect();
    let sqnr = |row: &Row<'_>| row.quality.as_ref().map(|quality| quality.sqnr_db.unwrap_or(f64::INFINITY));
    let points: Vec<Option<Point>> =
        rows.iter().map(|row| sqnr(row).map(|sqnr_db| Point { bytes: row.size, sqnr_db })).collect();
    for (row, is_best) in rows.iter_mut().zip(pareto(&points)) {
        row.is_best = is_best;
    }
    rows.sort_by(|a, b| {
        a.size.cmp(&b.size).then_with(|| sqnr(b).unwrap_or(0.0).total_cmp(&sqnr(a).unwrap_or(0.0)))
    });
    rows
}

fn why(setting: &Setting) -> &str {
    let findings =
        setting.planned.as_ref().err().map(|failure| failure.findings.as_slice()).unwrap_or_default();
    findings.iter().find(|finding| finding.is_error()).map_or("", |finding| finding.message.as_str())
}

fn text(rows: &[Row<'_>], failed: &[&Setting], width: usize) -> String {
    let cells = rows.iter().map(|row| {
        let quality = row.quality.as_ref();
        vec![
            if row.is_best { "★".to_owned() } else { String::new() },
            row.setting.sets.join(" "),
            bytes(row.size),
            decibels(quality.and_then(|quality| quality.sqnr_db)),
            decibels(quality.and_then(|quality| quality.min_sqnr_db)),
            if row.failures == 0 { "pass".to_owned() } else { "fail".to_owned() },
        ]
    });
    let columns = Columns {
        headings: &["", "setting", "size", "SQNR", "worst layer", "check-warnings"],
        numeric: &[2, 3, 4],
        optional: &[4],
    };
    let mut out = table(columns, width, &cells.collect::<Vec<_>>());
    out.push_str("\n  ★ no other setting is both smaller and better; nothing was written\n");
    for setting in failed {
        out.push_str(&format!("  not possible: {}: {}\n", setting.sets.join(" "), why(setting)));
    }
    out
}

fn json(rows: &[Row<'_>], failed: &[&Setting]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "set": row.setting.sets,
                "bytes": row.size,
                "quality": row.quality,
                "gates_pass": row.failures == 0,
                "pareto": row.is_best,
            })
        })
        .collect();
    let failed: Vec<Value> =
        failed.iter().map(|setting| json!({"set": setting.sets, "why": why(setting)})).collect();
    json!({"settings": rows, "not_possible": failed})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_at_commas_outside_of_lists_and_quotes() {
        assert_eq!(split("32,64"), ["32", "64"]);
        assert_eq!(split("[a, b],[c],'x,y'"), ["[a, b]", "[c]", "'x,y'"]);
        let all = combinations(&["a=1,2".to_owned(), "b=x".to_owned()]).unwrap();
        assert_eq!(all, [["a=1", "b=x"], ["a=2", "b=x"]]);
        assert!(combinations(&["a".to_owned()]).is_err());
        assert!(combinations(&["a=1,,2".to_owned()]).is_err());
        let many: String = (0..101).map(|n| format!("{n},")).collect();
        assert!(combinations(&[format!("a={many}1")]).is_err());
    }
}
