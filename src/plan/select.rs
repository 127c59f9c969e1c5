//! Selection of the tensors to quantize, their scheme, and the rule that decided. Pure: it uses names, shapes and the
//! recipe only.
//!
//! Every tensor is judged alone here. Modules that engines fuse are reconciled afterwards in
//! [`crate::plan::fused_modules`].

use std::collections::HashMap;
use std::sync::Arc;

pub(super) use super::decision::Decisions;
pub(crate) use super::decision::{Action, Decision, Origin, QuantSpec, Rounding, Rule};
use crate::ids::{IdVec, StageId, TensorId};
use crate::layer::LayerType;
use crate::layer::pattern::Pattern;
use crate::model::{LayerClass, ModelFolder, TensorInfo};
use crate::quant::{Bits, FloatType, Mse, Observer, Scheme, Storage};
use crate::recipe::Recipe;
use crate::stage::resolve_skips::SkipDefaults;
use crate::stage::{
    ActivationScheme, ObserverChoice, Quantize, ResolveSkips, RoundingChoice, ScaleDtype, ScalesChoice, Stage,
};

/// Layer types that the built-in lists skip, with the reason in words.
pub(crate) const DEFAULT_SKIPS: &[(LayerType, &str)] = &[
    (LayerType::Embedding, "embedding"),
    (LayerType::EmbeddingBag, "embedding"),
    (LayerType::LayerNorm, "norm"),
    (LayerType::RMSNorm, "norm"),
    (LayerType::BatchNorm1d, "norm"),
    (LayerType::BatchNorm2d, "norm"),
    (LayerType::Router, "router"),
    (LayerType::Head, "output head"),
    (LayerType::Tower, "tower"),
    (LayerType::Projector, "projector"),
    (LayerType::MTP, "extra prediction layer"),
    (LayerType::Indexer, "indexer"),
    (LayerType::Gating, "gating"),
    (LayerType::Hyper, "hyper-connection"),
    (LayerType::PerLayer, "per-layer projection"),
    (LayerType::Adapter, "adapter"),
    (LayerType::Modulation, "modulation"),
    (LayerType::Outside, "outside of the blocks"),
];

/// Roles that say where in the model a module is, and not what it does.
const PLACES: [LayerType; 3] = [LayerType::Tower, LayerType::Projector, LayerType::Outside];

/// The module that the built-in lists name.
pub(crate) const DEFAULT_SKIP_NAME: &str = "lm_head";

/// The int4 list skips modules with strictly fewer parameters than this.
pub(crate) const DEFAULT_INT4_THRESHOLD: u64 = 512;

/// A rule that applies to a tensor, for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The rule.
    pub rule: Rule,
    /// The action that the rule asks for.
    pub asks: String,
}

/// The name that patterns are matched against: the module. If the tensor is not a weight, a bias or another named
/// parameter of a module, it is the whole name (a stack of experts such as `mlp.experts.gate_up_proj`).
#[must_use]
pub(crate) fn subject(tensor: &TensorInfo) -> &str {
    const PARAMETERS: [&str; 12] = [
        "weight",
        "bias",
        "weight_scale",
        "weight_scale_inv",
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "scales",
        "input_scale",
        "e_score_correction_bias",
        "A_log",
        "dt_bias",
    ];
    if PARAMETERS.contains(&tensor.parameter()) { tensor.module() } else { &tensor.name }
}

/// The shape of a tensor as a matrix [rows, columns] whose rows are output channels. None if it has fewer than two
/// dimensions.
#[must_use]
pub(crate) fn matrix_shape(tensor: &TensorInfo) -> Option<(u64, u64)> {
    let (first, rest) = tensor.shape.split_first()?;
    (!rest.is_empty()).then(|| (*first, rest.iter().product()))
}

/// One quantize stage with the skips that govern it.
pub(super) struct QuantizeStage<'r> {
    pub index: StageId,
    pub parameters: &'r dyn Quantize,
    skips_index: Option<StageId>,
    skips: std::borrow::Cow<'r, ResolveSkips>,
    list: SkipDefaults,
    /// Positions of targets that name nothing but parts beside the language model, and so ask for them.
    asking: Vec<usize>,
}

