//! Recipe values with environment variables. The values of the variables are used but never shown. Published or
//! displayed text holds `${NAME}`, as it was written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tree::{Content, Node, segment};
use crate::finding::Finding;
use crate::fs::paths::{canonical, is_address};
use crate::layer::pattern::Pattern;
use crate::recipe::Recipe;
use crate::stage::Stage;

/// A value with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The place in the recipe, as a JSON pointer.
    pub pointer: String,
    /// The value, with `${NAME}` in it.
    pub text: String,
    /// The value with the variables replaced.
    value: String,
}

/// All values with variables.
pub(super) fn all(tree: &Node) -> Vec<Written> {
    let mut out = Vec::new();
    collect(tree, &mut String::new(), &mut out);
    out
}

fn collect(node: &Node, pointer: &mut String, out: &mut Vec<Written>) {
    let len = pointer.len();
    match &node.content {
        Content::Text(value) => {
            out.extend(node.written.as_ref().map(|text| Written {
                pointer: pointer.clone(),
                text: text.clone(),
                value: value.clone(),
            }));
        }
        Content::List(items) => {
            for (index, item) in items.iter().enumerate() {
                pointer.push_str(&format!("/{index}"));
                collect(item, pointer, out);
                pointer.truncate(len);
            }
        }
        Content::Map(entries) => {
            for entry in entries {
                pointer.push_str(&segment(&entry.key));
                collect(&entry.value, pointer, out);
                pointer.truncate(len);
            }
        }
        _ => {}
    }
}

/// Puts texts in the places of a recipe's JSON that they were written in.
pub(super) fn put<'w>(recipe: &mut Value, written: impl IntoIterator<Item = (&'w str, &'w str)>) {
    for (pointer, text) in written {
        if let Some(value) = recipe.pointer_mut(pointer) {
            *value = Value::String(text.to_owned());
        }
    }
}

/// What stands for a path from the root of the machine in what is published: a variable, or the name of an output. None if the path is
/// relative or an address.
pub(crate) fn public_path(key: &str, path: &str) -> Option<String> {
    if is_address(path) || !Path::new(path).is_absolute() {
        return None;
    }
    let name =
        || Path::new(path).file_name().map_or("out".to_owned(), |name| name.to_string_lossy().into_owned());
    Some(match key {
        "path" => name(),
        "model" => "${MODEL}".to_owned(),
        key if key.starts_with("text") => "${TEXT}".to_owned(),
        _ => "${CALIBRATION}".to_owned(),
    })
}

/// Puts variables in the places of paths from the root of the machine. Gives what was replaced by what.
pub(super) fn hide_paths(recipe: &mut Value) -> Vec<(String, String)> {
    let mut hidden = Vec::new();
    let mut hide = |key: &str, value: Option<&mut Value>| {
        if let Some(value) = value
            && let Some(path) = value.as_str()
            && let Some(public) = public_path(key, path)
        {
            hidden.push((path.to_owned(), public.clone()));
            *value = Value::String(public);
        }
    };
    for stage in recipe.get_mut("stages").and_then(Value::as_array_mut).into_iter().flatten() {
        hide("model", stage.get_mut("model"));
        hide("path", stage.get_mut("path"));
        hide("calibration", stage.pointer_mut("/calibration/file"));
        for text in stage.get_mut("text").and_then(Value::as_array_mut).into_iter().flatten() {
            hide("text", Some(text));
        }
    }
    hidden
}

/// Tells the patterns of a recipe how they were written.
pub(super) fn mark_patterns(recipe: &mut Recipe, tree: &Node) {
    for (index, stage) in recipe.stages.iter_mut().enumerate() {
        let lists: Vec<(&str, &mut Vec<Pattern>)> = match stage {
            Stage::ResolveSkips(skips) => vec![
                ("modules_to_not_convert", &mut skips.modules_to_not_convert),
                ("skip_layer_names", &mut skips.skip_layer_names),
                ("quantize_anyway", &mut skips.quantize_anyway),
            ],
            Stage::QuantizeInt4(stage) => vec![("targets", &mut stage.targets)],
            Stage::QuantizeInt8(stage) => vec![("targets", &mut stage.targets)],
            Stage::QuantizeFp8(stage) => vec![("targets", &mut stage.targets)],
            Stage::QuantizeMxfp4(stage) => vec![("targets", &mut stage.targets)],
            Stage::QuantizeNvfp4(stage) => vec![("targets", &mut stage.targets)],
            _ => continue,
        };
        for (key, patterns) in lists {
            for (position, pattern) in patterns.iter_mut().enumerate() {
                let node = tree.at(&format!("/stages/{index}/{key}/{position}"));
                if let Some(text) = node.and_then(|node| node.written.clone()) {
                    pattern.set_written(text);
                }
            }
        }
    }
}

/// Finds in messages the paths that variables made, and says them as they were written. Only whole paths from the root are
/// looked for, so that a short or common value garbles nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Concealer {
    /// The texts to find and their replacements, longest first.
    needles: Vec<(String, String)>,
    /// The values of paths with variables, as the recipe has them.
    paths: Vec<String>,
}

impl Concealer {
    pub(super) fn new(written: &[Written], base: &Path) -> Self {
        let mut out = Self::default();
        for one in written {
            let keys: Vec<&str> = one.pointer.split('/').skip(3).collect();
            match keys[..] {
                ["model" | "path"] | ["calibration", "file"] | ["text", _] => {
                    out.paths.push(one.value.clone());
                    match one.value.strip_prefix("hf://") {
                        Some(name) => out.add_repository(name, &one.text),
                        None => out.add_path(&one.value, &one.text, base),
                    }
                }
                ["include" | "exclude", _] => out.add(format!("`{}`", one.value), format!("`{}`", one.text)),
                _ => {}
            }
        }
        out.needles.retain(|(needle, _)| needle.len() > 2);
        out.needles.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        out.needles.dedup_by(|a, b| a.0 == b.0);
        out
    }

