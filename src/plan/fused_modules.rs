//! Modules that engines fuse into one: they share one decision, or the engine refuses or misreads the checkpoint.
//!
//! The table lists the fusions of vLLM's `packed_modules_mapping` and of its models' own mappers (llama, qwen,
//! deepseek, kimi, bert, whisper and others); transformers fuses experts only. A default skip never splits a group. A
//! recipe that does gets a finding.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::ids::{IdVec, StageId, TensorId};
use crate::layer::LayerType;
use crate::plan::select::{Action, Decision, Decisions, Item, Origin, QuantSpec, Rule};
use crate::quant::Granularity;
use crate::stage::Indivisible;
use crate::threads;

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

/// The name of the module that engines make of a gate and an up projection, by the last part of the name of either.
pub(crate) fn fused_name(last: &str) -> Option<&'static str> {
    let mut pairs = FUSIONS.iter().filter(|fusion| matches!(fusion.fused, "gate_up_proj" | "w13"));
    pairs.find(|fusion| fusion.parts.contains(&last)).map(|fusion| fusion.fused)
}

/// Tensors of which an engine makes one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedModules {
    /// The engines' name for the fused module.
    pub fused: &'static str,
    /// The members, in the order of the model's tensors.
    pub members: Box<[TensorId]>,
}

impl FusedModules {
    /// Whether the fused modules are the experts of a layer.
    #[must_use]
    pub fn are_experts(&self) -> bool {
        self.fused == EXPERTS
    }

    /// The members, in the order of the model's tensors.
    pub fn members(&self) -> impl Iterator<Item = TensorId> {
        self.members.iter().copied()
    }

    /// The parent module, such as `model.layers.0.self_attn`.
    pub(crate) fn parent<'m>(&self, items: &IdVec<TensorId, Item<'m>>) -> &'m str {
        let first = self.members().next().map(|first| &items[first]);
        first.map_or(
            "",
            |item| if self.are_experts() { experts_of(item).unwrap_or("") } else { path_of(item).0 },
        )
    }
}

const EXPERTS: &str = "experts";

/// The parent of all experts of a layer: the name up to and including the segment `experts`.
#[must_use]
pub(crate) fn experts_parent(subject: &str) -> Option<&str> {
    let start = if subject.starts_with("experts.") { 0 } else { subject.find(".experts.")? + 1 };
    Some(&subject[..start + "experts".len()])
}

/// The parent of the experts that an item is of, if it is of experts.
fn experts_of<'m>(item: &Item<'m>) -> Option<&'m str> {
    experts_parent(item.subject)
        .or_else(|| (item.class.kind == LayerType::Experts).then(|| item.tensor.module()))
}

