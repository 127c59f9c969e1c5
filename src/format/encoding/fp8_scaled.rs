//! Scaled FP8, as DeepSeek, Qwen, MiniMax, ModelOpt and compressed-tensors' `float-quantized` and `mxfp8-quantized` store
//! it. It is only read.
//!
//! `X.weight` in FP8 lies beside a `X.weight_scale_inv`, `X.weight_scale` or `X.scale`, whose elements are floats or
//! exponents (E8M0) alone. In spite of its name, the first one multiplies, too: a weight is code × scale in F32, rounded
//! once, half to even, to BF16, as the models' own code dequantizes, or to the type of the scales, as compressed-tensors does. Blocks are cut at multiples of their size from the
//! start, so the last ones may be smaller.

use std::ops::Range;

use serde_json::Value;

use super::declared::{activations, has_format, weights, word};
use super::mxfp4::experts;
use super::small_floats::{E4M3, E5M2, e4m3, e8m0, finite_scale, scale};
use super::{
    Catalog, Encoding, Exact, Fetched, Ranges, ReadEncoding, Recognized, Refusal, StoredMatrix, StoredTensor,
};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;
use crate::quant::{Bits, FloatType, Granularity, Integers, Isa, Scheme, Storage};
use crate::stage::ActivationScheme;

/// Parameters that scale an FP8 `weight` of the same module.
const SCALES: &[&str] = &["weight_scale_inv", "weight_scale", "scale"];

/// Parameters that scale the activations of such a module. They have no meaning without FP8 activations.
const ACTIVATION_SCALES: &[&str] = &["input_scale", "activation_scale", "input_scale_ub"];

/// Rows and columns of a block if the config does not give them.
const DEFAULT_BLOCK: [u64; 2] = [128, 128];

/// Rows and columns of blocks that are written.
const BLOCK: u64 = 128;

/// Columns of one row that share an exponent in MXFP8.
const MX_GROUP: u64 = 32;

/// FP8 codes with float scales.
#[derive(Debug)]
pub(super) struct Fp8Scaled;

impl Encoding for Fp8Scaled {
    fn name(&self) -> &'static str {
        "fp8-scaled"
    }

    fn read(&self) -> Option<&dyn ReadEncoding> {
        Some(self)
    }
}

impl ReadEncoding for Fp8Scaled {
    fn is_declared(&self, declaration: &Value) -> bool {
        let formats = ["float-quantized", "naive-quantized", "mxfp8-quantized"];
        word(declaration, "quant_method").contains("fp8")
            || word(declaration, "quant_algo").contains("fp8")
            || formats.iter().any(|format| has_format(declaration, format))
    }

    fn recognize(&self, model: &dyn Catalog, tensor: TensorId) -> Option<Result<Recognized, String>> {
        let codes = model.tensor(tensor);
        codes.dtype.is_fp8().then(|| recognized(model, codes))
    }

    /// A `scale` may be a parameter of its own.
    fn parts(&self) -> &'static [&'static str] {
        &["weight_scale_inv", "weight_scale"]
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: "model::fp8-scales",
            what: "FP8 weight",
            help: "FP8 weights are read where `X.weight` has a `X.weight_scale_inv`, `X.weight_scale` or `X.scale` for the tensor, \
                   for each row, for each block of `weight_block_size`, or as exponents of 32 columns each. Dequantize the model \
                   to BF16 first.",
        }
    }
}

