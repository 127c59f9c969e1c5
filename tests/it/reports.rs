//! `run --report`, the summary of a GitHub step, annotations, the baseline and the lock.

use std::fs;

use serde_json::Value;

use crate::support::{Ended, Model, Workspace, files, json, report, root};

const GATE: &str = "  - stage: quantize-int4\n  - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 18.9\n    sqnr_error_threshold: ERROR\n    on_failure: error\n";
const FORMS: [&str; 6] = ["all.json", "all.md", "all.xml", "all.sarif", "all.html", "gitlab=all.gitlab.json"];

fn recipe(workspace: &Workspace, error: &str) -> std::path::PathBuf {
    workspace.recipe(&GATE.replace("ERROR", error))
}

/// Runs the recipe with a document of each form.
fn run(workspace: &Workspace, more: &[&str]) -> Ended {
    let mut args = vec!["run", "recipe.yaml"];
    for form in FORMS {
        args.extend(["--report", form]);
    }
    args.extend(more);
    workspace.monoquant(args)
}

fn text(workspace: &Workspace, name: &str) -> String {
    let text = fs::read_to_string(workspace.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    workspace.filtered(&text)
}

/// A SARIF log that its schema allows.
fn sarif(workspace: &Workspace) -> Value {
    let mut schema = json(&root().join("tests/formats/sarif-2.1.0.schema.json"));
    // Both patterns are wrong in the published schema: a bracket closes that was never opened.
    for of in ["run", "toolComponent"] {
        schema["definitions"][of]["properties"]["language"]["pattern"] =
            "^[a-zA-Z]{2}(-[a-zA-Z]{2})?$".into();
    }
    let log = json(&workspace.path("all.sarif"));
    let validator = jsonschema::validator_for(&schema).expect("the schema of SARIF");
    let errors: Vec<String> =
        validator.iter_errors(&log).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    // What the schema does not say: results name rules that are there.
    let run = &log["runs"][0];
    for result in run["results"].as_array().expect("results") {
        let rule = result["ruleIndex"].as_u64().expect("an index") as usize;
        assert_eq!(run["tool"]["driver"]["rules"][rule]["id"], result["ruleId"]);
    }
    log
}

/// An element of XML: its name, attributes, children and text.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Element>,
}

