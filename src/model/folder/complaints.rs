//! Complaints about a path that is not a model that can be read: what is there instead, and what to do.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::finding::{Finding, nearest};
use crate::fs::regular;
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

/// A failed file system call.
pub(super) fn io(path: &Path, error: &std::io::Error) -> Finding {
    let message = format!("cannot read `{}`: {error}", path.display());
    Finding::error(code::IO, message).help(what_to_do(error))
}

/// A link that leads to nothing, or back to itself.
pub(super) fn broken_link(path: &Path, name: &str, error: std::io::Error) -> Finding {
    if error.kind() == ErrorKind::NotFound {
        Finding::error(code::NOT_FOUND, format!("`{name}` is a link to a file that does not exist"))
            .help("The download is not complete; run `hf download` again.")
    } else {
        io(path, &regular::told(error))
    }
}

fn what_to_do(error: &std::io::Error) -> &'static str {
    let is_of_the_system = error.raw_os_error().is_some();
    match error.kind() {
        ErrorKind::PermissionDenied if is_of_the_system => {
            "Change its permissions, or run as a user who may read it."
        }
        ErrorKind::PermissionDenied => "Put the file itself there, or allow the link with `--follow-links`.",
        ErrorKind::NotFound => "The download is not complete; run `hf download` again.",
        _ => "Put the file itself there; `hf download` gets the files of a model.",
    }
}

/// The finding for a path at which nothing exists, or that cannot be accessed.
pub(super) fn absent(model: &Path, error: &std::io::Error) -> Finding {
    if error.kind() != ErrorKind::NotFound {
        return io(model, error);
    }
    if model.is_symlink() {
        let message = format!("the model `{}` is a link to something that does not exist", model.display());
        return Finding::error(code::NOT_FOUND, message)
            .help("Make the link anew, or give the folder that it should lead to.");
    }
    let finding = Finding::error(code::NOT_FOUND, format!("the model `{}` does not exist", model.display()));
    let parent = match model.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return finding,
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return finding.help(format!("The folder `{}` does not exist either.", parent.display()));
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match nearest(&file_name(model), names.iter().map(String::as_str)) {
        Some(name) => finding.help(format!("Did you mean `{}`?", parent.join(name).display())),
        None => finding.help(GIVE),
    }
}

/// What can be given as a model.
pub(super) const GIVE: &str = "Give a model's folder, one `.safetensors` file, or `hf://org/name`.";

/// What to say of something that is neither a folder nor a file that can be read as a model.
pub(super) fn not_a_model_file(model: &Path, metadata: &fs::Metadata) -> Option<Finding> {
    if !metadata.is_file() {
        let what = regular::what_is(metadata.file_type());
        let message = format!("`{}` is {what}, not a model", model.display());
        return Some(Finding::error(code::NOT_A_MODEL, message).help(GIVE));
    }
    not_safetensors(&file_name(model)).or_else(|| regular::open(model).err().map(|error| io(model, &error)))
}

/// The finding for a file that is not safetensors.
fn not_safetensors(name: &str) -> Option<Finding> {
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

/// The name of a file or folder.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
