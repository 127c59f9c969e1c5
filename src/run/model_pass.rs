//! Passes of a model over samples, with all that a run has around them: threads, memory, cancelling and progress.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::event::{Event, Listener as Events};
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive;
use crate::network::{Linear, Listener};
use crate::plan::fingerprint::BUILD;
use crate::plan::{ModelRun, ModelRuns, Plan};
use crate::publish::files::cannot_write;
use crate::publish::hidden;
use crate::quant::Isa;

/// Tells what a pass has done, and ends it if it is cancelled.
pub(super) struct Watched<'a, L> {
    pub inner: L,
    /// None for a pass that is not counted.
    pub progress: Option<&'a Progress<'a>>,
    pub cancel: &'a Cancel,
}

impl<L: Listener> Listener for Watched<'_, L> {
    type Heard = L::Heard;

    fn start(&self) -> L::Heard {
        self.inner.start()
    }

    fn hear(&self, heard: &mut L::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        self.inner.hear(heard, matrix, inputs);
    }

    fn keep(&mut self, heard: Vec<L::Heard>) -> Result<(), Finding> {
        match self.progress {
            Some(progress) => progress.through(heard.len(), self.cancel)?,
            None => self.cancel.check().map_err(first)?,
        }
        self.inner.keep(heard)
    }

    fn block(&self) -> usize {
        self.inner.block()
    }
}

/// The first finding of a failure.
pub(super) fn first(failure: Failure) -> Finding {
    let none = || Finding::error("run::interrupted", "interrupted");
    failure.findings.into_iter().next().unwrap_or_else(none)
}

/// The failure of a pass. If it was cancelled, that is what it failed of.
pub(super) fn failed(cancel: &Cancel, finding: Finding) -> Failure {
    match cancel.check() {
        Err(interrupted) => interrupted,
        Ok(()) => Failure::new(Exit::BadModel, finding),
    }
}

/// How far the passes of a stage are.
pub(super) struct Progress<'a> {
    listener: &'a dyn Events,
    name: &'static str,
    layers: usize,
    window: usize,
    /// Tokens of one layer, and of all passes through all layers.
    total: usize,
    all: usize,
    state: std::sync::Mutex<(usize, usize)>,
}

impl<'a> Progress<'a> {
    /// For the passes of a stage.
    pub(super) fn new(
        name: &'static str,
        runs: &ModelRuns,
        run: &ModelRun,
        listener: &'a dyn Events,
    ) -> Self {
        Self {
            listener,
            name,
            layers: runs.description.layers.len(),
            window: run.windows.first().map_or(0, Vec::len),
            total: run.tokens(),
            all: runs.description.layers.len() * run.tokens() * run.models,
            state: std::sync::Mutex::default(),
        }
    }

    /// The same for another number of tokens over all passes through all layers.
    pub(super) fn of_tokens(self, all: usize) -> Self {
        Self { all, ..self }
    }

    /// Some windows are through a layer, or a part of it. An error if the run is cancelled.
    pub(super) fn through(&self, windows: usize, cancel: &Cancel) -> Result<(), Finding> {
        self.add(windows);
        cancel.check().map_err(first)
    }

    /// The same, in this layer.
    pub(super) fn through_layer(&self, layer: usize, windows: usize, cancel: &Cancel) -> Result<(), Finding> {
        crate::sync::lock(&self.state).0 = layer;
        self.through(windows, cancel)
    }

    /// The next layer begins.
    pub(super) fn layer(&self, layer: usize) {
        crate::sync::lock(&self.state).0 = layer;
        self.tell();
    }

    fn add(&self, windows: usize) {
        crate::sync::lock(&self.state).1 += windows * self.window;
        self.tell();
    }

    fn tell(&self) {
        let (layer, done) = *crate::sync::lock(&self.state);
        self.listener.on_event(&Event::Layer {
            name: self.name,
            layer: layer + 1,
            layers: self.layers,
            done: done as u64,
            total: self.all as u64,
            tokens: self.total as u64,
        });
    }
}

/// A file for activations that have no room in memory. It goes when this does.
#[derive(Debug)]
pub(super) struct Spill {
    path: PathBuf,
}

impl Drop for Spill {
    fn drop(&mut self) {
        let _ = exclusive::remove_file(&self.path);
    }
}

/// Where the activations of some models go: into memory if they fit beside a layer's weights, else into files beside an output.
#[derive(Debug, Default)]
pub(super) struct Places {
    files: Vec<File>,
    /// Remove the files in the end.
    spills: Vec<Spill>,
}

impl Places {
    /// For the models of a stage. Without an output they go into memory.
    ///
    /// # Errors
    /// If a file cannot be made.
    pub(super) fn new(
        runs: &ModelRuns,
        run: &ModelRun,
        threads: usize,
        memory: Option<u64>,
        target: Option<&Path>,
    ) -> Result<Self, Failure> {
        let bytes = (run.tokens() * runs.description.hidden * 4 * run.models) as u64;
        let fits = memory.is_none_or(|memory| runs.least_memory(threads).saturating_add(bytes) <= memory);
        Self::with(run.models, fits, target)
    }

    /// For so many models: in memory if they fit there.
    ///
    /// # Errors
    /// If a file cannot be made.
    pub(super) fn with(models: usize, fits: bool, target: Option<&Path>) -> Result<Self, Failure> {
        let mut places = Self::default();
        let Some(target) = target.filter(|_| !fits) else { return Ok(places) };
        for model in 0..models {
            let file = places.another(&hidden::activations(target, model))?;
            places.files.push(file);
        }
        Ok(places)
    }

    /// One more file, which goes when this does.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn another(&mut self, path: &Path) -> Result<File, Failure> {
        let file = created(path)?;
        self.spills.push(Spill { path: path.to_owned() });
        Ok(file)
    }

    /// The place of the next model; memory if it is none.
    pub(super) fn take(&mut self) -> Option<File> {
        self.files.pop()
    }
}

/// A new file at a path, in the place of one that a killed run has left.
fn created(path: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| cannot_write("make", path, &error);
    crate::publish::files::create_dir_all(path.parent().unwrap_or(path))?;
    if exclusive::kind(path).map_err(failed)? == exclusive::Kind::File {
        exclusive::remove_file(path).map_err(failed)?;
    }
    exclusive::create_new(path).map_err(failed)
}

/// What decides how a model runs, the weights aside: the build, the arithmetic, the configuration and the tokens.
pub(super) fn facts(plan: &Plan, run: &ModelRun) -> Vec<String> {
    let mut facts =
        vec![BUILD.to_owned(), Isa::detect().name().to_owned(), plan.model.config.raw.to_string()];
    facts.extend(run.texts.iter().cloned());
    facts.extend(run.windows.iter().map(|window| format!("{window:?}")));
    facts
}
