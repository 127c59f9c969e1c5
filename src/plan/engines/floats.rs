//! Rules about floats of eight and four bits: as weights, and those of eight as activations beside integers.
//!
//! Those of vLLM 0.32.0 and SGLang 0.5.23 were read in their sources: `tests/interop/README.md` says where. Those of transformers
//! were tried.

use super::{Engine, Manner, Refusal, Subject, is_expert};
use crate::layer::LayerType;
use crate::model::Dtype;
use crate::quant::{Bits, Granularity, Storage};
use crate::stage::ActivationScheme;

/// Last parts of the names of modules that engines put at the end of a fused one.
const LAST_OF_FUSED: [&str; 4] = ["v_proj", "up_proj", "w3", "down_proj"];

/// vLLM cuts fused modules at whole blocks ("is not divisible by weight quantization block_n"), so only the last part may end
/// within one; of experts none.
pub(super) fn blocks_of_fused_modules(subject: &Subject<'_>) -> Option<Refusal> {
    let Granularity::Block(size) = subject.spec.scheme.granularity else { return None };
    let last = subject.name.rsplit('.').next().unwrap_or_default();
    let may_be_ragged = !is_expert(subject) && (!subject.is_fused || LAST_OF_FUSED.contains(&last));
    let is_matrix = subject.kind == LayerType::Linear;
    (is_matrix && !may_be_ragged && !subject.rows.is_multiple_of(size as u64)).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-fp8-blocks",
        message: format!(
            "vLLM does not load `{}` in blocks of {size}: {} rows are no multiple, and it is fused with others",
            subject.name, subject.rows
        ),
        key: "granularity",
        help: "Use `granularity: channel` for it.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// vLLM has no method for FP8 experts whose activations stay as they are ("Unsupported FusedMoe scheme").
pub(super) fn experts_without_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let spec = subject.spec;
    let is_refused = spec.scheme.storage == Storage::Float8 && spec.activations == ActivationScheme::None;
    (is_refused && is_expert(subject)).then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-fp8-experts",
        message: "vLLM does not load FP8 experts without FP8 activations".to_owned(),
        key: "activations",
        help: "Use `activations: dynamic` for the experts.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// transformers merges the experts of a layer and does not expand their scales, so that only experts of one block load
/// ("issues during automatic conversion").
pub(super) fn experts_in_blocks(subject: &Subject<'_>) -> Option<Refusal> {
    let has_blocks = matches!(subject.spec.scheme.granularity, Granularity::Block(_));
    (has_blocks && is_expert(subject)).then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::transformers-fp8-experts",
        message: "transformers does not load experts of several FP8 blocks".to_owned(),
        key: "granularity",
        help: "Use `granularity: channel` for the experts, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// vLLM runs integers with FP8 activations on Hopper only, and only int4 in groups of 128; its kernel rounds their scales to FP8.
pub(super) fn integers_with_fp8_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let (scheme, activations) = (&subject.spec.scheme, subject.spec.activations);
    if activations != ActivationScheme::DynamicTokenFp8 || scheme.storage == Storage::Float8 {
        return None;
    }
    let is_known = scheme.bits == Bits::Four && scheme.granularity == Granularity::Group(128);
    Some(Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-fp8-activations",
        message: match is_known {
            true => "vLLM runs int4 weights with FP8 activations on Hopper GPUs only".to_owned(),
            false => "vLLM runs FP8 activations only with FP8 weights, or with int4 weights in groups of 128"
                .to_owned(),
        },
        key: "activations",
        help: match is_known {
            true => "Leave `activations` out for other machines: the codes are the same.".to_owned(),
            false => "Use `group_size: 128` of `quantize-int4`, or `quantize-fp8`.".to_owned(),
        },
        manner: if is_known { Manner::Sometimes } else { Manner::Loudly },
    })
}

/// SGLang has no scheme for integers with FP8 activations ("No compressed-tensors compatible scheme") but for experts, on GPUs
/// since Hopper, in models of this one scheme: it looks for the experts' under `Linear`, and for the format of all.
pub(super) fn integers_with_fp8_activations_in_sglang(subject: &Subject<'_>) -> Option<Refusal> {
    let (scheme, activations) = (&subject.spec.scheme, subject.spec.activations);
    if activations != ActivationScheme::DynamicTokenFp8 || scheme.storage == Storage::Float8 {
        return None;
    }
    let is_known =
        is_expert(subject) && scheme.bits == Bits::Four && scheme.symmetric && subject.has_one_scheme;
    Some(Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-fp8-activations",
        message: match is_known {
            true => "SGLang runs int4 experts with FP8 activations on GPUs since Hopper only".to_owned(),
            false => "SGLang does not load integer weights together with FP8 activations, but for int4 experts where nothing else \
                      is quantized"
                .to_owned(),
        },
        key: "activations",
        help: match is_known {
            true => "Leave `activations` out for other machines: the codes are the same.".to_owned(),
            false => "Leave `activations` out, or export with `target: vllm`.".to_owned(),
        },
        manner: if is_known { Manner::Sometimes } else { Manner::Loudly },
    })
}

