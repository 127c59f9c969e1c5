//! The `quantization_config` of the compressed-tensors format: what vLLM, SGLang and transformers are told.
//!
//! transformers matches `targets` and `ignore` against its own module tree, which for several families is named differently
//! from the file, and takes regexes in alphabetical order; vLLM takes them in file order and tries fused names first. So
//! targets are disjoint, entries are the class `Linear` or regexes over a name's tail, anchored with a dot before and `$`
//! after, and every linear module left alone is in `ignore`, the head even where the file has none (tied embeddings).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use regex::{Regex, RegexSet};
use serde_json::{Map, Value, json};

use crate::plan::Treatment;
use crate::plan::siblings::experts_parent;
use crate::quant::{Bits, Granularity, Scheme, Storage};
use crate::stage::ActivationScheme;

/// The version of compressed-tensors whose layout is written. No loader checks it.
const VERSION: &str = "0.19.0";

/// Roles that are left alone as a whole, in the order in which they are written. An entry is written where it hits something
/// and everything that it hits is left alone; the first one, the heads', always where nothing quantized is hit.
const IGNORED_ROLES: &[&str] = &[
    r"(.*\.)?(lm_head|proj_out|embed_out|head|predictions\.decoder)$",
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

/// A module of the output that holds codes.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedModule<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How it was quantized.
    pub treatment: &'a Treatment,
}

/// The `quantization_config` for modules that are quantized and linear modules that are left alone.
#[must_use]
pub fn quantization_config(quantized: &[QuantizedModule<'_>], left_alone: &[&str]) -> Value {
    let mut schemes: Vec<(Scheme, ActivationScheme)> = Vec::new();
    let mut group_of: Vec<(&str, usize)> = Vec::with_capacity(quantized.len());
    for module in quantized {
        let key = (module.treatment.scheme, module.treatment.activations);
        let group = schemes.iter().position(|scheme| config_key(scheme) == config_key(&key));
        let group = group.unwrap_or_else(|| {
            schemes.push(key);
            schemes.len() - 1
        });
        group_of.push((module.name, group));
    }
    let targets = targets(&group_of, schemes.len());
    let mut groups = Map::new();
    for (index, ((scheme, activations), targets)) in schemes.iter().zip(targets).enumerate() {
        groups.insert(
            format!("group_{index}"),
            json!({
                "targets": targets,
                "weights": weights(scheme),
                "input_activations": input_activations(*activations),
                "output_activations": null,
                "format": format_name(scheme.storage),
            }),
        );
    }
    let formats: BTreeSet<&str> = schemes.iter().map(|(scheme, _)| format_name(scheme.storage)).collect();
    let format = match formats.first() {
        Some(only) if formats.len() == 1 => only,
        _ => "mixed-precision",
    };
    let names: Vec<&str> = quantized.iter().map(|module| module.name).collect();
    json!({
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": format,
        "config_groups": groups,
        "ignore": ignore(&names, left_alone),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "version": VERSION,
    })
}

/// What of a scheme the config can tell apart: loaders take the scales' type from the file.
fn config_key(key: &(Scheme, ActivationScheme)) -> (Bits, bool, Granularity, Storage, ActivationScheme) {
    let (scheme, activations) = key;
    (scheme.bits, scheme.symmetric, scheme.granularity, scheme.storage, *activations)
}

/// The name of a storage in the config.
#[must_use]
pub fn format_name(storage: Storage) -> &'static str {
    match storage {
        Storage::Packed => "pack-quantized",
        Storage::Plain => "int-quantized",
    }
}

fn weights(scheme: &Scheme) -> Value {
    let (strategy, group_size) = match scheme.granularity {
        Granularity::Group(size) => ("group", json!(size)),
        Granularity::Channel => ("channel", Value::Null),
        Granularity::Tensor => ("tensor", Value::Null),
    };
    json!({
        "num_bits": scheme.bits.count(),
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": false,
        "actorder": null,
        "block_structure": null,
        "observer": null,
        "observer_kwargs": {},
    })
}

fn input_activations(activations: ActivationScheme) -> Value {
    match activations {
        ActivationScheme::None => Value::Null,
        ActivationScheme::DynamicToken => json!({
            "num_bits": 8,
            "type": "int",
            "symmetric": true,
            "strategy": "token",
            "group_size": null,
            "dynamic": true,
            "actorder": null,
            "block_structure": null,
            "observer": null,
            "observer_kwargs": {},
        }),
    }
}

/// A module's name cut at its layer: the word before the layer's number, the number, and what comes after.
/// `experts.7.` counts as no layer.
fn cut_at_layer(name: &str) -> Option<((&str, &str), &str)> {
    let mut start = 0;
    let mut before = "";
    for segment in name.split('.') {
        let is_number = !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && before != "experts" {
            let rest = name[start + segment.len()..].strip_prefix('.')?;
            return Some(((before, segment), rest));
        }
        start += segment.len() + 1;
        before = segment;
    }
    None
}

