//! Rules about schemes: the combinations of bits, granularity, zero points and activations that the engines read.

use super::{Engine, Manner, Refusal, Subject, servers_do_not};
use crate::layer::LayerType;
use crate::model::Dtype;
use crate::quant::{Bits, FloatType, Granularity, Scheme, Storage};
use crate::stage::ActivationScheme;
use crate::stage::export::Target;

/// Several schemes need targets by name, and in these families transformers renames the last part of names, or fuses modules:
/// nothing would be targeted and the weights be random.
pub(super) fn second_scheme(subject: &Subject<'_>, schemes: usize) -> Option<Refusal> {
    let is_renamed = ["deepseek_v4", "minimax_m3"].iter().any(|name| subject.model_type.starts_with(name));
    (schemes > 1 && is_renamed).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::several-schemes",
        message: format!("transformers cannot tell several schemes apart in {}", subject.model_type),
        key: "targets",
        help: "Use one scheme for all layers, or export with `target: vllm`.".to_owned(),
        manner: Manner::Silently,
    })
}

fn weights_only(subject: &Subject<'_>) -> bool {
    subject.spec.activations == ActivationScheme::None
}

fn is_w4a8(subject: &Subject<'_>) -> bool {
    subject.spec.activations == ActivationScheme::DynamicToken && subject.spec.scheme.bits == Bits::Four
}

/// The type of the activations, as messages name it.
fn activations(subject: &Subject<'_>) -> &'static str {
    match subject.spec.activations {
        ActivationScheme::DynamicTokenFp8 => "FP8",
        ActivationScheme::None | ActivationScheme::DynamicToken => "int8",
    }
}

/// Loaders hold scales in the model's type: finer ones are rounded a second time, after the codes were chosen.
pub(super) fn rounded_scales(subject: &Subject<'_>) -> Option<Refusal> {
    let scales = subject.spec.scheme.scale_type;
    let is_rounded = match subject.source {
        Dtype::Bf16 => scales != FloatType::Bf16,
        Dtype::F16 => scales != FloatType::F16,
        _ => false,
    };
    let Scheme { storage, bits, .. } = subject.spec.scheme;
    let is_float = storage.is_float();
    // Scales of four-bit floats are no floats of the model's type.
    (is_rounded && !(is_float && bits == Bits::Four)).then(|| Refusal {
        // Of floats vLLM holds them in F32.
        engine: if is_float { Engine::Transformers } else { Engine::All },
        code: "plan::rounded-scales",
        message: format!(
            "{} {} scales to the model's {}",
            if is_float { "transformers rounds" } else { "engines round" },
            scales.name(),
            subject.source.name()
        ),
        key: "scale_dtype",
        help: "Use `scale_dtype: auto`: codes are then chosen for the scales that engines use.".to_owned(),
        manner: Manner::Sometimes,
    })
}

/// The code of a rule: one if SGLang is the target, the other for all other targets.
fn code(subject: &Subject<'_>, vllm: &'static str, sglang: &'static str) -> &'static str {
    if subject.target == Target::Sglang { sglang } else { vllm }
}

/// vLLM and SGLang have one scale per tensor for W8A8 only ("No compressed-tensors compatible scheme").
pub(super) fn tensor_scale(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    let is_w8a8 = !weights_only(subject) && scheme.bits == Bits::Eight;
    (!is_w8a8 && scheme.granularity == Granularity::Tensor).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-tensor-scale", "plan::sglang-tensor-scale"),
        message: servers_do_not(
            subject.target,
            match weights_only(subject) {
                true => "load weights-only integers with one scale per tensor",
                false => "load int4 weights with one scale per tensor",
            },
        ),
        key: "granularity",
        help: "Use `granularity: channel` or `group`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// W8A8 takes one scale per channel or per tensor.
pub(super) fn activations_with_groups(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    let grouped = matches!(scheme.granularity, Granularity::Group(_));
    (!weights_only(subject) && scheme.bits == Bits::Eight && grouped).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-w8a8-groups", "plan::sglang-w8a8-groups"),
        message: servers_do_not(
            subject.target,
            &format!("load int8 weights in groups together with {} activations", activations(subject)),
        ),
        key: "granularity",
        help: "Use `granularity: channel` or `tensor`, or drop `activations`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// W8A8 has no zero points for weights.
pub(super) fn activations_with_zero_points(subject: &Subject<'_>) -> Option<Refusal> {
    // Without activations asymmetric int8 runs on few GPUs, so that is no way out.
    let way_out = if is_w4a8(subject) { ", or drop `activations`" } else { "" };
    (!weights_only(subject) && !subject.spec.scheme.symmetric).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-w8a8-asymmetric", "plan::sglang-w8a8-asymmetric"),
        message: servers_do_not(
            subject.target,
            &format!("load asymmetric weights together with {} activations", activations(subject)),
        ),
        key: "symmetric",
        help: format!("Use `symmetric: true`{way_out}."),
        manner: Manner::Loudly,
    })
}

/// vLLM has kernels for int4 weights with int8 activations on CPUs and XPUs only. On x86 the results are right. But
/// its attention uses AMX tiles, which nothing requests from the system in such a model. It ends in an illegal
/// instruction if the machine has AMX. SGLang has no such scheme for linear layers ("No compressed-tensors compatible
/// scheme").
pub(super) fn int4_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    is_w4a8(subject).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-w4a8", "plan::sglang-w4a8"),
        message: match subject.target {
            Target::Sglang => "SGLang does not load int4 weights together with int8 activations".to_owned(),
            target => format!(
                "vLLM runs int4 weights with int8 activations on XPUs and on CPUs without AMX only{}",
                sglang_never(target)
            ),
        },
        key: "activations",
        help: "Use `quantize-int8` with `activations: dynamic-token`: it is as small, one byte per code."
            .to_owned(),
        manner: sometimes_but_in_sglang(subject),
    })
}

