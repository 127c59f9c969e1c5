//! Small models with experts, and with what no model should have, through the whole command: their weights are those of the fixtures of
//! `network.rs`, and their words are the numbers of their tokens.

use std::collections::BTreeMap;
use std::fs;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::network::{Tensors, fixture};
use crate::support::{Ended, Workspace, tensors};

/// Matrices of experts: their numbers, shapes and values.
type Experts = Vec<(usize, Vec<usize>, Vec<f32>)>;

/// A workspace with the model of a fixture, changed, and a text.
fn workspace(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> Workspace {
    let workspace = Workspace::new();
    let (mut config, mut weights) = fixture(name).model();
    change(&mut config, &mut weights);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect()))
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor"))
    });
    workspace.write("model/model.safetensors", safetensors::serialize(views, None).expect("a file"));
    workspace.write("model/config.json", config.to_string());
    let vocabulary: BTreeMap<String, usize> = (0..200).map(|token| (format!("w{token}"), token)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    workspace.write("model/tokenizer.json", tokenizer.to_string());
    let words: Vec<String> = (0..240).map(|index| format!("w{}", 3 + index * index * 7 % 89)).collect();
    workspace.write("text.txt", words.join(" "));
    workspace
}

const CALIBRATE: &str = "  - stage: calibrate\n    text: [text.txt]\n    sequence_length: 20\n";
const QUANTIZE: &str =
    "  - stage: resolve-skips\n    defaults: auto\n  - stage: quantize-int8\n    granularity: channel\n";

fn evaluate(more: &str) -> String {
    format!("  - stage: evaluate\n    text: [text.txt]\n    sequence_length: 20\n{more}")
}

/// Two outputs of one run: codes in `out`, and the weights that they mean in `plain`.
fn twice(workspace: &Workspace, stages: &str) -> Ended {
    let recipe = workspace.whole_recipe(&format!(
        "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n  - stage: export\n    path: plain\n    format: dequantized\n"
    ));
    workspace.run(&recipe)
}

