//! `moments`: layers are rounded with a file that was made before.

use super::*;

const GIVEN: &str = "    moments: m.safetensors\n";

fn alone(rounding: &str, given: &str) -> String {
    let calibrate = format!("{CALIBRATE}    gradient_samples: 4\n{given}");
    format!("{SKIPS}{calibrate}  - stage: quantize-int4\n    rounding: {rounding}\n    sequential: false\n")
}

/// Writes the moments of the example on the text of `CALIBRATE`.
fn moments(workspace: &Workspace) {
    workspace.recipe(&alone("gptq", ""));
    let args = ["calibrate", "recipe.yaml", "-o", "s.safetensors", "--moments", "m.safetensors", "-q"];
    workspace.monoquant(args).exits(0);
    std::thread::sleep(std::time::Duration::from_millis(2100));
}

#[test]
fn codes_are_those_of_a_pass_on_the_same_text() {
    let workspace = workspace();
    moments(&workspace);
    for rounding in ["gptq", "guided"] {
        carry_out(&mut plan_of(&workspace.recipe(&alone(rounding, "")), 2, None), &fresh()).expect("a pass");
        let passed = weights(&workspace);
        let recipe = workspace.recipe(&alone(rounding, GIVEN));
        let plan = plan_of(&recipe, 1, None);
        let (runs, roundings) =
            (plan.runs.as_ref().expect("runs"), plan.roundings.as_ref().expect("rounded"));
        assert_eq!((roundings.cost.tokens, roundings.cost.stream_bytes), (0, 0));
        // No more memory than is asked for.
        let least = Some(roundings.least_memory(runs, 1)).filter(|_| rounding == "gptq");
        let limits = Limits { threads: Some(1), memory: least };
        let mut plan = plan_with(&recipe, &Overrides::default(), limits).expect("a plan");
        carry_out(&mut plan, &fresh()).expect("the file");
        assert!(weights(&workspace) == passed, "{rounding}");
        // What is there is known again, and another file is another result.
        assert_eq!(windows(&mut plan_of(&recipe, 2, None), &Options::default()), 0, "{rounding}");
    }
    let said = workspace.monoquant(["plan", "recipe.yaml"]).exits(0).stdout;
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("with the moments of `m.safetensors`"), "{said}");
    let before = weights(&workspace);
    let other = CALIBRATE.replace("12", "20");
    workspace.recipe(&alone("guided", "").replace(CALIBRATE, &other));
    let args = ["calibrate", "recipe.yaml", "-o", "s.safetensors", "--moments", "m.safetensors", "-q"];
    workspace.monoquant(args).exits(0);
    carry_out(&mut plan_of(&workspace.recipe(&alone("guided", GIVEN)), 2, None), &Options::default())
        .expect("the other file");
    assert!(weights(&workspace) != before);
}

