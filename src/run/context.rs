//! The context of a pass over the weights.

use super::event::Listener;
use super::incremental::record::Journal;
use super::stream::collector::Collector;
use super::stream::weights::Weights;
use super::workers::Workers;
use crate::ids::{ExportId, IdVec};
use crate::plan::fingerprint::Prints;
use crate::plan::{Checks, Plan};
use crate::publish::Staging;
use crate::quant::Isa;

/// The inputs and shared state of a run.
pub(crate) struct Context<'a> {
    pub plan: &'a Plan,
    pub source: &'a Weights<'a>,
    pub staging: &'a IdVec<ExportId, Staging>,
    /// The record of each export.
    pub journals: &'a IdVec<ExportId, Journal>,
    /// The fingerprints of all source tensors.
    pub prints: &'a Prints,
    pub checks: Checks,
    pub isa: Isa,
    pub collector: &'a Collector<'a>,
    pub listener: &'a dyn Listener,
    pub workers: &'a Workers,
}
