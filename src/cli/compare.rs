//! `monoquant compare`.

use std::path::Path;

use clap::Args;
use serde_json::json;

use super::ci::bound;
use super::output::Output;
use super::signals::Signals;
use super::workspace::from_root;
use super::{Format, LinkArgs};
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding, diagnostics};
use crate::fs::paths;
use crate::report::comparison::Bounds;
use crate::run::compare::{Sides, compare};
use crate::show::{comparison, document};

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The model that the other one is compared with: a report, an output directory of monoquant or of another tool that writes
    /// compressed-tensors, a source model, or hf://org/name.
    a: String,
    /// The model that is compared.
    b: String,
    /// The model that both were made from. Both are measured against it, whatever their reports say.
    #[arg(long, value_name = "MODEL")]
    source: Option<String>,
    /// Exit with status 1 if the SQNR of B is more than so many dB below that of A.
    #[arg(long, value_name = "DB", value_parser = bound)]
    fail_on_drop: Option<f64>,
    /// Print it as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Worker threads. Default: the number of cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    links: LinkArgs,
}

pub(super) fn run(args: &CompareArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let cancel = Cancel::default();
    let running = signals.running(&cancel);
    let name =
        |word: &str| if paths::is_address(word) { word.to_owned() } else { from_root(Path::new(word)) };
    let (a, b) = (name(&args.a), name(&args.b));
    let sides = Sides {
        a: (&args.a, &a),
        b: (&args.b, &b),
        source: args.source.as_deref(),
        follow_links: &args.links.follow_links,
    };
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = compare(&sides, args.threads.map_or_else(cores, usize::from), &cancel)?;
    drop(running);
    let bounds = Bounds { max_drop: args.fail_on_drop, ..Bounds::default() };
    let findings: Vec<Finding> = found
        .crossed(&bounds)
        .into_iter()
        .map(|crossed| {
            Finding::error("compare::drop", crossed.message).help("The bound is that of `--fail-on-drop`.")
        })
        .collect();
    if output.format() == Format::Json {
        let mut value = json!(found);
        value["findings"] = json!(diagnostics(&findings));
        value["passed"] = json!(findings.is_empty());
        output.json(&value);
    } else {
        output.findings(&findings);
        if args.markdown {
            let mut text = Vec::new();
            // Memory takes all that is written to it.
            let _ = document::markdown::comparison(&found, &mut text);
            // A row of a table is a line.
            output.result_unbroken(&String::from_utf8_lossy(&text));
        } else {
            output.result(&comparison::text(&found, output.width()));
        }
    }
    Ok(if findings.is_empty() { Exit::Done } else { Exit::GateFailed })
}
