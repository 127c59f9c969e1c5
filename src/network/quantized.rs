//! The tensors of a quantized model as [`Weights`]: codes of compressed-tensors, decoded while they are read.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::code;
use super::weights::Weights;
use crate::finding::{Failure, Finding};
use crate::model::{Dtype, ModelFolder, TensorInfo};

/// How engines round the inputs of a matrix while they run, each token by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputRounding {
    /// To integers of eight bits.
    Int8,
    /// To floats of eight bits, so many inputs at a time; all at once if 0.
    Float8(usize),
}

/// A quantized model: matrices of codes are decoded, everything else is read as it is.
#[derive(Debug)]
pub struct Quantized<'m> {
    model: &'m ModelFolder,
    checkpoint: Checkpoint<'m>,
    /// The modules whose inputs engines round.
    rounded: BTreeMap<String, InputRounding>,
}

impl<'m> Quantized<'m> {
    /// Opens a folder of ours, or one that another tool has written in the same format. `config` is its `config.json`.
    ///
    /// # Errors
    /// If a file cannot be opened, or matrices are stored in a way that is not known.
    pub fn open(model: &'m ModelFolder, config: &Value) -> Result<Self, Failure> {
        let checkpoint = Checkpoint::open(model)?;
        let bad = |finding: Finding| Failure::new(crate::exit::Exit::BadModel, finding);
        if let Some(codes) = model.tensors.iter().find(|tensor| tensor.is_unknown_code()) {
            return Err(bad(unknown(model, codes)));
        }
        let schemes = rounded_inputs(config).map_err(bad)?;
        let of = |tensor: &TensorInfo| {
            let scheme = schemes.iter().find(|scheme| scheme.is_of(model, tensor))?;
            Some((tensor.module().to_owned(), scheme.inputs))
        };
        let rounded = model.tensors.iter().filter_map(of).collect();
        Ok(Self { model, checkpoint, rounded })
    }

    /// How engines round the inputs of a module; None if they do not.
    #[must_use]
    pub fn rounding_of(&self, module: &str) -> Option<InputRounding> {
        self.rounded.get(module).copied()
    }

    /// The matrices of codes by the name of the weight that they stand for, each with its scheme in words and the bytes of its
    /// parts.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, String, u64)> {
        self.model.tensors.numbered().filter_map(|(index, tensor)| {
            let encoded = tensor.encoded.as_ref()?;
            let scheme = match encoded.matrix.exact() {
                Ok(exact) => exact.scheme.to_string(),
                Err(_) => encoded.encoding.name().to_owned(),
            };
            let bytes = self.model.parts_of(index).map(|part| self.model.tensors[part].bytes).sum();
            Some((&*tensor.name, scheme, bytes))
        })
    }
}

impl Weights for Quantized<'_> {
    fn names(&self) -> Vec<String> {
        self.checkpoint.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.checkpoint.shape(name)
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        self.checkpoint.read(name, rows)
    }
}

/// The error of codes that no encoding reads: what was said of them when the model was opened.
fn unknown(model: &ModelFolder, codes: &TensorInfo) -> Finding {
    let message = format!("`{}` ({}) is stored in a way that cannot be run", codes.name, codes.describe());
    let finding = Finding::error(code::NOT_ADMITTED, message);
    match model.warnings.iter().find(|warning| warning.message.contains(&*codes.name)) {
        Some(why) => finding.help(why.message.clone()),
        None => finding.help("Codes of compressed-tensors can be, as `monoquant inspect` shows."),
    }
}

/// The weights of a group of compressed-tensors, as far as tensors show them.
#[derive(Debug, Clone, Copy)]
struct GroupWeights {
    bits: u64,
    is_symmetric: bool,
    is_float: bool,
    inputs: InputRounding,
}

impl GroupWeights {
    /// Whether a tensor holds such codes.
    fn is_of(self, model: &ModelFolder, tensor: &TensorInfo) -> bool {
        let &[rows, columns] = &tensor.shape[..] else { return false };
        let words = (columns * self.bits).div_ceil(32);
        let has_width = match tensor.stored {
            _ if self.is_float => tensor.stored.is_fp8(),
            Dtype::I8 => true,
            Dtype::I32 => tensor.bytes == rows * words * 4,
            _ => false,
        };
        let zero_points = model.find(&format!("{}.weight_zero_point", tensor.module()));
        tensor.encoded.is_some() && has_width && zero_points.is_none() == self.is_symmetric
    }
}

