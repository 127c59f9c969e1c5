//! Activation statistics, in all formats: from whoever ran the model.

use monoquant::calibration::{self, names};
use monoquant::show::statistics;

use super::folder::{Folder, check_plan};
use super::{Target, findings};

/// A file of statistics. What is accepted gives finite importances of the right number, is shown, and is planned with.
pub struct Statistics(Folder);

const RECIPE: &str = "version: 1
stages:
  - {stage: load, model: model, calibration: {file: statistics, on_missing: ignore}}
  - {stage: quantize-int4, group_size: 32, indivisible: shrink, siblings: ignore, observer: imatrix-mse}
  - {stage: export, path: out}
";

impl Target for Statistics {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn try_on(&self, input: &[u8]) {
        let statistics = match calibration::parse(input) {
            Ok(statistics) => statistics,
            Err(finding) => return findings::check(&[finding]),
        };
        assert!(!statistics.modules.is_empty());
        assert!(!statistics::text("statistics", &statistics).is_empty());
        assert!(statistics::json(&statistics).is_object());
        for module in &statistics.modules {
            let _ = (names::in_importance_matrix(&module.name), names::when_run(&module.name));
            let (matrices, len) = (module.counts.len(), module.sums.len());
            for (columns, matrix) in [
                (len as u64, None),
                (64, Some(0)),
                ((len / matrices) as u64, Some(matrices - 1)),
                (len as u64 / 2, Some(usize::MAX)),
                (u64::MAX, Some(1)),
                (0, None),
            ] {
                let _ = (module.fits(columns, matrices), module.tokens(matrix));
                if let Ok(Some(importance)) = module.importance(columns, matrix) {
                    assert_eq!(importance.columns().len() as u64, columns);
                    assert!(importance.columns().iter().all(|value| value.is_finite() && *value >= 0.0));
                }
            }
        }
        self.0.write("statistics", input);
        assert!(calibration::read(&self.0.path("statistics")).is_ok());
        if let Ok(plan) = self.0.plan(RECIPE) {
            check_plan(&plan);
        }
    }
}
