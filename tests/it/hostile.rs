//! Strings that act on terminals and logs, through every field, command and format: none of them may come out as it is.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::statistics::safetensors as statistics;
use crate::support::{Model, Workspace};

/// Begins workflow commands on lines of its own, sets a terminal's title and colour, turns the text around, hides some.
const HOSTILE: &str = "x\n::set-env name=a::b\r::add-mask::c\u{1b}]0;pwned\u{7}\u{9b}31m\u{85}\u{202e}\u{2066}\u{200b}\
                       \u{2028}\u{feff}\u{7f}\u{e0041} ##[error]y\t";

/// The same without control characters, as names of tensors may be.
const QUIET: &str = "::set-output name=a::b\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}\u{e0041}##[error]y";

/// Commands that read nothing of a stranger.
const FIXED: [&str; 4] = ["schema", "completions", "man", "help"];

/// A place for a hostile string: what it is called, and how a workspace comes to have it.
type Place = (&'static str, Box<dyn Fn(&Workspace) + Sync>);

/// A text in double quotes, as YAML and JSON have it, in ASCII.
fn quoted(text: &str) -> String {
    let units = text.encode_utf16().map(|unit| match u8::try_from(unit) {
        Ok(byte) if (b' '..=b'~').contains(&byte) && !b"\"\\".contains(&byte) => char::from(byte).to_string(),
        _ => format!("\\u{unit:04x}"),
    });
    // YAML has no surrogates; a character beyond the first plane is left as it is.
    let ascii: String = match text.chars().any(|c| u32::from(c) > 0xffff) {
        true => text.chars().map(|c| if u32::from(c) > 0xffff { c.to_string() } else { inner(c) }).collect(),
        false => units.collect(),
    };
    format!("\"{ascii}\"")
}

fn inner(c: char) -> String {
    let text = quoted(&c.to_string());
    text[1..text.len() - 1].to_owned()
}

/// A recipe of four stages with keys added to some of them.
fn recipe(top: &str, load: &str, skips: &str, quantize: &str, export: &str) -> String {
    let load = if load.contains("model:") { load.to_owned() } else { format!("    model: model\n{load}") };
    let export =
        if export.contains("path:") { export.to_owned() } else { format!("    path: out\n{export}") };
    format!(
        "version: 1\n{top}stages:\n  - stage: load\n{load}  - stage: resolve-skips\n{skips}  - stage: quantize-int4\n{quantize}  - \
         stage: validate\n  - stage: export\n{export}"
    )
}

fn plain_recipe() -> String {
    recipe("", "", "", "", "")
}

fn in_recipe(name: &'static str, text: String) -> Place {
    (name, Box::new(move |workspace| drop(workspace.write("recipe.yaml", &text))))
}

fn in_model(name: &'static str, change: impl Fn(&Workspace) + Sync + 'static) -> Place {
    (name, Box::new(change))
}

fn change_json(workspace: &Workspace, file: &str, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(workspace.path(file)).expect(file)).expect(file);
    change(&mut value);
    workspace.write(file, value.to_string());
}

