//! Assignment of activation statistics to the columns of the matrices. It is known before the first weight is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use super::output_tensor::Content;
use super::select::{self, QuantSpec};
use super::unmatched::{nearest, nearest_names};
use super::{ModelRun, ModelRuns, Task};
use crate::calibration::{self, Format, ModuleStatistics, Statistics, WrongLength, names};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::regular;
use crate::ids::{IdVec, StageId, TaskId};
use crate::model::ModelFolder;
use crate::quant::Importance;
use crate::recipe::Loaded;
use crate::recipe::places;
use crate::stage::{Calibration, OnMissing, Stage, statistics_of};

/// Names that a message lists.
const NAMED: usize = 5;

/// A module is called thin if it saw fewer tokens than this share of the median.
const THIN: f64 = 0.1;

/// The statistics of one quantize stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageStatistics {
    /// Index of the quantize stage.
    pub stage: StageId,
    /// The place in the recipe that names the file, or the `calibrate` stage, as a JSON pointer.
    pub pointer: String,
    /// The file, as the recipe has it; or `calibrate`.
    pub file: String,
    /// Its format.
    pub format: Format,
    /// Samples in it (chunks, for an importance matrix).
    pub samples: Option<u64>,
    /// Tokens in it.
    pub tokens: Option<u64>,
    /// Matrices that it weighs.
    pub matrices: usize,
    /// Modules of the stage that it says nothing of.
    pub missing: Vec<String>,
    /// Modules whose tokens are far fewer than those of the others, with their number.
    pub thin: Vec<(String, u64)>,
}

/// The result of matching the statistics of a recipe with the tasks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weighing {
    /// The importance of the columns of each task, if there are statistics of it; empty if there are none at all.
    tasks: IdVec<TaskId, Option<Importance>>,
    /// One entry a quantize stage that has statistics.
    pub stages: Vec<StageStatistics>,
    /// Quantize stages whose statistics are measured before they begin, and are not known yet.
    pub pending: Vec<StageId>,
    /// Bytes that reading the files and holding the importances takes at most.
    pub bytes: u64,
}

impl Weighing {
    /// The importance of the columns of a task, if there are statistics of it.
    #[must_use]
    pub fn of(&self, task: TaskId) -> Option<&Importance> {
        self.tasks.get(task)?.as_ref()
    }

    /// Whether the ranges of a task are chosen with statistics. If so, Gaussian weights do not predict its SQNR.
    #[must_use]
    pub fn changes_ranges(&self, task: TaskId, spec: &QuantSpec) -> bool {
        spec.observer.searches() && (self.of(task).is_some() || self.pending.contains(&spec.stage))
    }

    /// Notes that the statistics of a quantize stage are still to be measured.
    fn await_measurement(&mut self, stage: StageId, pointer: &str, run: Option<&ModelRun>) {
        self.pending.push(stage);
        self.stages.push(StageStatistics {
            stage,
            pointer: pointer.to_owned(),
            file: "calibrate".to_owned(),
            format: Format::Safetensors,
            samples: run.map(|run| run.windows.len() as u64),
            tokens: run.map(|run| run.tokens() as u64),
            matrices: 0,
            missing: Vec::new(),
            thin: Vec::new(),
        });
    }

    /// The statistics of a quantize stage.
    #[must_use]
    pub fn of_stage(&self, stage: StageId) -> Option<&StageStatistics> {
        self.stages.iter().find(|used| used.stage == stage)
    }
}

