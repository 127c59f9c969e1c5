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
const COMPANIONS: [&str; 3] = ["weight_scale", "weight_zero_point", "weight_shape"];

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
        let part = |role: Role| parts.iter().find(|(of, _)| *of == role).map(|(_, bytes)| bytes.as_slice());
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
        if beside("weight_g_idx").is_some() {
            return Err(unknown("its columns are in another order (`weight_g_idx`)"));
        }
        let scales = beside("weight_scale").ok_or_else(|| unknown("it has no `weight_scale`"))?;
        let (rows, columns) = match is_packed {
            false => pair(&tensor.shape.iter().copied().collect::<Vec<u64>>()),
            true => beside("weight_shape").and_then(|index| {
                let shape = &model.tensors[index];
                let bytes = checkpoint.bytes(shape, 0, shape.bytes).ok()?;
                pair(&bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect::<Vec<u64>>())
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
        let rounds_inputs = rounded.contains(&(bits.count() as u64, scheme.symmetric));
        Ok(Self { codes, scales, zero_points, scheme, rows, columns, rounds_inputs })
    }
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