impl<'r> QuantizeStage<'r> {
    /// The quantize stages of a recipe, in order, for the items of a model.
    pub(super) fn all(recipe: &'r Recipe, items: &[Item<'_>]) -> Vec<Self> {
        let mut governing: Option<(StageId, &ResolveSkips)> = None;
        let mut stages = Vec::new();
        for (index, stage) in recipe.stages.numbered() {
            if let Stage::ResolveSkips(skips) = stage {
                governing = Some((index, skips));
            }
            let Some(parameters) = stage.quantize() else { continue };
            let skips = match governing {
                Some((_, skips)) => std::borrow::Cow::Borrowed(skips),
                None => std::borrow::Cow::Owned(ResolveSkips::default()),
            };
            let list = match skips.defaults {
                SkipDefaults::Auto if parameters.bits() == 4 => SkipDefaults::Int4,
                SkipDefaults::Auto => SkipDefaults::Int8,
                given => given,
            };
            stages.push(Self {
                index,
                parameters,
                skips_index: governing.map(|(index, _)| index),
                skips,
                list,
                asking: asking(parameters, items),
            });
        }
        stages
    }

    /// The `resolve-skips` stage that governs this stage, if there is one.
    pub(super) fn skips(&self) -> Option<(StageId, &ResolveSkips)> {
        self.skips_index.map(|index| (index, self.skips.as_ref()))
    }

    fn own(&self, key: &str, position: Option<usize>, value: &str, reason: String) -> Rule {
        let pointer = self.skips_index.map(|stage| match position {
            Some(position) => format!("/stages/{stage}/{key}/{position}").into(),
            None => format!("/stages/{stage}/{key}").into(),
        });
        Rule { pointer, text: format!("{key}: {value}").into(), reason: reason.into(), origin: Origin::Skip }
    }

    fn built_in(&self, what: &str, reason: &str) -> Rule {
        let list = if self.list == SkipDefaults::Int4 { "int4" } else { "int8" };
        Rule {
            pointer: None,
            text: format!("built-in {list} list: {what}").into(),
            reason: reason.into(),
            origin: Origin::BuiltIn,
        }
    }

    /// Reports every rule by which this stage would skip the tensor, in order of precedence, including the rules that
    /// were overridden.
    fn skip_rules(&self, item: &Item<'_>, mut found: impl FnMut(Rule, bool)) {
        let skips = self.skips.as_ref();
        for (key, patterns) in [
            ("modules_to_not_convert", &skips.modules_to_not_convert),
            ("skip_layer_names", &skips.skip_layer_names),
        ] {
            for (position, pattern) in patterns.iter().enumerate() {
                if item.hit_by(pattern) {
                    let reason = format!("{key}: {}", pattern.written());
                    found(self.own(key, Some(position), pattern.written(), reason), false);
                }
            }
        }
        for (position, layer_type) in skips.skip_layer_types.iter().enumerate() {
            if item.is(*layer_type) {
                let name = layer_type.name();
                let reason = format!("skip_layer_types: {name}");
                found(self.own("skip_layer_types", Some(position), name, reason), false);
            }
        }
        if let Some(threshold) = skips.skip_param_threshold
            && item.parameters < threshold
        {
            let reason = format!("fewer than {threshold} parameters");
            found(self.own("skip_param_threshold", None, &threshold.to_string(), reason), false);
        }
        if self.list == SkipDefaults::None {
            return;
        }
        let taken_back = skips.quantize_anyway.iter().any(|pattern| item.hit_by(pattern));
        for (layer_type, reason) in DEFAULT_SKIPS {
            if item.is(*layer_type) {
                let is_asked_for = PLACES.contains(layer_type) && self.asks_for(item);
                found(self.built_in(layer_type.name(), reason), taken_back || is_asked_for);
            }
        }
        if item.is_head_name() && !item.is(LayerType::Head) {
            found(self.built_in(DEFAULT_SKIP_NAME, "output head"), taken_back);
        }
        if self.list == SkipDefaults::Int4
            && skips.skip_param_threshold.is_none()
            && item.parameters < DEFAULT_INT4_THRESHOLD
        {
            let what = format!("fewer than {DEFAULT_INT4_THRESHOLD} parameters");
            found(self.built_in(&what, &what), taken_back);
        }
    }

    /// Whether a target names a part beside the language model on purpose.
    fn asks_for(&self, item: &Item<'_>) -> bool {
        let targets = self.parameters.targets();
        self.asking.iter().any(|&position| item.hit_by(&targets[position]))
    }

    /// Whether the built-in lists apply to a tensor: there are some, and `quantize_anyway` does not override them.
    pub(super) fn has_default_skips_for(&self, item: &Item<'_>) -> bool {
        let taken_back = self.skips.quantize_anyway.iter().any(|pattern| item.hit_by(pattern));
        self.list != SkipDefaults::None && !taken_back
    }

    fn target(&self, item: &Item<'_>) -> Option<Rule> {
        let targets = self.parameters.targets();
        let position = targets.iter().position(|pattern| item.hit_by(pattern))?;
        Some(Rule {
            pointer: Some(format!("/stages/{}/targets/{position}", self.index).into()),
            text: format!("targets: {}", targets[position].written()).into(),
            reason: "target".into(),
            origin: Origin::Target,
        })
    }
}

