//! `monoquant run --part` and `--join`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::output::Output;
use super::recipe_args::{Trust, instruction_set, limits, loaded};
use super::run::listener;
use super::signals::Signals;
use super::{Format, RunArgs};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::plan::parts::Part;
use crate::run::Options;
use crate::text::units::{bytes, counted, seconds};

/// Where a scheduler says which part of an array a process is.
struct Array {
    /// The number of the part.
    index: &'static str,
    /// Its first number, the step between two, and their count, if the scheduler says so.
    others: Option<[&'static str; 3]>,
}

/// Slurm, Kubernetes and AWS Batch.
const ARRAYS: [Array; 3] = [
    Array {
        index: "SLURM_ARRAY_TASK_ID",
        others: Some(["SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"]),
    },
    Array { index: "JOB_COMPLETION_INDEX", others: None },
    Array { index: "AWS_BATCH_JOB_ARRAY_INDEX", others: None },
];

/// `I/N`, `auto` or `auto/N`, with the variables of the environment.
fn part(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Part, String> {
    let (index, count) = match text.split_once('/') {
        Some((index, count)) => (index, Some(number(count)?)),
        None => (text, None),
    };
    if index != "auto" {
        let count = count.ok_or("write I/N, such as 0/4, or `auto`")?;
        return checked(number(index)?, count);
    }
    let array = ARRAYS.iter().find(|array| variable(array.index).is_some());
    let Some(array) = array else {
        let names: Vec<&str> = ARRAYS.iter().map(|array| array.index).collect();
        return Err(format!("none of {} is set: this is no part of an array", names.join(", ")));
    };
    let of = |name: &str| -> Result<usize, String> {
        let text = variable(name).ok_or_else(|| format!("{name} is not set"))?;
        number(&text).map_err(|why| format!("{name}: {why}"))
    };
    let index = of(array.index)?;
    let Some([first, step, all]) = array.others else {
        let count = count.ok_or_else(|| format!("{} has no count: write auto/N", array.index))?;
        return checked(index, count);
    };
    let (first, step) = (of(first)?, of(step)?.max(1));
    let count = count.map_or_else(|| of(all), Ok)?;
    let offset = index.checked_sub(first).filter(|offset| offset % step == 0);
    let offset = offset.ok_or_else(|| format!("{} is no number of its own array", array.index))?;
    checked(offset / step, count)
}

fn checked(index: usize, count: usize) -> Result<Part, String> {
    if index < count {
        return Ok(Part { index, count });
    }
    Err(format!("there is no part {index} of {count}: they are numbered from 0"))
}

fn number(text: &str) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("`{text}` is no number of a part"))
}

/// A time such as 90s, 30m, 6h or 2d.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86400)];
    let split = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, *seconds)));
    let parsed =
        split.and_then(|(number, seconds): (&str, u64)| number.parse::<u64>().ok()?.checked_mul(seconds));
    parsed
        .map(Duration::from_secs)
        .ok_or_else(|| "write a whole number and a unit: 90s, 30m, 6h or 2d".to_owned())
}

/// Runs a part.
pub(super) fn run(args: &RunArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let start = Instant::now();
    let text = args.part.as_deref().unwrap_or_default();
    let part = part(text, &|name| std::env::var(name).ok()).map_err(|why| {
        Failure::new(Exit::BadRecipe, Finding::error("cli::part", format!("--part {text}: {why}")))
    })?;
    let mut plan = crate::plan::plan(loaded(&args.recipe)?, limits(&args.recipe))?;
    if output.format() != Format::Json {
        output.findings(&plan.warnings);
    }
    let isa = args.isa.as_deref().map(instruction_set).transpose()?;
    let fresh = args.fresh || Trust::of(args) != Trust::Trusted;
    let options = Options { isa, fresh, ..Options::default() };
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let warnings = plan.warnings.len();
    let done = crate::run::parts::run_part(&mut plan, part, &options, listener.as_ref())?;
    drop(listener);
    drop(running);
    if output.format() != Format::Json {
        output.findings(&plan.warnings[warnings..]);
    }
    let made = done.files.iter().filter(|(_, is_made)| *is_made).count();
    if output.format() == Format::Json {
        let files: Vec<_> =
            done.files.iter().map(|(name, made)| json!({"file": name, "made": made})).collect();
        let part = json!({"index": part.index, "count": part.count});
        output.json(&json!({"part": part, "files": files, "bytes": done.bytes}));
    } else if !output.is_quiet() {
        let took = seconds(start.elapsed());
        let there = done.files.len() - made;
        let files = counted(done.files.len(), "file");
        let text = format!(
            "part {} of {}: {files}, {}; {made} made, {there} there before, took {took}",
            part.index,
            part.count,
            bytes(done.bytes)
        );
        output.result(&text);
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, variables: &[(&str, &str)]) -> Result<(usize, usize), String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        part(text, &variable).map(|part| (part.index, part.count))
    }

    #[test]
    fn parts_are_numbered_from_0() {
        assert_eq!(of("0/4", &[]), Ok((0, 4)));
        assert_eq!(of("3/4", &[]), Ok((3, 4)));
        for wrong in
            ["4/4", "1", "1/0", "-1/4", "+1/4", "a/4", "1/b", "/", "", "1/2/3", "99999999999999999999/4"]
        {
            assert!(of(wrong, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arrays_of_schedulers_are_read_only_if_asked_for() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
        ];
        assert_eq!(of("auto", &slurm), Ok((3, 4)));
        assert_eq!(of("auto/8", &slurm), Ok((3, 8)));
        assert_eq!(of("0/2", &slurm), Ok((0, 2)));
        assert!(of("auto/3", &slurm).unwrap_err().contains("numbered from 0"));
        assert!(of("auto", &[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        assert!(of("auto", &slurm[..3]).unwrap_err().contains("SLURM_ARRAY_TASK_COUNT is not set"));
        for name in ["JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX"] {
            assert!(of("auto", &[(name, "1")]).unwrap_err().contains("auto/N"));
            assert_eq!(of("auto/2", &[(name, "1")]), Ok((1, 2)));
            assert!(of("auto/2", &[(name, "2")]).is_err());
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("6h"), Ok(Duration::from_secs(6 * 3600)));
        for wrong in ["", "6", "h", "-1h", "1.5h", "6 h", "99999999999999999999d", "9999999999999999999d"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
