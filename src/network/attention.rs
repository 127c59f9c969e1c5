//! Attention over the rows of one window, head by head, in blocks of queries.

use super::math::{softmax, tanh};
use super::parts::Attention;
use super::product::{View, multiply};

/// Queries of one block: scores of a block against all keys before its end fit a cache.
const BLOCK: usize = 64;

/// What each token attends to: [tokens, heads · value_size].
pub(super) fn attend(
    how: &Attention,
    tokens: usize,
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    sinks: Option<&[f32]>,
) -> Vec<f32> {
    let (heads, size, value_size) = (how.heads, how.size, how.value_size);
    let (key_width, value_width, width) =
        (how.key_heads * size, how.key_heads * value_size, heads * value_size);
    let shared = heads / how.key_heads.max(1);
    let mut out = vec![0.0; tokens * width];
    let mut scores = vec![0.0; BLOCK.min(tokens) * tokens];
    for head in 0..heads {
        let key_head = head / shared.max(1);
        let sink = sinks.map(|sinks| sinks[head]);
        for start in (0..tokens).step_by(BLOCK) {
            let rows = BLOCK.min(tokens - start);
            // Keys that some query of the block sees.
            let end = if how.is_causal { start + rows } else { tokens };
            let begin = how.window.map_or(0, |window| (start + 1).saturating_sub(window));
            let seen = end - begin;
            let query = View {
                data: &queries[start * heads * size + head * size..],
                row_step: heads * size,
                column_step: 1,
            };
            let key = View {
                data: &keys[begin * key_width + key_head * size..],
                row_step: key_width,
                column_step: 1,
            };
            multiply((rows, size, seen), query, key.turned(), (&mut scores, seen), how.scale, false);
            for (row, scores) in scores[..rows * seen].chunks_exact_mut(seen).enumerate() {
                let position = start + row;
                let last = if how.is_causal { position + 1 } else { tokens };
                let first = how.window.map_or(0, |window| (position + 1).saturating_sub(window));
                // A window reaches as far ahead as back where tokens after are seen.
                let last =
                    if how.is_causal { last } else { how.window.map_or(last, |w| last.min(position + w)) };
                if let Some(cap) = how.cap {
                    scores.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
                }
                scores[..first - begin].fill(0.0);
                scores[last - begin..].fill(0.0);
                softmax(&mut scores[first - begin..last - begin], sink);
            }
            let value = View {
                data: &values[begin * value_width + key_head * value_size..],
                row_step: value_width,
                column_step: 1,
            };
            let to = &mut out[start * width + head * value_size..];
            multiply((rows, seen, value_size), View::rows(&scores, seen), value, (to, width), 1.0, false);
        }
    }
    out
}
