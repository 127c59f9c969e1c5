//! The backward pass: gradients of what a layer computes, by hand for each step of a program.
//!
//! Weights have no gradients: rounding needs only those of the outputs of matrices. A window runs through a layer once more,
//! from the stream that was kept before it, and keeps what its steps need on the way back.

use std::fs::File;
use std::ops::Range;

use rayon::prelude::*;

use super::batches::batches;
use super::code;
use super::description::Description;
use super::execute::{LayerWeights, Values, Window};
use super::op::{Op, Program, Slot};
use super::outputs::OutputMoments;
use super::parts::Linear;
use super::pass::{Hidden, Pass, Tell};
use super::rope::Angles;
use super::weights::Weights;
use crate::finding::Finding;

mod attend;
mod join;
mod labels;
mod route;
mod rows;
mod slopes;

/// Is told of the gradients of each product: its matrix, and rows of gradients of its outputs.
pub(super) type HearBack<'a> = dyn FnMut(&Linear, &[f32]) + 'a;

/// Whether a model can be walked backwards from the tokens that it predicts.
///
/// # Errors
/// It has a step without a way back, or predicts no next token.
pub fn can_go_back(description: &Description) -> Result<(), Finding> {
    let refuse = |why: String| {
        Err(Finding::error(
            code::NO_GRADIENTS,
            format!("{why}, so that there are no gradients of its answers"),
        )
        .help("Set `rounding: gptq`, which needs none."))
    };
    let family = &description.family;
    let predicts = description.head.as_ref().is_some_and(|head| head.transform.is_none());
    if description.is_encoder || !predicts {
        return refuse(format!("a model of the family `{family}` predicts no next token"));
    }
    let has_delta = |program: &Program| program.ops.iter().any(|op| matches!(op, Op::Delta { .. }));
    match description.layers.iter().position(has_delta) {
        Some(layer) => {
            refuse(format!("layer {layer} of a model of the family `{family}` has the gated delta rule"))
        }
        None => Ok(()),
    }
}

/// How a model is walked backwards.
pub struct Backwards<'a> {
    /// The model's weights.
    pub weights: &'a dyn Weights,
    /// Draws the answers.
    pub seed: u64,
    /// The matrices of each layer, by its number, whose outputs' gradients are summed, and the outputs of a block of each.
    pub blocks: &'a dyn Fn(usize, &Linear) -> Option<usize>,
    /// Is told of windows that are through a layer, by its number: each is told of once on the way forwards, and once on the
    /// way back.
    pub tell: &'a (dyn Fn(usize, usize) -> Result<(), Finding> + Sync),
}

impl Pass<'_> {
    /// Moments of the gradients of outputs over all windows: forwards with the streams before all layers kept, and from
    /// answers that the model itself would give backwards.
    ///
    /// `file` gives room for the streams of one layer, none if that is memory. `keep` is given what was summed, the last
    /// layer first.
    ///
    /// # Errors
    /// As [`can_go_back`] and [`Pass::layer`], or `file`, `keep` or `tell` say so.
    pub fn output_moments(
        &self,
        how: &Backwards<'_>,
        file: &mut dyn FnMut() -> Result<Option<File>, Finding>,
        keep: &mut dyn FnMut(usize, OutputMoments) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        can_go_back(self.description())?;
        let Backwards { weights, seed, blocks, tell } = *how;
        let programs = &self.description().layers;
        let mut streams = vec![self.embed(weights, file()?)?];
        for (layer, program) in programs.iter().enumerate() {
            let own = LayerWeights::read(program, weights)?;
            let mut next = self.room(file()?);
            self.layer_to(layer, &own, &streams[layer], &mut next, &|windows| tell(layer, windows))?;
            streams.push(next);
        }
        let mut gradients = self.room(file()?);
        if let Some(last) = streams.pop() {
            let end = programs.len().saturating_sub(1);
            self.answers_back(weights, &last, seed, &mut gradients, &|_| tell(end, 0))?;
        }
        for (layer, program) in programs.iter().enumerate().rev() {
            let Some(inputs) = streams.pop() else { continue };
            let own = LayerWeights::read(program, weights)?;
            let chosen = program.matrices().filter_map(|matrix| Some((matrix, blocks(layer, matrix)?)));
            let mut outputs = OutputMoments::of(chosen);
            let tell = |windows| tell(layer, windows);
            self.layer_back((layer, &own), &inputs, &mut gradients, &mut outputs, &tell)?;
            keep(layer, outputs)?;
        }
        Ok(())
    }

    /// Takes gradients of the stream after a layer to those of the stream before it, and adds those of the outputs of its
    /// matrices to `outputs`. `inputs` is the stream before the layer.
    ///
    /// # Errors
    /// Gradients are not finite, a file cannot be read or written, or `tell` says so.
    pub fn layer_back(
        &self,
        (layer, weights): (usize, &LayerWeights),
        inputs: &Hidden,
        gradients: &mut Hidden,
        outputs: &mut OutputMoments,
        tell: Tell<'_>,
    ) -> Result<(), Finding> {
        let program = &self.description().layers[layer];
        for range in batches(self.windows()) {
            let shared: &OutputMoments = outputs;
            let before: &Hidden = gradients;
            let one = |index: usize| -> Result<_, Finding> {
                let angles = self.angles(index);
                let tape = Tape::record(program, self.window(layer, inputs, index)?, weights, angles);
                let mut heard = Vec::new();
                let gradient = tape.back(weights, angles, before.get(index)?, &mut |matrix, rows| {
                    if let Some(place) = shared.place(matrix) {
                        heard.push((place, rows.to_vec()));
                    }
                });
                Ok((gradient, heard))
            };
            let done: Result<Vec<_>, Finding> = range.clone().into_par_iter().map(one).collect();
            let mut all_heard = Vec::new();
            for (index, (gradient, heard)) in range.clone().zip(done?) {
                if gradient.iter().any(|x| !x.is_finite()) {
                    return Err(not_finite(layer, index));
                }
                gradients.put(index, gradient)?;
                all_heard.extend(heard);
            }
            outputs.add(&all_heard);
            tell(range.len())?;
        }
        outputs.complete();
        Ok(())
    }
}

