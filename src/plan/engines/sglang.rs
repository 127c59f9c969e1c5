//! Rules of SGLang only, taken from its source.

use super::{Engine, Manner, Refusal, Subject, is_expert};
use crate::quant::{Bits, Granularity, Storage};
use crate::stage::ActivationScheme;

/// Experts with int8 activations are implemented for Ascend NPUs; on anything else the model's construction ends in an error.
pub(super) fn experts_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    (is_expert(subject) && subject.spec.activations == ActivationScheme::DynamicToken).then(|| Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-experts-activations",
        message: "SGLang runs quantized experts with int8 activations on Ascend NPUs only".to_owned(),
        key: "activations",
        help: "Leave `activations` out for the experts, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// The zero points of experts are taken out of AWQ's interleaved order, in which compressed-tensors does not store them: those of
/// eight rows change places.
pub(super) fn experts_with_zero_points(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    let is_refused = is_expert(subject)
        && scheme.bits == Bits::Four
        && !scheme.symmetric
        && scheme.storage == Storage::Packed;
    is_refused.then(|| Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-experts-asymmetric",
        message: "SGLang misreads the zero points of quantized experts".to_owned(),
        key: "symmetric",
        help: "Use `symmetric: true` for the experts, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// SGLang takes experts as packed only if the format of the whole config says so. That format is `mixed-precision` as
/// soon as other layers have quantized activations.
pub(super) fn experts_beside_plain_codes(subject: &Subject<'_>) -> Option<Refusal> {
    let is_packed = subject.spec.scheme.storage == Storage::Packed;
    (is_expert(subject) && is_packed && subject.has_both_storages).then(|| Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-mixed-experts",
        message: "SGLang does not load packed experts beside layers with int8 activations".to_owned(),
        key: "targets",
        help: "Leave `activations` out for the other layers, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// SGLang keeps one scale for all rows as a single number, but the product needs one per row ("size of scales_b is
/// not matched").
pub(super) fn tensor_scale_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let spec = subject.spec;
    let is_refused = spec.activations != ActivationScheme::None
        && spec.scheme.bits == Bits::Eight
        && spec.scheme.granularity == Granularity::Tensor;
    is_refused.then(|| Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-w8a8-tensor",
        message: "SGLang does not run int8 weights with one scale per tensor together with int8 activations"
            .to_owned(),
        key: "granularity",
        help: "Use `granularity: channel`, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}