    fn add(&mut self, needle: String, text: String) {
        self.needles.push((needle, text));
    }

    fn add_repository(&mut self, name: &str, text: &str) {
        let short = text.strip_prefix("hf://").unwrap_or(text);
        self.add(format!("hf://{name}"), text.to_owned());
        self.add(name.to_owned(), short.to_owned());
        let (name, revision) = name.split_once('@').unwrap_or((name, ""));
        if let Some((organisation, _)) = name.split_once('/') {
            self.add(name.to_owned(), short.to_owned());
            self.add(format!("hf://{organisation}/"), format!("{text}/../"));
        }
        self.add(format!("models--{}", name.replace('/', "--")), format!("models--{short}"));
        self.add(format!("`{revision}`"), format!("`{text}`"));
    }

    fn add_path(&mut self, value: &str, text: &str, base: &Path) {
        let base = absolute(base);
        let fixed = text.split("${").next().unwrap_or_default();
        let fixed = base.join(&fixed[..fixed.rfind('/').map_or(0, |slash| slash + 1)]);
        let path = base.join(value);
        let normal = normal(&path);
        for path in [canonical(&normal), path, normal] {
            let Some(shown) = path.to_str() else { continue };
            self.add(shown.to_owned(), text.to_owned());
            // The names of hidden files beside an output begin with a dot, then the output's name.
            if let (Some(parent), Some(name)) =
                (path.parent(), path.file_name().and_then(|name| name.to_str()))
            {
                let (above, last) = match text.rfind('/').filter(|slash| !text[*slash..].contains('}')) {
                    Some(slash) => text.split_at(slash + 1),
                    None => ("", text),
                };
                self.add(format!("{}", parent.join(format!(".{name}")).display()), format!("{above}.{last}"));
            }
            let mut above = text.to_owned();
            for ancestor in path.ancestors().skip(1) {
                // A folder that the recipe or its path contains, or the top of the file system, is not a secret from
                // a variable.
                if fixed.starts_with(ancestor) || ancestor.components().count() < 3 {
                    break;
                }
                above.push_str("/..");
                self.add(ancestor.display().to_string(), above.clone());
            }
        }
    }

    /// The folder that a path of the recipe is relative to. One with a variable is taken from the root, by which it is found
    /// in messages.
    pub(super) fn base_of(&self, path: &str, base: &Path) -> PathBuf {
        if self.paths.iter().any(|known| known == path) { absolute(base) } else { base.to_owned() }
    }

    /// A text in which paths with variables are as they were written.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (needle, written) in &self.needles {
            let mut from = 0;
            while let Some(at) = out[from..].find(needle.as_str()).map(|at| from + at) {
                let end = at + needle.len();
                let goes_on = out[end..].starts_with(|c: char| c.is_alphanumeric());
                if goes_on && !needle.ends_with(['/', '`']) {
                    from = end;
                } else {
                    out.replace_range(at..end, written);
                    from = at + written.len();
                }
            }
        }
        out
    }

    /// As [`Concealer::text`], of all that a finding says.
    pub(super) fn finding(&self, finding: &mut Finding) {
        if self.needles.is_empty() {
            return;
        }
        finding.message = self.text(&finding.message);
        finding.help.iter_mut().for_each(|line| *line = self.text(line));
        finding.labels.iter_mut().for_each(|label| label.text = self.text(&label.text));
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A path without `.` and `..`, as far as that can be told without the file system.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concealer(pointer: &str, text: &str, value: &str) -> Concealer {
        let written = Written { pointer: pointer.into(), text: text.into(), value: value.into() };
        Concealer::new(&[written], Path::new("/no/such/base"))
    }

    #[test]
    fn paths_are_told_as_they_were_written() {
        let concealer = concealer("/stages/0/model", "${ROOT}/m", "/srv/secret/deep/m");
        for (text, told) in [
            ("cannot read `/srv/secret/deep/m/config.json`: no", "cannot read `${ROOT}/m/config.json`: no"),
            ("/srv/secret/deep/.m.lock is there", "${ROOT}/.m.lock is there"),
            ("no folder /srv/secret/deep", "no folder ${ROOT}/m/.."),
            ("did you mean `/srv/secret/deep/mm`?", "did you mean `${ROOT}/m/../mm`?"),
            ("the secret of m in /srv", "the secret of m in /srv"),
        ] {
            assert_eq!(concealer.text(text), told);
        }
    }

    #[test]
    fn short_values_garble_nothing() {
        let concealer = concealer("/stages/3/path", "out/${RUN}", "out/1");
        assert_eq!(
            concealer.text("1 of 11 in out, not /no/such/base/out/12"),
            "1 of 11 in out, not /no/such/base/out/12"
        );
        assert_eq!(concealer.text("/no/such/base/out/1 exists"), "out/${RUN} exists");
        assert_eq!(concealer.text("/no/such/base/out is full"), "/no/such/base/out is full");
    }

    #[test]
    fn names_of_the_hub_are_told_as_they_were_written() {
        let concealer = concealer("/stages/0/model", "hf://${ORG}/x", "hf://secret/x");
        assert_eq!(
            concealer.text("`hf://secret/x` is not in /hub; get it with `hf download secret/x`"),
            "`hf://${ORG}/x` is not in /hub; get it with `hf download ${ORG}/x`"
        );
        assert_eq!(concealer.text("/hub/models--secret--x/snapshots"), "/hub/models--${ORG}/x/snapshots");
        assert!(!concealer.text("The cache has `hf://secret/y`.").contains("secret"));
    }
}
