//! What rounding with calibration has made of a tensor, as data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::TensorId;
use crate::plan::Plan;
use crate::plan::rounding::Rounded;

/// What rounding with calibration has made of a tensor's matrices: of one, or of those of a stack of experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoundingRecord {
    /// Matrices whose codes were chosen with second moments of their inputs.
    pub matrices: usize,
    /// The fewest tokens that one of them has seen. None if there is none of them.
    pub tokens: Option<u64>,
    /// The mean squared error of the outputs on the text of `calibrate`, summed over these, with damping.
    pub error: f64,
    /// The same if each weight is rounded to nearest, with scales that were searched for the outputs' sake.
    pub error_of_nearest: f64,
    /// How many of them gradients of the model's answers have guided. Errors are then those of the answers, in units of their
    /// own, and not squared errors of outputs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guided: usize,
    /// Matrices that were rounded to nearest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<NearestRecord>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A matrix that was rounded to nearest although the recipe asks for more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NearestRecord {
    /// Its module in the output.
    pub module: String,
    /// Why.
    pub reason: String,
}

/// What has come of a tensor; none if it is not rounded with calibration, or was not yet.
#[must_use]
pub(crate) fn of(plan: &Plan, tensor: TensorId) -> Option<RoundingRecord> {
    let roundings = plan.roundings.as_ref()?;
    let mut record = RoundingRecord {
        matrices: 0,
        tokens: None,
        error: 0.0,
        error_of_nearest: 0.0,
        guided: 0,
        nearest: Vec::new(),
    };
    for task in plan.tasks_of(tensor) {
        match roundings.of(task) {
            Some(Rounded::Chosen(codes)) => {
                record.matrices += 1;
                record.guided += usize::from(codes.is_guided);
                record.tokens = Some(record.tokens.map_or(codes.tokens, |tokens| tokens.min(codes.tokens)));
                record.error += codes.error;
                record.error_of_nearest += codes.error_of_nearest;
            }
            Some(Rounded::Nearest(reason)) => {
                let module = plan.tasks[task].module(&plan.model).to_owned();
                record.nearest.push(NearestRecord { module, reason: reason.clone() });
            }
            None => {}
        }
    }
    (record.matrices > 0 || !record.nearest.is_empty()).then_some(record)
}
