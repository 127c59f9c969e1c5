//! The whole job against copying the files: `cargo bench --bench job`.
//!
//! Makes a synthetic BF16 Llama in several shards, then times, side by side in one run: `cp -r` of the model's folder, an
//! I/O floor (as many threads, positioned reads of the source, as many bytes written as the output has, nothing computed), and
//! monoquant with several recipes. Prints ratios of medians; absolute times are for orientation only.
//!
//! ```text
//! cargo bench --bench job -- [--dir DIR] [--gigabytes N] [--rounds N] [--threads N] [--only WORD] [--durable] [--peer PYTHON SCRIPT]
//! cargo bench --bench job -- --again [--dir DIR] [--gigabytes N] [--rounds N] [--threads N]
//! ```
//!
//! With `--only` it times the recipe of that name, or those whose names contain the word.
//!
//! With `--again` it times what a second run costs instead: with nothing changed, a threshold, or one layer's rule; and in a
//! watch, from the moment the recipe is saved to the verdict.

#![expect(clippy::disallowed_methods, reason = "it makes the models that it measures with")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What the command line asks for.
struct Options {
    dir: PathBuf,
    gigabytes: f64,
    rounds: usize,
    threads: usize,
    only: Option<String>,
    durable: bool,
    again: bool,
    peer: Option<(String, String)>,
}

impl Options {
    fn parse() -> Self {
        let mut out = Self {
            dir: std::env::temp_dir().join("monoquant-bench"),
            gigabytes: 2.0,
            rounds: 5,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            only: None,
            durable: false,
            again: false,
            peer: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            match arg.as_str() {
                "--dir" => out.dir = PathBuf::from(value()),
                "--gigabytes" => out.gigabytes = value().parse().expect("a number"),
                "--rounds" => out.rounds = value().parse().expect("a number"),
                "--threads" => out.threads = value().parse().expect("a number"),
                "--only" => out.only = Some(value()),
                "--durable" => out.durable = true,
                "--again" => out.again = true,
                "--peer" => out.peer = Some((value(), value())),
                _ => {}
            }
        }
        out
    }
}

/// One time of one contender.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    peak_mib: f64,
}

fn main() {
    let options = Options::parse();
    fs::create_dir_all(&options.dir).expect("a folder for the benchmark");
    let model = options.dir.join(format!("model-{}", options.gigabytes));
    if !model.join("config.json").exists() {
        make_model(&model, options.gigabytes);
    }
    let source: u64 = weight_files(&model).iter().map(|path| path.metadata().expect("a file").len()).sum();
    say(&format!(
        "model: {:.2} GB in {} files, {}",
        source as f64 / 1e9,
        weight_files(&model).len(),
        model.display()
    ));
    warm(&model);

    if options.again {
        return again(&options, &model);
    }
    let contenders = contenders();
    let is_named = |only: &str| contenders.iter().any(|(name, _)| *name == only);
    let wanted = |name: &str| match options.only.as_deref() {
        Some(only) if is_named(only) => name == only,
        Some(only) => name.contains(only),
        None => true,
    };
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for round in 0..=options.rounds {
        let mut add = |name: &str, sample: Sample| {
            // The first round warms up.
            if round > 0 {
                samples.entry(name.to_owned()).or_default().push(sample);
            }
        };
        add("cp -r", copy(&options, &model));
        let mut output_bytes = 0;
        for (name, stage) in contenders.iter().filter(|(name, _)| wanted(name)) {
            let (sample, bytes) = monoquant(&options, &model, name, stage);
            add(name, sample);
            if *name == "int4" {
                output_bytes = bytes;
            }
        }
        if output_bytes > 0 {
            add("I/O floor", floor(&options, &model, output_bytes));
        }
    }
    if let Some((python, script)) = &options.peer {
        let sample = peer(&options, &model, python, script);
        samples.insert("llm-compressor W4A16".to_owned(), vec![sample]);
    }
    print(&samples, source);
}

