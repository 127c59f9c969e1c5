//! Planning: a checked recipe and the headers of a model, compiled into a [`Plan`]. Pure, except for file sizes: no
//! weight is read and nothing is written.
//!
//! A plan holds everything that can be known before the first weight is read: for every tensor the decision and the
//! rule that made it, for every output tensor its file and offset, and everything that an engine would refuse.

use std::collections::BTreeMap;
use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Failure, Finding, Place};
use crate::fs::paths;
use crate::ids::{ExportId, IdVec, StageId, TaskId, TensorId};
use crate::model::{LayerClass, MatrixView, ModelFolder};
use crate::recipe::{Loaded, Recipe};
use crate::stage::Stage;
use crate::stage::export::DigestChoice;

pub(crate) mod budget;
pub(crate) mod card;
pub(crate) mod checks;
pub mod compressed_tensors;
pub mod config;
pub(crate) mod copies;
mod decision;
mod doubts;
mod draft;
mod engines;
pub(crate) mod explain;
mod export_paths;
pub(crate) mod fingerprint;
pub(crate) mod fused_modules;
mod kv_cache;
pub(crate) mod layout;
mod matrices;
mod measured;
pub(crate) mod model_runs;
pub(crate) mod output_tensor;
mod outputs;
pub mod parts;
mod phases;
mod relabelled;
pub mod rounding;
mod scratch;
pub(crate) mod select;
pub(crate) mod shared_scales;
mod source_model;
pub(crate) mod statistics;
pub(crate) mod task;
pub mod task_list;
mod unmatched;
pub(crate) mod unreachable_thresholds;

pub use crate::plan::fused_modules::FusedModules;
pub use budget::Budget;
pub use checks::Checks;
pub use decision::{Action, Decision, QuantSpec, Rounding, Rule};
pub use draft::{Draft, draft, draft_from};
pub use engines::parallel::{Limit, Parallel};
pub use engines::served::{KernelUse, Served, Server};
pub use explain::{Explanation, explain};
pub(crate) use export_paths::normalized;
pub use layout::{ExportPlan, OutputFile, TaskOutput};
pub use model_runs::{ModelRun, ModelRuns};
pub use output_tensor::{Content, OutputTensor};
pub use rounding::Roundings;
pub use statistics::{StageStatistics, Weighing};
pub use task::Task;

/// Command-line limits of a plan, which are not part of the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Worker threads. Defaults to the number of cores.
    pub threads: Option<usize>,
    /// Bound of the resident memory, in bytes.
    pub memory: Option<u64>,
}

/// A recipe compiled for a model. Only [`plan`] makes one.
#[derive(Debug)]
pub struct Plan {
    /// The recipe, with the source place of every value.
    pub loaded: Loaded,
    /// The model's headers.
    pub model: ModelFolder,
    /// Kind and role of each tensor of the model.
    pub classes: IdVec<TensorId, LayerClass>,
    /// The decision for each tensor of the model.
    pub decisions: IdVec<TensorId, Decision>,
    /// The units that are read, treated and written as one, in the order of the files.
    pub tasks: IdVec<TaskId, Task>,
    /// Modules that engines fuse.
    pub fused_modules: Vec<FusedModules>,
    /// The exports, laid out.
    pub exports: IdVec<ExportId, ExportPlan>,
    /// How engines that compute with codes serve the exports.
    pub served: Vec<Served>,
    /// The importance of the columns of the tasks, from activation statistics.
    pub weighing: Weighing,
    /// What the stages run the model on that run it.
    pub runs: Option<ModelRuns>,
    /// The matrices that are rounded with calibration, if there are some.
    pub roundings: Option<Roundings>,
    /// What it may use, from the command line.
    pub limits: Limits,
    /// The memory bound.
    pub budget: Budget,
    /// Everything doubtful, in the order in which it is to be read.
    pub warnings: Vec<Finding>,
    /// Worth knowing, and no reason to change anything.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether the recipe asks for cryptographic hashes.
    #[must_use]
    pub fn asks_for_hashes(&self) -> bool {
        let mut stages = self.recipe().stages.iter();
        stages.any(|stage| matches!(stage, Stage::Export(export) if export.digest == DigestChoice::Blake3))
    }