/// The targets that name something beside the language model and nothing of it: `talker`, `Tower`, and not `mlp` or `Linear`.
fn asking(parameters: &dyn Quantize, items: &[Item<'_>]) -> Vec<usize> {
    let is_beside = |item: &&Item<'_>| PLACES.iter().any(|place| item.is(*place));
    if !items.iter().any(|item| is_beside(&item)) {
        return Vec::new();
    }
    let targets = parameters.targets().iter().enumerate();
    let asks = targets.filter(|(_, target)| {
        let mut hits = items.iter().filter(|item| item.can_be_quantized() && item.hit_by(target)).peekable();
        hits.peek().is_some() && hits.all(|item| is_beside(&item))
    });
    asks.map(|(position, _)| position).collect()
}

/// A tensor as the rules see it.
pub(crate) struct Item<'m> {
    pub tensor: &'m TensorInfo,
    pub class: &'m LayerClass,
    pub subject: &'m str,
    parameters: u64,
    is_weight: bool,
}

impl Item<'_> {
    pub(crate) fn is(&self, layer_type: LayerType) -> bool {
        self.class.kind == layer_type || self.class.role == Some(layer_type)
    }

    fn is_head_name(&self) -> bool {
        self.subject.rsplit('.').next() == Some(DEFAULT_SKIP_NAME)
    }

    /// A skip covers everything below the module that it names.
    pub(crate) fn hit_by(&self, pattern: &Pattern) -> bool {
        match pattern.layer_type() {
            Some(layer_type) => self.is(layer_type),
            None => pattern.matches(self.subject),
        }
    }

    /// Whether the tensor can be treated as a matrix of floating-point weights at all.
    fn can_be_quantized(&self) -> bool {
        self.is_weight
            && matrix_shape(self.tensor).is_some()
            && self.class.kind != LayerType::Other
            && float_type(self.tensor).is_some()
    }
}

/// The type in which a tensor's weights are computed with. None if it does not hold floating-point numbers.
#[must_use]
pub(crate) fn float_type(tensor: &TensorInfo) -> Option<FloatType> {
    use crate::model::Dtype;
    match tensor.dtype {
        Dtype::F32 | Dtype::F64 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::Bf16 => Some(FloatType::Bf16),
        _ => None,
    }
}

/// The items of a model, in the order of its tensors.
pub(crate) fn items<'m>(
    model: &'m ModelFolder,
    classes: &'m IdVec<TensorId, LayerClass>,
) -> IdVec<TensorId, Item<'m>> {
    let mut biases: HashMap<&str, u64> = HashMap::new();
    for tensor in &model.tensors {
        if tensor.parameter() == "bias" {
            biases.insert(tensor.module(), tensor.elements());
        }
    }
    model
        .tensors
        .iter()
        .zip(classes)
        .map(|(tensor, class)| {
            let is_weight = tensor.parameter() == "weight" || class.kind == LayerType::Experts;
            let bias = if is_weight { biases.get(tensor.module()).copied().unwrap_or(0) } else { 0 };
            Item { tensor, class, subject: subject(tensor), parameters: tensor.elements() + bias, is_weight }
        })
        .collect()
}