/// The parent of an item and its name below that. Gemma 4 puts the weight one level down, in `q_proj.linear`; adapters do, in
/// `q_proj.base_layer`.
fn path_of<'m>(item: &Item<'m>) -> (&'m str, &'m str) {
    let below = [".linear", ".base_layer"].iter().find_map(|end| item.subject.strip_suffix(end));
    let path = below.unwrap_or(item.subject);
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The groups of fused modules in a model, in the order of their first members. Groups of one are left out.
pub(crate) fn groups(items: &IdVec<TensorId, Item<'_>>) -> Vec<FusedModules> {
    let (mut experts, mut others): (Vec<TensorId>, Vec<TensorId>) = (Vec::new(), Vec::new());
    for (index, item) in items.numbered() {
        let is_matrix = item.class.kind == LayerType::Experts
            || (item.tensor.parameter() == "weight" && item.tensor.shape.len() == 2);
        if is_matrix {
            if experts_of(item).is_some() { experts.push(index) } else { others.push(index) }
        }
    }
    let item = |index: TensorId| &items[index];
    let mut groups: Vec<FusedModules> = Vec::new();
    threads::sort_by(&mut experts, |&a, &b| experts_of(item(a)).cmp(&experts_of(item(b))));
    for members in experts.chunk_by(|&a, &b| experts_of(item(a)) == experts_of(item(b))) {
        if members.len() > 1 {
            groups.push(FusedModules { fused: EXPERTS, members: members.into() });
        }
    }
    threads::sort_by(&mut others, |&a, &b| path_of(item(a)).0.cmp(path_of(item(b)).0));
    for children in others.chunk_by(|&a, &b| path_of(item(a)).0 == path_of(item(b)).0) {
        let last = |index: TensorId| path_of(item(index)).1;
        let mut taken = vec![false; children.len()];
        for fusion in FUSIONS {
            let applies = fusion.needs.is_none_or(|needs| children.iter().any(|&child| last(child) == needs));
            if !applies {
                continue;
            }
            let mut members: Vec<TensorId> = Vec::new();
            for (&child, taken) in children.iter().zip(&mut taken) {
                // Whisper's cross-attention fuses k and v alone: q sees another input.
                let apart = last(child) == "q_proj" && path_of(item(child)).0.ends_with("encoder_attn");
                if !*taken && fusion.parts.contains(&last(child)) && !apart {
                    *taken = true;
                    members.push(child);
                }
            }
            if members.len() > 1 {
                groups.push(FusedModules { fused: fusion.fused, members: members.into() });
            }
        }
    }
    groups.sort_by_key(|group| group.members[0]);
    groups
}

/// Skips a whole group if a default skip would skip a part of it.
pub(crate) fn keep_whole_by_default(
    groups: &[FusedModules],
    items: &IdVec<TensorId, Item<'_>>,
    decisions: &mut IdVec<TensorId, Decision>,
) {
    let mut reasons: HashMap<Arc<str>, Arc<str>> = HashMap::new();
    for group in groups {
        let quantized = group.members().any(|index| decisions[index].spec().is_some());
        let by_default = group.members().find(|&index| {
            decisions[index].spec().is_none() && decisions[index].rule.origin == Origin::BuiltIn
        });
        let (true, Some(first)) = (quantized, by_default) else { continue };
        let cause = decisions[first].rule.clone();
        let reason = reasons
            .entry(Arc::clone(&cause.reason))
            .or_insert_with(|| format!("fused with a skipped module: {}", cause.reason).into());
        let rule = Rule {
            pointer: None,
            text: format!("fused with {} ({})", items[first].subject, cause.text).into(),
            reason: Arc::clone(reason),
            origin: Origin::BuiltIn,
        };
        let decision = Decision::new(Action::Keep, rule);
        for index in group.members() {
            if decisions[index].spec().is_some() {
                decisions[index] = decision.clone();
            }
        }
    }
}

/// A group whose members are not treated alike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    pub group: usize,
    /// One member per action found.
    pub examples: Vec<TensorId>,
}

/// The groups whose members are not treated alike.
pub(crate) fn splits(
    groups: &[FusedModules],
    decisions: &IdVec<TensorId, Decision>,
) -> impl Iterator<Item = Split> {
    let alike = |a: &Decision, b: &Decision| match (&a.action, &b.action) {
        (Action::Keep, Action::Keep) => true,
        (Action::Quantize(a), Action::Quantize(b)) => a.scheme == b.scheme && a.activations == b.activations,
        _ => false,
    };
    groups.iter().enumerate().filter_map(move |(index, group)| {
        let mut examples: Vec<TensorId> = Vec::new();
        for member in group.members() {
            if !examples.iter().any(|&example| alike(&decisions[example], &decisions[member])) {
                examples.push(member);
            }
        }
        (examples.len() > 1).then_some(Split { group: index, examples })
    })
}

/// A tensor whose row length is not divisible by the group size, and that the recipe wants refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undivided {
    pub tensor: TensorId,
    pub columns: u64,
    pub group_size: u64,
}

