//! Comparisons of a quantized model with its original: both run side by side, layer by layer, on the same text.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::event::{Event, Listener as Events};
use super::kept;
use super::model_pass::{Places, Progress, Watched, facts, failed};
use super::outcome::Options;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source;
use crate::ids::{ExportId, StageId, TensorId};
use crate::model::{self, Config, ModelFolder};
use crate::network::{
    Checkpoint, Description, Engine, InputRounding, LayerWeights, Linear, Listener, Pass, Quantized, Silent,
    compare_logits, layer_error, pooled_cosine, round_per_token, round_to_float8,
};
use crate::plan::fingerprint::Prints;
use crate::plan::{ModelRun, ModelRuns, Plan};
use crate::publish::hidden;
use crate::report::evaluation::{Divergence, Evaluation, Perplexity};
use crate::report::measured::Measured;
use crate::threads::Pool;

/// Rounds the inputs of quantized matrices as engines do that compute with eight-bit activations.
struct Rounding<'a>(&'a Quantized<'a>);

impl Listener for Rounding<'_> {
    type Heard = ();

    fn start(&self) {}

    fn hear(&self, (): &mut (), matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        match self.0.rounding_of(matrix.module()) {
            None => {}
            Some(InputRounding::Int8) => {
                round_per_token(inputs.to_mut(), matrix.columns, Engine::CompressedTensors);
            }
            // Groups do not go over the ends of tokens.
            Some(InputRounding::Float8(width)) => {
                let columns = matrix.columns.max(1);
                let width = if width == 0 { columns } else { width };
                inputs.to_mut().chunks_mut(columns).for_each(|token| round_to_float8(token, width));
            }
        }
    }

    fn keep(&mut self, _: Vec<()>) -> Result<(), Finding> {
        Ok(())
    }
}

/// The comparisons that a plan asks for, of each output as it is in its folder: in the order of the stages, and for each stage of the
/// outputs. They are taken from the last run if the output's bytes, the source, the tokens and the build are those of now.
///
/// # Errors
/// If a weight cannot be read, activations stop being finite, or the run is cancelled.
pub(super) fn all(
    plan: &Plan,
    folders: &[PathBuf],
    known: (&Prints, &Measured),
    options: &Options,
    listener: &dyn Events,
) -> Result<Vec<Evaluation>, Failure> {
    let mut all = Vec::new();
    for (export, folder) in plan.exports.ids().zip(folders) {
        all.extend(of_export(plan, (export, folder), known, options, listener)?);
    }
    all.sort_by_key(|evaluation| evaluation.stage);
    Ok(all)
}

/// The comparisons of one output.
fn of_export(
    plan: &Plan,
    (index, folder): (ExportId, &Path),
    (prints, measured): (&Prints, &Measured),
    options: &Options,
    listener: &dyn Events,
) -> Result<Vec<Evaluation>, Failure> {
    let export = &plan.exports[index];
    let Some(runs) = &plan.runs else { return Ok(Vec::new()) };
    let compared: Vec<&ModelRun> = runs.runs.iter().filter(|run| run.models == 2).collect();
    if compared.is_empty() {
        return Ok(Vec::new());
    }
    let outputs = (0..plan.model.tensors.len())
        .map(|tensor| format!("{:?}", prints.output(index, TensorId::new(tensor))));
    // The source is known by its bytes, which were all read or are those of the record.
    let sources = measured.source_files.iter().map(|digest| format!("{:?}", digest.crc64));
    // It says how codes are read, and how inputs are rounded.
    let config = export.config.iter().cloned();
    let runs_of = compared.iter().flat_map(|run| facts(plan, run));
    let key = kept::key(runs_of.chain(sources).chain(outputs).chain(config));
    let path = hidden::evaluation(&export.path);
    let place = |found: &mut Vec<Evaluation>| {
        found.iter_mut().for_each(|found| found.export = Some(export.stage.index()));
    };
    let known = if options.fresh { None } else { kept::read(&path, &key) };
    if let Some(mut known) = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        place(&mut known);
        let text = "the comparison with the original is that of the last run".to_owned();
        listener.on_event(&Event::Note { text });
        return Ok(known);
    }
    let config = export.config.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let config: Value = config.unwrap_or_else(|| plan.model.config.raw.clone());
    let output = open(folder, &config)?;
    let setting = Setting {
        threads: plan.budget.workers,
        memory: plan.limits.memory,
        target: Some(&export.path),
        options,
        listener,
    };
    let mut found = Vec::with_capacity(compared.len());
    for run in compared {
        found.push(compare(runs, run, (&plan.model, &plan.model.config.raw), (&output, &config), &setting)?);
    }
    place(&mut found);
    if let Ok(text) = serde_json::to_vec(&found) {
        kept::write(&export.path, &path, &key, &text)?;
    }
    Ok(found)
}

