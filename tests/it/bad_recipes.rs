//! Bad recipes and what is said of them: one mistake a file in `tests/bad_recipes`, the drawn report beside it. The reports are
//! documentation; after a change of wording, `INSTA_UPDATE=always` writes them anew for the review.

use std::path::{Path, PathBuf};

use monoquant::exit::Exit;
use monoquant::finding::{Failure, Finding, diagnostics};
use monoquant::recipe::{self, Loaded, Overrides, emit, from_text};
use monoquant::show::graphical;
use monoquant::show::graphical::Style;
use monoquant::show::{github, plain};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};

use crate::support::{compare, seed};

const STYLE: Style = Style { color: false, unicode: true, width: 100 };

fn env(name: &str) -> Option<String> {
    (name == "HOME").then(|| "/home/ana".to_owned())
}

fn check(name: &str, text: &str, overrides: &Overrides) -> Result<Loaded, Failure> {
    from_text(name, text, Path::new("."), overrides, &env)
}

fn read(text: &str) -> Result<Loaded, Failure> {
    check("recipe.yaml", text, &Overrides::default())
}

/// Overrides stand in comments at the top of a file, as they would on the command line.
fn overrides_in(text: &str) -> Overrides {
    let mut overrides = Overrides::default();
    for line in text.lines() {
        match line.split_once(' ').and_then(|(_, rest)| rest.split_once(' ')) {
            Some(("--set", value)) => overrides.set.push(value.to_owned()),
            Some(("--model", value)) => overrides.model = Some(value.to_owned()),
            Some(("--output", value)) => overrides.output = Some(value.to_owned()),
            _ => break,
        }
    }
    overrides
}

#[test]
fn what_is_overridden_needs_no_variables() {
    let text = "version: 1\nname: r\nstages:\n  - stage: load\n    model: ${MODELS}/m\n  - stage: quantize-int4\n  - stage: \
                export\n    path: ${OUTPUTS}/m\n";
    let overridden = |model: Option<&str>, output: Option<&str>| {
        let overrides = Overrides {
            model: model.map(str::to_owned),
            output: output.map(str::to_owned),
            ..Overrides::default()
        };
        check("recipe.yaml", text, &overrides).map_err(|failure| failure.findings.len())
    };
    assert_eq!(overridden(None, None).err(), Some(2));
    assert_eq!(overridden(Some("/m"), None).err(), Some(1));
    assert!(overridden(Some("/m"), Some("/out")).is_ok());
}

fn bad_recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_recipes");
    let mut paths: Vec<PathBuf> = folder
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 45, "only {} bad recipes", paths.len());
    paths
}