fn recognized(model: &dyn Catalog, codes: StoredTensor<'_>) -> Result<Recognized, String> {
    if matches!(codes.dtype, Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz) {
        return Err(format!("is {}, which is not supported", codes.dtype));
    }
    let &[rows, columns] = codes.shape else {
        return Err(format!("has the shape {:?}; only matrices are supported", codes.shape));
    };
    let (module, parameter) = codes.module_and_parameter();
    if parameter != "weight" {
        return Err("is not a `.weight`, so its scale is not known".to_owned());
    }
    let find = |parameter: &&str| model.find(&format!("{module}.{parameter}"));
    let part = match SCALES.iter().filter_map(find).collect::<Vec<_>>()[..] {
        [part] => part,
        [] => return Err("has no scale".to_owned()),
        _ => return Err("has two scales".to_owned()),
    };
    let scales = model.tensor(part);
    let Some(scale_bytes) = scale_bytes(scales.dtype) else {
        return Err(format!("has a scale of dtype {}", scales.dtype));
    };
    let declared = model.declaration().and_then(block_size);
    let [height, width] = declared.unwrap_or(DEFAULT_BLOCK);
    let blocks = [rows.div_ceil(height), columns.div_ceil(width)];
    let layout = match *scales.shape {
        // One block has one scale, as a tensor has.
        [a, b] if declared.is_some() && [a, b] == blocks => Layout::Block { rows: height, columns: width },
        [] | [1] | [1, 1] => Layout::Tensor,
        [n] | [n, 1] if n == rows => Layout::Channel,
        [a, b] if [a, b] == blocks => Layout::Block { rows: height, columns: width },
        [a, b] if is_exponent(scales.dtype) && [a, b] == [rows, columns.div_ceil(MX_GROUP)] => {
            Layout::Block { rows: 1, columns: MX_GROUP }
        }
        _ => {
            return Err(format!(
                "{:?} has scales {:?}, where [1], [{rows}, 1] or {blocks:?} is known",
                codes.shape, scales.shape
            ));
        }
    };
    if let Some(told) = experts(model).filter(|told| told == "fp4" && codes.name.contains(".experts.")) {
        return Err(format!("is FP8, and `expert_dtype` in `config.json` says {told}"));
    }
    let activations = engines_activations(model);
    let matrix =
        Matrix { codes: codes.dtype, scales: scales.dtype, scale_bytes, columns, layout, activations };
    Ok(Recognized {
        name: None,
        shape: codes.shape.to_vec(),
        dtype: meant_type(model, scales.dtype),
        parts: vec![part],
        unused: ACTIVATION_SCALES.iter().filter_map(find).collect(),
        matrix: Box::new(matrix),
    })
}

/// The type that weights mean: compressed-tensors rounds them to that of the scales, all others to BF16.
fn meant_type(model: &dyn Catalog, scales: Dtype) -> Dtype {
    let formats = ["float-quantized", "naive-quantized"];
    let is_written = |declared| formats.iter().any(|format| has_format(declared, format));
    match scales {
        Dtype::F32 | Dtype::F16 if model.declaration().is_some_and(is_written) => scales,
        _ => Dtype::Bf16,
    }
}

/// How engines treat the inputs of FP8 weights: as compressed-tensors says, and else as FP8. None if in a way that is not
/// written.
fn engines_activations(model: &dyn Catalog) -> Option<ActivationScheme> {
    match model.declaration() {
        Some(declared) if declared.get("config_groups").is_some() => activations(declared),
        _ => Some(ActivationScheme::DynamicTokenFp8),
    }
}

/// `weight_block_size`: [rows, columns]. compressed-tensors calls it `block_structure`, in the weights of a group.
fn block_size(declaration: &Value) -> Option<[u64; 2]> {
    let in_group = || weights(declaration).find_map(|weights| weights.get("block_structure"));
    let pair = declaration.get("weight_block_size").or_else(in_group)?.as_array()?;
    match pair.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()?[..] {
        [rows, columns] if rows > 0 && columns > 0 => Some([rows, columns]),
        _ => None,
    }
}

/// The size of a scale. None if scales cannot have the type.
fn scale_bytes(dtype: Dtype) -> Option<u64> {
    (dtype.is_float() || is_exponent(dtype)).then(|| dtype.bytes())?
}

/// Whether scales of this type are powers of two alone.
fn is_exponent(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8E8m0 | Dtype::U8)
}

