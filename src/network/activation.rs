//! Rounding of activations as engines do it in W8A8: symmetric, one scale a token, found while the model runs.

use crate::quant::small_floats::{E4M3, E4M3_MAX, nearest_e4m3};

/// Whose rounding is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// vLLM's kernels: the largest becomes 127.
    Vllm,
    /// transformers with compressed-tensors: the largest becomes 127.5 before codes are cut off at 127.
    CompressedTensors,
}

/// Rounds each row to steps of its own: the scale is its largest number's share, codes go half to even.
pub fn round_per_token(rows: &mut [f32], width: usize, engine: Engine) {
    let steps = match engine {
        Engine::Vllm => 127.0,
        Engine::CompressedTensors => 127.5,
    };
    for row in rows.chunks_exact_mut(width.max(1)) {
        let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = largest / steps;
        if scale == 0.0 || !scale.is_finite() {
            continue;
        }
        for x in row {
            *x = (*x / scale).round_ties_even().clamp(-128.0, 127.0) * scale;
        }
    }
}

/// Rounds so many numbers at a time to floats of eight bits (E4M3): the scale is the share of their largest.
pub fn round_to_float8(numbers: &mut [f32], width: usize) {
    for group in numbers.chunks_mut(width.max(1)) {
        let largest = group.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = largest / E4M3_MAX;
        if scale == 0.0 || !scale.is_finite() {
            continue;
        }
        for x in group {
            *x = E4M3[usize::from(nearest_e4m3(*x / scale))] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_by_their_own_largest() {
        let mut rows = [127.0, 0.5, 1.5, -2.4, 0.0, 0.0, 0.0, 0.0, -12.7, 0.1, 0.26, 0.0];
        round_per_token(&mut rows, 4, Engine::Vllm);
        assert_eq!(rows[..8], [127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((rows[10] - 0.3).abs() < 1e-6 && rows[8] == -12.7);
        let mut row = [255.0, 2.9, -255.0, 1.0];
        round_per_token(&mut row, 4, Engine::CompressedTensors);
        assert_eq!(row, [254.0, 2.0, -256.0, 0.0], "127.5 is cut off above and rounds to 128 below");
    }

    #[test]
    fn groups_are_rounded_to_floats_by_their_own_largest() {
        let mut row = [448.0, 17.0, 19.0, -0.3, 44.8, 1.7, 0.0, 0.0];
        round_to_float8(&mut row, 4);
        assert_eq!(row[..4], [448.0, 16.0, 20.0, -0.3125]);
        assert!((row[4] - 44.8).abs() < 1e-5 && (row[5] - 1.6).abs() < 1e-6 && row[6] == 0.0);
    }
}
