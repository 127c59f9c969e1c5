//! The verdict of gates on measurements alone, without an output.

use crate::finding::Finding;
use crate::ids::{IdVec, TensorId};
use crate::plan::Plan;
use crate::quant::Distortion;
use crate::report::measured::Measured;
use crate::stage::Stage;
use crate::stage::check_warnings::FailOn;

/// What the `check-warnings` and `validate` stages of a plan would call a failure, whatever their `on_failure` makes of it. Of
/// `validate` what is measured of quantized weights: how files were written is seen in outputs only.
pub(crate) fn failures(plan: &Plan, tensors: &IdVec<TensorId, Option<Distortion>>) -> Vec<Finding> {
    let mut out = Vec::new();
    for (index, stage) in plan.recipe().stages.numbered() {
        match stage {
            Stage::CheckWarnings(check) => {
                let complaints = super::check_warnings::complaints(plan, tensors, index, check);
                let fails = |found: &Finding| found.is_error() || check.fail_on == FailOn::Warning;
                out.extend(complaints.into_iter().filter(fails));
            }
            Stage::Validate(validate) => {
                let measured = Measured {
                    tensors: tensors.clone(),
                    extremes: IdVec::new(),
                    source_files: IdVec::new(),
                    output_files: IdVec::new(),
                    not_finite: Vec::new(),
                    mismatches: Vec::new(),
                };
                out.extend(super::validate_complaints(plan, &measured, &[], index, validate).0);
            }
            _ => {}
        }
    }
    out
}