/// A matrix [out, in] of FP8 codes with its scales.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    codes: Dtype,
    scales: Dtype,
    scale_bytes: u64,
    columns: u64,
    layout: Layout,
    /// How engines treat its inputs. None if in a way that is not written.
    activations: Option<ActivationScheme>,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// All: the scale is `[]` or `[1]`.
    Tensor,
    /// One scale per row: the scale tensor is `[out]` or `[out, 1]`.
    Channel,
    /// One scale per block of `rows` × `columns`: the scale tensor is [ceil(out / rows), ceil(in / columns)]. The last
    /// blocks may be smaller.
    Block { rows: u64, columns: u64 },
}

impl Matrix {
    /// The numbers of the scales of some rows.
    fn scales_of(&self, rows: Range<u64>) -> Range<u64> {
        match self.layout {
            Layout::Tensor => 0..1,
            Layout::Channel => rows,
            Layout::Block { rows: height, columns: width } => {
                let across = self.columns.div_ceil(width);
                rows.start / height * across..rows.end.div_ceil(height) * across
            }
        }
    }
}

impl StoredMatrix for Matrix {
    fn ranges(&self, part: usize, rows: Range<u64>) -> Ranges {
        match part {
            0 => Ranges::elements(rows.start * self.columns..rows.end * self.columns, 1),
            _ => Ranges::elements(self.scales_of(rows), self.scale_bytes),
        }
    }

    fn exact(&self) -> Result<Exact, String> {
        if self.codes != Dtype::F8E4m3 {
            return Err(format!("codes of {} are read, and not written", self.codes));
        }
        let (granularity, because) = match self.layout {
            Layout::Tensor => (Granularity::Channel, "codes copied, the scale of all given to each row"),
            Layout::Channel => (Granularity::Channel, "codes and scales copied"),
            Layout::Block { rows: BLOCK, columns: BLOCK } => {
                (Granularity::Block(BLOCK as usize), "codes and scales copied")
            }
            Layout::Block { rows, columns } => {
                return Err(format!("blocks of {rows} × {columns} are read, and not written"));
            }
        };
        let scale_type = match self.scales {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            // Powers of two are exact in BF16.
            Dtype::Bf16 | Dtype::F8E8m0 | Dtype::U8 => FloatType::Bf16,
            other => return Err(format!("scales of {other} are not written")),
        };
        let scheme =
            Scheme { bits: Bits::Eight, symmetric: true, granularity, scale_type, storage: Storage::Float8 };
        let activations = self.activations.ok_or("its inputs are quantized in a way that is not written")?;
        Ok(Exact { scheme, activations, because })
    }

    fn relabel_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut Integers) -> Result<(), String> {
        let codes = fetched.bytes(0, (row - fetched.rows.start) * self.columns, self.columns)?;
        if codes.iter().any(|code| E4M3[usize::from(*code)].is_nan()) {
            return Err("has a weight that is no number".to_owned());
        }
        out.codes.extend_from_slice(codes);
        // The rows of a block share its scales.
        if matches!(self.layout, Layout::Block { rows, .. } if !row.is_multiple_of(rows)) {
            return Ok(());
        }
        let (of_row, of_all) = (self.scales_of(row..row + 1), self.scales_of(fetched.rows.clone()));
        let first = (of_row.start - of_all.start) * self.scale_bytes;
        let scales = fetched.bytes(1, first, (of_row.end - of_row.start) * self.scale_bytes)?;
        for number in 0..(of_row.end - of_row.start) as usize {
            finite_scale(scale(self.scales, scales, number))?;
        }
        match is_exponent(self.scales) {
            true => FloatType::Bf16
                .narrow(&scales.iter().map(|code| e8m0(*code)).collect::<Vec<f32>>(), &mut out.scales),
            false => out.scales.extend_from_slice(scales),
        }
        Ok(())
    }

    fn decode_row(&self, fetched: &Fetched<'_>, row: u64, out: &mut [f32]) -> Result<(), String> {
        let codes = fetched.bytes(0, (row - fetched.rows.start) * self.columns, self.columns)?;
        let (of_row, of_all) = (self.scales_of(row..row + 1), self.scales_of(fetched.rows.clone()));
        let first = (of_row.start - of_all.start) * self.scale_bytes;
        let scales = fetched.bytes(1, first, (of_row.end - of_row.start) * self.scale_bytes)?;
        let width = match self.layout {
            Layout::Block { columns, .. } => usize::try_from(columns).unwrap_or(usize::MAX),
            Layout::Tensor | Layout::Channel => codes.len().max(1),
        };
        let scales = (0..codes.len().div_ceil(width))
            .map(|number| finite_scale(scale(self.scales, scales, number)))
            .collect::<Result<Vec<f32>, String>>()?;
        Isa::detect().run(Decode { codes, of: self.codes, width, scales: &scales, out });
        Ok(())
    }
}

