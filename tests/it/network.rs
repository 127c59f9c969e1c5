//! Small models of many families against transformers: hidden states after every layer, and logits, in F32.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use monoquant::finding::Finding;
use monoquant::network::tokens::{Tokenizer, documents, windows};
use monoquant::network::{
    Description, FAMILIES, Hidden, LayerWeights, Listener, MeanSquares, Moments, Op, Pass, Program, Silent,
    Weights, compare_logits, layer_error, logits, pooled_cosine,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::root;

mod gradients;
mod rounding;

/// Weights that are computed from their names, as `tests/interop/make_network_fixtures.py` computes them.
struct Computed(BTreeMap<String, Vec<usize>>);

impl Weights for Computed {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        let shape = &self.0[name];
        let inner: usize = shape[1..].iter().product();
        let mut seed = 0xCBF2_9CE4_8422_2325_u64;
        for byte in name.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        let lower = name.to_lowercase();
        let is_norm = (lower.contains("norm") || lower.contains("ln_")) && name.ends_with("weight");
        let value = |index: usize| {
            let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            let x = (z >> 40) as f32 / 8_388_608.0 - 1.0;
            if is_norm { x * 0.25 + 1.0 } else { x * 0.25 }
        };
        Ok((rows.start * inner..rows.end * inner).map(value).collect())
    }
}

/// Weights of the files of a folder, in memory.
struct Files(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Files {
    fn read(folder: &Path) -> Self {
        let mut tensors = BTreeMap::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|ending| ending != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(path).expect("a file");
            for (name, view) in SafeTensors::deserialize(&bytes).expect("tensors").tensors() {
                let values =
                    view.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
                tensors.insert(name, (view.shape().to_vec(), values));
            }
        }
        Self(tensors)
    }
}

impl Weights for Files {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.0.get(name)?.0.clone())
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        let (shape, values) = &self.0[name];
        let inner: usize = shape[1..].iter().product();
        Ok(values[rows.start * inner..rows.end * inner].to_vec())
    }
}

/// Shapes and numbers of tensors, by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// One file of `tests/fixtures/network`.
pub(crate) struct Fixture {
    config: Value,
    weights: Computed,
    tokens: Vec<u32>,
    states: BTreeMap<String, Vec<f32>>,
    /// By layer: the experts of each token, one token after another.
    chosen: BTreeMap<usize, Vec<u32>>,
}

impl Fixture {
    /// `config.json`, and the shape and numbers of each tensor.
    pub(crate) fn model(self) -> (Value, Tensors) {
        let weights = &self.weights;
        let of = |(name, shape): (&String, &Vec<usize>)| {
            let all = weights.read(name, 0..shape[0]).expect("weights");
            (name.clone(), (shape.clone(), all))
        };
        (self.config, weights.0.iter().map(of).collect())
    }

    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a fixture");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
        let metadata = metadata.metadata().clone().expect("metadata");
        let file = SafeTensors::deserialize(&bytes).expect("tensors");
        let floats = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let states = file
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != "tokens" && !name.starts_with("chosen."))
            .map(|(name, view)| (name, floats(view.data())))
            .collect();
        let numbers = |data: &[u8]| data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let layer = |name: &str| name.strip_prefix("chosen.")?.parse().ok();
        let chosen = file.tensors().into_iter();
        let chosen = chosen.filter_map(|(name, view)| Some((layer(&name)?, numbers(view.data())))).collect();
        let tokens = file.tensor("tokens").expect("tokens").data();
        Self {
            config: serde_json::from_str(&metadata["config"]).expect("config"),
            weights: Computed(serde_json::from_str(&metadata["tensors"]).expect("shapes")),
            tokens: numbers(tokens),
            states,
            chosen,
        }
    }
}

fn folder() -> PathBuf {
    root().join("tests/fixtures/network")
}

fn fixtures() -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> = std::fs::read_dir(folder())
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), path))
        .collect();
    files.sort();
    files
}

fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "sizes");
    let square = |x: f64| x * x;
    let error: f64 = ours.iter().zip(theirs).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = theirs.iter().map(|b| square(f64::from(*b))).sum();
    (error / size).sqrt()
}

