//! Modules that engines fuse into one: they share one decision, or the engine refuses or misreads the checkpoint.
//!
//! The table is what vLLM's `packed_modules_mapping` and its models' own mappers fuse (llama, qwen, deepseek, kimi, bert,
//! whisper and others); transformers fuses experts only. A default skip never splits a group; a recipe that does is told.

use std::collections::{BTreeMap, HashMap};

use super::select::{Action, Decision, Item, Rule, Treatment};
use crate::layer::LayerType;
use crate::quant::Granularity;
use crate::stage::Indivisible;

/// Modules of one parent that become one module in an engine.
struct Fusion {
    parts: &'static [&'static str],
    fused: &'static str,
    /// A sibling that must be there for the fusion to apply.
    needs: Option<&'static str>,
}

/// First match wins, so the wider fusions of special layers come first.
const FUSIONS: &[Fusion] = &[
    Fusion {
        parts: &["q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj", "g_proj", "g_a_proj"],
        fused: "in_proj_qkvgfab",
        needs: Some("f_a_proj"),
    },
    Fusion {
        parts: &["q_proj", "k_proj", "v_proj", "index_q_proj", "index_k_proj"],
        fused: "qkv_proj",
        needs: Some("index_q_proj"),
    },
    Fusion { parts: &["q_proj", "k_proj", "v_proj"], fused: "qkv_proj", needs: None },
    Fusion { parts: &["query", "key", "value"], fused: "qkv_proj", needs: None },
    Fusion { parts: &["gate_proj", "up_proj"], fused: "gate_up_proj", needs: None },
    Fusion { parts: &["w1", "w3"], fused: "w13", needs: None },
    Fusion { parts: &["q_a_proj", "kv_a_proj_with_mqa"], fused: "fused_qkv_a_proj", needs: None },
    Fusion { parts: &["in_proj_qkv", "in_proj_z"], fused: "in_proj_qkvz", needs: None },
    Fusion { parts: &["in_proj_b", "in_proj_a"], fused: "in_proj_ba", needs: None },
    Fusion { parts: &["wq_a", "wkv"], fused: "fused_wqa_wkv", needs: None },
];

/// Tensors of which an engine makes one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Siblings {
    /// The parent module, such as `model.layers.0.self_attn`.
    pub parent: String,
    /// What engines call the fused module.
    pub fused: &'static str,
    /// Indices of the members among the model's tensors, in their order.
    pub members: Vec<usize>,
}

impl Siblings {
    /// Whether these are the experts of a layer.
    #[must_use]
    pub fn are_experts(&self) -> bool {
        self.fused == "experts"
    }
}

/// The parent of all experts of a layer: the name up to and with the segment `experts`.
#[must_use]
pub fn experts_parent(subject: &str) -> Option<&str> {
    let start = if subject.starts_with("experts.") { 0 } else { subject.find(".experts.")? + 1 };
    Some(&subject[..start + "experts".len()])
}

/// The groups of fused modules in a model, in the order of their first members. Groups of one are left out.
pub(super) fn groups(items: &[Item<'_>]) -> Vec<Siblings> {
    let mut children: HashMap<&str, Vec<(&str, usize)>> = HashMap::new();
    let mut groups: Vec<Siblings> = Vec::new();
    let mut experts: HashMap<&str, usize> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let is_matrix = item.class.kind == LayerType::Experts
            || (item.tensor.parameter() == "weight" && item.tensor.shape.len() == 2);
        if !is_matrix {
            continue;
        }
        if let Some(parent) = experts_parent(item.subject)
            .or_else(|| (item.class.kind == LayerType::Experts).then(|| item.tensor.module()))
        {
            let group = *experts.entry(parent).or_insert_with(|| {
                groups.push(Siblings { parent: parent.to_owned(), fused: "experts", members: Vec::new() });
                groups.len() - 1
            });
            groups[group].members.push(index);
            continue;
        }
        // Gemma 4 puts the weight one level down, in `q_proj.linear`; adapters do, in `q_proj.base_layer`.
        let below = [".linear", ".base_layer"].iter().find_map(|end| item.subject.strip_suffix(end));
        let path = below.unwrap_or(item.subject);
        let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
        children.entry(parent).or_default().push((last, index));
    }
    let mut fused: Vec<Siblings> = Vec::new();
    for (parent, list) in children {
        let mut taken = vec![false; list.len()];
        for fusion in FUSIONS {
            let applies = fusion.needs.is_none_or(|needs| list.iter().any(|(last, _)| *last == needs));
            if !applies {
                continue;
            }
            let mut members = Vec::new();
            for (position, (last, index)) in list.iter().enumerate() {
                // Whisper's cross-attention fuses k and v alone: q sees another input.
                let apart = *last == "q_proj" && parent.ends_with("encoder_attn");
                if !taken[position] && fusion.parts.contains(last) && !apart {
                    taken[position] = true;
                    members.push(*index);
                }
            }
            if members.len() > 1 {
                members.sort_unstable();
                fused.push(Siblings { parent: parent.to_owned(), fused: fusion.fused, members });
            }
        }
    }
    groups.retain(|group| group.members.len() > 1);
    groups.extend(fused);
    groups.sort_by_key(|group| group.members[0]);
    groups
}