fn evaluations(workspace: &Workspace) -> Vec<Value> {
    let bytes = fs::read(workspace.path("out/monoquant-report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&bytes).expect("JSON");
    report["evaluations"].as_array().expect("a list").clone()
}

/// Puts experts that are apart into stacks, as transformers has them in memory.
fn stack(weights: &mut Tensors) {
    let all = std::mem::take(weights);
    let mut parts: BTreeMap<(String, String), Experts> = BTreeMap::new();
    for (name, (shape, values)) in all {
        let Some((prefix, rest)) = name.split_once(".experts.") else {
            weights.insert(name, (shape, values));
            continue;
        };
        let (expert, word) = rest.split_once('.').expect("an expert");
        let word = word.strip_suffix(".weight").expect("a weight").to_owned();
        let expert = expert.parse().expect("a number");
        parts.entry((prefix.to_owned(), word)).or_default().push((expert, shape, values));
    }
    parts.values_mut().for_each(|experts| experts.sort_by_key(|(expert, ..)| *expert));
    let prefixes: Vec<String> = parts.keys().map(|(prefix, _)| prefix.clone()).collect();
    for prefix in prefixes {
        let mut take = |word: &str| parts.remove(&(prefix.clone(), word.to_owned()));
        let (Some(gate), Some(up), Some(down)) = (take("gate_proj"), take("up_proj"), take("down_proj"))
        else {
            continue;
        };
        let [rows, columns] = gate[0].1[..] else { panic!("a matrix") };
        let both =
            gate.iter().zip(&up).flat_map(|((.., gate), (.., up))| [gate, up]).flatten().copied().collect();
        weights.insert(format!("{prefix}.experts.gate_up_proj"), (vec![gate.len(), 2 * rows, columns], both));
        let all = down.iter().flat_map(|(.., down)| down).copied().collect();
        weights.insert(format!("{prefix}.experts.down_proj"), (vec![down.len(), columns, rows], all));
    }
}

#[test]
fn experts_are_compared_however_they_are_stored() {
    for (name, is_stacked) in [
        ("qwen3-moe", false),
        ("qwen3-moe", true),
        ("qwen2-moe", true),
        ("mixtral", false),
        ("deepseek-v3", false),
        ("glm4-moe", true),
        ("granite-moe", false),
        ("gpt-oss", false),
        ("lfm2-moe", false),
        ("minimax-m2", false),
    ] {
        let workspace = workspace(name, |_, weights| {
            if is_stacked {
                stack(weights)
            }
        });
        twice(&workspace, &format!("{QUANTIZE}{}", evaluate(""))).exits(0);
        let has_codes = tensors(&workspace.path("out"))
            .keys()
            .any(|name| name.contains("experts.") && name.ends_with(".weight_packed"));
        // Stacks of these two are known as stacks only to engines, and so are left alone.
        assert_eq!(has_codes, !matches!(name, "granite-moe" | "gpt-oss"), "{name}");
        let found = evaluations(&workspace);
        assert_eq!(
            (found.len(), &found[0]["export"], &found[1]["export"]),
            (2, &json!(4), &json!(5)),
            "{name}"
        );
        let kl = found[0]["kl"]["mean"].as_f64().expect("kl");
        assert!(kl > 1e-9 && kl < 0.05, "{name}: {kl}");
        assert_eq!(found[0]["kl"], found[1]["kl"], "{name}: codes and what they mean");
        assert_eq!(found[0]["layers"], found[1]["layers"], "{name}");
        // What is equal bit for bit answers the same.
        let args = ["evaluate", "out", "--source", "plain", "--text", "text.txt", "--sequence-length", "20"];
        let same = workspace.monoquant(args.into_iter().chain(["--format", "json"])).exits(0).json();
        assert_eq!(same["kl"]["mean"], json!(0.0), "{name}: {same}");
        assert_eq!(same["top1_agreement"], json!(1.0), "{name}");
        assert!(
            same["layers"].as_array().expect("layers").iter().all(|error| *error == json!(0.0)),
            "{name}"
        );
    }
}

#[test]
fn thresholds_hold_for_each_output() {
    let workspace = workspace("llama", |_, _| {});
    let ended = twice(&workspace, &format!("{QUANTIZE}{}", evaluate("    max_kl: 0.000000001\n"))).exits(1);
    for path in ["out", "plain"] {
        let message = format!("of `{path}` the mean KL divergence is 0.0");
        assert!(ended.stderr.contains(&message), "{}", ended.stderr);
    }
    let ended = twice(&workspace, &format!("{QUANTIZE}{}", evaluate("    max_kl: 0.5\n"))).exits(0);
    assert_eq!(ended.stderr.matches("the comparison with the original is that of the last run").count(), 2);
    assert!(workspace.path(".plain.monoquant-evaluation").exists());
    workspace.monoquant(["clean", "recipe.yaml"]).exits(0);
    assert!(!workspace.path(".plain.monoquant-evaluation").exists());
}

#[test]
fn activations_that_stop_being_numbers_are_named_with_layer_module_and_sample() {
    for (tensor, value, message) in [
        (
            "model.layers.1.mlp.experts.3.up_proj.weight",
            f32::INFINITY,
            "the stream after layer 1 is not finite at token 0 of sample 0, since `model.layers.1.mlp.experts.3.up_proj`",
        ),
        (
            "model.layers.0.self_attn.v_proj.weight",
            f32::NAN,
            "the stream after layer 0 is not finite at token 0 of sample 0, since `model.layers.0.self_attn.v_proj`",
        ),
        (
            "model.embed_tokens.weight",
            f32::NAN,
            "the stream after layer 0 is not finite at token 0 of sample 0, since `model.embed_tokens.weight`",
        ),
    ] {
        let workspace = workspace("qwen3-moe", |_, weights| {
            weights.get_mut(tensor).expect("a tensor").1.fill(value);
        });
        let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}"));
        let ended = workspace.run(&recipe).exits(3);
        let told = ended.stderr.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
        // Another token may be the first that goes to an expert.
        let message = message.replace(" at token 0 of sample 0", "");
        let pattern = regex::escape(&message).replace("finite", "finite at token \\d+ of sample \\d+");
        assert!(regex::Regex::new(&pattern).expect("a pattern").is_match(&told), "{told}");
        assert!(told.contains("network::not-finite") && !workspace.path("out").exists());
    }
}

/// The last layer's own products go into no other layer.
#[test]
fn activations_that_stop_being_numbers_in_the_last_layer_are_named_where_it_is_rounded() {
    let workspace = workspace("llama", |_, weights| {
        let last = "model.layers.1.mlp.down_proj.weight";
        weights.get_mut(last).expect("a tensor").1.fill(f32::INFINITY);
    });
    let ended =
        workspace.run(&workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}    rounding: gptq\n"))).exits(3);
    let told = ended.stderr.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
    let message =
        "the stream after layer 1 is not finite at token 0 of sample 0, since `model.layers.1.mlp.down_proj`";
    assert!(told.contains(message) && !workspace.path("out").exists(), "{told}");
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_named() {
    let workspace = workspace("llama", |_, _| {});
    workspace.write("text.txt", "w5 w150 ".repeat(40));
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}"));
    let ended = workspace.run(&recipe).exits(2);
    let told = ended.stderr.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
    assert!(told.contains("network::token-out-of-range"), "{told}");
    assert!(told.contains("the text has token 150, and the model's vocabulary ends before 96"), "{told}");
}

#[test]
fn an_expert_without_tokens_has_no_statistics_and_is_told() {
    let workspace = workspace("qwen3-moe", |_, _| {});
    // One word: all tokens are the same, but for their positions.
    workspace.write("text.txt", "w7 ".repeat(60));
    let recipe = |on_missing: &str| {
        let on_missing = format!("    on_missing: {on_missing}\n");
        workspace.recipe(&format!("{CALIBRATE}{on_missing}{QUANTIZE}    observer: mse\n"))
    };
    let ended = workspace.run(&recipe("error")).exits(2);
    assert!(ended.stderr.contains(".experts."), "{}", ended.stderr);
    let ended = workspace.run(&recipe("warn")).exits(0);
    assert!(ended.stderr.contains(".experts."), "{}", ended.stderr);
    let ended = workspace.run(&recipe("ignore")).exits(0);
    assert!(!ended.stderr.contains(".experts."), "{}", ended.stderr);
}

/// Second moments as numpy would make them: the triangle of each expert's own rows is positive, and its diagonal is the mean square.
#[test]
fn moments_are_those_of_the_statistics_whatever_the_threads_and_the_memory() {
    use monoquant::network::{MomentsFile, Program};
    for (name, is_stacked) in
        [("qwen3-moe", false), ("qwen3-moe", true), ("granite-moe", false), ("llama", false)]
    {
        let workspace = workspace(name, |_, weights| {
            if is_stacked {
                stack(weights)
            }
        });
        let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}    observer: mse\n"));
        let made = |more: &[&str]| {
            let args = ["calibrate", "recipe.yaml", "-o", "s.safetensors", "--moments", "m.safetensors"];
            workspace.monoquant(args.iter().copied().chain(more.iter().copied())).exits(0);
            let read = |name: &str| fs::read(workspace.path(name)).expect("a file");
            (read("s.safetensors"), read("m.safetensors"))
        };
        let one = made(&["--threads", "1"]);
        assert!(one == made(&["--threads", "2"]), "{name}");
        // So little that each matrix's sums are made in a pass of their own.
        let runs = workspace.plan(&recipe).expect("a plan").runs.expect("runs");
        let matrices = runs.description.layers.iter().flat_map(Program::matrices);
        let widest = matrices.map(|matrix| (matrix.columns * matrix.columns) as u64 * 8).max().expect("one");
        let kibibytes = |bytes: u64| format!("{}KiB", (runs.least_memory(2) + bytes).div_ceil(1024));
        assert!(one == made(&["--threads", "2", "--memory", &kibibytes(widest)]), "{name}");
        let too_little = kibibytes(2048);
        let args = ["calibrate", "recipe.yaml", "-o", "s", "--moments", "m", "--threads", "2", "--memory"];
        let ended = workspace.monoquant(args.into_iter().chain([too_little.as_str()])).exits(2);
        assert!(ended.stderr.contains("second moments of"), "{}", ended.stderr);
        assert!(!workspace.path("m").exists());
        let args = ["calibrate", "recipe.yaml", "-o", "m", "--moments", "m"];
        assert!(workspace.monoquant(args).exits(2).stderr.contains("cli::same-file"));

        let file = MomentsFile::open(&workspace.path("m.safetensors")).expect("moments");
        let statistics = safetensors::SafeTensors::deserialize(&one.0).expect("statistics");
        for matrix in runs.description.layers.iter().flat_map(Program::matrices) {
            let sums = statistics.tensor(&format!("{}.in_sum2", matrix.module())).expect("sums");
            let counts = statistics.tensor(&format!("{}.counts", matrix.module())).expect("counts");
            let expert = match matrix.part {
                monoquant::network::Part::Expert(expert) => expert,
                monoquant::network::Part::Whole => 0,
            };
            let count = counts.data().as_chunks::<8>().0[expert];
            let count = i64::from_le_bytes(count) as u64;
            let found = file.mean(matrix).expect("moments");
            let Some((mean, rows)) = found else {
                assert_eq!(count, 0, "{}", matrix.module());
                continue;
            };
            assert_eq!(rows, count, "{}", matrix.module());
            let columns = matrix.columns;
            let sums = &sums.data().as_chunks::<4>().0[expert * columns..(expert + 1) * columns];
            for (column, sum) in sums.iter().enumerate() {
                let square = f64::from(f32::from_le_bytes(*sum)) / rows as f64;
                let diagonal = mean[column * columns + column];
                assert!(
                    (square - diagonal).abs() <= 1e-5 * square,
                    "{}: {square} {diagonal}",
                    matrix.module()
                );
            }
        }
    }
}

