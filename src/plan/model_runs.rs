//! The stages that run the model: its description and the tokens that it runs on, known before the first weight is read.

use std::io::ErrorKind;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::regular;
use crate::ids::StageId;
use crate::model::ModelFolder;
use crate::network::tokens::{self, Document, Tokenizer, documents, windows};
use crate::network::{Checkpoint, Description, Pass, Program};
use crate::recipe::Loaded;
use crate::stage::{RunText, Stage};
use crate::text::units;

/// A file of text, or of a tokenizer, beyond this is refused.
const LARGEST_FILE: u64 = 1 << 30;

/// Memory of the process without the model.
const BASE_BYTES: u64 = 48 << 20;

/// The built-in text.
const BUILT_IN: &str = include_str!("../../examples/calibration/calibration.txt");

/// Its name in messages and reports.
const BUILT_IN_NAME: &str = "the built-in text";

/// What the stages of a recipe run the model on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRuns {
    /// The model, as it runs.
    pub description: Description,
    /// One entry per stage that runs it.
    pub runs: Vec<ModelRun>,
}

/// The tokens of one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRun {
    /// Index of the stage; none for a comparison without a recipe.
    pub stage: Option<StageId>,
    /// The texts, as the recipe names them.
    pub texts: Vec<String>,
    /// Samples.
    pub windows: Vec<Vec<u32>>,
    /// How many models run at once: one, or two that are compared.
    pub models: usize,
}

impl ModelRun {
    /// Tokens of all samples.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}

impl ModelRuns {
    /// Bytes of the weights of the largest layer, in F32.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        let of = |program: &Program| {
            program.matrices().map(|matrix| (matrix.rows * matrix.columns) as u64 * 4).sum::<u64>()
        };
        self.description.layers.iter().map(of).max().unwrap_or(0)
    }

    /// Bytes that a thread needs for the activations of the longest sample in the widest layer.
    #[must_use]
    pub fn thread_bytes(&self) -> u64 {
        let longest = self.runs.iter().flat_map(|run| &run.windows).map(Vec::len).max().unwrap_or(0) as u64;
        let wide = |program: &Program| program.matrices().map(|matrix| matrix.rows + matrix.columns).max();
        let width = self.description.layers.iter().filter_map(wide).max().unwrap_or(0) as u64;
        // Inputs, products, gates and their product at once; and the scores of some heads.
        longest * (3 * width + longest) * 4
    }

    /// The least memory in which the model runs with so many threads.
    #[must_use]
    pub fn least_memory(&self, threads: usize) -> u64 {
        // Two models side by side, if they are compared.
        let is_compared = self.runs.iter().any(|run| run.models == 2);
        self.process_bytes(threads) + self.layer_bytes() * (1 + u64::from(is_compared))
    }

    /// What the process and so many threads take of memory while the model runs, without weights.
    #[must_use]
    pub fn process_bytes(&self, threads: usize) -> u64 {
        BASE_BYTES + self.thread_bytes() * threads as u64
    }

    /// Bytes of the activations between two layers, of the stage that has most of them.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        let of = |run: &ModelRun| (run.tokens() * self.description.hidden * 4 * run.models) as u64;
        self.runs.iter().map(of).max().unwrap_or(0)
    }

    /// Checks that a layer fits into memory.
    ///
    /// # Errors
    /// [`Exit::BadRecipe`] if it does not.
    pub(super) fn check_memory(
        &self,
        loaded: &Loaded,
        memory: Option<u64>,
        threads: usize,
    ) -> Result<(), Failure> {
        let least = self.least_memory(threads);
        let Some(memory) = memory.filter(|memory| *memory < least) else { return Ok(()) };
        let message =
            format!("the memory bound of {} is too small to run a layer of this model", units::bytes(memory));
        let stage = self.runs.first().and_then(|run| run.stage);
        let finding = Finding::error("plan::memory", message)
            .at_opt(stage.and_then(|stage| loaded.stage_place(stage)), "runs the model")
            .help(format!(
                "A layer is {} in F32, and {} of activations come with each thread: {} are needed here.",
                units::bytes(self.layer_bytes()),
                units::bytes(self.thread_bytes()),
                units::bytes(least)
            ));
        Err(Failure::new(Exit::BadRecipe, finding))
    }

    /// Warnings for stages whose texts have fewer samples than they ask for.
    pub(super) fn short(&self, loaded: &Loaded) -> Vec<Finding> {
        let short = |run: &ModelRun| {
            let stage = run.stage?;
            let finding = fewer(run_text(&loaded.recipe.stages[stage])?, run)?;
            Some(finding.at_opt(loaded.place(&format!("/stages/{stage}/samples")), "asked for here"))
        };
        self.runs.iter().filter_map(short).collect()
    }

    /// The tokens of a stage.
    #[must_use]
    pub fn of(&self, stage: StageId) -> Option<&ModelRun> {
        self.runs.iter().find(|run| run.stage == Some(stage))
    }
}

