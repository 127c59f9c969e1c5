//! Decisions: what is done with each tensor, by which rule, and why.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::ids::StageId;
use crate::quant::{Granularity, Observer, Scheme};
use crate::stage::ActivationScheme;

/// A rule that decided about a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The place of the rule in the recipe, as a JSON pointer. None for built-in rules.
    pub pointer: Option<Arc<str>>,
    /// The rule in the recipe's words, such as `targets: Linear`.
    pub text: Arc<str>,
    /// Why, in a few words, the same for all tensors that are to be counted together.
    pub reason: Arc<str>,
    /// Its origin.
    pub origin: Origin,
}

/// The origin of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A target of a quantize stage.
    Target,
    /// A skip that the recipe asks for.
    Skip,
    /// A built-in skip, which must not split fused modules.
    BuiltIn,
    /// No rule: nothing asks for the tensor.
    None,
}

impl Rule {
    /// Whether the rule skips a tensor on purpose, rather than because no target matches it.
    #[must_use]
    pub fn is_skip(&self) -> bool {
        matches!(self.origin, Origin::Skip | Origin::BuiltIn)
    }
}

/// How the weights of a tensor become integers: scheme, observer and activations, and the stage that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantSpec {
    /// Index of the quantize stage in the recipe.
    pub stage: StageId,
    /// The scheme.
    pub scheme: Scheme,
    /// How ranges are chosen.
    pub observer: Observer,
    /// How codes are chosen.
    pub rounding: Rounding,
    /// How engines are told to quantize activations.
    pub activations: ActivationScheme,
    /// Re-labelled: its codes and scales are those of the source. Nothing is rounded, and the observer chooses nothing.
    pub is_relabelled: bool,
}

/// The rule that chooses codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each weight goes to the nearest code.
    Nearest,
    /// With second moments of the inputs.
    Calibrated {
        /// Whether those of the gradients of the outputs are used as well.
        is_guided: bool,
        /// Whether a layer's inputs are those of the model whose earlier layers are rounded.
        is_sequential: bool,
    },
}

impl Rounding {
    /// Its name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Calibrated { is_guided: false, .. } => "gptq",
            Self::Calibrated { is_guided: true, .. } => "guided",
        }
    }
}

impl QuantSpec {
    /// Whether codes are chosen before the weights are streamed, with the model's activations.
    #[must_use]
    pub fn is_calibrated(&self) -> bool {
        self.rounding != Rounding::Nearest
    }

    /// Whether they are chosen with gradients of the model's answers.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        matches!(self.rounding, Rounding::Calibrated { is_guided: true, .. })
    }

    /// How ranges and codes are chosen, in words.
    #[must_use]
    pub fn method(&self) -> String {
        match self.rounding {
            Rounding::Nearest => self.observer.to_string(),
            Rounding::Calibrated { is_sequential, .. } => {
                let alone = if is_sequential { "" } else { ", each layer for itself" };
                let signed = if self.observer.is_signed() { ", signed scales" } else { "" };
                format!("{}{alone}{signed}", self.rounding.name())
            }
        }
    }

    /// The SQNR in dB that the scheme reaches on Gaussian weights of a matrix [rows, columns]. None if it is not
    /// known, as with rounding that is about the outputs.
    #[must_use]
    pub fn expected_sqnr(&self, rows: u64, columns: u64) -> Option<f64> {
        if self.is_calibrated() {
            return None;
        }
        // With one scale per tensor, all weights share it. Otherwise it covers at most a row of this many weights.
        let together = match self.scheme.granularity {
            Granularity::Tensor => rows.checked_mul(columns)?,
            Granularity::Group(_) | Granularity::Channel | Granularity::Block(_) => columns,
        };
        self.scheme.expected_sqnr(&self.observer, usize::try_from(together).ok()?)
    }

    /// The same as if the observer were `minmax`, with scales of the same signs.
    #[must_use]
    pub fn expected_sqnr_of_minmax(&self, rows: u64, columns: u64) -> Option<f64> {
        let observer = if self.observer.is_signed() { Observer::SignedMinmax } else { Observer::Minmax };
        Self { observer, ..self.clone() }.expected_sqnr(rows, columns)
    }
}

/// The action on a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It is left in the source's type.
    Keep,
    /// Its weights are quantized.
    Quantize(Box<QuantSpec>),
}

/// What is done with a tensor, and why. Tensors of which the same was decided share it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision(Arc<Decided>);

/// What was decided about a tensor, or many.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// The action.
    pub action: Action,
    /// The rule that decided.
    pub rule: Rule,
}

impl Decision {
    /// Whether two tensors share it.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A decision that is not shared with others yet.
    pub(super) fn new(action: Action, rule: Rule) -> Self {
        Self(Arc::new(Decided { action, rule }))
    }
}

impl Deref for Decision {
    type Target = Decided;

    fn deref(&self) -> &Decided {
        &self.0
    }
}

/// Decisions that were made so far: millions of tensors share a few.
#[derive(Debug, Default)]
pub(super) struct Decisions(HashMap<Rule, Vec<Decision>>);

impl Decisions {
    /// The decision for this action and rule.
    pub(super) fn of(&mut self, action: Action, rule: Rule) -> Decision {
        if let Some(same) = self.0.get(&rule).into_iter().flatten().find(|decision| decision.action == action)
        {
            return same.clone();
        }
        let decision = Decision::new(action, rule.clone());
        self.0.entry(rule).or_default().push(decision.clone());
        decision
    }
}

impl Decided {
    /// The quantization spec, if the tensor is quantized.
    #[must_use]
    pub fn spec(&self) -> Option<&QuantSpec> {
        match &self.action {
            Action::Quantize(spec) => Some(spec),
            Action::Keep => None,
        }
    }
}
