//! Sizes that all layers of a model share, and the rules of one layer.

use super::code;
use super::parts::Activation;
use crate::finding::Finding;

/// Numbers that all layers share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head: usize,
    pub(super) inner: usize,
    pub(super) positions: usize,
    pub(super) epsilon: f32,
    pub(super) activation: Activation,
}

/// One layer's rules.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rule {
    pub(super) window: Option<usize>,
    /// Which angles; none if nothing is turned.
    pub(super) rope: Option<usize>,
    /// Whether it attends; otherwise it convolves or has a state.
    pub(super) attends: bool,
}

pub(super) fn refused(what: impl Into<String>) -> Finding {
    Finding::error(code::NOT_ADMITTED, what)
        .help("The model is not run. A file of statistics made elsewhere still works: `calibration: file`.")
}
