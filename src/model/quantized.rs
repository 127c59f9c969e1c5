//! Already quantized weights: scaled FP8 is described so that it can be dequantized, all else is refused.
//!
//! FP8 originals (DeepSeek, Qwen, MiniMax, compressed-tensors' `float-quantized`) hold `X.weight` in FP8 beside a
//! `X.weight_scale_inv` or `X.weight_scale`. In spite of its name, the first one multiplies, too. A weight is never
//! cast without its scale: if the scale is missing or has an unknown layout, the result would be wrong by orders of
//! magnitude.

use serde_json::Value;

use super::code;
use super::config::Config;
use super::dtype::Dtype;
use super::name_index::NameIndex;
use super::tensor::{Fp8Layout, Fp8Scales, TensorInfo};
use crate::finding::Finding;
use crate::ids::{IdVec, TensorId};

/// Parameters that scale an FP8 `weight` of the same module.
const SCALES: &[&str] = &["weight_scale_inv", "weight_scale"];

/// Parameters that scale the activations of such a module. They have no meaning without FP8 activations.
const ACTIVATION_SCALES: &[&str] = &["input_scale", "activation_scale", "input_scale_ub"];

/// Rows and columns of a block if the config does not give them.
const DEFAULT_BLOCK: [u64; 2] = [128, 128];

/// Names that only a quantized model has: the end of a name, a dtype that it must have, and whose format it
/// is.
const MARKS: &[(&str, Option<Dtype>, &str)] = &[
    (".weight_packed", None, "compressed-tensors"),
    (".qweight", None, "GPTQ or AWQ"),
    (".qzeros", None, "GPTQ or AWQ"),
    ("_blocks", Some(Dtype::U8), "MXFP4"),
    (".weight.absmax", None, "bitsandbytes"),
    (".weight.quant_map", None, "bitsandbytes"),
    (".W_q", None, "HQQ"),
    (".weight", Some(Dtype::I8), "int8 codes"),
    (".weight", Some(Dtype::U8), "packed codes"),
    (".weight", Some(Dtype::U32), "MLX"),
    (".weight", Some(Dtype::I32), "packed codes"),
    (".weight", Some(Dtype::F4), "FP4"),
];

/// Refuses a quantized model, or marks its FP8 weights and their scales in `tensors`.
pub(super) fn recognise(
    config: &Config,
    tensors: &mut IdVec<TensorId, TensorInfo>,
    names: &NameIndex,
    findings: &mut Vec<Finding>,
) {
    let declared = config.quantization_config();
    if let Some(finding) = foreign(declared, tensors) {
        findings.push(finding);
    }
    if findings.iter().any(Finding::is_error) {
        // A missing scale may be in a file that could not be read.
        return;
    }
    let weights: Vec<TensorId> = tensors.ids().filter(|&i| tensors[i].stored.is_fp8()).collect();
    if weights.is_empty() {
        if let Some(declared) = declared {
            findings.push(
                Finding::error(
                    code::ALREADY_QUANTIZED,
                    format!(
                        "`config.json` declares a model quantized by {}, but no weight is",
                        method(declared)
                    ),
                )
                .help("Remove `quantization_config` from `config.json` if these are the full weights."),
            );
        }
        return;
    }
    let block = declared.and_then(block_size).unwrap_or(DEFAULT_BLOCK);
    let (mut first, mut others) = (None, 0);
    for &weight in &weights {
        match scales_of(weight, tensors, names, block) {
            Ok(scales) => mark(weight, scales, tensors, names),
            Err(what) if first.is_none() => first = Some((weight, what)),
            Err(_) => others += 1,
        }
    }
    if let Some((first, what)) = first {
        let name = &tensors[first].name;
        let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        findings.push(
            Finding::error(code::FP8, format!("the FP8 weight `{name}` {what}{more}")).help(
                "FP8 weights are read where `X.weight` has a `X.weight_scale_inv` or `X.weight_scale` for the \
                 tensor, for each row, or for each block of `weight_block_size`. Dequantize the model to BF16 \
                 first.",
            ),
        );
    }
}

