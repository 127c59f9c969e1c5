//! Rounding with calibration: which matrices are rounded so, what it costs, and what has come of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::output_tensor::Content;
use super::select::QuantSpec;
use super::{ModelRun, ModelRuns, Plan, Task};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::ids::{IdVec, StageId, TaskId, TensorId};
use crate::model::MatrixView;
use crate::network::{Layout, Linear, Part, Program, can_go_back};
use crate::recipe::{Loaded, places};
use crate::stage::{OnMissing, Stage, statistics_of};
use crate::text::units;

mod cost;
mod gradients;
mod moments;

pub use cost::Cost;
pub use gradients::Gradients;
pub use moments::GivenMoments;

use cost::Way;
use gradients::Asked;

/// Names that a message lists.
const NAMED: usize = 5;

/// Why a matrix is not rounded with moments although the recipe asks for it.
const NOT_REACHED: &str = "the forward pass does not reach it";
const SHARED: &str = "several layers share it";
const NOT_GIVEN: &str = "the file of moments has none of its inputs";

/// What a plan knows of rounding with calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Roundings {
    /// The `calibrate` stage whose text it runs on.
    pub calibrate: StageId,
    /// Whether later layers see what earlier ones have become.
    pub is_sequential: bool,
    /// The file that moments come from; none if the model runs for them.
    pub moments: Option<GivenMoments>,
    /// Matrices that are rounded with moments.
    pub matrices: usize,
    /// Matrices of layers that ask for it, as they run: fused ones are one.
    asked: usize,
    /// What it costs.
    pub cost: Cost,
    /// The gradients that guide it, if some matrix is guided.
    pub gradients: Option<Gradients>,
    /// Bytes of the codes that are chosen, as they are kept beside the first output.
    pub codes_bytes: u64,
    /// Whether that has been done.
    is_done: bool,
    /// What has come of the matrices that it is asked for.
    results: IdVec<TaskId, Option<Rounded>>,
}

/// What has come of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Rounded {
    /// Codes were chosen and kept in a file.
    Chosen(ChosenCodes),
    /// It is rounded to nearest, for this reason.
    Nearest(String),
}

/// Codes, scales and zero points of a matrix, in a file beside an output.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenCodes {
    /// The file.
    pub file: Arc<KeptFile>,
    /// Where they begin there.
    pub start: u64,
    /// Their hash.
    pub hash: String,
    /// Tokens that the matrix has seen.
    pub tokens: u64,
    /// The mean squared error of the outputs, summed over these. Matrices that are rounded together have it once.
    pub error: f64,
    /// The same if each weight is rounded to nearest.
    pub error_of_nearest: f64,
    /// Whether gradients have guided it. The errors are then those of the model's answers, in units of their own.
    pub is_guided: bool,
}

/// A file of chosen codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its first bytes, by which it is known.
    pub head: String,
}

impl Roundings {
    /// What has come of a task; none if it is not to be rounded with moments, or still has to be.
    #[must_use]
    pub fn of(&self, task: TaskId) -> Option<&Rounded> {
        self.results.get(task)?.as_ref()
    }

    /// The codes of a task, if some were chosen.
    #[must_use]
    pub fn chosen(&self, task: TaskId) -> Option<&ChosenCodes> {
        match self.of(task)? {
            Rounded::Chosen(codes) => Some(codes),
            Rounded::Nearest(_) => None,
        }
    }
}

/// A quantized matrix of a layer.
#[derive(Debug)]
pub struct LayerMatrix<'p> {
    /// The matrix, as it runs.
    pub linear: &'p Linear,
    /// Its tensor.
    pub tensor: TensorId,
    /// How it is quantized.
    pub spec: &'p QuantSpec,
    /// The tasks that it is, or is made of. Empty if they do not lie in it row by row.
    pub tasks: Vec<TaskRows>,
}

