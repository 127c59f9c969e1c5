//! Violations of the schema as findings on the right words.
//!
//! A schema validator says that a value at a pointer breaks a keyword. Here that becomes the information a person
//! needs: the word, its likely meaning, and the allowed values. The tree gives the places, the schema the candidates
//! and explanations.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use serde_json::Value;

use super::schema;
use super::tree::{Entry, Node, segment, segments};
use crate::finding::Finding;
use crate::layer::file_glob::FileGlob;
use crate::layer::pattern::{Pattern, PatternError};

mod aliases;
mod translations;
mod wording;

use aliases::{labelled, merge};
use wording::{
    actual, description, example, expected, list, meant_stage, nearest_word, number, parameter, shown,
};

/// The number of violations after which the rest is not checked. Such a file is not a recipe.
const MAX_FINDINGS: usize = 200;

/// All violations of the schema by `value`, which is the JSON of `tree`.
pub(super) fn violations(tree: &Node, value: &Value) -> Vec<Finding> {
    if let Some(finding) = translations::of_recipe(tree, value) {
        return vec![finding];
    }
    let mut check = Check { tree, root: value, findings: Vec::new() };
    for error in schema::validator().iter_errors(value) {
        check.error(&error);
        if check.findings.len() > MAX_FINDINGS {
            break;
        }
    }
    check.finish()
}

/// A finding, with what decides whether another one makes it superfluous.
struct Found {
    pointer: String,
    keyword: Keyword,
    finding: Finding,
}

#[derive(PartialEq)]
enum Keyword {
    /// An unknown key that is near this known one.
    UnknownKey(Option<String>),
    /// This required key is missing.
    Missing(String),
    /// Of this rank: of several findings of one value the lowest is told.
    Value(u8),
}

/// What should stand in the place of a value of the wrong type.
struct Wanted<'a> {
    /// In a message.
    said: &'a str,
    /// The type of the schema.
    kind: &'a str,
    rank: u8,
}

/// Ranks of findings about one value. If the value is not even a word, listing the valid words helps most.
const WORDS: u8 = 0;
const TYPE: u8 = 1;
const VALUE: u8 = 2;
/// A value below the minimum is not a multiple either. Then the minimum is reported.
const TOO_SMALL: u8 = 3;

struct Check<'a> {
    tree: &'a Node,
    root: &'a Value,
    findings: Vec<Found>,
}