/// Holds all layers and the logits against those of the fixture.
fn hold(fixture: &Fixture) -> Result<(), String> {
    let say = |finding: Finding| finding.message;
    let description = Description::new(&fixture.config, &fixture.weights).map_err(say)?;
    let windows = [fixture.tokens.clone()];
    let pass = Pass::new(&description, &windows).map_err(say)?;
    let mut hidden = pass.embed(&fixture.weights, None).map_err(say)?;
    let compare = |name: String, ours: &[f32]| {
        let theirs = fixture.states.get(&name).ok_or(format!("no {name}"))?;
        let distance = distance(ours, theirs);
        // Not a number, too.
        if distance < 1e-5 { Ok(()) } else { Err(format!("{name} differs by {distance:.2e}")) }
    };
    compare("hidden.0".into(), &hidden.get(0).map_err(say)?)?;
    for (layer, program) in description.layers.iter().enumerate() {
        let weights = LayerWeights::read(program, &fixture.weights).map_err(say)?;
        hold_choices(fixture, (&pass, layer, program), &weights, &hidden)?;
        pass.layer(layer, &weights, &mut hidden, &mut Silent).map_err(say)?;
        compare(format!("hidden.{}", layer + 1), &hidden.get(0).map_err(say)?)?;
    }
    pass.finish(&fixture.weights, &mut hidden).map_err(say)?;
    if fixture.states.contains_key("logits") {
        let ours = logits(&description, &fixture.weights, hidden.get(0).map_err(say)?).map_err(say)?;
        compare("logits".into(), &ours)?;
    }
    Ok(())
}

/// Holds the experts that each token chose in a layer, and how much each counts, against those of the fixture.
fn hold_choices(
    fixture: &Fixture,
    (pass, layer, program): (&Pass<'_>, usize, &Program),
    weights: &LayerWeights,
    hidden: &Hidden,
) -> Result<(), String> {
    let step = program.ops.iter().position(|op| matches!(op, Op::Route { .. }));
    let (step, theirs) = match (step, fixture.chosen.get(&layer)) {
        (Some(step), Some(theirs)) => (step, theirs),
        (None, None) => return Ok(()),
        (step, _) => return Err(format!("layer {layer} has experts on one side only: {step:?}")),
    };
    let mut window = pass.window(layer, hidden, 0).map_err(|finding| finding.message)?;
    pass.run(layer, weights, (0, &mut window), step + 1, &mut |_, _, _| ());
    let Op::Route { to, router, .. } = &program.ops[step] else { return Err("no choice".into()) };
    let routing = window.routing(*to).ok_or("no choice")?;
    let mut ours: Vec<(usize, u32, f32)> = Vec::new();
    for expert in 0..router.experts {
        for row in routing.rows(expert) {
            ours.push((routing.tokens[row], expert as u32, routing.weights[row]));
        }
    }
    ours.sort_by_key(|(token, expert, _)| (*token, *expert));
    let shares = &fixture.states[&format!("shares.{layer}")];
    if ours.len() != theirs.len() || theirs.len() != fixture.tokens.len() * router.chosen {
        return Err(format!("layer {layer}: {} choices, not {}", ours.len(), theirs.len()));
    }
    for ((token, expert, share), (theirs, their_share)) in ours.into_iter().zip(theirs.iter().zip(shares)) {
        if expert != *theirs || (share - their_share).abs() > 1e-5 * (1.0 + share.abs()) {
            return Err(format!(
                "layer {layer}, token {token}: expert {expert} ({share}), not {theirs} ({their_share})"
            ));
        }
    }
    Ok(())
}

#[test]
fn hidden_states_logits_and_experts_are_those_of_transformers() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut choices = 0;
    for (name, path) in fixtures() {
        let fixture = Fixture::read(&path);
        choices += fixture.chosen.len();
        let part = fixture.config.get("text_config").unwrap_or(&fixture.config);
        seen.insert(part["model_type"].as_str().expect("a family").to_owned());
        if let Err(error) = hold(&fixture) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(choices, 19, "layers with experts");
    // A family is admitted by a fixture of its own, and by nothing else.
    let known: BTreeSet<String> =
        FAMILIES.iter().flat_map(|family| family.types).map(|kind| (*kind).to_owned()).collect();
    assert_eq!(seen, known);
}

/// Other weights, as a rounding makes them: each number's last 18 bits are cut off.
struct Cut<'a>(&'a Computed);

impl Weights for Cut<'_> {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        let cut = |x: f32| f32::from_bits(x.to_bits() & !0x3_ffff);
        Ok(self.0.read(name, rows)?.into_iter().map(cut).collect())
    }
}

