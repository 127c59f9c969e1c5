//! Conversion of weights from types that the quantizer does not know to types that it knows.
//!
//! F64 becomes F32. FP8 becomes BF16 together with its scales: code × scale in F32, rounded once, half to even, as
//! the models' own code dequantizes.

use half::{bf16, f16};

use super::dtype::Dtype;
use super::tensor::Fp8Layout;

/// Converts F64, little endian, to F32, little endian, and appends it to `out`. Values beyond the range of F32 become
/// infinities.
pub fn f64_to_f32(source: &[u8], out: &mut Vec<u8>) {
    let (values, _) = source.as_chunks::<8>();
    out.reserve(values.len() * 4);
    for value in values {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
        let narrow = f64::from_le_bytes(*value) as f32;
        out.extend_from_slice(&narrow.to_le_bytes());
    }
}

/// The scales of an FP8 matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleGrid {
    /// Which weights share one.
    pub layout: Fp8Layout,
    /// One scale for the tensor, one per row, or one per block, row by row.
    pub scales: Vec<f32>,
}

impl ScaleGrid {
    /// Reads scales of the given type. `None` if the type cannot be one of scales.
    #[must_use]
    pub fn new(layout: Fp8Layout, dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        let scales = match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
            Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F8E8m0 => bytes.iter().map(|b| e8m0(*b)).collect(),
            _ => return None,
        };
        Some(Self { layout, scales })
    }

    /// The scale of row `row` from column `column` on, and up to which column it holds.
    fn at(&self, row: usize, column: usize, columns: usize) -> Option<(f32, usize)> {
        let (index, end) = match self.layout {
            Fp8Layout::Tensor => (0, columns),
            Fp8Layout::Channel => (row, columns),
            Fp8Layout::Block { rows, columns: width } => {
                let (height, width) = (usize::try_from(rows).ok()?, usize::try_from(width).ok()?);
                let across = columns.div_ceil(width);
                let block = column / width;
                ((row / height) * across + block, columns.min((block + 1) * width))
            }
        };
        Some((*self.scales.get(index)?, end))
    }
}

/// Converts rows of an FP8 matrix of `columns` columns, starting with row `first_row`, to BF16, little endian, and
/// appends them to `out`. False if `dtype` is not an FP8 type or scales are missing.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "a kernel")]
pub fn fp8_to_bf16(
    source: &[u8],
    dtype: Dtype,
    first_row: usize,
    columns: usize,
    grid: &ScaleGrid,
    out: &mut Vec<u8>,
) -> bool {
    let table = match dtype {
        Dtype::F8E4m3 => &E4M3,
        Dtype::F8E5m2 => &E5M2,
        _ => return false,
    };
    if columns == 0 {
        return true;
    }
    out.reserve(source.len() * 2);
    for (row, codes) in (first_row..).zip(source.chunks(columns)) {
        let mut column = 0;
        while column < codes.len() {
            let Some((scale, end)) = grid.at(row, column, codes.len()) else { return false };
            for &code in &codes[column..end] {
                let value = bf16::from_f32(table[usize::from(code)] * scale);
                out.extend_from_slice(&value.to_le_bytes());
            }
            column = end;
        }
    }
    true
}

/// Values of all E4M3 codes: sign, 4 exponent bits with bias 7, 3 of the significand; no infinity, all ones
/// is NaN.
static E4M3: [f32; 256] = table(3, 7, true);

/// Values of all E5M2 codes: sign, 5 exponent bits with bias 15, 2 of the significand; infinities and NaN as
/// in IEEE.
static E5M2: [f32; 256] = table(2, 15, false);

/// 2^exponent for the exponents met here, all of them normal in F32.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[expect(clippy::cast_possible_wrap, reason = "codes have eight bits")]
const fn table(mantissa_bits: u32, bias: i32, is_finite: bool) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0u32;
    while code < 256 {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code & 0x7f) >> mantissa_bits;
        let ones = (1 << mantissa_bits) - 1;
        let is_top = exponent == (0x7f >> mantissa_bits);
        let magnitude = if is_top && is_finite && mantissa == ones {
            f32::NAN
        } else if is_top && !is_finite {
            if mantissa == 0 { f32::INFINITY } else { f32::NAN }
        } else if exponent == 0 {
            mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
        } else {
            (mantissa + (1 << mantissa_bits)) as f32
                * power_of_two(exponent as i32 - bias - mantissa_bits as i32)
        };
        values[code as usize] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    values
}

/// 2^(code − 127); 255 is NaN. Code 0 is subnormal in F32.
fn e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_values_of_the_formats() {
        assert_eq!(E4M3[0x7e], 448.0);
        assert_eq!(E4M3[0x01], 2f32.powi(-9));
        assert_eq!(E4M3[0x08], 2f32.powi(-6));
        assert_eq!(E4M3[0xb8], -1.0);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E5M2[0x7b], 57344.0);
        assert_eq!(E5M2[0x01], 2f32.powi(-16));
        assert_eq!(E5M2[0xfc], f32::NEG_INFINITY);
        assert!(E5M2[0x7d].is_nan());
        assert_eq!(E4M3.iter().filter(|v| v.is_nan()).count(), 2);
        assert_eq!(e8m0(127), 1.0);
        assert_eq!(e8m0(0), 2f32.powi(-127));
    }

    #[test]
    fn blocks_use_their_own_scale() {
        // 3 rows of 5 columns in blocks of 2 × 2: a grid of 2 × 3.
        let layout = Fp8Layout::Block { rows: 2, columns: 2 };
        let scales = [1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0];
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let grid = ScaleGrid::new(layout, Dtype::F32, &bytes).unwrap();
        let mut out = Vec::new();
        assert!(fp8_to_bf16(&[0x38; 10], Dtype::F8E4m3, 1, 5, &grid, &mut out));
        let values: Vec<f32> = out.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
        assert_eq!(values, [1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0]);
        assert!(!fp8_to_bf16(&[0x38; 5], Dtype::F8E4m3, 9, 5, &grid, &mut out), "no scale for row 9");
    }

    #[test]
    fn doubles_are_rounded() {
        let mut out = Vec::new();
        let source: Vec<u8> = [0.1f64, 1e300, -0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        f64_to_f32(&source, &mut out);
        let values: Vec<f32> = out.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values[..2], [0.1, f32::INFINITY]);
        assert!(values[2] == 0.0 && values[2].is_sign_negative());
    }
}
