//! Findings about decisions: group sizes that divide no row, fused modules that are split, stages that quantize nothing.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::engines;
use super::phases::{Classified, Deciding};
use super::select::{self, Rule};
use crate::finding::Finding;
use crate::ids::{StageId, TensorId};
use crate::layer::LayerType;
use crate::model::ModelFolder;
use crate::stage::export::{Format, Target};
use crate::stage::{SiblingPolicy, Stage};
use crate::text::units::counted;

pub(super) fn undivided_findings(
    deciding: &Deciding<'_>,
    undivided: &[crate::plan::fused_modules::Undivided],
) -> Vec<Finding> {
    // One finding per group size that a stage asks for.
    let mut asked: BTreeMap<(StageId, u64), Vec<&crate::plan::fused_modules::Undivided>> = BTreeMap::new();
    for one in undivided {
        let Some(spec) = deciding.decisions[one.tensor].spec() else { continue };
        asked.entry((spec.stage, one.group_size)).or_default().push(one);
    }
    asked
        .into_iter()
        .map(|((stage, size), layers)| undivided_finding(deciding.of, stage, size, &layers))
        .collect()
}

/// Lengths of rows, and names of layers of each, that one finding lists.
const LISTED: usize = 100;

fn undivided_finding(
    Classified { loaded, model, .. }: &Classified,
    stage: StageId,
    group_size: u64,
    undivided: &[&crate::plan::fused_modules::Undivided],
) -> Finding {
    let quantize = loaded.recipe.stages[stage].quantize();
    // Groups of such floats have the size of their format.
    let is_fixed = quantize.is_some_and(|quantize| quantize.floats().is_some());
    let place = match is_fixed {
        true => loaded.stage_place(stage),
        false => loaded.place(&format!("/stages/{stage}/group_size")),
    };
    let count = undivided.len();
    let mut finding = Finding::error(
        "plan::indivisible",
        format!(
            "groups of {group_size} do not divide the rows of {count} layer{}",
            if count == 1 { "" } else { "s" }
        ),
    )
    .at_opt(place, "must divide the length of every row");
    let lengths = by_length(model, undivided);
    let more = lengths.len().saturating_sub(LISTED);
    let lines = lengths.into_iter().take(LISTED).map(|(columns, (names, more))| {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("  {columns} columns: {}{more}", names.join(", "))
    });
    finding = finding.help("Rows that cannot be divided:").help_lines(lines);
    if more > 0 {
        finding = finding.help_lines([format!("  and {more} more lengths")]);
    }
    let shrunk = [128_u64, 64, 32, 16]
        .into_iter()
        .find(|size| *size < group_size && undivided.iter().all(|u| u.columns % size == 0));
    let advice = match shrunk {
        _ if is_fixed => "`indivisible: skip` leaves these layers alone.".to_owned(),
        Some(size) => format!(
            "`indivisible: shrink` would use groups of {size} for these layers, `channel` one scale per row, `skip` would skip \
             them."
        ),
        None => {
            "`indivisible: channel` would use one scale per row for these layers, `skip` would skip them."
                .to_owned()
        }
    };
    finding.help(advice)
}

/// The first names of the layers with rows of each length, and how many there are besides.
fn by_length<'m>(
    model: &'m ModelFolder,
    undivided: &[&crate::plan::fused_modules::Undivided],
) -> IndexMap<u64, (Vec<&'m str>, usize)> {
    let mut out: IndexMap<u64, (Vec<&str>, usize)> = IndexMap::new();
    for one in undivided {
        let (names, more) = out.entry(one.columns).or_default();
        match names.len() < LISTED {
            true => names.push(select::subject(&model.tensors[one.tensor])),
            false => *more += 1,
        }
    }
    out
}

/// One warning for each stage that quantizes weights which are codes already: how they are stored, and in how many bits.
pub(super) fn quantized_again(deciding: &Deciding<'_>) -> Vec<Finding> {
    let Deciding { of: Classified { loaded, model, .. }, decisions, .. } = deciding;
    /// All tensors of a stage, and how many of them are stored in each encoding with so many bits.
    type Counts<'m> = (usize, BTreeMap<(&'m str, u64), usize>);
    let mut stages: BTreeMap<StageId, Counts<'_>> = BTreeMap::new();
    for (index, tensor) in model.tensors.numbered() {
        let Some(spec) = decisions[index].spec().filter(|spec| !spec.is_relabelled) else { continue };
        let (all, stored) = stages.entry(spec.stage).or_default();
        *all += 1;
        if let (Some(encoding), Some(bits)) = (tensor.encoding(), tensor.code_bits()) {
            *stored.entry((encoding, bits)).or_default() += 1;
        }
    }
    let again = stages.into_iter().filter(|(_, (_, stored))| !stored.is_empty());
    again
        .map(|(stage, (all, stored))| {
            let count: usize = stored.values().sum();
            let kinds: Vec<String> = stored.iter().map(|((encoding, bits), _)| format!("{bits} bits ({encoding})")).collect();
            let message = format!(
                "{count} of {} quantized here {} codes of {} already",
                counted(all, "tensor"),
                if count == 1 { "holds" } else { "hold" },
                kinds.join(", ")
            );
            Finding::warning("plan::quantized-twice", message)
                .at_opt(loaded.stage_place(stage), "quantizes what is quantized")
                .help(
                    "The errors of both add up, and only those of the second are measured: against what the codes mean. Take the \
                     original model if there is one in BF16, F16 or F32.",
                )
        })
        .collect()
}