pub(crate) fn fixture(name: &str) -> Fixture {
    Fixture::read(&folder().join(format!("{name}.safetensors")))
}

/// Some windows, of two lengths, of tokens that a fixture knows.
fn samples(fixture: &Fixture) -> Vec<Vec<u32>> {
    (0..11)
        .map(|i| {
            fixture.tokens.iter().map(|t| (t * 7 + i * 13) % 96).take(20 - (i as usize % 2) * 3).collect()
        })
        .collect()
}

/// All layers, with a listener.
fn run<L: Listener>(
    description: &Description,
    weights: &dyn Weights,
    windows: &[Vec<u32>],
    file: Option<File>,
    listener: &mut L,
) -> Hidden {
    let pass = Pass::new(description, windows).expect("a pass");
    let mut hidden = pass.embed(weights, file).expect("embedded");
    for (layer, program) in description.layers.iter().enumerate() {
        let weights = LayerWeights::read(program, weights).expect("weights");
        pass.layer(layer, &weights, &mut hidden, listener).expect("a layer");
    }
    pass.finish(weights, &mut hidden).expect("finished");
    hidden
}

fn all(hidden: &Hidden) -> Vec<Vec<f32>> {
    (0..hidden.windows()).map(|window| hidden.get(window).expect("a window")).collect()
}

#[test]
fn nothing_depends_on_threads_or_on_where_activations_are() {
    for name in ["qwen3-moe", "gemma3-text", "qwen3-next"] {
        let fixture = fixture(name);
        let description = Description::new(&fixture.config, &fixture.weights).expect("described");
        let windows = samples(&fixture);
        let mut results = Vec::new();
        for (threads, is_spilled) in [(1, false), (3, false), (2, true)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            results.push(pool.install(|| {
                let file = is_spilled.then(|| tempfile::tempfile().expect("a file"));
                let mut squares = MeanSquares::default();
                let hidden = run(&description, &fixture.weights, &windows, file, &mut squares);
                let mut moments = Moments::of(description.layers[1].matrices());
                run(&description, &fixture.weights, &windows, None, &mut moments);
                (all(&hidden), squares, moments)
            }));
        }
        assert!(results[0] == results[1] && results[0] == results[2], "{name}");
    }
}

#[test]
fn each_expert_has_the_moments_of_its_own_tokens() {
    let fixture = fixture("qwen3-moe");
    let description = Description::new(&fixture.config, &fixture.weights).expect("described");
    let windows = samples(&fixture);
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let mut squares = MeanSquares::default();
    squares.prepare(description.layers.iter().flat_map(Program::matrices));
    run(&description, &fixture.weights, &windows, None, &mut squares);
    let down = |(name, _, count): (&str, usize, u64)| {
        name.contains("experts.") && name.ends_with("down_proj") && count > 0
    };
    let rows: u64 = squares.counts().filter(|found| down(*found)).map(|(.., count)| count).sum();
    assert_eq!(rows as usize, 2 * tokens, "each token has two experts, and the first layer has none");
    let mut moments = Moments::of(description.layers[1].matrices());
    run(&description, &fixture.weights, &windows, None, &mut moments);
    for matrix in description.layers[1].matrices() {
        let means = squares.means(matrix.module(), 0).expect("means");
        let (mean, rows) = moments.mean(matrix).expect("moments");
        for (column, square) in means.iter().enumerate() {
            let diagonal = mean[column * matrix.columns + column];
            assert!(
                (diagonal - square).abs() <= 1e-5 * square + 1e-12,
                "{} {column} of {rows} rows",
                matrix.module()
            );
        }
        let at = |i: usize, j: usize| mean[i * matrix.columns + j];
        assert_eq!(at(3, 5), at(5, 3));
        assert!(at(3, 5).abs() <= (at(3, 3) * at(5, 5)).sqrt() * (1.0 + 1e-6));
    }
}

