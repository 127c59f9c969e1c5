//! What the fuzzers have found, on the stable toolchain: every input of `fuzz/corpus` and of `fuzz/regressions`, read once more by
//! the code that read it while fuzzing.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::{is_updating, root};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use targets::Target;

/// Reads every input of a target; each that fails is named.
fn replay<T: Target>(name: &str) {
    let target = T::new();
    let (mut count, mut failed) = (0, Vec::new());
    for folder in ["corpus", "regressions"] {
        let Ok(entries) = fs::read_dir(root().join("fuzz").join(folder).join(name)) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let input = fs::read(&path).expect("an input");
            if catch_unwind(AssertUnwindSafe(|| target.try_on(&input))).is_err() {
                failed.push(path.display().to_string());
            }
            count += 1;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count >= 10, "{name} has {count} inputs");
}

#[test]
fn recipes() {
    replay::<targets::Recipe>("recipe");
}

#[test]
fn headers() {
    replay::<targets::Header>("header");
}

#[test]
fn indices() {
    replay::<targets::Index>("index");
}

#[test]
fn configs() {
    replay::<targets::Config>("config");
}

#[test]
fn statistics() {
    replay::<targets::Statistics>("statistics");
}

#[test]
fn reports() {
    replay::<targets::Report>("report");
}

#[test]
fn records() {
    replay::<targets::Record>("record");
}

/// The record of a real run that mutations begin with would else be skipped at its first line.
#[test]
fn the_kept_record_is_of_the_format_that_is_written() {
    let written = targets::Record::new().real();
    let path = root().join("fuzz/corpus/record/real");
    if is_updating() {
        fs::write(&path, &written).expect("the kept record");
    }
    let shape = |text: &str| -> Vec<(String, Vec<String>)> {
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        lines
            .map(|line: serde_json::Value| {
                let mut names: Vec<String> = line.as_object().expect("an object").keys().cloned().collect();
                names.sort();
                (line["record_version"].to_string(), names)
            })
            .collect()
    };
    let kept = fs::read_to_string(&path).expect("the kept record");
    assert_eq!(shape(&kept), shape(&written), "INSTA_UPDATE=always makes it anew");
}
