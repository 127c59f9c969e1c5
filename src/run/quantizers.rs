//! The quantizers of a run: one for all pieces that are quantized alike.

use std::borrow::Cow;

use crate::plan::Plan;
use crate::plan::select::float_type;
use crate::quant::{FloatType, Isa, Observer, Quantizer, Scheme};

/// Quantizers, made once: a search for ranges prepares more than a tile should wait for.
pub(super) struct Quantizers<'p> {
    plan: &'p Plan,
    kinds: Vec<OfKind>,
    /// The kind of each piece of the plan; none where it is kept, or is none of this run's.
    of: Vec<Option<u32>>,
}

/// What pieces of one kind have in common.
struct OfKind {
    kind: Kind,
    quantizer: Quantizer,
    /// The first of them.
    first: usize,
}

/// What quantizers differ in: scheme, observer, type of the weights, columns.
type Kind = (Scheme, Observer, FloatType, usize);

impl<'p> Quantizers<'p> {
    /// Of some of a plan's pieces.
    pub(super) fn new(plan: &'p Plan, pieces: &[usize], isa: Isa) -> Self {
        let mut kinds: Vec<OfKind> = Vec::new();
        let mut of = vec![None; plan.pieces.len()];
        for &index in pieces {
            let Some(kind) = kind(plan, index) else { continue };
            let at = kinds.iter().position(|known| known.kind == kind).unwrap_or_else(|| {
                let (scheme, observer, source, columns) = kind;
                let quantizer = Quantizer::new(scheme, observer, source, columns, isa);
                kinds.push(OfKind { kind, quantizer, first: index });
                kinds.len() - 1
            });
            of[index] = Some(at as u32);
        }
        Self { plan, kinds, of }
    }

    /// The quantizer of a piece; none where it is kept.
    pub(super) fn of(&self, piece: usize) -> Option<Cow<'_, Quantizer>> {
        let OfKind { quantizer, .. } = &self.kinds[self.of[piece]? as usize];
        Some(match self.plan.weighing.of(piece) {
            Some(importance) => Cow::Owned(quantizer.clone().weighted(importance.clone())),
            None => Cow::Borrowed(quantizer),
        })
    }

    /// Whether a piece is the first of its kind.
    pub(super) fn is_first(&self, piece: usize) -> bool {
        self.of[piece].is_some_and(|kind| self.kinds[kind as usize].first == piece)
    }
}

fn kind(plan: &Plan, index: usize) -> Option<Kind> {
    let piece = &plan.pieces[index];
    let treatment = plan.decisions[piece.tensor()].treatment()?;
    let source = float_type(&plan.model.tensors[piece.tensor()])?;
    Some((treatment.scheme, treatment.observer, source, piece.matrix(&plan.model)?.cols as usize))
}