#[test]
fn a_window_can_stop_before_each_stage_and_go_on() {
    let fixture = fixture("llama");
    let description = Description::new(&fixture.config, &fixture.weights).expect("described");
    let windows = [fixture.tokens.clone()];
    let pass = Pass::new(&description, &windows).expect("a pass");
    let hidden = pass.embed(&fixture.weights, None).expect("embedded");
    let program = &description.layers[0];
    let weights = LayerWeights::read(program, &fixture.weights).expect("weights");
    let stages = program.stages();
    assert_eq!(stages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 2, 1], "q k v, o, gate up, down");
    let mut window = pass.window(0, &hidden, 0).expect("a window");
    let mut heard = Vec::new();
    for stage in &stages {
        pass.run(0, &weights, (0, &mut window), stage[0], &mut |step, _, _| heard.push(step));
        let Op::Linear { from, .. } = &program.ops[stage[0]] else { panic!("a product") };
        assert!(!window.rows(*from).is_empty(), "the inputs of the stage are there");
    }
    pass.run(0, &weights, (0, &mut window), program.ops.len(), &mut |step, _, _| heard.push(step));
    assert_eq!(heard, stages.concat());
    assert!(distance(&window.stream(), &fixture.states["hidden.1"]) < 1e-5);
}

#[test]
fn a_comparison_of_logits_is_what_its_formulas_say() {
    for name in ["gemma2", "cohere", "bert"] {
        let fixture = fixture(name);
        let description = Description::new(&fixture.config, &fixture.weights).expect("described");
        let windows = samples(&fixture);
        let other = Cut(&fixture.weights);
        let first = run(&description, &fixture.weights, &windows, None, &mut Silent);
        let second = run(&description, &other, &windows, None, &mut Silent);
        let (a, b): (&dyn Weights, &dyn Weights) = (&fixture.weights, &other);
        let found = compare_logits(&description, &windows, (a, &first), (b, &second)).expect("compared");

        let probabilities = |weights: &dyn Weights, hidden: &Hidden, window: usize| -> Vec<Vec<f64>> {
            let logits = logits(&description, weights, hidden.get(window).expect("rows")).expect("logits");
            let row = |row: &[f32]| {
                let total = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                row.iter().map(|x| f64::from(*x) - total).collect()
            };
            logits.chunks_exact(96).map(row).collect()
        };
        let best = |row: &[f64]| (0..row.len()).rev().max_by(|i, j| row[*i].total_cmp(&row[*j]));
        let (mut kl, mut means, mut nll, mut equal) = (Vec::new(), Vec::new(), [0.0; 2], 0);
        for (index, window) in windows.iter().enumerate() {
            let (p, q) = (probabilities(a, &first, index), probabilities(b, &second, index));
            let start = kl.len();
            for (position, wanted) in window[1..].iter().enumerate() {
                let (p, q) = (&p[position], &q[position]);
                kl.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
                nll[0] -= p[*wanted as usize];
                nll[1] -= q[*wanted as usize];
                equal += usize::from(best(p) == best(q));
            }
            means.push(kl[start..].iter().sum::<f64>() / (kl.len() - start) as f64);
        }
        let count = kl.len() as f64;
        let mean = kl.iter().sum::<f64>() / count;
        let middle = means.iter().sum::<f64>() / 11.0;
        let error = (means.iter().map(|x| (x - middle).powi(2)).sum::<f64>() / 10.0 / 11.0).sqrt();
        // Differences of logarithms in F32: what is below some 10⁻⁸ is noise.
        let near = |ours: f64, exact: f64| (ours - exact).abs() <= 1e-4 * exact + 5e-8;
        assert!(mean > 1e-6 && error > 5e-8, "{name}: the two differ");
        assert!(
            near(found.mean, mean) && near(found.standard_error, error),
            "{name}: {found:?} {mean} {error}"
        );
        assert!(near(found.first_perplexity, (nll[0] / count).exp()), "{name}");
        assert!(near(found.second_perplexity, (nll[1] / count).exp()), "{name}");
        assert_eq!((found.tokens, found.top1_agreement), (kl.len(), equal as f64 / count), "{name}");
        assert!(found.p99 > found.mean && found.p99 <= kl.iter().copied().fold(0.0, f64::max) * 1.001);
        let same = compare_logits(&description, &windows, (a, &first), (a, &first)).expect("compared");
        assert!(same.mean < 1e-9 && same.top1_agreement == 1.0, "{same:?}");
        assert!(layer_error(&first, &second).expect("an error") > 1e-3);
        assert_eq!(layer_error(&first, &first).expect("none"), 0.0);
        let cosine = pooled_cosine(32, &first, &second).expect("a cosine");
        assert!(cosine > 0.9 && cosine < 1.0, "{cosine}");
    }
}

