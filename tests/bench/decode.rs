//! The same weights as BF16, as FP8 in blocks and as MXFP4, quantized to int4 in turn: `cargo bench --bench decode -- [DIRECTORY]`,
//! with a directory that is there.
//!
//! Decoding is part of a tile. Weights per second are told for each source, and their ratio to those of BF16, which is the figure to
//! compare: medians of rounds in one run.

#![expect(clippy::disallowed_methods, reason = "it makes the models that it measures with")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use monoquant::exit::Exit;
use monoquant::plan::{self, Limits};
use monoquant::recipe::{self, Overrides};
use monoquant::run::{self, Event, Listener, Options};

const ROUNDS: usize = 7;

/// Matrices of a model, and their rows and columns.
const MATRICES: usize = 8;
const SIZE: usize = 4096;

/// A source: its name, the tensors of a matrix with type, shape and a byte for each place, and its `quantization_config`.
struct Source {
    name: &'static str,
    parts: &'static [Part],
    declared: &'static str,
}

struct Part {
    parameter: &'static str,
    dtype: &'static str,
    /// Elements of a row of the matrix, and rows, that share one of this.
    per: [usize; 2],
    bytes: usize,
    byte: fn(u64) -> u8,
}

const SOURCES: [Source; 3] = [
    Source {
        name: "BF16",
        parts: &[Part {
            parameter: "weight",
            dtype: "BF16",
            per: [1, 1],
            bytes: 2,
            byte: |x| if x & 1 == 0 { (x >> 8) as u8 } else { 0x3c | (x >> 8) as u8 & 0x81 },
        }],
        declared: "null",
    },
    Source {
        name: "FP8",
        parts: &[
            Part {
                parameter: "weight",
                dtype: "F8_E4M3",
                per: [1, 1],
                bytes: 1,
                byte: |x| (x >> 8) as u8 & 0xf7,
            },
            Part {
                parameter: "weight_scale_inv",
                dtype: "F32",
                per: [128, 128],
                bytes: 4,
                byte: |x| if x & 3 == 3 { 0x3a } else { 0x10 },
            },
        ],
        declared: r#"{"quant_method": "fp8", "weight_block_size": [128, 128]}"#,
    },
    Source {
        name: "MXFP4",
        parts: &[
            Part { parameter: "weight_packed", dtype: "U8", per: [2, 1], bytes: 1, byte: |x| (x >> 8) as u8 },
            Part {
                parameter: "weight_scale",
                dtype: "U8",
                per: [32, 1],
                bytes: 1,
                byte: |x| 118 + (x >> 8) as u8 % 4,
            },
        ],
        declared: r#"{"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}}}"#,
    },
];

struct Silent;

impl Listener for Silent {
    fn on_event(&self, _: &Event) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let folder = tempfile::tempdir_in(given.map_or_else(std::env::temp_dir, Into::into))?;
    let mut seconds = vec![Vec::new(); SOURCES.len()];
    for source in &SOURCES {
        write(&folder.path().join(source.name), source)?;
    }
    for _ in 0..ROUNDS {
        for (source, seconds) in SOURCES.iter().zip(&mut seconds) {
            seconds.push(quantize(folder.path(), source.name)?);
        }
    }
    let weights = (MATRICES * SIZE * SIZE) as f64;
    let speed: Vec<f64> = seconds.iter_mut().map(|seconds| weights / median(seconds)).collect();
    let mut out = std::io::stdout();
    writeln!(out, "{:8} {:>14} {:>8}", "source", "10⁶ weights/s", "× BF16")?;
    for (source, speed_of) in SOURCES.iter().zip(&speed) {
        writeln!(out, "{:8} {:14.0} {:8.2}", source.name, speed_of / 1e6, speed_of / speed[0])?;
    }
    Ok(())
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds of a run from nothing.
fn quantize(folder: &Path, name: &str) -> Result<f64, Box<dyn Error>> {
    let recipe = folder.join("recipe.yaml");
    let text = format!(
        "version: 1\nname: decode\nstages:\n  - stage: load\n    model: {name}\n  - stage: quantize-int4\n  - stage: validate\n  - stage: \
         export\n    path: out\n"
    );
    fs::write(&recipe, text)?;
    let failed = |failure: monoquant::finding::Failure| {
        let messages: Vec<String> = failure.findings.into_iter().map(|finding| finding.message).collect();
        messages.join("; ")
    };
    let loaded = recipe::load(&recipe, &Overrides::default()).map_err(failed)?;
    let plan = plan::plan(loaded, Limits::default()).map_err(failed)?;
    let start = Instant::now();
    let options = Options { fresh: true, ..Options::default() };
    let outcome = run::run(&plan, &options, &Silent).map_err(failed)?;
    let seconds = start.elapsed().as_secs_f64();
    if outcome.exit != Exit::Done {
        return Err("a gate failed".into());
    }
    fs::remove_dir_all(folder.join("out"))?;
    Ok(seconds)
}

/// Writes a model of linear layers.
fn write(folder: &Path, source: &Source) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    fs::write(
        folder.join("config.json"),
        format!(
            r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {SIZE}, "num_hidden_layers": {MATRICES},
                "dtype": "bfloat16", "quantization_config": {}}}"#,
            source.declared
        ),
    )?;
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for layer in 0..MATRICES {
        for part in source.parts {
            let [across, down] = part.per;
            let (rows, columns) = (SIZE / down, SIZE / across);
            let start = data.len();
            for at in 0..(rows * columns * part.bytes) as u64 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The low bits tell the place within an element.
                data.push((part.byte)(state >> 32 << 8 | at & 0xff));
            }
            entries.push(format!(
                r#""model.layers.{layer}.mlp.up_proj.{}":{{"dtype":"{}","shape":[{rows},{columns}],"data_offsets":[{start},{}]}}"#,
                part.parameter,
                part.dtype,
                data.len()
            ));
        }
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = fs::File::create(folder.join("model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&data)?;
    Ok(())
}
