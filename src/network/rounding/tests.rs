use super::*;
use crate::network::test_weights::Small;
use crate::network::{Description, Hidden, MeanSquares, Op, Pass, Sequence, Silent, Window, layer_error};
use crate::quant::test_weights::{Numbers, gaussian};
use crate::quant::{Bits, FloatType, Granularity, Isa, Observer, Scheme, Storage};
use serde_json::json;

impl Small {
    fn new(config: &serde_json::Value) -> Self {
        let mut names = vec![("model.embed_tokens.weight".to_owned(), vec![64, 32])];
        names.push(("lm_head.weight".to_owned(), vec![64, 32]));
        names.push(("model.norm.weight".to_owned(), vec![32]));
        for layer in 0..2 {
            let mut add = |name: &str, shape: &[usize]| {
                names.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[32]);
            add("post_attention_layernorm", &[32]);
            add("self_attn.q_proj", &[32, 32]);
            add("self_attn.k_proj", &[16, 32]);
            add("self_attn.v_proj", &[16, 32]);
            add("self_attn.o_proj", &[32, 32]);
            if config["model_type"] == "mixtral" {
                add("block_sparse_moe.gate", &[4, 32]);
                for expert in 0..4 {
                    add(&format!("block_sparse_moe.experts.{expert}.w1"), &[48, 32]);
                    add(&format!("block_sparse_moe.experts.{expert}.w3"), &[48, 32]);
                    add(&format!("block_sparse_moe.experts.{expert}.w2"), &[32, 48]);
                }
            } else {
                add("mlp.gate_proj", &[48, 32]);
                add("mlp.up_proj", &[48, 32]);
                add("mlp.down_proj", &[32, 48]);
            }
        }
        let tensor = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
            let count = shape.iter().product();
            let values = match shape.len() {
                1 => vec![1.0; count],
                _ => gaussian(count, seed as u64).iter().map(|x| 0.25 * x).collect(),
            };
            (name, (shape, values))
        };
        Self(names.into_iter().enumerate().map(tensor).collect())
    }
}

fn config(family: &str) -> serde_json::Value {
    let mut config = json!({
        "model_type": family, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": false, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_parameters": { "rope_theta": 1e4, "rope_type": "default" },
    });
    if family == "mixtral" {
        config["num_local_experts"] = json!(4);
        config["num_experts_per_tok"] = json!(2);
    }
    config
}

fn windows(count: usize) -> Vec<Vec<u32>> {
    let mut numbers = Numbers(3);
    (0..count).map(|_| (0..24).map(|_| (numbers.next() % 64) as u32).collect()).collect()
}

fn plain(matrix: &Linear) -> Rounding<'static> {
    Rounding { nearest: quantizer(matrix), is_signed: false, outputs: None }
}

fn quantizer(matrix: &Linear) -> Quantizer {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(16),
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    Quantizer::new(scheme, Observer::Minmax, FloatType::F32, matrix.columns, Isa::detect())
}

/// What was told of a run: rounded matrices with their errors, and those that were not.
type Told = Vec<(String, Result<(f64, f64), Unusable>)>;

