//! The `quantization_config` of the compressed-tensors format, for vLLM, SGLang and transformers.
//!
//! transformers matches `targets` and `ignore` against its own module tree, which for several families is named
//! differently from the file, and takes regexes in alphabetical order. vLLM takes them in file order and tries fused
//! names first. So targets are disjoint. Entries are the class `Linear` or regexes over a name's tail, anchored with
//! a dot before and `$` after. Every skipped linear module is in `ignore`, including the head, even if the file has
//! none (tied embeddings).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::format::encoding;
use crate::plan::QuantSpec;
use crate::quant::{Bits, Granularity, Scheme, Storage};
use crate::stage::ActivationScheme;

mod ignore;
mod names;
mod targets;

use crate::plan::compressed_tensors::targets::Modules;

/// The version of compressed-tensors whose layout is written. No loader checks it.
const VERSION: &str = "0.19.0";

/// A module of the output that holds codes.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedModule<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How it was quantized.
    pub spec: &'a QuantSpec,
}

/// The `quantization_config` for quantized modules and skipped linear modules.
#[must_use]
pub fn quantization_config(quantized: &[QuantizedModule<'_>], left_alone: &[Cow<'_, str>]) -> Value {
    let mut schemes: Vec<(Scheme, ActivationScheme)> = Vec::new();
    let scheme_of = |module: &QuantizedModule<'_>| (module.spec.scheme, module.spec.activations);
    for scheme in quantized.iter().map(scheme_of) {
        if !schemes.iter().any(|known| config_key(known) == config_key(&scheme)) {
            schemes.push(scheme);
        }
    }
    let group_of = |module: &QuantizedModule<'_>| {
        let key = config_key(&scheme_of(module));
        schemes.iter().position(|scheme| config_key(scheme) == key).unwrap_or(0)
    };
    let targets = targets::targets(Modules { all: quantized, group_of: &group_of }, schemes.len());
    let mut groups = Map::new();
    for (index, ((scheme, activations), targets)) in schemes.iter().zip(targets).enumerate() {
        groups.insert(
            format!("group_{index}"),
            json!({
                "targets": targets,
                "weights": weights(scheme),
                "input_activations": input_activations(scheme, *activations),
                "output_activations": null,
                "format": encoding::of(scheme).name(),
            }),
        );
    }
    let formats: BTreeSet<&str> = schemes.iter().map(|(scheme, _)| encoding::of(scheme).name()).collect();
    let format = match formats.first() {
        Some(only) if formats.len() == 1 => only,
        _ => "mixed-precision",
    };
    json!({
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": format,
        "config_groups": groups,
        "ignore": ignore::ignore(quantized, left_alone),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "version": VERSION,
    })
}

/// Of each module, whether one before it has the same name.
fn said_before(quantized: &[QuantizedModule<'_>]) -> Vec<bool> {
    let name = |index: u32| quantized[index as usize].name;
    let mut order: Vec<u32> = (0..quantized.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| name(a).cmp(name(b)).then(a.cmp(&b)));
    let mut out = vec![false; quantized.len()];
    for pair in order.windows(2).filter(|pair| name(pair[0]) == name(pair[1])) {
        out[pair[1] as usize] = true;
    }
    out
}

/// The properties of a scheme that the config can express. The scales' type is not one of them: loaders take it from
/// the file.
fn config_key(key: &(Scheme, ActivationScheme)) -> (Bits, bool, Granularity, Storage, ActivationScheme) {
    let (scheme, activations) = key;
    (scheme.bits, scheme.symmetric, scheme.granularity, scheme.storage, *activations)
}

fn weights(scheme: &Scheme) -> Value {
    let (strategy, group_size) = match scheme.granularity {
        Granularity::Group(size) if scheme.has_global_scale() => ("tensor_group", json!(size)),
        Granularity::Group(size) => ("group", json!(size)),
        Granularity::Channel => ("channel", Value::Null),
        Granularity::Tensor => ("tensor", Value::Null),
        Granularity::Block(_) => ("block", Value::Null),
    };
    let block =
        if let Granularity::Block(size) = scheme.granularity { json!([size, size]) } else { Value::Null };
    let mut weights = json!({
        "num_bits": scheme.bits.count(),
        "type": if scheme.storage.is_float() { "float" } else { "int" },
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": false,
        "actorder": null,
        "block_structure": block,
        "observer": null,
        "observer_kwargs": {},
    });
    match scheme.storage {
        Storage::Mxfp4 => weights["scale_dtype"] = json!("torch.uint8"),
        Storage::Nvfp4 => weights["scale_dtype"] = json!("torch.float8_e4m3fn"),
        Storage::Packed | Storage::Plain | Storage::Float8 => {}
    }
    weights
}

fn input_activations(scheme: &Scheme, activations: ActivationScheme) -> Value {
    let kind = match activations {
        ActivationScheme::None => return Value::Null,
        ActivationScheme::DynamicToken => "int",
        ActivationScheme::DynamicTokenFp8 => "float",
    };
    // Products with blocks have a scale for as many inputs as a block has.
    let (strategy, group_size) = match scheme.granularity {
        Granularity::Block(size) => ("group", json!(size)),
        _ => ("token", Value::Null),
    };
    json!({
        "num_bits": 8,
        "type": kind,
        "symmetric": true,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": true,
        "actorder": null,
        "block_structure": null,
        "observer": null,
        "observer_kwargs": {},
    })
}

/// Checks a written config against the modules as an engine would: every quantized module has one group, and no
/// skipped module has any. Returns the violations.
#[must_use]
pub fn contradictions(
    config: &Value,
    quantized: &[QuantizedModule<'_>],
    left_alone: &[Cow<'_, str>],
) -> Vec<String> {
    let compile = |entry: &str| entry.strip_prefix("re:").and_then(names::compile);
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let matcher = |entries: Vec<String>| {
        let regexes: Vec<Regex> = entries.iter().filter_map(|entry| compile(entry)).collect();
        let entries: HashSet<String> = entries.into_iter().collect();
        let hits_all = entries.contains("Linear");
        move |name: &str| {
            hits_all || entries.contains(name) || regexes.iter().any(|regex| regex.is_match(name))
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
    let is_again = said_before(quantized);
    for (module, is_again) in quantized.iter().zip(is_again) {
        if is_again {
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
        if group["weights"] != weights(&module.spec.scheme) {
            found.push(format!("{} is in the group of another scheme", module.name));
        }
    }
    for name in left_alone {
        if !ignored(name) && groups.iter().any(|(matches, _)| matches(name)) {
            found.push(format!("{name} is skipped and targeted"));
        }
    }
    found
}