/// The rows of a task among those of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskRows {
    /// The task.
    pub task: TaskId,
    /// How many rows it has.
    pub rows: usize,
    first: usize,
    step: usize,
}

impl TaskRows {
    /// The numbers of its rows, in the matrix.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, step) = (self.first, self.step);
        (0..self.rows).map(move |row| first + row * step)
    }

    /// Where the rows of a view are in a matrix.
    fn of(task: TaskId, view: &MatrixView, linear: &Linear) -> Option<Self> {
        let (rows, columns) = (linear.rows as u64, linear.columns as u64);
        let expert = if let Part::Expert(expert) = linear.part { expert as u64 } else { 0 };
        let start = view.first.checked_sub(expert * rows * columns)?;
        let (unit, stride) = match linear.layout {
            Layout::OutIn => (columns, 1),
            Layout::InOut => (1, rows),
        };
        let fits = view.cols == columns
            && (view.column_stride == stride || columns == 1)
            && start.is_multiple_of(unit)
            && view.row_stride.is_multiple_of(unit);
        let (first, step) = (start / unit, view.row_stride / unit);
        let last = first + view.rows.saturating_sub(1) * step;
        (fits && view.rows > 0 && last < rows).then_some(Self {
            task,
            rows: view.rows as usize,
            first: first as usize,
            step: step as usize,
        })
    }
}

/// The quantized matrices of a layer.
#[must_use]
pub fn of_layer<'p>(content: Content<'p>, program: &'p Program) -> Vec<LayerMatrix<'p>> {
    let of_matrix = |linear: &'p Linear| {
        let tensor = content.model.find(&linear.tensor)?;
        let spec = content.decisions[tensor].spec()?;
        let in_it = |view: &MatrixView| match linear.part {
            Part::Whole => true,
            Part::Expert(expert) => {
                view.first / ((linear.rows * linear.columns).max(1) as u64) == expert as u64
            }
        };
        let views = content
            .tasks_of(tensor)
            .filter_map(|task| Some((task, content.tasks[task].matrix(content.model)?)));
        let tasks: Option<Vec<TaskRows>> = views
            .filter(|(_, view)| in_it(view))
            .map(|(task, view)| TaskRows::of(task, &view, linear))
            .collect();
        let is_whole =
            |tasks: &Vec<TaskRows>| tasks.iter().map(|task| task.rows).sum::<usize>() == linear.rows;
        Some(LayerMatrix { linear, tensor, spec, tasks: tasks.filter(is_whole).unwrap_or_default() })
    };
    program.matrices().filter_map(of_matrix).collect()
}

