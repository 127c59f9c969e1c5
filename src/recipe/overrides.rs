//! Overrides from the command line: `--set`, `--model`, `--output`. They change the tree before it is checked. So the
//! result is checked like any recipe, and an error in an override points into the override.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::environment;
use super::tree::{self, Content, Entry, Node};
use crate::finding::{Finding, Place, SourceText, nearest};
use crate::fs::paths;

/// The changes that the command line makes to a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `PATH=VALUE`: the path is dotted, as in `stages.2.group_size`, and counts stages from 0. A stage may also be
    /// given by its name if it occurs once, as in `quantize-int4.group_size`. The value is YAML.
    pub set: Vec<String>,
    /// The model to load. A relative path is relative to the working directory.
    pub model: Option<String>,
    /// The path of the one export stage. A relative path is relative to the working directory.
    pub output: Option<String>,
    /// Folders that links in the model's folder may lead to. No value of a recipe: it is for the person who runs it to say.
    pub follow_links: Vec<std::path::PathBuf>,
}

/// Applies the overrides to the tree, `--set` in order and the others after them.
pub(super) fn apply(
    root: &mut Node,
    overrides: &Overrides,
    base: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    findings: &mut Vec<Finding>,
) {
    for text in &overrides.set {
        if let Err(problems) = set(root, text, env) {
            findings.extend(problems);
        }
    }
    if let Some(model) = &overrides.model {
        let value = if paths::is_address(model) { model.clone() } else { seen_from(base, model) };
        findings.extend(set_in_stage(root, "load", "model", "--model", &value).err());
    }
    if let Some(output) = &overrides.output {
        findings.extend(set_in_stage(root, "export", "path", "--output", &seen_from(base, output)).err());
    }
}

/// A path that is relative to the working directory, made relative to the recipe's folder. The folder's links are resolved first,
/// since `..` of the result is applied to the folder that they lead to.
pub(crate) fn seen_from(base: &Path, path: &str) -> String {
    let target = Path::new(path);
    // The shell replaces `~` only where a word begins with it, which the value of a flag may not.
    let is_home = path.starts_with(['~', '$']);
    if path.is_empty() || target.is_absolute() || is_home {
        return path.to_owned();
    }
    let (Ok(here), Ok(base)) = (std::env::current_dir(), paths::real(base)) else { return path.to_owned() };
    let target = normal(&here.join(target));
    let shared = base.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let mut relative: PathBuf = base.components().skip(shared).map(|_| Component::ParentDir).collect();
    relative.extend(target.components().skip(shared));
    match relative.to_str() {
        Some("") => ".".to_owned(),
        Some(relative) => relative.to_owned(),
        None => path.to_owned(),
    }
}

fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

fn set_in_stage(root: &mut Node, stage: &str, key: &str, flag: &str, value: &str) -> Result<(), Finding> {
    let value = Node::text(flag, value);
    let stages = stages_named(root, stage);
    let [only] = stages[..] else {
        let message = match stages.len() {
            0 => format!("`{flag}` has nothing to override: the recipe has no `{stage}` stage"),
            count => format!("`{flag}` is ambiguous: the recipe has {count} `{stage}` stages"),
        };
        let finding =
            Finding::error("recipe::bad-override", message).at(value.used, "this value has no place to go");
        return Err(match stages.first() {
            Some(first) => finding.help(format!("Write `--set stages.{first}.{key}=…` for one of them.")),
            None => finding.help(format!("Add a `{stage}` stage to the recipe.")),
        });
    };
    let Some(stage) = stage_mut(root, only) else { return Ok(()) };
    let key_place = value.used.clone();
    put(stage, key, key_place, value);
    Ok(())
}