/// Rounds all layers in sequence, or all matrices to nearest, and gives both streams.
fn rounded(family: &str, holds: bool, is_nearest: bool, count: usize) -> (Hidden, Hidden, Told) {
    let config = config(family);
    let weights = Small::new(&config);
    let description = Description::new(&config, &weights).expect("described");
    let windows = windows(count);
    let pass = Pass::new(&description, &windows).expect("a pass");
    let mut streams = [(); 2].map(|()| pass.embed(&weights, None).expect("embedded"));
    let mut told = Vec::new();
    for (layer, program) in description.layers.iter().enumerate() {
        let own = LayerWeights::read(program, &weights).expect("weights");
        let mut other = own.clone();
        let [first, second] = &mut streams;
        let mut sequence = Sequence {
            pass: &pass,
            layer: (layer, program),
            streams: [first, second],
            holds,
            goes_on: [true; 2],
            statistics: None,
            tell: &|_| Ok(()),
        };
        let wants = |matrix: &Linear| !matrix.tensor.contains("moe.gate");
        let mut round = |moments: StageMoments<'_>, own: &LayerWeights| {
            let matrices = moments.matrices.clone();
            let found = match is_nearest {
                true => Err(Unusable::FewRows(0)),
                false => round_stage(moments, own, &plain),
            };
            let mut out = Vec::new();
            for (index, matrix) in matrices.into_iter().enumerate() {
                let name = format!("{} {:?}", matrix.tensor, matrix.part);
                match &found {
                    Ok(found) => {
                        let found = found[index].as_ref().expect("finite weights");
                        told.push((name, Ok((found.error, found.error_of_nearest))));
                        out.push((index, found.values.clone()));
                    }
                    Err(unusable) => {
                        told.push((name, Err(*unusable)));
                        if is_nearest {
                            out.push((index, nearest(matrix, own.matrix(matrix))));
                        }
                    }
                }
            }
            Ok(out)
        };
        sequence.run(&own, &mut other, &wants, &mut round).expect("a layer");
    }
    let [first, second] = streams;
    (first, second, told)
}

fn nearest(matrix: &Linear, weights: &[f32]) -> Vec<f32> {
    let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (mut out, mut scratch) = (crate::quant::Quantized::default(), crate::quant::Scratch::default());
    let quantizer = quantizer(matrix);
    quantizer.quantize(None, &bytes, matrix.rows, &mut out, &mut scratch).expect("quantized");
    let mut values = Vec::new();
    quantizer.dequantize(out.view(), matrix.rows, &mut values, &mut scratch);
    FloatType::Bf16.widen(&values)
}

fn all(hidden: &Hidden) -> Vec<Vec<f32>> {
    (0..hidden.windows()).map(|window| hidden.get(window).expect("a window")).collect()
}

#[test]
fn a_rounded_model_is_nearer_than_one_rounded_to_nearest() {
    for family in ["llama", "mixtral"] {
        let (first, second, told) = rounded(family, true, false, 40);
        assert!(told.iter().all(|(_, found)| matches!(found, Ok((error, nearest)) if error < nearest)));
        assert_eq!(told.len(), if family == "llama" { 14 } else { 8 + 24 });
        let (original, to_nearest, _) = rounded(family, true, true, 40);
        assert_eq!(all(&first), all(&original), "the unquantized model's stream is its own");
        let (ours, theirs) = (layer_error(&first, &second), layer_error(&original, &to_nearest));
        let (ours, theirs) = (ours.expect("an error"), theirs.expect("an error"));
        // A token that goes to another expert outweighs all rounding.
        assert!(ours < theirs || family == "mixtral", "{family}: {ours} and {theirs}");
    }
}

#[test]
fn the_unquantized_stream_is_that_of_a_pass() {
    let (first, ..) = rounded("llama", true, false, 11);
    let config = config("llama");
    let weights = Small::new(&config);
    let description = Description::new(&config, &weights).expect("described");
    let windows = windows(11);
    let pass = Pass::new(&description, &windows).expect("a pass");
    let mut hidden = pass.embed(&weights, None).expect("embedded");
    for (layer, program) in description.layers.iter().enumerate() {
        let weights = LayerWeights::read(program, &weights).expect("weights");
        pass.layer(layer, &weights, &mut hidden, &mut Silent).expect("a layer");
    }
    assert_eq!(all(&hidden), all(&first));
}

#[test]
fn nothing_depends_on_threads_or_on_what_waits_in_memory() {
    for family in ["llama", "mixtral"] {
        let run = |threads: usize, holds: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (first, second, told) = pool.install(|| rounded(family, holds, false, 19));
            (all(&first), all(&second), told)
        };
        let one = run(1, true);
        assert!(one == run(3, true) && one == run(2, false), "{family}");
    }
}

#[test]
fn matrices_that_saw_few_tokens_are_told() {
    let (_, _, told) = rounded("mixtral", true, false, 1);
    let few = |found: &Result<_, Unusable>| matches!(found, Err(Unusable::FewRows(rows)) if *rows < 12);
    assert!(told.iter().filter(|(name, _)| name.contains("self_attn")).all(|(_, found)| found.is_ok()));
    let experts = || told.iter().filter(|(name, _)| name.contains("experts"));
    assert_eq!(experts().count(), 24);
    assert!(experts().all(|(_, found)| found.is_ok() || few(found)));
    assert_eq!(Unusable::FewRows(7).to_string(), "only 7 tokens came here");
}

