//! Names of modules as regular expressions that match every engine's own name for the same module.
//!
//! Engines and versions of transformers put the language model below different names (`model.language_model.`,
//! `language_model.model.`, `thinker.`). So an entry holds only the end of a name if that is enough. If two stacks
//! differ only in the part before the layers, the entry holds the words of that part that are not renamed, or each of
//! the names in turn.

use std::cell::Cell;

use regex::Regex;

use crate::plan::compressed_tensors::QuantizedModule;

/// The words that engines put before the language model's layers, take away or change.
const WRAPPERS: &[&str] =
    &["model", "language_model", "language", "llm", "thinker", "transformer", "backbone", "base_model"];

/// The engines' names for the part that holds the language model's layers.
const LANGUAGE_MODELS: &[&str] = &["model", "model.language_model", "language_model.model", "language_model"];

/// A module's name cut at its layer. `experts.7.` does not count as a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut<'a> {
    /// The part before the list of layers: `model`, or nothing.
    pub prefix: &'a str,
    /// The list: `layers`, or nothing.
    pub list: &'a str,
    /// The layer.
    pub number: &'a str,
    /// The part after the layer.
    pub rest: &'a str,
}

impl<'a> Cut<'a> {
    pub(super) fn at_layer(name: &'a str) -> Option<Self> {
        let mut start = 0;
        let mut list = "";
        for segment in name.split('.') {
            if is_number(segment) && list != "experts" {
                let rest = name[start + segment.len()..].strip_prefix('.')?;
                let before = &name[..start.saturating_sub(1)];
                let prefix = before[..before.len() - list.len()].trim_end_matches('.');
                return Some(Self { prefix, list, number: segment, rest });
            }
            start += segment.len() + 1;
            list = segment;
        }
        None
    }
}

/// Whether engines may call a path otherwise than the file in all of its words.
pub(crate) fn is_renamed(path: &str) -> bool {
    path.split('.').filter(|segment| !segment.is_empty()).all(|segment| WRAPPERS.contains(&segment))
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name as a regular expression in which every expert's number matches any number. Modules that are called `mamba`
/// in Granite, Falcon and Jamba are called `mixer` in vLLM.
pub(crate) fn escape_tail(tail: &str) -> String {
    let mut out = String::new();
    let mut before = "";
    for (index, segment) in tail.split('.').enumerate() {
        if index > 0 {
            out.push_str(r"\.");
        }
        if before == "experts" && is_number(segment) {
            out.push_str(r"\d+");
        } else if segment == "mamba" {
            out.push_str("(mamba|mixer)");
        } else {
            out.push_str(&escape(segment));
        }
        before = segment;
    }
    out
}

fn escape(text: &str) -> String {
    regex::escape(text).replace(r"\-", "-")
}

/// A regular expression for one tail in some layers.
pub(crate) fn layers_pattern(list: &str, numbers: &[&str], tail: &str) -> String {
    let list = if list.is_empty() { String::new() } else { format!(r"{}\.", escape(list)) };
    format!(r"(.*\.)?{list}{}\.{tail}$", any_of(numbers))
}

fn any_of(numbers: &[&str]) -> String {
    let mut numbers = numbers.to_vec();
    numbers.sort_by_key(|number| (number.len(), *number));
    numbers.dedup();
    match numbers.as_slice() {
        [only] => (*only).to_owned(),
        several => format!("({})", several.join("|")),
    }
}

/// Regular expressions that match names that end with `end` below `path`, under each name that engines have for the
/// path. They match none of the modules that `hits` tests for. None if there are no such expressions.
pub(crate) fn below(path: &str, end: &str, hits: &dyn Fn(&str) -> bool) -> Option<String> {
    let segments: Vec<&str> = path.split('.').filter(|segment| !segment.is_empty()).collect();
    for start in (0..segments.len()).rev() {
        let tail = &segments[start..];
        let tail = tail.join(".");
        if is_renamed(&tail) {
            continue;
        }
        let tail = escape(&tail);
        // The name itself is an end of names, or else a whole one.
        let forms = [format!(r"(.*\.)?{tail}\.{end}"), format!(r"(model\.)?{tail}\.{end}")];
        let fits = |form: &&String| !hits(form);
        if let Some(form) = forms.iter().take(if start == 0 { 2 } else { 1 }).find(fits) {
            return Some(form.clone());
        }
    }
    let form =
        |name: &str| if name.is_empty() { end.to_owned() } else { format!(r"{}\.{end}", escape(name)) };
    if hits(&form(path)) {
        return None;
    }
    let others = LANGUAGE_MODELS.iter().filter(|name| **name != path && is_renamed(path));
    let names: Vec<&str> = others
        .copied()
        .filter(|name| !hits(&form(name)))
        .chain([path])
        .filter(|name| !name.is_empty())
        .collect();
    let names: Vec<String> = names.into_iter().map(escape).collect();
    match (path, names.as_slice()) {
        (_, []) => Some(end.to_owned()),
        ("", several) => Some(format!(r"(({})\.)?{end}", several.join("|"))),
        (_, [only]) => Some(format!(r"{only}\.{end}")),
        (_, several) => Some(format!(r"({})\.{end}", several.join("|"))),
    }
}

/// The regular expression for all of a list's layers or for some of them, under each name that engines have for it.
pub(crate) fn in_list(
    cut: &Cut<'_>,
    numbers: Option<&[&str]>,
    tail: &str,
    hits: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let list = if cut.list.is_empty() { String::new() } else { format!(r"{}\.", escape(cut.list)) };
    let numbers = numbers.map_or_else(|| r"\d+".to_owned(), any_of);
    below(cut.prefix, &format!(r"{list}{numbers}\.{tail}"), hits)
}

/// The longest pattern that is compiled: one with the numbers of ten thousand layers takes more memory than a model.
const LONGEST: usize = 1 << 16;

/// A pattern as engines match it: from the start of a name on. None if it cannot be compiled.
pub(crate) fn compile(pattern: &str) -> Option<Regex> {
    (pattern.len() <= LONGEST).then(|| Regex::new(&format!("^(?:{pattern})")).ok())?
}

/// Whether an entry's regular expression matches any of the names. An expression that cannot be compiled counts as
/// matching everything.
pub(crate) fn hits_any<'n>(pattern: &str, mut names: impl Iterator<Item = &'n str>) -> bool {
    compile(pattern).is_none_or(|regex| names.any(|name| regex.is_match(name)))
}

