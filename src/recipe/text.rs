//! The text of a recipe's file. Limits on reading keep the parser's work small for any file.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::finding::{Finding, Place, SourceText, nearest};
use crate::fs::{exclusive, paths, regular};

/// Largest recipe in bytes. A recipe of 500 stages has about 40 KiB.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Reads the file.
///
/// # Errors
/// One finding if the file does not exist, is not a regular file, is too large, or is not UTF-8.
pub(super) fn read(path: &Path) -> Result<Arc<SourceText>, Box<Finding>> {
    let name = path.display().to_string();
    let unreadable = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::InvalidInput {
            let message = format!("{name} cannot be the recipe: {error}");
            let help = "Save what it gives as a file, and name that.";
            return Box::new(Finding::error("recipe::not-a-file", message).help(help));
        }
        let message = format!("the recipe {name} cannot be read: {}", regular::told(error));
        Box::new(Finding::error("recipe::unreadable", message).help("Name a recipe that you may read."))
    };
    regular::length(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Box::new(missing(path, &name)),
        _ => unreadable(error),
    })?;
    if paths::is_folder(path) {
        let finding = Finding::error("recipe::not-a-file", format!("{name} is a directory, not a recipe"));
        let names = paths::names_in(path, 10_000);
        if names.iter().any(|name| name == "config.json" || name.ends_with(".safetensors")) {
            return Err(Box::new(finding.help(begin(&format!("'{name}'"), &name)).help(NAMED)));
        }
        return Err(Box::new(match recipes_in(path).first() {
            Some(first) => {
                finding.help(format!("Name a file in it, such as {}.", path.join(first).display()))
            }
            None => finding.help("Name a recipe file. `load` in the recipe names the model directory."),
        }));
    }
    let mut bytes = Vec::new();
    // One byte more than the limit tells a file at the limit from a longer one, even if the length is not known.
    let file = regular::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        let message = format!("{name} is larger than {} KiB, the limit for a recipe", MAX_BYTES >> 10);
        let help = "Is it a recipe? Weights are named by `load`, not given to monoquant as the recipe.";
        return Err(Box::new(Finding::error("recipe::too-large", message).help(help)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::new(SourceText { name, text })),
        Err(error) => Err(Box::new(not_utf8(&name, &error))),
    }
}

/// What a recipe has to do with the model.
const NAMED: &str = "`load` in a recipe names the model; `--model` names another one.";

/// How to begin with a model that was given as the recipe.
fn begin(quoted: &str, plain: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ':' | '@' | '\\');
    let model = if plain.chars().all(is_plain) { plain } else { quoted };
    format!("It looks like a model. `monoquant init {model} -o recipe.yaml` writes a recipe that fits it.")
}

/// The text of a recipe. None if it cannot be read as one.
#[must_use]
pub fn text_of(path: &Path) -> Option<String> {
    regular::read_text(path, MAX_BYTES as u64).ok()
}

/// Refuses a text that is larger than a recipe may be.
pub(super) fn check_size(source: &SourceText) -> Result<(), Box<Finding>> {
    if source.text.len() <= MAX_BYTES {
        return Ok(());
    }
    let message = format!("{} is larger than {} KiB, the limit for a recipe", source.name, MAX_BYTES >> 10);
    Err(Box::new(Finding::error("recipe::too-large", message)))
}

fn not_utf8(name: &str, error: &std::string::FromUtf8Error) -> Finding {
    let good = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
    // The text before the first bad byte is unchanged, so its length is the place of the first replacement character.
    let source = Arc::new(SourceText { name: name.to_owned(), text });
    let place = Place { source, start: good, end: good + char::REPLACEMENT_CHARACTER.len_utf8() };
    Finding::error("recipe::not-utf8", format!("{name} is not UTF-8 text"))
        .at(place, format!("byte {good} begins no character"))
        .help("Save the recipe as UTF-8.")
}

fn missing(path: &Path, name: &str) -> Finding {
    if exclusive::is_there(path) {
        let message = format!("{name} is a link to a file that does not exist");
        return Finding::error("recipe::no-such-file", message)
            .help("Make the link anew, or name the file itself.");
    }
    let finding = Finding::error("recipe::no-such-file", format!("there is no recipe {name}"));
    if name.starts_with("hf:/") {
        // As a path it has lost a slash on some systems.
        let word = name.replacen("hf:/", "hf://", 1).replacen("hf:///", "hf://", 1);
        return finding.help(begin(&word, &word)).help(NAMED);
    }
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return finding,
    };
    if !paths::is_folder(folder) {
        return finding.help(format!("There is no folder {} either.", folder.display()));
    }
    let names = recipes_in(folder);
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(near) = nearest(&wanted, names.iter().map(String::as_str)) {
        return finding.help(format!("Did you mean {}?", path.with_file_name(near).display()));
    }
    match names.len() {
        0 => finding.help(format!("The folder {} holds no YAML file.", folder.display())),
        _ => {
            let shown: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
            finding.help(format!("YAML files in {}: {}.", folder.display(), shown.join(", ")))
        }
    }
}

/// Names of the YAML files of a folder, sorted; of a huge folder only some.
fn recipes_in(folder: &Path) -> Vec<String> {
    let mut names = paths::names_in(folder, 10_000);
    names.retain(|name| name.ends_with(".yaml") || name.ends_with(".yml"));
    names.sort();
    names
}