/// An output, as its headers and the `config.json` that it gets describe it.
fn open(folder: &Path, config: &Value) -> Result<ModelFolder, Failure> {
    let folder = folder.display().to_string();
    model::look_with(source::open(&folder, Path::new("."), &[])?, Config { raw: config.clone() })
}

/// What a comparison may use, and who is told of it.
pub struct Setting<'a> {
    /// Threads.
    pub threads: usize,
    /// The bound of memory.
    pub memory: Option<u64>,
    /// The output beside which activations may lie.
    pub target: Option<&'a Path>,
    /// The switch that ends it.
    pub options: &'a Options,
    /// Is told of the progress.
    pub listener: &'a dyn Events,
}

/// Runs a model and its quantized twin side by side, each with its `config.json`.
///
/// # Errors
/// If one of them cannot be read or run, or the work is cancelled.
pub fn compare(
    runs: &ModelRuns,
    run: &ModelRun,
    source: (&ModelFolder, &Value),
    output: (&ModelFolder, &Value),
    setting: &Setting<'_>,
) -> Result<Evaluation, Failure> {
    let cancel = &setting.options.cancel;
    let checkpoint = Checkpoint::open(source.0)?;
    let quantized = Quantized::open(output.0, output.1)?;
    let bad = |finding: Finding| Failure::new(Exit::BadModel, finding);
    let twin = Description::new(source.1, &quantized).map_err(bad)?;
    let original = &runs.description;
    if twin.layers.len() != original.layers.len() || twin.hidden != original.hidden {
        let finding = Finding::error("evaluate::another-model", "the two models differ in layers or width")
            .help("`--source` is the model that the other one was made from.");
        return Err(bad(finding));
    }
    let mut places = Places::new(runs, run, setting.threads, setting.memory, setting.target)?;
    let progress = Progress::new("evaluate", runs, run, setting.listener);
    let bytes = usize::try_from(runs.thread_bytes()).unwrap_or(usize::MAX);
    let pool = Pool::start(setting.threads, bytes);
    let walk = || {
        let passes = [Pass::new(original, &run.windows)?, Pass::new(&twin, &run.windows)?];
        let mut first = passes[0].embed(&checkpoint, places.take())?;
        let mut second = passes[1].embed(&quantized, places.take())?;
        let mut errors = Vec::with_capacity(original.layers.len());
        for (layer, programs) in original.layers.iter().zip(&twin.layers).enumerate() {
            progress.layer(layer);
            let weights = LayerWeights::read(programs.0, &checkpoint)?;
            let mut silent = Watched { inner: Silent, progress: Some(&progress), cancel };
            passes[0].layer(layer, &weights, &mut first, &mut silent)?;
            drop(weights);
            let weights = LayerWeights::read(programs.1, &quantized)?;
            let mut rounding = Watched { inner: Rounding(&quantized), progress: Some(&progress), cancel };
            passes[1].layer(layer, &weights, &mut second, &mut rounding)?;
            errors.push(layer_error(&first, &second)?);
        }
        passes[0].finish(&checkpoint, &mut first)?;
        passes[1].finish(&quantized, &mut second)?;
        let (answers, cosine) = match original.is_encoder {
            true => (None, Some(pooled_cosine(original.hidden, &first, &second)?)),
            false => {
                let sides = ((&checkpoint as _, &first), (&quantized as _, &second));
                (Some(compare_logits(original, &run.windows, sides.0, sides.1)?), None)
            }
        };
        Ok((errors, answers, cosine))
    };
    let (layers, answers, cosine) = pool.install(walk).map_err(|finding| failed(cancel, finding))?;
    checkpoint.check_unchanged()?;
    let kl = answers.as_ref().map(|found| Divergence {
        mean: found.mean,
        standard_error: found.standard_error.is_finite().then_some(found.standard_error),
        p99: found.p99,
    });
    let perplexity = answers
        .as_ref()
        .map(|found| Perplexity { source: found.first_perplexity, quantized: found.second_perplexity });
    Ok(Evaluation {
        stage: run.stage.map(StageId::index),
        export: None,
        texts: run.texts.clone(),
        samples: run.windows.len(),
        tokens: run.tokens(),
        kl,
        perplexity,
        top1_agreement: answers.map(|found| found.top1_agreement),
        cosine,
        layers,
        left_out: original.left_out.clone(),
    })
}