/// Looks which matrices are rounded with moments, and what that costs; none if no stage asks for it.
pub(super) fn prepare(
    content: Content<'_>,
    runs: Option<&ModelRuns>,
    threads: usize,
    memory: Option<u64>,
) -> (Option<Roundings>, Vec<Finding>) {
    let Content { loaded, tasks, decisions, .. } = content;
    let stages = loaded.recipe.stages.numbered();
    let mut asking =
        stages.filter(|(_, stage)| stage.quantize().is_some_and(|stage| !stage.rounding().is_nearest()));
    let Some((asked, stage)) = asking.next() else { return (None, Vec::new()) };
    let owner = statistics_of(&loaded.recipe.stages, asked);
    let (Some(runs), Some(calibrate)) = (runs, owner) else { return (None, Vec::new()) };
    let Some(run) = runs.of(calibrate) else { return (None, Vec::new()) };
    let is_sequential = stage.quantize().and_then(|stage| stage.sequential()).unwrap_or(true);
    let mut findings = Vec::new();
    let given = GivenMoments::open(loaded, calibrate).unwrap_or_else(|finding| {
        findings.push(finding);
        None
    });
    let shared = shared(runs);
    let mut results: IdVec<TaskId, Option<Rounded>> = tasks.map(|_| None);
    let mut reached = BTreeSet::new();
    for matrix in runs.description.layers.iter().flat_map(|program| of_layer(content, program)) {
        for rows in matrix.tasks.iter().filter(|_| matrix.spec.is_calibrated()) {
            reached.insert(rows.task);
            if shared.contains(&(matrix.linear.tensor.as_str(), matrix.linear.part)) {
                results[rows.task] = Some(Rounded::Nearest(SHARED.to_owned()));
            }
            match given.as_ref().map(|(_, file)| file.rows(matrix.linear)) {
                Some(Ok(None | Some(0))) => results[rows.task] = Some(Rounded::Nearest(NOT_GIVEN.to_owned())),
                Some(Err(finding)) if findings.is_empty() => {
                    findings.push(finding.at_opt(loaded.place(&moments::pointer(calibrate)), "named here"));
                }
                _ => {}
            }
        }
    }
    for (number, task) in tasks.numbered() {
        let is_asked = decisions[task.tensor()].spec().is_some_and(QuantSpec::is_calibrated);
        if is_asked && task.matrix(content.model).is_some() && !reached.contains(&number) {
            results[number] = Some(Rounded::Nearest(NOT_REACHED.to_owned()));
        }
    }
    let matrices = reached.iter().filter(|task| results[**task].is_none()).count();
    let moments = given.map(|(given, _)| given);
    if let Some(given) = moments.as_ref().filter(|_| matrices == 0 && findings.is_empty()) {
        findings.push(moments::of_another_model(loaded, calibrate, given));
    }
    let asked = |linear: &Linear| {
        let spec = content.model.find(&linear.tensor).and_then(|tensor| decisions[tensor].spec());
        let spec = spec.filter(|spec| spec.is_calibrated())?;
        Some(Asked { group: spec.scheme.group_cols(linear.columns), is_guided: spec.is_guided() })
    };
    let gradients = match &loaded.recipe.stages[calibrate] {
        Stage::Calibrate(stage) => Gradients::new(stage, (runs, run), &asked, (threads, memory)),
        _ => None,
    };
    let is_given = moments.is_some();
    let cost = Cost::of(runs, run, Way { is_sequential, is_given, threads, gradients }, &asked);
    let linears = runs.description.layers.iter().flat_map(Program::matrices);
    let asked = linears.filter(|linear| asked(linear).is_some()).count();
    let codes = tasks.numbered().filter(|(task, _)| reached.contains(task) && results[*task].is_none());
    let codes_bytes = codes.map(|(_, task)| codes_bytes(content, task)).sum();
    let is_done = false;
    let roundings = Roundings {
        calibrate,
        is_sequential,
        moments,
        matrices,
        asked,
        cost,
        gradients,
        codes_bytes,
        is_done,
        results,
    };
    findings.extend(fallbacks(content, &roundings, true, |_| true));
    findings.extend(roundings.gradient_findings(content, runs));
    (Some(roundings), findings)
}

/// Bytes of the codes of a task, packed row by row, with scales in F32 and zero points.
fn codes_bytes(content: Content<'_>, task: &Task) -> u64 {
    let (Some(view), Some(spec)) = (task.matrix(content.model), content.decisions[task.tensor()].spec())
    else {
        return 0;
    };
    let groups = spec.scheme.groups_per_row(view.cols as usize) as u64;
    view.rows * (4 * view.cols.div_ceil(spec.scheme.bits.per_word() as u64) + 5 * groups)
}

/// Matrices that stand in several places of the model.
fn shared(runs: &ModelRuns) -> HashSet<(&str, Part)> {
    let mut known = HashSet::new();
    let matrices = runs.description.layers.iter().flat_map(Program::matrices);
    matrices
        .map(|linear| (linear.tensor.as_str(), linear.part))
        .filter(|place| !known.insert(*place))
        .collect()
}

/// A reason without the numbers in which matrices differ.
fn in_common(reason: &str) -> &str {
    if reason.ends_with("came here") { "few tokens came there" } else { reason }
}

