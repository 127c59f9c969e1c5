//! Tensor parallelism: the numbers of GPUs between which an engine can cut the output, and the tensor that limits
//! them.
//!
//! Both engines cut modules that read the residual stream by rows, and modules that write to it by columns. Every GPU
//! then needs whole heads, whole groups, whole words of codes and of zero points, and a kernel that takes its part.

use super::kernels::{KERNELS, Matrix, Server, Unfit};
use crate::model::Config;
use crate::quant::{Granularity, Scheme, Storage};
use crate::stage::ActivationScheme;

/// The most GPUs that are looked at: the largest machines that are built as one.
pub(crate) const MOST: u64 = 64;

/// Up to how many GPUs an engine can cut an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parallel {
    /// All numbers of GPUs that work, up to 64.
    pub sizes: Vec<u64>,
    /// The greatest power of two among them.
    pub up_to: Option<u64>,
    /// The least power of two that does not work, and the reason. None if all of them work.
    pub limit: Option<Limit>,
}

/// The obstacle to a number of GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// How many GPUs.
    pub size: u64,
    /// The module, the first of those that are alike. None if the obstacle is a number of the config.
    pub tensor: Option<String>,
    /// How many more are like it.
    pub more: usize,
    /// Why, such as `516 columns per GPU are not a multiple of the group size 64`.
    pub why: String,
    /// The change that would help.
    pub help: &'static str,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tensor {
            Some(tensor) if self.more > 0 => {
                write!(f, "`{tensor}` and {} more: {}", self.more, self.why)
            }
            Some(tensor) => write!(f, "`{tensor}`: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

/// How tensor parallelism cuts a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    /// By rows: it reads the residual stream.
    Rows,
    /// By columns: it writes to the residual stream.
    Columns,
    /// Every GPU has the whole.
    Not,
}

/// Last parts of the names of modules that write to the residual stream.
const WRITERS: &[&str] = &[
    "o_proj",
    "out_proj",
    "down_proj",
    "c_proj",
    "dense_4h_to_h",
    "fc2",
    "w2",
    "wo",
    "wo_b",
    "o",
    "linear_2",
];

/// Last parts of the names of modules that no GPU cuts: they lead down to a few columns that all heads read.
const WHOLE: &[&str] = &["q_a_proj", "kv_a_proj_with_mqa", "wq_a", "wkv", "f_a_proj", "g_a_proj"];

/// Last parts of the names of keys and values, of which there may be fewer heads than GPUs.
const KEYS_AND_VALUES: &[&str] = &["k_proj", "v_proj", "key", "value"];

/// The last part of a module's name that identifies its kind. Gemma 4 puts the weight one level down.
pub(super) fn last_part(name: &str) -> &str {
    let name = name.strip_suffix(".linear").unwrap_or(name);
    name.rsplit('.').next().unwrap_or(name)
}

/// How a module is cut: known names first, then its shape.
pub(super) fn cut(name: &str, rows: u64, cols: u64, hidden: Option<u64>) -> Cut {
    let last = last_part(name);
    // BERT and Falcon call both kinds `dense`.
    let is_dense = last == "dense" && !name.ends_with("intermediate.dense");
    let writes = hidden == Some(rows) && hidden != Some(cols);
    let is_known = KEYS_AND_VALUES.contains(&last) || matches!(last, "q_proj" | "gate_proj" | "up_proj");
    match last {
        _ if WHOLE.contains(&last) => Cut::Not,
        _ if is_dense || WRITERS.contains(&last) => Cut::Columns,
        _ if writes && !is_known => Cut::Columns,
        _ => Cut::Rows,
    }
}

/// Matrices of one shape that an engine makes modules of, one by one or fused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unit {
    /// The first of them.
    pub name: String,
    /// Last parts of the names of what is fused, and their rows.
    pub parts: Vec<(String, u64)>,
    pub cols: u64,
    pub scheme: Scheme,
    pub activations: ActivationScheme,
    pub cut: Cut,
    pub is_expert: bool,
    /// How many there are.
    pub count: usize,
}

/// What units have in common that count as one.
pub(super) type Kind = (Vec<(String, u64)>, u64, Scheme, ActivationScheme, Cut, bool);

impl Unit {
    /// All but its name and how many there are.
    pub(super) fn kind(&self) -> Kind {
        let Self { cols, scheme, activations, cut, is_expert, .. } = *self;
        (self.parts.clone(), cols, scheme, activations, cut, is_expert)
    }

    /// The whole matrix.
    pub(super) fn matrix(&self) -> Matrix {
        let rows = self.parts.iter().map(|(_, rows)| rows).sum();
        let Self { cols, scheme, activations, is_expert, cut, .. } = *self;
        Matrix { rows, cols, scheme, activations, is_expert, writes: cut == Cut::Columns }
    }

