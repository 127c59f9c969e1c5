//! The way back through each step.

use super::super::execute::{LayerWeights, Values};
use super::super::math;
use super::super::op::{Op, Slot};
use super::super::parts::Norm;
use super::super::rope::Angles;
use super::super::routing::Routing;
use super::{Gradients, HearBack, Kept, attend, join, part, route, slopes};

impl Kept {
    fn rows(&self, place: usize) -> &[f32] {
        match self.values.get(place) {
            Some(Values::Rows { data, .. }) => data,
            _ => &[],
        }
    }

    fn routing(&self, place: usize) -> Option<&Routing> {
        match self.values.get(place) {
            Some(Values::Routing(routing)) => Some(routing),
            _ => None,
        }
    }
}

/// Moves the gradients of what a step made to what it read.
#[expect(clippy::too_many_lines, reason = "one short arm a step")]
pub(super) fn step_back(
    op: &Op,
    kept: &Kept,
    gradients: &mut Gradients,
    weights: &LayerWeights,
    angles: &[Angles],
    hear: &mut HearBack<'_>,
) {
    match op {
        Op::Norm { from, to, norm } => {
            let Some((width, mut data)) = gradients.take(*to) else { return };
            norm_back(weights, norm, kept.rows(0), &mut data);
            gradients.add(*from, width, data);
        }
        Op::Linear { from, to, matrix } => {
            let Some((_, data)) = gradients.take(*to) else { return };
            hear(matrix, &data);
            gradients.add(*from, matrix.columns, weights.product_back(matrix, &data));
        }
        Op::Split { from, to, period } => join::split_back(gradients, *from, to, *period, kept.widths[0]),
        Op::Join { left, right, to, heads, left_is_shared, right_is_shared } => {
            let sides =
                [(*left, *left_is_shared, kept.widths[0]), (*right, *right_is_shared, kept.widths[1])];
            join::join_back(gradients, sides, *to, *heads);
        }
        Op::Deal { from, even, odd } => join::deal_back(gradients, *from, *even, *odd),
        Op::Rope { slot, rope, size, is_interleaved } => {
            gradients.change(*slot, |width, data| {
                angles[*rope].turn_back(data, width, *size, *is_interleaved);
            });
        }
        Op::Temper { slot, scale, floor } => {
            gradients.change(*slot, |width, data| math::temper(data, width, *scale, *floor));
        }
        Op::Attend { queries, keys, values, to, attention } => {
            let Some((_, data)) = gradients.take(*to) else { return };
            let sinks = attention.sinks.as_deref().map(|name| weights.small(name));
            let inputs = [kept.rows(0), kept.rows(1), kept.rows(2)];
            let back = attend::attend_back(attention, gradients.tokens, inputs, sinks, &data);
            for ((slot, width), data) in [*queries, *keys, *values].into_iter().zip(&kept.widths).zip(back) {
                gradients.add(slot, *width, data);
            }
        }
        Op::Gate { gate, up, to, join } => {
            let Some((width, data)) = gradients.take(*to) else { return };
            let (of_gate, of_up) = slopes::join_back(&data, kept.rows(0), kept.rows(1), *join);
            gradients.add(*gate, width, of_gate);
            gradients.add(*up, width, of_up);
        }
        Op::Activate { slot, with } => {
            gradients.change(*slot, |_, data| slopes::activate_back(data, kept.rows(0), *with));
        }
        Op::Clamp { slot, limit } => gradients.change(*slot, |_, data| {
            let rows = data.iter_mut().zip(kept.rows(0));
            rows.filter(|(_, x)| x.abs() > *limit).for_each(|(gradient, _)| *gradient = 0.0);
        }),
        Op::Multiply { slot, with } => {
            let Some((width, mut data)) = gradients.take(*slot) else { return };
            let shared = (width / kept.widths[1].max(1)).max(1);
            let mut of_other = Vec::with_capacity(kept.rows(1).len());
            let parts = data.chunks_mut(shared).zip(kept.rows(0).chunks(shared)).zip(kept.rows(1));
            for ((gradient, rows), by) in parts {
                of_other.push(gradient.iter().zip(rows).map(|(gradient, x)| gradient * x).sum());
                gradient.iter_mut().for_each(|gradient| *gradient *= by);
            }
            gradients.add(*slot, width, data);
            gradients.add(*with, kept.widths[1], of_other);
        }
        Op::Add { from, to, factor } => {
            let Some((width, data)) = &gradients.slots[*to] else { return };
            let (width, scaled) = (*width, data.iter().map(|x| factor * x).collect());
            gradients.add(*from, width, scaled);
        }
        Op::ScaleBy { slot, tensor } => {
            let factor = weights.small(tensor).first().copied().unwrap_or(1.0);
            gradients.change(*slot, |_, data| data.iter_mut().for_each(|x| *x *= factor));
        }
        Op::Copy { from, to } => {
            if let Some((width, data)) = gradients.take(*to) {
                gradients.add(*from, width, data);
            }
        }
        Op::Route { logits, to, router } => {
            let (Some((_, data)), Some(routing)) = (gradients.take(*to), kept.routing(1)) else { return };
            let back = route::route_back(router, kept.rows(0), routing, &data);
            gradients.add(*logits, router.experts, back);
        }
        Op::Gather { from, to, .. } => {
            let (Some((width, data)), Some(routing)) = (gradients.take(*to), kept.routing(0)) else { return };
            let mut back = vec![0.0; gradients.tokens * width];
            for (row, token) in data.chunks_exact(width).zip(&routing.tokens) {
                let back = &mut back[token * width..(token + 1) * width];
                back.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            gradients.add(*from, width, back);
        }
        Op::Experts { from, to, matrices, .. } => {
            let (Some((width, data)), Some(routing)) = (gradients.take(*to), kept.routing(0)) else { return };
            let mut back = Vec::new();
            for (expert, matrix) in matrices.iter().enumerate() {
                let at = routing.rows(expert);
                if !at.is_empty() {
                    let data = &data[at.start * width..at.end * width];
                    hear(matrix, data);
                    back.extend(weights.product_back(matrix, data));
                }
            }
            gradients.add(*from, kept.widths[0], back);
        }
        Op::Scatter { from, routing, to } => scatter_back(kept, gradients, (*from, *routing, *to)),
        Op::Convolve { from, to, weight, width, .. } => {
            let Some((columns, data)) = gradients.take(*to) else { return };
            let back = join::convolve_back(&data, columns, weights.small(weight), *width);
            gradients.add(*from, columns, back);
        }
        // A model with such a step is refused before.
        Op::Delta { to, .. } => drop(gradients.take(*to)),
    }
}

/// Rows of experts, and what each of them weighs.
fn scatter_back(kept: &Kept, gradients: &mut Gradients, (from, choice, to): (Slot, Slot, Slot)) {
    let (Some((width, data)), Some(routing)) = (gradients.take(to), kept.routing(1)) else { return };
    let (mut back, mut of_weights) = (Vec::with_capacity(kept.rows(0).len()), Vec::new());
    let rows = kept.rows(0).chunks_exact(width);
    for (row, (token, weight)) in rows.zip(routing.tokens.iter().zip(&routing.weights)) {
        let gradient = &data[token * width..(token + 1) * width];
        back.extend(gradient.iter().map(|x| x * weight));
        of_weights.push(slopes::dot(row, gradient));
    }
    gradients.add(from, width, back);
    gradients.add(choice, 1, of_weights);
}

/// Replaces gradients of normed rows with those of the rows.
pub(super) fn norm_back(weights: &LayerWeights, norm: &Norm, rows: &[f32], gradients: &mut [f32]) {
    let weight = norm.weight.as_deref().map(|name| weights.small(name));
    let rows = rows.chunks_exact(norm.width).zip(gradients.chunks_exact_mut(norm.width));
    for (index, (row, gradient)) in rows.enumerate() {
        let weight = weight.map(|all| &all[part(index, norm.width, norm.columns, all.len())]);
        slopes::norm_back(row, gradient, norm.kind, weight, norm.epsilon);
    }
}
