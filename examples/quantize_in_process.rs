//! Runs a recipe inside a program, with a listener of its own instead of a progress bar.
//!
//! `cargo run --release --example quantize_in_process -- recipes/llama-int4.yaml`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the terminal")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use monoquant::exit::Exit;
use monoquant::finding::Failure;
use monoquant::plan::{self, Limits};
use monoquant::recipe::{self, Overrides};
use monoquant::run::{self, Event, Listener, Options};
use monoquant::show::plain;

/// Counts what was read. Events come from all worker threads, so the sum is atomic.
#[derive(Default)]
struct Counter {
    bytes: AtomicU64,
}

impl Listener for Counter {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Tile { bytes, .. } => {
                self.bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            Event::Stage { name, outcome, summary, .. } => {
                println!("{name}: {} ({summary})", outcome.words());
            }
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "recipes/llama-int4.yaml".to_owned());
    let exit = quantize(Path::new(&path)).unwrap_or_else(|failure| {
        eprintln!("{}", plain::render(&failure.findings));
        failure.exit
    });
    ExitCode::from(exit.code())
}

fn quantize(path: &Path) -> Result<Exit, Failure> {
    let loaded = recipe::load(path, &Overrides::default())?;
    let plan = plan::plan(loaded, Limits::default())?;
    let counter = Counter::default();
    let outcome = run::run(&plan, &Options::default(), &counter)?;
    println!("read {} bytes: {}", counter.bytes.into_inner(), outcome.report.verdict.summary);
    // A failed gate is an outcome, with everything that was measured; it is for the program to judge.
    Ok(outcome.exit)
}