fn recipes() -> Vec<Place> {
    let h = &quoted(HOSTILE);
    let expression = &quoted(&format!("re:{}", regex::escape(QUIET)));
    let long = &quoted(&format!("{}{QUIET}", "long".repeat(20_000)));
    let raw = "\u{202e}\u{2066}\u{200b}\u{9b}\u{7f}";
    vec![
        in_recipe("name", recipe(&format!("name: {h}\ndescription: {h}\n"), "", "", "", "")),
        in_recipe("long name", recipe(&format!("name: {long}\n"), "", "", "", "")),
        in_recipe("key of a recipe", recipe(&format!("{h}: 1\n"), "", "", "", "")),
        in_recipe("key of a stage", recipe("", "", "", &format!("    {h}: 1\n"), "")),
        in_recipe("key twice", recipe("", "", "", &format!("    {h}: 1\n    {h}: 1\n"), "")),
        in_recipe("stage", plain_recipe().replace("stage: validate", &format!("stage: {h}"))),
        in_recipe("word", recipe("", "", "", &format!("    observer: {h}\n    group_size: {h}\n"), "")),
        in_recipe("size", recipe("", "", "", "", &format!("    shards: {h}\n"))),
        in_recipe("bad pattern", recipe("", "", &format!("    skip_layer_names: [{h}]\n"), "", "")),
        in_recipe(
            "bad expression",
            recipe(
                "",
                "",
                &format!("    skip_layer_names: [{}]\n", quoted(&format!("re:({HOSTILE}"))),
                "",
                "",
            ),
        ),
        in_recipe(
            "pattern of nothing",
            recipe("", "", &format!("    skip_layer_names: [{expression}]\n"), "", ""),
        ),
        in_recipe("target", recipe("", "", "", &format!("    targets: [{expression}, Linear]\n"), "")),
        in_recipe(
            "layer type",
            recipe("", &format!("    layer_types: {{{expression}: Linear, {h}: Linear}}\n"), "", "", ""),
        ),
        in_recipe("include", recipe("", &format!("    include: [{h}]\n    exclude: [{h}]\n"), "", "", "")),
        in_recipe("model", recipe("", &format!("    model: {h}\n"), "", "", "")),
        in_recipe(
            "model of the hub",
            recipe("", &format!("    model: {}\n", quoted(&format!("hf://a/{HOSTILE}"))), "", "", ""),
        ),
        in_recipe("path", recipe("", "", "", "", &format!("    path: {h}\n"))),
        in_recipe(
            "path that fails",
            recipe("", "", "", "", &format!("    path: {}\n", quoted(&format!("recipe.yaml/{HOSTILE}")))),
        ),
        in_recipe("calibration", recipe("", &format!("    calibration: {{file: {h}}}\n"), "", "", "")),
        in_recipe(
            "variable",
            recipe(&format!("name: {}\n", quoted(&format!("${{{HOSTILE}}} ${{X{QUIET}"))), "", "", "", ""),
        ),
        in_recipe("anchor", recipe(&format!("name: *{raw}::x\n"), "", "", "", "")),
        in_recipe("tag", recipe(&format!("name: !{raw}##[x] y\n"), "", "", "", "")),
        in_recipe("snippet", recipe(&format!("nome: 1 # {raw}\u{2028}::x ##[y]\n"), "", "", "", "")),
        in_recipe("no YAML", format!("{raw}: [\r\n\u{1b}[31m::x\r::y\u{85}\n")),
        in_recipe("Windows", recipe("nome: 1\n", "", "", "", "").replace('\n', "\r\n")),
        in_recipe("escape in a comment", recipe("nome: 1 # \u{1b}]0;x\u{7}\n", "", "", "", "")),
    ]
}

