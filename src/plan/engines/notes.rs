//! Notes of a plan about engines, without a verdict.

use crate::model::ModelFolder;
use crate::plan::Task;
use crate::plan::kv_cache;
use crate::plan::layout::ExportPlan;
use crate::plan::output_tensor::Content;
use crate::quant::{Bits, Storage};
use crate::stage::ActivationScheme;
use crate::stage::export::{Format, Target};

/// Notes that are worth knowing but no reason to change a recipe: kernels that are missing on some machines.
pub(in crate::plan) fn notes(content: Content<'_>, exports: &[ExportPlan]) -> Vec<String> {
    let Content { model, decisions, tasks, .. } = content;
    let mut notes: Vec<String> = not_loaded(model).into_iter().chain(kv_cache::note(model)).collect();
    let formatted = exports
        .iter()
        .any(|export| export.format == Format::CompressedTensors && export.target != Target::Transformers);
    if !formatted {
        return notes;
    }
    let packed = |task: &Task, bits: Bits| {
        decisions[task.tensor()].spec().is_some_and(|t| {
            t.scheme.bits == bits
                && t.scheme.storage == Storage::Packed
                && t.activations == ActivationScheme::None
        })
    };
    if tasks.iter().any(|task| packed(task, Bits::Eight)) {
        notes.push("weights-only int8 runs on vLLM's GPUs, not on its CPU backend".to_owned());
    }
    let odd = tasks.iter().filter(|task| packed(task, Bits::Four)).find_map(|task| {
        let view = task.matrix(model).filter(|view| view.rows % 32 != 0 || view.cols % 32 != 0)?;
        Some((task, view))
    });
    if let Some((task, view)) = odd {
        notes.push(format!(
            "vLLM's CPU backend needs rows and columns in multiples of 32: `{}` has {} and {}",
            task.module(model),
            view.rows,
            view.cols
        ));
    }
    notes
}

/// Gemma 4's published files hold keys and values of layers that use another layer's; they are treated like any other.
fn not_loaded(model: &ModelFolder) -> Option<String> {
    let shared = model.config.text().get("num_kv_shared_layers")?.as_u64()?;
    let first = model.config.num_hidden_layers()?.checked_sub(shared)?;
    let mut names = model.tensors.iter().map(|tensor| tensor.name.as_str()).filter(|name| {
        let Some((_, rest)) = name.split_once("language_model.layers.") else { return false };
        let Some((layer, rest)) = rest.split_once('.') else { return false };
        let is_shared = ["self_attn.k_", "self_attn.v_"].iter().any(|start| rest.starts_with(start));
        is_shared && layer.parse::<u64>().is_ok_and(|layer| layer >= first)
    });
    let (example, more) = (names.next()?, names.count());
    Some(format!(
        "no engine loads `{example}` and {more} more: these layers use another layer's keys and values"
    ))
}
