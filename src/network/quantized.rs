//! The tensors of a quantized model as [`Weights`]: compressed-tensors' codes, decoded while they are read.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::code;
use super::weights::Weights;
use crate::finding::{Failure, Finding};
use crate::format::encoding::{self, Contents};
use crate::ids::TensorId;
use crate::model::{Dtype, ModelFolder, TensorInfo};
use crate::quant::{Bits, FloatType, Granularity, Role, Scheme, Storage};

/// Parameters beside the codes of a module.
const COMPANIONS: [&str; 4] = ["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];

/// A quantized model: matrices of codes are decoded, everything else is read as it is.
#[derive(Debug)]
pub struct Quantized<'m> {
    model: &'m ModelFolder,
    checkpoint: Checkpoint<'m>,
    /// By the name of the weight that the codes stand for.
    matrices: BTreeMap<String, Matrix>,
}

/// A matrix of codes.
#[derive(Debug)]
struct Matrix {
    codes: TensorId,
    scales: TensorId,
    zero_points: Option<TensorId>,
    /// The bytes of [`Role::Groups`], if its groups are no runs of columns.
    groups: Option<Vec<u8>>,
    scheme: Scheme,
    rows: usize,
    columns: usize,
    rounds_inputs: bool,
}

impl<'m> Quantized<'m> {
    /// Opens a folder of ours, or one that another tool has written in the same format. `config` is its `config.json`.
    ///
    /// # Errors
    /// If a file cannot be opened, or matrices are stored in a way that is not known.
    pub fn open(model: &'m ModelFolder, config: &Value) -> Result<Self, Failure> {
        let checkpoint = Checkpoint::open(model)?;
        let bad = |finding: Finding| Failure::new(crate::exit::Exit::BadModel, finding);
        let rounded = rounded_inputs(config).map_err(bad)?;
        let mut matrices = BTreeMap::new();
        for (index, tensor) in model.tensors.numbered() {
            let is_packed = tensor.parameter() == "weight_packed";
            let is_plain = tensor.parameter() == "weight" && tensor.stored == Dtype::I8;
            if !(is_packed || is_plain) {
                continue;
            }
            let matrix = Matrix::of(model, &checkpoint, index, is_packed, &rounded).map_err(bad)?;
            matrices.insert(format!("{}.weight", tensor.module()), matrix);
        }
        Ok(Self { model, checkpoint, matrices })
    }

    /// Whether engines round the inputs of a module to eight bits.
    #[must_use]
    pub fn rounds_inputs_of(&self, module: &str) -> bool {
        self.matrices.get(&format!("{module}.weight")).is_some_and(|matrix| matrix.rounds_inputs)
    }

    /// The matrices of codes by the name of the weight that they stand for, each with its scheme and the bytes of its parts.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, &Scheme, u64)> {
        self.matrices.iter().map(|(name, matrix)| {
            let parts = [Some(matrix.codes), Some(matrix.scales), matrix.zero_points];
            let bytes = parts.into_iter().flatten().map(|part| self.model.tensors[part].bytes).sum();
            (name.as_str(), &matrix.scheme, bytes)
        })
    }

    fn decode(&self, name: &str, matrix: &Matrix, rows: &Range<usize>) -> Result<Vec<f32>, Finding> {
        let (scheme, columns) = (&matrix.scheme, matrix.columns);
        // Zero points of some rows may lie in one word.
        let step = scheme.row_multiple().max(1);
        let start = rows.start / step * step;
        let count = rows.end.next_multiple_of(step).min(matrix.rows).saturating_sub(start);
        let encoding = encoding::of(scheme);
        let mut parts: Vec<(Role, Vec<u8>)> = Vec::new();
        for (role, tensor) in [
            (Role::Codes, Some(matrix.codes)),
            (Role::Scales, Some(matrix.scales)),
            (Role::ZeroPoints, matrix.zero_points),
        ] {
            let Some(tensor) = tensor.map(|index| &self.model.tensors[index]) else { continue };
            let part = encoding.part(scheme, role, count as u64, columns as u64);
            let offset = match part.contents {
                Contents::Rows { .. } => encoding.part(scheme, role, start as u64, columns as u64).bytes,
                Contents::Same | Contents::Constant(_) => 0,
            };
            parts.push((role, self.checkpoint.bytes(tensor, offset, part.bytes)?));
        }
        let part = |role: Role| match role {
            Role::Groups => matrix.groups.as_deref(),
            _ => parts.iter().find(|(of, _)| *of == role).map(|(_, bytes)| bytes.as_slice()),
        };
        let weights = encoding.decode(scheme, count, columns, &part);
        let mut weights = weights.ok_or_else(|| {
            Finding::error(code::WRONG_SHAPE, format!("the codes of `{name}` cannot be decoded"))
                .help("Their scales or zero points have another size than the codes need.")
        })?;
        weights.truncate((rows.end - start) * columns);
        weights.drain(..(rows.start - start) * columns);
        Ok(weights)
    }
}

