//! Complaints about a path that is not a model that can be read: what is there instead, and what to do.

use std::io::{Error, ErrorKind};

use crate::finding::Finding;
use crate::format::source::{GIVE, Source, cannot_read};
use crate::model::code;

/// Names shown in one finding; more are counted.
pub(super) const MAX_NAMES: usize = 5;

/// A few names in backquotes, and how many more there are.
pub(super) fn shown(names: &[&str]) -> String {
    let list: Vec<String> = names.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let list = list.join(", ");
    match (list.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (_, 0) => list,
        _ => format!("{list} and {more} more"),
    }
}

/// `a is` or `a, b are`.
pub(super) fn be(names: &[&str]) -> String {
    format!("{} {}", shown(names), if names.len() == 1 { "is" } else { "are" })
}

/// A link that leads to nothing, or back to itself.
pub(super) fn broken_link(source: &dyn Source, path: &str, error: &Error) -> Finding {
    if error.kind() == ErrorKind::NotFound {
        Finding::error(code::NOT_FOUND, format!("`{path}` is a link to a file that does not exist"))
            .help("The download is not complete; run `hf download` again.")
    } else {
        cannot_read(&source.place(path), error)
    }
}

/// The finding for a file that is not safetensors.
pub(super) fn not_safetensors(name: &str) -> Option<Finding> {
    if name.ends_with(".safetensors") {
        return None;
    }
    let finding = Finding::error(code::NOT_A_MODEL, format!("`{name}` is not a `.safetensors` file"));
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    Some(match extension {
        "json" => finding.help("Give the folder that it is in."),
        "bin" | "pt" | "pth" | "ckpt" => finding.help(CONVERT),
        "gguf" => finding.help("GGUF files are quantized already; give the model that it was made from."),
        _ => finding.help(GIVE),
    })
}

pub(super) const CONVERT: &str = "Weights in pickle files are not read, because reading one can run code. \
    Convert them with transformers: `AutoModelForCausalLM.from_pretrained(DIR, dtype=\"auto\").save_pretrained(NEW)`.";

/// The finding for a model without a config. The plan reports what that means for an export.
pub(super) fn no_config(is_single_file: bool) -> Finding {
    let place = if is_single_file {
        "there is no `config.json` beside the file"
    } else {
        "the model has no `config.json`"
    };
    Finding::warning(
        code::CONFIG,
        format!("{place}, so layer types are inferred from names and shapes alone"),
    )
    .help("The output head, routers and extra prediction layers may not be recognised; check with `inspect`.")
}

/// The finding for a file whose contents git-lfs has not fetched.
pub(super) fn pointer(file: &str) -> Finding {
    Finding::error(code::POINTER, format!("`{file}` is a Git LFS pointer, not the file that it stands for"))
        .help("Run `git lfs pull` in the model's folder, or download the model with `hf download`.")
}

/// Weight files that hold an adapter.
pub(super) fn adapter(files: &[super::OtherFile]) -> Finding {
    let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    Finding::error(code::NOT_A_MODEL, format!("{} a LoRA adapter, not a model", be(&names)))
        .help("Merge it into its base model first (PEFT's `merge_and_unload`).")
}