/// Reads the statistics that a recipe names and finds those of each task. `measured` has those of the `calibrate` stages, by stage; a
/// stage that is not there is still to run.
///
/// # Errors
/// [`Exit::BadModel`] if a file is not a file of statistics, or does not fit the model.
pub(super) fn weigh(
    content: Content<'_>,
    runs: Option<&ModelRuns>,
    measured: &BTreeMap<StageId, Statistics>,
) -> Result<(Weighing, Vec<Finding>), Failure> {
    let Content { loaded, model, decisions, tasks, .. } = content;
    let mut out = Weighing::default();
    let mut findings = Vec::new();
    let mut files: HashMap<PathBuf, Statistics> = HashMap::new();
    let stages = &loaded.recipe.stages;
    for (index, stage) in stages.numbered() {
        if stage.quantize().is_none() {
            continue;
        }
        let Some(owner) = statistics_of(stages, index) else { continue };
        let origin = Origin::of(loaded, owner);
        let pointer = origin.pointer();
        let fail = |finding: Finding| {
            Failure::new(Exit::BadModel, finding.at_opt(loaded.place(&pointer), origin.label()))
        };
        let statistics = match &origin {
            Origin::Measured { .. } => match measured.get(&owner) {
                Some(statistics) => statistics,
                None => {
                    out.await_measurement(index, &pointer, runs.and_then(|runs| runs.of(owner)));
                    continue;
                }
            },
            Origin::File { path, .. } => {
                if !files.contains_key(path) {
                    let read = calibration::read(path).map_err(|mut failure| {
                        for finding in &mut failure.findings {
                            *finding = finding.clone().at_opt(loaded.place(&pointer), origin.label());
                        }
                        failure
                    })?;
                    findings.extend(
                        unknown(model, tasks, &read)
                            .map_err(fail)?
                            .map(|finding| finding.at_opt(loaded.place(&pointer), origin.label())),
                    );
                    // The file's bytes, and the sums taken from them.
                    out.bytes += 2 * regular::length(path).unwrap_or(0);
                    files.insert(path.clone(), read);
                }
                &files[path]
            }
        };
        let mut used = StageStatistics {
            stage: index,
            pointer: pointer.clone(),
            file: origin.told(loaded),
            format: statistics.format,
            samples: statistics.samples,
            tokens: statistics.tokens,
            matrices: 0,
            missing: Vec::new(),
            thin: Vec::new(),
        };
        let by_name: HashMap<&str, &ModuleStatistics> =
            statistics.modules.iter().map(|module| (module.name.as_str(), module)).collect();
        let experts = experts(statistics.format, &by_name, model, tasks);
        let mut tokens: Vec<(f64, String)> = Vec::new();
        for (number, task) in tasks.numbered() {
            let spec = decisions[task.tensor()].spec().filter(|spec| spec.stage == index);
            let (Some(_), Some(view)) = (spec, task.matrix(model)) else { continue };
            let name = task.module(model);
            let found = find(statistics.format, &by_name, model, task);
            let importance = match found {
                None => None,
                Some((module, matrix)) => {
                    tokens.extend(module.tokens(matrix).map(|tokens| (tokens, name.to_owned())));
                    let matrices = experts.get(module.name.as_str()).copied().unwrap_or(1);
                    let fits = module.fits(view.cols, matrices);
                    fits.and_then(|()| module.importance(view.cols, matrix))
                        .map_err(|wrong| fail(wrong_length(module, name, matrices, wrong)))?
                }
            };
            match importance {
                Some(importance) => {
                    used.matrices += 1;
                    out.bytes += size_of_val(importance.columns()) as u64;
                    if out.tasks.is_empty() {
                        out.tasks = tasks.map(|_| None);
                    }
                    out.tasks[number] = Some(importance);
                }
                None => used.missing.push(name.to_owned()),
            }
        }
        used.thin = thin(tokens);
        findings.extend(missing(loaded, &used, origin.on_missing(), owner));
        out.stages.push(used);
    }
    Ok((out, findings))
}

/// Where the statistics of a quantize stage come from.
enum Origin<'r> {
    /// A file that a stage names.
    File { owner: StageId, path: PathBuf, named: &'r Calibration },
    /// A `calibrate` stage.
    Measured { owner: StageId, on_missing: OnMissing },
}

impl<'r> Origin<'r> {
    fn of(loaded: &'r Loaded, owner: StageId) -> Self {
        match (&loaded.recipe.stages[owner], loaded.recipe.stages[owner].calibration()) {
            (_, Some(named)) => Self::File { owner, path: loaded.resolve_path(&named.file), named },
            (Stage::Calibrate(stage), None) => Self::Measured { owner, on_missing: stage.on_missing },
            _ => Self::Measured { owner, on_missing: OnMissing::default() },
        }
    }

    /// The place in the recipe, as a JSON pointer.
    fn pointer(&self) -> String {
        match self {
            Self::File { owner, .. } => format!("/stages/{owner}/calibration/file"),
            Self::Measured { owner, .. } => format!("/stages/{owner}/stage"),
        }
    }

    fn label(&self) -> &'static str {
        if matches!(self, Self::File { .. }) { "named here" } else { "measured here" }
    }

    fn told(&self, loaded: &Loaded) -> String {
        match self {
            Self::File { named, .. } => loaded.written(&self.pointer()).unwrap_or(&named.file).to_owned(),
            Self::Measured { .. } => "calibrate".to_owned(),
        }
    }

    fn on_missing(&self) -> OnMissing {
        match self {
            Self::File { named, .. } => named.on_missing,
            Self::Measured { on_missing, .. } => *on_missing,
        }
    }
}

fn wrong_length(module: &ModuleStatistics, name: &str, matrices: usize, wrong: WrongLength) -> Finding {
    let columns = match matrices {
        1 => format!("`{name}` has {} columns", wrong.expected),
        _ => format!("the {matrices} experts beside `{name}` have {} columns together", wrong.expected),
    };
    let message = format!("the statistics of `{}` have {} numbers, and {columns}", module.name, wrong.found);
    Finding::error("calibration::wrong-length", message)
        .help("They are of another model, or of another version of this one.")
}

