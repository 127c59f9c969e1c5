//! How fast models run, against products of matrices alone: `cargo bench --bench network -- [--hidden N] [--layers N] [--rounds N]`.
//!
//! Makes a synthetic Llama and times in turn, in one run: a layer's pass over windows of text, and the same products alone by the
//! library that makes them, both with one thread and with two. Then a comparison of the quantized model with its original against one
//! pass of the original from the files, logits included. Prints medians over rounds; times in seconds are for orientation only, the
//! ratios hold on a busy machine too.

#![expect(clippy::disallowed_methods, reason = "it makes the model that it measures with")]
#![expect(unsafe_code, reason = "the library's product is an unsafe function")]

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use monoquant::finding::Finding;
use monoquant::format::source;
use monoquant::network::{Checkpoint, Description, Hidden, LayerWeights, Pass, Silent, Weights, logits};
use monoquant::plan::{Limits, Plan};
use monoquant::run::evaluate::{Setting, compare};
use monoquant::run::{Options, Silent as Unheard};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};

/// Tokens of a window, and windows.
const TOKENS: usize = 512;
const WINDOWS: usize = 8;
const VOCABULARY: usize = 4096;

struct Asked {
    hidden: usize,
    layers: usize,
    rounds: usize,
}

impl Asked {
    fn parse() -> Self {
        let mut out = Self { hidden: 1024, layers: 4, rounds: 7 };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let slot = match arg.as_str() {
                "--hidden" => &mut out.hidden,
                "--layers" => &mut out.layers,
                "--rounds" => &mut out.rounds,
                _ => continue,
            };
            *slot = args.next().and_then(|value| value.parse().ok()).expect("a number");
        }
        out
    }

    fn config(&self) -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 11 / 4, "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden / 64, "num_key_value_heads": self.hidden / 256,
            "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 1e4, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        })
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner, keys) = (self.hidden, self.hidden * 11 / 4, self.hidden / 4);
        let mut all = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
            ("lm_head.weight".to_owned(), vec![VOCABULARY, hidden]),
        ];
        for layer in 0..self.layers {
            for (word, shape) in [
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
            ] {
                all.push((format!("model.layers.{layer}.{word}.weight"), shape));
            }
        }
        all
    }
}

/// Numbers of about the size that weights have, the same in every run.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut state =
        name.bytes().fold(0x9E37_79B9_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let is_norm = name.ends_with("norm.weight");
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        if is_norm { 1.0 } else { (state >> 8) as f32 / 16_777_216.0 * 0.1 - 0.05 }
    };
    std::iter::repeat_with(next).take(count).collect()
}

struct Synthetic(Vec<(String, Vec<usize>)>);

impl Weights for Synthetic {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, shape)| shape.clone())
    }

    fn read(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Vec<f32>, Finding> {
        let width: usize = self.shape(name).expect("a tensor")[1..].iter().product();
        Ok(numbers(name, rows.end * width).split_off(rows.start * width))
    }
}

fn main() {
    let asked = Asked::parse();
    layer(&asked);
    comparison(&asked);
}

