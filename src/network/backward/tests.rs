//! Gradients against differences of the loss at streams nearby.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::compare::logits;
use super::*;
use crate::network::Silent;
use crate::network::test_weights::Small;
use crate::quant::test_weights::gaussian;

/// The model of a fixture of the network, with small weights of its own, and its tokens.
fn fixture(name: &str) -> (Value, Small) {
    let path = format!("{}/tests/fixtures/network/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("a fixture");
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = metadata.metadata().clone().expect("metadata");
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&metadata["tensors"]).expect("shapes");
    let tensor = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
        let lower = name.to_lowercase();
        let is_norm = (lower.contains("norm") || lower.contains("ln_")) && name.ends_with("weight");
        let values = gaussian(shape.iter().product(), seed as u64);
        let values = values.iter().map(|x| if is_norm { 1.0 + 0.1 * x } else { 0.2 * x }).collect();
        (name, (shape, values))
    };
    let weights = Small(shapes.into_iter().enumerate().map(tensor).collect());
    (serde_json::from_str(&metadata["config"]).expect("config"), weights)
}

/// −Σ log p of labels, in F64 of F32 logits, of a window that enters a layer with a stream.
fn loss(pass: &Pass<'_>, weights: &Small, (layer, stream): (usize, &[f32]), labels: &[usize]) -> f64 {
    let description = pass.description();
    let mut hidden = pass.room(None);
    hidden.put(0, stream.to_vec()).expect("in memory");
    for layer in layer..description.layers.len() {
        let own = LayerWeights::read(&description.layers[layer], weights).expect("weights");
        pass.layer(layer, &own, &mut hidden, &mut Silent).expect("a layer");
    }
    pass.finish(weights, &mut hidden).expect("finished");
    let logits = logits(description, weights, hidden.get(0).expect("a stream")).expect("logits");
    let rows = logits.chunks_exact(logits.len() / labels.len()).zip(labels);
    rows.map(|(row, label)| {
        let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        total.ln() - f64::from(row[*label])
    })
    .sum()
}