fn set(root: &mut Node, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(), Vec<Finding>> {
    let source = Arc::new(SourceText { name: "--set".to_owned(), text: text.to_owned() });
    let at = |start: usize, end: usize| Place { source: Arc::clone(&source), start, end };
    let Some(equals) = text.find('=') else {
        let finding = Finding::error("recipe::bad-override", "an override is `PATH=VALUE`")
            .at(at(0, text.len()), "there is no `=`")
            .help("For example `--set quantize-int4.group_size=64`.");
        return Err(vec![finding]);
    };
    let mut value = tree::parse(&source, equals + 1..text.len())?;
    let mut findings = Vec::new();
    environment::interpolate(&mut value, env, &mut findings);
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut words = Vec::new();
    let mut start = 0;
    for word in text[..equals].split('.') {
        words.push((word, at(start, start + word.len())));
        start += word.len() + 1;
    }
    place_value(root, &words, at(0, equals), value).map_err(|finding| vec![finding])
}

type Word<'a> = (&'a str, Place);

fn place_value(root: &mut Node, words: &[Word<'_>], whole: Place, value: Node) -> Result<(), Finding> {
    let (stage, rest) = find_stage(root, words)?;
    let node = match stage {
        None => root,
        Some(index) => stage_mut(root, index).ok_or_else(|| unknown(&words[0], &[], "the recipe"))?,
    };
    match rest {
        [] => Err(Finding::error(
            "recipe::bad-override",
            "this override names a stage, not one of its parameters",
        )
        .at(whole, "a parameter is missing here")
        .help("Add it, as in `quantize-int4.group_size=64`.")),
        // Patterns have dots of their own, so what follows is one key.
        [(key, place), pattern @ ..] if *key == "layer_types" && !pattern.is_empty() => {
            let start = pattern[0].1.start;
            let pattern_place = Place { start, end: whole.end, ..whole };
            let pattern = pattern_place.source.text[pattern_place.start..pattern_place.end].to_owned();
            if !matches!(node.entry(key), Some(Entry { value: Node { content: Content::Map(_), .. }, .. })) {
                let content = Content::Map(Vec::new());
                let map = Node { content, written: None, used: place.clone(), defined: None };
                put(node, key, place.clone(), map);
            }
            if let Some(types) = child_mut(node, key) {
                put(types, &pattern, pattern_place, value);
            }
            Ok(())
        }
        [(key, place)] => {
            put(node, key, place.clone(), value);
            Ok(())
        }
        [key, steps @ ..] => {
            let names: Vec<String> = node.entries().iter().map(|entry| entry.key.clone()).collect();
            let inner =
                child_mut(node, key.0).ok_or_else(|| unknown(key, &names, "what is written there"))?;
            replace_within(inner, steps, value)
        }
    }
}

/// Replaces an entry of a list, or puts one into a mapping.
fn replace_within(node: &mut Node, steps: &[Word<'_>], value: Node) -> Result<(), Finding> {
    let [(word, place), deeper @ ..] = steps else { return Ok(()) };
    if let Content::Map(entries) = &node.content {
        let names: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        return match (deeper, child_mut(node, word)) {
            ([], _) => {
                put(node, word, place.clone(), value);
                Ok(())
            }
            (_, Some(inner)) => replace_within(inner, deeper, value),
            (_, None) => Err(unknown(&steps[0], &names, "what is written there")),
        };
    }
    let count = node.items().len();
    let item = match &mut node.content {
        Content::List(items) => word.parse::<usize>().ok().and_then(|index| items.get_mut(index)),
        _ => None,
    };
    match item {
        Some(item) if deeper.is_empty() => {
            *item = value;
            Ok(())
        }
        _ => {
            let finding =
                Finding::error("recipe::bad-override", format!("there is no entry `{word}` to override"));
            Err(match count {
                0 => finding.at(place.clone(), "nothing is below this").help("Give the whole value instead."),
                _ => finding
                    .at(place.clone(), format!("entries are 0 to {}", count - 1))
                    .help("Give the whole list instead: `…=[a, b]`."),
            })
        }
    }
}

/// The stage that the first words name, if they name one, and the words after it.
fn find_stage<'w, 't>(
    root: &Node,
    words: &'w [Word<'t>],
) -> Result<(Option<usize>, &'w [Word<'t>]), Finding> {
    let names: Vec<String> = stage_names(root);
    let (name, rest) = match words {
        [(word, _), name, rest @ ..] if *word == "stages" => (name, rest),
        // A key of the recipe itself; the schema knows which there are.
        [(word, _)] if *word != "stages" && !word.contains('-') => return Ok((None, words)),
        [(word, place)] if *word == "stages" => {
            let help = "Name one stage and a parameter, as in `stages.2.group_size=64`.";
            let finding = Finding::error("recipe::bad-override", "an override cannot replace all stages");
            return Err(finding.at(place.clone(), "a stage is missing here").help(help));
        }
        [name, rest @ ..] => (name, rest),
        [] => return Ok((None, words)),
    };
    if let Ok(index) = name.0.parse::<usize>() {
        return match index < names.len() {
            true => Ok((Some(index), rest)),
            false => {
                Err(Finding::error("recipe::bad-override", format!("there is no stage {index} to override"))
                    .at(
                        name.1.clone(),
                        match names.len() {
                            0 => "the recipe has no stages".to_owned(),
                            count => format!("stages are 0 to {}", count - 1),
                        },
                    )
                    .help("Stages are counted from 0; a stage that occurs once can be given by its name."))
            }
        };
    }
    let found = stages_named(root, name.0);
    match found[..] {
        [index] => Ok((Some(index), rest)),
        [] => {
            let told = |name: Option<&Node>| name.and_then(Node::told).unwrap_or_default().to_owned();
            let written: Vec<String> = stage_nodes(root).map(told).collect();
            Err(unknown(name, &written, "the recipe"))
        }
        [first, ..] => {
            Err(Finding::error("recipe::bad-override", format!("`{}` occurs {} times", name.0, found.len()))
                .at(name.1.clone(), "which of them is meant?")
                .help(format!("Give its number, counted from 0, as in `stages.{first}.…`.")))
        }
    }
}

