//! Checks of an export as laid out: no tensor name is used twice, and the config describes every module as the file
//! holds it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use super::copies;
use super::layout::ExportPlan;
use super::output_tensor::{Content, OutputTensor};
use crate::finding::Finding;
use crate::ids::TensorId;
use crate::model::header::MAX_HEADER;
use crate::plan::{compressed_tensors, config};
use crate::recipe::Loaded;
use crate::stage::Stage;
use crate::stage::export::Format;
use crate::threads;

/// Findings for everything in the exports that would make a broken directory.
pub(super) fn check(content: Content<'_>, exports: &[ExportPlan]) -> Vec<Finding> {
    let loaded = content.loaded;
    let mut findings = Vec::new();
    if !loaded.recipe.stages.iter().any(|stage| matches!(stage, Stage::Export(_))) {
        findings.push(
            Finding::warning("plan::no-export", "the recipe has no `export` stage, so nothing is written")
                .help("Everything is quantized and judged, and thrown away. Add `- stage: export` with a `path`."),
        );
    }
    for export in exports {
        findings.extend(clashing_names(content, export));
        findings.extend(long_header(loaded, export));
        if matches!(&loaded.recipe.stages[export.stage], Stage::Export(stage) if stage.copy) {
            findings.extend(copies::broken(loaded, content.model, export.stage));
        }
        if export.format == Format::CompressedTensors {
            findings.extend(config_findings(content, export));
        }
    }
    findings
}

/// The finding for two output tensors of the same name: the source holds a tensor whose name quantization also
/// creates.
fn clashing_names(content: Content<'_>, export: &ExportPlan) -> Option<Finding> {
    // Hashes are compared first: they take little memory, and almost no two are the same.
    let hasher = RandomState::new();
    let hash = |tensor: &OutputTensor| hasher.hash_one(tensor.name(content));
    let mut hashes: Vec<u64> = threads::map(&export.tensors, hash);
    threads::sort_unstable_by(&mut hashes, Ord::cmp);
    let twice: HashSet<u64> =
        hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    drop(hashes);
    if twice.is_empty() {
        return None;
    }
    let mut seen: HashMap<String, TensorId> = HashMap::new();
    export.tensors.iter().filter(|tensor| twice.contains(&hash(tensor))).find_map(|tensor| {
        let name = tensor.name(content);
        let other = seen.insert(name.clone(), tensor.tensor(content))?;
        let (a, b) =
            (&content.model.tensors[other].name, &content.model.tensors[tensor.tensor(content)].name);
        Some(
            Finding::error(
                "plan::clashing-names",
                format!("two tensors of the output would be called `{name}`"),
            )
            .at_opt(content.loaded.stage_place(export.stage), "written here")
            .help(format!(
                "They come from `{a}` and `{b}`. Leave the module alone with `modules_to_not_convert`."
            )),
        )
    })
}

/// A weight file whose header would be longer than any reader takes.
fn long_header(loaded: &Loaded, export: &ExportPlan) -> Option<Finding> {
    let file = export.files.iter().find(|file| file.header_len - 8 > MAX_HEADER)?;
    let message = format!(
        "the header of `{}` would have {} bytes, and readers take {MAX_HEADER}",
        file.name,
        file.header_len - 8
    );
    let finding = Finding::error("plan::long-header", message);
    Some(
        finding
            .at_opt(loaded.stage_place(export.stage), "written here")
            .help("Write more files: `shards` of `export` takes a size, such as `shards: 2GB`."),
    )
}

fn config_findings(content: Content<'_>, export: &ExportPlan) -> Vec<Finding> {
    let modules = config::quantized_modules(content, export.stage);
    let place = content.loaded.stage_place(export.stage);
    let Some(text) = &export.config else {
        let message = "the model has no config.json, so no engine can know that its weights are packed";
        let mut help = "Put the model's config.json beside its weights (`hf download org/name config.json` gets it), or export with \
                        `format: dequantized`, which needs none."
            .to_owned();
        if content.model.others.iter().any(|file| file.path == "params.json") {
            help.push_str(
                " The `params.json` here belongs to the model's own format; weights of that format have other names than those in \
                 the Hugging Face format, for which a config.json is written.",
            );
        }
        return vec![Finding::error("plan::no-config", message).at_opt(place, "needs one").help(help)];
    };
    let written: Value = serde_json::from_str(text).unwrap_or_default();
    let left_alone = config::left_alone(content, export.stage);
    let found = compressed_tensors::contradictions(&written["quantization_config"], &modules, &left_alone);
    let Some(first) = found.first() else { return Vec::new() };
    let more = if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
    vec![
        Finding::error("plan::config-contradiction", format!("no config can say this of the model: {first}{more}"))
            .at_opt(place, "the config of this export")
            .help(
                "Modules of two stacks have the same names below their layers. Skip one of the stacks as a whole, use one \
                 scheme for both, or export with `format: dequantized`.",
            ),
    ]
}