/// The key by which two splits count as the same mistake: the engines' name of the group, and the rules that split
/// it.
type SplitKey<'g> = (&'g str, Vec<Rule>);

pub(super) fn split_findings(deciding: &Deciding<'_>) -> Vec<Finding> {
    let Deciding { of: Classified { loaded, .. }, items, decisions, fused_modules: groups, .. } = deciding;
    let targets_vllm = loaded.recipe.stages.iter().any(|stage| {
        matches!(stage, Stage::Export(export) if export.format == Format::CompressedTensors
            && export.target != Target::Transformers)
    });
    let mut found: Vec<(SplitKey<'_>, Finding, usize)> = Vec::new();
    for split in crate::plan::fused_modules::splits(groups, decisions) {
        let group = &groups[split.group];
        let parent = group.parent(items);
        let stage = split
            .examples
            .iter()
            .filter_map(|&index| decisions[index].spec().map(|spec| spec.stage))
            .max()
            .unwrap_or(StageId::new(0));
        let policy = loaded.recipe.stages[stage].quantize().map_or(SiblingPolicy::Error, |q| q.siblings());
        if policy == SiblingPolicy::Ignore || (!targets_vllm && !group.are_experts()) {
            continue;
        }
        // The same rules split the same group in every layer: one finding for all of them, in whatever order the members lie
        // in the files.
        let mut rules: Vec<Rule> =
            split.examples.iter().map(|&index| decisions[index].rule.clone()).collect();
        rules.sort_by(|a, b| (&a.pointer, &a.text).cmp(&(&b.pointer, &b.text)));
        let key = (group.fused, rules);
        if let Some((_, _, count)) = found.iter_mut().find(|(known, _, _)| *known == key) {
            *count += 1;
            continue;
        }
        let what = |index: TensorId| match decisions[index].spec() {
            Some(spec) => spec.scheme.to_string(),
            None => "skipped".to_owned(),
        };
        let parts: Vec<String> = split
            .examples
            .iter()
            .map(|&index| {
                let subject = items[index].subject;
                let last = subject.strip_prefix(parent).unwrap_or(subject);
                format!("`{}` is {}", last.trim_start_matches('.'), what(index))
            })
            .collect();
        let message = format!("parts of `{parent}.{}` are quantized differently", group.fused);
        let message = message.replace(".experts.experts", ".experts");
        let mut finding = match policy {
            SiblingPolicy::Error => Finding::error("plan::split-siblings", message),
            _ => Finding::warning("plan::split-siblings", message),
        };
        for (&index, part) in split.examples.iter().zip(&parts) {
            let pointer = decisions[index].rule.pointer.as_deref();
            finding = finding.at_opt(pointer.and_then(|pointer| loaded.place(pointer)), part.clone());
        }
        let who = if group.are_experts() { "vLLM and transformers make" } else { engines::fuser(loaded) };
        finding = finding.help(format!(
            "{}. {who} one module of them, so they must share one scheme or all be skipped.",
            parts.join(", ")
        ));
        finding = finding
            .help("`siblings: warn` or `ignore` on the quantize stage lets it through for other engines.");
        found.push((key, finding, 1));
    }
    found
        .into_iter()
        .map(|(_, mut finding, count)| {
            if count > 1 {
                let more = crate::text::units::counted(count - 1, "more layer");
                finding.message = format!("{}, and so in {more}", finding.message);
            }
            finding
        })
        .collect()
}

pub(super) fn idle_stages(deciding: &Deciding<'_>) -> Vec<Finding> {
    let Deciding { of: Classified { loaded, .. }, items, stages, decisions, .. } = deciding;
    let transposed = items.iter().filter(|item| item.is(LayerType::Conv1D)).count();
    stages
        .iter()
        .filter(|stage| {
            !decisions.iter().any(|d| d.spec().is_some_and(|spec| spec.stage == stage.index))
        })
        .map(|stage| {
            let name = loaded.recipe.stages[stage.index].name();
            let finding = Finding::error("plan::nothing-to-quantize", format!("`{name}` quantizes nothing"))
                .at_opt(loaded.stage_place(stage.index), "claims no tensor of the model")
                .help(
                    "Its targets are all skipped, or claimed by a stage before it. `monoquant inspect` shows the model's layer \
                     types, `monoquant explain RECIPE TENSOR` why a tensor is skipped.",
                );
            if transposed == 0 {
                return finding;
            }
            finding.help(format!(
                "{transposed} layers are Conv1D, GPT-2's transposed linear layers, of which no engine has a quantized form: \
                 `targets: [Conv1D]` takes them for an export with `format: dequantized`."
            ))
        })
        .collect()
}
