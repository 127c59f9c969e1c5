//! The phases of planning. A model whose tensors have kinds is [`Classified`], one about whose tensors the recipe has
//! decided is [`Decided`]. It is then cut into tasks ([`super::Draft`]), and its outputs are laid out ([`super::Plan`]).

use super::fused_modules::FusedModules;
use super::select::{Decision, Item, QuantizeStage};
use crate::finding::Finding;
use crate::ids::{IdVec, TensorId};
use crate::model::{LayerClass, ModelFolder};
use crate::recipe::Loaded;

/// A recipe, and the model that it loads, whose tensors have kinds and roles.
pub(super) struct Classified {
    pub loaded: Loaded,
    pub model: ModelFolder,
    pub classes: IdVec<TensorId, LayerClass>,
    pub findings: Vec<Finding>,
}

/// Decisions in the making: each tensor is judged alone, and then beside those that engines treat with it.
pub(super) struct Deciding<'c> {
    pub of: &'c Classified,
    pub items: IdVec<TensorId, Item<'c>>,
    pub stages: Vec<QuantizeStage<'c>>,
    pub decisions: IdVec<TensorId, Decision>,
    pub fused_modules: Vec<FusedModules>,
}

/// A recipe and its model, with a decision for each tensor.
pub(super) struct Decided {
    pub loaded: Loaded,
    pub model: ModelFolder,
    pub classes: IdVec<TensorId, LayerClass>,
    pub decisions: IdVec<TensorId, Decision>,
    pub fused_modules: Vec<FusedModules>,
    pub findings: Vec<Finding>,
}
