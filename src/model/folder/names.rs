//! File names of weights: a name says whether a file is a part of a set, a variant of other weights, or no weights of
//! a model at all.

/// Stems of the files that tools look for: of transformers, of diffusers.
pub(super) const USUAL: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// Words that a second copy in another precision, or of averaged weights, has behind the name of the first.
const VARIANTS: &[&str] = &["fp32", "fp16", "bf16", "fp8", "int8", "int4", "ema", "nonema", "pruned"];

/// Words that exporters append to the name of a file, in addition to the variants above and numbers.
const EXPORTED: &[&str] = &[
    "of",
    "onnx",
    "quantized",
    "optimized",
    "merged",
    "with",
    "past",
    "q4",
    "q4f16",
    "q8",
    "uint8",
    "bnb4",
    "O1",
    "O2",
    "O3",
    "O4",
];

/// Words in the names of files that only a training that goes on needs.
const TRAINING: &[&str] = &["optimizer", "optim", "scheduler", "scaler", "rng"];

/// The words of a name: `model.fp16` and `model_fp16` have two.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(['.', '-', '_']).filter(|word| !word.is_empty())
}

/// A file of a set: `model-00001-of-00003.fp16` is the first of three of the set `model.fp16`.
pub(super) struct Part {
    /// The name of the set.
    pub(super) stem: String,
    /// Its number.
    pub(super) number: u64,
    /// How many there are.
    pub(super) total: u64,
}

/// The part of a set that a file is, by its name without the extension.
pub(super) fn part(stem: &str) -> Option<Part> {
    let (before, after) = stem.rsplit_once("-of-")?;
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (name, number) = before.split_at(before.len() - digits);
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let (total, rest) = after.split_at(end);
    let name = name.trim_end_matches(['-', '_', '.']);
    Some(Part { stem: format!("{name}{rest}"), number: number.parse().ok()?, total: total.parse().ok()? })
}

/// Whether weights with this stem are a whole model in the format of its maker, as the word `consolidated` says.
pub(super) fn is_consolidated(stem: &str) -> bool {
    words(stem).next() == Some("consolidated")
}

/// Whether a stem is the one of weights in another precision or of averaged ones.
pub(super) fn is_variant(stem: &str) -> bool {
    words(stem).skip(1).any(|word| VARIANTS.contains(&word)) || stem.contains("non_ema")
}

/// Whether what follows the name of a whole model says only which part of it, or which kind.
pub(super) fn is_only_of_a_kind(rest: &str) -> bool {
    let is_kind = |word: &str| {
        VARIANTS.contains(&word) || EXPORTED.contains(&word) || word.bytes().all(|byte| byte.is_ascii_digit())
    };
    (rest.is_empty() || rest.starts_with(['.', '-', '_'])) && words(rest).all(is_kind)
}

/// Whether a stem is the one of a training's state.
pub(super) fn is_training(stem: &str) -> bool {
    words(stem).any(|word| TRAINING.contains(&word)) || stem.starts_with("random_states")
}

/// Whether a folder of this name holds a state of the training, the last of which is mostly the model itself.
pub(super) fn is_checkpoint(folder: &str) -> bool {
    let number = folder.trim_end_matches(|c: char| c.is_ascii_digit());
    number.len() < folder.len()
        && ["checkpoint", "global_step"].contains(&number.trim_end_matches(['-', '_']))
}

/// Whether a tensor with this name is part of an adapter (LoRA and similar methods, as named by PEFT, diffusers or
/// kohya).
pub(super) fn is_adapter(tensor: &str) -> bool {
    tensor.split('.').any(|part| {
        ["lora_", "hada_", "lokr_", "ia3_", "vera_", "boft_", "oft_", "adalora_"]
            .iter()
            .any(|mark| part.starts_with(mark) || part.ends_with("_lora") || part == "dora_scale")
    })
}

/// Whether tensors of these names are an adapter and not a model: some are an adapter's, and none is the weight that those are
/// added to, or both would be there.
pub(super) fn are_adapter(names: impl Iterator<Item: AsRef<str>> + Clone) -> bool {
    let is_beside = |name: &str| {
        is_adapter(name)
            || name.starts_with("base_model.model.")
            || name.ends_with("alpha")
            || name.contains("dora_scale")
    };
    let is_base = |name: &str| name.contains(".base_layer.");
    names.clone().any(|name| is_adapter(name.as_ref()))
        && names.clone().all(|name| is_beside(name.as_ref()) && !is_base(name.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_sets_are_told_by_their_numbers() {
        let told = |stem| part(stem).map(|p| (p.stem, p.number, p.total));
        assert_eq!(told("model-00002-of-00003"), Some(("model".to_owned(), 2, 3)));
        assert_eq!(told("model00002-of-00003"), Some(("model".to_owned(), 2, 3)));
        assert_eq!(told("model-1-of-2.fp16"), Some(("model.fp16".to_owned(), 1, 2)));
        assert_eq!(told("model.fp16-00001-of-00002"), Some(("model.fp16".to_owned(), 1, 2)));
        assert_eq!(told("best-of-breed"), None);
        assert_eq!(told("model"), None);
    }

    #[test]
    fn kinds_of_weights_are_told_by_words() {
        assert!(
            is_variant("model.fp16")
                && is_variant("unet_ema")
                && is_variant("diffusion_pytorch_model.non_ema")
        );
        assert!(!is_variant("model") && !is_variant("ema_net") && !is_variant("gemma-2b"));
        assert!(
            is_consolidated("consolidated.00")
                && is_consolidated("consolidated")
                && !is_consolidated("model")
        );
        assert!(is_training("optimizer") && is_training("rng_state_0") && is_training("random_states_1"));
        assert!(!is_training("model") && !is_training("training_args"));
        assert!(is_only_of_a_kind("") && is_only_of_a_kind("-00001-of-00002") && is_only_of_a_kind("_q4f16"));
        assert!(!is_only_of_a_kind("_speakers") && !is_only_of_a_kind("s"));
        assert!(is_checkpoint("checkpoint-500") && is_checkpoint("global_step20"));
        assert!(!is_checkpoint("checkpoint") && !is_checkpoint("2_Dense") && !is_checkpoint("500"));
    }

    #[test]
    fn adapters_are_told_by_the_names_of_their_tensors() {
        let peft = ["base_model.model.l.0.q.lora_A.weight", "base_model.model.l.0.q.lora_B.weight"];
        let kohya = ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"];
        let unmerged = ["l.0.q.base_layer.weight", "l.0.q.lora_A.x.weight"];
        assert!(are_adapter(peft.into_iter()) && are_adapter(kohya.into_iter()));
        assert!(!are_adapter(unmerged.into_iter()) && !are_adapter(["l.0.q.weight"].into_iter()));
        assert!(!are_adapter(["l.0.q.weight", "l.0.q.lora_A.weight"].into_iter()));
        assert!(!are_adapter(std::iter::empty::<&str>()));
    }
}
