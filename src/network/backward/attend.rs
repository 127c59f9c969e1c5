//! The way back through attention.

use super::super::attention::{BLOCK, Heads};
use super::super::parts::Attention;
use super::super::product::{View, multiply};
use super::slopes::dot;

/// Gradients of queries, keys and values from those of what was attended to. Scores are made anew, block by block.
pub(super) fn attend_back(
    how: &Attention,
    tokens: usize,
    [queries, keys, values]: [&[f32]; 3],
    sinks: Option<&[f32]>,
    gradients: &[f32],
) -> [Vec<f32>; 3] {
    let heads = Heads { how, tokens, queries, keys, values };
    let mut out = [queries, keys, values].map(|rows| vec![0.0; rows.len()]);
    let [of_queries, of_keys, of_values] = &mut out;
    let width = how.heads * how.value_size;
    let size = BLOCK.min(tokens) * tokens;
    let [mut shares, mut capped, mut of_shares] = [(); 3].map(|()| vec![0.0; size]);
    for head in 0..how.heads {
        let sink = sinks.map(|sinks| sinks[head]);
        for start in (0..tokens).step_by(BLOCK) {
            let block = heads.block(head, start);
            let (rows, seen) = (block.rows, block.seen);
            block.shares(&mut shares, sink, Some(&mut capped));
            let gradient = View {
                data: &gradients[start * width + head * how.value_size..],
                row_step: width,
                column_step: 1,
            };
            // Values: the shares on their side times the gradients.
            let to = (&mut of_values[block.value_start..], how.key_heads * how.value_size);
            let turned = View::rows(&shares, seen).turned();
            multiply((seen, rows, how.value_size), turned, gradient, to, 1.0, true);
            multiply(
                (rows, how.value_size, seen),
                gradient,
                block.value().turned(),
                (&mut of_shares, seen),
                1.0,
                false,
            );
            let each = of_shares[..rows * seen].chunks_exact_mut(seen);
            let each = each.zip(shares.chunks_exact(seen).zip(capped.chunks_exact(seen)));
            for (of_shares, (shares, capped)) in each {
                let mean = dot(of_shares, shares);
                of_shares.iter_mut().zip(shares).for_each(|(of, share)| *of = share * (*of - mean));
                if let Some(cap) = how.cap {
                    let slope = |x: &f32| 1.0 - (x / cap) * (x / cap);
                    of_shares.iter_mut().zip(capped).for_each(|(of, score)| *of *= slope(score));
                }
            }
            let of_scores = View::rows(&of_shares, seen);
            let to = (&mut of_queries[block.query_start..], how.heads * how.size);
            multiply((rows, seen, how.size), of_scores, block.key(), to, how.scale, true);
            let to = (&mut of_keys[block.key_start..], how.key_heads * how.size);
            multiply((seen, rows, how.size), of_scores.turned(), block.query(), to, how.scale, true);
        }
    }
    out
}