#[test]
fn a_file_that_does_not_fit_is_named() {
    let workspace = workspace();
    moments(&workspace);
    let told = |stages: &str| workspace.plan_findings(&workspace.recipe(stages));
    let found = told(&alone("gptq", GIVEN).replace("    sequential: false\n", ""));
    assert!(found.contains("`moments` of `calibrate` needs `sequential: false`"), "{found}");
    let found = told(&format!("{SKIPS}{CALIBRATE}{GIVEN}  - stage: quantize-int4\n    observer: mse\n"));
    assert!(found.contains("`moments` has no effect"), "{found}");
    let found = told(&alone("gptq", "    moments: gone.safetensors\n"));
    assert!(found.contains("cannot read the moments `gone.safetensors`"), "{found}");
    let found = told(&alone("gptq", "    moments: s.safetensors\n"));
    assert!(found.contains("`s.safetensors` holds no second moments"), "{found}");

    // Of another model: none of its names, and other widths.
    let good = fs::read(workspace.path("m.safetensors")).expect("moments");
    let changed = |from: &str, to: &str| {
        let (mut bytes, len) = (good.clone(), from.len());
        assert_eq!(len, to.len());
        let mut at = 0;
        while let Some(next) = bytes[at..].windows(len).position(|window| window == from.as_bytes()) {
            bytes[at + next..at + next + len].copy_from_slice(to.as_bytes());
            at += next + len;
        }
        workspace.write("m.safetensors", bytes);
        told(&alone("gptq", GIVEN))
    };
    let found = changed("model.layers", "other.layers");
    assert!(found.contains("has moments of no matrix that is rounded with them"), "{found}");
    // One that the file does not have is as one that no token came to.
    let found = changed("layers.1.mlp.down_proj", "layers.1.mlp.past_proj");
    assert!(found.contains("1 matrix of `quantize-int4` is rounded to nearest"), "{found}");
    assert!(found.contains("the file of moments has none of its inputs"), "{found}");
    let header = u64::from_le_bytes(good[..8].try_into().expect("eight bytes")) as usize;
    let text = String::from_utf8(good[8..8 + header].to_vec()).expect("text");
    let swapped = text
        .replace("layers.1.mlp.down_proj", "*")
        .replace("layers.1.self_attn.o_proj", "layers.1.mlp.down_proj");
    let swapped = swapped.replace('*', "layers.1.self_attn.o_proj");
    assert_eq!(swapped.len(), text.len());
    workspace.write("m.safetensors", [&good[..8], swapped.as_bytes(), &good[8 + header..]].concat());
    let found = told(&alone("gptq", GIVEN));
    assert!(found.contains("columns, not"), "{found}");
}

/// Units whose codes parts have chosen, whatever their number, give what one run gives.
#[test]
fn parts_round_with_a_file_as_one_run_does() {
    let workspace = workspace();
    moments(&workspace);
    let with_moments = alone("gptq", GIVEN).replace("    gradient_samples: 4\n", "");
    let recipe = workspace.recipe(&(with_moments + "  - stage: validate\n"));
    let text = fs::read_to_string(&recipe).expect("a recipe");
    fs::write(&recipe, text.replace("    path: out\n", "    path: out\n    shards: 1MB\n"))
        .expect("a recipe");
    let run = |args: &[&str]| workspace.monoquant([&["run", "recipe.yaml"], args].concat());
    run(&[]).exits(0);
    let whole = files(&workspace.path("out"));
    assert!(whole.len() > 6, "several files: {:?}", whole.keys());
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    let _ = fs::remove_file(workspace.path(".out.monoquant-record"));

    run(&["--part", "0/3", "--threads", "1"]).exits(0);
    let said = run(&["--join"]).exits(75).stderr;
    assert!(said.contains("parts::missing"), "{said}");
    let said = run(&["--part", "0/1"]).exits(0).stdout;
    assert!(!said.contains(" 0 there before"), "{said}");
    // Codes that are lost are chosen again, and the files that were made with them stay.
    fs::remove_dir_all(workspace.path(".out.monoquant-rounding")).expect("the codes");
    run(&["--join"]).exits(75);
    let said = run(&["--part", "0/1"]).exits(0).stdout;
    assert!(said.contains("0 made"), "{said}");
    run(&["--join"]).exits(0);
    assert!(files(&workspace.path("out")) == whole);
    assert!(!workspace.path(".out.monoquant-parts").exists());
    // Another join finds it all there, also after a run that is not in parts.
    let said = run(&["--join"]).exits(0).stdout;
    assert!(said.contains("up to date"), "{said}");
    // Nothing is kept of files that are too new for a change to show.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    run(&[]).exits(0);
    let said = run(&["--join"]).exits(0).stdout;
    assert!(said.contains("up to date"), "{said}");
}

#[test]
fn what_cannot_be_rounded_in_parts_says_what_could_be() {
    let workspace = workspace();
    for (stages, expected) in [
        (alone("gptq", ""), "`moments: MOMENTS`"),
        (alone("gptq", "").replace("    sequential: false\n", ""), "`sequential: false`"),
        (alone("guided", ""), "`rounding: gptq` can be run in parts"),
    ] {
        workspace.recipe(&stages);
        let said = workspace.monoquant(["run", "recipe.yaml", "--part", "0/2"]).exits(2).stderr;
        let words = said.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(words.contains("parts::model-runs") && words.contains(expected), "{said}");
    }
}
