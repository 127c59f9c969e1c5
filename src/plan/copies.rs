//! The other files of a model: which are carried over, and which the output replaces or must not hold.

use crate::model::{ModelFolder, OtherFile};

/// Indices of the model's other files that an export carries over.
#[must_use]
pub fn carried_over(model: &ModelFolder) -> Vec<usize> {
    (0..model.others.len()).filter(|&index| is_carried_over(&model.others[index])).collect()
}

/// Whether a file of the source belongs into the output as it is: weights in another form would be loaded instead of the
/// quantized ones, and indices of them mislead.
#[must_use]
pub fn is_carried_over(file: &OtherFile) -> bool {
    let name = file.path.as_str();
    let replaced = name == "config.json"
        || name.ends_with(".index.json")
        || name == crate::report::FILE_NAME
        || name == crate::export::RECIPE_FILE_NAME;
    let hidden = name.split('/').any(|part| part.starts_with('.'));
    !(replaced || hidden || file.is_weights())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(name: &str) -> bool {
        is_carried_over(&OtherFile { path: name.to_owned(), len: 1 })
    }

    #[test]
    fn weights_and_what_is_replaced_stay_behind() {
        for name in [
            "tokenizer.json",
            "generation_config.json",
            "chat_template.jinja",
            "assets/picture.png",
            "README.md",
        ] {
            assert!(carried(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "config.json",
            "model.safetensors.index.json",
            ".cache/x",
            "model.gguf",
            "a.pth",
        ] {
            assert!(!carried(name), "{name}");
        }
    }
}