/// A model of every family that can be walked backwards: the slopes of its loss along some directions.
#[test]
fn gradients_are_the_slopes_of_the_loss_for_every_family() {
    let families: Vec<&str> = [
        "llama-tied-biased",
        "llama-yarn",
        "mistral",
        "qwen2-sliding",
        "qwen3",
        "gemma2",
        "gemma3-text",
        "phi3",
        "granite",
        "granite-moe",
        "olmo2",
        "olmoe",
        "smollm3",
        "mixtral",
        "qwen2-moe",
        "qwen3-moe",
        "deepseek-v3",
        "glm4-moe",
        "minimax-m2",
        "gpt-oss",
        "lfm2",
        "cohere-qk-norm",
        "cohere2",
        "exaone4",
        "glm4",
        "gpt2",
        "opt",
        "gpt-neox",
        "phi",
        "stablelm",
        "starcoder2",
        "arcee",
    ]
    .to_vec();
    let mut wrong = Vec::new();
    for name in families {
        let (config, weights) = fixture(name);
        let description = Description::new(&config, &weights).expect("described");
        can_go_back(&description).expect("a way back");
        let windows = [(0..12u32).map(|i| 3 + (i * 29 + 5) % 77).collect::<Vec<_>>()];
        let labels = vec![(0..12).map(|i| (i * 17 + 4) % 80).collect::<Vec<usize>>()];
        let pass = Pass::new(&description, &windows).expect("a pass");
        let mut streams = vec![pass.embed(&weights, None).expect("embedded")];
        for (layer, program) in description.layers.iter().enumerate() {
            let own = LayerWeights::read(program, &weights).expect("weights");
            let mut next = pass.room(None);
            pass.layer_to(layer, &own, &streams[layer], &mut next, &|_| Ok(())).expect("a layer");
            streams.push(next);
        }
        let (mut slopes, mut gradients) = (0, pass.room(None));
        let last = streams.pop().expect("the last");
        pass.labels_back(&weights, &last, &labels, &mut gradients).expect("gradients");
        for (layer, program) in description.layers.iter().enumerate().rev() {
            let own = LayerWeights::read(program, &weights).expect("weights");
            let mut outputs = OutputMoments::default();
            pass.layer_back((layer, &own), &streams[layer], &mut gradients, &mut outputs, &|_| Ok(()))
                .expect("a layer");
            let (stream, gradient) =
                (streams[layer].get(0).expect("a stream"), gradients.get(0).expect("a gradient"));
            let norm = gradient.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            let mut tried = 0;
            for seed in 0..12 {
                let direction = gaussian(stream.len(), 900 + seed);
                let size = stream.iter().map(|x| x * x).sum::<f32>().sqrt();
                let step = 5e-3 * size / direction.iter().map(|x| x * x).sum::<f32>().sqrt();
                let at = |step: f32| {
                    let moved: Vec<f32> =
                        stream.iter().zip(&direction).map(|(x, along)| x + step * along).collect();
                    loss(&pass, &weights, (layer, &moved), &labels[0])
                };
                let slope = |step: f32| (at(step) - at(-step)) / (2.0 * f64::from(step));
                // The direction is longer than 1, so that a slope is about as large as the gradient. Differences of F32 are not
                // exact: tests against torch are. Where a token goes to another expert on the way, the loss has no slope.
                let (wide, expected) = (slope(step), slope(step / 2.0));
                if (wide - expected).abs() > 0.02 * norm {
                    continue;
                }
                let found: f64 =
                    gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                tried += 1;
                if (found - expected).abs() > 0.03 * norm {
                    wrong.push(format!("{name}, layer {layer}: {found} and {expected} of {norm}"));
                }
                if tried == 3 {
                    break;
                }
            }
            slopes += tried;
        }
        assert!(slopes > 0, "{name}: no slope was found");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn models_without_a_way_back_are_told() {
    for (name, what) in
        [("qwen3-next", "gated delta rule"), ("bert", "no next token"), ("bert-bare", "no next token")]
    {
        let (config, weights) = fixture(name);
        let description = Description::new(&config, &weights).expect("described");
        let finding = can_go_back(&description).expect_err("no way back");
        assert!(finding.message.contains(what), "{}", finding.message);
        assert_eq!(finding.code, code::NO_GRADIENTS);
    }
}

/// The same gradients for any number of threads, of drawn labels; another seed draws others.
#[test]
fn drawn_labels_depend_on_the_seed_alone() {
    let (config, weights) = fixture("llama");
    let description = Description::new(&config, &weights).expect("described");
    let windows: Vec<Vec<u32>> =
        (0..5).map(|w| (0..20 - w % 3).map(|i| (i * 7 + w * 13) % 90).collect()).collect();
    let pass = Pass::new(&description, &windows).expect("a pass");
    let run = |seed: u64, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let inputs = pass.embed(&weights, None).expect("embedded");
            let own = LayerWeights::read(&description.layers[0], &weights).expect("weights");
            let (mut last, mut gradients) = (pass.room(None), pass.room(None));
            pass.layer_to(0, &own, &inputs, &mut last, &|_| Ok(())).expect("a layer");
            pass.answers_back(&weights, &last, seed, &mut gradients, &|_| Ok(())).expect("gradients");
            let matrices = || description.layers[0].matrices();
            let mut outputs = OutputMoments::of(matrices().map(|matrix| (matrix, matrix.rows)));
            pass.layer_back((0, &own), &inputs, &mut gradients, &mut outputs, &|_| Ok(())).expect("a layer");
            for matrix in matrices() {
                let sum = outputs.get(matrix).expect("chosen");
                assert_eq!(sum.tokens, windows.iter().map(|window| window.len() as u64).sum::<u64>());
                assert!((0..sum.rows).all(|row| sum.sums[row * (sum.rows + 1)] > 0.0));
            }
            outputs
        })
    };
    let expected = run(3, 1);
    assert!(run(3, 3) == expected);
    assert!(run(4, 1) != expected);
}