/// What a sequence has summed before the second layer's stages, beside what both models' windows say there: each stage as
/// [`Compared`] has it.
#[test]
fn moments_are_those_of_both_models() {
    let config = config("llama");
    let weights = Small::new(&config);
    let description = Description::new(&config, &weights).expect("described");
    let windows = windows(11);
    let pass = Pass::new(&description, &windows).expect("a pass");
    let mut streams = [(); 2].map(|()| pass.embed(&weights, None).expect("embedded"));
    let mut seen = Vec::new();
    for (layer, program) in description.layers.iter().enumerate() {
        let before = [0, 1].map(|side: usize| all(&streams[side]));
        let own = LayerWeights::read(program, &weights).expect("weights");
        let mut so_far = own.clone();
        let mut other = own.clone();
        let [first, second] = &mut streams;
        let mut sequence = Sequence {
            pass: &pass,
            layer: (layer, program),
            streams: [first, second],
            holds: true,
            goes_on: [true; 2],
            statistics: None,
            tell: &|_| Ok(()),
        };
        let mut round = |moments: StageMoments<'_>, own: &LayerWeights| {
            let matrices = moments.matrices.clone();
            let step = program
                .ops
                .iter()
                .position(|op| matches!(op, Op::Linear { matrix, .. } if matrix == matrices[0]));
            let step = step.expect("a step");
            // Both models' inputs and streams there.
            let at = |side: usize, weights: &LayerWeights| {
                let from = match &program.ops[step] {
                    Op::Linear { from, .. } => *from,
                    _ => 0,
                };
                let (mut inputs, mut stream) = (Vec::new(), Vec::new());
                for (index, start) in before[side].iter().enumerate() {
                    let mut window = Window::new(program, start.clone(), 32);
                    pass.run(layer, weights, (index, &mut window), step, &mut |_, _, _| {});
                    inputs.extend_from_slice(window.rows(from));
                    stream.extend_from_slice(window.rows(0));
                }
                (inputs, stream)
            };
            let ((others, other_stream), (inputs, stream)) = (at(0, own), at(1, &so_far));
            let columns = matrices[0].columns;
            let rows = inputs.len() / columns;
            assert_eq!(moments.rows, rows as u64);
            let less = |a: &[f32], b: &[f32]| -> Vec<f64> {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
            };
            let (lack, lack_of_stream) = (less(&others, &inputs), less(&other_stream, &stream));
            let inputs: Vec<f64> = inputs.into_iter().map(f64::from).collect();
            let near = |found: &[f32], left: &[f64], what: &str| {
                let height = left.len() / rows;
                assert_eq!(found.len(), height * columns, "{what}");
                for i in 0..height {
                    for j in 0..columns {
                        let products =
                            (0..rows).map(|row| left[row * height + i] * inputs[row * columns + j]);
                        let mean = products.sum::<f64>() / rows as f64;
                        let found = f64::from(found[i * columns + j]);
                        assert!((found - mean).abs() < 1e-5, "{what} {i} {j}: {found} {mean}");
                    }
                }
            };
            let what = &matrices[0].tensor;
            near(&moments.squares, &inputs, what);
            if let Some(cross) = &moments.cross {
                near(cross, &lack, what);
            }
            match (&moments.cross, &moments.residual) {
                (Some(_), Some(residual)) => near(residual, &lack_of_stream, what),
                (None, Some(residual)) => {
                    let own = own.matrix(matrices[0]);
                    let outputs: Vec<f64> = (0..rows * matrices[0].rows)
                        .map(|at| {
                            let (row, output) = (at / matrices[0].rows, at % matrices[0].rows);
                            let weights = &own[output * columns..(output + 1) * columns];
                            let lack = &lack[row * columns..(row + 1) * columns];
                            weights.iter().zip(lack).map(|(w, x)| f64::from(*w) * x).sum::<f64>()
                                + lack_of_stream[at]
                        })
                        .collect();
                    near(residual, &outputs, what);
                }
                _ => {}
            }
            seen.push((moments.cross.is_some(), moments.residual.is_some()));
            let rounded = round_stage(moments, own, &plain).expect("moments");
            let values = rounded.into_iter().map(|found| found.expect("finite weights").values);
            let out: Vec<_> = values.enumerate().collect();
            out.iter().for_each(|(index, values)| so_far.replace(matrices[*index], values.clone()));
            Ok(out)
        };
        sequence.run(&own, &mut other, &|_| true, &mut round).expect("a layer");
    }
    let of_layer = [(true, false), (true, true), (true, false), (false, true)];
    assert_eq!(seen, [of_layer, of_layer].concat());
}

