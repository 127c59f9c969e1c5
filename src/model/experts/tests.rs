use serde_json::{Value, json};

use super::*;
use crate::ids::TensorId;
use crate::model::types::tests::folder;

const H: u64 = 16;
const I: u64 = 24;
const E: u64 = 3;

fn config(family: &str) -> Value {
    json!({"model_type": family, "hidden_size": H, "num_experts": E})
}

fn stack_of(config: Value, tensors: &[(&str, &[u64])]) -> Result<ExpertStack, Finding> {
    stack(&folder(config, tensors), TensorId::new(0))
}

/// The position of element (r, c) of a matrix in its tensor, in elements.
fn at(matrix: &ExpertMatrix, r: u64, c: u64) -> u64 {
    matrix.view.element_at(r, c)
}

#[test]
fn plain_stacks_have_gate_before_up() {
    let tensors: &[(&str, &[u64])] =
        &[("m.experts.gate_up_proj", &[E, 2 * I, H]), ("m.experts.down_proj", &[E, H, I])];
    let stack = stack_of(config("any"), tensors).unwrap();
    assert!(!stack.is_transposed && !stack.is_interleaved);
    let modules: Vec<&str> = stack.matrices.iter().map(|m| m.module.as_str()).collect();
    assert_eq!(modules[..3], ["m.experts.0.gate_proj", "m.experts.0.up_proj", "m.experts.1.gate_proj"]);
    let up = &stack.matrices[3];
    assert_eq!((up.view.rows, up.view.cols), (I, H));
    // Expert 1, row I + 2, column 5 of [E, 2I, H].
    assert_eq!(at(up, 2, 5), (2 * I + I + 2) * H + 5);
}

#[test]
fn transposed_stacks_are_read_across() {
    let tensors: &[(&str, &[u64])] =
        &[("m.experts.gate_up_proj", &[E, H, 2 * I]), ("m.experts.down_proj", &[E, I, H])];
    let stack = stack_of(config("any"), tensors).unwrap();
    assert!(stack.is_transposed && !stack.is_interleaved);
    // Element [1, 5, I + 2] of [E, H, 2I].
    assert_eq!(at(&stack.matrices[3], 2, 5), (H + 5) * 2 * I + I + 2);
    let mut turned = tensors.to_vec();
    turned.reverse();
    let down = stack_of(config("any"), &turned).unwrap();
    assert!(down.is_transposed);
    assert_eq!((down.matrices[1].view.rows, down.matrices[1].view.cols), (H, I));
    assert_eq!(at(&down.matrices[1], 2, 5), (I + 5) * H + 2);
}

#[test]
fn gpt_oss_interleaves_and_has_a_square_down_projection() {
    // I = H: only the other stack tells the axes of this one.
    let tensors: &[(&str, &[u64])] = &[
        ("m.experts.gate_up_proj", &[E, H, 2 * H]),
        ("m.experts.gate_up_proj_bias", &[E, 2 * H]),
        ("m.experts.down_proj", &[E, H, H]),
    ];
    let folder = folder(config("gpt_oss"), tensors);
    let gate_up = stack(&folder, TensorId::new(0)).unwrap();
    assert!(gate_up.is_transposed && gate_up.is_interleaved && gate_up.note.is_none());
    assert_eq!(at(&gate_up.matrices[1], 2, 5), 5 * 2 * H + 2 * 2 + 1);
    let down = stack(&folder, TensorId::new(2)).unwrap();
    assert!(down.is_transposed && !down.is_interleaved && down.note.is_none());
}

#[test]
fn where_both_orders_fit_the_family_decides_and_it_is_said() {
    // I = H / 2.
    let tensors: &[(&str, &[u64])] = &[("m.experts.gate_up_proj", &[E, H, H])];
    let stack = stack_of(config("llama4_text"), tensors).unwrap();
    assert!(stack.is_transposed && stack.note.is_some());
    let stack = stack_of(config("qwen3_5_moe"), tensors).unwrap();
    assert!(!stack.is_transposed && stack.note.is_some());
    // The other stack would tell.
    let both: &[(&str, &[u64])] = &[tensors[0], ("m.experts.down_proj", &[E, H / 2, H])];
    let stack = stack_of(config("qwen3_5_moe"), both).unwrap();
    assert!(stack.is_transposed && stack.note.is_none());
}

#[test]
fn names_of_granite_and_step() {
    let granite: &[(&str, &[u64])] = &[
        ("l.0.block_sparse_moe.input_linear.weight", &[E, 2 * I, H]),
        ("l.0.block_sparse_moe.output_linear.weight", &[E, H, I]),
    ];
    let stack = stack_of(config("granitemoe"), granite).unwrap();
    assert_eq!(stack.matrices[1].module, "l.0.block_sparse_moe.experts.0.up_proj");
    let step: &[(&str, &[u64])] =
        &[("l.0.moe.gate_proj.weight", &[E, I, H]), ("l.0.moe.down_proj.weight", &[E, H, I])];
    let stack = stack_of(config("step"), step).unwrap();
    assert_eq!((stack.part, stack.matrices.len()), (ExpertPart::Gate, 3));
    assert_eq!(stack.matrices[2].module, "l.0.moe.experts.2.gate_proj");
}

#[test]
fn without_a_configuration_the_two_stacks_tell() {
    let tensors: &[(&str, &[u64])] =
        &[("experts.gate_up_proj", &[E, H, 2 * I]), ("experts.down_proj", &[E, I, H])];
    let stack = stack_of(json!({}), tensors).unwrap();
    assert!(stack.is_transposed);
    assert_eq!(stack.matrices[0].module, "experts.0.gate_proj");
}

#[test]
fn contradictions_are_errors() {
    let cases: &[&[(&str, &[u64])]] = &[
        &[("m.experts.gate_up_proj", &[E, 2 * I, H + 1])],
        &[("m.experts.gate_up_proj", &[E, 2 * I, H]), ("m.experts.down_proj", &[E, I, H])],
        &[("m.experts.gate_up_proj", &[E, 2 * I, H]), ("m.experts.down_proj", &[E, H, I + 1])],
        &[("m.experts.gate_up_proj", &[E, 2 * I + 1, H])],
        &[("m.experts.odd", &[E, I, H])],
        &[("m.experts.down_proj", &[E, H])],
        &[("m.experts.down_proj", &[u64::MAX / 64, H, 0])],
    ];
    for case in cases {
        assert_eq!(stack_of(config("any"), case).unwrap_err().code, code::EXPERTS, "{case:?}");
    }
}

#[test]
fn the_columns_of_an_empty_tensor_may_not_be_countable() {
    let empty = folder(json!({}), &[("t.weight", &[0, 1 << 40, 1 << 40])]);
    assert_eq!(MatrixView::whole(&empty.tensors[TensorId::new(0)]), None);
}
