//! Options of a run, and its outcome.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::Finding;
use crate::quant::Isa;
use crate::report::Report;
use crate::report::comparison::Comparison;
use crate::run::conditions::Conditions;

/// Options of how a run is carried out; none of them changes the bytes of its results.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The instruction set of the kernels; the best one of the machine if none is given.
    pub isa: Option<Isa>,
    /// The switch that ends the run.
    pub cancel: Cancel,
    /// Put everything on the disk before it is published, so that it survives a power cut.
    pub durable: bool,
    /// Take nothing over from earlier runs.
    pub fresh: bool,
    /// Take the weight files that parts of the run have made, and make none.
    pub join: bool,
    /// Keep what a failed gate does not let out, so that the next run need not make it again.
    pub keep_unpublished: bool,
    /// What the results must meet besides the recipe's gates to be published.
    pub conditions: Arc<Conditions>,
}

/// The outcome of a run. A failed gate is an outcome, not a [`crate::finding::Failure`]: all work was done, and the report says which
/// results are not good enough.
#[derive(Debug)]
pub struct Outcome {
    /// The report, as it is written.
    pub report: Report,
    /// The comparison with the baseline, if there is one.
    pub baseline: Option<Comparison>,
    /// The paths of the report.
    pub report_paths: Vec<PathBuf>,
    /// The outputs that were published.
    pub published: Vec<PathBuf>,
    /// What the gates have to say, failures and warnings, and what a limit of the system slowed down.
    pub findings: Vec<Finding>,
    /// The exit status.
    pub exit: Exit,
    /// The work that the run had to do.
    pub work: Work,
    /// Whether the outputs were already as the run would have made them, to the byte: nothing was written.
    pub is_up_to_date: bool,
}

/// The work of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Tensors that were reused from an earlier run.
    pub taken_over: usize,
    /// Tensors that were read, treated and written.
    pub redone: usize,
}
