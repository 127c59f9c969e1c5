//! Quantization of keys and values that the source declares. It is carried over only with its scales: without them transformers
//! reads garbage, and vLLM takes 1.

use serde_json::Value;

use crate::model::ModelFolder;

/// The `kv_cache_scheme` that the source declares. None if it declares none.
fn declared(model: &ModelFolder) -> Option<&Value> {
    model.config.quantization_config()?.get("kv_cache_scheme").filter(|scheme| scheme.is_object())
}

/// The `kv_cache_scheme` of an output: the source's, if each layer has a scale for its keys and one for its values.
pub(super) fn scheme(model: &ModelFolder) -> Option<Value> {
    let declared = declared(model)?;
    let count = |parameter: &str| {
        let scales = model.tensors.iter().filter(|tensor| tensor.parameter() == parameter);
        scales.count() as u64
    };
    let layers = model.config.num_hidden_layers()?;
    (layers > 0 && count("k_scale") == layers && count("v_scale") == layers).then(|| declared.clone())
}

/// What a plan says of a scheme that is left out.
pub(super) fn note(model: &ModelFolder) -> Option<String> {
    (declared(model).is_some() && scheme(model).is_none()).then(|| {
        "the source's `kv_cache_scheme` is left out: it does not have a `k_scale` and a `v_scale` for each layer".to_owned()
    })
}
