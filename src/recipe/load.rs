//! Loading of a recipe from a file: the only way in. All problems are reported at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::overrides::{self, Overrides};
use super::tree::{self, Node};
use super::written::{self, Concealer, Written};
use super::{check, environment, order, statistics, text};
use crate::exit::Exit;
use crate::finding::{Failure, Finding, Place, SourceText};
use crate::fs::paths;
use crate::ids::StageId;
use crate::recipe::Recipe;
use crate::recipe::unused_parameters;

/// A recipe that passed every check that needs no model, with the places of its words.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The recipe as written, with overrides applied and variables replaced.
    pub recipe: Recipe,
    /// The folder that relative paths of the recipe are relative to.
    pub base: PathBuf,
    /// The recipe's file, as it was named.
    pub path: PathBuf,
    /// Folders that links in the model's folder may lead to.
    pub follow_links: Vec<PathBuf>,
    /// Findings about values that are legal but doubtful.
    pub warnings: Vec<Finding>,
    /// The text that was read.
    pub source: Arc<SourceText>,
    tree: Node,
    written: Vec<Written>,
    concealer: Concealer,
}

impl Loaded {
    /// The place of the value at a JSON pointer such as `/stages/2/group_size`. For a mapping it is the first key,
    /// for a stage the name. If the recipe does not contain the value, it is the nearest value above.
    #[must_use]
    pub fn place(&self, pointer: &str) -> Option<Place> {
        Some(self.tree.nearest(pointer).0.word().clone())
    }

    /// The place of the key whose value is at a JSON pointer. If the recipe does not contain it, the same as
    /// [`Loaded::place`].
    #[must_use]
    pub fn key_place(&self, pointer: &str) -> Option<Place> {
        match self.tree.entry_at(pointer) {
            Some(entry) => Some(entry.key_place.clone()),
            None => self.place(pointer),
        }
    }

    /// Whether the recipe or an override says the value at a JSON pointer, rather than a default.
    #[must_use]
    pub fn says(&self, pointer: &str) -> bool {
        self.tree.at(pointer).is_some()
    }

    /// The place of the name of a stage, counted from 0.
    #[must_use]
    pub fn stage_place(&self, index: StageId) -> Option<Place> {
        self.place(&format!("/stages/{index}/stage"))
    }

    /// A path of the recipe, relative to the working directory or absolute.
    #[must_use]
    pub fn resolve_path(&self, path: &str) -> PathBuf {
        self.base_of(path).join(path)
    }

    /// The directory on this machine in which the output of an `export` with a path is made. An output in an object store is made in
    /// a directory of its own, below the one that `MONOQUANT_SCRATCH` names or else `.monoquant-scratch` beside the recipe.
    #[must_use]
    pub fn output_path(&self, path: &str) -> PathBuf {
        if !paths::is_store(path) {
            return self.resolve_path(path);
        }
        let path = path.trim_end_matches('/');
        let scratch = std::env::var_os("MONOQUANT_SCRATCH").filter(|folder| !folder.is_empty());
        let scratch = scratch.map_or_else(|| self.base.join(".monoquant-scratch"), PathBuf::from);
        let name = path.rsplit('/').next().unwrap_or_default();
        let hash = blake3::hash(path.as_bytes()).to_hex();
        scratch.join(format!("{name}-{}", &hash[..8]))
    }

    /// The folder that a path of the recipe is relative to.
    #[must_use]
    pub fn base_of(&self, path: &str) -> PathBuf {
        self.concealer.base_of(path, &self.base)
    }

