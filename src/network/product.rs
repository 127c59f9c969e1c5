//! Rows times the matrices of a checkpoint.

use super::parts::Layout;
pub(super) use crate::quant::product::{View, multiply, multiply_below};

/// Rows times a matrix as a checkpoint has it, with its bias: [count, columns] to [count, rows].
pub(super) fn linear(
    inputs: &[f32],
    (rows, columns): (usize, usize),
    matrix: &[f32],
    layout: Layout,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let count = inputs.len() / columns.max(1);
    let mut out = match bias {
        Some(bias) => bias.repeat(count),
        None => vec![0.0; count * rows],
    };
    let right = match layout {
        Layout::OutIn => View::rows(matrix, columns).turned(),
        Layout::InOut => View::rows(matrix, rows),
    };
    multiply(
        (count, columns, rows),
        View::rows(inputs, columns),
        right,
        (&mut out, rows),
        1.0,
        bias.is_some(),
    );
    out
}

/// The way back: gradients of outputs, [count, rows], times the matrix give those of inputs, [count, columns].
pub(super) fn linear_back(
    gradients: &[f32],
    (rows, columns): (usize, usize),
    matrix: &[f32],
    layout: Layout,
) -> Vec<f32> {
    let count = gradients.len() / rows.max(1);
    let mut out = vec![0.0; count * columns];
    let right = match layout {
        Layout::OutIn => View::rows(matrix, columns),
        Layout::InOut => View::rows(matrix, rows).turned(),
    };
    multiply((count, rows, columns), View::rows(gradients, rows), right, (&mut out, columns), 1.0, false);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_give_the_same_products() {
        let inputs = [1.0, 2.0, 3.0, -1.0, 0.5, 4.0];
        let rows = [1.0, 0.0, 2.0, 3.0, 1.0, -1.0];
        let columns = [1.0, 3.0, 0.0, 1.0, 2.0, -1.0];
        let expected = [7.5, 2.0, 7.5, -6.5];
        assert_eq!(linear(&inputs, (2, 3), &rows, Layout::OutIn, Some(&[0.5, 0.0])), expected);
        assert_eq!(linear(&inputs, (2, 3), &columns, Layout::InOut, Some(&[0.5, 0.0])), expected);
        assert!(linear(&[], (2, 3), &rows, Layout::OutIn, None).is_empty());
    }
}