    /// The part of the matrix that one of this many GPUs holds, or the reason why it cannot be cut.
    fn part_of(&self, gpus: u64, heads: &Heads) -> Result<Matrix, (String, &'static str)> {
        let mut matrix = self.matrix();
        let has_packed_zeros = !self.scheme.symmetric
            && self.scheme.storage == Storage::Packed
            && self.scheme.granularity != Granularity::Tensor;
        let a_word = 32 / self.scheme.bits.count() as u64;
        match self.cut {
            Cut::Not => {}
            Cut::Rows => {
                matrix.rows = 0;
                for (last, rows) in &self.parts {
                    let shares = match heads.keys {
                        Some(keys) if KEYS_AND_VALUES.contains(&last.as_str()) => gpus.min(keys),
                        _ => gpus,
                    };
                    if !rows.is_multiple_of(shares) {
                        return Err((
                            format!("its {rows} rows are no multiple of {shares}"),
                            "Use fewer GPUs: the rows are the model's own.",
                        ));
                    }
                    let share = rows / shares;
                    if let Granularity::Block(size) = self.scheme.granularity
                        && shares > 1
                        && !share.is_multiple_of(size as u64)
                    {
                        return Err((
                            format!("{share} rows per GPU are not a multiple of the blocks' {size}"),
                            "Use `granularity: channel` for it, or fewer GPUs.",
                        ));
                    }
                    if shares > 1 && has_packed_zeros && !share.is_multiple_of(a_word) {
                        return Err((
                            format!("{share} rows per GPU do not fill whole words of {a_word} zero points"),
                            "Use `symmetric: true` for it, or fewer GPUs.",
                        ));
                    }
                    matrix.rows += share;
                }
            }
            Cut::Columns => {
                let cols = self.cols;
                if !cols.is_multiple_of(gpus) {
                    return Err((
                        format!("its {cols} columns are no multiple of {gpus}"),
                        "Use fewer GPUs: the columns are the model's own.",
                    ));
                }
                matrix.cols = cols / gpus;
                if let Granularity::Group(size) = self.scheme.granularity
                    && !matrix.cols.is_multiple_of(size as u64)
                {
                    return Err((
                        format!(
                            "{} columns per GPU are not a multiple of the group size {size}",
                            matrix.cols
                        ),
                        "Use a smaller `group_size` or `granularity: channel` for it, or fewer GPUs.",
                    ));
                }
                if let Granularity::Block(size) = self.scheme.granularity
                    && gpus > 1
                    && !matrix.cols.is_multiple_of(size as u64)
                {
                    return Err((
                        format!("{} columns per GPU are not a multiple of the blocks' {size}", matrix.cols),
                        "Use `granularity: channel` for it, or fewer GPUs.",
                    ));
                }
                if self.scheme.storage == Storage::Packed && !matrix.cols.is_multiple_of(a_word) {
                    return Err((
                        format!("{} columns per GPU do not fill whole words of {a_word} codes", matrix.cols),
                        "Use `activations: dynamic-token`, whose codes are bytes, or fewer GPUs.",
                    ));
                }
            }
        }
        Ok(matrix)
    }
}

/// The reason why none of an engine's GPU kernels takes a matrix. None if one does, or if all refuse its scheme:
/// other rules cover that.
pub(super) fn refused_by_all(server: Server, matrix: &Matrix) -> Option<String> {
    let mut reason = None;
    for kernel in KERNELS.iter().filter(|kernel| kernel.server == server && kernel.is_for_gpus()) {
        match (kernel.takes)(matrix) {
            Ok(()) => return None,
            Err(Unfit::Scheme) => {}
            Err(Unfit::Shape(why)) => reason = Some(why),
        }
    }
    reason
}

/// Heads of the text decoder.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads {
    /// Numbers that GPUs share evenly, with what they count.
    shared: Vec<(u64, &'static str)>,
    /// Heads of keys and values. They are duplicated if there are fewer heads than GPUs.
    keys: Option<u64>,
    /// Experts, of which there must not be fewer than GPUs.
    experts: Option<u64>,
}

impl Heads {
    /// As the config has them. `has_experts`: whether experts are cut at all.
    pub(super) fn of(config: &Config, has_experts: bool) -> Self {
        let number = |keys: &[&str]| {
            keys.iter()
                .find_map(|key| config.text().get(key).or_else(|| config.raw.get(key))?.as_u64())
                .filter(|number| *number > 0)
        };
        let mut shared = Vec::new();
        for (keys, what) in [
            (&["num_attention_heads", "n_head", "num_heads", "n_heads"][..], "attention heads"),
            (&["linear_num_key_heads"], "heads of linear attention"),
            (&["linear_num_value_heads"], "value heads of linear attention"),
        ] {
            shared.extend(number(keys).map(|number| (number, what)));
        }
        // Latent attention has no heads of keys and values in its files.
        let has_latent = number(&["kv_lora_rank"]).is_some();
        let keys = number(&["num_key_value_heads", "num_kv_heads", "n_kv_heads"]).filter(|_| !has_latent);
        let experts = config.experts().last().copied().filter(|_| has_experts);
        Self { shared, keys, experts }
    }