/// Findings about matrices that are rounded to nearest: one for each stage and reason. `may_fail` says whether `on_missing: error`
/// is about them: it is if no token could come to them, and not if there were few.
fn fallbacks(
    content: Content<'_>,
    of: &Roundings,
    may_fail: bool,
    is_told: impl Fn(TaskId) -> bool,
) -> Vec<Finding> {
    let Content { loaded, model, tasks, decisions, .. } = content;
    let on_missing = match &loaded.recipe.stages[of.calibrate] {
        Stage::Calibrate(stage) => stage.on_missing,
        _ => OnMissing::default(),
    };
    let mut groups: BTreeMap<(StageId, &str), Vec<&str>> = BTreeMap::new();
    for (number, result) in of.results.numbered().filter(|(number, _)| is_told(*number)) {
        let (Some(Rounded::Nearest(why)), Some(spec)) = (result, decisions[tasks[number].tensor()].spec())
        else {
            continue;
        };
        groups.entry((spec.stage, in_common(why))).or_default().push(tasks[number].module(model));
    }
    if on_missing == OnMissing::Ignore {
        return Vec::new();
    }
    let finding = |((stage, why), modules): (&(StageId, &str), &Vec<&str>)| {
        let message = format!(
            "{} {} of `{}` {} rounded to nearest: {why}",
            units::grouped(modules.len() as u64),
            if modules.len() == 1 { "matrix" } else { "matrices" },
            loaded.recipe.stages[*stage].name(),
            if modules.len() == 1 { "is" } else { "are" },
        );
        let finding = match on_missing {
            OnMissing::Error if may_fail => Finding::error("plan::rounded-to-nearest", message)
                .help("`on_missing: warn` of `calibrate` lets that pass."),
            _ => Finding::warning("plan::rounded-to-nearest", message),
        };
        let first: Vec<String> = modules.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
        let more = modules.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        finding
            .at_opt(places::said_or_stage(loaded, *stage, "rounding"), "asked for here")
            .help(format!("{}{more}.", first.join(", ")))
    };
    groups.iter().map(finding).collect()
}

impl Plan {
    /// Whether matrices are still to be rounded with moments before they can be written.
    #[must_use]
    pub fn awaits_rounding(&self) -> bool {
        self.roundings.as_ref().is_some_and(|of| of.matrices > 0 && !of.is_done)
    }

    /// Bytes of the codes of tasks that are still to be rounded with moments, as they are kept beside the first output.
    #[must_use]
    pub fn codes_bytes(&self, tasks: impl Iterator<Item = TaskId>) -> u64 {
        let is_open = |task: &TaskId| self.roundings.as_ref().is_some_and(|of| of.of(*task).is_none());
        tasks.filter(is_open).map(|task| codes_bytes(self.content(), &self.tasks[task])).sum()
    }

    /// Takes what has come of the matrices that are rounded with moments. Those that had to be rounded to nearest are warnings.
    pub fn round_by(&mut self, results: BTreeMap<TaskId, Rounded>) {
        let Some(mut roundings) = self.roundings.take() else { return };
        let before = roundings.results.map(Option::is_some);
        for (task, result) in results {
            roundings.results[task] = Some(result);
        }
        roundings.is_done = true;
        let mut findings = fallbacks(self.content(), &roundings, false, |task| !before[task]);
        self.loaded.tell(&mut findings);
        self.roundings = Some(roundings);
        self.warnings.extend(findings);
    }
}