/// The error's code and message of a model whose configuration or tensors are changed.
fn refused(
    name: &str,
    change: impl Fn(&mut serde_json::Map<String, Value>, &mut Computed),
) -> (String, String) {
    let mut fixture = fixture(name);
    let config = fixture.config.as_object_mut().expect("an object");
    change(config, &mut fixture.weights);
    let error = Description::new(&fixture.config, &fixture.weights).expect_err("refused");
    (error.code.to_owned(), error.message)
}

#[test]
fn what_is_not_understood_is_an_error_and_never_passed_over() {
    let key = |key: &'static str, value: Value| {
        move |config: &mut serde_json::Map<String, Value>, _: &mut Computed| {
            config.insert(key.to_owned(), value.clone());
        }
    };
    for (model, name, value, code, part) in [
        ("llama", "model_type", json!("new_thing"), "network::not-admitted", "`new_thing`"),
        (
            "llama",
            "attention_temperature",
            json!(0.5),
            "network::unknown-key",
            "`attention_temperature` (0.5)",
        ),
        ("llama", "sliding_window", json!(8), "network::unknown-key", "`sliding_window` (8)"),
        ("llama", "hidden_act", json!("mish"), "network::not-admitted", "`hidden_act: mish`"),
        ("llama", "num_key_value_heads", json!(3), "network::bad-key", "4 heads cannot share 3"),
        ("llama", "hidden_size", json!("wide"), "network::bad-key", "`hidden_size`"),
        ("llama", "hidden_size", json!(0), "network::bad-key", "`hidden_size`"),
        ("llama", "intermediate_size", json!(64), "network::wrong-shape", "mlp.gate_proj.weight"),
        ("llama", "num_hidden_layers", json!(3), "network::not-admitted", "3 layers"),
        ("llama", "rope_parameters", json!({"rope_type": "spiral"}), "network::not-admitted", "`spiral`"),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "default", "twist": 2}),
            "network::unknown-key",
            "twist",
        ),
        (
            "gemma3-text",
            "layer_types",
            json!(["full_attention", "global"]),
            "network::not-admitted",
            "`global`",
        ),
        (
            "gemma2",
            "use_bidirectional_attention",
            json!(true),
            "network::bad-key",
            "use_bidirectional_attention",
        ),
        ("qwen3-moe", "num_experts_per_tok", json!(7), "network::bad-key", "7 of 6 experts"),
        ("deepseek-v3", "n_group", json!(3), "network::bad-key", "of 8 experts"),
    ] {
        let (found, message) = refused(model, key(name, value));
        assert_eq!(found, code, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let (code, message) = refused("llama", |_, weights| {
        weights.0.insert("model.layers.1.self_attn.q_gate.weight".into(), vec![32, 32]);
    });
    assert_eq!(code, "network::unknown-tensor");
    assert!(message.starts_with("`model.layers.1.self_attn.q_gate.weight` take part"), "{message}");
    let (code, message) = refused("llama", |_, weights| {
        weights.0.remove("model.layers.1.mlp.up_proj.weight");
    });
    assert_eq!(
        (code.as_str(), message.contains("mlp.up_proj.weight")),
        ("network::missing-tensor", true),
        "{message}"
    );
}

#[test]
fn layers_beyond_the_last_and_parts_beside_the_model_are_told_and_not_run() {
    let mut fixture = fixture("deepseek-v3");
    fixture.weights.0.insert("model.layers.2.eh_proj.weight".into(), vec![32, 64]);
    fixture.weights.0.insert("model.visual.blocks.0.attn.proj.weight".into(), vec![32, 32]);
    let description = Description::new(&fixture.config, &fixture.weights).expect("described");
    assert_eq!(description.left_out, ["model.layers.2 (1 tensors)", "model.visual (1 tensors)"]);
}

#[test]
fn older_keys_of_rotary_positions_mean_the_same() {
    for name in
        ["llama", "llama-llama3", "llama-yarn", "llama-linear", "gemma3-text", "phi3-longrope-long", "glm"]
    {
        let mut fixture = fixture(name);
        let described =
            |fixture: &Fixture| Description::new(&fixture.config, &fixture.weights).expect("described").ropes;
        let ropes = described(&fixture);
        let config = fixture.config.as_object_mut().expect("an object");
        let mut own = config.remove("rope_parameters").expect("parameters");
        if let Some(full) = own.get("full_attention") {
            config.insert("rope_theta".into(), full["rope_theta"].clone());
            config.insert("rope_local_base_freq".into(), own["sliding_attention"]["rope_theta"].clone());
        } else {
            let own = own.as_object_mut().expect("an object");
            config.insert("rope_theta".into(), own.remove("rope_theta").expect("a base"));
            if let Some(share) = own.remove("partial_rotary_factor") {
                config.insert("partial_rotary_factor".into(), share);
            }
            let kind = own.remove("rope_type").expect("a kind");
            own.insert("type".into(), kind);
            config.insert("rope_scaling".into(), Value::Object(own.clone()));
        }
        assert_eq!(described(&fixture), ropes, "{name}");
    }
}

#[test]
fn windows_that_the_model_cannot_run_are_named() {
    let fixture = fixture("llama");
    let description = Description::new(&fixture.config, &fixture.weights).expect("described");
    let refused = |windows: &[Vec<u32>]| Pass::new(&description, windows).err().expect("refused").message;
    assert_eq!(
        refused(&[vec![3; 65]]),
        "samples of 65 tokens are longer than the 64 positions that the model has"
    );
    assert_eq!(
        refused(&[vec![3], vec![96]]),
        "the text has token 96, and the model's vocabulary ends before 96"
    );

    /// One weight is no number.
    struct Broken(Computed);
    impl Weights for Broken {
        fn names(&self) -> Vec<String> {
            self.0.names()
        }
        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            self.0.shape(name)
        }
        fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
            let mut values = self.0.read(name, rows)?;
            if name.ends_with("layers.1.mlp.down_proj.weight") {
                values[0] = f32::INFINITY;
            }
            Ok(values)
        }
    }
    let broken = Broken(fixture.weights);
    let windows = [fixture.tokens.clone()];
    let pass = Pass::new(&description, &windows).expect("a pass");
    let mut hidden = pass.embed(&broken, None).expect("embedded");
    let mut run = |layer: usize| {
        let weights = LayerWeights::read(&description.layers[layer], &broken).expect("weights");
        pass.layer(layer, &weights, &mut hidden, &mut Silent)
    };
    run(0).expect("numbers");
    let error = run(1).expect_err("no numbers");
    assert_eq!(
        error.message,
        "the stream after layer 1 is not finite at token 0 of sample 0, since `model.layers.1.mlp.down_proj`"
    );
}

