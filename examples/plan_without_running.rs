//! Plans a recipe and says what a run would write, from the headers of the model alone.
//!
//! `cargo run --example plan_without_running -- recipes/llama-int4.yaml`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the terminal")]

use std::path::Path;
use std::process::ExitCode;

use monoquant::finding::Failure;
use monoquant::plan::{self, Limits};
use monoquant::recipe::{self, Overrides};
use monoquant::show::plain;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "recipes/llama-int4.yaml".to_owned());
    match describe(Path::new(&path)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}", plain::render(&failure.findings));
            ExitCode::from(failure.exit.code())
        }
    }
}

fn describe(path: &Path) -> Result<String, Failure> {
    let loaded = recipe::load(path, &Overrides::default())?;
    let plan = plan::plan(loaded, Limits::default())?;
    let mut text = String::new();
    for (tensor, decision) in plan.model.tensors.iter().zip(&plan.decisions) {
        let what = match decision.spec() {
            Some(spec) => spec.scheme.to_string(),
            None => format!("skipped: {}", decision.rule.reason),
        };
        text += &format!("{}: {what}\n", tensor.name);
    }
    for export in &plan.exports {
        text += &format!("{} bytes become {}\n", plan.source_bytes(), export.weight_bytes());
    }
    Ok(text)
}
