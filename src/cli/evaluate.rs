//! `monoquant evaluate`.

use std::path::Path;

use serde_json::json;

use super::output::Output;
use super::run::listener;
use super::signals::Signals;
use super::{EvaluateArgs, Format};
use crate::exit::Exit;
use crate::finding::{Failure, Finding, diagnostics};
use crate::format::source;
use crate::model;
use crate::network::{Checkpoint, Description};
use crate::plan::model_runs::{self, ModelRun, ModelRuns};
use crate::report::evaluation::{Evaluation, Thresholds};
use crate::run::Options;
use crate::run::evaluate::{Setting, compare};
use crate::show::table::{Columns, table};
use crate::stage::RunText;
use crate::text::units::counted;
use crate::text::visible;

pub(super) fn evaluate(args: &EvaluateArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let follow = &args.links.follow_links;
    let open = |word: &str| model::look(source::open(word, Path::new("."), follow)?);
    let (original, quantized) = (open(&args.source)?, open(&args.directory)?);
    let bad_model = |finding: Finding| Failure::new(Exit::BadModel, finding);
    let bad_text = |finding: Finding| Failure::new(Exit::BadRecipe, finding);
    let description =
        Description::new(&original.config.raw, &Checkpoint::open(&original)?).map_err(bad_model)?;
    let tokenizer = model_runs::tokenizer(&original).map_err(bad_model)?;
    let mut documents = Vec::new();
    for text in &args.text {
        documents.extend(model_runs::read(text, Path::new(text)).map_err(bad_text)?);
    }
    let text = RunText {
        files: &args.text,
        samples: args.samples,
        sequence_length: args.sequence_length,
        begin_with_bos: args.begin_with_bos,
    };
    let windows = model_runs::cut(&tokenizer, &description, &documents, text).map_err(bad_text)?;
    let run = ModelRun { stage: None, texts: args.text.clone(), windows, models: 2 };
    output.findings(model_runs::fewer(text, &run).as_slice());
    let runs = ModelRuns { description, runs: vec![run.clone()] };

    let options = Options::default();
    let listener = listener(output);
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let setting = Setting {
        threads: args.threads.map_or_else(cores, usize::from),
        memory: None,
        target: None,
        options: &options,
        listener: listener.as_ref(),
    };
    let running = signals.running(&options.cancel);
    let sides = ((&original, &original.config.raw), (&quantized, &quantized.config.raw));
    let found = compare(&runs, &run, sides.0, sides.1, &setting)?;
    drop(listener);
    drop(running);

    let thresholds = Thresholds {
        max_kl: args.max_kl,
        max_perplexity_ratio: args.max_perplexity_ratio,
        min_top1_agreement: args.min_top1_agreement,
        min_cosine: args.min_cosine,
    };
    let crossed = found.crossed(&thresholds).into_iter();
    let findings: Vec<Finding> = crossed
        .map(|crossed| {
            let flag = crossed.key.replace('_', "-");
            Finding::error("evaluate::threshold", crossed.message)
                .help(format!("The bound is that of `--{flag}`."))
        })
        .collect();
    if output.format() == Format::Json {
        let mut value = json!(found);
        value["findings"] = json!(diagnostics(&findings));
        value["passed"] = json!(findings.is_empty());
        output.json(&value);
    } else {
        output.findings(&findings);
        output.result(&text_of(&args.directory, &found, output.width()));
    }
    Ok(if findings.is_empty() { Exit::Done } else { Exit::GateFailed })
}

fn text_of(directory: &str, found: &Evaluation, width: usize) -> String {
    let rows = found.layers.iter().enumerate();
    let rows: Vec<_> = rows.map(|(layer, error)| vec![layer.to_string(), format!("{error:.6}")]).collect();
    let mut out = format!(
        "{}: {}\n{} in {}\n\n{}",
        visible(directory),
        found.line(),
        counted(found.tokens, "token"),
        counted(found.samples, "sample"),
        table(Columns::all(&["layer", "error of the hidden state"], &[0, 1]), width, &rows)
    );
    for part in &found.left_out {
        out.push_str(&format!("\n  not run: {}", visible(part)));
    }
    out
}