/// Leaves a whole group alone where a default skip would leave a part of it alone.
pub(super) fn keep_whole_by_default(groups: &[Siblings], items: &[Item<'_>], decisions: &mut [Decision]) {
    for group in groups {
        let quantized = group.members.iter().any(|&index| decisions[index].treatment().is_some());
        let by_default = group
            .members
            .iter()
            .find(|&&index| decisions[index].treatment().is_none() && decisions[index].rule.is_default_skip)
            .copied();
        let (true, Some(first)) = (quantized, by_default) else { continue };
        let cause = decisions[first].rule.clone();
        for &index in &group.members {
            if decisions[index].treatment().is_some() {
                decisions[index] = Decision {
                    action: Action::Keep,
                    rule: Rule {
                        pointer: None,
                        text: format!("fused with {} ({})", items[first].subject, cause.text),
                        reason: format!("fused with a module left alone: {}", cause.reason),
                        is_default_skip: true,
                    },
                };
            }
        }
    }
}

/// A group whose members are not treated alike.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    pub group: usize,
    /// One member of each treatment found: the index of the tensor.
    pub examples: Vec<usize>,
}

/// The groups whose members are not treated alike.
pub(super) fn splits(groups: &[Siblings], decisions: &[Decision]) -> Vec<Split> {
    let alike = |a: &Decision, b: &Decision| match (&a.action, &b.action) {
        (Action::Keep, Action::Keep) => true,
        (Action::Quantize(a), Action::Quantize(b)) => a.scheme == b.scheme && a.activations == b.activations,
        _ => false,
    };
    let mut found = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let mut examples: Vec<usize> = Vec::new();
        for &member in &group.members {
            if !examples.iter().any(|&example| alike(&decisions[example], &decisions[member])) {
                examples.push(member);
            }
        }
        if examples.len() > 1 {
            found.push(Split { group: index, examples });
        }
    }
    found
}

/// A tensor whose rows the group size does not divide, and that the recipe wants refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undivided {
    pub tensor: usize,
    pub columns: u64,
    pub group_size: u64,
}

/// Applies `indivisible` to every tensor whose row length the group size does not divide, to whole groups of siblings at once.
///
/// `columns` gives the row length of a tensor's matrices. Returns the tensors that are to be refused.
pub(super) fn resolve_indivisible(
    groups: &[Siblings],
    decisions: &mut [Decision],
    columns: &dyn Fn(usize) -> Vec<u64>,
    parameters: &dyn Fn(usize) -> (Indivisible, String),
) -> Vec<Undivided> {
    let mut together: Vec<Vec<usize>> = groups.iter().map(|group| group.members.clone()).collect();
    let mut grouped = vec![false; decisions.len()];
    for member in together.iter().flatten() {
        grouped[*member] = true;
    }
    together.extend((0..decisions.len()).filter(|&index| !grouped[index]).map(|index| vec![index]));
    // What one stage says of its groups is no word on the modules of another, even where an engine fuses them.
    let stage_of = |index: usize| {
        let treatment = decisions[index].treatment()?;
        matches!(treatment.scheme.granularity, Granularity::Group(_)).then_some(treatment.stage)
    };
    let together: Vec<Vec<usize>> = together
        .into_iter()
        .flat_map(|members| {
            let mut by_stage: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for index in members {
                if let Some(stage) = stage_of(index) {
                    by_stage.entry(stage).or_default().push(index);
                }
            }
            by_stage.into_values()
        })
        .collect();
    let mut refused = Vec::new();
    for members in &together {
        let mut worst: Option<(usize, u64, usize)> = None;
        let mut lengths = Vec::new();
        for &index in members {
            let Some(treatment) = decisions[index].treatment() else { continue };
            let Granularity::Group(size) = treatment.scheme.granularity else { continue };
            for length in columns(index) {
                lengths.push(length);
                if length % size as u64 != 0 && worst.is_none() {
                    worst = Some((index, length, size));
                }
            }
        }
        let Some((_, length, size)) = worst else { continue };
        let stage = worst.and_then(|(index, ..)| decisions[index].treatment().map(|t| t.stage)).unwrap_or(0);
        let (policy, pointer) = parameters(stage);
        let change = |treatment: &Treatment| match policy {
            Indivisible::Error => None,
            Indivisible::Skip => Some(Action::Keep),
            Indivisible::Channel => {
                let mut changed = treatment.clone();
                changed.scheme.granularity = Granularity::Channel;
                Some(Action::Quantize(changed))
            }
            Indivisible::Shrink => [128_u64, 64, 32, 16]
                .into_iter()
                .find(|shrunk| *shrunk <= size as u64 && lengths.iter().all(|length| length % shrunk == 0))
                .map(|shrunk| {
                    let mut changed = treatment.clone();
                    changed.scheme.granularity = Granularity::Group(shrunk as usize);
                    Action::Quantize(changed)
                }),
        };
        for &index in members {
            let Some(treatment) = decisions[index].treatment() else { continue };
            match change(treatment) {
                Some(action) => {
                    let word = match policy {
                        Indivisible::Skip => "skip",
                        Indivisible::Channel => "channel",
                        _ => "shrink",
                    };
                    let rule = Rule {
                        pointer: Some(pointer.clone()),
                        text: format!("indivisible: {word}"),
                        reason: format!("{length} columns are no multiple of {size}"),
                        is_default_skip: false,
                    };
                    let rule = if action == Action::Keep { rule } else { decisions[index].rule.clone() };
                    decisions[index] = Decision { action, rule };
                }
                None => {
                    let group_size = size as u64;
                    let undivided = columns(index).into_iter().find(|length| length % group_size != 0);
                    refused.extend(undivided.map(|columns| Undivided { tensor: index, columns, group_size }));
                }
            }
        }
    }
    refused.sort_by_key(|undivided| undivided.tensor);
    refused
}
