//! Which tokens go to which experts.

use super::math::{activate, softmax};
use super::parts::{Activation, Router, Scores};

/// The experts that the tokens of a window chose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Routing {
    /// Tokens, those of the first expert first; ascending within one.
    pub tokens: Vec<usize>,
    /// What each of these rows weighs.
    pub weights: Vec<f32>,
    /// Where the rows of each expert start; one more at the end.
    pub starts: Vec<usize>,
}

impl Routing {
    /// The rows of an expert.
    #[must_use]
    pub fn rows(&self, expert: usize) -> std::ops::Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }
}

/// The `count` largest of some numbers, in falling order; of equal ones the first.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count);
    order
}

/// Chooses for each token: `logits` is [tokens, experts].
pub(super) fn route(how: &Router, logits: &[f32], correction: Option<&[f32]>) -> Routing {
    let tokens = logits.len() / how.experts;
    let mut chosen: Vec<(usize, usize, f32)> = Vec::with_capacity(tokens * how.chosen);
    for (token, logits) in logits.chunks_exact(how.experts).enumerate() {
        let mut scores = logits.to_vec();
        match how.scores {
            Scores::Softmax => softmax(&mut scores, None),
            Scores::Sigmoid => activate(&mut scores, Activation::Sigmoid),
            Scores::SoftmaxOfBest => {}
        }
        let mut for_choice = scores.clone();
        if let Some(correction) = correction {
            for_choice.iter_mut().zip(correction).for_each(|(score, add)| *score += add);
        }
        if let Some((groups, kept)) = how.groups
            && kept < groups
        {
            keep_groups(&mut for_choice, groups, kept);
        }
        let experts = best(&for_choice, how.chosen);
        let mut weights: Vec<f32> = experts.iter().map(|expert| scores[*expert]).collect();
        if how.scores == Scores::SoftmaxOfBest {
            softmax(&mut weights, None);
        }
        if let Some(epsilon) = how.normalize {
            let total = weights.iter().sum::<f32>() + epsilon;
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
        chosen.extend(
            experts.into_iter().zip(weights).map(|(expert, weight)| (expert, token, weight * how.scale)),
        );
    }
    chosen.sort_unstable_by_key(|(expert, token, _)| (*expert, *token));
    let starts = (0..=how.experts).map(|expert| chosen.partition_point(|(e, ..)| *e < expert)).collect();
    Routing {
        tokens: chosen.iter().map(|(_, token, _)| *token).collect(),
        weights: chosen.iter().map(|(.., weight)| *weight).collect(),
        starts,
    }
}

/// Leaves scores in the best groups alone; a group is as good as the sum of its two best.
fn keep_groups(scores: &mut [f32], groups: usize, kept: usize) {
    let size = scores.len() / groups;
    let worth: Vec<f32> =
        scores.chunks_exact(size).map(|group| best(group, 2).into_iter().map(|i| group[i]).sum()).collect();
    let keep = best(&worth, kept);
    for (index, group) in scores.chunks_exact_mut(size).enumerate() {
        if !keep.contains(&index) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_changes_the_choice_and_not_the_weights() {
        let router = Router {
            experts: 4,
            chosen: 2,
            scores: Scores::Sigmoid,
            normalize: None,
            scale: 2.0,
            correction: Some("bias".into()),
            groups: None,
        };
        let routing = route(&router, &[0.0, 1.0, 2.0, 3.0], Some(&[5.0, 0.0, 0.0, 0.0]));
        assert_eq!(routing.starts, [0, 1, 1, 1, 2]);
        assert_eq!(routing.weights[0], 1.0);
        let grouped = Router { groups: Some((2, 1)), ..router };
        let routing = route(&grouped, &[0.0, 1.0, 2.0, -3.0], None);
        assert_eq!(routing.starts, [0, 1, 2, 2, 2], "0.5 + 0.73 is more than 0.88 + 0.05");
    }

    #[test]
    fn rows_are_sorted_by_expert_and_then_by_token() {
        let router = Router {
            experts: 3,
            chosen: 2,
            scores: Scores::Softmax,
            normalize: Some(0.0),
            scale: 1.0,
            correction: None,
            groups: None,
        };
        let routing = route(&router, &[1.0, 0.0, 2.0, 0.0, 3.0, 3.0, 1.0, 1.0, 0.0], None);
        assert_eq!(routing.tokens, [0, 2, 1, 2, 0, 1]);
        assert_eq!(routing.rows(1), 2..4);
        assert!((routing.weights[2] - 0.5).abs() < 1e-6);
    }
}