/// The recipes that are timed: a name and the text of the quantize stage.
fn contenders() -> Vec<(&'static str, &'static str)> {
    vec![
        ("int4", "stage: quantize-int4"),
        ("int4 asymmetric", "{stage: quantize-int4, symmetric: false}"),
        ("int8", "stage: quantize-int8"),
        ("int4 percentile", "{stage: quantize-int4, observer: percentile}"),
        ("int4 mse", "{stage: quantize-int4, observer: mse}"),
    ]
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(samples: &BTreeMap<String, Vec<Sample>>, source: u64) {
    let time = |name: &str| samples.get(name).map(|list| median(list.iter().map(|sample| sample.seconds)));
    let (copy, floor, int4) = (time("cp -r"), time("I/O floor"), time("int4"));
    let ratio = |seconds: f64, other: Option<f64>| {
        other.map_or_else(|| "–".to_owned(), |other| format!("{:.2}", seconds / other))
    };
    say("");
    say("| | seconds | GB/s of source | × cp -r | × I/O floor | × int4 | peak MiB |");
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (name, list) in samples {
        let seconds = median(list.iter().map(|sample| sample.seconds));
        let peak = list.iter().map(|sample| sample.peak_mib).fold(0.0, f64::max);
        say(&format!(
            "| {name} | {seconds:.3} | {:.2} | {} | {} | {} | {peak:.0} |",
            source as f64 / 1e9 / seconds,
            ratio(seconds, copy),
            ratio(seconds, floor),
            ratio(seconds, int4),
        ));
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Runs a command to its end: seconds and peak resident memory of the process.
#[expect(unsafe_code, reason = "the system is asked for the peak memory of a child")]
fn timed(command: &mut Command) -> Sample {
    let start = Instant::now();
    #[expect(clippy::zombie_processes, reason = "wait4 waits for it, and tells its peak memory as well")]
    let child = command.stdout(Stdio::null()).spawn().expect("a program to start");
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value, and wait4 writes to the two places it is given.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the process is a child of this one and is waited for nowhere else.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
    let seconds = start.elapsed().as_secs_f64();
    let status = std::process::ExitStatus::from_raw(status);
    assert!(waited > 0 && status.success(), "{command:?} ended with {status}");
    Sample { seconds, peak_mib: usage.ru_maxrss as f64 / 1024.0 }
}

fn copy(options: &Options, model: &Path) -> Sample {
    let target = options.dir.join("copy");
    let _ = fs::remove_dir_all(&target);
    let sync = if options.durable { " && sync" } else { "" };
    let script = format!("cp -r '{}' '{}'{sync}", model.display(), target.display());
    let sample = timed(Command::new("sh").args(["-c", &script]));
    let _ = fs::remove_dir_all(&target);
    sample
}

fn monoquant(options: &Options, model: &Path, name: &str, stage: &str) -> (Sample, u64) {
    let target = options.dir.join("out");
    let _ = fs::remove_dir_all(&target);
    let recipe = options.dir.join("recipe.yaml");
    let text = format!(
        "version: 1\nname: {name}\nstages:\n  - {{stage: load, model: '{}'}}\n  - {stage}\n  - stage: validate\n  \
         - {{stage: check-warnings, sqnr_warning_threshold: 15}}\n  - {{stage: export, path: '{}'}}\n",
        model.display(),
        target.display(),
    );
    fs::write(&recipe, text).expect("a recipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_monoquant"));
    command.args(["run", "-q", "--threads", &options.threads.to_string()]).arg(&recipe);
    if options.durable {
        command.arg("--durable");
    }
    let sample = timed(&mut command);
    let bytes = weight_files(&target).iter().map(|path| path.metadata().expect("a file").len()).sum();
    let _ = fs::remove_dir_all(&target);
    (sample, bytes)
}

/// The recipe of the second runs, with a threshold and perhaps a rule for one layer.
fn tuned(model: &Path, target: &Path, threshold: u32, layer: &str) -> String {
    format!(
        "version: 1\nstages:\n  - {{stage: load, model: '{}'}}\n{layer}  - stage: quantize-int4\n  - stage: validate\n  \
         - {{stage: check-warnings, sqnr_warning_threshold: {threshold}}}\n  - {{stage: export, path: '{}'}}\n",
        model.display(),
        target.display(),
    )
}

/// What a second run costs, as a command and in a watch.
fn again(options: &Options, model: &Path) {
    const LAYER: &str =
        "  - {stage: quantize-int4, targets: [model.layers.3.mlp.down_proj], group_size: 64}\n";
    let (target, recipe) = (options.dir.join("out"), options.dir.join("recipe.yaml"));
    let _ = fs::remove_dir_all(&target);
    let steps = [
        ("from nothing", 15, ""),
        ("nothing changed", 15, ""),
        ("a threshold", 16, ""),
        ("one layer", 16, LAYER),
    ];
    let mut samples: Vec<(String, Vec<f64>)> = Vec::new();
    let mut add = |name: String, seconds: f64| match samples.iter_mut().find(|(known, _)| *known == name) {
        Some((_, list)) => list.push(seconds),
        None => samples.push((name, vec![seconds])),
    };
    for _ in 0..options.rounds {
        for (name, threshold, layer) in steps {
            fs::write(&recipe, tuned(model, &target, threshold, layer)).expect("a recipe");
            let mut command = Command::new(env!("CARGO_BIN_EXE_monoquant"));
            command.args(["run", "-q", "--trusted", "--threads", &options.threads.to_string()]).arg(&recipe);
            if name == "from nothing" {
                command.arg("--fresh");
            }
            add(format!("run: {name}"), timed(&mut command).seconds);
        }
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_monoquant"))
        .args(["run", "--watch", "--trusted", "--format", "json", "--threads", &options.threads.to_string()])
        .arg(&recipe)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program to start");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut cycle = || lines.next().expect("a line").expect("text");
    cycle();
    for _ in 0..options.rounds {
        for (name, threshold, layer) in [
            ("a threshold", 15, LAYER),
            ("one layer", 15, ""),
            ("one layer", 15, LAYER),
            ("a threshold", 16, LAYER),
        ] {
            let start = Instant::now();
            fs::write(&recipe, tuned(model, &target, threshold, layer)).expect("a recipe");
            cycle();
            add(format!("watch: {name}, from saving to the verdict"), start.elapsed().as_secs_f64());
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    let _ = fs::remove_dir_all(&target);
    let whole = median(samples[0].1.iter().copied());
    say("");
    say("| | milliseconds | of a run from nothing |");
    say("| --- | ---: | ---: |");
    for (name, list) in &samples {
        let seconds = median(list.iter().copied());
        say(&format!("| {name} | {:.0} | {:.3} |", seconds * 1e3, seconds / whole));
    }
}

/// As many threads, positioned reads of the source, as many bytes written as the output has, nothing computed.
fn floor(options: &Options, model: &Path, output_bytes: u64) -> Sample {
    const TILE: u64 = 1 << 20;
    let target = options.dir.join("floor.bin");
    let _ = fs::remove_file(&target);
    let start = Instant::now();
    let files: Vec<(File, u64)> = weight_files(model)
        .iter()
        .map(|path| (File::open(path).expect("a file"), path.metadata().expect("a file").len()))
        .collect();
    let source: u64 = files.iter().map(|(_, len)| len).sum();
    let out = File::create(&target).expect("a file to write");
    out.set_len(output_bytes).expect("room for it");
    let next = AtomicU64::new(0);
    let tiles: Vec<(usize, u64, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(index, (_, len))| {
            (0..len.div_ceil(TILE)).map(move |tile| (index, tile * TILE, TILE.min(len - tile * TILE)))
        })
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                let mut buffer = vec![0_u8; TILE as usize];
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&(file, offset, len)) = tiles.get(index) else { break };
                    files[file].0.read_exact_at(&mut buffer[..len as usize], offset).expect("bytes");
                    let (from, to) = (
                        output_bytes * index as u64 / tiles.len() as u64,
                        output_bytes * (index as u64 + 1) / tiles.len() as u64,
                    );
                    out.write_all_at(&buffer[..(to - from) as usize], from).expect("room");
                }
            });
        }
    });
    if options.durable {
        out.sync_all().expect("a disk that answers");
    }
    let seconds = start.elapsed().as_secs_f64();
    let _ = source;
    let _ = fs::remove_file(&target);
    Sample { seconds, peak_mib: 0.0 }
}

