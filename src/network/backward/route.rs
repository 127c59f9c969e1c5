//! The way back through the choice of experts: what they weigh depends on the logits, the choice itself does not.

use super::super::math::{activate, softmax};
use super::super::parts::{Activation, Router, Scores};
use super::super::routing::Routing;

/// Gradients of logits, [tokens, experts], from those of the weights of the rows of experts.
pub(super) fn route_back(how: &Router, logits: &[f32], routing: &Routing, gradients: &[f32]) -> Vec<f32> {
    let count = how.experts;
    let mut chosen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); logits.len() / count];
    for expert in 0..count {
        for row in routing.rows(expert) {
            chosen[routing.tokens[row]].push((expert, gradients[row] * how.scale));
        }
    }
    let mut out = vec![0.0; logits.len()];
    let rows = logits.chunks_exact(count).zip(out.chunks_exact_mut(count));
    for (chosen, (logits, out)) in chosen.iter().zip(rows) {
        token_back(how, logits, chosen, out);
    }
    out
}

/// One token: `chosen` has its experts and the gradients of what they weigh.
fn token_back(how: &Router, logits: &[f32], chosen: &[(usize, f32)], out: &mut [f32]) {
    let mut scores = logits.to_vec();
    match how.scores {
        Scores::Softmax => softmax(&mut scores, None),
        Scores::Sigmoid => activate(&mut scores, Activation::Sigmoid),
        Scores::SoftmaxOfBest => {
            let mut best: Vec<f32> = chosen.iter().map(|(expert, _)| logits[*expert]).collect();
            softmax(&mut best, None);
            chosen.iter().zip(best).for_each(|((expert, _), score)| scores[*expert] = score);
        }
    }
    // Gradients of the scores of those chosen.
    let mut of_scores: Vec<f32> = chosen.iter().map(|(_, gradient)| *gradient).collect();
    if let Some(epsilon) = how.normalize {
        let total = chosen.iter().map(|(expert, _)| scores[*expert]).sum::<f32>() + epsilon;
        let shares = chosen.iter().map(|(expert, gradient)| scores[*expert] / total * gradient);
        let mean: f32 = shares.sum();
        of_scores.iter_mut().for_each(|gradient| *gradient = (*gradient - mean) / total);
    }
    let rows = || chosen.iter().map(|(expert, _)| *expert).zip(&of_scores);
    match how.scores {
        Scores::Sigmoid => {
            for (expert, gradient) in rows() {
                out[expert] = gradient * scores[expert] * (1.0 - scores[expert]);
            }
        }
        Scores::Softmax | Scores::SoftmaxOfBest => {
            let mean: f32 = rows().map(|(expert, gradient)| scores[expert] * gradient).sum();
            if how.scores == Scores::Softmax {
                out.iter_mut().zip(&scores).for_each(|(out, score)| *out = -score * mean);
            }
            for (expert, gradient) in rows() {
                out[expert] = scores[expert] * (gradient - mean);
            }
        }
    }
}