/// The weights whose inputs are rounded for each token, by `quantization_config`.
fn rounded_inputs(config: &Value) -> Result<Vec<GroupWeights>, Finding> {
    let groups = config.pointer("/quantization_config/config_groups").and_then(Value::as_object);
    let mut found = Vec::new();
    for group in groups.into_iter().flat_map(|groups| groups.values()) {
        let inputs = &group["input_activations"];
        if inputs.is_null() {
            continue;
        }
        let is_dynamic = inputs["dynamic"] == true && inputs["num_bits"] == 8;
        let known = match (inputs["type"].as_str(), inputs["strategy"].as_str()) {
            (Some("int"), Some("token")) => Some(InputRounding::Int8),
            (Some("float"), Some("token")) => Some(InputRounding::Float8(0)),
            (Some("float"), Some("group")) => {
                let size = inputs["group_size"].as_u64().and_then(|size| usize::try_from(size).ok());
                size.filter(|size| *size > 0).map(InputRounding::Float8)
            }
            _ => None,
        };
        let Some(rounding) = known.filter(|_| is_dynamic) else {
            return Err(Finding::error(
                code::NOT_ADMITTED,
                "the model's activations are quantized in a way that cannot be run",
            )
            .help("Dynamic integers or floats of eight bits, for each token or group of it, can be."));
        };
        let weights = &group["weights"];
        found.push(GroupWeights {
            bits: weights["num_bits"].as_u64().unwrap_or(8),
            is_symmetric: weights["symmetric"].as_bool().unwrap_or(true),
            is_float: weights["type"] == "float",
            inputs: rounding,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype as Type, TensorView};
    use serde_json::json;

    use super::*;
    use crate::quant::FloatType;

    type Tensors = BTreeMap<String, (Type, Vec<usize>, Vec<u8>)>;

    /// The golden's tensors by name.
    fn golden() -> Tensors {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/activation-order.safetensors");
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let own = |(name, view): (String, TensorView<'_>)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        tensors.tensors().into_iter().map(own).collect()
    }

    /// What is found of tensors that lie in a folder as a model.
    fn opened<T>(tensors: &Tensors, look: impl Fn(Result<Quantized<'_>, Failure>) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let mut views = Vec::new();
        for (name, (dtype, shape, data)) in tensors.iter().filter(|(name, _)| !name.ends_with(".decoded")) {
            views.push((name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        }
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let config = json!({"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {
                "group_0": {"weights": {"num_bits": 4}}, "group_1": {"weights": {"num_bits": 8}}}}});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let source =
            crate::format::source::open(&folder.path().display().to_string(), Path::new("."), &[]).unwrap();
        let model = crate::model::look(source).unwrap();
        look(Quantized::open(&model, &config))
    }

    #[test]
    fn groups_in_the_order_of_activations_are_decoded_as_compressed_tensors_does() {
        let golden = golden();
        let cases: Vec<&str> = golden.keys().filter_map(|name| name.strip_suffix(".decoded")).collect();
        assert_eq!(cases.len(), 12);
        opened(&golden, |quantized| {
            let quantized = quantized.unwrap();
            for case in &cases {
                let (dtype, shape, bytes) = &golden[&format!("{case}.decoded")];
                let stored = match dtype {
                    Type::F32 => FloatType::F32,
                    Type::F16 => FloatType::F16,
                    _ => FloatType::Bf16,
                };
                let name = format!("{case}.weight");
                assert_eq!(quantized.shape(&name).as_ref(), Some(shape), "{case}");
                let all = stored.widen(bytes);
                assert_eq!(quantized.read(&name, 0..shape[0]).unwrap(), all, "{case}");
                // Rows whose zero points lie in one word with others.
                assert_eq!(quantized.read(&name, 5..11).unwrap(), all[5 * shape[1]..11 * shape[1]], "{case}");
            }
        });
    }

    #[test]
    fn an_order_that_says_nothing_is_none_and_one_that_cannot_be_is_named() {
        const CASE: &str = "int4-symmetric-float32";
        let golden = golden();
        let own = golden.iter().filter(|(name, _)| name.starts_with(&format!("{CASE}.")));
        let own: Tensors = own.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        let with = |order: Option<Vec<i32>>| {
            let mut tensors = own.clone();
            let order = order.map(|order| {
                (Type::I32, vec![order.len()], order.into_iter().flat_map(i32::to_le_bytes).collect())
            });
            match order {
                Some(order) => tensors.insert(format!("{CASE}.weight_g_idx"), order),
                None => tensors.remove(&format!("{CASE}.weight_g_idx")),
            };
            opened(&tensors, |found| match found {
                Ok(found) => Ok(found.read(&format!("{CASE}.weight"), 0..13).unwrap()),
                Err(failure) => Err([failure.findings[0].message.clone(), failure.findings[0].help.concat()]),
            })
        };
        let plain = with(None).unwrap();
        assert_eq!(with(Some((0..48).map(|column| column / 16).collect())), Ok(plain.clone()));
        assert_eq!(with(Some(vec![-1; 48])), Ok(plain.clone()), "as it is before there is an order");
        assert_ne!(with(Some((0..48).map(|column| column % 3).collect())), Ok(plain));
        let refused = |order: Vec<i32>| with(Some(order)).unwrap_err();
        for (order, why) in [
            (vec![3; 48], "puts a column into group 3 of 3"),
            (vec![-2; 48], "puts a column into group -2 of 3"),
            (vec![0; 47], "I32 [47] for 48 columns"),
        ] {
            let [message, help] = refused(order);
            assert!(
                message.contains(CASE) && message.ends_with("stored in a way that cannot be run"),
                "{message}"
            );
            assert!(help.contains(why), "{help}");
        }
    }
}
