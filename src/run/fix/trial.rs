//! Trials of changed recipes: runs into a folder of their own beside the output, for gates that judge what the model answers.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive;
use crate::plan::Plan;
use crate::publish::hidden;
use crate::publish::lock::Lock;
use crate::run::event::Listener;
use crate::run::outcome::Options;
use crate::stage::Stage;

/// The folder of the output of a trial, in the trial's folder.
const OUTPUT: &str = "output";

/// The trial folders of a plan's outputs. They go when it is dropped.
struct Folders {
    paths: Vec<PathBuf>,
    /// Nobody else tries or writes these outputs.
    _locks: Vec<Lock>,
}

impl Folders {
    fn new(plan: &Plan) -> Result<Self, Failure> {
        let mut out = Self { paths: Vec::new(), _locks: Vec::new() };
        for export in &plan.exports {
            out._locks.push(Lock::take(&export.path)?);
            out.paths.push(hidden::trial(&export.path));
        }
        out.clear();
        Ok(out)
    }

    fn clear(&self) {
        // What cannot be removed now is removed by the next trial, or by `monoquant clean`.
        for path in &self.paths {
            let _ = exclusive::remove_folder(path);
        }
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether some gate judges what the model answers.
pub(super) fn is_needed(plan: &Plan) -> bool {
    plan.recipe().stages.iter().any(|stage| match stage {
        Stage::Evaluate(evaluate) => evaluate.has_threshold(),
        _ => false,
    })
}

/// What the `evaluate` gates say of a plan, whatever their `on_failure` makes of it: the model is quantized into a folder of its own,
/// which is removed. Nothing if no gate judges answers.
///
/// # Errors
/// As those of a run.
pub(super) fn complaints(
    plan: &mut Plan,
    options: &Options,
    listener: &dyn Listener,
) -> Result<Vec<Finding>, Failure> {
    if !is_needed(plan) {
        return Ok(Vec::new());
    }
    let folders = Folders::new(plan)?;
    let mut places: Vec<PathBuf> = folders.paths.iter().map(|path| path.join(OUTPUT)).collect();
    let mut exchange = |plan: &mut Plan| {
        plan.exports.iter_mut().zip(&mut places).for_each(|(export, place)| {
            std::mem::swap(&mut export.path, place);
        });
    };
    exchange(plan);
    let options = Options { fresh: true, durable: false, keep_unpublished: false, ..options.clone() };
    let outcome = crate::run::run(plan, &options, listener);
    exchange(plan);
    let outcome = outcome?;
    if !matches!(outcome.exit, Exit::Done | Exit::GateFailed) {
        return Err(Failure { exit: outcome.exit, findings: outcome.findings });
    }
    let is_of_answers = |found: &Finding| found.code == "evaluate::threshold";
    Ok(outcome.findings.into_iter().filter(is_of_answers).collect())
}
