//! What `convert` claims: weights whose codes and scales the output's format can hold as they are.

use super::phases::Deciding;
use super::select::{Action, Decisions, Origin, QuantSpec, Rounding, Rule};
use crate::finding::Finding;
use crate::format::Dtype;
use crate::ids::StageId;
use crate::quant::{Observer, Storage};
use crate::stage::convert::{Inexact, Mxfp4Target};
use crate::stage::{Convert, Stage};

mod blocks;

/// Names that a finding lists.
const LISTED: usize = 10;

/// Decides for the tensors that `convert` stages claim. What a quantize stage before it has claimed is left to that.
pub(super) fn claim(deciding: &mut Deciding<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, stage) in deciding.of.loaded.recipe.stages.numbered() {
        if let Stage::Convert(convert) = stage {
            findings.extend(claim_for(deciding, index, convert));
        }
    }
    findings
}

fn claim_for(deciding: &mut Deciding<'_>, stage: StageId, convert: &Convert) -> Vec<Finding> {
    let Deciding { of, items, decisions, .. } = deciding;
    let mut known = Decisions::default();
    let (mut claimed, mut inexact) = (0, Vec::new());
    let mut is_f16 = false;
    let mut blocks = blocks::Blocks::of(&of.model, &of.classes);
    for (index, item) in items.numbered() {
        let Some(encoded) = &item.tensor.encoded else { continue };
        let is_targeted =
            convert.targets.is_empty() || convert.targets.iter().any(|target| item.hit_by(target));
        let is_taken = decisions[index].spec().is_some_and(|spec| spec.stage < stage);
        if !is_targeted || is_taken {
            continue;
        }
        claimed += 1;
        let exact = match encoded.matrix.exact() {
            Ok(exact) if exact.scheme.storage == Storage::Mxfp4 && convert.mxfp4 == Mxfp4Target::Fp8Block => {
                blocks.exact(index)
            }
            exact => exact,
        };
        match exact {
            Ok(exact) => {
                is_f16 |= item.tensor.dtype == Dtype::F16;
                let spec = QuantSpec {
                    stage,
                    scheme: exact.scheme,
                    observer: Observer::Minmax,
                    rounding: Rounding::Nearest,
                    activations: exact.activations,
                    is_relabelled: true,
                };
                let rule = Rule {
                    pointer: Some(format!("/stages/{stage}").into()),
                    text: "convert".into(),
                    reason: format!("re-labelled: {}", exact.because).into(),
                    origin: Origin::Target,
                };
                decisions[index] = known.of(Action::Quantize(Box::new(spec)), rule);
            }
            Err(why) => inexact.push((index, encoded.encoding.name(), why)),
        }
    }
    let place = || of.loaded.stage_place(stage);
    if claimed == 0 {
        let message = "`convert` converts nothing: no weight that it claims is stored as codes";
        let finding = Finding::error("plan::nothing-to-convert", message)
            .at_opt(place(), "claims no tensor of the model");
        return vec![finding.help(
            "Take it out of the recipe. `monoquant inspect` shows how the model's tensors are stored.",
        )];
    }
    let mut findings = Vec::new();
    let config = &of.model.config;
    if is_f16 && config.dtype().is_some_and(|dtype| dtype == "bfloat16") {
        findings.push(
            Finding::warning("plan::scales-narrowed", "scales are F16, and engines run this model in bfloat16")
                .at_opt(place(), "leaves them as they are")
                .help(
                    "vLLM casts scales to the model's type, which rounds them. With `dtype: float16` in `config.json` it keeps \
                     them as they are.",
                ),
        );
    }
    if inexact.is_empty() || convert.inexact == Inexact::Leave {
        return findings;
    }
    let names = inexact
        .iter()
        .take(LISTED)
        .map(|(index, encoding, why)| format!("  {} ({encoding}): {why}", of.model.tensors[*index].name));
    let more = inexact.len().saturating_sub(LISTED);
    let message = format!("codes of {} of {claimed} tensors cannot be re-labelled", inexact.len());
    let mut finding = Finding::error("plan::inexact", message)
        .at_opt(place(), "changes no number")
        .help("Why:")
        .help_lines(names);
    if more > 0 {
        finding = finding.help_lines([format!("  and {more} more")]);
    }
    findings.push(finding.help(
        "`inexact: leave` leaves them to a quantize stage, which rounds once more; what none claims is written as the \
         floating-point numbers that it means.",
    ));
    findings
}
