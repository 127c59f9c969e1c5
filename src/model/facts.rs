//! Tensors as the rules about layer types see them.

use super::class::LayerClass;
use super::folder::ModelFolder;
use super::tensor::TensorInfo;
use crate::ids::{IdVec, TensorId};
use crate::layer::LayerType;

/// The tensors of a folder with their kinds.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a, 'c> {
    pub(super) folder: &'a ModelFolder,
    pub(super) classes: &'c IdVec<TensorId, LayerClass>,
}

impl<'a> Tensors<'a, '_> {
    /// What the rules ask about each, and its kind.
    pub(super) fn iter(self) -> impl Iterator<Item = (TensorFacts<'a>, LayerType)> {
        let kinds = self.classes.iter().map(|class| class.kind);
        self.folder.tensors.iter().map(TensorFacts::of).zip(kinds)
    }
}

/// A tensor and the parts of its name.
#[derive(Clone, Copy)]
pub(super) struct TensorFacts<'a> {
    pub(super) info: &'a TensorInfo,
    /// The last part.
    pub(super) parameter: &'a str,
    /// The part before it; empty if there is none.
    pub(super) last: &'a str,
    /// The part before that.
    pub(super) parent: &'a str,
}

impl<'a> TensorFacts<'a> {
    pub(super) fn of(info: &'a TensorInfo) -> Self {
        let mut back = info.name.rsplit('.');
        let mut next = || back.next().unwrap_or("");
        let (parameter, last, parent) = (next(), next(), next());
        Self { info, parameter, last, parent }
    }

    /// The parts of the name, the parameter last.
    pub(super) fn segments(&self) -> impl Iterator<Item = &'a str> {
        self.info.name.split('.')
    }

    /// Whether a part of the name is this word.
    pub(super) fn is_below(&self, word: &str) -> bool {
        self.segments().any(|segment| segment == word)
    }

    pub(super) fn axes(&self) -> usize {
        self.info.shape.len()
    }

    pub(super) fn is_weight(&self) -> bool {
        self.parameter == "weight"
    }

    /// The size of an axis; 0 if there is none.
    pub(super) fn axis(&self, n: usize) -> u64 {
        self.info.shape.get(n).copied().unwrap_or(0)
    }
}
