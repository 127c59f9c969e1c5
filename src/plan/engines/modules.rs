//! Rules about kinds of modules: the kinds that have a quantized form in the engines at all.

use super::{Engine, Manner, Refusal, Subject};
use crate::layer::LayerType;

/// Only modules of class Linear, and experts, have a quantized form that loaders know.
pub(super) fn not_linear(subject: &Subject<'_>) -> Option<Refusal> {
    let kind = subject.kind;
    (!matches!(kind, LayerType::Linear | LayerType::Experts | LayerType::Router)).then(|| Refusal {
        engine: Engine::All,
        code: "plan::not-loadable-kind",
        message: format!("no engine loads a quantized {}", kind.name()),
        key: "targets",
        help: format!(
            "Leave it alone with `skip_layer_types: [{}]` on a `resolve-skips` stage, or export with `format: dequantized`.",
            kind.name()
        ),
        manner: Manner::Loudly,
    })
}

/// Routers are parameters of their own class: codes beside them would be reported as unexpected and the router be random. The few
/// that transformers builds as a Linear are still plain in vLLM.
pub(super) fn router(subject: &Subject<'_>) -> Option<Refusal> {
    let is_linear = subject.name.ends_with(".shared_expert_gate") || subject.name.ends_with(".router.proj");
    (subject.kind == LayerType::Router).then(|| Refusal {
        engine: if is_linear { Engine::Vllm } else { Engine::All },
        code: "plan::quantized-router",
        message: format!(
            "{} a quantized router",
            if is_linear { "vLLM does not load" } else { "no engine loads" }
        ),
        key: "targets",
        help: "Leave it alone with `skip_layer_types: [Router]`: it is small, and chooses the experts."
            .to_owned(),
        manner: if is_linear { Manner::Loudly } else { Manner::Silently },
    })
}

/// Modules that vLLM's models build without a quantization config, so that the file must hold plain weights.
pub(super) fn built_plain(subject: &Subject<'_>) -> Option<Refusal> {
    let last = subject.name.rsplit('.').next().unwrap_or_default();
    let has_segment = |wanted: &str| subject.name.split('.').any(|segment| segment == wanted);
    let family = |names: &[&str]| names.iter().any(|name| subject.model_type.starts_with(name));
    let is_plain = match subject.role {
        Some(LayerType::Head) => {
            family(&["gpt_oss", "qwen3_next", "opt", "deepseek_v4", "qwen4_exp", "bert", "whisper"])
        }
        Some(LayerType::Indexer) => has_segment("compressor") || matches!(last, "wk" | "weights_proj"),
        Some(LayerType::Hyper) => true,
        Some(LayerType::MTP) => last == "eh_proj" && !family(&["nemotron_h"]),
        _ => has_segment("pooler") || last == "merging_layer" || has_segment("cls") && family(&["bert"]),
    };
    is_plain.then(|| Refusal {
        engine: Engine::Vllm,
        code: "plan::vllm-plain-module",
        message: format!("vLLM builds `{last}` of this family without quantization"),
        key: "targets",
        help: "Leave it alone with `modules_to_not_convert`, or export with `target: transformers`."
            .to_owned(),
        manner: Manner::Loudly,
    })
}