impl Weights for Quantized<'_> {
    fn names(&self) -> Vec<String> {
        let is_part = |tensor: &TensorInfo| {
            let (module, parameter) = (tensor.module(), tensor.parameter());
            let is_code = parameter == "weight_packed" || COMPANIONS.contains(&parameter);
            is_code && self.matrices.contains_key(&format!("{module}.weight"))
        };
        let plain = self.checkpoint.names().into_iter().filter(|name| {
            !self.matrices.contains_key(name) && !self.model.by_name(name).is_some_and(is_part)
        });
        plain.chain(self.matrices.keys().cloned()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.matrices.get(name) {
            Some(matrix) => Some(vec![matrix.rows, matrix.columns]),
            None => self.checkpoint.shape(name),
        }
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        match self.matrices.get(name) {
            Some(matrix) => self.decode(name, matrix, &rows),
            None => self.checkpoint.read(name, rows),
        }
    }
}

impl Matrix {
    fn of(
        model: &ModelFolder,
        checkpoint: &Checkpoint<'_>,
        codes: TensorId,
        is_packed: bool,
        rounded: &[(u64, bool)],
    ) -> Result<Self, Finding> {
        let tensor = &model.tensors[codes];
        let module = tensor.module();
        let beside = |parameter: &str| model.find(&format!("{module}.{parameter}"));
        let unknown = |what: &str| {
            Finding::error(
                code::NOT_ADMITTED,
                format!("`{module}` is stored in a way that cannot be run: {what}"),
            )
            .help("Codes of compressed-tensors in 4 or 8 bits with scales of floating-point numbers can be.")
        };
        let scales = beside("weight_scale").ok_or_else(|| unknown("it has no `weight_scale`"))?;
        let (rows, columns) = match is_packed {
            false => pair(&tensor.shape.iter().copied().collect::<Vec<u64>>()),
            true => beside("weight_shape").and_then(|index| {
                let shape = &model.tensors[index];
                let shape = integers(checkpoint, shape)?.into_iter().map(|n| u64::try_from(n).ok());
                pair(&shape.collect::<Option<Vec<u64>>>()?)
            }),
        }
        .filter(|(rows, columns)| *rows > 0 && *columns > 0)
        .ok_or_else(|| unknown("its shape is not known"))?;
        let words = tensor.shape.last().copied().unwrap_or(0) as usize;
        let bits = match is_packed {
            true if words == columns.div_ceil(8) => Bits::Four,
            true if words == columns.div_ceil(4) => Bits::Eight,
            true => return Err(unknown("its codes have another width than 4 or 8 bits")),
            false => Bits::Eight,
        };
        let of_scales = &model.tensors[scales];
        let scale_type = match of_scales.stored {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::Bf16 => FloatType::Bf16,
            other => return Err(unknown(&format!("its scales are {other}"))),
        };
        let groups = of_scales.elements() as usize;
        let granularity = match groups / rows.max(1) {
            0 if groups == 1 => Granularity::Tensor,
            1 if groups == rows && rows > 1 => Granularity::Channel,
            1 if rows == 1 => Granularity::Channel,
            per_row if per_row * rows == groups && columns.is_multiple_of(per_row) => {
                Granularity::Group(columns / per_row)
            }
            _ => return Err(unknown("its scales do not divide its rows")),
        };
        let zero_points = beside("weight_zero_point");
        let scheme = Scheme {
            bits,
            symmetric: zero_points.is_none(),
            granularity,
            scale_type,
            storage: if is_packed { Storage::Packed } else { Storage::Plain },
        };
        let groups = match beside("weight_g_idx") {
            None => None,
            Some(index) => integers(checkpoint, &model.tensors[index])
                .ok_or("its `weight_g_idx` holds no whole numbers")
                .and_then(|of| groups_of(&scheme, columns, &of))
                .map_err(unknown)?,
        };
        let rounds_inputs = rounded.contains(&(bits.count() as u64, scheme.symmetric));
        Ok(Self { codes, scales, zero_points, groups, scheme, rows, columns, rounds_inputs })
    }
}