fn unknown(word: &Word<'_>, known: &[String], place: &str) -> Finding {
    let finding = Finding::error("recipe::bad-override", format!("there is no `{}` to override", word.0));
    let near = nearest(word.0, known.iter().map(String::as_str).chain(["stages"]));
    let label = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("not found in {place}"),
    };
    let help = match known {
        [] => "A path is `stages.NUMBER.PARAMETER` or `STAGE.PARAMETER`, or a key of the recipe.".to_owned(),
        _ => format!("There are: {}.", known.join(", ")),
    };
    finding.at(word.1.clone(), label).help(help)
}

/// The names of the stages, as values.
fn stage_nodes(root: &Node) -> impl Iterator<Item = Option<&Node>> {
    let stages = root.entry("stages").map_or(&[][..], |entry| entry.value.items());
    stages.iter().map(|stage| stage.entry("stage").map(|entry| &entry.value))
}

fn stage_names(root: &Node) -> Vec<String> {
    stage_nodes(root).map(|name| name.and_then(Node::as_text).unwrap_or_default().to_owned()).collect()
}

fn stages_named(root: &Node, name: &str) -> Vec<usize> {
    stage_names(root).iter().enumerate().filter(|(_, stage)| *stage == name).map(|(index, _)| index).collect()
}

fn stage_mut(root: &mut Node, index: usize) -> Option<&mut Node> {
    match &mut child_mut(root, "stages")?.content {
        Content::List(stages) => stages.get_mut(index),
        _ => None,
    }
}

fn child_mut<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    match &mut node.content {
        Content::Map(entries) => {
            entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value)
        }
        _ => None,
    }
}

/// Sets or adds an entry. A value that is not a mapping stays as it is: the schema reports it.
fn put(node: &mut Node, key: &str, key_place: Place, value: Node) {
    let Content::Map(entries) = &mut node.content else { return };
    let entry = Entry { key: key.to_owned(), key_place, key_defined: None, value };
    match entries.iter_mut().find(|entry| entry.key == key) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}
