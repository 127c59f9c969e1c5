//! The `ignore` list of a config: every linear module that holds plain numbers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use indexmap::IndexSet;
use regex::RegexSet;

use crate::plan::compressed_tensors::QuantizedModule;
use crate::plan::compressed_tensors::names::{
    Cut, Quantized, below, escape_tail, in_list, is_renamed, layers_pattern,
};
use crate::plan::fused_modules::experts_parent;

/// The last words of the names of output heads. They are always ignored if no quantized module has such a name, even
/// if the file has no head (tied embeddings).
pub(crate) const HEADS: [&str; 5] = ["lm_head", "proj_out", "embed_out", "head", r"predictions\.decoder"];

/// Roles that are skipped as a whole, in the order in which they are written. An entry is written if it matches
/// something, and everything that it matches is skipped.
const IGNORED_ROLES: &[&str] = &[
    r".*(visual|vision|audio_tower|audio_encoder|image_tower|video_tower|code2wav).*",
    r"(.*\.)?vit\..*",
    r".*(multi_modal_projector|mm_projector|patch_merge|embed_audio).*",
    r"(.*\.)?mtp\..*",
    r".*(indexer|index_|compressor).*",
    r"(.*\.)?(gate|router|shared_expert_gate)$",
    r".*\.router\..*",
    r".*\.(in_proj_a|in_proj_b|in_proj_ba|b_proj|f_a_proj|f_b_proj|g_a_proj|g_b_proj)$",
    r".*(hyper_connection|\.ple\.).*",
    r".*\.per_layer_(input_gate|projection|model_projection)$",
];

/// The `ignore` list: first the skipped heads and roles, then parts of the model, then single modules.
pub(crate) fn ignore(quantized: &[QuantizedModule<'_>], left_alone: &[Cow<'_, str>]) -> Vec<String> {
    let known = Quantized::new(quantized);
    let is_free = |head: &&&str| !known.hits(&format!(r"(.*\.)?{head}$"));
    let heads: Vec<&str> = HEADS.iter().filter(is_free).copied().collect();
    let heads = (!heads.is_empty()).then(|| format!(r"(.*\.)?({})$", heads.join("|")));
    let roles: Vec<&str> = heads.as_deref().into_iter().chain(IGNORED_ROLES.iter().copied()).collect();
    let anchored: Vec<String> = roles.iter().map(|role| format!("^(?:{role})")).collect();
    let Ok(set) = RegexSet::new(&anchored) else { return Vec::new() };
    let mut hits_quantized = vec![false; roles.len()];
    for name in known.names() {
        for role in set.matches(name) {
            hits_quantized[role] = true;
        }
    }
    let mut used = vec![false; roles.len()];
    used[0] = heads.is_some();
    let mut single = Vec::new();
    for name in left_alone {
        match set.matches(name).iter().find(|role| !hits_quantized[*role]) {
            Some(role) => used[role] = true,
            None => single.push(name.as_ref()),
        }
    }
    let mut out: Vec<String> =
        roles.iter().zip(&used).filter(|(_, used)| **used).map(|(role, _)| format!("re:{role}")).collect();
    out.extend(parts(&known, &mut single));
    out.extend(ignore_single(&known, &single));
    out
}

/// Entries for parts of the model that nothing quantized is in, by the shortest names that lead to no quantized module. Modules that
/// are in no such part stay in `single`.
fn parts(quantized: &Quantized<'_>, single: &mut Vec<&str>) -> IndexSet<String> {
    let mut above: HashSet<&str> = HashSet::new();
    for name in quantized.names() {
        above.extend(names_above(name));
    }
    let hits = |pattern: &str| quantized.hits(pattern);
    let mut entries: BTreeMap<&str, Option<String>> = BTreeMap::new();
    single.retain(|name| {
        let cut = Cut::at_layer(name);
        let entry = match (names_above(name).find(|part| !above.contains(part)), cut) {
            // A part that engines rename as a whole may hold other parts in the engine than in the file. So its lists
            // are named.
            (Some(part), Some(cut)) if is_renamed(part) => {
                let list = &name[..name.len() - cut.rest.len() - cut.number.len() - 2];
                entries.entry(list).or_insert_with(|| in_list(&cut, None, ".*", &hits))
            }
            (Some(part), _) if !is_renamed(part) => {
                entries.entry(part).or_insert_with(|| below(part, ".*", &hits))
            }
            _ => &mut None,
        };
        entry.is_none()
    });
    entries.into_values().flatten().map(|entry| format!("re:{entry}")).collect()
}

/// The names above a module and outside its layer, the shortest first.
fn names_above(name: &str) -> impl Iterator<Item = &str> {
    let layer =
        Cut::at_layer(name).map_or(name.len(), |cut| name.len() - cut.rest.len() - cut.number.len() - 1);
    name[..layer].match_indices('.').map(|(at, _)| &name[..at])
}

/// Entries for modules that no role covers. There is one entry for all layers if the same tail is skipped in all of
/// them. The experts of a layer are one entry, under any names: vLLM looks them up as `experts.0.gate_proj` even if
/// the file has a stack.
fn ignore_single(quantized: &Quantized<'_>, single: &[&str]) -> IndexSet<String> {
    let hits = |pattern: &str| quantized.hits(pattern);
    let quantized_experts: HashSet<&str> = quantized.names().filter_map(experts_parent).collect();
    // The name that is ignored in place of a module's, if that is the one of its experts.
    fn experts_of<'m>(module: &'m str, quantized: &HashSet<&str>) -> Option<&'m str> {
        experts_parent(module).filter(|parent| !quantized.contains(parent))
    }
    let mut layers: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
    let mut out: IndexSet<String> = IndexSet::new();
    let mut add = |entry: String| _ = out.insert(entry);
    for module in single {
        let (name, end) =
            experts_of(module, &quantized_experts).map_or((*module, ""), |parent| (parent, r"\..*"));
        match Cut::at_layer(name) {
            Some(cut) => layers.entry((escape_tail(cut.rest) + end, cut.list)).or_default().push(module),
            None => {
                let last = escape_tail(name.rsplit('.').next().unwrap_or(name));
                let entry = format!(r"(.*\.)?{last}{end}$");
                add(if hits(&entry) { name.to_owned() } else { format!("re:{entry}") });
            }
        }
    }
    for ((tail, list), members) in layers {
        let in_all = format!(r".*\.{tail}$");
        if !hits(&in_all) {
            add(format!("re:{in_all}"));
            continue;
        }
        let cuts = || {
            members
                .iter()
                .filter_map(|module| Cut::at_layer(experts_of(module, &quantized_experts).unwrap_or(module)))
        };
        let numbers: Vec<&str> = cuts().map(|cut| cut.number).collect();
        let in_some = layers_pattern(list, &numbers, &tail);
        if !hits(&in_some) {
            add(format!("re:{in_some}"));
            continue;
        }
        // Another list has the same layers, so that what comes before the list is needed.
        let mut prefixes: BTreeMap<&str, Vec<(Cut<'_>, &str)>> = BTreeMap::new();
        for (cut, module) in cuts().zip(&members) {
            prefixes.entry(cut.prefix).or_default().push((cut, module));
        }
        for members in prefixes.into_values() {
            let numbers: Vec<&str> = members.iter().map(|(cut, _)| cut.number).collect();
            match in_list(&members[0].0, Some(&numbers), &format!("{tail}$"), &hits) {
                Some(entry) => add(format!("re:{entry}")),
                None => members.iter().for_each(|(_, module)| add((*module).to_owned())),
            }
        }
    }
    out
}