/// A row of codes times its scales, compiled for each instruction set.
struct Decode<'a> {
    codes: &'a [u8],
    of: Dtype,
    /// Columns that share a scale.
    width: usize,
    scales: &'a [f32],
    out: &'a mut [f32],
}

impl Job for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, _: M) {
        let blocks = self.out.chunks_mut(self.width).zip(self.codes.chunks(self.width));
        for ((out, codes), &scale) in blocks.zip(self.scales) {
            let pairs = out.iter_mut().zip(codes);
            match self.of {
                Dtype::F8E4m3 => pairs.for_each(|(out, &code)| *out = e4m3(code) * scale),
                _ => pairs.for_each(|(out, &code)| *out = E5M2[usize::from(code)] * scale),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::test_model::TestModel;
    use super::*;

    /// The bytes of scales in a type.
    fn stored(dtype: Dtype, scales: &[f32]) -> Vec<u8> {
        let bytes = |scale: &f32| match dtype {
            Dtype::F64 => f64::from(*scale).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*scale).to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(*scale).to_le_bytes().to_vec(),
            Dtype::F8E8m0 | Dtype::U8 => vec![(scale.to_bits() >> 23) as u8],
            _ => scale.to_le_bytes().to_vec(),
        };
        scales.iter().flat_map(bytes).collect()
    }

    fn read(model: &TestModel) -> Recognized {
        model.recognize(&Fp8Scaled, "m.weight").unwrap().unwrap()
    }

    proptest! {
        /// Any rows mean what they mean in the whole matrix, and that is code × scale.
        #[test]
        fn rows_are_those_of_the_whole(
            (rows, columns) in (1_u64..40, 1_u64..40),
            (height, width) in (1_u64..17, 1_u64..17),
            layout in 0_usize..4,
            codes in prop_oneof![Just(Dtype::F8E4m3), Just(Dtype::F8E5m2)],
            scale_type in prop::sample::select(
                vec![Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16, Dtype::F8E8m0, Dtype::U8]),
            (from, to) in (0_u64..40, 0_u64..40),
            seed in prop::collection::vec(any::<u8>(), 61),
            naming in 0_usize..3,
        ) {
            let across = columns.div_ceil(width);
            let shape = match layout {
                0 => vec![],
                1 => vec![rows],
                2 => vec![rows, 1],
                _ => vec![rows.div_ceil(height), across],
            };
            let bytes: Vec<u8> =
                (0..rows * columns).map(|n| seed[n as usize % 61].wrapping_add((n / 61) as u8)).collect();
            // Powers of two are the same in each type.
            let scales: Vec<f32> =
                (0..shape.iter().product()).map(|n: u64| 2_f32.powi((n * 7 % 23) as i32 - 11)).collect();
            let name = ["m.weight_scale_inv", "m.weight_scale", "m.scale"][naming];
            let mut model = TestModel::default()
                .with("m.weight", codes, &[rows, columns], bytes.clone())
                .with(name, scale_type, &shape, stored(scale_type, &scales));
            model.declaration = Some(json!({"quant_method": "fp8", "weight_block_size": [height, width]}));
            let found = read(&model);
            prop_assert_eq!((&found.shape, found.dtype), (&vec![rows, columns], Dtype::Bf16));

            let whole = model.rows("m.weight", &found, 0..rows).unwrap();
            // A grid of one column or one element looks like scales of rows, or of the tensor.
            let is_channel = matches!(*shape, [n] | [n, 1] if n == rows);
            let table = if codes == Dtype::F8E4m3 { &E4M3 } else { &E5M2 };
            for (n, (weight, code)) in (0..).zip(whole.iter().zip(&bytes)) {
                let (row, column) = (n / columns, n % columns);
                let at = match scales.len() {
                    1 => 0,
                    _ if is_channel => row,
                    _ => row / height * across + column / width,
                };
                let meant = table[usize::from(*code)] * scales[at as usize];
                prop_assert_eq!(weight.to_bits(), meant.to_bits(), "row {}, column {}", row, column);
            }
            let some = from.min(to).min(rows)..from.max(to).min(rows);
            let part = model.rows("m.weight", &found, some.clone()).unwrap();
            let of_whole = &whole[(some.start * columns) as usize..(some.end * columns) as usize];
            prop_assert!(part.iter().map(|w| w.to_bits()).eq(of_whole.iter().map(|w| w.to_bits())));
        }
    }

    #[test]
    fn blocks_use_their_own_scale() {
        // 3 rows of 5 columns in blocks of 2 × 2: a grid of 2 × 3.
        let scales = stored(Dtype::F32, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
        let mut model = TestModel::default().with("m.weight", Dtype::F8E4m3, &[3, 5], vec![0x38; 15]).with(
            "m.weight_scale",
            Dtype::F32,
            &[2, 3],
            scales,
        );
        let in_group = json!({"group_0": {"weights": {"block_structure": [2, 2]}}});
        model.declaration = Some(json!({"quant_method": "compressed-tensors", "config_groups": in_group}));
        let found = read(&model);
        let values = model.rows("m.weight", &found, 1..3).unwrap();
        assert_eq!(values, [1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0]);
        assert_eq!(found.matrix.ranges(1, 1..2).span(), 0..12, "the scales of one row of blocks");
        let infinite =
            Fetched { rows: 0..1, parts: vec![&[0x38; 5], &[0, 0, 0x80, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]] };
        assert!(
            found.matrix.decode_row(&infinite, 0, &mut [0.0; 5]).unwrap_err().contains("no finite number")
        );
        let too_few = Fetched { rows: 0..3, parts: vec![&[0x38; 15], &[0; 12]] };
        assert!(found.matrix.decode_row(&too_few, 2, &mut [0.0; 5]).is_err());
    }

    #[test]
    fn exponents_of_32_columns_are_those_of_mxfp8() {
        let exponents: Vec<u8> = (120..126).collect();
        let model = |experts: &str| {
            let mut model = TestModel::default()
                .with("l.experts.0.w1.weight", Dtype::F8E4m3, &[2, 96], vec![0x38; 192])
                .with("l.experts.0.w1.weight_scale", Dtype::U8, &[2, 3], exponents.clone());
            model.config = json!({"expert_dtype": experts});
            model
        };
        let fp8 = model("fp8");
        let found = fp8.recognize(&Fp8Scaled, "l.experts.0.w1.weight").unwrap().unwrap();
        let values = fp8.rows("l.experts.0.w1.weight", &found, 1..2).unwrap();
        assert_eq!((values[0], values[31], values[32], values[95]), (0.0625, 0.0625, 0.125, 0.25));
        let refused = model("fp4").recognize(&Fp8Scaled, "l.experts.0.w1.weight").unwrap().unwrap_err();
        assert!(refused.contains("says fp4"), "{refused}");
        let no_number = TestModel::default().with("m.weight", Dtype::F8E4m3, &[1, 32], vec![0x38; 32]).with(
            "m.weight_scale",
            Dtype::F8E8m0,
            &[1, 1],
            vec![255],
        );
        let found = read(&no_number);
        assert!(no_number.rows("m.weight", &found, 0..1).unwrap_err().contains("no finite number"));
    }
}
