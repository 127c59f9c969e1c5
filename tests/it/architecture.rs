//! The order of the folders, as docs/architecture.md draws it: held by the paths in the sources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The floors, from the top. A file may name its own folder and the folders below.
const FLOORS: [&str; 25] = [
    "cli",
    "watch",
    "show",
    "run",
    "gates",
    "publish",
    "report",
    "plan",
    "calibration",
    "network",
    "model",
    "format",
    "recipe",
    "stage",
    "quant",
    "layer",
    "threads",
    "cancel",
    "digest",
    "fs",
    "finding",
    "text",
    "ids",
    "exit",
    "sync",
];

pub fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// The files of `src/`, by module path: `plan::layout`.
struct Tree {
    modules: BTreeMap<String, String>,
    /// For each module the names that it passes on with `pub use`, and what they stand for.
    passed_on: HashMap<String, HashMap<String, Vec<String>>>,
}

/// The paths in `{…}` written out: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or(tree).trim().to_owned()];
    };
    let inside = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (at, character) in inside.char_indices().chain([(inside.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inside[start..at].trim();
                if !part.is_empty() {
                    out.extend(expanded(part).into_iter().map(|path| format!("{before}{path}")));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    out
}

impl Tree {
    fn read() -> Self {
        let src = root().join("src");
        let mut files = Vec::new();
        sources(&src, &mut files);
        let mut modules = BTreeMap::new();
        let test = regex::Regex::new(r"(?m)^#\[cfg\([^\n]*test[^\n]*\)\]\n(?:#\[[^\n]*\]\n)*mod \w+ \{")
            .expect("a pattern");
        for file in files {
            let relative = file.strip_prefix(&src).expect("below src").with_extension("");
            let module = relative.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("::");
            let text = fs::read_to_string(&file).expect("a source file");
            // Tests may name what they like, and comments name what they explain.
            let end = test.find(&text).map_or(text.len(), |found| found.start());
            let code: Vec<&str> =
                text[..end].lines().map(|line| line.split("//").next().unwrap_or("")).collect();
            if !module.split("::").any(|part| part == "tests" || part.ends_with("_tests")) {
                modules.insert(module, code.join("\n"));
            }
        }
        let mut tree = Self { modules, passed_on: HashMap::new() };
        let passing = regex::Regex::new(r"pub(?:\([^)]*\))? use ([^;]+);").expect("a pattern");
        for (module, text) in &tree.modules {
            let names =
                passing.captures_iter(text).flat_map(|found| expanded(&found[1])).filter_map(|path| {
                    let whole = tree.absolute(module, &path).unwrap_or_else(|| {
                        module.split("::").chain(path.split("::")).map(str::to_owned).collect()
                    });
                    Some((whole.last()?.clone(), whole))
                });
            let names = names.collect();
            tree.passed_on.insert(module.clone(), names);
        }
        tree
    }

    /// A path from the crate's root; none if it begins outside of the crate.
    fn absolute(&self, module: &str, path: &str) -> Option<Vec<String>> {
        let mut parts: Vec<String> = path.split("::").map(str::to_owned).collect();
        let mut base: Vec<String> = module.split("::").map(str::to_owned).collect();
        match parts[0].as_str() {
            "crate" => {
                parts.remove(0);
                return Some(parts);
            }
            "self" => {
                parts.remove(0);
            }
            "super" => {
                while parts.first().is_some_and(|part| part == "super") {
                    parts.remove(0);
                    base.pop();
                }
            }
            first if self.modules.contains_key(&format!("{module}::{first}")) => {}
            _ => return None,
        }
        base.append(&mut parts);
        Some(base)
    }

    /// The file that defines what a path names.
    fn file_of(&self, path: &[String], depth: usize) -> Option<String> {
        for end in (1..=path.len()).rev() {
            let module = path[..end].join("::");
            if !self.modules.contains_key(&module) {
                continue;
            }
            let passed = path.get(end).and_then(|name| self.passed_on.get(&module)?.get(name));
            return match passed {
                Some(whole) if depth < 8 => {
                    let whole: Vec<String> = whole.iter().chain(&path[end + 1..]).cloned().collect();
                    self.file_of(&whole, depth + 1)
                }
                _ => Some(module),
            };
        }
        None
    }

    /// For each file the files that it names.
    fn names(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let imports = regex::Regex::new(r"\buse ([^;]+);").expect("a pattern");
        let inline =
            regex::Regex::new(r"\b[a-z_][a-z_0-9]*(?:::[A-Za-z_][A-Za-z_0-9]*)+").expect("a pattern");
        let mut out = BTreeMap::new();
        for (module, text) in &self.modules {
            let imported = imports.captures_iter(text).flat_map(|found| expanded(&found[1]));
            let rest = imports.replace_all(text, "");
            let said = inline.find_iter(&rest).map(|found| found.as_str().to_owned());
            let named: BTreeSet<String> = imported
                .chain(said.collect::<Vec<_>>())
                .filter_map(|path| self.file_of(&self.absolute(module, &path)?, 0))
                .filter(|file| file != module)
                .collect();
            out.insert(module.as_str(), named);
        }
        out
    }
}

fn floor(module: &str) -> Option<usize> {
    let folder = module.split("::").next().unwrap_or(module);
    FLOORS.iter().position(|floor| *floor == folder)
}

#[test]
fn folders_name_only_those_below() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for (file, others) in tree.names() {
        if file == "lib" || file == "main" {
            continue;
        }
        let Some(own) = floor(file) else {
            wrong.push(format!("`{file}` is on no floor"));
            continue;
        };
        wrong.extend(
            others
                .iter()
                .filter(|other| floor(other).is_none_or(|floor| floor < own))
                .map(|other| format!("`{file}` names `{other}`")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files that name each other in a circle. A folder's own file and its parts are one: it introduces the words that they share.
#[test]
fn files_name_each_other_in_no_circle() {
    let tree = Tree::read();
    let names = tree.names();
    let follows = |file: &str| -> Vec<String> {
        let own = format!("{file}::");
        names[file].iter().filter(|other| !other.starts_with(&own)).cloned().collect()
    };
    let mut circles = Vec::new();
    for &start in names.keys().filter(|file| **file != "lib" && **file != "main") {
        let mut seen = BTreeSet::new();
        let mut left = follows(start);
        while let Some(file) = left.pop() {
            if file == start {
                circles.push(start);
                break;
            }
            if seen.insert(file.clone()) {
                left.extend(follows(&file));
            }
        }
    }
    assert!(circles.is_empty(), "in circles: {}", circles.join(", "));
}

/// The reading itself: what it finds must not be nothing.
#[test]
fn paths_are_resolved_to_their_files() {
    let tree = Tree::read();
    let names = tree.names();
    assert!(names.len() > 150, "{} files", names.len());
    assert!(names["quant::quantizer"].contains("quant::scheme"), "through `pub use` of the folder");
    assert!(names["plan::layout"].contains("format::encoding"));
    assert!(names["run::executor"].contains("run::finish"));
    assert_eq!(expanded("a::{b, c::{d, e as f}}"), ["a::b", "a::c::d", "a::c::e"]);
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let lines = text.lines().count();
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let says_why = head.iter().any(|line| line.starts_with("//! Longer than 500 lines because"));
        assert!(lines <= 500 || says_why, "{} has {lines} lines and does not say why", file.display());
        let is_tests = file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs"));
        assert!(is_tests || !head.is_empty(), "{} has no header", file.display());
    }
}