fn models() -> Vec<Place> {
    let config = |change: fn(&mut Value)| {
        move |workspace: &Workspace| change_json(workspace, "model/config.json", change)
    };
    let index = |change: fn(&mut Value)| {
        move |workspace: &Workspace| change_json(workspace, "model/model.safetensors.index.json", change)
    };
    vec![
        in_model("model type", config(|config| config["model_type"] = json!(HOSTILE))),
        in_model("architecture", config(|config| config["architectures"] = json!([HOSTILE]))),
        in_model(
            "quantized by",
            config(|config| {
                config["quantization_config"] = json!({"quant_method": HOSTILE, "format": HOSTILE, "config_groups":
                {HOSTILE: {"targets": [HOSTILE], "weights": {"num_bits": 4, "strategy": HOSTILE}}}});
            }),
        ),
        in_model("type of a config", config(|config| config["hidden_size"] = json!({HOSTILE: HOSTILE}))),
        in_model("config of nonsense", |workspace| drop(workspace.write("model/config.json", HOSTILE))),
        in_model("config of a text", |workspace| drop(workspace.write("model/config.json", quoted(QUIET)))),
        in_model("tensor", |workspace| {
            let mut model = Model::tied();
            model.add(&format!("{QUIET}.weight"), &[128, 128]);
            model.add(&format!("model.layers.0.{QUIET}"), &[128]);
            model.add(&format!("model.layers.0.{}.weight", QUIET.repeat(30)), &[8, 8]);
            model.write(&workspace.path("model"));
        }),
        in_model("tensor with control characters", |workspace| {
            let mut model = Model::tied();
            model.add(HOSTILE, &[128, 128]);
            model.write(&workspace.path("model"));
        }),
        in_model("dtype and shape of a header", |workspace| {
            let header = json!({"a": {"dtype": HOSTILE, "shape": [1], "data_offsets": [0, 2]}}).to_string();
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes().chain([0, 0]));
            workspace.write("model/model-00001-of-00002.safetensors", bytes);
        }),
        in_model("key of a header", |workspace| {
            let header = json!({"a": {HOSTILE: 1}, "__metadata__": {HOSTILE: 1}}).to_string();
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            workspace.write("model/model-00001-of-00002.safetensors", bytes);
        }),
        in_model(
            "tensor of an index",
            index(|index| index["weight_map"][HOSTILE] = json!("model-00001-of-00002.safetensors")),
        ),
        in_model("file of an index", index(|index| index["weight_map"]["a"] = json!(HOSTILE))),
        in_model(
            "path of an index",
            index(|index| index["weight_map"][HOSTILE] = json!(format!("../{HOSTILE}"))),
        ),
        in_model("metadata of an index", index(|index| index["metadata"] = json!({HOSTILE: HOSTILE}))),
        in_model("type of an index", index(|index| index["weight_map"] = json!({HOSTILE: {HOSTILE: 1}}))),
        in_model("weight file", |workspace| {
            let (old, new) =
                ("model/model-00001-of-00002.safetensors", format!("model/{HOSTILE}.safetensors"));
            fs::rename(workspace.path(old), workspace.path(&new)).expect("a name");
            fs::remove_file(workspace.path("model/model.safetensors.index.json")).expect("an index");
        }),
        in_model("weight file that is damaged", |workspace| {
            workspace.write(&format!("model/{HOSTILE}.safetensors"), HOSTILE);
        }),
        in_model("file beside the weights", |workspace| {
            workspace.write(&format!("model/{HOSTILE}/{HOSTILE}.txt"), "x");
            workspace.write(&format!("model/{HOSTILE}.bin"), "x");
        }),
        in_model("name of the model's folder", |workspace| {
            fs::rename(workspace.path("model"), workspace.path(HOSTILE)).expect("a name");
            let load = format!("    model: {}\n", quoted(HOSTILE));
            workspace.write("recipe.yaml", recipe("", &load, "", "", ""));
        }),
        in_model("module of statistics", |workspace| {
            let sums = [1.0; 128];
            let file = statistics(&[(QUIET, &[128], &sums, &[9]), ("lm_head", &[128], &sums, &[9])], Some(3));
            workspace.write("s.safetensors", file);
            workspace
                .write("recipe.yaml", recipe("", "    calibration: {file: s.safetensors}\n", "", "", ""));
        }),
        in_model("control characters in statistics", |workspace| {
            let file = statistics(&[(HOSTILE, &[128], &[1.0; 128], &[9])], Some(3));
            workspace.write("s.safetensors", file);
            workspace
                .write("recipe.yaml", recipe("", "    calibration: {file: s.safetensors}\n", "", "", ""));
        }),
        in_model("name of statistics", |workspace| {
            workspace.write(&format!("{HOSTILE}.imatrix"), HOSTILE);
            let load = format!("    calibration: {{file: {}}}\n", quoted(&format!("{HOSTILE}.imatrix")));
            workspace.write("recipe.yaml", recipe("", &load, "", "", ""));
        }),
        in_model("source of statistics", |workspace| {
            let module = "blk.0.attn_q.weight";
            let mut file = 1_i32.to_le_bytes().to_vec();
            file.extend((module.len() as i32).to_le_bytes());
            file.extend(module.bytes());
            file.extend(3_i32.to_le_bytes().into_iter().chain(128_i32.to_le_bytes()));
            file.extend([1.0_f32; 128].iter().flat_map(|sum| sum.to_le_bytes()));
            file.extend(3_i32.to_le_bytes().into_iter().chain((HOSTILE.len() as i32).to_le_bytes()));
            file.extend(HOSTILE.bytes());
            workspace.write("s.imatrix", file);
            workspace.write("recipe.yaml", recipe("", "    calibration: {file: s.imatrix}\n", "", "", ""));
        }),
    ]
}