/// Applies `indivisible` to every tensor whose row length is not divisible by the group size. A whole group of fused
/// modules is treated at once.
///
/// `columns` gives the row lengths of a tensor's matrices. Returns the tensors that are to be refused.
pub(crate) fn resolve_indivisible(
    groups: &[FusedModules],
    decisions: &mut IdVec<TensorId, Decision>,
    columns: &dyn Fn(TensorId) -> Vec<u64>,
    parameters: &dyn Fn(StageId) -> (Indivisible, String),
) -> Vec<Undivided> {
    let mut is_grouped = decisions.map(|_| false);
    for member in groups.iter().flat_map(FusedModules::members) {
        is_grouped[member] = true;
    }
    let mut resolver =
        Resolver { decisions, columns, parameters, known: Decisions::default(), refused: Vec::new() };
    for group in groups {
        // What one stage says of its groups is no word on the modules of another, even where an engine fuses them.
        let mut by_stage: BTreeMap<StageId, Vec<TensorId>> = BTreeMap::new();
        for index in group.members() {
            if let Some(stage) = stage_of_groups(&resolver.decisions[index]) {
                by_stage.entry(stage).or_default().push(index);
            }
        }
        by_stage.into_values().for_each(|members| resolver.resolve(&members));
    }
    for index in is_grouped.ids().filter(|&index| !is_grouped[index]) {
        if stage_of_groups(&resolver.decisions[index]).is_some() {
            resolver.resolve(&[index]);
        }
    }
    let mut refused = resolver.refused;
    refused.sort_by_key(|undivided| undivided.tensor);
    refused
}

/// The stage that quantizes a tensor in groups.
fn stage_of_groups(decision: &Decision) -> Option<StageId> {
    let spec = decision.spec()?;
    matches!(spec.scheme.granularity, Granularity::Group(_)).then_some(spec.stage)
}

/// Applies `indivisible`.
struct Resolver<'a> {
    decisions: &'a mut IdVec<TensorId, Decision>,
    columns: &'a dyn Fn(TensorId) -> Vec<u64>,
    parameters: &'a dyn Fn(StageId) -> (Indivisible, String),
    known: Decisions,
    refused: Vec<Undivided>,
}

impl Resolver<'_> {
    /// Treats tensors of one stage of which an engine makes one module, or one that stands alone.
    fn resolve(&mut self, members: &[TensorId]) {
        let mut worst: Option<(StageId, u64, usize)> = None;
        let mut lengths = Vec::new();
        for &index in members {
            let Some(spec) = self.decisions[index].spec() else { continue };
            let Granularity::Group(size) = spec.scheme.granularity else { continue };
            for length in (self.columns)(index) {
                lengths.push(length);
                if length % size as u64 != 0 && worst.is_none() {
                    worst = Some((spec.stage, length, size));
                }
            }
        }
        let Some((stage, length, size)) = worst else { return };
        let (policy, pointer) = (self.parameters)(stage);
        let change = |spec: &QuantSpec| match policy {
            Indivisible::Error => None,
            Indivisible::Skip => Some(Action::Keep),
            Indivisible::Channel => {
                let mut changed = spec.clone();
                changed.scheme.granularity = Granularity::Channel;
                Some(Action::Quantize(Box::new(changed)))
            }
            Indivisible::Shrink => [128_u64, 64, 32, 16]
                .into_iter()
                .find(|shrunk| *shrunk <= size as u64 && lengths.iter().all(|length| length % shrunk == 0))
                .map(|shrunk| {
                    let mut changed = spec.clone();
                    changed.scheme.granularity = Granularity::Group(shrunk as usize);
                    Action::Quantize(Box::new(changed))
                }),
        };
        for &index in members {
            let Some(spec) = self.decisions[index].spec() else { continue };
            match change(spec) {
                Some(Action::Keep) => {
                    let rule = Rule {
                        pointer: Some(pointer.as_str().into()),
                        text: "indivisible: skip".into(),
                        reason: format!("{length} columns are no multiple of {size}").into(),
                        origin: Origin::Skip,
                    };
                    self.decisions[index] = self.known.of(Action::Keep, rule);
                }
                Some(action) => {
                    self.decisions[index] = self.known.of(action, self.decisions[index].rule.clone())
                }
                None => {
                    let group_size = size as u64;
                    let undivided = (self.columns)(index).into_iter().find(|length| length % group_size != 0);
                    self.refused.extend(undivided.map(|columns| Undivided {
                        tensor: index,
                        columns,
                        group_size,
                    }));
                }
            }
        }
    }
}
