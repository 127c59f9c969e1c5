//! Drafts: the action that a recipe asks for each tensor. A draft is the first half of a plan, and can be shown even
//! if the whole plan cannot be made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::doubts::{idle_stages, quantized_again, split_findings, undivided_findings};
use super::phases::{Classified, Decided, Deciding};
use super::source_model::{correct_classes, open_model};
use super::{
    Content, Decision, FusedModules, ModelRuns, QuantSpec, Roundings, Task, Weighing, engines, matrices,
    model_runs, relabelled, rounding, select, statistics, unmatched,
};
use crate::calibration::Statistics;
use crate::finding::{Failure, Finding};
use crate::format::source::Source;
use crate::ids::{IdVec, StageId, TaskId, TensorId};
use crate::model::{self, LayerClass, ModelFolder};
use crate::plan::fused_modules;
use crate::recipe::Loaded;
use crate::stage::Indivisible;

/// The action that a recipe asks for each tensor of a model, before it is known if the result can be written.
#[derive(Debug)]
pub struct Draft {
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
    /// Errors and warnings so far.
    pub findings: Vec<Finding>,
}

impl Draft {
    /// The importance of the columns of the tasks, from activation statistics, and warnings about the statistics.
    ///
    /// # Errors
    /// If a statistics file cannot be read or belongs to another model.
    pub fn weigh(&self) -> Result<(Weighing, Vec<Finding>), Failure> {
        self.weigh_with(None, &BTreeMap::new())
    }

    /// As [`Draft::weigh`], with what the model is to run on, and the statistics of the `calibrate` stages that did run.
    pub(super) fn weigh_with(
        &self,
        runs: Option<&ModelRuns>,
        measured: &BTreeMap<StageId, Statistics>,
    ) -> Result<(Weighing, Vec<Finding>), Failure> {
        statistics::weigh(self.content(), runs, measured)
    }

    /// What is known of rounding with calibration; none if no stage asks for it, or the model cannot run.
    #[must_use]
    pub fn roundings(&self) -> Option<Roundings> {
        if !self.decisions.iter().any(|decision| decision.spec().is_some_and(QuantSpec::is_calibrated)) {
            return None;
        }
        let runs = model_runs::prepare(&self.loaded, &self.model).ok().flatten();
        rounding::prepare(self.content(), runs.as_ref(), 1, None).0
    }

    /// What the tensors of the exports will be made of.
    #[must_use]
    pub fn content(&self) -> Content<'_> {
        let Self { loaded, model, classes, decisions, fused_modules, tasks, .. } = self;
        Content { loaded, model, classes, decisions, fused_modules, tasks }
    }
}

/// Reads a recipe's model and decides for each tensor.
///
/// # Errors
/// If the model cannot be read.
pub fn draft(loaded: Loaded) -> Result<Draft, Failure> {
    // Findings on the way may name paths that contain values of variables.
    compiled(&loaded, None).map_err(|failure| loaded.tell_failure(failure))
}

/// As [`draft()`], for a model that is read from this source, whatever the recipe's `model` is.
///
/// # Errors
/// As [`draft()`].
pub fn draft_from(loaded: Loaded, source: Arc<dyn Source>) -> Result<Draft, Failure> {
    compiled(&loaded, Some(source)).map_err(|failure| loaded.tell_failure(failure))
}

fn compiled(loaded: &Loaded, source: Option<Arc<dyn Source>>) -> Result<Draft, Failure> {
    Ok(cut(decide(classify(loaded, source)?)))
}

/// Opens the model and tells what its tensors are.
fn classify(loaded: &Loaded, source: Option<Arc<dyn Source>>) -> Result<Classified, Failure> {
    let (model, layer_types) = open_model(loaded, source)?;
    let mut classified = model::classify(&model);
    correct_classes(&model, &layer_types, &mut classified.classes);
    let mut findings = loaded.warnings.clone();
    findings.extend(model.warnings.iter().cloned());
    findings.extend(classified.warnings);
    Ok(Classified { loaded: loaded.clone(), model, classes: classified.classes, findings })
}

/// Decides for each tensor: alone, and then beside those that engines treat with it.
fn decide(classified: Classified) -> Decided {
    let items = select::items(&classified.model, &classified.classes);
    let stages = select::QuantizeStage::all(&classified.loaded.recipe, &items);
    let mut findings = unmatched::check(&classified.loaded, &stages, &items);
    let mut known = select::Decisions::default();
    let decisions = items.map(|item| select::judge(&stages, item, &mut known, None));
    let fused_modules = fused_modules::groups(&items);
    let mut deciding = Deciding { of: &classified, items, stages, decisions, fused_modules };
    findings.extend(relabelled::claim(&mut deciding));
    findings.extend(engines::leave_unloadable_experts(&mut deciding));
    let Deciding { items, decisions, fused_modules, .. } = &mut deciding;
    fused_modules::keep_whole_by_default(fused_modules, items, decisions);
    let indivisible = |stage: StageId| {
        let policy = classified.loaded.recipe.stages[stage].quantize().map(|q| q.indivisible());
        (policy.unwrap_or(Indivisible::Error), format!("/stages/{stage}/indivisible"))
    };
    let columns = |tensor: TensorId| matrices::row_lengths(&classified, tensor);
    let undivided = fused_modules::resolve_indivisible(fused_modules, decisions, &columns, &indivisible);
    findings.extend(undivided_findings(&deciding, &undivided));
    findings.extend(split_findings(&deciding));
    findings.extend(idle_stages(&deciding));
    findings.extend(quantized_again(&deciding));
    let Deciding { decisions, fused_modules, .. } = deciding;
    let Classified { loaded, model, classes, findings: mut all } = classified;
    all.extend(findings);
    Decided { loaded, model, classes, decisions, fused_modules, findings: all }
}

/// Cuts the model into tasks.
fn cut(decided: Decided) -> Draft {
    let (tasks, problems) = matrices::tasks(&decided);
    let Decided { loaded, model, classes, decisions, fused_modules, mut findings } = decided;
    findings.extend(problems);
    Draft { loaded, model, classes, decisions, tasks, fused_modules, findings }
}