fn findings_of(path: &Path) -> Vec<Finding> {
    let text = std::fs::read_to_string(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let result = check(name, &text, &overrides_in(&text));
    let expect_warnings = name.starts_with("warning_");
    match result {
        Ok(loaded) => {
            assert!(expect_warnings, "{name} is no bad recipe");
            assert!(!loaded.warnings.is_empty(), "{name} has no warnings");
            loaded.warnings
        }
        Err(failure) => {
            assert!(!expect_warnings, "{name} is wrong: {failure}");
            assert_eq!(failure.exit, Exit::BadRecipe);
            failure.findings
        }
    }
}

#[test]
fn each_mistake_is_reported_as_agreed() {
    let mut stale = Vec::new();
    for path in bad_recipes() {
        let report = graphical::render(&findings_of(&path), STYLE);
        if let Err(difference) = compare(&path.with_extension("txt"), &report) {
            stale.push(format!("{difference}\n{report}"));
        }
    }
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

#[test]
fn findings_keep_the_house_style() {
    for path in bad_recipes() {
        for finding in findings_of(&path) {
            let text = format!("{}: {finding:?}", path.display());
            assert!(finding.code.starts_with("recipe::"), "{text}");
            assert!(!finding.message.ends_with('.') && !finding.message.contains('\n'), "{text}");
            assert!(!finding.labels.is_empty(), "{text}");
            assert!(finding.labels.iter().all(|label| !label.text.is_empty()), "{text}");
            assert!(finding.labels[0].text != finding.message, "{text}");
            assert!(finding.help.last().is_none_or(|help| help.ends_with(['.', '?'])), "{text}");
        }
    }
}

#[test]
fn other_formats_tell_the_same() {
    let path = bad_recipes().into_iter().find(|path| path.ends_with("unknown_key.yaml")).unwrap();
    let findings = findings_of(&path);
    let line = plain::render(&findings);
    assert!(line.starts_with("unknown_key.yaml:7:5: error[recipe::unknown-key]: "), "{line}");
    let command = github::render(&findings, &str::to_owned);
    assert!(
        command.starts_with("::error file=unknown_key.yaml,line=7,endLine=7,col=5,endColumn=15,"),
        "{command}"
    );
    let value: serde_json::Value = serde_json::to_value(diagnostics(&findings)).unwrap();
    let label = &value[0]["labels"][0];
    let text = std::fs::read_to_string(&path).unwrap();
    let bytes = label["start"].as_u64().unwrap() as usize..label["end"].as_u64().unwrap() as usize;
    assert_eq!(&text[bytes], "group_sise");
}

#[test]
fn what_is_no_recipe_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let code = |path: &Path| {
        let failure = recipe::load(path, &Overrides::default()).unwrap_err();
        assert_eq!((failure.exit, failure.findings.len()), (Exit::BadRecipe, 1));
        (failure.findings[0].code, failure.findings[0].help.join("\n"))
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert_eq!(code(folder.path()).0, "recipe::not-a-file");
    assert_eq!(code(&file("latin.yaml", b"version: 1\nname: caf\xe9\n")).0, "recipe::not-utf8");
    assert_eq!(code(&file("large.yaml", &vec![b'#'; (1 << 20) + 1])).0, "recipe::too-large");
    assert_eq!(code(&file("empty.yaml", b"")).0, "recipe::empty");
    assert_eq!(code(&file("bom.yaml", b"\xef\xbb\xbf\n")).0, "recipe::empty");
    let (missing, help) = code(&folder.path().join("lagre.yaml"));
    assert_eq!(missing, "recipe::no-such-file");
    assert!(help.contains("large.yaml"), "{help}");
    assert_eq!(code(&folder.path().join("no/such.yaml")).0, "recipe::no-such-file");
    // A sparse file of 50 MB: its length alone is no reason to read it.
    let path = file("huge.yaml", b"");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(50_000_000).unwrap();
    assert_eq!(code(&path).0, "recipe::too-large");
}

const GOOD: &str = "version: 1
name: all
stages:
  - stage: load
    model: ${HOME}/model
    layer_types: {head: Head}
  - stage: resolve-skips
    modules_to_not_convert: [lm_head, 're:.*gate$']
  - stage: quantize-int4
    targets: &targets [mlp, 'model.layers.{0,1}.**']
    observer: mse
  - stage: quantize-int8
    targets: *targets
  - stage: validate
  - stage: check-warnings
    on_failure: error
  - stage: export
    path: out
";

#[test]
fn a_good_recipe_knows_its_places() {
    let loaded = read(GOOD).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let word = |place: Option<monoquant::finding::Place>| {
        let place = place.unwrap();
        GOOD[place.start..place.end].to_owned()
    };
    assert_eq!(word(loaded.place("/stages/2/observer")), "mse");
    assert_eq!(word(loaded.key_place("/stages/2/observer")), "observer");
    assert_eq!(word(loaded.stage_place(monoquant::ids::StageId::new(3))), "quantize-int8");
    assert_eq!(word(loaded.place("/stages/3/group_size")), "quantize-int8");
    assert_eq!(word(loaded.place("/stages/3/targets/1")), "*targets");
    assert_eq!(word(loaded.place("/stages/99/x")), "-");
    assert!(loaded.says("/stages/2/observer") && !loaded.says("/stages/2/group_size"));
    assert!(
        matches!(&loaded.recipe.stages[monoquant::ids::StageId::new(0)], monoquant::stage::Stage::Load(load) if load.model == "/home/ana/model")
    );
}

#[test]
fn overrides_reach_every_kind_of_place() {
    let set = |items: &[&str]| Overrides {
        set: items.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let overrides = set(&[
        "quantize-int4.group_size=64",
        "stages.quantize-int8.granularity=group",
        "stages.2.targets.1='re:.*x'",
        "on_failure=error",
        "load.layer_types.model.head=Other",
        "load.model=elsewhere # not a comment of the recipe",
        "resolve-skips.modules_to_not_convert=[a, b]",
    ]);
    let loaded = check("recipe.yaml", GOOD, &overrides).unwrap();
    let text = emit(&loaded.recipe).unwrap();
    for part in [
        "group_size: 64",
        "granularity: group",
        "- re:.*x",
        "on_failure: error",
        "model.head: Other",
        "head: Head",
        "model: elsewhere\n",
        "- a\n  - b",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(loaded.place("/stages/2/group_size").unwrap().source.name, "--set");
}

#[test]
fn overrides_reach_into_the_statistics() {
    let set = |path: &str| Overrides { set: vec![path.to_owned()], ..Default::default() };
    let text = "version: 1\nstages:\n  - {stage: load, model: m, calibration: {file: a}}\n  - {stage: quantize-int4, observer: mse}\n  \
                - {stage: export, path: out}\n";
    for (path, part) in [
        ("load.calibration.file=b", "file: b"),
        ("stages.0.calibration.file=b", "file: b"),
        ("load.calibration.on_missing=ignore", "on_missing: ignore"),
    ] {
        let loaded = check("recipe.yaml", text, &set(path)).unwrap();
        assert!(emit(&loaded.recipe).unwrap().contains(part), "{path}");
    }
    for (path, part) in [
        ("load.calibration.fiel=b", "did you mean `file`?"),
        ("load.calibration.file.more=b", "nothing is below this"),
        ("quantize-int4.calibration.file=b", "There are: stage, observer"),
    ] {
        let failure = check("recipe.yaml", text, &set(path)).unwrap_err();
        let said = format!("{failure:?}");
        assert!(said.contains(part), "{path}\n{said}");
    }
}

#[test]
fn model_and_output_are_seen_from_the_working_directory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    std::fs::write(&path, GOOD.replace("${HOME}", "x")).unwrap();
    let overrides =
        Overrides { model: Some("m".into()), output: Some("/abs/out".into()), ..Default::default() };
    let loaded = recipe::load(&path, &overrides).unwrap();
    let text = emit(&loaded.recipe).unwrap();
    assert!(text.contains("path: /abs/out"), "{text}");
    let monoquant::stage::Stage::Load(load) = &loaded.recipe.stages[monoquant::ids::StageId::new(0)] else {
        panic!("no load")
    };
    assert!(Path::new(&load.model).is_relative(), "{}", load.model);
    let target = folder.path().canonicalize().unwrap().join(&load.model);
    let parent = target.parent().unwrap().canonicalize().unwrap();
    assert_eq!(parent, std::env::current_dir().unwrap().canonicalize().unwrap());
    let hub = Overrides { model: Some("hf://org/name".into()), ..Default::default() };
    assert!(emit(&recipe::load(&path, &hub).unwrap().recipe).unwrap().contains("model: hf://org/name"));
}

#[test]
fn whatever_is_dug_deep_is_refused_quickly() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
        "? ".repeat(100_000),
        "!".repeat(100_000),
        "a: &a\n".repeat(20_000),
        format!("version: 1\nstages: [{}]\n", "{stage: load, model: x},".repeat(10_000)),
        format!("version: 1\nstages: [{}]\n", "1,".repeat(15_000)),
        format!("version: 1\nname: {}\nstages: []\n", "\u{1}".repeat(10)),
        "a: 1\n".repeat(9_000),
        format!("a: '{}'\n", "${X}".repeat(200_000)),
        format!("version: 1\nstages: [{}]\n", "'re:(a{100}){100}',".repeat(15_000)),
        (0..18_000).map(|i| format!("key{i}: 1\n")).collect(),
        format!("version: 1\nstages:\n{}", "  - stage: load\n    model: ${X}\n    x: 1\n".repeat(1_500)),
        "x: \"".to_owned() + &"a\\".repeat(100_000),
        "'".repeat(100_001),
    ] {
        let failure = read(&text).unwrap_err();
        assert!(!failure.findings.is_empty());
        assert!(failure.findings.len() <= 101);
        assert!(!graphical::render(&failure.findings, STYLE).is_empty());
    }
}

/// Loads a text and, if it is a recipe, writes and loads it again.
fn never_panics(text: &str) -> Result<(), TestCaseError> {
    match read(text) {
        Ok(loaded) => {
            let again = emit(&loaded.recipe).unwrap();
            let reread =
                read(&again).map_err(|failure| TestCaseError::fail(format!("{failure}\n{again}")))?;
            prop_assert_eq!(&reread.recipe, &loaded.recipe, "{}", again);
            prop_assert!(reread.warnings.len() <= loaded.warnings.len(), "{:?}", reread.warnings);
        }
        Err(failure) => {
            prop_assert!(!failure.findings.is_empty());
            prop_assert!(failure.findings.iter().any(Finding::is_error));
            // The schema is as strict as the types, so the types never have the last word.
            prop_assert!(
                failure.findings.iter().all(|finding| finding.code != "recipe::rejected"),
                "{}",
                failure
            );
            prop_assert!(!graphical::render(&failure.findings, STYLE).is_empty());
            prop_assert_eq!(diagnostics(&failure.findings).len(), failure.findings.len());
            prop_assert!(!github::render(&failure.findings, &str::to_owned).is_empty());
        }
    }
    Ok(())
}

#[test]
fn reading_what_was_written_gives_the_same_recipe() {
    never_panics(GOOD).unwrap();
    never_panics(&GOOD.replace("${HOME}", "$${HOME}")).unwrap();
    never_panics(&GOOD.replace("observer: mse", "observer: percentile\n    granularity: channel")).unwrap();
    for path in bad_recipes() {
        never_panics(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
}

const FRAGMENTS: [&str; 24] = [
    "\n", "  ", ": ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: *a", "${HOME}", "${X", "'", "\"", "#",
    "\t", "é", "---\n", "128", "1e400", "~", "true", "re:(",
];

/// Keys and values of the schema in any combination, right ones and wrong ones.
fn parameter() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "targets",
        "granularity",
        "group_size",
        "symmetric",
        "observer",
        "maxshrink",
        "grid",
        "norm",
        "percentile",
        "scale_dtype",
        "activations",
        "indivisible",
        "siblings",
        "shards",
        "on_failure",
        "checks",
        "max_abs_weight",
        "skip_param_threshold",
        "min_calibration_samples",
        "layer_types",
        "include",
        "sqnr_error_threshold",
        "target",
    ]);
    let value = prop::sample::select(vec![
        "64",
        "128.0",
        "8",
        "0",
        "-1",
        "1e400",
        "4294967296",
        "18446744073709551615",
        "9007199254740993",
        "0.5",
        "1e3",
        "channel",
        "tensor",
        "true",
        "false",
        "mse",
        "percentile",
        "f16",
        "dynamic-token",
        "skip",
        "5GB",
        "0GB",
        "warn",
        "[finite]",
        "[]",
        "[Linear]",
        "['a..b']",
        "{}",
        "{a: Linear}",
        "~",
        "keep",
        "0.1KB",
        "99999999999999999999GB",
        "[a, a]",
        "vllm",
    ]);
    (key, value).prop_map(|(key, value)| format!("    {key}: {value}\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, rng_seed: RngSeed::Fixed(seed()), ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        never_panics(&text)?;
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        never_panics(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn no_mutation_makes_it_panic(
        edits in prop::collection::vec((0..GOOD.len(), 0..12_usize, prop::sample::select(&FRAGMENTS[..])), 1..4)
    ) {
        let mut text = GOOD.to_owned();
        for (at, len, fragment) in edits {
            let at = (0..=at.min(text.len())).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let end = (at + len..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            text.replace_range(at..end, fragment);
        }
        never_panics(&text)?;
    }

    #[test]
    fn what_the_schema_allows_is_a_recipe(
        stage in prop::sample::select(vec!["quantize-int4", "quantize-int8", "validate", "check-warnings", "resolve-skips"]),
        parameters in prop::collection::vec(parameter(), 0..3),
        shards in parameter(),
    ) {
        let export = if shards.contains("shards") { shards } else { String::new() };
        let text = format!(
            "version: 1\nstages:\n  - stage: load\n    model: x\n  - stage: quantize-int4\n  - stage: {stage}\n{}\
             \x20 - stage: quantize-int8\n  - stage: export\n    path: out\n{export}",
            parameters.concat()
        );
        never_panics(&text)?;
    }

    #[test]
    fn no_override_makes_it_panic(set in "[a-z0-9.\\[\\]{}=$*&\"é -]{0,40}", path in "stages\\.[0-9]\\.[a-z_]{0,12}=.{0,12}") {
        let overrides = Overrides { set: vec![set, path], ..Default::default() };
        if let Err(failure) = check("recipe.yaml", GOOD, &overrides) {
            prop_assert!(!graphical::render(&failure.findings, STYLE).is_empty());
        }
    }
}

/// Runs the next test by itself, to fail.
const TO_FAIL: &str = "MONOQUANT_TEST_TO_FAIL";

#[test]
fn a_property_that_fails_tells_its_seed() {
    if std::env::var_os(TO_FAIL).is_some() {
        let config = ProptestConfig { rng_seed: RngSeed::Fixed(seed()), ..ProptestConfig::default() };
        let mut runner = TestRunner::new(config);
        let drawn = any::<u64>().new_tree(&mut runner).expect("a number").current();
        panic!("drawn: {drawn}");
    }
    let fails = |seed: Option<&str>| -> [String; 2] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "bad_recipes::a_property_that_fails_tells_its_seed"]);
        command.env(TO_FAIL, "1").env_remove("MONOQUANT_SEED");
        if let Some(seed) = seed {
            command.env("MONOQUANT_SEED", seed);
        }
        let output = command.output().expect("it runs");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ["MONOQUANT_SEED=", "drawn: "].map(|before| {
            let (_, rest) = said.split_once(before).unwrap_or_else(|| panic!("no `{before}` in {said}"));
            rest.chars().take_while(char::is_ascii_digit).collect()
        })
    };
    let [seed, drawn] = fails(None);
    assert_eq!(fails(Some(&seed)), [seed.clone(), drawn]);
    assert_ne!(fails(None)[0], seed);
}
