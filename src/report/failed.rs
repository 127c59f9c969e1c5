//! The report of a run that ended before its gates: the same shape, with the reason among its warnings.

use super::{Balance, Report, Sizes, VERSION, Verdict};
use crate::finding::{Diagnostic, Failure, Finding};
use crate::recipe::Loaded;

impl Report {
    /// The report of a failure. `loaded` is the recipe, if it could be read.
    #[must_use]
    pub fn of_failure(failure: &Failure, loaded: Option<&Loaded>) -> Self {
        let first = failure.findings.iter().find(|finding| finding.is_error()).or(failure.findings.first());
        let findings = failure.findings.iter();
        Self {
            report_version: VERSION,
            monoquant: env!("CARGO_PKG_VERSION").to_owned(),
            verdict: Verdict {
                passed: false,
                exit_status: failure.exit.code(),
                summary: first.map_or_else(String::new, |finding: &Finding| finding.message.clone()),
            },
            recipe: loaded.and_then(|loaded| loaded.written_recipe().ok()).unwrap_or_default(),
            source: Vec::new(),
            outputs: Vec::new(),
            sizes: Sizes { source: 0, outputs: Vec::new(), compression_ratio: 1.0 },
            quality: None,
            evaluations: Vec::new(),
            gates: Vec::new(),
            warnings: findings.map(|finding| Diagnostic::of(finding).without_folders()).collect(),
            tensors: Vec::new(),
            balance: Balance {
                tensors: 0,
                quantized: 0,
                kept: 0,
                tensor_bytes_in: 0,
                header_bytes_in: 0,
                tensor_bytes_out: Vec::new(),
                header_bytes_out: Vec::new(),
                balanced: true,
            },
            baseline: None,
            digest: None,
        }
    }
}