/// A name as a regular expression in which every expert's number is any number. What Granite, Falcon and Jamba call `mamba`
/// is `mixer` in vLLM.
fn escape_tail(tail: &str) -> String {
    let mut out = String::new();
    let mut before = "";
    for (index, segment) in tail.split('.').enumerate() {
        if index > 0 {
            out.push_str(r"\.");
        }
        if before == "experts" && segment.bytes().all(|byte| byte.is_ascii_digit()) {
            out.push_str(r"\d+");
        } else if segment == "mamba" {
            out.push_str("(mamba|mixer)");
        } else {
            out.push_str(&regex::escape(segment).replace(r"\-", "-"));
        }
        before = segment;
    }
    out
}

/// The targets of each group: the class for a single one, else regexes over tails of which no two groups' overlap.
fn targets(modules: &[(&str, usize)], groups: usize) -> Vec<Vec<String>> {
    if groups == 1 {
        let mut targets = vec!["Linear".to_owned()];
        targets.extend(heads(modules));
        return vec![targets];
    }
    let mut tails: BTreeMap<String, Tail<'_>> = BTreeMap::new();
    for (name, group) in modules {
        let (layer, rest) = match cut_at_layer(name) {
            Some((layer, rest)) => (Some(layer), rest),
            None => (None, *name),
        };
        let tail = tails.entry(escape_tail(rest)).or_default();
        tail.groups.insert(*group);
        tail.members.push((*group, layer));
    }
    let patterns: Vec<&String> = tails.keys().collect();
    let mut out = vec![BTreeSet::new(); groups];
    for (pattern, tail) in &tails {
        if tail.groups.len() == 1 {
            let group = tail.members[0].0;
            let foreign = |shorter: &str| {
                patterns
                    .iter()
                    .any(|other| ends_with_segments(other, shorter) && tails[*other].groups != tail.groups)
            };
            out[group].insert(format!(r"re:(.*\.)?{}$", shortest_tail(pattern, foreign)));
            continue;
        }
        let mut layers: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
        for (group, layer) in &tail.members {
            if let Some((word, number)) = layer {
                layers.entry((*group, word)).or_default().push(number);
            }
        }
        for ((group, word), numbers) in layers {
            out[group].insert(format!("re:{}", layers_pattern(word, numbers, pattern)));
        }
    }
    out.into_iter().map(|set| set.into_iter().collect()).collect()
}

/// Targets for quantized output heads: vLLM's class of them is no `Linear`, so they are named.
fn heads(modules: &[(&str, usize)]) -> BTreeSet<String> {
    let Ok(head) = Regex::new(&format!("^(?:{})", IGNORED_ROLES[0])) else { return BTreeSet::new() };
    let heads = modules.iter().filter(|(name, _)| head.is_match(name));
    heads
        .map(|(name, _)| format!(r"re:(.*\.)?{}$", escape_tail(name.rsplit('.').next().unwrap_or(name))))
        .collect()
}

/// A regular expression for one tail in some layers.
fn layers_pattern(word: &str, mut numbers: Vec<&str>, tail: &str) -> String {
    numbers.sort_by_key(|number| (number.len(), *number));
    numbers.dedup();
    let numbers = match numbers.as_slice() {
        [only] => (*only).to_owned(),
        several => format!("({})", several.join("|")),
    };
    let word = if word.is_empty() { String::new() } else { format!(r"{}\.", regex::escape(word)) };
    format!(r"(.*\.)?{word}{numbers}\.{tail}$")
}

#[derive(Default)]
struct Tail<'a> {
    groups: BTreeSet<usize>,
    members: Vec<(usize, Option<(&'a str, &'a str)>)>,
}

fn ends_with_segments(pattern: &str, tail: &str) -> bool {
    pattern.strip_suffix(tail).is_some_and(|head| head.is_empty() || head.ends_with(r"\."))
}

/// The last segments of an escaped name, as few as are not `foreign`; `experts` stays in, because transformers looks for it.
fn shortest_tail(pattern: &str, foreign: impl Fn(&str) -> bool) -> &str {
    let mut starts: Vec<usize> = pattern.match_indices(r"\.").map(|(at, _)| at + 2).collect();
    starts.reverse();
    let has_experts = pattern.split(r"\.").any(|segment| segment == "experts");
    for start in starts {
        let tail = &pattern[start..];
        if !foreign(tail) && (!has_experts || tail.split(r"\.").any(|segment| segment == "experts")) {
            return tail;
        }
    }
    pattern
}