impl Check<'_> {
    fn error(&mut self, error: &ValidationError<'_>) {
        let pointer = error.instance_path().as_str().to_owned();
        match error.kind() {
            Kind::OneOfNotValid { context } if is_stage(&pointer) => self.branches(&pointer, context),
            Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
                unexpected.iter().take(MAX_FINDINGS + 1).for_each(|key| self.unknown_key(&pointer, key));
            }
            Kind::Required { property } => self.missing(&pointer, property.as_str().unwrap_or_default()),
            Kind::PropertyNames { error } => self.bad_key(&pointer, error),
            kind => self.bad_value(&pointer, error.instance(), kind),
        }
    }

    fn push(&mut self, pointer: &str, keyword: Keyword, finding: Finding) {
        self.findings.push(Found { pointer: pointer.to_owned(), keyword, finding });
    }

    /// Takes the branch that was meant: the one without a failed `const`. If all have one, the word itself is
    /// unknown.
    fn branches(&mut self, pointer: &str, context: &[Vec<ValidationError<'_>>]) {
        let fails_const = |branch: &&Vec<ValidationError<'_>>| {
            branch.iter().any(|e| matches!(e.kind(), Kind::Constant { .. }))
        };
        let stages: Vec<&str> = schema::stages().map(|(name, _)| name).collect();
        let value = self.root.pointer(pointer).unwrap_or(&Value::Null);
        match value.get("stage") {
            _ if !value.is_object() => {
                self.wrong_type(pointer, value, Wanted { said: "a stage", kind: "mapping", rank: TYPE })
            }
            None => self.no_stage_key(pointer, &stages),
            Some(Value::String(word)) if !stages.contains(&word.as_str()) => {
                let word = word.clone();
                self.unknown_stage(&format!("{pointer}/stage"), &word, &stages);
                // The branches are in the order of the stages. The error of the intended branch about its name was
                // just reported.
                let meant = meant_stage(&word, &stages).and_then(|(index, _)| context.get(index));
                let parameters =
                    meant.into_iter().flatten().filter(|e| !matches!(e.kind(), Kind::Constant { .. }));
                parameters.for_each(|error| self.error(error));
            }
            Some(Value::String(_)) => {
                if let Some(branch) = context.iter().find(|branch| !fails_const(branch)) {
                    branch.iter().for_each(|error| self.error(error));
                }
            }
            Some(other) => {
                let other = other.clone();
                self.wrong_type(
                    &format!("{pointer}/stage"),
                    &other,
                    Wanted { said: "the name of a stage", kind: "text", rank: TYPE },
                );
            }
        }
    }

    /// A text in back quotes, with variables as they were written.
    fn said(&self, pointer: &str, word: &str) -> String {
        shown(self.tree.at(pointer).and_then(Node::told).unwrap_or(word))
    }

    /// Why a value is no pattern, which quotes it; with variables, that it is none.
    fn problem(&self, pointer: &str, problem: PatternError) -> PatternError {
        if !self.is_of_variables(pointer) {
            return problem;
        }
        PatternError {
            message: "not with what the variable gives".to_owned(),
            help: "Look at the value of the variable.".to_owned(),
        }
    }

    /// Whether a value has variables. Of what they gave nothing is told, neither the text nor what it is like.
    fn is_of_variables(&self, pointer: &str) -> bool {
        self.tree.at(pointer).is_some_and(|node| node.written.is_some())
    }

    fn unknown_stage(&mut self, pointer: &str, word: &str, stages: &[&str]) {
        let near = nearest_word(word, stages).filter(|_| !self.is_of_variables(pointer));
        let label = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "not the name of a stage".to_owned(),
        };
        let finding = Finding::error(
            "recipe::unknown-stage",
            format!("there is no stage {}", self.said(pointer, word)),
        )
        .help(format!("Stages: {}.", list(stages)));
        let finding = self.label_value(finding, pointer, &label);
        self.push(pointer, Keyword::Value(TYPE), finding);
    }

    fn no_stage_key(&mut self, pointer: &str, stages: &[&str]) {
        let node = self.tree.nearest(pointer).0;
        let first = node.entries().first().map(|entry| entry.key.clone()).unwrap_or_default();
        let finding = Finding::error("recipe::missing-key", "a stage has to say which one it is");
        let finding = match nearest_word(&first, stages) {
            // The form that other tools have: `- load: {…}` or `- quantize-int4:`.
            Some(near) => {
                finding.at(node.word().clone(), "a stage's name is the value of `stage`").help(format!(
                    "Write `- stage: {near}`, and its parameters as keys below, in the column of `stage`."
                ))
            }
            None => finding
                .at(node.word().clone(), "this list entry has no `stage: …`")
                .help(format!("Begin it with `- stage: NAME`. Stages: {}.", list(stages))),
        };
        self.push(pointer, Keyword::Value(TYPE), finding);
    }

    fn unknown_key(&mut self, pointer: &str, key: &str) {
        let (owner, schema) = self.owner(pointer);
        let known = schema.map_or(Vec::new(), schema::property_names);
        let near = nearest_word(key, &known);
        let elsewhere = schema::stages()
            .find(|(name, schema)| Some(*name) != owner && schema::property_names(schema).contains(&key))
            .map(|(name, _)| name);
        let at = format!("{pointer}{}", segment(key));
        let value = self.root.pointer(&at).unwrap_or(&Value::Null);
        let translation = translations::of_key(owner, key, value);
        let label = match (near, elsewhere) {
            _ if translation.is_some() => "a word of other tools".to_owned(),
            (_, Some(other)) => format!("`{other}` has a parameter of this name"),
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, None) => "not known here".to_owned(),
        };
        let (message, help) = match owner {
            Some(stage) => {
                let parameters: Vec<&str> = known.iter().copied().filter(|key| *key != "stage").collect();
                let message = format!("`{stage}` has no parameter {}", shown(key));
                (message, format!("Parameters of `{stage}`: {}.", list(&parameters)))
            }
            None => (
                format!("a recipe has no key {}", shown(key)),
                format!("Keys of a recipe: {}.", list(&known)),
            ),
        };
        let near = near.filter(|_| elsewhere.is_none()).map(str::to_owned);
        let finding = Finding::error("recipe::unknown-key", message).help_lines(translation).help(help);
        let finding = self.label_key(finding, &at, &label);
        self.push(&at, Keyword::UnknownKey(near), finding);
    }

    fn missing(&mut self, pointer: &str, key: &str) {
        let (owner, schema) = self.owner(pointer);
        let message = match owner {
            Some(stage) => format!("`{stage}` needs `{key}`"),
            None => format!("a recipe needs `{key}`"),
        };
        let node = self.tree.nearest(pointer).0;
        let mut finding = Finding::error("recipe::missing-key", message)
            .at(node.word().clone(), format!("add `{key}: {}` here", example(key)));
        if let Some(text) = schema.and_then(|schema| description(schema, key)) {
            finding = finding.help(text);
        }
        self.push(pointer, Keyword::Missing(key.to_owned()), finding);
    }

    /// A key that is no pattern, in a mapping from patterns.
    fn bad_key(&mut self, pointer: &str, error: &ValidationError<'_>) {
        let instance = error.instance();
        let key = instance.as_str().unwrap_or_default();
        let at = format!("{pointer}{}", segment(key));
        if let Some(problem) = Pattern::parse(key).err() {
            let finding = Finding::error("recipe::bad-pattern", format!("{} is not a pattern", shown(key)))
                .help(problem.help);
            let finding = self.label_key(finding, &at, &problem.message);
            self.push(&at, Keyword::Value(TYPE), finding);
        }
    }

    fn unknown_word(&mut self, pointer: &str, word: &str, allowed: &[&str]) {
        let name = parameter(pointer);
        let label = match nearest_word(word, allowed) {
            _ if self.is_of_variables(pointer) => "what the variable gives is not allowed".to_owned(),
            Some(near) => format!("did you mean `{near}`?"),
            None if matches!(word, "yes" | "no" | "on" | "off") => {
                "`yes` and `no` are plain text in YAML 1.2".to_owned()
            }
            None => "not one of the allowed values".to_owned(),
        };
        let message = format!("{} is not a value of `{name}`", self.said(pointer, word));
        let finding =
            Finding::error("recipe::bad-value", message).help(format!("Allowed: {}.", list(allowed)));
        let finding = self.label_value(finding, pointer, &label);
        self.push(pointer, Keyword::Value(VALUE), finding);
    }

    fn wrong_type(&mut self, pointer: &str, value: &Value, wanted: Wanted<'_>) {
        let Wanted { said: wanted, kind, rank } = wanted;
        let name = parameter(pointer);
        let message = match pointer {
            "" => format!("a recipe has to be {wanted}"),
            _ => format!("`{name}` has to be {wanted}"),
        };
        let finding = Finding::error("recipe::wrong-type", message);
        let finding = self.label_value(finding, pointer, &format!("this is {}", actual(value)));
        let help = match name.as_str() {
            "stage" => Some(format!(
                "Stages: {}.",
                list(&schema::stages().map(|(name, _)| name).collect::<Vec<_>>())
            )),
            _ if self.is_of_variables(pointer) => wording::variable_help(kind).map(str::to_owned),
            _ => wording::type_help(value, kind, &name).or_else(|| self.explanation(pointer)),
        };
        let finding = match help {
            Some(help) => finding.help(help),
            None => finding,
        };
        self.push(pointer, Keyword::Value(rank), finding);
    }

    fn bad_value(&mut self, pointer: &str, value: &Value, kind: &Kind) {
        let name = parameter(pointer);
        let text = value.as_str().unwrap_or_default();
        let range = |message: String, label: String| Some(("recipe::out-of-range", message, label, None));
        let is_empty = |what: &str| {
            Some((
                "recipe::bad-value",
                format!("`{name}` must not be empty"),
                format!("there is {what} here"),
                None,
            ))
        };
        let problem = match kind {
            Kind::Type { kind } => {
                let types: Vec<String> = match kind {
                    TypeKind::Single(one) => vec![one.to_string()],
                    TypeKind::Multiple(several) => several.iter().map(|one| one.to_string()).collect(),
                };
                let first = types.first().map_or("", String::as_str);
                let wanted = expected(first, pointer.is_empty());
                return self.wrong_type(pointer, value, Wanted { said: wanted, kind: first, rank: TYPE });
            }
            Kind::Enum { options } => {
                let options = options.as_array().map_or(&[][..], Vec::as_slice);
                let allowed: Vec<&str> = options.iter().filter_map(Value::as_str).collect();
                return match value {
                    Value::String(word) => self.unknown_word(pointer, word, &allowed),
                    _ => self.wrong_type(
                        pointer,
                        value,
                        Wanted { said: &format!("one of {}", list(&allowed)), kind: "word", rank: WORDS },
                    ),
                };
            }
            Kind::Minimum { limit } => range(
                format!("`{name}` has to be at least {}", number(limit)),
                format!("{value} is too small"),
            ),
            Kind::ExclusiveMinimum { limit } => range(
                format!("`{name}` has to be more than {}", number(limit)),
                format!("{value} is too small"),
            ),
            Kind::Maximum { limit } => range(
                format!("`{name}` has to be at most {}", number(limit)),
                format!("{value} is too large"),
            ),
            Kind::ExclusiveMaximum { limit } => range(
                format!("`{name}` has to be less than {}", number(limit)),
                format!("{value} is too large"),
            ),
            Kind::MultipleOf { multiple_of } => range(
                format!("`{name}` has to be a multiple of {multiple_of}"),
                wording::multiples(value, *multiple_of),
            ),
            Kind::MinLength { .. } => is_empty("no text"),
            Kind::MinItems { .. } => is_empty("no entry"),
            Kind::Constant { expected_value } if pointer == "/version" => Some((
                "recipe::unknown-version",
                format!("recipe version {value} is not known"),
                format!("this monoquant reads version {expected_value}"),
                Some("A newer recipe needs a newer monoquant.".to_owned()),
            )),
            Kind::Format { format } if format == "layer-pattern" => {
                Pattern::parse(text).err().map(|problem| self.problem(pointer, problem)).map(|problem| {
                    (
                        "recipe::bad-pattern",
                        format!("{} is not a pattern", self.said(pointer, text)),
                        problem.message,
                        Some(problem.help),
                    )
                })
            }
            Kind::Format { format } if format == "file-glob" => {
                FileGlob::parse(text).err().map(|problem| self.problem(pointer, problem)).map(|problem| {
                    (
                        "recipe::bad-glob",
                        format!("{} is not a file glob", self.said(pointer, text)),
                        problem.message,
                        Some(problem.help),
                    )
                })
            }
            Kind::Pattern { .. } | Kind::Format { .. } if name == "shards" => Some((
                "recipe::bad-value",
                format!("{} is not a value of `shards`", self.said(pointer, text)),
                "neither `keep` nor a size in KB, MB, GB, KiB, MiB or GiB".to_owned(),
                Some("For example `shards: 5GB`.".to_owned()),
            )),
            _ => None,
        };
        // A keyword that is not foreseen here still gives an error at the right word.
        let (code, message, label, help) = problem.unwrap_or_else(|| {
            (
                "recipe::bad-value",
                format!("this value of `{name}` is not allowed"),
                kind.keyword().to_owned(),
                None,
            )
        });
        let mut finding = self.label_value(Finding::error(code, message), pointer, &label);
        if let Some(help) = help.or_else(|| self.explanation(pointer)) {
            finding = finding.help(help);
        }
        let rank = if matches!(kind, Kind::Minimum { .. }) { TOO_SMALL } else { VALUE };
        self.push(pointer, Keyword::Value(rank), finding);
    }

    /// The description of the parameter at a pointer, and its usual values.
    fn explanation(&self, pointer: &str) -> Option<String> {
        let (parent, _) = pointer.rsplit_once('/')?;
        let schema = self.owner(parent).1?;
        let name = parameter(pointer);
        let text = description(schema, &name)?;
        let examples = schema.pointer(&format!("/properties/{name}/examples")).and_then(Value::as_array);
        Some(match examples {
            Some(values) if values.len() > 1 => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                format!("{text} Usual: {}.", values.join(", "))
            }
            _ => text.to_owned(),
        })
    }

    /// The stage (or the mapping within one) that owns the keys at a pointer, or is surely meant to, and their schema; of the top
    /// level, none.
    fn owner(&self, pointer: &str) -> (Option<&'static str>, Option<&'static Value>) {
        if pointer.is_empty() {
            return (None, Some(schema::root()));
        }
        if pointer.ends_with("/calibration") {
            return (Some("calibration"), schema::definition("Calibration"));
        }
        let word = self.root.pointer(&format!("{pointer}/stage")).and_then(Value::as_str).unwrap_or_default();
        let names: Vec<&str> = schema::stages().map(|(name, _)| name).collect();
        let word = meant_stage(word, &names).map_or(word, |(_, name)| name);
        match schema::stages().find(|(name, _)| *name == word) {
            Some((name, schema)) => (Some(name), Some(schema)),
            None => (None, None),
        }
    }

    fn label_value(&self, finding: Finding, pointer: &str, label: &str) -> Finding {
        let (node, found) = self.tree.nearest(pointer);
        if !found {
            return finding.at(node.word().clone(), label);
        }
        // Of an empty value the key is the word to see.
        let entry = self.tree.entry_at(pointer).filter(|_| node.word().is_empty());
        let word = entry.map_or_else(|| node.word(), |entry| &entry.key_place);
        labelled(finding, word, node.defined.as_ref(), label)
    }

    fn label_key(&self, finding: Finding, pointer: &str, label: &str) -> Finding {
        match self.tree.entry_at(pointer) {
            Some(Entry { key_place, key_defined, .. }) => {
                labelled(finding, key_place, key_defined.as_ref(), label)
            }
            None => self.label_value(finding, pointer, label),
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        let near: Vec<(String, String)> = self
            .findings
            .iter()
            .filter_map(|found| match &found.keyword {
                Keyword::UnknownKey(Some(near)) => Some((parent(&found.pointer).to_owned(), near.clone())),
                _ => None,
            })
            .collect();
        // A misspelt key is told once, not again as the missing one.
        self.findings.retain(|found| match &found.keyword {
            Keyword::Missing(key) => {
                !near.iter().any(|(parent, near)| *parent == found.pointer && near == key)
            }
            _ => true,
        });
        let ranks: Vec<(String, u8)> = self
            .findings
            .iter()
            .filter_map(|found| match found.keyword {
                Keyword::Value(rank) => Some((found.pointer.clone(), rank)),
                _ => None,
            })
            .collect();
        // A wrong type breaks other keywords too; it is told alone.
        self.findings.retain(|found| match found.keyword {
            Keyword::Value(rank) => {
                !ranks.iter().any(|(pointer, other)| *pointer == found.pointer && *other < rank)
            }
            _ => true,
        });
        merge(self.findings.into_iter().map(|found| found.finding))
    }
}

fn is_stage(pointer: &str) -> bool {
    let mut parts = segments(pointer);
    parts.next().as_deref() == Some("stages") && parts.next().is_some() && parts.next().is_none()
}

fn parent(pointer: &str) -> &str {
    pointer.rsplit_once('/').map_or("", |(parent, _)| parent)
}
