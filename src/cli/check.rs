//! `monoquant check`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::output::Output;
use super::{CheckArgs, Format};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::paths;
use crate::recipe::{self, Loaded, Overrides};
use crate::text::units::counted;

pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<Exit, Failure> {
    let mut findings: Vec<Finding> = Vec::new();
    let (mut bad, mut checked) = (0, 0);
    let overrides = args.overrides.overrides();
    let mut take = |result: Result<Loaded, Failure>| match result {
        Ok(loaded) => findings.extend(loaded.warnings),
        Err(failure) => {
            bad += 1;
            findings.extend(failure.findings);
        }
    };
    for path in &args.recipes {
        if path == Path::new("-") {
            take(from_input(&overrides));
            checked += 1;
        } else if paths::is_folder(path) {
            let recipes = recipes_below(path);
            if recipes.is_empty() {
                take(Err(Failure::new(Exit::BadRecipe, no_recipes(path))));
            }
            checked += recipes.len();
            recipes.iter().for_each(|path| take(recipe::load(path, &overrides)));
        } else {
            take(recipe::load(path, &overrides));
            checked += 1;
        }
    }
    output.findings(&findings);
    if bad > 0 || args.deny_warnings && !findings.is_empty() {
        return Ok(Exit::BadRecipe);
    }
    if !output.is_quiet() && output.format() == Format::Human {
        let verb = if checked == 1 { "is" } else { "are" };
        output.result(&format!("{} {verb} fine", counted(checked, "recipe")));
    } else if output.format() == Format::Json && findings.is_empty() {
        output.result("[]");
    }
    Ok(Exit::Done)
}

/// The recipe on standard input, with paths relative to the current folder.
fn from_input(overrides: &Overrides) -> Result<Loaded, Failure> {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(recipe::MAX_BYTES as u64 + 1).read_to_end(&mut text);
    let text =
        read.and_then(|_| String::from_utf8(text).map_err(std::io::Error::other)).map_err(|error| {
            let finding =
                Finding::error("recipe::unreadable", format!("cannot read standard input: {error}"))
                    .help("Give a recipe as UTF-8 text, such as `monoquant check - < recipe.yaml`.");
            Failure::new(Exit::BadRecipe, finding)
        })?;
    let env = |name: &str| std::env::var(name).ok();
    recipe::from_text("standard input", &text, Path::new("."), overrides, &env)
}

/// The YAML files in a folder and below, in order; what is hidden is none of them.
fn recipes_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = std::collections::BTreeMap::new();
    paths::files_below(folder, MAX_DEPTH, &[], &mut files);
    let is_recipe = |path: &PathBuf| {
        let below = path.strip_prefix(folder).unwrap_or(path);
        let is_hidden = below.iter().any(|part| part.to_string_lossy().starts_with('.'));
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
        !is_hidden && matches!(end.as_deref(), Some("yaml" | "yml"))
    };
    files.into_keys().filter(is_recipe).collect()
}

/// Folders below a folder of recipes that are looked at.
const MAX_DEPTH: usize = 8;

fn no_recipes(folder: &Path) -> Finding {
    Finding::error("recipe::none", format!("`{}` is a directory without a recipe", folder.display()))
        .help("A recipe's name ends with `.yaml` or `.yml`. `monoquant init MODEL -o recipe.yaml` writes one for a model.")
}