    /// The recipe's name, as it was written.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.written("/name").or(self.recipe.name.as_deref())
    }

    /// The values in which variables were replaced, as they were written.
    #[must_use]
    pub fn written_values(&self) -> &[Written] {
        &self.written
    }

    /// The value at a JSON pointer as it was written, if variables were replaced in it.
    #[must_use]
    pub fn written(&self, pointer: &str) -> Option<&str> {
        self.tree.at(pointer)?.written.as_deref()
    }

    /// The recipe as JSON, with defaults filled in and variables as they were written. Paths from the root of the machine are
    /// variables too: they are no part of what is published.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn written_recipe(&self) -> Result<Value, Failure> {
        let mut value = serde_json::to_value(&self.recipe).map_err(|error| {
            let message = format!("cannot write the recipe as JSON: {error}");
            Failure::new(Exit::Internal, Finding::error("recipe::no-json", message))
        })?;
        written::hide_paths(&mut value);
        written::put(&mut value, self.written.iter().map(|one| (one.pointer.as_str(), one.text.as_str())));
        Ok(value)
    }

    /// The text of the recipe without paths from the root of the machine, as it is published.
    #[must_use]
    pub fn public_text(&self) -> String {
        let mut recipe = serde_json::to_value(&self.recipe).unwrap_or_default();
        let mut hidden = written::hide_paths(&mut recipe);
        hidden.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        let text = self.source.text.clone();
        hidden.iter().fold(text, |text, (path, public)| text.replace(path.as_str(), public))
    }

    /// A text that may name paths, with those in which variables were replaced as they were written.
    #[must_use]
    pub fn told(&self, text: &str) -> String {
        self.concealer.text(text)
    }

    /// As [`Loaded::told`], of findings.
    pub fn tell<'f>(&self, findings: impl IntoIterator<Item = &'f mut Finding>) {
        findings.into_iter().for_each(|finding| self.concealer.finding(finding));
    }

    /// As [`Loaded::told`], of what went wrong.
    #[must_use]
    pub fn tell_failure(&self, mut failure: Failure) -> Failure {
        self.tell(&mut failure.findings);
        failure
    }
}

/// Globs and regular expressions that a recipe may have: to compile one takes up to a millisecond.
const MAX_EXPRESSIONS: usize = 500;

/// Findings that are told of one recipe.
const MAX_FINDINGS: usize = 100;

/// Reads a recipe file and checks it.
///
/// # Errors
/// All problems of the file and of the overrides at once, with warnings among them.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Loaded, Failure> {
    let source = text::read(path).map_err(|finding| Failure::new(Exit::BadRecipe, *finding))?;
    let base = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let env = |name: &str| std::env::var(name).ok();
    let mut loaded = from_source(source, &base, overrides, &env)?;
    loaded.path = path.to_owned();
    Ok(loaded)
}

