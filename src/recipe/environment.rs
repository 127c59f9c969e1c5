//! References `${VAR}` and `${VAR:-default}` in string values. `$${` is an escape for a literal `${`. Keys are not
//! changed.

use super::tree::{Content, Node};
use crate::finding::{Finding, Place, nearest};

/// Variables that are offered as what was meant for an unset one.
const WELL_KNOWN: [&str; 6] = ["HOME", "HF_HOME", "HF_HUB_CACHE", "PWD", "TMPDIR", "USER"];

/// Replaces the variables of all string values, which keep what was written; one finding for each that has no value.
pub(super) fn interpolate(
    node: &mut Node,
    env: &dyn Fn(&str) -> Option<String>,
    findings: &mut Vec<Finding>,
) {
    match &mut node.content {
        Content::Text(text) if text.contains("${") => {
            let (value, problems) = expand(text, env);
            let word = node.defined.as_ref().unwrap_or(&node.used);
            findings.extend(problems.into_iter().map(|problem| problem.finding(word)));
            node.written = Some(std::mem::replace(text, value));
        }
        Content::List(items) => items.iter_mut().for_each(|item| interpolate(item, env, findings)),
        Content::Map(entries) => {
            entries.iter_mut().for_each(|entry| interpolate(&mut entry.value, env, findings));
        }
        _ => {}
    }
}

/// Keys of stages whose values are paths, or hold some.
const PATHS: [&str; 5] = ["model", "path", "file", "text", "calibration"];

/// Replaces `~` and `$HOME` at the beginning of paths, as a shell does, and refuses what else a shell would replace there: no
/// folder is ever called so.
pub(super) fn expand_home(
    root: &mut Node,
    env: &dyn Fn(&str) -> Option<String>,
    findings: &mut Vec<Finding>,
) {
    let Content::Map(entries) = &mut root.content else { return };
    for entry in entries.iter_mut().filter(|entry| entry.key == "stages") {
        let Content::List(stages) = &mut entry.value.content else { continue };
        stages.iter_mut().for_each(|stage| expand_paths(stage, env, findings));
    }
}

fn expand_paths(node: &mut Node, env: &dyn Fn(&str) -> Option<String>, findings: &mut Vec<Finding>) {
    let Content::Map(entries) = &mut node.content else { return };
    for entry in entries.iter_mut().filter(|entry| PATHS.contains(&entry.key.as_str())) {
        match &mut entry.value.content {
            Content::Text(_) => expand_path(&mut entry.value, env, findings),
            Content::List(items) => items.iter_mut().for_each(|item| expand_path(item, env, findings)),
            _ => expand_paths(&mut entry.value, env, findings),
        }
    }
}

fn expand_path(node: &mut Node, env: &dyn Fn(&str) -> Option<String>, findings: &mut Vec<Finding>) {
    let Content::Text(text) = &mut node.content else { return };
    let place = node.defined.as_ref().unwrap_or(&node.used);
    match with_home(text, env) {
        None => {}
        Some(Ok(expanded)) => {
            let before = std::mem::replace(text, expanded);
            node.written.get_or_insert(before);
        }
        Some(Err(help)) => findings.push(
            Finding::error(
                "recipe::shell-word",
                format!("`{text}` begins with a word that only a shell replaces"),
            )
            .at(place.clone(), "would be a folder of this name")
            .help(help),
        ),
    }
}

/// A path with the home folder in place of `~` or `$HOME`; what to write instead, if a shell would replace something else. None if
/// it would replace nothing.
pub(super) fn with_home(path: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<Result<String, String>> {
    let (first, rest) = path.split_at(path.find(['/', '\\']).unwrap_or(path.len()));
    let home = || env("HOME").or_else(|| env("USERPROFILE")).filter(|home| !home.is_empty());
    match first {
        "~" | "$HOME" => Some(
            home()
                .map(|home| format!("{home}{rest}"))
                .ok_or_else(|| "`HOME` is not set. Set it, or write the path from the root.".to_owned()),
        ),
        _ if first.starts_with('~') => Some(Err(format!(
            "Write the folder that `{first}` stands for; or `./{first}`, if it is called so."
        ))),
        _ => {
            let name = first.strip_prefix('$')?;
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| {
                Err(format!(
                    "Write `${{{name}}}` for the variable; or `./{first}`, if a folder is called so."
                ))
            })
        }
    }
}

