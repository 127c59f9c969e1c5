//! Checks: the work of a pass over the weights beside quantizing and writing.

use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;
use crate::stage::Stage;
use crate::stage::validate::Check;

/// The work of a pass beside quantizing and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Look at every value that is kept.
    pub finite: bool,
    /// Read back and compare what was written.
    pub round_trip: bool,
    /// Measure distortions.
    pub measure: bool,
}

impl Checks {
    /// The checks that the stages of a recipe require.
    #[must_use]
    pub fn of(recipe: &Recipe) -> Self {
        let has = |check: Check| {
            recipe
                .stages
                .iter()
                .any(|stage| matches!(stage, Stage::Validate(validate) if validate.checks.contains(&check)))
        };
        let measure =
            recipe.stages.iter().any(|stage| matches!(stage, Stage::Validate(_) | Stage::CheckWarnings(_)));
        Self { finite: has(Check::Finite), round_trip: has(Check::RoundTrip), measure }
    }

    /// Whether a pass that did this has done all of that.
    #[must_use]
    pub fn cover(self, wanted: Self) -> bool {
        (self.finite || !wanted.finite)
            && (self.round_trip || !wanted.round_trip)
            && (self.measure || !wanted.measure)
    }
}
