//! Statistics that were measured after a plan was made, put in their place in it.

use std::collections::BTreeMap;

use super::{Plan, budget, statistics, unreachable_thresholds};
use crate::calibration::Statistics;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::ids::StageId;

impl Plan {
    /// Whether `calibrate` stages are still to run before tensors can be quantized.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.weighing.pending.is_empty()
    }

    /// Takes the statistics of the `calibrate` stages, by stage. Nothing else of the plan depends on them but the columns' importance,
    /// the memory bound and warnings.
    ///
    /// # Errors
    /// If they lack a module, and the stage does not allow that.
    pub fn weigh_by(&mut self, measured: &BTreeMap<StageId, Statistics>) -> Result<(), Failure> {
        let runs = self.runs.as_ref();
        let (weighing, findings) = statistics::weigh(self.content(), runs, measured)
            .map_err(|failure| self.loaded.tell_failure(failure))?;
        let tell = |findings: Vec<Finding>| {
            let mut findings = findings;
            self.loaded.tell(&mut findings);
            findings
        };
        let mut findings = tell(findings);
        if findings.iter().any(Finding::is_error) {
            return Err(Failure { exit: Exit::BadRecipe, findings });
        }
        let before = unreachable_thresholds::check(self.content(), &self.weighing);
        let after = unreachable_thresholds::check(self.content(), &weighing);
        findings.extend(tell(after).into_iter().filter(|finding| !before.contains(finding)));
        let budget =
            budget::budget(self.content(), &self.exports, &weighing, self.budget.workers, self.limits.memory)
                .map_err(|memory| Failure::new(Exit::BadRecipe, memory.into()))?;
        (self.weighing, self.budget) = (weighing, budget);
        self.warnings.extend(findings);
        Ok(())
    }
}
