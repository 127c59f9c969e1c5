//! Explanations of a decision: every rule that matches it, and the rule that decided.

use super::select::{self, Decision, Touch};
use super::{Draft, FusedModules, unmatched};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::ids::TensorId;

/// Everything there is to say about one tensor.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The tensor.
    pub tensor: TensorId,
    /// Every rule that touches it, in the order in which they were asked.
    pub touches: Vec<Touch>,
    /// The action, and the rule that decided.
    pub decision: Decision,
    /// Modules that engines fuse with it, by name.
    pub fused_with: Vec<String>,
}

/// Explains the tensors that a name refers to: one tensor by its full name, or all tensors of a module. If nothing
/// has that name, it explains the tensors or modules whose names end with it. It needs no plan, so errors that occur
/// only in planning do not prevent it.
///
/// # Errors
/// If the model has no such tensor. The finding lists the nearest names.
pub fn explain(draft: &Draft, name: &str) -> Result<Vec<Explanation>, Failure> {
    let items = select::items(&draft.model, &draft.classes);
    let stages = select::QuantizeStage::all(&draft.loaded.recipe, &items);
    let meant = |is_it: &dyn Fn(&str) -> bool| -> Vec<TensorId> {
        let tensors = draft.model.tensors.numbered();
        tensors.filter(|(_, tensor)| is_it(&tensor.name) || is_it(tensor.module())).map(|(i, _)| i).collect()
    };
    let mut hits = meant(&|known| known == name);
    if hits.is_empty() {
        hits = meant(&|known| known.strip_suffix(name).is_some_and(|before| before.ends_with('.')));
    }
    if hits.is_empty() {
        let mut finding = Finding::error("plan::no-such-tensor", format!("the model has no tensor `{name}`"));
        let near = unmatched::nearest_tensors(name, &draft.model);
        if !near.is_empty() {
            finding = finding.help(unmatched::nearest(&near));
        }
        return Err(Failure::new(Exit::BadRecipe, finding));
    }
    Ok(hits
        .into_iter()
        .map(|tensor| {
            let mut touches = Vec::new();
            let known = &mut select::Decisions::default();
            let judged = select::judge(&stages, &items[tensor], known, Some(&mut touches));
            let decision = draft.decisions[tensor].clone();
            if decision != judged {
                // FusedModules, indivisible rows or engines changed what the tensor's own rules say.
                let asks = match decision.spec() {
                    Some(spec) => format!("{} instead", spec.scheme),
                    None => format!("skip: {}", decision.rule.reason),
                };
                touches.push(Touch { rule: decision.rule.clone(), asks });
            }
            let fused_with = draft
                .fused_modules
                .iter()
                .filter(|group| group.members().any(|member| member == tensor))
                .flat_map(FusedModules::members)
                .filter(|member| *member != tensor)
                .map(|member| items[member].subject.to_owned())
                .collect();
            Explanation { tensor, touches, decision, fused_with }
        })
        .collect())
}