/// The finding for a model in another format than scaled FP8.
fn foreign(declared: Option<&Value>, tensors: &IdVec<TensorId, TensorInfo>) -> Option<Finding> {
    let marked = tensors.iter().find_map(|tensor| {
        let mark = MARKS.iter().find(|(end, dtype, _)| {
            let is_matrix_of = |dtype: Dtype| tensor.stored == dtype && tensor.shape.len() > 1;
            tensor.name.ends_with(end) && dtype.is_none_or(is_matrix_of)
        })?;
        Some((tensor, mark.2))
    });
    let has_fp8 = tensors.iter().any(|tensor| tensor.stored.is_fp8());
    let message = match (declared, marked) {
        (Some(declared), Some((tensor, _))) => {
            format!(
                "the model is already quantized by {} (`{}` is {})",
                method(declared),
                tensor.name,
                tensor.describe()
            )
        }
        (None, Some((tensor, format))) => {
            format!("the model is already quantized: `{}` ({}) is {format}", tensor.name, tensor.describe())
        }
        (Some(declared), None) if !has_fp8 && !is_fp8(declared) => {
            format!("the model is already quantized by {}, says `config.json`", method(declared))
        }
        _ => return None,
    };
    Some(Finding::error(code::ALREADY_QUANTIZED, message).help(
        "Quantizing twice adds both errors. Load the original model in BF16, F16 or F32, or dequantize this \
         one with the tool that made it.",
    ))
}

/// Whether a `quantization_config` declares FP8 weights.
fn is_fp8(declared: &Value) -> bool {
    let word = |key| declared.get(key).and_then(Value::as_str).unwrap_or("").to_ascii_lowercase();
    let (method, format, algorithm) = (word("quant_method"), word("format"), word("quant_algo"));
    method.contains("fp8")
        || algorithm.contains("fp8")
        || matches!(format.as_str(), "float-quantized" | "naive-quantized")
}

/// The method name in a `quantization_config`, with the format if it names one.
fn method(declared: &Value) -> String {
    let word = |key| declared.get(key).and_then(Value::as_str);
    let method = word("quant_method").unwrap_or("an unnamed method");
    word("format")
        .or_else(|| word("quant_algo"))
        .map_or(method.to_owned(), |format| format!("{method} ({format})"))
}

/// `weight_block_size`: [rows, columns]. compressed-tensors calls it `block_structure`, in the weights of a group.
fn block_size(declared: &Value) -> Option<[u64; 2]> {
    let groups = declared.get("config_groups").and_then(Value::as_object);
    let in_group =
        groups.and_then(|groups| groups.values().find_map(|g| g.get("weights")?.get("block_structure")));
    let pair = declared.get("weight_block_size").or(in_group)?.as_array()?;
    match pair.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()?[..] {
        [rows, columns] if rows > 0 && columns > 0 => Some([rows, columns]),
        _ => None,
    }
}

/// Finds the scales of an FP8 weight and their layout, or says what is wrong.
fn scales_of(
    weight: TensorId,
    tensors: &IdVec<TensorId, TensorInfo>,
    names: &NameIndex,
    block: [u64; 2],
) -> Result<Fp8Scales, String> {
    let info = &tensors[weight];
    if matches!(info.stored, Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz) {
        return Err(format!("is {}, which is not supported", info.stored));
    }
    let [rows, columns] = info.shape[..] else {
        return Err(format!("has the shape {:?}; only matrices are supported", info.shape));
    };
    if info.parameter() != "weight" {
        return Err("is not a `.weight`, so its scale is not known".to_owned());
    }
    let found: Vec<TensorId> = SCALES
        .iter()
        .filter_map(|scale| names.find(tensors, &format!("{}.{scale}", info.module())))
        .collect();
    let scale = match found[..] {
        [scale] => scale,
        [] => return Err("has no scale".to_owned()),
        _ => return Err("has two scales".to_owned()),
    };
    let scales = &tensors[scale];
    if !(scales.stored.is_float() || scales.stored == Dtype::F8E8m0) {
        return Err(format!("has a scale of dtype {}", scales.stored));
    }
    let blocks = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    let layout = match scales.shape[..] {
        [] | [1] | [1, 1] => Fp8Layout::Tensor,
        [n] | [n, 1] if n == rows => Fp8Layout::Channel,
        [a, b] if [a, b] == blocks => match block.map(u32::try_from) {
            [Ok(rows), Ok(columns)] => Fp8Layout::Block { rows, columns },
            _ => return Err(format!("has blocks of {} rows and {} columns", block[0], block[1])),
        },
        _ => {
            return Err(format!(
                "{:?} has scales {:?}, where [1], [{rows}, 1] or {blocks:?} is known",
                info.shape, scales.shape
            ));
        }
    };
    Ok(Fp8Scales { tensor: scale, layout })
}

fn mark(weight: TensorId, scales: Fp8Scales, tensors: &mut IdVec<TensorId, TensorInfo>, names: &NameIndex) {
    let module = tensors[weight].module().to_owned();
    tensors[weight].dtype = Dtype::Bf16;
    tensors[weight].fp8 = Some(scales);
    tensors[scales.tensor].scale_of = Some(weight);
    for scale in ACTIVATION_SCALES {
        if let Some(i) = names.find(tensors, &format!("{module}.{scale}")) {
            tensors[i].scale_of = Some(weight);
        }
    }
}