/// Decides about one tensor. `touches`, if given, receives every rule that applies to it.
pub(super) fn judge(
    stages: &[QuantizeStage<'_>],
    item: &Item<'_>,
    known: &mut Decisions,
    mut touches: Option<&mut Vec<Touch>>,
) -> Decision {
    let mut touch = |rule: &Rule, asks: String| {
        if let Some(touches) = touches.as_deref_mut() {
            touches.push(Touch { rule: rule.clone(), asks });
        }
    };
    let mut decision: Option<(Action, Rule)> = None;
    let mut first_skip: Option<Rule> = None;
    for stage in stages {
        let mut skip: Option<Rule> = None;
        stage.skip_rules(item, |rule, taken_back| {
            let asks =
                if taken_back { "skip, but the recipe takes it back".to_owned() } else { "skip".to_owned() };
            touch(&rule, asks);
            if !taken_back && skip.is_none() {
                skip = Some(rule);
            }
        });
        let target = stage.target(item).filter(|_| item.can_be_quantized());
        if let Some(rule) = &target {
            touch(rule, format!("quantize to {}", stage.parameters.kind()));
        }
        if let Some(rule) = skip {
            first_skip.get_or_insert(rule);
        } else if let Some(rule) = target
            && decision.is_none()
        {
            decision = Some((Action::Quantize(Box::new(spec(stage, item.tensor))), rule));
        }
    }
    let (action, rule) =
        decision.unwrap_or_else(|| (Action::Keep, first_skip.unwrap_or_else(|| not_targeted(item))));
    known.of(action, rule)
}

fn not_targeted(item: &Item<'_>) -> Rule {
    let reason: Arc<str> = if item.can_be_quantized() {
        format!("not targeted: {}", item.class.kind.name()).into()
    } else if item.tensor.parameter() == "bias" {
        "bias".into()
    } else {
        "not a weight matrix".into()
    };
    Rule { pointer: None, text: reason.clone(), reason, origin: Origin::None }
}

fn spec(stage: &QuantizeStage<'_>, tensor: &TensorInfo) -> QuantSpec {
    let parameters = stage.parameters;
    let source = float_type(tensor).unwrap_or(FloatType::F32);
    let activations = parameters.activations();
    let (mse, imatrix) = (Mse::default(), Mse::imatrix());
    let signed = parameters.scales() == ScalesChoice::Signed;
    QuantSpec {
        stage: stage.index,
        scheme: Scheme {
            bits: if parameters.bits() == 4 { Bits::Four } else { Bits::Eight },
            symmetric: parameters.symmetric(),
            granularity: parameters.granularity(),
            scale_type: match parameters.scale_dtype() {
                ScaleDtype::Auto => source,
                ScaleDtype::F16 => FloatType::F16,
                ScaleDtype::Bf16 => FloatType::Bf16,
                ScaleDtype::F32 => FloatType::F32,
            },
            storage: match (parameters.floats(), activations) {
                (Some(floats), _) => floats,
                (None, ActivationScheme::None | ActivationScheme::DynamicTokenFp8) => Storage::Packed,
                (None, ActivationScheme::DynamicToken) => Storage::Plain,
            },
        },
        observer: match parameters.observer() {
            ObserverChoice::Minmax if signed => Observer::SignedMinmax,
            ObserverChoice::Minmax => Observer::Minmax,
            ObserverChoice::Mse => Observer::Mse(Mse {
                maxshrink: parameters.maxshrink().unwrap_or(mse.maxshrink),
                grid: parameters.grid().unwrap_or(mse.grid),
                norm: parameters.norm().unwrap_or(mse.norm),
                last: mse.last,
                signed,
            }),
            ObserverChoice::ImatrixMse => Observer::Mse(Mse {
                maxshrink: parameters.maxshrink().unwrap_or(imatrix.maxshrink),
                grid: parameters.grid().unwrap_or(imatrix.grid),
                norm: parameters.norm().unwrap_or(imatrix.norm),
                last: imatrix.last,
                signed,
            }),
            ObserverChoice::Percentile => Observer::Percentile(parameters.percentile().unwrap_or(99.9)),
        },
        rounding: match parameters.rounding() {
            RoundingChoice::Nearest => Rounding::Nearest,
            choice => Rounding::Calibrated {
                is_guided: choice == RoundingChoice::Guided,
                is_sequential: parameters.sequential().unwrap_or(true),
            },
        },
        activations,
        is_relabelled: false,
    }
}