/// Fields of what an earlier run has left.
fn outputs() -> Vec<Place> {
    let report = |change: fn(&mut Value)| {
        move |workspace: &Workspace| {
            workspace.monoquant(["run", "recipe.yaml"]).exits(0);
            change_json(workspace, &format!("out/{}", monoquant::report::FILE_NAME), change);
        }
    };
    vec![
        in_model("summary of a report", report(|report| report["verdict"]["summary"] = json!(HOSTILE))),
        in_model(
            "file of a report",
            report(|report| {
                report["outputs"][0]["files"][0]["name"] = json!(HOSTILE);
                report["outputs"][0]["path"] = json!(HOSTILE);
            }),
        ),
        in_model("type of a report", report(|report| report["tensors"] = json!({HOSTILE: HOSTILE}))),
        in_model("version of a report", report(|report| report["monoquant"] = json!(HOSTILE))),
        in_model("foreign files in the output's place", |workspace| {
            drop(workspace.write(&format!("out/{HOSTILE}"), "x"))
        }),
        in_model("version of a record", |workspace| {
            workspace.monoquant(["run", "recipe.yaml"]).exits(0);
            let record = workspace.path(".out.monoquant-record");
            let text = fs::read_to_string(&record).expect("a record");
            let (first, rest) = text.split_once('\n').expect("lines");
            let mut header: Value = serde_json::from_str(first).expect("a header");
            header["monoquant"] = json!(HOSTILE);
            fs::write(&record, format!("{header}\n{rest}")).expect("a record");
        }),
    ]
}

