//! Rounding of activations as engines do it in W8A8: symmetric, one scale a token, found while the model runs.

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
}
