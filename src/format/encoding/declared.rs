//! Words of a `quantization_config`, as several encodings ask for them.

use serde_json::Value;

use crate::stage::ActivationScheme;

/// A word, in small letters; empty if there is none.
pub(super) fn word(declaration: &Value, key: &str) -> String {
    declaration.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase()
}

/// The groups of compressed-tensors' schemes.
fn groups(declaration: &Value) -> impl Iterator<Item = &Value> {
    declaration.get("config_groups").and_then(Value::as_object).into_iter().flat_map(|groups| groups.values())
}

/// The weights' scheme of each group.
pub(super) fn weights(declaration: &Value) -> impl Iterator<Item = &Value> {
    groups(declaration).filter_map(|group| group.get("weights"))
}

/// Whether the model, or a group of it, is in this format of compressed-tensors.
pub(super) fn has_format(declaration: &Value, format: &str) -> bool {
    std::iter::once(declaration).chain(groups(declaration)).any(|part| word(part, "format") == format)
}

/// How engines treat the inputs of quantized layers. None if in a way that is not written, or not all alike.
pub(super) fn activations(declaration: &Value) -> Option<ActivationScheme> {
    let of_group = |group: &Value| {
        let inputs = group.get("input_activations").filter(|inputs| !inputs.is_null());
        let Some(inputs) = inputs else { return Some(ActivationScheme::None) };
        let is_known = inputs["dynamic"] == true && inputs["num_bits"] == 8 && inputs["symmetric"] != false;
        match (word(inputs, "type").as_str(), word(inputs, "strategy").as_str()) {
            _ if !is_known => None,
            ("float", "token") => Some(ActivationScheme::DynamicTokenFp8),
            // Beside blocks.
            ("float", "group") if inputs["group_size"] == 128 => Some(ActivationScheme::DynamicTokenFp8),
            ("int" | "", "token") => Some(ActivationScheme::DynamicToken),
            _ => None,
        }
    };
    let mut all = groups(declaration).map(of_group);
    let Some(first) = all.next() else { return Some(ActivationScheme::None) };
    all.all(|other| other == first).then_some(first)?
}