/// transformers decodes floats of four bits to BF16 whatever the model's type is, and the products with inputs of another type end
/// in an error.
pub(super) fn four_bits_in_another_type(subject: &Subject<'_>) -> Option<Refusal> {
    let is_refused = is_float4(subject) && subject.source != Dtype::Bf16;
    is_refused.then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::transformers-fp4-type",
        message: format!(
            "transformers decodes 4-bit floats to BF16, and does not run this {} model with them",
            subject.source.name()
        ),
        key: "targets",
        help: "Load the model with `dtype=\"bfloat16\"`, or quantize a copy of it in BF16.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// The one kernel of vLLM for MXFP4 weights has BF16 inputs alone.
pub(super) fn mxfp4_in_f16(subject: &Subject<'_>) -> Option<Refusal> {
    let is_refused = subject.spec.scheme.storage == Storage::Mxfp4 && subject.source == Dtype::F16;
    is_refused.then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-mxfp4-f16",
        message: "vLLM runs MXFP4 weights in BF16 only, and this model is F16".to_owned(),
        key: "targets",
        help: "Serve it with `--dtype bfloat16`, or quantize a copy of the model in BF16.".to_owned(),
        manner: Manner::Sometimes,
    })
}

/// vLLM takes MXFP4 weights for MXFP4 layers, whatever their configuration says of activations: where the GPU multiplies these
/// numbers, inputs are quantized to them.
pub(super) fn mxfp4_with_activations(subject: &Subject<'_>) -> Option<Refusal> {
    let is_refused = subject.spec.scheme.storage == Storage::Mxfp4;
    is_refused.then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-mxfp4-activations",
        message: "vLLM quantizes the inputs of MXFP4 layers to MXFP4 on Blackwell GPUs, too, which costs quality that is not measured here"
            .to_owned(),
        key: "targets",
        help: "`quantize-nvfp4` leaves inputs as they are. So does `--linear-backend marlin` when the model is served, but for experts."
            .to_owned(),
        manner: Manner::Sometimes,
    })
}

/// SGLang has no scheme for MXFP4 weights of compressed-tensors. It takes experts of Kimi-K3 for its own MXFP4, if the format of
/// the whole config says so.
pub(super) fn mxfp4_in_sglang(subject: &Subject<'_>) -> Option<Refusal> {
    let is_known = subject.model_type == "kimi_k3" && is_expert(subject) && subject.has_one_scheme;
    let is_refused = subject.spec.scheme.storage == Storage::Mxfp4 && !is_known;
    is_refused.then(|| Refusal {
        engine: Engine::Sglang,
        code: "plan::sglang-mxfp4",
        message: "SGLang does not load MXFP4 weights in the layout of compressed-tensors".to_owned(),
        key: "targets",
        help: "Use `quantize-int4`, or export with `target: vllm`.".to_owned(),
        manner: Manner::Loudly,
    })
}

/// transformers merges the experts of a layer and leaves out the scale for all weights of each ("unexpected keys" and no error).
pub(super) fn nvfp4_experts(subject: &Subject<'_>) -> Option<Refusal> {
    let is_refused = subject.spec.scheme.has_global_scale() && is_expert(subject);
    is_refused.then(|| Refusal {
        engine: Engine::Transformers,
        code: "plan::transformers-nvfp4-experts",
        message: "transformers misreads NVFP4 experts: it leaves out the scales for all of their weights"
            .to_owned(),
        key: "targets",
        help: "Use `quantize-mxfp4` or `quantize-int4` for the experts, or export with `target: vllm`."
            .to_owned(),
        manner: Manner::Silently,
    })
}

/// Whether weights are floats of four bits.
fn is_float4(subject: &Subject<'_>) -> bool {
    let scheme = &subject.spec.scheme;
    scheme.storage.is_float() && scheme.bits == Bits::Four
}
