//! Which module may name which: the design's flow, held by the `crate::` paths in the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::root;

/// For each module the others that it may name. What is not listed here is a new dependency, and wants a thought.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("exit", &[]),
    ("fs", &[]),
    ("text", &[]),
    ("threads", &[]),
    ("quant", &[]),
    ("layer", &[]),
    ("finding", &["exit", "fs", "text"]),
    ("calibration", &["exit", "finding", "quant", "fs", "text"]),
    ("stage", &["layer"]),
    ("recipe", &["exit", "finding", "layer", "stage", "fs", "text"]),
    ("model", &["exit", "finding", "layer", "fs", "text", "threads"]),
    ("export", &["exit", "finding", "layer", "model", "plan", "quant", "report", "stage", "fs", "text"]),
    (
        "plan",
        &[
            "calibration",
            "exit",
            "export",
            "finding",
            "fs",
            "layer",
            "model",
            "quant",
            "recipe",
            "report",
            "stage",
            "text",
        ],
    ),
    (
        "report",
        &[
            "calibration",
            "exit",
            "export",
            "finding",
            "fs",
            "layer",
            "model",
            "plan",
            "quant",
            "run",
            "stage",
            "text",
        ],
    ),
];

/// Those that see all the others.
const SEE_ALL: [&str; 3] = ["run", "cli", "lib"];

fn sources(folder: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Module → the modules that its code names, in comments excepted.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let path = regex::Regex::new(r"\bcrate::(?:\{([^}]*)\}|([a-z_]+))").expect("a pattern");
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("below src");
        let first = relative.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&file).expect("a source file");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let named = out.entry(module.clone()).or_default();
        for found in path.captures_iter(&code.join("\n")) {
            let list = found.get(1).or_else(|| found.get(2)).map_or("", |names| names.as_str());
            let firsts = list.split(',').filter_map(|name| name.trim().split("::").next());
            named.extend(firsts.filter(|name| !name.is_empty() && *name != module).map(str::to_owned));
        }
    }
    out
}

#[test]
fn modules_name_only_what_the_design_lets_them() {
    let named = named();
    let mut wrong = Vec::new();
    for (module, others) in &named {
        if SEE_ALL.contains(&module.as_str()) || module == "main" {
            continue;
        }
        let Some((_, may)) = MAY_NAME.iter().find(|(known, _)| known == module) else {
            wrong.push(format!("`{module}` is not in the table"));
            continue;
        };
        wrong.extend(
            others
                .iter()
                .filter(|other| !may.contains(&other.as_str()))
                .map(|other| format!("`{module}` names `{other}`")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(named["quant"], BTreeSet::new());
    assert!(!named["recipe"].contains("model") && !named["model"].contains("plan"));
}

#[test]
fn the_command_line_is_named_by_no_other_module() {
    for (module, others) in named() {
        assert!(!others.contains("cli") || module == "main", "`{module}` names `cli`");
    }
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 100);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let lines = text.lines().count();
        assert!(lines <= 620, "{} has {lines} lines", file.display());
        let is_tests = file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs"));
        assert!(is_tests || text.starts_with("//! "), "{} has no header", file.display());
    }
}
