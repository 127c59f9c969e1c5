use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::json;

use super::*;
use crate::network::{Description, Weights};

fn linear(part: Part, layout: Layout, rows: usize, columns: usize) -> Linear {
    Linear { tensor: "a.weight".to_owned(), part, layout, columns, rows, bias: None }
}

fn view(first: u64, (rows, cols): (u64, u64), row_stride: u64, column_stride: u64) -> MatrixView {
    MatrixView { first, rows, cols, row_stride, column_stride }
}

fn numbers(view: &MatrixView, linear: &Linear) -> Option<Vec<usize>> {
    TaskRows::of(TaskId::new(0), view, linear).map(|rows| rows.numbers().collect())
}

#[test]
fn rows_of_tasks_are_found_in_the_matrices_that_run() {
    let whole = linear(Part::Whole, Layout::OutIn, 6, 4);
    assert_eq!(numbers(&view(0, (6, 4), 4, 1), &whole), Some((0..6).collect()));
    let lying = linear(Part::Whole, Layout::InOut, 6, 4);
    assert_eq!(numbers(&view(0, (6, 4), 1, 6), &lying), Some((0..6).collect()));
    assert_eq!(numbers(&view(0, (6, 4), 4, 1), &lying), None, "another layout");
    // Gate and up of the second expert: halves, halves of the columns, and in turn.
    let expert = linear(Part::Expert(1), Layout::OutIn, 6, 4);
    assert_eq!(numbers(&view(24, (3, 4), 4, 1), &expert), Some(vec![0, 1, 2]));
    assert_eq!(numbers(&view(36, (3, 4), 4, 1), &expert), Some(vec![3, 4, 5]));
    assert_eq!(numbers(&view(0, (3, 4), 4, 1), &expert), None, "another expert");
    assert_eq!(numbers(&view(48, (3, 4), 4, 1), &expert), None, "another expert");
    let lying = linear(Part::Expert(1), Layout::InOut, 6, 4);
    assert_eq!(numbers(&view(27, (3, 4), 1, 6), &lying), Some(vec![3, 4, 5]));
    assert_eq!(numbers(&view(25, (3, 4), 2, 6), &lying), Some(vec![1, 3, 5]));
    assert_eq!(numbers(&view(0, (6, 3), 3, 1), &whole), None, "other columns");
}

/// Shapes without numbers.
struct Shapes(BTreeMap<String, Vec<usize>>);

impl Weights for Shapes {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn read(&self, name: &str, _: Range<usize>) -> Result<Vec<f32>, Finding> {
        Err(Finding::error("test", name))
    }
}

/// Llama 3 8B, on 128 windows of 512 tokens.
fn llama_3_8b() -> ModelRuns {
    let (hidden, inner, keys, layers) = (4096, 14336, 1024, 32);
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![128_256, hidden]),
        ("lm_head.weight".to_owned(), vec![128_256, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ]);
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "tie_word_embeddings": false, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 500_000.0,
    });
    let description = Description::new(&config, &Shapes(shapes)).unwrap();
    let windows = vec![vec![0; 512]; 128];
    ModelRuns { description, runs: vec![ModelRun { stage: None, texts: Vec::new(), windows, models: 1 }] }
}

#[test]
fn the_cost_of_eight_billion_parameters_follows_from_their_shapes() {
    let runs = llama_3_8b();
    let of = |is_sequential, wanted: &dyn Fn(&Linear) -> Option<Asked>| {
        Cost::of(
            &runs,
            &runs.runs[0],
            Way { is_sequential, is_given: false, threads: 4, gradients: None },
            wanted,
        )
    };
    let all = |_: &Linear| Some(Asked { group: 128, is_guided: false });
    let (sequential, alone) = (of(true, &all), of(false, &all));
    assert_eq!(sequential.tokens, 65_536);
    assert_eq!(sequential.stream_bytes, 2 * 65_536 * 4096 * 4);
    assert_eq!(alone.stream_bytes * 2, sequential.stream_bytes);
    // Two copies of a layer; of `down_proj`, whose inputs are the widest, a factor in F64 beside three moments in F32.
    let (weights, square) = (218_103_808_u64 * 4, 14_336_u64 * 14_336);
    assert!(sequential.layer_bytes > 2 * weights + 16 * square, "{sequential:?}");
    let least = runs.process_bytes(4) + sequential.least_bytes();
    assert!(least < 8 << 30, "{least}: {sequential:?}");
    assert!(runs.process_bytes(4) + alone.least_bytes() < 8 << 30, "{alone:?}");
    assert!(!sequential.holds(None), "windows run from the start of a layer again");
    // Forward passes of two streams take 4 operations for each parameter and token.
    let passes = 4.0 * 65_536.0 * 32.0 * 218_103_808.0;
    assert!((1.2 * passes..4.0 * passes).contains(&sequential.operations), "{sequential:?}");
    assert!(alone.operations < sequential.operations);
    // Nothing is rounded: nothing is summed.
    let none = of(true, &|_| None);
    assert_eq!((none.layer_bytes, none.operations), (2 * weights, passes));
}
