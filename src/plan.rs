//! What will be done: a checked recipe and the headers of a model, compiled into a [`Plan`]. Pure, but for file sizes: no
//! weight is read and nothing is written.
//!
//! Everything that can be known before the first weight is read is known here: for every tensor the decision and the rule
//! that made it, for every output tensor its file and offset, and whatever an engine would refuse.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::calibration;
use crate::exit::Exit;
use crate::finding::{Failure, Finding, Place};
use crate::layer::LayerType;
use crate::model::{self, Because, LayerClass, ModelFolder};
use crate::recipe::{Loaded, Recipe};
use crate::stage::export::{DigestChoice, Format, Target};
use crate::stage::{SiblingPolicy, Stage};

pub mod budget;
pub mod checks;
pub mod compressed_tensors;
pub mod config;
pub mod copies;
mod draft;
mod engines;
pub mod explain;
pub mod fingerprint;
pub mod fused_modules;
pub mod layout;
mod outputs;
pub mod piece;
pub mod select;
pub mod statistics;
pub mod tasks;
mod unmatched;
pub mod unreachable_thresholds;

pub use crate::plan::fused_modules::Siblings;
pub use budget::Budget;
pub use checks::Checks;
pub use draft::{Draft, draft};
pub use engines::parallel::{Limit, Parallel};
pub use engines::served::{KernelUse, Served, Server};
pub use explain::{Explanation, explain};
pub use layout::{Content, ExportPlan, OutputFile, OutputTensor, PieceOutput};
pub use piece::Piece;
pub use select::{Action, Decided, Decision, Rule, Treatment};
pub use statistics::{StageStatistics, Weighing};

/// What a plan takes from the command line instead of the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Worker threads; the number of cores where none is given.
    pub threads: Option<usize>,
    /// Bound of the resident memory, in bytes.
    pub memory: Option<u64>,
}

/// A recipe compiled for a model. Only [`plan`] makes one.
#[derive(Debug)]
pub struct Plan {
    /// The recipe, with where everything stands in it.
    pub loaded: Loaded,
    /// The model's headers.
    pub model: ModelFolder,
    /// Kind and role of each tensor of the model.
    pub classes: Vec<LayerClass>,
    /// Which layers were taken for the language model, where something lies beside it.
    pub decoder: Option<String>,
    /// What is done with each tensor of the model.
    pub decisions: Vec<Decision>,
    /// What is read, treated and written as one, in the order of the files.
    pub pieces: Vec<Piece>,
    /// Modules that engines fuse.
    pub siblings: Vec<Siblings>,
    /// The exports, laid out.
    pub exports: Vec<ExportPlan>,
    /// What engines that compute with codes make of the exports.
    pub served: Vec<Served>,
    /// What activation statistics say about the columns of the pieces.
    pub weighing: Weighing,
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
    pub fn export_path(&self, stage: usize) -> &Path {
        let export = self.exports.iter().find(|export| export.stage == stage);
        export.map_or_else(|| Path::new(""), |export| &export.path)
    }

    /// A path as people are told it: with variables of the recipe as they were written.
    #[must_use]
    pub fn told_path(&self, path: &Path) -> String {
        self.loaded.told(&path.display().to_string())
    }

    /// The line of the recipe in which a rule stands, from 1; none for built-in rules and overrides.
    #[must_use]
    pub fn line(&self, rule: &Rule) -> Option<usize> {
        crate::recipe::places::line(&self.loaded, rule.pointer.as_deref()?)
    }

    /// The place of a stage's name in the recipe.
    #[must_use]
    pub fn stage_place(&self, stage: usize) -> Option<Place> {
        self.loaded.stage_place(stage)
    }

    /// What a quantized tensor's scheme reaches on Gaussian weights of its shape, in dB; of a stack, of one of its matrices.
    #[must_use]
    pub fn expected_sqnr(&self, tensor: usize) -> Option<f64> {
        let first = self.pieces.partition_point(|piece| piece.tensor() < tensor);
        let view = self.pieces.get(first).filter(|piece| piece.tensor() == tensor)?.matrix(&self.model)?;
        let treatment = self.decisions[tensor].treatment()?;
        if self.weighing.changes_ranges(first, treatment) {
            return None;
        }
        treatment.expected_sqnr(view.rows, view.cols)
    }

