//! The check that activation statistics are made from enough text.

use crate::finding::Finding;
use crate::gates::{NAMED, place_of};
use crate::ids::StageId;
use crate::plan::Plan;
use crate::text::units::counted;

/// Findings about too little data in the statistics of the quantize stages before a stage: samples, or tokens of
/// single modules.
pub(crate) fn low(plan: &Plan, stage: StageId, least: u64) -> Vec<Finding> {
    let mut out = Vec::new();
    for used in plan.weighing.stages.iter().filter(|used| used.stage < stage) {
        let place = || place_of(plan, stage, "min_calibration_samples");
        let few = match used.samples {
            None => Some(format!("`{}` does not say how many samples it is made of", used.file)),
            Some(samples) if samples < least => Some(format!(
                "`{}` is made of {}, fewer than {least}",
                used.file,
                counted(samples as usize, "sample")
            )),
            Some(_) => None,
        };
        if let Some(message) = few {
            let finding = Finding::warning("check::low-calibration", message)
                .at_opt(place(), "asked for here")
                .help("Few samples give every layer the taste of their text. Run more of them.");
            out.push(finding);
        }
        if !used.thin.is_empty() {
            let message = format!("{} hardly any of the tokens of `{}`", saw(used.thin.len()), used.file);
            let lines = used.thin.iter().take(NAMED).map(|(module, tokens)| format!("{tokens:>8}  {module}"));
            let finding = Finding::warning("check::thin-statistics", message)
                .at_opt(place(), "asked for here")
                .help("Tokens:")
                .help_lines(lines)
                .help("Their numbers are noise; run more text, or other text.");
            out.push(finding);
        }
    }
    out
}

/// `1 module saw`, `3 modules saw`.
fn saw(count: usize) -> String {
    format!("{} saw", counted(count, "module"))
}