    /// The recipe.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.loaded.recipe
    }

    /// The output directory of an `export` stage; empty for any other stage.
    #[must_use]
    pub fn export_path(&self, stage: StageId) -> &Path {
        let export = self.exports.iter().find(|export| export.stage == stage);
        export.map_or_else(|| Path::new(""), |export| &export.path)
    }

    /// A path as people are told it: with variables of the recipe as they were written, and for an output in an object store the
    /// place there.
    #[must_use]
    pub fn told_path(&self, path: &Path) -> String {
        for export in &self.exports {
            if let (Some(store), Ok(rest)) = (&export.store, path.strip_prefix(&export.path)) {
                let rest = rest.display().to_string();
                return self.loaded.told(&format!("{store}/{rest}")).trim_end_matches('/').to_owned();
            }
        }
        self.loaded.told(&path.display().to_string())
    }

    /// The line of the recipe in which a rule stands, from 1; none for built-in rules and overrides.
    #[must_use]
    pub fn line(&self, rule: &Rule) -> Option<usize> {
        crate::recipe::places::line(&self.loaded, rule.pointer.as_deref()?)
    }

    /// The place of a stage's name in the recipe.
    #[must_use]
    pub fn stage_place(&self, stage: StageId) -> Option<Place> {
        self.loaded.stage_place(stage)
    }

    /// The SQNR that a quantized tensor's scheme reaches on Gaussian weights of its shape, in dB. For a stack, that
    /// of one of its matrices. None if it is not known ([`crate::quant::Scheme::expected_sqnr`]), or if the importance of
    /// columns changes the ranges.
    #[must_use]
    pub fn expected_sqnr(&self, tensor: TensorId) -> Option<f64> {
        let (first, view, spec) = self.quantized(tensor)?;
        if self.weighing.changes_ranges(first, spec) {
            return None;
        }
        spec.expected_sqnr(view.rows, view.cols)
    }

    /// The SQNR that a tensor is judged by: what its scheme reaches on Gaussian weights or, if that is not known of its observer,
    /// what `minmax` reaches. None if no weights share a scale.
    #[must_use]
    pub(crate) fn reach(&self, tensor: TensorId) -> Option<f64> {
        self.expected_sqnr(tensor).or_else(|| {
            let (_, view, spec) = self.quantized(tensor)?;
            spec.expected_sqnr_of_minmax(view.rows, view.cols)
        })
    }

    /// The first task of a quantized tensor, with its matrix and how it is quantized.
    fn quantized(&self, tensor: TensorId) -> Option<(TaskId, MatrixView, &QuantSpec)> {
        let first = self.tasks_of(tensor).next()?;
        Some((first, self.tasks[first].matrix(&self.model)?, self.decisions[tensor].spec()?))
    }

    /// What the tensors of the exports are made of.
    #[must_use]
    pub fn content(&self) -> Content<'_> {
        let Self { loaded, model, classes, decisions, fused_modules, tasks, .. } = self;
        Content { loaded, model, classes, decisions, fused_modules, tasks }
    }

    /// The tasks of a tensor of the model.
    pub fn tasks_of(&self, tensor: TensorId) -> impl Iterator<Item = TaskId> + '_ {
        self.content().tasks_of(tensor)
    }

    /// How many tensors are quantized.
    #[must_use]
    pub fn quantized_tensors(&self) -> usize {
        self.decisions.iter().filter(|decision| decision.spec().is_some()).count()
    }

    /// Bytes of the source's weight files as a whole: tensors and headers.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        self.model.shards.iter().map(|shard| shard.len).sum()
    }
}

/// Reads a recipe's model and compiles the plan.
///
/// # Errors
/// All problems at once: of the model with [`Exit::BadModel`], of the recipe in view of the model with [`Exit::BadRecipe`].
pub fn plan(loaded: Loaded, limits: Limits) -> Result<Plan, Failure> {
    compile(draft(loaded)?, limits)
}

