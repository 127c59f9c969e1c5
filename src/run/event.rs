//! Events of a run: the only thing that progress bars and other listeners may know about it.

use std::path::PathBuf;

pub use crate::format::source::ahead::Link;
use crate::ids::{StageId, TensorId};
use crate::quant::Distortion;
use crate::report::GateOutcome;

/// Something that happened in a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// Work begins: so many source bytes are to be read.
    Started {
        /// Source bytes of all tiles.
        bytes: u64,
        /// Tensors that are read.
        tensors: usize,
        /// Tensors that are reused from an earlier run.
        taken_over: usize,
    },
    /// Something worth knowing before the work begins.
    Note {
        /// One sentence.
        text: String,
    },
    /// A model runs: a layer has begun, or some samples are through it.
    Layer {
        /// The stage for which it runs.
        name: &'static str,
        /// The layer, from 1.
        layer: usize,
        /// Layers of the model.
        layers: usize,
        /// Tokens that are through a layer, over all layers.
        done: u64,
        /// Of so many.
        total: u64,
        /// Tokens of the text.
        tokens: u64,
    },
    /// A tile was read, processed and written.
    Tile {
        /// Index of its source tensor.
        tensor: TensorId,
        /// Source bytes of the tile.
        bytes: u64,
    },
    /// What has come from the place of the weights, if that is not this machine. Follows a tile.
    Link(Link),
    /// What was sent to object stores so far.
    Upload {
        /// Bytes that were sent.
        sent: u64,
        /// Of so many.
        total: u64,
    },
    /// A tensor was finished.
    Tensor {
        /// Index among the model's tensors.
        tensor: TensorId,
        /// Its name.
        name: String,
        /// The difference between the quantized weights and the source; none if the tensor was not quantized.
        distortion: Option<Distortion>,
    },
    /// All weights are written to a staging folder; the gates are evaluated next.
    Written {
        /// The staging folders, in the order of the exports.
        staging: Vec<PathBuf>,
    },
    /// A stage that judges or publishes was evaluated.
    Stage {
        /// Index in the recipe.
        stage: StageId,
        /// Its name.
        name: &'static str,
        /// The outcome of the stage.
        outcome: GateOutcome,
        /// One line for people.
        summary: String,
    },
    /// An output is complete and in its place.
    Published {
        /// The directory.
        path: PathBuf,
        /// The directory as people are told it, with variables of the recipe as they were written.
        told: String,
    },
}

/// Receives events, from any thread.
pub trait Listener: Sync {
    /// Called for each event; must not block for long.
    fn on_event(&self, event: &Event);
}

/// Ignores every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Listener for Silent {
    fn on_event(&self, _: &Event) {}
}

impl<F: Fn(&Event) + Sync> Listener for F {
    fn on_event(&self, event: &Event) {
        self(event);
    }
}
