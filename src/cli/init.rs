//! `monoquant init`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::output::Output;
use super::{Format, LinkArgs, data};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source;
use crate::fs::{exclusive, paths};
use crate::publish::files::cannot_write;
use crate::recipe;
use crate::show::starter::{Scheme, Wish, starter};
use crate::text::visible;

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The model: a directory, a .safetensors file, or hf://org/name.
    model: String,
    /// What its weights become.
    #[arg(long, value_enum, default_value_t = SchemeChoice::Int4)]
    scheme: SchemeChoice,
    /// Let a result that is too bad fail the run, as a gate of CI does.
    #[arg(long)]
    gate: bool,
    /// The file to write. Paths in the recipe are relative to its folder.
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
    #[command(flatten)]
    links: LinkArgs,
}

/// What weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchemeChoice {
    /// INT4 weights in groups: a quarter of BF16.
    Int4,
    /// INT8 weights, one scale per row: half of BF16, hardly a difference in quality.
    Int8,
    /// INT8 weights, and INT8 activations at run time.
    W8a8,
}

pub(super) fn init(args: &InitArgs, output: &Output) -> Result<Exit, Failure> {
    let here = Path::new(".");
    let base = args.to.as_deref().and_then(Path::parent).filter(|parent| !parent.as_os_str().is_empty());
    let base = base.unwrap_or(here);
    if let Some(to) = &args.to {
        refuse_existing(to)?;
    }
    let is_address = paths::is_address(&args.model);
    // A model that is not there is told as it was named.
    let found = source::open(&args.model, here, &args.links.follow_links)?;
    let model = if is_address { args.model.clone() } else { recipe::seen_from(base, &args.model) };
    let name = name_of(&args.model, found.folder().filter(|_| !is_address));
    let wish = Wish {
        output: output_beside(base, found.folder(), &name),
        model,
        name,
        scheme: match args.scheme {
            SchemeChoice::Int4 => Scheme::Int4,
            SchemeChoice::Int8 => Scheme::Int8,
            SchemeChoice::W8a8 => Scheme::W8a8,
        },
        is_gate: args.gate,
        base: base.to_owned(),
        follow_links: args.links.follow_links.clone(),
        schema: data::schema_address("recipe"),
    };
    let text = starter(&wish)?;
    if let Some(to) = &args.to {
        let mut file = exclusive::create_new(to).map_err(|error| cannot_write("write", to, &error))?;
        file.write_all(text.as_bytes()).map_err(|error| cannot_write("write", to, &error))?;
    }
    let to = args.to.as_ref().map(|to| to.display().to_string());
    match &to {
        _ if output.format() == Format::Json => output.json(&json!({"file": to, "recipe": text})),
        Some(_) if output.is_quiet() => {}
        Some(to) => {
            let to = visible(to);
            output.result(&format!(
                "{to} is written: `monoquant plan {to}` shows what it does, `monoquant run {to}` does it"
            ));
        }
        None => output.result_unbroken(&text),
    }
    if !output.is_quiet() && !data::has_schemas() {
        output.say("for completion and explanations in editors, run `monoquant schema --install` once");
    }
    Ok(Exit::Done)
}

fn refuse_existing(to: &Path) -> Result<(), Failure> {
    if !exclusive::is_there(to) {
        return Ok(());
    }
    let finding = Finding::error("init::exists", format!("`{}` is there already", to.display()))
        .help("Name another file, or remove this one: a recipe that somebody has edited is not overwritten.");
    Err(Failure::new(Exit::CannotWrite, finding))
}

/// The last part of the model's name, in characters that every system has in names.
fn name_of(word: &str, folder: Option<&Path>) -> String {
    let real = folder.and_then(|folder| paths::real(folder).ok());
    let last = real.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let word = word.split('@').next().unwrap_or(word);
    let last = last.unwrap_or_else(|| word.rsplit('/').next().unwrap_or(word).to_owned());
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = last.chars().map(|c| if is_safe(c) { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// Where the output goes: beside the recipe, or beside the model if the recipe lies in it.
fn output_beside(base: &Path, model: Option<&Path>, name: &str) -> String {
    let canonical =
        |path: &Path| paths::canonical(if path.as_os_str().is_empty() { Path::new(".") } else { path });
    let base = canonical(base);
    let levels =
        model.map(canonical).and_then(|model| Some(base.strip_prefix(model).ok()?.components().count() + 1));
    let up: PathBuf = std::iter::repeat_n("..", levels.unwrap_or(0)).collect();
    let path = up.join(name);
    path.to_str().map_or_else(|| name.to_owned(), |path| path.replace('\\', "/"))
}