/// Compiles the plan of a draft.
///
/// # Errors
/// All problems at once, with [`Exit::BadRecipe`].
pub fn compile(draft: Draft, limits: Limits) -> Result<Plan, Failure> {
    let loaded = draft.loaded.clone();
    let mut plan = compiled(draft, limits).map_err(|failure| loaded.tell_failure(failure))?;
    loaded.tell(&mut plan.warnings);
    plan.notes.iter_mut().for_each(|note| *note = loaded.told(note));
    Ok(plan)
}

fn compiled(draft: Draft, limits: Limits) -> Result<Plan, Failure> {
    stop_on_errors(&draft.findings)?;
    let runs = model_runs::prepare(&draft.loaded, &draft.model)?;
    let (weighing, problems) = draft.weigh_with(runs.as_ref(), &BTreeMap::new())?;
    let mut findings = draft.findings.clone();
    findings.extend(problems);
    findings.extend(runs.iter().flat_map(|runs| runs.short(&draft.loaded)));

    let content = draft.content();
    let threads = limits
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get))
        .unwrap_or(1);
    let (roundings, problems) = rounding::prepare(content, runs.as_ref(), threads, limits.memory);
    findings.extend(problems);
    let exports = exports(content);
    findings.extend(export_paths::export_paths(content, &exports));
    findings.extend(export_paths::stores(content.loaded, &exports));
    findings.extend(outputs::check(content, &exports));
    for export in &exports {
        findings.extend(engines::check(content, export));
        findings.extend(engines::kept_experts::check(content, export));
        findings.extend(engines::unbuilt(content, export));
    }
    let outlook = engines::served::look_at(content, &exports);
    findings.extend(outlook.findings);
    findings.extend(unreachable_thresholds::check(content, &weighing));
    stop_on_errors(&findings)?;

    let budget = budget::budget(content, &exports, &weighing, threads, limits.memory)
        .map_err(|memory| Failure::new(Exit::BadRecipe, memory.into()))?;
    if let Some(runs) = &runs {
        runs.check_memory(&draft.loaded, limits.memory, budget.workers)?;
        if let Some(roundings) = &roundings {
            roundings.check_memory(&draft.loaded, limits.memory, runs, budget.workers)?;
        }
    }
    let mut notes = engines::notes(content, &exports);
    notes.extend(copies::stale_declarations(&draft.model));
    notes.extend(outlook.notes);
    let left_out = runs.iter().flat_map(|runs| &runs.description.left_out);
    notes.extend(left_out.map(|part| format!("{part}: not run, and so without statistics")));
    let Draft { loaded, model, classes, decisions, tasks, fused_modules, .. } = draft;
    Ok(Plan {
        loaded,
        model,
        classes,
        decisions,
        tasks,
        fused_modules,
        exports,
        served: outlook.served,
        weighing,
        runs,
        roundings,
        limits,
        budget,
        warnings: findings,
        notes,
    })
}

fn stop_on_errors(findings: &[Finding]) -> Result<(), Failure> {
    if findings.iter().any(Finding::is_error) {
        return Err(Failure { exit: Exit::BadRecipe, findings: findings.to_vec() });
    }
    Ok(())
}

fn exports(content: Content<'_>) -> IdVec<ExportId, ExportPlan> {
    let Content { loaded, model, .. } = content;
    let mut exports = IdVec::new();
    for (index, stage) in loaded.recipe.stages.numbered() {
        let Stage::Export(export) = stage else { continue };
        let (files, tensors, outputs) = layout::lay_out(content, index, export.format, export.shards);
        let config = config::config_text(content, index, export.format);
        let card = card::plan(loaded, model, export);
        let others = copies::sort(model, export.copy, card.is_some());
        exports.push(ExportPlan {
            stage: index,
            format: export.format,
            target: export.target,
            overwrite: export.overwrite,
            path: normalized(&loaded.output_path(&export.path)),
            store: paths::is_store(&export.path).then(|| export.path.trim_end_matches('/').to_owned()),
            has_index: files.len() > 1 || model.index.is_some(),
            config,
            card,
            sums: export.digest == DigestChoice::Sha256,
            copies: others.carried,
            left: others.left,
            files,
            tensors,
            tasks: outputs,
        });
    }
    exports
}
