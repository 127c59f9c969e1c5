//! Wrapper modules in tensor names: a model that was saved while it was compiled, sharded or trained has them. No
//! engine knows such names. The wrapped module is the model, so the wrapper is removed from the names.

use super::complaints::shown;
use crate::finding::Finding;
use crate::model::code;
use crate::model::name::{Name, Names};
use crate::model::tensor::TensorInfo;

/// Prefixes of every name if the whole model was wrapped. Models use these words for modules of their own, too.
const BEFORE_ALL: [&str; 2] = ["module.", "base_model.model."];

/// Whether a module is a wrapper. torch calls its wrappers `_orig_mod`, `_fsdp_wrapped_module`,
/// `_checkpoint_wrapped_module` and `_forward_module`. A model's own modules begin with a letter.
fn is_wrapper(module: &str) -> bool {
    module.starts_with('_') && (module.ends_with("_mod") || module.ends_with("module"))
}

/// A name without wrappers. None if it has none.
fn unwrapped(name: &str) -> Option<String> {
    let (modules, parameter) = name.rsplit_once('.')?;
    if !modules.split('.').any(is_wrapper) {
        return None;
    }
    let kept = modules.split('.').filter(|module| !is_wrapper(module)).chain([parameter]);
    Some(kept.collect::<Vec<_>>().join("."))
}

/// Takes the modules of wrappers out of all names, and says which they are. One name before and after, where any has changed.
fn rename(tensors: &mut [TensorInfo], note: &mut impl FnMut(&str)) -> Option<(Name, Name)> {
    let mut names = Names::default();
    let mut first = None;
    let mut spans = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let Some(name) = unwrapped(&tensor.name) else { continue };
        tensor.name.split('.').filter(|module| is_wrapper(module)).for_each(&mut *note);
        spans.push((index, names.push(&name)?));
        first.get_or_insert(index);
    }
    let (first, names) = (first?, names.shared());
    let old = tensors[first].name.clone();
    for (index, span) in spans {
        tensors[index].name = names.at(span);
    }
    Some((old, tensors[first].name.clone()))
}

/// Takes wrappers out of the names of the tensors, and tells of it. Whether any was there.
pub(super) fn take_out(tensors: &mut [TensorInfo], findings: &mut Vec<Finding>) -> bool {
    let Some((first, before)) = tensors.first().map(|tensor| (tensor.name.clone(), tensor.name.clone()))
    else {
        return false;
    };
    let mut found: Vec<String> = Vec::new();
    let mut note = |words: &str| {
        if !found.iter().any(|known| known == words) {
            found.push(words.to_owned());
        }
    };
    let mut example = None;
    loop {
        let mut has_changed = false;
        if let Some((old, new)) = rename(tensors, &mut note) {
            example.get_or_insert((old, new));
            has_changed = true;
        }
        // A parameter must be left with its module.
        let is_before_all = |prefix: &&&str| {
            tensors
                .iter()
                .all(|tensor| tensor.name.strip_prefix(**prefix).is_some_and(|rest| rest.contains('.')))
        };
        if let Some(prefix) = BEFORE_ALL.iter().find(is_before_all) {
            note(prefix.trim_end_matches('.'));
            for tensor in &mut *tensors {
                tensor.name = tensor.name.without_first(prefix.len());
            }
            has_changed = true;
        }
        if !has_changed {
            break;
        }
    }
    if found.is_empty() {
        return false;
    }
    let (old, new) = match example {
        Some(example) if tensors[0].name == before => example,
        _ => (first, tensors[0].name.clone()),
    };
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    findings.push(
        Finding::warning(code::WRAPPED, format!("names of tensors have the modules of a wrapper in them: {}", shown(&found)))
            .help(format!(
                "The model was saved while it was compiled, sharded or trained; engines know the names without them. So `{}` is \
                 read, matched and written as `{}`.",
                old.escape_debug(),
                new.escape_debug()
            )),
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dtype;

    fn names(before: &[&str]) -> (Vec<String>, usize) {
        let mut tensors: Vec<TensorInfo> = before
            .iter()
            .map(|name| TensorInfo {
                name: Name::from(*name),
                stored: Dtype::Bf16,
                dtype: Dtype::Bf16,
                shape: vec![1].into(),
                shard: crate::ids::ShardId::new(0),
                offset: 0,
                bytes: 2,
                encoded: None,
                part_of: None,
            })
            .collect();
        let mut findings = Vec::new();
        take_out(&mut tensors, &mut findings);
        (tensors.into_iter().map(|tensor| tensor.name.to_string()).collect(), findings.len())
    }

    #[test]
    fn wrappers_are_taken_out_wherever_they_are() {
        for before in [
            ["_orig_mod.model.a.weight", "_orig_mod.lm_head.weight"],
            ["module.model.a.weight", "module.lm_head.weight"],
            ["module._orig_mod.model.a.weight", "module._orig_mod.lm_head.weight"],
            ["_orig_mod.module.model.a.weight", "_orig_mod.module.lm_head.weight"],
            ["_forward_module._fsdp_wrapped_module.model.a.weight", "_forward_module.lm_head.weight"],
            ["model._checkpoint_wrapped_module.a._orig_mod.weight", "lm_head.weight"],
        ] {
            assert_eq!(
                names(&before),
                (vec!["model.a.weight".to_owned(), "lm_head.weight".to_owned()], 1),
                "{before:?}"
            );
        }
    }

    #[test]
    fn other_names_stay() {
        for before in [
            &["model.a.weight", "lm_head.weight"][..],
            &["module.a.weight", "lm_head.weight"],
            &["module.weight"],
            &["model.module.a.weight"],
            &["_model.a.weight", "a._mod"],
            &[],
        ] {
            assert_eq!(
                names(before),
                (before.iter().map(|name| (*name).to_owned()).collect(), 0),
                "{before:?}"
            );
        }
    }
}