/// One layer's pass against its products alone, with one thread and with two.
fn layer(asked: &Asked) {
    let weights = Synthetic(asked.tensors());
    let description = Description::new(&asked.config(), &weights).expect("a Llama");
    let windows = windows();
    let pass = Pass::new(&description, &windows).expect("a pass");
    let program = &description.layers[0];
    let loaded = LayerWeights::read(program, &weights).expect("weights");
    let shapes: Vec<(usize, usize)> =
        program.matrices().map(|matrix| (matrix.rows, matrix.columns)).collect();
    let matrices: Vec<&[f32]> = program.matrices().map(|matrix| loaded.matrix(matrix)).collect();
    let widest = shapes.iter().map(|(rows, columns)| *rows.max(columns)).max().unwrap_or(0);
    let inputs = numbers("inputs", TOKENS * widest);
    let pools = [1, 2].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    let tokens = (WINDOWS * TOKENS) as f64;
    let linear = 2.0 * tokens * shapes.iter().map(|(rows, columns)| (rows * columns) as f64).sum::<f64>();
    // Scores and sums of values, of half of the keys on average.
    let attention = 2.0 * tokens * (TOKENS as f64) * asked.hidden as f64;
    let fresh = || pass.embed(&weights, None).expect("tokens");
    let (mut shares, mut whole, mut speed_ups, mut speeds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=asked.rounds {
        let times = pools.each_ref().map(|pool| {
            let run = time_of_pass(pool, &pass, &loaded, fresh());
            let products = time_of_products(pool, &shapes, &matrices, &inputs);
            (run, products)
        });
        // The first round warms up.
        if round == 0 {
            continue;
        }
        let [(one, products), (two, products_of_two)] = times;
        shares.push(products / one);
        whole.push(products * (1.0 + attention / linear) / one);
        speed_ups.push((one / two) / (products / products_of_two));
        speeds.push((linear / products / 1e9, linear / one / 1e9));
    }
    say(&format!(
        "layer of {} columns, {WINDOWS} windows of {TOKENS} tokens\n\
         products alone, one thread:             {:6.1} GFLOP/s\n\
         the pass, one thread, by its products:  {:6.1} GFLOP/s\n\
         share of the products' speed:           {:6.1} %\n\
         the same with attention's products:     {:6.1} %\n\
         speed-up of two threads over products': {:6.3}",
        asked.hidden,
        median(speeds.iter().map(|(products, _)| *products)),
        median(speeds.iter().map(|(_, pass)| *pass)),
        100.0 * median(shares.into_iter()),
        100.0 * median(whole.into_iter()),
        median(speed_ups.into_iter()),
    ));
}

fn time_of_pass(pool: &ThreadPool, pass: &Pass<'_>, weights: &LayerWeights, mut hidden: Hidden) -> f64 {
    let start = Instant::now();
    pool.install(|| pass.layer(0, weights, &mut hidden, &mut Silent)).expect("a layer");
    start.elapsed().as_secs_f64()
}

fn time_of_products(
    pool: &ThreadPool,
    shapes: &[(usize, usize)],
    matrices: &[&[f32]],
    inputs: &[f32],
) -> f64 {
    let start = Instant::now();
    pool.install(|| {
        (0..WINDOWS).into_par_iter().for_each(|_| {
            for ((rows, columns), matrix) in shapes.iter().zip(matrices) {
                let mut out = vec![0f32; TOKENS * rows];
                assert!(inputs.len() >= TOKENS * columns && matrix.len() == rows * columns);
                // SAFETY: the inputs, the matrix and the products have at least as many numbers as the sizes say.
                unsafe {
                    matrixmultiply::sgemm(
                        TOKENS,
                        *columns,
                        *rows,
                        1.0,
                        inputs.as_ptr(),
                        columns.cast_signed(),
                        1,
                        matrix.as_ptr(),
                        1,
                        columns.cast_signed(),
                        0.0,
                        out.as_mut_ptr(),
                        rows.cast_signed(),
                        1,
                    );
                }
                black_box(&out);
            }
        });
    });
    start.elapsed().as_secs_f64()
}

fn windows() -> Vec<Vec<u32>> {
    let token = |window: usize, at: usize| ((window * 7919 + at * at * 31 + at * 17) % VOCABULARY) as u32;
    (0..WINDOWS).map(|window| (0..TOKENS).map(|at| token(window, at)).collect()).collect()
}

/// A comparison from files against one pass from files.
fn comparison(asked: &Asked) {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = planned(asked, dir.path());
    monoquant::run::run(&plan, &Options::default(), &Unheard).expect("a run");
    let output = dir.path().join("out").display().to_string();
    let output =
        source::open(&output, Path::new("."), &[]).and_then(monoquant::model::look).expect("an output");
    let runs = plan.runs.as_ref().expect("runs");
    let run = &runs.runs[0];
    let options = Options::default();
    let setting = Setting { threads: 2, memory: None, target: None, options: &options, listener: &Unheard };
    let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let mut ratios = Vec::new();
    for round in 0..=asked.rounds.div_ceil(2) {
        let start = Instant::now();
        pool.install(|| forward(&plan, &runs.description, &run.windows));
        let one = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let sides = ((&plan.model, &plan.model.config.raw), (&output, &output.config.raw));
        compare(runs, run, sides.0, sides.1, &setting).expect("a comparison");
        if round > 0 {
            ratios.push(start.elapsed().as_secs_f64() / one);
        }
    }
    say(&format!("a comparison, in passes:                {:6.2}", median(ratios.into_iter())));
}

/// One pass of the original from its files, with logits of every token.
fn forward(plan: &Plan, description: &Description, windows: &[Vec<u32>]) {
    let checkpoint = Checkpoint::open(&plan.model).expect("the model");
    let pass = Pass::new(description, windows).expect("a pass");
    let mut hidden = pass.embed(&checkpoint, None).expect("tokens");
    for (layer, program) in description.layers.iter().enumerate() {
        let weights = LayerWeights::read(program, &checkpoint).expect("weights");
        pass.layer(layer, &weights, &mut hidden, &mut Silent).expect("a layer");
    }
    pass.finish(&checkpoint, &mut hidden).expect("a norm");
    (0..windows.len()).into_par_iter().for_each(|window| {
        let stream = hidden.get(window).expect("a window");
        black_box(logits(description, &checkpoint, stream).expect("logits"));
    });
}

/// The synthetic model in files, and a plan that quantizes and compares it.
fn planned(asked: &Asked, dir: &Path) -> Plan {
    let model = dir.join("model");
    fs::create_dir_all(&model).expect("a folder");
    let write = |path: PathBuf, bytes: &[u8]| fs::write(path, bytes).expect("a file");
    write(model.join("config.json"), asked.config().to_string().as_bytes());
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = asked
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = numbers(&name, shape.iter().product());
            let bytes = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name, view.expect("a tensor"))
    });
    write(model.join("model.safetensors"), &safetensors::serialize(views, None).expect("a file"));
    let vocabulary: serde_json::Map<String, Value> =
        (0..VOCABULARY).map(|token| (format!("w{token}"), json!(token))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    write(model.join("tokenizer.json"), tokenizer.to_string().as_bytes());
    let words: Vec<String> = windows().concat().iter().map(|token| format!("w{token}")).collect();
    write(dir.join("text.txt"), words.join(" ").as_bytes());
    let recipe = format!(
        "version: 1\nname: bench\nstages:\n  - {{stage: load, model: model}}\n  - {{stage: resolve-skips, defaults: auto}}\n  - \
         {{stage: quantize-int4}}\n  - {{stage: evaluate, text: [text.txt], sequence_length: {TOKENS}}}\n  - {{stage: export, path: out}}\n"
    );
    write(dir.join("recipe.yaml"), recipe.as_bytes());
    let loaded = monoquant::recipe::load(&dir.join("recipe.yaml"), &monoquant::recipe::Overrides::default());
    monoquant::plan::plan(loaded.expect("a recipe"), Limits { threads: Some(2), memory: None })
        .expect("a plan")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