/// The `ignore` list: the roles that are left alone, then single modules that no role covers.
fn ignore(quantized: &[&str], left_alone: &[&str]) -> Vec<String> {
    let anchored: Vec<String> = IGNORED_ROLES.iter().map(|role| format!("^(?:{role})")).collect();
    let Ok(roles) = RegexSet::new(&anchored) else { return Vec::new() };
    let mut hits_quantized = vec![false; IGNORED_ROLES.len()];
    for name in quantized {
        for role in roles.matches(name) {
            hits_quantized[role] = true;
        }
    }
    let mut used = vec![false; IGNORED_ROLES.len()];
    used[0] = !hits_quantized[0];
    let mut single = Vec::new();
    for name in left_alone {
        let covering: Vec<usize> = roles.matches(name).iter().filter(|role| !hits_quantized[*role]).collect();
        match covering.first() {
            Some(role) => used[*role] = true,
            None => single.push(*name),
        }
    }
    let mut out: Vec<String> = IGNORED_ROLES
        .iter()
        .zip(&used)
        .filter(|(_, used)| **used)
        .map(|(role, _)| format!("re:{role}"))
        .collect();
    out.extend(ignore_single(quantized, &single));
    out
}

/// Entries for modules that no role covers: one for all layers where the same tail is left alone in all of them. Experts of a
/// layer are one entry, under whatever names: vLLM looks them up as `experts.0.gate_proj` even where the file has a stack.
fn ignore_single(quantized: &[&str], single: &[&str]) -> Vec<String> {
    let hits_quantized = |pattern: &str| {
        let regex = Regex::new(&format!("^(?:{pattern})"));
        regex.is_ok_and(|regex| quantized.iter().any(|name| regex.is_match(name)))
    };
    let quantized_experts: HashSet<&str> = quantized.iter().filter_map(|name| experts_parent(name)).collect();
    let mut layers: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
    let mut out = Vec::new();
    for name in single {
        let experts = experts_parent(name).filter(|parent| !quantized_experts.contains(parent));
        let (name, end) = experts.map_or((*name, ""), |parent| (parent, r"\..*"));
        match cut_at_layer(name) {
            Some(((word, number), rest)) => {
                layers.entry((escape_tail(rest) + end, word)).or_default().push(number);
            }
            None => {
                let last = escape_tail(name.rsplit('.').next().unwrap_or(name));
                let entry = format!(r"(.*\.)?{last}{end}$");
                let entry = if hits_quantized(&entry) { name.to_owned() } else { format!("re:{entry}") };
                if !out.contains(&entry) {
                    out.push(entry);
                }
            }
        }
    }
    for ((tail, word), numbers) in layers {
        let anywhere = format!(r".*\.{tail}$");
        let entry = if hits_quantized(&anywhere) { layers_pattern(word, numbers, &tail) } else { anywhere };
        out.push(format!("re:{entry}"));
    }
    out
}

/// Checks a written config against the modules as an engine would: every quantized module has one group, and no module that
/// is left alone has any. Returns what does not hold.
#[must_use]
pub fn contradictions(config: &Value, quantized: &[QuantizedModule<'_>], left_alone: &[&str]) -> Vec<String> {
    let compile =
        |entry: &str| entry.strip_prefix("re:").and_then(|text| Regex::new(&format!("^(?:{text})")).ok());
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let matcher = |entries: Vec<String>| {
        let regexes: Vec<Regex> = entries.iter().filter_map(|entry| compile(entry)).collect();
        move |name: &str| {
            entries.iter().any(|entry| entry == name || entry == "Linear")
                || regexes.iter().any(|regex| regex.is_match(name))
        }
    };
    let ignored = matcher(strings(&config["ignore"]));
    let groups: Vec<_> = config["config_groups"]
        .as_object()
        .into_iter()
        .flat_map(|groups| groups.values())
        .map(|group| (matcher(strings(&group["targets"])), group))
        .collect();
    let mut found = Vec::new();
    let mut seen: HashMap<&str, ()> = HashMap::new();
    for module in quantized {
        if seen.insert(module.name, ()).is_some() {
            found.push(format!("{} is there twice", module.name));
        }
        if ignored(module.name) {
            found.push(format!("{} is quantized and ignored", module.name));
        }
        let hits: Vec<_> = groups.iter().filter(|(matches, _)| matches(module.name)).collect();
        let [(_, group)] = hits.as_slice() else {
            found.push(format!("{} is in {} groups", module.name, hits.len()));
            continue;
        };
        if group["weights"] != weights(&module.treatment.scheme) {
            found.push(format!("{} is in the group of another scheme", module.name));
        }
    }
    for name in left_alone {
        if !ignored(name) && groups.iter().any(|(matches, _)| matches(name)) {
            found.push(format!("{name} is left alone and targeted"));
        }
    }
    found
}