/// Prepares the stages of a recipe that run the model; none if no stage does.
///
/// # Errors
/// [`Exit::BadModel`] if the model cannot be run or has no tokenizer, [`Exit::BadRecipe`] if a text cannot be used.
pub(super) fn prepare(loaded: &Loaded, model: &ModelFolder) -> Result<Option<ModelRuns>, Failure> {
    let stages = loaded.recipe.stages.numbered();
    let asked: Vec<(StageId, RunText<'_>)> =
        stages.filter_map(|(index, stage)| Some((index, run_text(stage)?))).collect();
    let Some((first, _)) = asked.first() else { return Ok(None) };
    let fail = |exit: Exit, stage: StageId, finding: Finding| {
        let finding = if finding.labels.is_empty() {
            finding.at_opt(loaded.stage_place(stage), "needs to run the model")
        } else {
            finding
        };
        Failure::new(exit, finding)
    };
    let checkpoint = Checkpoint::open(model)?;
    let description = Description::new(&model.config.raw, &checkpoint)
        .map_err(|finding| fail(Exit::BadModel, *first, finding))?;
    let tokenizer = tokenizer(model).map_err(|finding| fail(Exit::BadModel, *first, finding))?;
    let mut runs = Vec::with_capacity(asked.len());
    for (stage, text) in asked {
        let mut all = Vec::new();
        for (index, file) in text.files.iter().enumerate() {
            let pointer = format!("/stages/{stage}/text/{index}");
            let told = loaded.written(&pointer).unwrap_or(file);
            let path = loaded.resolve_path(file);
            let read = read(told, &path)
                .map_err(|finding| finding.at_opt(loaded.place(&pointer), "named here"))
                .map_err(|finding| fail(Exit::BadRecipe, stage, finding))?;
            all.extend(read);
        }
        let texts = match text.files {
            [] => vec![BUILT_IN_NAME.to_owned()],
            files => told_names(loaded, stage, files),
        };
        if text.files.is_empty() {
            all.push(Document::Text(BUILT_IN.to_owned()));
        }
        let windows = cut(&tokenizer, &description, &all, text)
            .map_err(|finding| fail(Exit::BadRecipe, stage, finding))?;
        let models = if matches!(loaded.recipe.stages[stage], Stage::Evaluate(_)) { 2 } else { 1 };
        runs.push(ModelRun { stage: Some(stage), texts, windows, models });
    }
    Ok(Some(ModelRuns { description, runs }))
}

/// What a stage runs the model on, if it does.
fn run_text(stage: &Stage) -> Option<RunText<'_>> {
    match stage {
        Stage::Calibrate(stage) => Some(stage.run_text()),
        Stage::Evaluate(stage) => Some(stage.run_text()),
        _ => None,
    }
}

fn told_names(loaded: &Loaded, stage: StageId, files: &[String]) -> Vec<String> {
    let told = |(index, file): (usize, &String)| {
        loaded.written(&format!("/stages/{stage}/text/{index}")).unwrap_or(file).to_owned()
    };
    files.iter().enumerate().map(told).collect()
}

/// The documents of a file of text.
///
/// # Errors
/// It cannot be read, or is no text.
pub(crate) fn read(told: &str, path: &std::path::Path) -> Result<Vec<Document>, Finding> {
    let bytes = regular::read_bounded(path, LARGEST_FILE).map_err(|error| {
        Finding::error("tokens::unreadable", format!("cannot read the text `{told}`: {error}"))
            .help("`text` names files, relative to the recipe's folder.")
    })?;
    documents(told, &bytes)
}

/// The tokenizer of a model.
///
/// # Errors
/// It has none, or one that cannot be read.
pub(crate) fn tokenizer(model: &ModelFolder) -> Result<Tokenizer, Finding> {
    let file = |name: &str| match model.source.read(name, LARGEST_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Finding::error("tokens::bad-tokenizer", format!("`{name}` cannot be read: {error}"))
                .help("Get the file again."))
        }
    };
    let own = file("tokenizer.json")?.ok_or_else(tokens::missing)?;
    let (config, template) = (file("tokenizer_config.json")?, file("chat_template.jinja")?);
    let template = template.as_deref().map(String::from_utf8_lossy);
    Tokenizer::new(&own, config.as_deref(), template.as_deref())
}

/// A warning if a text has fewer samples than are asked for.
pub(crate) fn fewer(text: RunText<'_>, run: &ModelRun) -> Option<Finding> {
    let asked = text.samples? as usize;
    let found = run.windows.len();
    (found < asked).then(|| {
        let (asked, found) = (units::grouped(asked as u64), units::counted(found, "sample"));
        let length = units::counted(text.sequence_length as usize, "token");
        Finding::warning(
            "tokens::fewer-samples",
            format!("the text has {found} of {length}, and {asked} are asked for"),
        )
        .help("Give more text, a smaller `sequence_length`, or fewer `samples`.")
    })
}

/// Cuts documents into the samples that a stage asks for, and checks that the model can run them.
///
/// # Errors
/// There is too little text, a sample is longer than the model's positions, or a token is not in its vocabulary.
pub(crate) fn cut(
    tokenizer: &Tokenizer,
    description: &Description,
    documents: &[Document],
    text: RunText<'_>,
) -> Result<Vec<Vec<u32>>, Finding> {
    let tokens = tokenizer.encode(documents, text.begin_with_bos)?;
    let samples = text.samples.map(|samples| samples as usize);
    let windows = windows(&tokens, text.sequence_length as usize, samples)?;
    Pass::new(description, &windows)?;
    Ok(windows)
}