    fn refuse(&self, gpus: u64) -> Option<String> {
        for (number, what) in &self.shared {
            if !number.is_multiple_of(gpus) {
                return Some(format!("{number} {what} are no multiple of {gpus}"));
            }
        }
        match (self.keys, self.experts) {
            (Some(keys), _) if !keys.is_multiple_of(gpus) && !gpus.is_multiple_of(keys) => {
                Some(format!("{keys} heads of keys and values can be neither shared nor doubled"))
            }
            (_, Some(experts)) if gpus > experts => Some(format!("there are only {experts} experts")),
            _ => None,
        }
    }
}

/// Everything that keeps an engine from cutting an output between so many GPUs.
pub(super) fn limits<'a>(
    server: Server,
    units: &'a [Unit],
    heads: &'a Heads,
    gpus: u64,
) -> impl Iterator<Item = Limit> + 'a {
    let of_model = heads.refuse(gpus).map(|why| {
        let help = "Use fewer GPUs: the number is the model's own.";
        Limit { size: gpus, tensor: None, more: 0, why, help }
    });
    let of_units = units.iter().filter_map(move |unit| {
        let (why, help) = match unit.part_of(gpus, heads) {
            Err(refused) => refused,
            Ok(part) => {
                let help = "No kernel takes the share of one GPU. Use fewer GPUs, or skip it.";
                (refused_by_all(server, &part)?, help)
            }
        };
        Some(Limit { size: gpus, tensor: Some(unit.name.clone()), more: unit.count - 1, why, help })
    });
    of_model.into_iter().chain(of_units)
}

/// Up to how many GPUs an engine can cut an output.
pub(super) fn parallel(server: Server, units: &[Unit], heads: &Heads) -> Parallel {
    let works = |gpus: u64| limits(server, units, heads, gpus).next().is_none();
    let sizes: Vec<u64> = (1..=MOST).filter(|gpus| works(*gpus)).collect();
    let up_to = sizes.iter().copied().rfind(|size| size.is_power_of_two());
    let powers = std::iter::successors(Some(1), |size| Some(2 * size)).take_while(|size| *size <= MOST);
    let limit = powers.into_iter().find_map(|gpus| limits(server, units, heads, gpus).next());
    Parallel { sizes, up_to, limit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, FloatType};

    fn unit(parts: &[(&str, u64)], cols: u64, cut: Cut, symmetric: bool) -> Unit {
        Unit {
            name: "layers.0.x".to_owned(),
            parts: parts.iter().map(|(last, rows)| ((*last).to_owned(), *rows)).collect(),
            cols,
            scheme: Scheme {
                bits: Bits::Four,
                symmetric,
                granularity: Granularity::Group(32),
                scale_type: FloatType::Bf16,
                storage: Storage::Packed,
            },
            activations: ActivationScheme::None,
            cut,
            is_expert: false,
            count: 1,
        }
    }

    fn heads(keys: u64) -> Heads {
        Heads { shared: vec![(16, "attention heads")], keys: Some(keys), experts: None }
    }

    #[test]
    fn every_part_has_whole_words_of_zero_points() {
        let fused = |symmetric| unit(&[("gate_proj", 192), ("up_proj", 192)], 256, Cut::Rows, symmetric);
        assert_eq!(fused(true).part_of(16, &heads(16)).map(|part| part.rows), Ok(24));
        // 24 rows are three words: two parts of one and a half words each.
        let refused = fused(false).part_of(16, &heads(16)).map_err(|(why, _)| why);
        assert_eq!(refused, Err("12 rows per GPU do not fill whole words of 8 zero points".to_owned()));
        assert_eq!(fused(false).part_of(8, &heads(16)).map(|part| part.rows), Ok(48));
    }

    #[test]
    fn few_heads_of_keys_are_doubled() {
        let fused = unit(&[("k_proj", 128), ("q_proj", 1024), ("v_proj", 128)], 256, Cut::Rows, true);
        let rows = |gpus| fused.part_of(gpus, &heads(2)).map(|part| part.rows).ok();
        assert_eq!([1, 2, 4, 8].map(rows), [Some(1280), Some(640), Some(384), Some(256)]);
    }

    #[test]
    fn names_and_shapes_say_how_a_module_is_cut() {
        for (name, rows, cols, cut_as) in [
            ("layers.0.self_attn.q_proj", 256, 256, Cut::Rows),
            ("layers.0.self_attn.o_proj", 256, 256, Cut::Columns),
            ("layers.0.mlp.down_proj", 256, 768, Cut::Columns),
            ("layers.0.mlp.up_proj", 256, 256, Cut::Rows),
            ("encoder.layer.0.attention.output.dense", 256, 256, Cut::Columns),
            ("encoder.layer.0.intermediate.dense", 1024, 256, Cut::Rows),
            // An unknown name that writes to the residual stream by its shape.
            ("layers.0.mixer.back", 256, 1024, Cut::Columns),
            ("layers.0.mixer.into", 1024, 256, Cut::Rows),
            ("layers.0.self_attn.kv_a_proj_with_mqa", 288, 256, Cut::Not),
        ] {
            assert_eq!(cut(name, rows, cols, Some(256)), cut_as, "{name}");
        }
    }
}