    /// What the tensors of the exports are made of.
    #[must_use]
    pub fn content(&self) -> Content<'_> {
        Content { model: &self.model, decisions: &self.decisions, pieces: &self.pieces }
    }

    /// The pieces of a tensor of the model, as indices.
    #[must_use]
    pub fn pieces_of(&self, tensor: usize) -> Range<usize> {
        let first = self.pieces.partition_point(|piece| piece.tensor() < tensor);
        let count = self.pieces[first..].iter().take_while(|piece| piece.tensor() == tensor).count();
        first..first + count
    }

    /// How many tensors are quantized.
    #[must_use]
    pub fn quantized_tensors(&self) -> usize {
        self.decisions.iter().filter(|decision| decision.treatment().is_some()).count()
    }

    /// Bytes of all source tensors.
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
    let (weighing, problems) = draft.weigh()?;
    let Draft { loaded, model, classes, decoder, decisions, pieces, siblings, mut findings } = draft;
    findings.extend(problems);

    let content = Content { model: &model, decisions: &decisions, pieces: &pieces };
    let exports = exports(&loaded, content, &classes);
    findings.extend(export_paths(&loaded, &model, &exports));
    findings.extend(outputs::check(&loaded, content, &classes, &exports));
    for export in &exports {
        findings.extend(engines::check(&loaded, &model, &classes, &decisions, &siblings, export));
        findings.extend(engines::kept_experts::check(&loaded, &model, &classes, &decisions, export));
        findings.extend(engines::unbuilt(&loaded, &model, export));
    }
    let outlook = engines::served::look_at(&loaded, content, &classes, &siblings, &exports);
    findings.extend(outlook.findings);
    findings.extend(crate::plan::unreachable_thresholds::check(&loaded, content, &weighing));
    stop_on_errors(&findings)?;

    let threads = limits
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get))
        .unwrap_or(1);
    let budget = budget::budget(content, &exports, &weighing, threads, limits.memory).map_err(|least| {
        let finding = Finding::error("plan::memory", "the memory bound is too small for this model")
            .help(format!("One worker needs {} MiB here.", least.div_ceil(1 << 20)));
        Failure::new(Exit::BadRecipe, finding)
    })?;
    let mut notes = engines::notes(content, &exports);
    notes.extend(copies::stale_declarations(&model));
    notes.extend(outlook.notes);
    Ok(Plan {
        loaded,
        model,
        classes,
        decoder,
        decisions,
        pieces,
        siblings,
        exports,
        served: outlook.served,
        weighing,
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

type LayerTypes = IndexMap<crate::layer::pattern::Pattern, LayerType>;

fn open_model(loaded: &Loaded) -> Result<(ModelFolder, LayerTypes), Failure> {
    let Some((index, load)) =
        loaded.recipe.stages.iter().enumerate().find_map(|(index, stage)| match stage {
            Stage::Load(load) => Some((index, load)),
            _ => None,
        })
    else {
        let finding = Finding::error("recipe::stage-order", "the recipe has no `load` stage");
        return Err(Failure::new(Exit::BadRecipe, finding));
    };
    let place = loaded.place(&format!("/stages/{index}/model"));
    // A problem of the model as a whole points at the word that named it.
    let point = |mut failure: Failure| {
        for finding in &mut failure.findings {
            if finding.labels.is_empty() {
                *finding = finding.clone().at_opt(place.clone(), "named here");
            }
        }
        failure
    };
    let path = model::resolve(&load.model, &loaded.base_of(&load.model)).map_err(point)?;
    if calibration::is_statistics(&path) && calibration::read(&path).is_ok() {
        let written = loaded.written(&format!("/stages/{index}/model"));
        let message =
            format!("`{}` holds activation statistics, not weights", written.unwrap_or(&load.model));
        let finding = Finding::error(model::code::NOT_A_MODEL, message);
        return Err(point(Failure::new(
            Exit::BadModel,
            finding.help("`model` is the folder with the weights. Statistics are named by `calibration` of the stage that quantizes."),
        )));
    }
    let globs = |globs: &[crate::layer::pattern::FileGlob]| -> Vec<String> {
        globs.iter().map(|glob| glob.as_str().to_owned()).collect()
    };
    let (include, exclude) = (globs(&load.include), globs(&load.exclude));
    let include: Vec<&str> = include.iter().map(String::as_str).collect();
    let exclude: Vec<&str> = exclude.iter().map(String::as_str).collect();
    let model = model::open_following(&path, &include, &exclude, &loaded.follow_links).map_err(point)?;
    Ok((model, load.layer_types.clone()))
}

fn correct_classes(model: &ModelFolder, layer_types: &LayerTypes, classes: &mut [LayerClass]) {
    for (tensor, class) in model.tensors.iter().zip(classes) {
        let subject = select::subject(tensor);
        for (pattern, layer_type) in layer_types {
            if !pattern.matches(subject) {
                continue;
            }
            if layer_type.is_role() {
                class.role = Some(*layer_type);
                class.role_rule = Some(Because::Recipe);
            } else if tensor.shape.len() >= 2 || tensor.parameter() == "weight" {
                class.kind = *layer_type;
                class.kind_rule = Because::Recipe;
            }
        }
    }
}

/// The lengths of the rows that a tensor's matrices have: the input width of its layers.
fn row_lengths(model: &ModelFolder, classes: &[LayerClass], tensor: usize) -> Vec<u64> {
    if classes[tensor].kind == LayerType::Experts {
        return match model::experts::stack(model, tensor) {
            Ok(stack) => stack.matrices.first().map(|matrix| matrix.view.cols).into_iter().collect(),
            Err(_) => Vec::new(),
        };
    }
    let view = matrix_piece(tensor, classes[tensor].kind).matrix(model);
    view.map(|view| view.cols).into_iter().collect()
}

/// A tensor as a matrix of weights [out, in]. GPT-2 stores its linear layers the other way round.
fn matrix_piece(tensor: usize, kind: LayerType) -> Piece {
    Piece::matrix_of(tensor, kind == LayerType::Conv1D)
}

fn undivided_findings(
    loaded: &Loaded,
    model: &ModelFolder,
    decisions: &[Decision],
    undivided: &[crate::plan::fused_modules::Undivided],
) -> Vec<Finding> {
    // One finding for each group size that a stage asks for.
    let mut asked: BTreeMap<(usize, u64), Vec<&crate::plan::fused_modules::Undivided>> = BTreeMap::new();
    for one in undivided {
        let stage = decisions[one.tensor].treatment().map_or(0, |treatment| treatment.stage);
        asked.entry((stage, one.group_size)).or_default().push(one);
    }
    asked
        .into_iter()
        .map(|((stage, size), layers)| undivided_finding(loaded, model, stage, size, &layers))
        .collect()
}

/// Lengths of rows, and names of layers of each, that one finding lists.
const LISTED: usize = 100;

fn undivided_finding(
    loaded: &Loaded,
    model: &ModelFolder,
    stage: usize,
    group_size: u64,
    undivided: &[&crate::plan::fused_modules::Undivided],
) -> Finding {
    let place = loaded.place(&format!("/stages/{stage}/group_size"));
    let count = undivided.len();
    let mut finding = Finding::error(
        "plan::indivisible",
        format!(
            "groups of {group_size} do not divide the rows of {count} layer{}",
            if count == 1 { "" } else { "s" }
        ),
    )
    .at_opt(place, "must divide the length of every row");
    let lengths = by_length(model, undivided);
    let more = lengths.len().saturating_sub(LISTED);
    let lines = lengths.into_iter().take(LISTED).map(|(columns, (names, more))| {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("  {columns} columns: {}{more}", names.join(", "))
    });
    finding = finding.help("Rows that cannot be divided:").help_lines(lines);
    if more > 0 {
        finding = finding.help_lines([format!("  and {more} more lengths")]);
    }
    let shrunk = [128_u64, 64, 32, 16]
        .into_iter()
        .find(|size| *size < group_size && undivided.iter().all(|u| u.columns % size == 0));
    let advice = match shrunk {
        Some(size) => format!(
            "`indivisible: shrink` would use groups of {size} for these layers, `channel` one scale a row, `skip` would leave \
             them alone."
        ),
        None => "`indivisible: channel` would use one scale a row for these layers, `skip` would leave them alone.".to_owned(),
    };
    finding.help(advice)
}

/// The first names of the layers with rows of each length, and how many there are besides.
fn by_length<'m>(
    model: &'m ModelFolder,
    undivided: &[&crate::plan::fused_modules::Undivided],
) -> IndexMap<u64, (Vec<&'m str>, usize)> {
    let mut out: IndexMap<u64, (Vec<&str>, usize)> = IndexMap::new();
    for one in undivided {
        let (names, more) = out.entry(one.columns).or_default();
        match names.len() < LISTED {
            true => names.push(select::subject(&model.tensors[one.tensor])),
            false => *more += 1,
        }
    }
    out
}

/// What makes two splits the same mistake: what engines call the group, and the rules that split it.
type SplitKey<'g> = (&'g str, Vec<Rule>);

