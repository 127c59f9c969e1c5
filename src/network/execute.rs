//! Running a program over one window.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::attention::attend;
use super::code;
use super::math::{self, activate};
use super::op::{Op, Program, Slot};
use super::parts::{Linear, Norm, Part};
use super::product;
use super::recurrent::{Delta, convolve};
use super::rope::Angles;
use super::routing::{Routing, route};
use super::weights::Weights;
use crate::finding::Finding;

/// Is told of every product before it is made: its step, its matrix and its inputs, which it may change as engines do that
/// round them.
pub type Hear<'a> = dyn FnMut(usize, &Linear, &mut Cow<'_, [f32]>) + 'a;

/// The tensors of one layer, in memory.
#[derive(Debug, Clone, Default)]
pub struct LayerWeights {
    matrices: HashMap<(String, Part), Vec<f32>>,
    small: HashMap<String, Vec<f32>>,
}

impl LayerWeights {
    /// Reads all that a program needs.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn read(program: &Program, weights: &dyn Weights) -> Result<Self, Finding> {
        let mut layer = Self::default();
        for matrix in program.matrices() {
            layer.read_matrix(matrix, weights)?;
        }
        for name in program.small_tensors() {
            layer.read_small(name, weights)?;
        }
        Ok(layer)
    }

    pub(super) fn read_matrix(&mut self, matrix: &Linear, weights: &dyn Weights) -> Result<(), Finding> {
        let all = weights.shape(&matrix.tensor).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let rows = match matrix.part {
            Part::Whole => 0..all,
            Part::Expert(expert) => expert..expert + 1,
        };
        self.matrices.insert((matrix.tensor.clone(), matrix.part), weights.read(&matrix.tensor, rows)?);
        matrix.bias.as_ref().map_or(Ok(()), |bias| self.read_small(bias, weights))
    }

    pub(super) fn read_small(&mut self, name: &str, weights: &dyn Weights) -> Result<(), Finding> {
        if !self.small.contains_key(name) {
            let rows = weights.shape(name).and_then(|shape| shape.first().copied()).unwrap_or(1);
            self.small.insert(name.to_owned(), weights.read(name, 0..rows)?);
        }
        Ok(())
    }

    /// Puts other weights in the place of a matrix, as a rounding of it.
    pub fn replace(&mut self, matrix: &Linear, values: Vec<f32>) {
        self.matrices.insert((matrix.tensor.clone(), matrix.part), values);
    }

    /// The weights of a matrix, as they lie in its tensor.
    #[must_use]
    pub fn matrix(&self, matrix: &Linear) -> &[f32] {
        self.matrices.get(&(matrix.tensor.clone(), matrix.part)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn small(&self, name: &str) -> &[f32] {
        self.small.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn product(&self, matrix: &Linear, inputs: &[f32]) -> Vec<f32> {
        let bias = matrix.bias.as_ref().map(|name| {
            let bias = self.small(name);
            match matrix.part {
                Part::Whole => bias,
                Part::Expert(expert) => &bias[expert * matrix.rows..(expert + 1) * matrix.rows],
            }
        });
        product::linear(inputs, (matrix.rows, matrix.columns), self.matrix(matrix), matrix.layout, bias)
    }

    /// [`LayerWeights::product`] without its bias.
    pub(super) fn product_alone(&self, matrix: &Linear, inputs: &[f32]) -> Vec<f32> {
        product::linear(inputs, (matrix.rows, matrix.columns), self.matrix(matrix), matrix.layout, None)
    }

    /// Gradients of inputs from those of outputs.
    pub(super) fn product_back(&self, matrix: &Linear, gradients: &[f32]) -> Vec<f32> {
        product::linear_back(gradients, (matrix.rows, matrix.columns), self.matrix(matrix), matrix.layout)
    }

    pub(super) fn norm(&self, rows: &mut [f32], norm: &Norm) {
        let get = |name: &Option<String>| name.as_deref().map(|name| self.small(name));
        let (weight, bias) = (get(&norm.weight), get(&norm.bias));
        for (index, row) in rows.chunks_exact_mut(norm.width).enumerate() {
            let at = index * norm.width % norm.columns;
            let part = |all: &'_ [f32]| -> Range<usize> { at..(at + norm.width).min(all.len()) };
            let (weight, bias) = (weight.map(|w| &w[part(w)]), bias.map(|b| &b[part(b)]));
            math::norm(row, norm.kind, weight, bias, norm.epsilon);
        }
    }

    /// Bytes of the numbers it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.matrices.values().chain(self.small.values()).map(|values| values.len() * 4).sum()
    }
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Nothing, or nothing any more.
    None,
    /// Rows of a width.
    Rows {
        /// Columns.
        width: usize,
        /// Numbers, row by row.
        data: Vec<f32>,
    },
    /// Which tokens went to which experts.
    Routing(Routing),
}

/// One window on its way through a layer.
#[derive(Debug, Clone)]
pub struct Window {
    slots: Vec<Values>,
    tokens: usize,
    next: usize,
}

impl Window {
    /// A window at the start of a layer.
    #[must_use]
    pub fn new(program: &Program, stream: Vec<f32>, hidden: usize) -> Self {
        let tokens = stream.len() / hidden.max(1);
        let mut slots = vec![Values::None; program.slots.max(1)];
        slots[0] = Values::Rows { width: hidden, data: stream };
        Self { slots, tokens, next: 0 }
    }

    /// The stream, as it is now.
    #[must_use]
    pub fn stream(self) -> Vec<f32> {
        match self.slots.into_iter().next() {
            Some(Values::Rows { data, .. }) => data,
            _ => Vec::new(),
        }
    }

    /// The rows of a slot.
    #[must_use]
    pub fn rows(&self, slot: Slot) -> &[f32] {
        match &self.slots[slot] {
            Values::Rows { data, .. } => data,
            _ => &[],
        }
    }

    /// What a slot holds.
    pub(super) fn values(&self, slot: Slot) -> &Values {
        &self.slots[slot]
    }

    /// How many tokens it has.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn width(&self, slot: Slot) -> usize {
        match &self.slots[slot] {
            Values::Rows { width, .. } => *width,
            _ => 0,
        }
    }

    /// Which tokens went to which experts, if a slot holds it.
    #[must_use]
    pub fn routing(&self, slot: Slot) -> Option<&Routing> {
        match &self.slots[slot] {
            Values::Routing(routing) => Some(routing),
            _ => None,
        }
    }

    fn put(&mut self, slot: Slot, width: usize, data: Vec<f32>) {
        self.slots[slot] = Values::Rows { width, data };
    }

    fn take(&mut self, slot: Slot) -> (usize, Vec<f32>) {
        match std::mem::replace(&mut self.slots[slot], Values::None) {
            Values::Rows { width, data } => (width, data),
            _ => (0, Vec::new()),
        }
    }

    /// Runs all steps one by one, and gives the module of the product that made the first number that is not finite, or of the
    /// last product before the step that did.
    pub(super) fn first_broken(
        mut self,
        program: &Program,
        weights: &LayerWeights,
        angles: &[Angles],
    ) -> Option<String> {
        let is_broken = |data: &[f32]| data.iter().any(|x| !x.is_finite());
        let mut module = None;
        for (index, op) in program.ops.iter().enumerate() {
            // Products of this step, and how many numbers each has.
            let mut made = Vec::new();
            self.run(program, weights, angles, index + 1, &mut |_, matrix, inputs| {
                made.push((matrix.module().to_owned(), inputs.len() / matrix.columns * matrix.rows));
            });
            if let Op::Linear { to, .. } | Op::Experts { to, .. } = op {
                let mut rest = self.rows(*to);
                for (of, count) in made {
                    let (own, others) = rest.split_at(count.min(rest.len()));
                    (module, rest) = (Some(of), others);
                    if is_broken(own) {
                        return module;
                    }
                }
            } else if (0..self.slots.len()).any(|slot| is_broken(self.rows(slot))) {
                return module;
            }
        }
        module
    }

    /// Runs the steps from where the window stands up to, and without, step `until`. Slots that no further step reads are let
    /// go.
    pub(super) fn run(
        &mut self,
        program: &Program,
        weights: &LayerWeights,
        angles: &[Angles],
        until: usize,
        hear: &mut Hear<'_>,
    ) {
        while self.next < until.min(program.ops.len()) {
            let index = self.next;
            self.step(&program.ops[index], index, weights, angles, hear);
            for slot in &program.frees[index] {
                self.slots[*slot] = Values::None;
            }
            self.next += 1;
        }
    }

    #[expect(clippy::too_many_lines, reason = "one short arm a step")]
    fn step(
        &mut self,
        op: &Op,
        index: usize,
        weights: &LayerWeights,
        angles: &[Angles],
        hear: &mut Hear<'_>,
    ) {
        let tokens = self.tokens;
        match op {
            Op::Norm { from, to, norm } => {
                let (width, mut data) = if from == to {
                    self.take(*from)
                } else {
                    (self.width(*from), self.rows(*from).to_vec())
                };
                weights.norm(&mut data, norm);
                self.put(*to, width, data);
            }
            Op::Linear { from, to, matrix } => {
                let mut inputs = Cow::Borrowed(self.rows(*from));
                hear(index, matrix, &mut inputs);
                let products = weights.product(matrix, &inputs);
                self.put(*to, matrix.rows, products);
            }
            Op::Split { from, to, period } => self.split(*from, to, *period),
            Op::Join { left, right, to, heads, left_is_shared, right_is_shared } => {
                self.join((*left, *left_is_shared), (*right, *right_is_shared), *to, *heads);
            }
            Op::Deal { from, even, odd } => {
                let rows = self.rows(*from);
                let (evens, odds) = rows.as_chunks::<2>().0.iter().map(|[a, b]| (*a, *b)).unzip();
                let width = self.width(*from) / 2;
                self.put(*even, width, evens);
                self.put(*odd, width, odds);
            }
            Op::Rope { slot, rope, size, is_interleaved } => {
                let (width, mut data) = self.take(*slot);
                angles[*rope].turn(&mut data, width, *size, *is_interleaved);
                self.put(*slot, width, data);
            }
            Op::Temper { slot, scale, floor } => {
                let (width, mut data) = self.take(*slot);
                math::temper(&mut data, width, *scale, *floor);
                self.put(*slot, width, data);
            }
            Op::Attend { queries, keys, values, to, attention } => {
                let sinks = attention.sinks.as_deref().map(|name| weights.small(name));
                let (q, k, v) = (self.rows(*queries), self.rows(*keys), self.rows(*values));
                let out = attend(attention, tokens, q, k, v, sinks);
                self.put(*to, attention.heads * attention.value_size, out);
            }
            Op::Gate { gate, up, to, join } => {
                let (width, mut data) = self.take(*gate);
                math::join(&mut data, self.rows(*up), *join);
                self.put(*to, width, data);
            }
            Op::Activate { slot, with } => {
                let (width, mut data) = self.take(*slot);
                activate(&mut data, *with);
                self.put(*slot, width, data);
            }
            Op::Clamp { slot, limit } => {
                let (width, mut data) = self.take(*slot);
                data.iter_mut().for_each(|x| *x = x.clamp(-limit, *limit));
                self.put(*slot, width, data);
            }
            Op::Multiply { slot, with } => {
                let (width, mut data) = self.take(*slot);
                let by = self.rows(*with);
                // One number for this many columns.
                let shared = width / self.width(*with).max(1);
                data.chunks_mut(shared.max(1))
                    .zip(by)
                    .for_each(|(part, by)| part.iter_mut().for_each(|x| *x *= by));
                self.put(*slot, width, data);
            }
            Op::Add { from, to, factor } => {
                let (width, mut data) = self.take(*to);
                data.iter_mut().zip(self.rows(*from)).for_each(|(x, add)| *x += factor * add);
                self.put(*to, width, data);
            }
            Op::ScaleBy { slot, tensor } => {
                let factor = weights.small(tensor).first().copied().unwrap_or(1.0);
                let (width, mut data) = self.take(*slot);
                data.iter_mut().for_each(|x| *x *= factor);
                self.put(*slot, width, data);
            }
            Op::Copy { from, to } => self.slots[*to] = self.slots[*from].clone(),
            Op::Route { logits, to, router } => {
                let correction = router.correction.as_deref().map(|name| weights.small(name));
                self.slots[*to] = Values::Routing(route(router, self.rows(*logits), correction));
            }
            Op::Gather { from, routing, to } => {
                let (width, rows) = (self.width(*from), self.rows(*from));
                let chosen = self.routing(*routing).map_or(&[][..], |routing| &routing.tokens);
                let data = chosen
                    .iter()
                    .flat_map(|token| &rows[token * width..(token + 1) * width])
                    .copied()
                    .collect();
                self.put(*to, width, data);
            }
            Op::Experts { from, routing, to, matrices } => {
                let Some(routing) = self.routing(*routing) else { return };
                let (width, rows) = (self.width(*from), self.rows(*from));
                let mut products = Vec::new();
                for (expert, matrix) in matrices.iter().enumerate() {
                    let at = routing.rows(expert);
                    if at.is_empty() {
                        continue;
                    }
                    let mut inputs = Cow::Borrowed(&rows[at.start * width..at.end * width]);
                    hear(index, matrix, &mut inputs);
                    products.extend(weights.product(matrix, &inputs));
                }
                let width = matrices.first().map_or(0, |matrix| matrix.rows);
                self.put(*to, width, products);
            }
            Op::Scatter { from, routing, to } => {
                let Some(routing) = self.routing(*routing) else { return };
                let (width, rows) = (self.width(*from), self.rows(*from));
                let mut sums = vec![0.0; tokens * width];
                for (row, (token, weight)) in
                    rows.chunks_exact(width).zip(routing.tokens.iter().zip(&routing.weights))
                {
                    let sums = &mut sums[token * width..(token + 1) * width];
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * weight);
                }
                self.put(*to, width, sums);
            }
            Op::Convolve { from, to, weight, bias, width } => {
                let columns = self.width(*from);
                let bias = bias.as_deref().map(|name| weights.small(name));
                let data = convolve(self.rows(*from), columns, weights.small(weight), bias, *width);
                self.put(*to, columns, data);
            }
            Op::Delta {
                queries,
                keys,
                values,
                beta,
                decay,
                to,
                rates,
                offset,
                heads,
                key_heads,
                size,
                value_size,
            } => {
                let delta = Delta {
                    queries: self.rows(*queries),
                    keys: self.rows(*keys),
                    values: self.rows(*values),
                    beta: self.rows(*beta),
                    decay: self.rows(*decay),
                    rates: weights.small(rates),
                    offset: weights.small(offset),
                    heads: *heads,
                    shared: heads / key_heads,
                    size: *size,
                    value_size: *value_size,
                };
                let data = delta.run(tokens);
                self.put(*to, heads * value_size, data);
            }
        }
    }

    fn split(&mut self, from: Slot, to: &[(Slot, usize)], period: usize) {
        let rows = self.rows(from);
        let repeats = self.width(from) / period;
        let mut start = 0;
        let mut parts = Vec::with_capacity(to.len());
        for (slot, width) in to {
            let data: Vec<f32> =
                rows.chunks_exact(period).flat_map(|row| &row[start..start + width]).copied().collect();
            start += width;
            parts.push((*slot, width * repeats, data));
        }
        for (slot, width, data) in parts {
            self.put(slot, width, data);
        }
    }

    fn join(
        &mut self,
        (left, left_shared): (Slot, bool),
        (right, right_shared): (Slot, bool),
        to: Slot,
        heads: usize,
    ) {
        let side = |slot: Slot, is_shared: bool| {
            let width = self.width(slot);
            (self.rows(slot), width, if is_shared { width } else { width / heads }, is_shared)
        };
        let sides = [side(left, left_shared), side(right, right_shared)];
        let width = heads * (sides[0].2 + sides[1].2);
        let mut data = Vec::with_capacity(self.tokens * width);
        for token in 0..self.tokens {
            for head in 0..heads {
                for (rows, width, part, is_shared) in sides {
                    let at = token * width + if is_shared { 0 } else { head * part };
                    data.extend_from_slice(&rows[at..at + part]);
                }
            }
        }
        self.put(to, width, data);
    }
}

/// Where a stream stops being numbers: the first token that has one that is none.
pub(super) fn first_not_finite(stream: &[f32], hidden: usize) -> Option<usize> {
    // The sum of all is finite unless one is not, or they are huge.
    if stream.iter().map(|x| x * 0.0).sum::<f32>() == 0.0 {
        return None;
    }
    stream.chunks_exact(hidden).position(|row| row.iter().any(|x| !x.is_finite()))
}

/// The error of activations that are no numbers. `module` made the first of them, or the last product before them.
pub(super) fn not_finite(layer: usize, window: usize, token: usize, module: Option<&str>) -> Finding {
    let module = module.map_or(String::new(), |module| format!(", since `{module}`"));
    Finding::error(
        code::NOT_FINITE,
        format!("the stream after layer {layer} is not finite at token {token} of sample {window}{module}"),
    )
    .help("Look whether the checkpoint is whole: a source model whose own activations overflow in F32 cannot be calibrated.")
}