/// What follows a heading of the help, word by word at the start of a line.
fn words_of(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// The commands that there are, and the forms in which they print: a new one is covered by this test, or makes it fail.
fn commands_and_formats(workspace: &Workspace) -> (Vec<String>, Vec<String>) {
    let help = workspace.monoquant(["--help"]).exits(0).stdout;
    let commands = words_of(&help, "Commands:");
    let refused = workspace.monoquant(["man", "--format", "none"]).exits(2).stderr;
    let values =
        refused.split_once("[possible values: ").expect("values").1.split(']').next().unwrap_or_default();
    let formats: Vec<String> = values.split(", ").map(str::to_owned).collect();
    assert!(commands.len() >= 9 && formats.len() >= 4, "{commands:?} {formats:?}");
    (commands, formats)
}

/// The command lines of a command, each of which reads what a stranger may have written.
fn command_lines(command: &str, hostile: &str) -> Vec<Vec<String>> {
    let lines: &[&[&str]] = match command {
        "run" => &[&["run", "recipe.yaml", "--threads", "2", "-v"], &["run", "recipe.yaml", "--dry-run"]],
        "init" => &[&["init", "MODEL"], &["init", "MODEL", "--scheme", "w8a8", "--gate"]],
        "plan" => &[&["plan", "recipe.yaml"], &["plan", "recipe.yaml", "--json"]],
        "calibrate" => &[&["calibrate", "recipe.yaml", "-o", "statistics.safetensors"]],
        "evaluate" => &[&["evaluate", "out", "--source", "MODEL", "--text", "recipe.yaml"]],
        "clean" => &[&["clean", "recipe.yaml"]],
        "explain" => &[&["explain", "recipe.yaml", "model"], &["explain", "recipe.yaml", hostile]],
        "check" => &[&["check", "recipe.yaml"]],
        "compare" => &[&["compare", "MODEL", "out"], &["compare", "out", "out", "--markdown"]],
        "sweep" => &[&["sweep", "recipe.yaml", "--set", "check-warnings.sqnr_warning_threshold=5,7"]],
        "fix" => &[&["fix", "recipe.yaml"]],
        "lock" => &[&["lock", "recipe.yaml"]],
        "inspect" => &[&["inspect", "MODEL"], &["inspect", "STATISTICS"]],
        "verify" => &[&["verify", "out"]],
        fixed if FIXED.contains(&fixed) => &[],
        new => panic!("what does `{new}` read? Add its command lines, or say that it reads nothing"),
    };
    lines.iter().map(|line| line.iter().map(|word| (*word).to_owned()).collect()).collect()
}

/// What acts on a terminal, or is not seen.
fn is_raw(c: char) -> bool {
    let unseen = [0xad, 0x61c, 0x180e, 0x2028, 0x2029, 0xfeff];
    let ranges = [(0x200b, 0x200f), (0x202a, 0x202e), (0x2060, 0x206f), (0xfff9, 0xfffb), (0xe0000, 0xe007f)];
    let code = u32::from(c);
    c.is_control()
        || unseen.contains(&code)
        || ranges.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

fn check_text(bytes: &[u8], is_colored: bool, is_github: bool, what: &str) {
    let mut text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| panic!("{what}: not UTF-8"));
    if is_colored {
        text = regex::Regex::new("\u{1b}\\[[0-9;]*m").expect("a pattern").replace_all(&text, "").into_owned();
    }
    let raw = text.chars().find(|c| *c != '\n' && is_raw(*c));
    assert_eq!(raw, None, "{what}:\n{text}");
    assert!(!text.contains("##["), "{what}:\n{text}");
    let ours =
        regex::Regex::new("^::(error|warning) [^:]*title=[a-z0-9-]+%3A%3A[a-z0-9-]+::").expect("a pattern");
    for line in text.lines().filter(|line| line.trim_start().starts_with("::")) {
        assert!(is_github && ours.is_match(line), "{what}: a command in\n{text}");
    }
}

fn check_output(output: &Output, format: &str, what: &str) {
    assert!(output.status.code().is_some_and(|code| code < 70), "{what}: {output:?}");
    let (is_human, is_github) = (format == "human", format == "github");
    check_text(&output.stdout, is_human, is_github, &format!("stdout of {what}"));
    check_text(&output.stderr, is_human, is_github, &format!("stderr of {what}"));
    if format == "json" {
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        values
            .for_each(|value| assert!(value.is_ok(), "{what}: {}", String::from_utf8_lossy(&output.stdout)));
    }
}

/// Runs every command in every form on a workspace that has a hostile string in one place.
fn check_place((name, change): &Place, commands: &[String], formats: &[String]) {
    let workspace = Workspace::with(&Model::tied());
    workspace.write("recipe.yaml", plain_recipe());
    change(&workspace);
    let paths: Vec<PathBuf> = fs::read_dir(workspace.root())
        .expect("a workspace")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let model = paths.iter().find(|path| path.join("config.json").is_file() && !path.ends_with("out"));
    let statistics = paths.iter().find(|path| {
        path.extension().is_some_and(|extension| extension == "safetensors" || extension == "imatrix")
    });
    let relative = |path: Option<&PathBuf>| {
        path.and_then(|path| path.file_name())
            .map_or_else(|| "nothing".to_owned(), |name| name.to_str().expect("UTF-8").to_owned())
    };
    for format in formats {
        for line in commands.iter().flat_map(|command| command_lines(command, HOSTILE)) {
            if line[1] == "STATISTICS" && statistics.is_none() {
                continue;
            }
            let line = line.into_iter().map(|word| match word.as_str() {
                "MODEL" => relative(model),
                "STATISTICS" => relative(statistics),
                _ => word,
            });
            let line: Vec<String> = line.chain(["--format".to_owned(), format.clone()]).collect();
            let color = if format == "human" { "always" } else { "never" };
            let output = workspace.command(&line).args(["--color", color]).output().expect("the binary runs");
            check_output(&output, format, &format!("{name}: {line:?}"));
        }
    }
}

fn check_places(places: &[Place]) {
    let (commands, formats) = commands_and_formats(&Workspace::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|half| {
                let (commands, formats) = (&commands, &formats);
                scope.spawn(move || {
                    places
                        .iter()
                        .skip(half)
                        .step_by(2)
                        .for_each(|place| check_place(place, commands, formats));
                })
            })
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

#[test]
fn nothing_of_a_recipe_acts_on_a_terminal_or_a_log() {
    check_places(&recipes());
}

#[test]
fn nothing_of_a_model_acts_on_a_terminal_or_a_log() {
    check_places(&models());
}

#[test]
fn nothing_of_an_output_acts_on_a_terminal_or_a_log() {
    check_places(&outputs());
}

#[test]
fn nothing_of_a_command_line_acts_on_a_terminal_or_a_log() {
    let workspace = Workspace::with(&Model::tied());
    workspace.write("recipe.yaml", plain_recipe());
    workspace.write(&format!("{HOSTILE}.yaml"), plain_recipe().replace("validate", "volidate"));
    let (commands, formats) = commands_and_formats(&workspace);
    let file = format!("{HOSTILE}.yaml");
    let set = format!("{HOSTILE}={HOSTILE}");
    let named = format!("name={}", quoted(HOSTILE));
    let mut lines: Vec<Vec<&str>> = vec![
        vec![HOSTILE],
        vec!["help", HOSTILE],
        vec!["check", &file],
        vec!["check", HOSTILE],
        vec!["run", &file],
        vec!["plan", "recipe.yaml", "--set", &set],
        vec!["plan", "recipe.yaml", "--set", HOSTILE],
        vec!["plan", "recipe.yaml", "--set", &named],
        vec!["plan", "recipe.yaml", "--model", HOSTILE],
        vec!["plan", "recipe.yaml", "--output", HOSTILE],
        vec!["run", "recipe.yaml", "--output", HOSTILE],
        vec!["run", "recipe.yaml", "--isa", HOSTILE],
        vec!["inspect", HOSTILE],
        vec!["verify", HOSTILE],
    ];
    for command in &commands {
        for more in ["--threads", "--memory", "--format", "--color", "--poll", "--nonsense"] {
            lines.push(vec![command, "recipe.yaml", more, HOSTILE]);
        }
        lines.push(vec![command, "recipe.yaml", HOSTILE, HOSTILE]);
    }
    let with_equals = format!("--threads={HOSTILE}");
    lines.push(vec!["plan", "recipe.yaml", &with_equals]);
    lines.push(vec!["plan", "recipe.yaml", &HOSTILE[1..]]);
    for line in &lines {
        for format in &formats {
            let args = ["--format", format];
            let output = workspace.command(args).args(line).output().expect("the binary runs");
            check_output(&output, format, &format!("{line:?} as {format}"));
        }
        let output = workspace.command(["--color", "always"]).args(line).output().expect("the binary runs");
        check_output(&output, "human", &format!("{line:?} in colour"));
    }
}

#[test]
fn a_cycle_of_a_watch_acts_on_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let workspace = Workspace::with(&Model::tied());
    let stages = recipe(&format!("{}: 1\n", quoted(HOSTILE)), "", "", "", "");
    workspace.write("recipe.yaml", stages);
    for format in commands_and_formats(&workspace).1 {
        let mut command = workspace.command(["run", "recipe.yaml", "--watch", "--poll", "--format", &format]);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        while !line.contains("cycle") && out.read_line(&mut line).expect("UTF-8") > 0 {}
        child.kill().expect("a process");
        let ended = child.wait_with_output().expect("an end");
        check_text(line.as_bytes(), false, format == "github", "a cycle");
        check_text(&ended.stderr, false, format == "github", "findings of a cycle");
        assert!(line.contains("cycle"), "{format}: {line}");
    }
}

#[test]
fn json_is_exact() {
    let workspace = Workspace::with(&Model::tied());
    workspace.write("recipe.yaml", recipe(&format!("name: {}\n", quoted(HOSTILE)), "", "", "", ""));
    let said = workspace.monoquant(["plan", "recipe.yaml", "--json"]).exits(0);
    assert_eq!(said.json()["name"], HOSTILE);
    assert_eq!(said.json()["recipe"]["name"], HOSTILE);
    change_json(&workspace, "model/config.json", |config| config["model_type"] = json!(HOSTILE));
    assert_eq!(workspace.monoquant(["inspect", "model", "--json"]).exits(0).json()["model_type"], HOSTILE);
    let mut help = workspace.monoquant(["check", HOSTILE, "--format", "json"]).exits(2).json();
    assert!(help[0]["message"].take().as_str().is_some_and(|message| message.contains(HOSTILE)));
}