/// The numbers of a small tensor of whole numbers. None if it is no such tensor.
fn integers(checkpoint: &Checkpoint<'_>, tensor: &TensorInfo) -> Option<Vec<i64>> {
    let bytes = checkpoint.bytes(tensor, 0, tensor.bytes).ok()?;
    Some(match tensor.stored {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        _ => return None,
    })
}

/// The bytes of [`Role::Groups`] by `weight_g_idx`, the group of each column. None if groups are runs of columns; they are so too
/// if a column has none (−1), which is what compressed-tensors begins with.
fn groups_of(scheme: &Scheme, columns: usize, of: &[i64]) -> Result<Option<Vec<u8>>, &'static str> {
    if of.len() != columns {
        return Err("its `weight_g_idx` has not one number for each column");
    }
    let size = scheme.group_cols(columns).max(1);
    let is_run = |(column, group): (usize, &i64)| usize::try_from(*group) == Ok(column / size);
    let count = scheme.groups_per_row(columns);
    if count <= 1 || of.contains(&-1) || of.iter().enumerate().all(is_run) {
        return Ok(None);
    }
    let is_group = |group: i64| usize::try_from(group).is_ok_and(|group| group < count);
    let of = of.iter().map(|group| i32::try_from(*group).ok().filter(|_| is_group(*group)));
    let of = of.collect::<Option<Vec<i32>>>();
    let of = of.ok_or("its `weight_g_idx` names groups that have no scale")?;
    Ok(Some(of.into_iter().flat_map(i32::to_le_bytes).collect()))
}

fn pair(shape: &[u64]) -> Option<(usize, usize)> {
    let &[rows, columns] = shape else { return None };
    Some((usize::try_from(rows).ok()?, usize::try_from(columns).ok()?))
}

/// Widths and symmetry of weights whose inputs are rounded for each token, by `quantization_config`.
fn rounded_inputs(config: &Value) -> Result<Vec<(u64, bool)>, Finding> {
    let groups = config.pointer("/quantization_config/config_groups").and_then(Value::as_object);
    let mut found = Vec::new();
    for group in groups.into_iter().flat_map(|groups| groups.values()) {
        let inputs = &group["input_activations"];
        if inputs.is_null() {
            continue;
        }
        let is_known = inputs["dynamic"] == true
            && inputs["num_bits"] == 8
            && inputs["type"] == "int"
            && inputs["strategy"] == "token";
        if !is_known {
            return Err(Finding::error(
                code::NOT_ADMITTED,
                "the model's activations are quantized in a way that cannot be run",
            )
            .help("Dynamic eight-bit integers for each token can be."));
        }
        let weights = &group["weights"];
        found.push((
            weights["num_bits"].as_u64().unwrap_or(8),
            weights["symmetric"].as_bool().unwrap_or(true),
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype as Type, TensorView};
    use serde_json::json;

    use super::*;

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
        let config =
            json!({"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors"}});
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
                Err(failure) => Err(failure.findings[0].message.clone()),
            })
        };
        let plain = with(None).unwrap();
        assert_eq!(with(Some((0..48).map(|column| column / 16).collect())), Ok(plain.clone()));
        assert_eq!(with(Some(vec![-1; 48])), Ok(plain.clone()), "as it is before there is an order");
        assert_ne!(with(Some((0..48).map(|column| column % 3).collect())), Ok(plain));
        let refused = |order: Vec<i32>| with(Some(order)).unwrap_err();
        let start = format!("`{CASE}` is stored in a way that cannot be run: its `weight_g_idx` ");
        assert_eq!(refused(vec![3; 48]), format!("{start}names groups that have no scale"));
        assert_eq!(refused(vec![-2; 48]), format!("{start}names groups that have no scale"));
        assert_eq!(refused(vec![0; 47]), format!("{start}has not one number for each column"));
    }
}