impl Roundings {
    /// The tokens that it runs on.
    #[must_use]
    pub fn run<'r>(&self, runs: &'r ModelRuns) -> Option<&'r ModelRun> {
        runs.of(self.calibrate)
    }

    /// The values of `rounding` that matrices are rounded with.
    #[must_use]
    pub fn methods(&self) -> &'static str {
        match self.gradients.map(|gradients| gradients.matrices == self.asked) {
            None => "gptq",
            Some(true) => "guided",
            Some(false) => "gptq and guided",
        }
    }

    /// The least memory in which layers are rounded, with so many threads.
    #[must_use]
    pub fn least_memory(&self, runs: &ModelRuns, threads: usize) -> u64 {
        let rounding = runs.process_bytes(threads) + self.cost.least_bytes();
        rounding.max(self.least_memory_of_gradients(runs, threads))
    }

    /// The least memory in which gradients are taken, with so many threads; 0 if there are none.
    #[must_use]
    pub fn least_memory_of_gradients(&self, runs: &ModelRuns, threads: usize) -> u64 {
        self.gradients.map_or(0, |gradients| runs.process_bytes(threads) + gradients.layer_bytes)
    }

    /// Findings about gradients: a model that has none, and fewer samples or smaller blocks of their moments than asked for.
    fn gradient_findings(&self, content: Content<'_>, runs: &ModelRuns) -> Vec<Finding> {
        let loaded = content.loaded;
        let guided = content.decisions.iter().filter_map(|decision| decision.spec());
        let guided = guided.filter(|spec| spec.is_guided()).map(|spec| spec.stage).min();
        let (Some(stage), Some(gradients)) = (guided, self.gradients) else { return Vec::new() };
        let mut findings = Vec::new();
        if let Err(finding) = can_go_back(&runs.description) {
            findings
                .push(finding.at_opt(places::said_or_stage(loaded, stage, "rounding"), "needs gradients"));
        }
        if let Stage::Calibrate(calibrate) = &loaded.recipe.stages[self.calibrate]
            && let Some(asked) =
                calibrate.gradient_samples.filter(|asked| *asked as usize > gradients.samples)
        {
            let message = format!(
                "the text has {}, and gradients are asked for on {}",
                units::counted(gradients.samples, "sample"),
                units::grouped(u64::from(asked))
            );
            let place = loaded.place(&format!("/stages/{}/gradient_samples", self.calibrate));
            findings.push(
                Finding::warning("tokens::fewer-samples", message)
                    .at_opt(place, "asked for here")
                    .help("They are taken on all samples. Give more text, or remove `gradient_samples`."),
            );
        }
        findings
    }

    /// Bytes that files beside the first output take at once while codes are chosen: these, and the moments of gradients with the
    /// streams that have no room in memory.
    #[must_use]
    pub fn disk_needed(&self, runs: &ModelRuns, threads: usize, memory: Option<u64>) -> u64 {
        let gradients = self.gradients.map_or(0, |gradients| {
            let holds = gradients.hold_streams(self.least_memory_of_gradients(runs, threads), memory);
            gradients.kept_bytes + if holds { 0 } else { gradients.stream_bytes }
        });
        self.codes_bytes + gradients
    }

    /// Checks that a layer can be rounded in memory.
    ///
    /// # Errors
    /// [`Exit::BadRecipe`] if it cannot.
    pub(super) fn check_memory(
        &self,
        loaded: &Loaded,
        memory: Option<u64>,
        runs: &ModelRuns,
        threads: usize,
    ) -> Result<(), Failure> {
        let least = self.least_memory(runs, threads);
        let Some(memory) = memory.filter(|memory| *memory < least) else { return Ok(()) };
        let message = format!(
            "the memory bound of {} is too small to round a layer of this model",
            units::bytes(memory)
        );
        let finding = Finding::error("plan::memory", message)
            .at_opt(loaded.stage_place(self.calibrate), "runs the model for it")
            .help(format!(
                "The layer's weights and the moments of its widest matrix need {} here. `rounding: {}` needs less.",
                units::bytes(least),
                if self.gradients.is_some() { "gptq" } else { "nearest" }
            ));
        Err(Failure::new(Exit::BadRecipe, finding))
    }
}

#[cfg(test)]
mod tests;