/// The manner of failure for schemes that vLLM runs on rarer machines only, and that SGLang refuses.
fn sometimes_but_in_sglang(subject: &Subject<'_>) -> Manner {
    if subject.target == Target::Sglang { Manner::Loudly } else { Manner::Sometimes }
}

/// The end of a sentence about vLLM that ends otherwise for SGLang.
fn sglang_never(target: Target) -> &'static str {
    if target == Target::Any { ", SGLang nowhere" } else { "" }
}

/// Both of these kernels take groups in multiples of 32 ("Group size should be multiple of 32").
pub(super) fn int4_groups_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let Granularity::Group(size) = subject.spec.scheme.granularity else { return None };
    (is_w4a8(subject) && !size.is_multiple_of(32)).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-w4a8-groups",
        message: format!(
            "vLLM does not load int4 weights in groups of {size} together with int8 activations"
        ),
        key: "group_size",
        help: "Use groups of 32, 64 or 128, or drop `activations`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// Asymmetric weights-only int8 needs Machete (Hopper) or an extra package in vLLM. SGLang's Marlin has no kernel of it.
pub(super) fn int8_with_zero_points(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    (weights_only(subject) && scheme.bits == Bits::Eight && !scheme.symmetric).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-int8-asymmetric", "plan::sglang-int8-asymmetric"),
        message: match subject.target {
            Target::Sglang => "SGLang has no kernel of asymmetric weights-only int8".to_owned(),
            target => format!(
                "vLLM runs asymmetric weights-only int8 on Hopper GPUs or with an extra package only{}",
                sglang_never(target)
            ),
        },
        key: "symmetric",
        help: "Use `symmetric: true`; at 8 bits the difference is below 0.5 dB.".to_owned(),
        manner: sometimes_but_in_sglang(subject),
    })
}

/// Group sizes that every WNA16 kernel takes are 32, 64 and 128; SGLang has kernels of these alone.
pub(super) fn unusual_group(subject: &Subject<'_>) -> Option<Refusal> {
    let Granularity::Group(size) = subject.spec.scheme.granularity else { return None };
    let is_integer = !subject.spec.scheme.storage.is_float();
    (is_integer && weights_only(subject) && !matches!(size, 32 | 64 | 128)).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-group-size", "plan::sglang-group-size"),
        message: match subject.target {
            Target::Sglang => format!("SGLang has no kernel that takes groups of {size}"),
            Target::Any => {
                format!("vLLM's fastest kernels do not take groups of {size}, nor do any of SGLang's")
            }
            _ => format!("vLLM's fastest kernels do not take groups of {size}"),
        },
        key: "group_size",
        help: "Groups of 32, 64 and 128 run on every kernel.".to_owned(),
        manner: sometimes_but_in_sglang(subject),
    })
}

/// vLLM and SGLang cut the zero points of fused modules and of tensor-parallel slices into whole words, rounded down.
/// If the rows of a part do not fill its last word, the parts after it get the zero points of other rows, without an
/// error.
pub(super) fn zero_point_words(subject: &Subject<'_>) -> Option<Refusal> {
    let scheme = &subject.spec.scheme;
    let a_word = 32 / scheme.bits.count() as u64;
    let packed =
        !scheme.symmetric && scheme.storage == Storage::Packed && scheme.granularity != Granularity::Tensor;
    (packed && subject.kind == LayerType::Linear && !subject.rows.is_multiple_of(a_word)).then(|| Refusal {
        engine: Engine::Servers,
        code: code(subject, "plan::vllm-zero-point-words", "plan::sglang-zero-point-words"),
        message: format!(
            "{} would misread the zero points of `{}`{}: {} rows are no multiple of {a_word}",
            if subject.target == Target::Sglang { "SGLang" } else { "vLLM" },
            subject.name,
            if subject.is_fused { "" } else { " on several GPUs" },
            subject.rows
        ),
        key: "symmetric",
        help: "Use `symmetric: true` for it, or leave it alone.".to_owned(),
        manner: if subject.is_fused { Manner::Silently } else { Manner::Sometimes },
    })
}