/// Modules that are quantized, which no entry for others may hit.
pub(crate) struct Quantized<'q> {
    modules: &'q [QuantizedModule<'q>],
    /// How much may still be looked at.
    left: Cell<usize>,
}

/// Names that patterns are held against, all in all. A model of another kind than any that there are has so many patterns that
/// looking at all would take hours; what is not looked at counts as hit, and its modules are named one by one.
const MOST: usize = 50_000_000;

impl<'q> Quantized<'q> {
    pub(super) fn new(modules: &'q [QuantizedModule<'q>]) -> Self {
        Self { modules, left: Cell::new(MOST) }
    }

    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'q str> {
        self.modules.iter().map(|module| module.name)
    }

    /// Whether an entry's regular expression hits any of them.
    pub(super) fn hits(&self, pattern: &str) -> bool {
        // To compile a pattern takes as long as some hundred comparisons a character.
        let cost = self.modules.len() + 100 * pattern.len();
        match self.left.get().checked_sub(cost) {
            None => true,
            Some(left) => {
                self.left.set(left);
                hits_any(pattern, self.names())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_their_layer() {
        let cut = |name| Cut::at_layer(name).map(|cut| (cut.prefix, cut.list, cut.number, cut.rest));
        assert_eq!(cut("a.model.layers.3.mlp.up"), Some(("a.model", "layers", "3", "mlp.up")));
        assert_eq!(cut("h.3.attn"), Some(("", "h", "3", "attn")));
        assert_eq!(cut("3.attn"), Some(("", "", "3", "attn")));
        assert_eq!(cut("experts.3.up"), None);
        assert_eq!(cut("projector.0"), None);
    }

    #[test]
    fn paths_are_told_apart_by_words_that_stay() {
        let none = |_: &str| false;
        assert_eq!(below("model.encoder", ".*", &none).as_deref(), Some(r"(.*\.)?encoder\..*"));
        assert_eq!(
            below("thinker.model", ".*", &none).as_deref(),
            Some(r"(model|model\.language_model|language_model\.model|language_model|thinker\.model)\..*")
        );
        let talker = ["talker.model.layers.0.up"];
        let hits = |pattern: &str| hits_any(pattern, talker.into_iter());
        let found = below("model", ".*", &hits).expect("anchored names");
        assert!(
            !hits(&found) && hits_any(&found, ["language_model.model.layers.0.up"].into_iter()),
            "{found}"
        );
        // A name that holds the other one is no end of it.
        let nested = ["language_model.encoder.layers.0.up"];
        let hits = |pattern: &str| hits_any(pattern, nested.into_iter());
        assert_eq!(below("encoder", ".*", &hits).as_deref(), Some(r"(model\.)?encoder\..*"));
        assert_eq!(below("talker.model", ".*", &|_| true), None);
    }
}
