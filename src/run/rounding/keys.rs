//! Keys of the codes of layers: hashes of all that decides them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::source::Identity;
use crate::ids::TensorId;
use crate::plan::fingerprint::BUILD;
use crate::plan::rounding::{Gradients, LayerMatrix, Rounded};
use crate::plan::{ModelRun, Plan, Roundings};
use crate::quant::Isa;
use crate::run::kept::key;
use crate::run::model_pass::facts;

/// What decides codes.
pub(super) struct Keys {
    /// Of each layer: of the tokens, the weights up to it, how its own matrices are quantized, and, in a sequence, the keys of
    /// the layers before it.
    pub layers: Vec<String>,
    /// Of the gradients of all layers: of the samples, all weights, and the blocks; none if there are none.
    pub gradients: Option<String>,
}

/// The keys of a plan's layers.
pub(super) fn of(
    plan: &Plan,
    run: &ModelRun,
    roundings: &Roundings,
    matrices: &[Vec<LayerMatrix<'_>>],
    isa: Isa,
) -> Keys {
    let mut weights = facts(plan, run);
    weights.push(format!("{isa:?}"));
    // A change of a file that is so new might not show in its identity: such codes are not found again.
    let given = roundings.moments.iter().map(|given| &given.identity);
    let mut read = plan.model.shards.iter().map(|shard| &shard.identity).chain(given);
    if !read.all(Identity::is_settled) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        weights.push(format!("{} {}", now.as_nanos(), std::process::id()));
    }
    let gradients = roundings.gradients.map(|gradients| {
        let Gradients { samples, seed, most, .. } = gradients;
        let shards = plan.model.shards.iter().map(|shard| format!("{} {:?}", shard.name, shard.identity));
        key(weights.iter().cloned().chain([format!("{samples} {seed} {most}")]).chain(shards))
    });
    weights.push(roundings.is_sequential.to_string());
    weights.extend(roundings.moments.iter().map(|given| format!("{:?}", given.identity)));
    let layers = layers_of_tensors(plan, matrices.len());
    let (mut weights, mut before) = (key(weights), String::new());
    let mut out = Vec::with_capacity(matrices.len());
    for (layer, matrices) in matrices.iter().enumerate() {
        let mut shards: Vec<_> = plan
            .model
            .tensors
            .numbered()
            .filter(|(tensor, _)| layers[tensor.index()] <= layer)
            .map(|(_, tensor)| tensor.shard)
            .collect();
        shards.sort_unstable();
        shards.dedup();
        let shards = shards.into_iter().map(|shard| &plan.model.shards[shard]);
        let shards = shards.map(|shard| format!("{} {:?}", shard.name, shard.identity));
        weights = key(std::iter::once(weights).chain(shards));
        let guide = |matrix: &LayerMatrix<'_>| gradients.as_deref().filter(|_| matrix.spec.is_guided());
        let own = matrices
            .iter()
            .map(|matrix| format!("{} {:?}", of_matrix(plan, roundings, matrix), guide(matrix)));
        before = key([weights.clone(), before].into_iter().chain(own));
        out.push(before.clone());
        if !roundings.is_sequential {
            before.clear();
        }
    }
    Keys { layers: out, gradients }
}

/// The keys of layers that are rounded in parts with given moments: the same on all machines, where files are known by their length
/// and the time of their last change.
pub(super) fn anywhere(
    plan: &Plan,
    roundings: &Roundings,
    matrices: &[Vec<LayerMatrix<'_>>],
    isa: Isa,
) -> Vec<String> {
    let mut facts = vec![BUILD.to_owned(), isa.name().to_owned()];
    facts.extend(roundings.moments.iter().map(|given| given.identity.anywhere()));
    facts.extend(
        plan.model.shards.iter().map(|shard| format!("{} {}", shard.name, shard.identity.anywhere())),
    );
    let facts = key(facts);
    let of_layer = |matrices: &Vec<LayerMatrix<'_>>| {
        let own = matrices.iter().map(|matrix| of_matrix(plan, roundings, matrix));
        key(std::iter::once(facts.clone()).chain(own))
    };
    matrices.iter().map(of_layer).collect()
}

/// How a matrix is quantized.
fn of_matrix(plan: &Plan, roundings: &Roundings, matrix: &LayerMatrix<'_>) -> String {
    let spec = matrix.spec;
    let mut text = format!(
        "{} {:?} {:?} {:?} {:?}",
        matrix.linear.tensor, matrix.linear.part, spec.scheme, spec.observer, spec.rounding
    );
    for rows in &matrix.tasks {
        let is_nearest = matches!(roundings.of(rows.task), Some(Rounded::Nearest(_)));
        text.push_str(&format!(" {} {is_nearest}", plan.tasks[rows.task].module(&plan.model)));
        // Statistics choose ranges where a search does.
        if let Some(importance) = plan.weighing.of(rows.task).filter(|_| spec.observer.searches()) {
            let mut columns = blake3::Hasher::new();
            for column in importance.columns() {
                columns.update(&column.to_le_bytes());
            }
            text.push_str(&columns.finalize().to_hex());
        }
    }
    text
}

/// The layer in which each tensor is used first; tensors outside of the layers count as used by the first.
fn layers_of_tensors(plan: &Plan, layers: usize) -> Vec<usize> {
    let mut out = vec![0; plan.model.tensors.len()];
    let Some(runs) = &plan.runs else { return out };
    for (layer, program) in runs.description.layers.iter().enumerate().take(layers).rev() {
        let names =
            program.matrices().flat_map(|matrix| [Some(matrix.tensor.as_str()), matrix.bias.as_deref()]);
        let names = names.flatten().chain(program.small_tensors());
        for tensor in names.filter_map(|name| plan.model.find(name)) {
            let parts: Vec<TensorId> = plan.model.parts_of(tensor).collect();
            parts.into_iter().chain([tensor]).for_each(|tensor| out[tensor.index()] = layer);
        }
    }
    out
}