fn peer(options: &Options, model: &Path, python: &str, script: &str) -> Sample {
    let target = options.dir.join("peer");
    let _ = fs::remove_dir_all(&target);
    let sample =
        timed(Command::new(python).arg(script).arg(model).arg(&target).arg("W4A16").stderr(Stdio::null()));
    let _ = fs::remove_dir_all(&target);
    sample
}

fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    files
}

/// Brings the model into the page cache.
fn warm(model: &Path) {
    for path in weight_files(model) {
        let _ = std::io::copy(&mut File::open(path).expect("a file"), &mut std::io::sink());
    }
}

/// A Llama of about so many gigabytes in BF16, normally distributed weights, in shards of half a gigabyte.
fn make_model(folder: &Path, gigabytes: f64) {
    const HIDDEN: u64 = 2048;
    const INTERMEDIATE: u64 = 5632;
    const VOCABULARY: u64 = 32_000;
    const KV: u64 = 256;
    let a_layer = HIDDEN * (2 * HIDDEN + 2 * KV + 3 * INTERMEDIATE) + 2 * HIDDEN;
    let tables = 2 * VOCABULARY * HIDDEN;
    let layers = ((gigabytes * 5e8 - tables as f64) / a_layer as f64).round().max(1.0) as u64;
    let mut tensors: Vec<(String, Vec<u64>)> =
        vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: Vec<u64>| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape))
        };
        add("input_layernorm", vec![HIDDEN]);
        add("self_attn.q_proj", vec![HIDDEN, HIDDEN]);
        add("self_attn.k_proj", vec![KV, HIDDEN]);
        add("self_attn.v_proj", vec![KV, HIDDEN]);
        add("self_attn.o_proj", vec![HIDDEN, HIDDEN]);
        add("post_attention_layernorm", vec![HIDDEN]);
        add("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]));

    fs::create_dir_all(folder).expect("a folder for the model");
    let mut shards: Vec<Vec<(String, Vec<u64>)>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        let bytes = tensor.1.iter().product::<u64>() * 2;
        if size + bytes > 500_000_000 && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let count = shards.len();
    let mut map = serde_json::Map::new();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        let (mut header, mut offset) = (serde_json::Map::new(), 0);
        for (tensor, shape) in shard {
            let end = offset + shape.iter().product::<u64>() * 2;
            header.insert(
                tensor.clone(),
                serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}),
            );
            map.insert(tensor.clone(), serde_json::Value::from(name.clone()));
            offset = end;
        }
        let text = serde_json::Value::Object(header).to_string();
        let mut out = BufWriter::with_capacity(1 << 20, File::create(folder.join(&name)).expect("a file"));
        out.write_all(&(text.len() as u64).to_le_bytes()).expect("room");
        out.write_all(text.as_bytes()).expect("room");
        for _ in 0..offset / 2 {
            out.write_all(&gaussian(&mut random).to_le_bytes()).expect("room");
        }
        out.flush().expect("room");
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("room");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("room");
}

/// The bits of a BF16 number, nearly normally distributed with σ = 0.02: a sum of eight uniform ones.
fn gaussian(state: &mut u64) -> u16 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let bytes = state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
    let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
    // A uniform byte has variance (256² − 1) / 12.
    let value = (sum as f32 - 1020.0) / (8.0_f32 * 5461.25).sqrt() * 0.02;
    (value.to_bits() >> 16) as u16
}
