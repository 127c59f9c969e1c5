//! Listeners to a pass: what is told of the inputs of every product.

use std::borrow::Cow;

use super::parts::Linear;
use crate::finding::Finding;

/// Windows that are run before what was heard of them is kept: a fixed number, so that sums do not depend on threads.
const BLOCK: usize = 32;

/// Something that is told of the inputs of every product.
pub trait Listener: Sync {
    /// What is heard of one window in one layer.
    type Heard: Send;

    /// Before a window runs through a layer.
    fn start(&self) -> Self::Heard;

    /// Before a product is made: rows of inputs, [rows, columns of the matrix]. They may be changed, as engines round them.
    fn hear(&self, heard: &mut Self::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>);

    /// What was heard of some windows, in their order.
    ///
    /// # Errors
    /// As the listener says; the pass ends with it.
    fn keep(&mut self, heard: Vec<Self::Heard>) -> Result<(), Finding>;

    /// How many windows are heard of before they are kept. Must not depend on threads.
    fn block(&self) -> usize {
        BLOCK
    }
}

impl<L: Listener> Listener for &mut L {
    type Heard = L::Heard;

    fn start(&self) -> L::Heard {
        L::start(self)
    }

    fn hear(&self, heard: &mut L::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        L::hear(self, heard, matrix, inputs);
    }

    fn keep(&mut self, heard: Vec<L::Heard>) -> Result<(), Finding> {
        L::keep(self, heard)
    }

    fn block(&self) -> usize {
        L::block(self)
    }
}

/// A listener, if there is one.
impl<L: Listener> Listener for Option<L> {
    type Heard = Option<L::Heard>;

    fn start(&self) -> Self::Heard {
        self.as_ref().map(L::start)
    }

    fn hear(&self, heard: &mut Self::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        if let (Some(own), Some(heard)) = (self, heard) {
            own.hear(heard, matrix, inputs);
        }
    }

    fn keep(&mut self, heard: Vec<Self::Heard>) -> Result<(), Finding> {
        self.as_mut().map_or(Ok(()), |own| own.keep(heard.into_iter().flatten().collect()))
    }

    fn block(&self) -> usize {
        self.as_ref().map_or(BLOCK, L::block)
    }
}

/// Two listeners, one after the other.
impl<A: Listener, B: Listener> Listener for (A, B) {
    type Heard = (A::Heard, B::Heard);

    fn start(&self) -> Self::Heard {
        (self.0.start(), self.1.start())
    }

    fn hear(&self, heard: &mut Self::Heard, matrix: &Linear, inputs: &mut Cow<'_, [f32]>) {
        self.0.hear(&mut heard.0, matrix, inputs);
        self.1.hear(&mut heard.1, matrix, inputs);
    }

    fn keep(&mut self, heard: Vec<Self::Heard>) -> Result<(), Finding> {
        let (first, second) = heard.into_iter().unzip();
        self.0.keep(first)?;
        self.1.keep(second)
    }

    fn block(&self) -> usize {
        self.0.block().min(self.1.block())
    }
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Listener for Silent {
    type Heard = ();

    fn start(&self) {}

    fn hear(&self, (): &mut (), _: &Linear, _: &mut Cow<'_, [f32]>) {}

    fn keep(&mut self, _: Vec<()>) -> Result<(), Finding> {
        Ok(())
    }
}