impl Element {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Reads XML as strictly as this writer needs it: tags that match, attributes in quotes, no bare markup.
fn xml(text: &str) -> Element {
    let rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("a declaration");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "a control character");
    let tag = regex::Regex::new(r#"<(/?)([a-z-]+)((?: [a-z]+="[^"<]*")*)(/?)>"#).expect("a pattern");
    let attribute = regex::Regex::new(r#" ([a-z]+)="([^"]*)""#).expect("a pattern");
    let (mut open, mut at) = (vec![Element::default()], 0);
    for found in tag.captures_iter(rest) {
        let whole = found.get(0).expect("the tag");
        let between = &rest[at..whole.start()];
        assert!(!between.contains(['<', '>']), "bare markup: {between}");
        at = whole.end();
        if &found[1] == "/" {
            let closed = open.pop().expect("an open element");
            assert_eq!(closed.name, &found[2]);
            open.last_mut().expect("a parent").children.push(closed);
            continue;
        }
        let attributes = attribute
            .captures_iter(&found[3])
            .map(|found| (found[1].to_owned(), found[2].to_owned()))
            .collect();
        let element = Element { name: found[2].to_owned(), attributes, children: Vec::new() };
        if &found[4] == "/" {
            open.last_mut().expect("a parent").children.push(element);
        } else {
            open.push(element);
        }
    }
    assert_eq!((open.len(), rest[at..].trim()), (1, ""), "everything is closed");
    open.remove(0).children.remove(0)
}

/// A JUnit document by the rules of the schema that Jenkins' plugin has: which elements and attributes there are, in which order,
/// and that the counts are those of the cases.
fn junit(workspace: &Workspace) -> Element {
    let suites = xml(&fs::read_to_string(workspace.path("all.xml")).expect("a document"));
    assert_eq!(suites.name, "testsuites");
    let suite = &suites.children[0];
    assert_eq!((suite.name.as_str(), suites.children.len()), ("testsuite", 1));
    let allowed = ["name", "tests", "failures", "errors", "skipped"];
    assert!(suite.attributes.iter().all(|(name, _)| allowed.contains(&name.as_str())), "{suite:?}");
    let (mut failures, mut errors, mut skipped) = (0, 0, 0);
    for case in &suite.children {
        assert_eq!(case.name, "testcase");
        assert!(case.attribute("name").is_some() && case.attribute("classname").is_some());
        let order = ["skipped", "error", "failure", "system-out", "system-err"];
        let places: Vec<usize> = case
            .children
            .iter()
            .map(|child| order.iter().position(|name| *name == child.name).expect("a known element"))
            .collect();
        assert!(places.is_sorted(), "{case:?}");
        let has = |name: &str| usize::from(case.children.iter().any(|child| child.name == name));
        failures += has("failure");
        errors += has("error");
        skipped += has("skipped");
    }
    let counts = [suite.children.len(), failures, errors, skipped].map(|count| count.to_string());
    let told = ["tests", "failures", "errors", "skipped"]
        .map(|name| suite.attribute(name).expect("a count").to_owned());
    assert_eq!(told, counts);
    suites.children.into_iter().next().expect("the suite")
}

#[test]
fn every_form_tells_of_a_run_that_passed() {
    let workspace = Workspace::with(&Model::llama());
    recipe(&workspace, "1");
    run(&workspace, &[]).exits(0);
    sarif(&workspace);
    junit(&workspace);
    insta::assert_snapshot!("report-passed-md", text(&workspace, "all.md"));
    insta::assert_snapshot!("report-passed-xml", text(&workspace, "all.xml"));
    // The JSON is the report of the output, to the byte.
    let own = fs::read(workspace.path("out/monoquant-report.json")).expect("a report");
    assert!(own == fs::read(workspace.path("all.json")).expect("a report"));
}

#[test]
fn every_form_tells_of_a_gate_that_failed() {
    let workspace = Workspace::with(&Model::heavy());
    recipe(&workspace, "18.5");
    run(&workspace, &[]).exits(1);
    let log = sarif(&workspace);
    let result = &log["runs"][0]["results"][0];
    assert_eq!(
        (result["level"].as_str(), &log["runs"][0]["invocations"][0]["executionSuccessful"]),
        (Some("error"), &Value::Bool(true))
    );
    let line = result["locations"][0]["physicalLocation"]["region"]["startLine"].as_u64().expect("a line");
    let yaml = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
    assert!(yaml.lines().nth(line as usize - 1).expect("a line").contains("sqnr_error_threshold"));
    let suite = junit(&workspace);
    assert_eq!(suite.attribute("failures"), Some("1"));
    insta::assert_snapshot!("report-failed-md", text(&workspace, "all.md"));
    insta::assert_snapshot!("report-failed-xml", text(&workspace, "all.xml"));
    insta::assert_snapshot!("report-failed-gitlab", text(&workspace, "all.gitlab.json"));
    let told = json(&workspace.path("all.json"));
    assert_eq!(
        (told["verdict"]["exit_status"].as_u64(), told["tensors"].as_array().map(Vec::len)),
        (Some(1), Some(21))
    );
}

#[test]
fn there_is_one_shape_of_json_whatever_happened() {
    let workspace = Workspace::with(&Model::heavy());
    let schema: Value = serde_json::from_str(&monoquant::report::schema_text()).expect("the schema");
    let validator = jsonschema::validator_for(&schema).expect("the schema of reports");
    let check = |status: i32, more: &[&str]| {
        let said = run(&workspace, &[&["--format", "json"], more].concat()).exits(status);
        for found in [said.json(), json(&workspace.path("all.json"))] {
            let errors: Vec<String> = validator.iter_errors(&found).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{more:?}: {}", errors.join("\n"));
            assert_eq!(found["verdict"]["exit_status"], status);
        }
        let told = text(&workspace, "all.json") + &text(&workspace, "all.xml") + &text(&workspace, "all.md");
        assert!(!told.contains("[work]"), "the machine's folder: {told}");
        said.stdout
    };
    recipe(&workspace, "1");
    check(0, &[]);
    recipe(&workspace, "18.5");
    check(1, &["--fresh"]);
    check(2, &["--set", "quantize-int4.group_size=0"]);
    check(3, &["--model", "nowhere"]);
    let suite = junit(&workspace);
    assert_eq!((suite.attribute("errors"), suite.attribute("tests")), (Some("1"), Some("1")));
    workspace.write("recipe.yaml", "version: 1\nstages: [");
    check(2, &[]);
    sarif(&workspace);
    fs::remove_file(workspace.path("recipe.yaml")).expect("the recipe");
    check(2, &[]);
    sarif(&workspace);
}

#[test]
fn nothing_in_a_name_is_markup() {
    let mut model = Model::llama();
    model.add("model.layers.0.<script>alert(1)</script>|`@all]]>.weight", &[128, 128]);
    let workspace = Workspace::with(&model);
    workspace.recipe("  - stage: quantize-int4\n    targets: ['re:.*script.*']\n  - stage: check-warnings\n    sqnr_error_threshold: 99\n    on_failure: error\n");
    run(&workspace, &[]).exits(1);
    junit(&workspace);
    sarif(&workspace);
    for name in ["all.md", "all.xml", "all.html"] {
        let told = fs::read_to_string(workspace.path(name)).expect("a document");
        assert!(told.contains("script"), "{name} tells of the layer");
        assert!(!told.contains("<script>alert") && !told.contains('\u{1b}'), "{name}: {told}");
    }
    assert!(!text(&workspace, "all.md").contains("@all"));
}

#[test]
fn a_form_that_is_not_known_is_refused_before_any_work() {
    let workspace = Workspace::with(&Model::llama());
    recipe(&workspace, "1");
    let said = workspace.monoquant(["run", "recipe.yaml", "--report", "out.txt"]).exits(2);
    assert!(said.stderr.contains("cli::report-form") && said.stderr.contains("gitlab"), "{}", said.stderr);
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
    // A form may be named for any extension.
    workspace.monoquant(["run", "recipe.yaml", "--report", "junit=deep/er/out.txt", "-q"]).exits(0);
    assert!(fs::read_to_string(workspace.path("deep/er/out.txt")).expect("a document").starts_with("<?xml"));
}

#[test]
fn under_github_actions_the_step_gets_a_summary_and_annotations_have_paths_from_the_root() {
    let workspace = Workspace::with(&Model::heavy());
    let yaml = fs::read_to_string(recipe(&workspace, "18.5")).expect("the recipe");
    let yaml = yaml.replace("model: model", "model: ../model").replace("path: out", "path: ../out");
    workspace.write("ci/recipe.yaml", yaml);
    let summary = workspace.write("summary.md", "# Before\n");
    let run = |actions: &str| {
        let mut command = workspace.command(["run", "recipe.yaml", "--format", "github"]);
        command.current_dir(workspace.path("ci")).env("GITHUB_ACTIONS", actions);
        command.env("GITHUB_WORKSPACE", workspace.root()).env("GITHUB_STEP_SUMMARY", &summary);
        workspace.ended(command.output().expect("the binary runs")).exits(1)
    };
    let said = run("true");
    assert!(said.stdout.contains("::error file=ci/recipe.yaml,line=10,"), "{}", said.stdout);
    let told = fs::read_to_string(&summary).expect("the summary");
    assert!(told.starts_with("# Before\n## ❌ test: ") && told.contains("`ci/recipe.yaml:10`"), "{told}");
    run("false");
    assert_eq!(fs::read_to_string(&summary).expect("the summary"), told);
}

#[test]
fn a_result_that_is_worse_than_the_baseline_is_not_published() {
    let workspace = Workspace::with(&Model::llama());
    let int8 =
        |group: &str| workspace.recipe(&format!("  - stage: quantize-int8\n{group}  - stage: validate\n"));
    int8("");
    workspace.monoquant(["run", "recipe.yaml", "--report", "base.json", "-q"]).exits(0);
    let before = files(&workspace.path("out"));
    // The same again: no drop.
    let same =
        ["run", "recipe.yaml", "--baseline", "base.json", "--max-drop", "0", "--max-growth", "0", "-q"];
    workspace.monoquant(same).exits(0);
    assert!(before == files(&workspace.path("out")), "the output does not depend on the baseline");
    recipe(&workspace, "1");
    let said = run(&workspace, &["--baseline", "out", "--max-drop", "3", "--max-growth", "5"]).exits(1);
    assert!(
        said.stderr.contains("baseline::drop") && !said.stderr.contains("baseline::growth"),
        "{}",
        said.stderr
    );
    assert!(before == files(&workspace.path("out")), "what was there is untouched");
    let told = json(&workspace.path("all.json"));
    assert_eq!((&told["baseline"]["a"]["name"], &told["verdict"]["passed"]), (&"out".into(), &false.into()));
    assert!(told["baseline"]["sqnr_change_db"].as_f64().expect("a change") < -20.0);
    let kept = json(&workspace.path("out.failed-report.json"));
    assert_eq!(
        (&kept["outputs"][0]["published"], &kept["warnings"][0]["code"]),
        (&false.into(), &"baseline::drop".into())
    );
    let suite = junit(&workspace);
    assert_eq!(suite.attribute("failures"), Some("1"));
    insta::assert_snapshot!("report-baseline-md", text(&workspace, "all.md"));
    // A gate is reached before: bounds that hold let it pass.
    run(&workspace, &["--baseline", "base.json", "--max-drop", "30"]).exits(0);
    assert_ne!(before, files(&workspace.path("out")));
    // It grows now, and nothing was evaluated.
    int8("    granularity: group\n    group_size: 32\n");
    let said = workspace.monoquant([
        "run",
        "recipe.yaml",
        "--baseline",
        "out",
        "--max-growth",
        "1",
        "--max-kl-rise",
        "1",
    ]);
    let said = said.exits(1);
    assert!(
        said.stderr.contains("baseline::growth") && said.stderr.contains("baseline::kl-rise"),
        "{}",
        said.stderr
    );
    workspace.monoquant(["run", "recipe.yaml", "--max-drop", "1"]).exits(2);
    workspace.monoquant(["run", "recipe.yaml", "--baseline", "out", "--max-drop", "-1"]).exits(2);
    let said = workspace.monoquant(["run", "recipe.yaml", "--baseline", "none.json"]).exits(2);
    assert!(said.stderr.contains("report::unreadable"), "{}", said.stderr);
}

#[test]
fn a_rise_of_the_divergence_from_the_original_is_held_against_the_baseline() {
    let workspace = Workspace::new();
    let example = |name: &str| root().join("examples").join(name).display().to_string();
    let run = |bits: &str, status: i32, more: &[&str]| {
        workspace.whole_recipe(&format!(
            "  - stage: load\n    model: {}\n  - stage: quantize-{bits}\n  - stage: evaluate\n    text: [{}]\n    samples: 2\n    sequence_length: 64\n  - stage: export\n    path: out\n",
            example("tiny-llama"),
            example("calibration/held-out.txt"),
        ));
        workspace.monoquant([&["run", "recipe.yaml", "-q"], more].concat()).exits(status)
    };
    run("int4", 0, &["--report", "int4.json"]);
    run("int8", 0, &["--baseline", "int4.json", "--max-kl-rise", "0", "--report", "int8.json"]);
    let said = run("int4", 1, &["--baseline", "int8.json", "--max-kl-rise", "50"]);
    assert!(said.stderr.contains("the mean KL divergence rises by"), "{}", said.stderr);
    let told = json(&workspace.path("int8.json"));
    assert!(told["baseline"]["kl_rise_percent"].as_f64().expect("a change") < 0.0);
}

#[test]
fn a_locked_run_publishes_what_is_locked_or_nothing() {
    let workspace = Workspace::with(&Model::llama());
    let path = recipe(&workspace, "1");
    let locked = |more: &[&str]| workspace.monoquant([&["run", "recipe.yaml", "--locked"], more].concat());
    assert!(locked(&[]).exits(2).stderr.contains("lock::missing"));
    assert!(workspace.monoquant(["lock", "recipe.yaml"]).exits(2).stderr.contains("lock::stale"));
    workspace.monoquant(["run", "recipe.yaml", "-q"]).exits(0);
    assert!(!workspace.path("monoquant.lock").exists(), "a run writes no lock");
    workspace.monoquant(["lock", "recipe.yaml"]).exits(0);
    let lock = fs::read_to_string(workspace.path("monoquant.lock")).expect("the lock");
    assert!(!lock.contains(&workspace.root().display().to_string()));
    // From nothing, to the byte; and comments are free.
    let yaml = fs::read_to_string(&path).expect("the recipe");
    workspace.write("recipe.yaml", format!("# A remark\n{yaml}"));
    locked(&["--fresh"]).exits(0);
    let before = files(&workspace.path("out"));
    let differs = |ended: Ended, word: &str| {
        let said = ended.exits(2);
        assert!(
            said.stderr.contains("lock::differs") && said.stderr.contains(word),
            "{word}: {}",
            said.stderr
        );
        assert!(before == files(&workspace.path("out")), "{word}: what was there is untouched");
    };
    differs(locked(&["--set", "quantize-int4.group_size=32"]), "the recipe or an override");
    let model = Model::llama().with_value("model.layers.0.mlp.up_proj.weight", 0, 0.5);
    model.write(&workspace.path("model"));
    differs(locked(&[]), "of the source has other bytes");
    Model::llama().write(&workspace.path("model"));
    let edit = |from: &str, to: &str| workspace.write("monoquant.lock", lock.replacen(from, to, 1));
    edit(&format!("\"monoquant\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"monoquant\": \"0.0.1\"");
    differs(locked(&[]), "0.0.1 is locked");
    let entry = report(&workspace.path("out"));
    let crc = &entry.outputs[0].files[0].crc64nvme;
    edit(crc, &crc.chars().rev().collect::<String>());
    differs(locked(&["--fresh"]), "of the output of stage 5 has other bytes");
    edit("\"lock_version\": 1", "\"lock_version\": 7");
    assert!(locked(&[]).exits(2).stderr.contains("lock::unreadable"));
    // Entries of other recipes stay.
    workspace.write("monoquant.lock", &lock);
    let other = yaml.replace("path: out", "path: other");
    workspace.write("other.yaml", other);
    workspace.monoquant(["run", "other.yaml", "-q"]).exits(0);
    workspace.monoquant(["lock", "other.yaml"]).exits(0);
    locked(&[]).exits(0);
    workspace.monoquant(["run", "other.yaml", "--locked"]).exits(0);
}