#[test]
fn a_file_of_moments_that_can_be_none_is_named() {
    use monoquant::network::{MomentsFile, Program};
    let workspace = workspace("llama", |_, _| {});
    let recipe = workspace.recipe(&format!("{CALIBRATE}{QUANTIZE}    observer: mse\n"));
    let args = ["calibrate", "recipe.yaml", "-o", "s.safetensors", "--moments", "m.safetensors"];
    workspace.monoquant(args).exits(0);
    let good = fs::read(workspace.path("m.safetensors")).expect("a file");
    let runs = workspace.plan(&recipe).expect("a plan").runs.expect("runs");
    let matrices: Vec<_> = runs.description.layers.iter().flat_map(Program::matrices).collect();
    let error = |change: &dyn Fn(&mut Vec<u8>)| -> String {
        let mut bytes = good.clone();
        change(&mut bytes);
        let path = workspace.write("bad.safetensors", bytes);
        let all = |file: MomentsFile| matrices.iter().try_for_each(|matrix| file.mean(matrix).map(drop));
        MomentsFile::open(&path).and_then(all).expect_err("refused").message
    };
    let text = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            assert_eq!(from.len(), to.len());
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("there");
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    let last = |number: f32| {
        move |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&number.to_le_bytes());
        }
    };
    let before = |number: f32| {
        move |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
    };
    for (change, part) in [
        (&last(f32::NAN) as &dyn Fn(&mut Vec<u8>), "hold NaN for the columns 47 and 47"),
        (&last(-1.0), "which is no moment"),
        (&before(f32::INFINITY), "hold inf for the columns 47 and 46"),
        (&before(1e9), "hold 1000000000 for the columns 47 and 46, which is no moment"),
        (&text("monoquant-moments", "monoquant-momenta"), "holds no second moments"),
        (&text("q_proj.counts", "x_proj.counts"), "has no counts of rows beside it"),
        (&text("\"F32\"", "\"I32\""), "is not F32"),
        (&|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1), "bytes"),
        (&|bytes: &mut Vec<u8>| bytes.truncate(5), "too few for a safetensors file"),
        (&|bytes: &mut Vec<u8>| bytes[..8].fill(0xff), "claims a header"),
    ] {
        let message = error(change);
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(MomentsFile::open(&workspace.path("gone")).is_err());
    assert!(MomentsFile::open(&workspace.path("s.safetensors")).is_err(), "statistics are no moments");
}