#[test]
fn statistics_of_the_trained_example_are_those_of_its_script() {
    let model = root().join("examples/tiny-llama");
    let read = |path: &Path| std::fs::read(path).expect("a file");
    let weights = Files::read(&model);
    let config = serde_json::from_slice(&read(&model.join("config.json"))).expect("a config");
    let description = Description::new(&config, &weights).expect("described");
    let (tokenizer, config) =
        (read(&model.join("tokenizer.json")), read(&model.join("tokenizer_config.json")));
    let tokenizer = Tokenizer::new(&tokenizer, Some(&config), None).expect("a tokenizer");
    let text = documents("calibration.txt", &read(&root().join("examples/calibration/calibration.txt")))
        .expect("text");
    let tokens = tokenizer.encode(&text, None).expect("tokens");
    assert_eq!((tokens.len(), tokens[0]), (58_268, 0), "one begin, and as many tokens as transformers makes");
    assert_eq!(tokenizer.encode(&text, Some(false)).expect("tokens"), tokens[1..]);

    let windows = windows(&tokens, 256, Some(8)).expect("windows");
    let mut squares = MeanSquares::default();
    run(&description, &weights, &windows, None, &mut squares);
    let ours = squares.to_bytes(&[("samples".to_owned(), "8".to_owned())].into());
    let theirs = read(&folder().join("statistics/tiny-llama-8.safetensors"));
    let (ours, theirs) =
        (SafeTensors::deserialize(&ours).expect("ours"), SafeTensors::deserialize(&theirs).expect("theirs"));
    assert_eq!(ours.len(), theirs.len(), "the same modules");
    for (name, theirs) in theirs.tensors() {
        let ours = ours.tensor(&name).expect("ours");
        assert_eq!((ours.dtype(), ours.shape()), (theirs.dtype(), theirs.shape()), "{name}");
        if name.ends_with(".counts") {
            assert_eq!(ours.data(), theirs.data(), "{name}");
            continue;
        }
        for (a, b) in ours.data().as_chunks().0.iter().zip(theirs.data().as_chunks().0) {
            let (a, b) = (f32::from_le_bytes(*a), f32::from_le_bytes(*b));
            assert!((a - b).abs() <= 1e-5 * b, "{name}: {a} {b}");
        }
    }
}