fn split_findings(
    loaded: &Loaded,
    items: &[select::Item<'_>],
    groups: &[Siblings],
    decisions: &[Decision],
) -> Vec<Finding> {
    let targets_vllm = loaded.recipe.stages.iter().any(|stage| {
        matches!(stage, Stage::Export(export) if export.format == Format::CompressedTensors
            && export.target != Target::Transformers)
    });
    let mut found: Vec<(SplitKey<'_>, Finding, usize)> = Vec::new();
    for split in crate::plan::fused_modules::splits(groups, decisions) {
        let group = &groups[split.group];
        let parent = group.parent(items);
        let stage = split
            .examples
            .iter()
            .filter_map(|&index| decisions[index].treatment().map(|treatment| treatment.stage))
            .max()
            .unwrap_or(0);
        let policy = loaded.recipe.stages[stage].quantize().map_or(SiblingPolicy::Error, |q| q.siblings());
        if policy == SiblingPolicy::Ignore || (!targets_vllm && !group.are_experts()) {
            continue;
        }
        // The same rules split the same group in every layer: one finding for all of them, in whatever order the members lie
        // in the files.
        let mut rules: Vec<Rule> =
            split.examples.iter().map(|&index| decisions[index].rule.clone()).collect();
        rules.sort_by(|a, b| (&a.pointer, &a.text).cmp(&(&b.pointer, &b.text)));
        let key = (group.fused, rules);
        if let Some((_, _, count)) = found.iter_mut().find(|(known, _, _)| *known == key) {
            *count += 1;
            continue;
        }
        let what = |index: usize| match decisions[index].treatment() {
            Some(treatment) => treatment.scheme.to_string(),
            None => "left alone".to_owned(),
        };
        let parts: Vec<String> = split
            .examples
            .iter()
            .map(|&index| {
                let subject = items[index].subject;
                let last = subject.strip_prefix(parent).unwrap_or(subject);
                format!("`{}` is {}", last.trim_start_matches('.'), what(index))
            })
            .collect();
        let message = format!("parts of `{parent}.{}` are treated differently", group.fused);
        let message = message.replace(".experts.experts", ".experts");
        let mut finding = match policy {
            SiblingPolicy::Error => Finding::error("plan::split-siblings", message),
            _ => Finding::warning("plan::split-siblings", message),
        };
        for (&index, part) in split.examples.iter().zip(&parts) {
            let pointer = decisions[index].rule.pointer.as_deref();
            finding = finding.at_opt(pointer.and_then(|pointer| loaded.place(pointer)), part.clone());
        }
        let who = if group.are_experts() { "vLLM and transformers make" } else { engines::fuser(loaded) };
        finding = finding.help(format!(
            "{}. {who} one module of them, so they must share one scheme or all be left alone.",
            parts.join(", ")
        ));
        finding = finding
            .help("`siblings: warn` or `ignore` on the quantize stage lets it through for other engines.");
        found.push((key, finding, 1));
    }
    found
        .into_iter()
        .map(|(_, mut finding, count)| {
            if count > 1 {
                let more = crate::text::units::counted(count - 1, "more layer");
                finding.message = format!("{}, and so in {more}", finding.message);
            }
            finding
        })
        .collect()
}

fn idle_stages(
    loaded: &Loaded,
    stages: &[select::QuantizeStage<'_>],
    items: &[select::Item<'_>],
    decisions: &[Decision],
) -> Vec<Finding> {
    let transposed = items.iter().filter(|item| item.is(LayerType::Conv1D)).count();
    stages
        .iter()
        .filter(|stage| {
            !decisions.iter().any(|d| d.treatment().is_some_and(|treatment| treatment.stage == stage.index))
        })
        .map(|stage| {
            let name = loaded.recipe.stages[stage.index].name();
            let finding = Finding::error("plan::nothing-to-quantize", format!("`{name}` quantizes nothing"))
                .at_opt(loaded.stage_place(stage.index), "claims no tensor of the model")
                .help(
                    "Its targets are all skipped, or claimed by a stage before it. `monoquant inspect` shows the model's layer \
                     types, `monoquant explain RECIPE TENSOR` why a tensor is left alone.",
                );
            if transposed == 0 {
                return finding;
            }
            finding.help(format!(
                "{transposed} layers are Conv1D, GPT-2's transposed linear layers, of which no engine has a quantized form: \
                 `targets: [Conv1D]` takes them for an export with `format: dequantized`."
            ))
        })
        .collect()
}

/// Pieces that a model is cut into at most: a few bytes may be any number of matrices.
const MAX_PIECES: usize = 1 << 22;

/// Cuts the model into pieces: whole tensors, and the matrices of stacks of experts that are quantized, or that an engine
/// wants one by one whether they are quantized or not.
fn pieces(
    loaded: &Loaded,
    model: &ModelFolder,
    classes: &[LayerClass],
    decisions: &[Decision],
) -> (Vec<Piece>, Vec<Finding>) {
    let mut pieces = Vec::with_capacity(model.tensors.len());
    let mut findings = Vec::new();
    let splits_kept = engines::splits_kept_experts(loaded, model);
    for (tensor, info) in model.tensors.iter().enumerate() {
        if info.scale_of.is_some() {
            continue;
        }
        let quantized = decisions[tensor].treatment().is_some();
        let splits = quantized || splits_kept && info.stored == info.working_dtype();
        if splits && classes[tensor].kind == LayerType::Experts {
            match model::experts::stack(model, tensor) {
                Ok(stack) if pieces.len() + stack.matrices.len() > MAX_PIECES => {
                    let message = format!("stacks of experts hold more than {MAX_PIECES} matrices");
                    let finding = Finding::error(model::code::EXPERTS, message);
                    findings.push(finding.help("Leave them alone with `skip_layer_types: [Experts]`."));
                    break;
                }
                Ok(stack) => {
                    pieces.extend(stack.matrices.into_iter().map(|matrix| Piece::expert(tensor, matrix)));
                }
                Err(finding) => findings.push(finding),
            }
            continue;
        }
        pieces.push(match quantized {
            true => matrix_piece(tensor, classes[tensor].kind),
            false => Piece::bytes(tensor),
        });
    }
    (pieces, findings)
}

fn exports(loaded: &Loaded, content: Content<'_>, classes: &[LayerClass]) -> Vec<ExportPlan> {
    let model = content.model;
    let mut exports = Vec::new();
    for (index, stage) in loaded.recipe.stages.iter().enumerate() {
        let Stage::Export(export) = stage else { continue };
        let (files, tensors, outputs) = layout::lay_out(content, index, export.format, export.shards);
        let config = crate::plan::config::config_text(content, classes, index, export.format);
        let others = copies::sort(model, export.copy);
        exports.push(ExportPlan {
            stage: index,
            format: export.format,
            target: export.target,
            overwrite: export.overwrite,
            path: normalized(&loaded.resolve_path(&export.path)),
            has_index: files.len() > 1 || model.index.is_some(),
            config,
            copies: others.carried,
            left: others.left,
            files,
            tensors,
            pieces: outputs,
        });
    }
    exports
}

/// A path without `.` and `..`, as far as that can be told without the file system.
pub(crate) fn normalized(path: &std::path::Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    // The working directory, or one above it: told by its own name, beside which the output is staged.
    match std::path::absolute(if out.as_os_str().is_empty() { std::path::Path::new(".") } else { &out }) {
        Ok(absolute) if out.file_name().is_none() && absolute != out => normalized(&absolute),
        _ => out,
    }
}

/// A path with its links resolved, as far as it exists; the rest need not.
fn canonical(path: &std::path::Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let resolved = absolute.ancestors().find_map(|existing| {
        let rest = absolute.strip_prefix(existing).ok()?;
        let found = existing.canonicalize().ok()?;
        // Joining nothing would leave a slash at the end.
        Some(if rest.as_os_str().is_empty() { found } else { found.join(rest) })
    });
    resolved.unwrap_or(absolute)
}

/// Output paths that would destroy the model or each other.
fn export_paths(loaded: &Loaded, model: &ModelFolder, exports: &[ExportPlan]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let source = canonical(&model.root);
    for (position, export) in exports.iter().enumerate() {
        let place = loaded.place(&format!("/stages/{}/path", export.stage));
        let path = canonical(&export.path);
        let message = if path == source {
            Some("the output would replace the model")
        } else if path.starts_with(&source) && !model.is_single_file {
            Some("the output lies inside the model's folder")
        } else if source.starts_with(&path) {
            Some("the model lies inside the output's folder")
        } else {
            exports[..position].iter().map(|other| canonical(&other.path)).find_map(|other| {
                if other == path {
                    Some("two exports write to the same folder")
                } else if other.starts_with(&path) || path.starts_with(&other) {
                    Some("one export lies inside another")
                } else {
                    None
                }
            })
        };
        if let Some(message) = message {
            let finding = Finding::error("plan::output-path", message).at_opt(place, "choose another path");
            findings.push(finding.help(format!("The model is {}.", source.display())));
        }
    }
    findings
}