/// The statistics of a task, and the number of its matrix if they cover several matrices.
fn find<'s>(
    format: Format,
    by_name: &HashMap<&str, &'s ModuleStatistics>,
    model: &ModelFolder,
    task: &Task,
) -> Option<(&'s ModuleStatistics, Option<usize>)> {
    let known = |names: &[String]| names.iter().find_map(|name| by_name.get(name.as_str())).copied();
    if format != Format::Safetensors {
        let (names, expert) = names::in_importance_matrix(task.module(model));
        return known(&names).map(|module| (module, expert));
    }
    if let Some(module) = by_name.get(task.module(model)) {
        return Some((module, None));
    }
    // A stack has its own name, and one row of statistics per matrix.
    let (names, expert) = names::when_run(task.module(model));
    let own = by_name.get(select::subject(&model.tensors[task.tensor()])).copied();
    own.or_else(|| known(&names)).map(|module| (module, expert))
}

/// How many matrices the model has of what each stack of statistics is of.
fn experts<'s>(
    format: Format,
    by_name: &HashMap<&str, &'s ModuleStatistics>,
    model: &ModelFolder,
    tasks: &[Task],
) -> HashMap<&'s str, usize> {
    let mut out = HashMap::new();
    for task in tasks {
        if let Some((module, Some(expert))) = find(format, by_name, model, task) {
            let experts = out.entry(module.name.as_str()).or_insert(0);
            *experts = expert.saturating_add(1).max(*experts);
        }
    }
    out
}

/// Checks for statistics that belong to no module of the model. In a file with the model's own names that is an
/// error. In an importance matrix, whose names are translated, it is reported as a finding. A file that fits no
/// module is an error in any case.
fn unknown(model: &ModelFolder, tasks: &[Task], statistics: &Statistics) -> Result<Option<Finding>, Finding> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    let modules = || {
        let tensors = model.tensors.iter().map(select::subject);
        tensors.chain(tasks.iter().map(|task| task.module(model)))
    };
    if statistics.format == Format::Safetensors {
        known.extend(modules().flat_map(|module| names::when_run(module).0));
        known.extend(modules().map(str::to_owned));
    } else {
        known.extend(modules().flat_map(|module| names::in_importance_matrix(module).0));
    }
    let strange: Vec<&str> = statistics
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .filter(|name| !known.contains(*name))
        .collect();
    let Some(first) = strange.first() else { return Ok(None) };
    let count = strange.len();
    let message = format!(
        "{count} of the {} modules with statistics {} no module of the model",
        statistics.modules.len(),
        if count == 1 { "is" } else { "are" }
    );
    let list = listed(&strange);
    if statistics.format == Format::Safetensors || count == statistics.modules.len() {
        let near = nearest_names(first, known.iter().map(String::as_str));
        let mut finding = Finding::error("calibration::unknown-module", message).help(format!("{list}."));
        if !near.is_empty() {
            finding = finding.help(nearest(&near));
        }
        return Err(finding.help("They are of another model, or their names are those of another version."));
    }
    Ok(Some(
        Finding::warning("plan::unknown-statistics", message).help(format!("{list}: nothing uses them.")),
    ))
}

/// The finding about modules without statistics.
fn missing(
    loaded: &Loaded,
    used: &StageStatistics,
    on_missing: OnMissing,
    owner: StageId,
) -> Option<Finding> {
    let count = used.missing.len();
    if count == 0 || on_missing == OnMissing::Ignore {
        return None;
    }
    let message = format!(
        "`{}` has no statistics of {count} module{} that `{}` quantizes",
        used.file,
        if count == 1 { "" } else { "s" },
        loaded.recipe.stages[used.stage].name()
    );
    let mut finding = match on_missing {
        OnMissing::Error => Finding::error("plan::missing-statistics", message),
        _ => Finding::warning("plan::missing-statistics", message),
    };
    let key = places::said_or_stage(loaded, owner, "calibration");
    let list = listed(&used.missing);
    finding = finding
        .at_opt(key, "read for it")
        .help(format!("{list}: not in the file, or no token was routed there."));
    Some(match on_missing {
        OnMissing::Error => finding.help("`on_missing: warn` lets all of their columns count the same."),
        _ => finding.help("All of their columns count the same."),
    })
}

/// The first names, and how many there are besides.
fn listed(names: &[impl std::fmt::Display]) -> String {
    let first: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(NAMED);
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Modules that saw far fewer tokens than is usual, fewest first; those that saw none are missing, which is said elsewhere.
fn thin(mut tokens: Vec<(f64, String)>) -> Vec<(String, u64)> {
    tokens.retain(|(tokens, _)| *tokens > 0.0);
    tokens.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let median = tokens.get(tokens.len() / 2).map_or(0.0, |(tokens, _)| *tokens);
    let few = tokens.into_iter().take_while(|(tokens, _)| *tokens < median * THIN);
    few.map(|(tokens, module)| (module, tokens as u64)).collect()
}