#[test]
fn statistics_that_are_measured_on_the_way_are_those_of_a_pass() {
    for family in ["llama", "mixtral"] {
        let config = config(family);
        let weights = Small::new(&config);
        let description = Description::new(&config, &weights).expect("described");
        let windows = windows(19);
        let pass = Pass::new(&description, &windows).expect("a pass");
        let mut expected = MeanSquares::default();
        let mut hidden = pass.embed(&weights, None).expect("embedded");
        for (layer, program) in description.layers.iter().enumerate() {
            let weights = LayerWeights::read(program, &weights).expect("weights");
            pass.layer(layer, &weights, &mut hidden, &mut expected).expect("a layer");
        }
        for holds in [true, false] {
            let mut found = MeanSquares::default();
            let mut streams = [(); 2].map(|()| pass.embed(&weights, None).expect("embedded"));
            for (layer, program) in description.layers.iter().enumerate() {
                let own = LayerWeights::read(program, &weights).expect("weights");
                let [first, second] = &mut streams;
                let mut sequence = Sequence {
                    pass: &pass,
                    layer: (layer, program),
                    streams: [first, second],
                    holds,
                    goes_on: [layer == 0; 2],
                    statistics: Some(&mut found),
                    tell: &|_| Ok(()),
                };
                let mut round = |moments: StageMoments<'_>, own: &LayerWeights| {
                    let each = moments.matrices.iter().enumerate();
                    Ok(each.map(|(index, matrix)| (index, nearest(matrix, own.matrix(matrix)))).collect())
                };
                let wants = |matrix: &Linear| !matrix.tensor.contains("k_proj");
                sequence.run(&own, &mut own.clone(), &wants, &mut round).expect("a layer");
            }
            assert!(found == expected, "{family}, {holds}");
        }
    }
}

/// A matrix that lies on its side in its tensor is rounded like the one that does not.
#[test]
fn matrices_may_lie_on_their_side() {
    let matrix = |layout| Linear {
        tensor: "a.weight".to_owned(),
        part: crate::network::Part::Whole,
        layout,
        columns: 32,
        rows: 100,
        bias: None,
    };
    let weights = gaussian(3200, 1);
    let squares: Vec<f32> = (0..32 * 32).map(|i| f32::from(u8::from(i / 32 == i % 32)) + 0.3).collect();
    let rounded = |layout, weights: &[f32]| {
        let matrix = matrix(layout);
        let mut own = LayerWeights::default();
        own.replace(&matrix, weights.to_vec());
        let (squares, matrices) = (squares.clone(), vec![&matrix]);
        let moments = StageMoments { matrices, rows: 100, squares, cross: None, residual: None };
        round_stage(moments, &own, &plain).expect("moments").swap_remove(0)
    };
    let upright = rounded(Layout::OutIn, &weights).expect("rounded");
    let lying = rounded(Layout::InOut, &turn(&weights, 32)).expect("rounded");
    assert_eq!(upright.matrix, lying.matrix);
    assert_eq!(turn(&upright.values, 32), lying.values);
    let mut bad = weights;
    bad[70 * 32 + 5] = f32::NAN;
    let bad = rounded(Layout::OutIn, &bad).expect_err("a NaN");
    assert_eq!((bad.row, bad.col), (70, 5));
}
