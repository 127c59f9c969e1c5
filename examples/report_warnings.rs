//! Reads the report of an output directory and lists its warnings.
//!
//! `cargo run --example report_warnings -- out/llama-int4`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the terminal")]

use std::path::Path;
use std::process::ExitCode;

use monoquant::report;
use monoquant::show::plain;

fn main() -> ExitCode {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "out/llama-int4".to_owned());
    let report = match report::read(&Path::new(&folder).join(report::FILE_NAME)) {
        Ok(report) => report,
        Err(failure) => {
            eprintln!("{}", plain::render(&failure.findings));
            return ExitCode::from(failure.exit.code());
        }
    };
    for warning in &report.warnings {
        let line = warning.line.map_or(String::new(), |line| format!(" (line {line} of the recipe)"));
        println!("{}: {}: {}{line}", plain::severity(warning.severity), warning.code, warning.message);
    }
    println!("{}", report.verdict.summary);
    ExitCode::SUCCESS
}