/// The text that [`interpolate`] turns into `text`.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

/// A reference that cannot be replaced, as it was written.
struct Problem {
    written: String,
    kind: ProblemKind,
}

enum ProblemKind {
    Unset { name: String },
    Malformed,
}

impl Problem {
    fn finding(self, value: &Place) -> Finding {
        // The reference is looked for in what was written, since escapes may have shortened the value.
        let text = &value.source.text[value.start..value.end];
        let place = match text.find(&self.written) {
            Some(at) => {
                Place { start: value.start + at, end: value.start + at + self.written.len(), ..value.clone() }
            }
            None => value.clone(),
        };
        match self.kind {
            ProblemKind::Unset { name } => {
                let finding = Finding::error(
                    "recipe::unset-variable",
                    format!("the environment variable `{name}` is not set"),
                )
                .at(place, "has no value and no default");
                let help = match nearest(&name, WELL_KNOWN).filter(|near| *near != name) {
                    Some(near) => format!(
                        "Did you mean `{near}`? Else set it, or write a default: `${{{name}:-value}}`."
                    ),
                    None => format!("Set it, or write a default: `${{{name}:-value}}`."),
                };
                finding.help(help)
            }
            ProblemKind::Malformed => {
                Finding::error("recipe::bad-variable", "this is no reference to an environment variable")
                    .at(place, "not of the form `${NAME}` or `${NAME:-default}`")
                    .help("Names have letters, digits and `_`. Write `$${` for a literal `${`.")
            }
        }
    }
}

fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> (String, Vec<Problem>) {
    let mut value = String::with_capacity(text.len());
    let mut problems = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        value.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$${") {
            value.push_str("${");
            rest = after;
        } else if let Some(body) = rest.strip_prefix("${") {
            let closed = body.find('}');
            let inner = &body[..closed.unwrap_or(body.len())];
            let written = &rest[..(2 + inner.len() + 1).min(rest.len())];
            match replacement(inner, env).filter(|_| closed.is_some()) {
                Some(Ok(replacement)) => value.push_str(&replacement),
                failed => {
                    let kind = match failed {
                        Some(Err(name)) => ProblemKind::Unset { name },
                        _ => ProblemKind::Malformed,
                    };
                    // The same reference a second time in one value has the same place and the same remedy.
                    if !problems.iter().any(|known: &Problem| known.written == written) {
                        problems.push(Problem { written: written.to_owned(), kind });
                    }
                    // An empty value would be complained about once more.
                    value.push_str(written);
                }
            }
            rest = &rest[written.len()..];
        } else {
            value.push('$');
            rest = &rest[1..];
        }
    }
    value.push_str(rest);
    (value, problems)
}

/// The value of the text between the braces. The name if the variable is unset. None if the text is not a reference.
/// As in a shell, the default also replaces an empty value.
fn replacement(inner: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<Result<String, String>> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    Some(match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/ana".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn value(text: &str) -> String {
        let (value, problems) = expand(text, &env);
        assert!(problems.is_empty(), "{text}");
        value
    }

    #[test]
    fn variables_and_defaults() {
        assert_eq!(value("${HOME}/m"), "/home/ana/m");
        assert_eq!(value("${NONE:-a}-${EMPTY:-b}-${EMPTY}"), "a-b-");
        assert_eq!(value("${HOME:-x}"), "/home/ana");
        assert_eq!(value("re:x$"), "re:x$");
        assert_eq!(value("$HOME $$"), "$HOME $$");
    }

    #[test]
    fn escapes_go_round() {
        for text in ["${A}", "$${A}", "$$${", "a$", "${${", "$"] {
            assert_eq!(value(&escape(text)), text);
        }
    }

    #[test]
    fn what_has_no_value_is_told() {
        for text in ["${NONE}", "${}", "${1A}", "${A", "${A B}", "${A-x}"] {
            assert_eq!(expand(text, &env).1.len(), 1, "{text}");
        }
    }
}