/// Checks a recipe's text. `base` is the folder its paths are relative to, `env` gives environment variables.
///
/// # Errors
/// As [`load`].
pub fn from_text(
    name: &str,
    text: &str,
    base: &Path,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Failure> {
    let source = Arc::new(SourceText { name: name.to_owned(), text: text.to_owned() });
    from_source(source, base, overrides, env)
}

fn from_source(
    source: Arc<SourceText>,
    base: &Path,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Failure> {
    let failure = |findings: Vec<Finding>| Failure { exit: Exit::BadRecipe, findings };
    text::check_size(&source).map_err(|finding| failure(vec![*finding]))?;
    let mut tree =
        tree::parse(&source, 0..source.text.len()).map_err(|findings| failure(capped(findings)))?;
    if let tree::Content::Null = tree.content {
        return Err(failure(vec![empty(&source)]));
    }
    let mut findings = Vec::new();
    environment::interpolate(&mut tree, env, &mut findings);
    let mut refused = Vec::new();
    overrides::apply(&mut tree, overrides, base, env, &mut refused);
    environment::expand_home(&mut tree, env, &mut findings);
    // A value that was overridden needs no variables.
    findings.retain(|finding| is_about_a_value(finding, &tree));
    findings.extend(refused);
    let mut patterns = 0;
    if let Some(place) = tree.expression_beyond(MAX_EXPRESSIONS, &mut patterns) {
        let message = format!("the recipe has more than {MAX_EXPRESSIONS} globs and regular expressions");
        let finding = Finding::error("recipe::too-complex", message)
            .at(place.clone(), "the limit was passed here")
            .help("Use plain names, of which there may be more, or fewer and wider patterns.");
        return Err(failure(vec![finding]));
    }
    let value = tree.to_json();
    findings.extend(check::violations(&tree, &value));
    findings.extend(order::findings(&tree));
    let schema_holds = !findings.iter().any(Finding::is_error);
    let recipe = match schema_holds.then(|| typed(value, &tree)) {
        Some(Ok(mut recipe)) => {
            written::mark_patterns(&mut recipe, &tree);
            findings.extend(unused_parameters::findings(&recipe, &tree));
            findings.extend(statistics::findings(&recipe, &tree));
            Some(recipe)
        }
        Some(Err(finding)) => {
            findings.push(*finding);
            None
        }
        None => None,
    };
    sort(&mut findings, &source);
    match recipe {
        Some(recipe) if !findings.iter().any(Finding::is_error) => {
            let path = PathBuf::from(&source.name);
            let written = written::all(&tree);
            let concealer = Concealer::new(&written, base);
            let (base, follow_links) = (base.to_owned(), overrides.follow_links.clone());
            Ok(Loaded {
                recipe,
                base,
                path,
                follow_links,
                warnings: findings,
                source,
                tree,
                written,
                concealer,
            })
        }
        _ => Err(failure(capped(findings))),
    }
}

/// Whether a finding points into a value of the tree, rather than into one that was replaced.
fn is_about_a_value(finding: &Finding, tree: &Node) -> bool {
    finding.labels.first().is_none_or(|label| tree.has_value_at(&label.place))
}

fn capped(mut findings: Vec<Finding>) -> Vec<Finding> {
    if findings.len() > MAX_FINDINGS {
        findings.truncate(MAX_FINDINGS);
        let message = format!("there are more problems than the first {MAX_FINDINGS}, which are shown");
        findings.push(Finding::error("recipe::too-many-problems", message));
    }
    findings
}

fn empty(source: &Arc<SourceText>) -> Finding {
    let start = source.text.find(|c: char| !c.is_whitespace() && c != '\u{feff}');
    let (start, label) = match start {
        Some(start) => (start, "nothing but this is in the file"),
        None => (0, "nothing is in this file"),
    };
    let end = start + source.text[start..].lines().next().map_or(0, |line| line.trim_end().len());
    Finding::error("recipe::empty", "the recipe is empty")
        .at(Place { source: Arc::clone(source), start, end }, label)
        .help("A recipe has `version: 1` and a list of `stages`; `recipes/llama-int4.yaml` is one to start from.")
}

/// The typed recipe of a value that the schema allows.
fn typed(value: Value, tree: &Node) -> Result<Recipe, Box<Finding>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        // The schema is meant to be as strict as the types; a property test looks for cases in which it is not.
        let pointer: String = error
            .path()
            .iter()
            .filter_map(|part| match part {
                serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
                serde_path_to_error::Segment::Map { key } => Some(tree::segment(key)),
                _ => None,
            })
            .collect();
        let node = tree.nearest(&pointer).0;
        let message = match node.written {
            Some(_) => "what the variable gives is not allowed".to_owned(),
            None => error.inner().to_string(),
        };
        let finding = Finding::error("recipe::rejected", message)
            .at(node.word().clone(), "the schema allows it, yet it cannot be read")
            .help("This is a gap in monoquant's schema; please report it.");
        Box::new(finding)
    })
}

/// In the order of reading: the recipe from top to bottom, then the overrides.
fn sort(findings: &mut [Finding], source: &Arc<SourceText>) {
    findings.sort_by_key(|finding| match finding.labels.first() {
        Some(label) => (!Arc::ptr_eq(&label.place.source, source), label.place.start),
        None => (true, usize::MAX),
    });
}