fn not_finite(layer: usize, window: usize) -> Finding {
    Finding::error(
        code::NOT_FINITE,
        format!("the gradients before layer {layer} are not finite in sample {window}"),
    )
    .help("Set `rounding: gptq`, which needs none.")
}

/// What a step needs on the way back: what the slots that it reads held before it.
struct Kept {
    /// Widths of the rows in these slots.
    widths: Vec<usize>,
    /// What they held, if the way back depends on it.
    values: Vec<Values>,
}

/// A window's way through a layer.
struct Tape<'a> {
    program: &'a Program,
    tokens: usize,
    hidden: usize,
    kept: Vec<Kept>,
}

/// Whether the way back through a step depends on what it read.
fn depends(op: &Op) -> bool {
    match op {
        Op::Norm { .. }
        | Op::Attend { .. }
        | Op::Gate { .. }
        | Op::Activate { .. }
        | Op::Clamp { .. }
        | Op::Multiply { .. }
        | Op::Route { .. }
        | Op::Experts { .. }
        | Op::Gather { .. }
        | Op::Scatter { .. }
        | Op::Delta { .. } => true,
        Op::Linear { .. }
        | Op::Split { .. }
        | Op::Join { .. }
        | Op::Deal { .. }
        | Op::Rope { .. }
        | Op::Temper { .. }
        | Op::Add { .. }
        | Op::ScaleBy { .. }
        | Op::Copy { .. }
        | Op::Convolve { .. } => false,
    }
}

impl<'a> Tape<'a> {
    fn record(program: &'a Program, mut window: Window, weights: &LayerWeights, angles: &[Angles]) -> Self {
        let (tokens, hidden) = (window.tokens(), window.width(0));
        let mut kept = Vec::with_capacity(program.ops.len());
        for (index, op) in program.ops.iter().enumerate() {
            let reads = op.reads();
            let mut values = Vec::new();
            if depends(op) {
                // Rows that experts get are not needed, only which.
                let needs = |slot: &&Slot| match op {
                    Op::Gather { from, .. } | Op::Experts { from, .. } => *slot != from,
                    _ => true,
                };
                values.extend(reads.iter().filter(needs).map(|slot| window.values(*slot).clone()));
            }
            kept.push(Kept { widths: reads.iter().map(|slot| window.width(*slot)).collect(), values });
            window.run(program, weights, angles, index + 1, &mut |_, _, _| {});
            if let Op::Route { to, .. } = op {
                kept[index].values.push(window.values(*to).clone());
            }
        }
        Self { program, tokens, hidden, kept }
    }

    /// From the gradient of the stream after the layer to that of the stream before it.
    fn back(
        self,
        weights: &LayerWeights,
        angles: &[Angles],
        gradient: Vec<f32>,
        hear: &mut HearBack<'_>,
    ) -> Vec<f32> {
        let mut slots = Gradients { tokens: self.tokens, slots: vec![None; self.program.slots.max(1)] };
        slots.slots[0] = Some((self.hidden, gradient));
        for (op, kept) in self.program.ops.iter().zip(self.kept).rev() {
            rows::step_back(op, &kept, &mut slots, weights, angles, hear);
        }
        slots.take(0).map_or_else(|| vec![0.0; self.tokens * self.hidden], |(_, data)| data)
    }
}

/// Gradients of what slots hold; none where nothing depends on it.
struct Gradients {
    tokens: usize,
    slots: Vec<Option<(usize, Vec<f32>)>>,
}

impl Gradients {
    fn take(&mut self, slot: Slot) -> Option<(usize, Vec<f32>)> {
        self.slots[slot].take()
    }

    /// Adds to what is known of a slot.
    fn add(&mut self, slot: Slot, width: usize, data: Vec<f32>) {
        match &mut self.slots[slot] {
            Some((_, known)) => known.iter_mut().zip(data).for_each(|(known, x)| *known += x),
            empty => *empty = Some((width, data)),
        }
    }

    /// Changes the gradient of a slot, if there is one.
    fn change(&mut self, slot: Slot, with: impl FnOnce(usize, &mut [f32])) {
        if let Some((width, data)) = &mut self.slots[slot] {
            with(*width, data);
        }
    }
}

/// The columns of a norm's weight that belong to a run of columns.
fn part(index: usize, width: usize, columns: usize, all: usize) -> Range<usize> {
    let at = index * width % columns.max(1);
    at.min(all)..(at + width).min(all)
}

#[cfg(test)]
mod tests;
