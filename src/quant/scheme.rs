//! The one definition of a quantization scheme: the tensors that are stored for a matrix, with their types and
//! shapes.
//!
//! Kernels, byte counts, the exporter's configuration and the dequantizer all read it. The shapes are those of
//! compressed-tensors' `pack-quantized` and `int-quantized` formats.

use super::FloatType;

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// −8 … 7.
    Four,
    /// −128 … 127.
    Eight,
}

impl Bits {
    /// 4 or 8.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The least code.
    #[must_use]
    pub const fn qmin(self) -> i32 {
        -(1 << (self.count() - 1))
    }

    /// The greatest code.
    #[must_use]
    pub const fn qmax(self) -> i32 {
        (1 << (self.count() - 1)) - 1
    }

    /// Steps between the least and the greatest code: 15 or 255.
    #[must_use]
    pub const fn steps(self) -> i32 {
        self.qmax() - self.qmin()
    }

    /// Codes in a packed 32-bit word: 8 or 4.
    #[must_use]
    pub const fn per_word(self) -> usize {
        32 / self.count()
    }
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// So many consecutive input columns of one row.
    Group(usize),
    /// A row: one output channel.
    Channel,
    /// The whole tensor.
    Tensor,
    /// So many rows by as many columns, cut from the start; those at the edges may be smaller.
    Block(usize),
}

/// How codes lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Unsigned codes in 32-bit words along each row, low bits first (`pack-quantized`).
    Packed,
    /// One signed code per byte, regardless of its width (`int-quantized`).
    Plain,
    /// One float of eight bits (E4M3) per byte (`float-quantized`).
    Float8,
    /// Two floats of four bits (E2M1) per byte, and an exponent (E8M0) per group (`mxfp4-pack-quantized`).
    Mxfp4,
    /// Two floats of four bits (E2M1) per byte, a scale in E4M3 per group, and one in F32 for all (`nvfp4-pack-quantized`).
    Nvfp4,
}

impl Storage {
    /// Whether codes are floats.
    #[must_use]
    pub const fn is_float(self) -> bool {
        match self {
            Self::Packed | Self::Plain => false,
            Self::Float8 | Self::Mxfp4 | Self::Nvfp4 => true,
        }
    }
}

/// The stored type of codes or zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeType {
    /// Words of packed codes.
    I32,
    /// One code per byte.
    I8,
    /// One float per byte.
    F8E4m3,
    /// Two floats per byte, or an exponent.
    U8,
}

impl CodeType {
    /// Bytes an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::I32 => 4,
            Self::I8 | Self::F8E4m3 | Self::U8 => 1,
        }
    }

    /// The name that safetensors headers use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::I32 => "I32",
            Self::I8 => "I8",
            Self::F8E4m3 => "F8_E4M3",
            Self::U8 => "U8",
        }
    }
}

/// How a matrix `[out, in]` (rows, columns) is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// Width of a code.
    pub bits: Bits,
    /// A signed range and no zero point; otherwise affine, with one integer zero point per group.
    pub symmetric: bool,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// The type that dequantized weights have, and that scales are stored in, but for floats of four bits.
    pub scale_type: FloatType,
    /// How codes lie in the file.
    pub storage: Storage,
}

impl Scheme {
    /// Whether a row of `cols` weights can be cut into groups. Channel and tensor granularity take any length.
    #[must_use]
    pub const fn divides(&self, cols: usize) -> bool {
        match self.granularity {
            Granularity::Group(size) => size > 0 && cols.is_multiple_of(size),
            Granularity::Channel | Granularity::Tensor | Granularity::Block(_) => true,
        }
    }

    /// Whether one scale holds for the whole matrix.
    #[must_use]
    pub const fn is_per_tensor(&self) -> bool {
        matches!(self.granularity, Granularity::Tensor)
    }

    /// Scales per row: the number of its groups; 1 for a channel. For one scale per tensor it is 1 as well, the same
    /// for all rows.
    #[must_use]
    pub const fn groups_per_row(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::Group(size) => cols / size,
            Granularity::Block(size) => cols.div_ceil(size),
            Granularity::Channel | Granularity::Tensor => 1,
        }
    }

    /// Weights of one row that share a scale.
    #[must_use]
    pub const fn group_cols(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::Group(size) | Granularity::Block(size) => size,
            Granularity::Channel | Granularity::Tensor => cols,
        }
    }

    /// The type of the codes' tensor.
    #[must_use]
    pub const fn code_type(&self) -> CodeType {
        match self.storage {
            Storage::Packed => CodeType::I32,
            Storage::Plain => CodeType::I8,
            Storage::Float8 => CodeType::F8E4m3,
            Storage::Mxfp4 | Storage::Nvfp4 => CodeType::U8,
        }
    }

    /// The shape of the codes' tensor, in elements of [`Scheme::code_type`].
    #[must_use]
    pub const fn codes_shape(&self, rows: usize, cols: usize) -> [usize; 2] {
        match self.storage {
            Storage::Packed => [rows, cols.div_ceil(self.bits.per_word())],
            Storage::Plain | Storage::Float8 => [rows, cols],
            Storage::Mxfp4 | Storage::Nvfp4 => [rows, cols.div_ceil(2)],
        }
    }

    /// Bytes of the codes of `rows` rows.
    #[must_use]
    pub const fn codes_bytes(&self, rows: usize, cols: usize) -> usize {
        let [rows, words] = self.codes_shape(rows, cols);
        rows * words * self.code_type().bytes()
    }

    /// The type of the scales' tensor, as headers name it, and the bytes of a scale.
    #[must_use]
    pub const fn stored_scales(&self) -> (&'static str, usize) {
        match self.storage {
            Storage::Mxfp4 => (CodeType::U8.name(), 1),
            Storage::Nvfp4 => (CodeType::F8E4m3.name(), 1),
            Storage::Packed | Storage::Plain | Storage::Float8 => {
                (self.scale_type.name(), self.scale_type.bytes())
            }
        }
    }

    /// The shape of the scales' tensor: `[out, groups]`, `[out, 1]` or `[1]`; its type is [`Scheme::stored_scales`].
    #[must_use]
    pub fn scales_shape(&self, rows: usize, cols: usize) -> Vec<usize> {
        match self.granularity {
            Granularity::Tensor => vec![1],
            Granularity::Block(size) => vec![rows.div_ceil(size), self.groups_per_row(cols)],
            Granularity::Group(_) | Granularity::Channel => vec![rows, self.groups_per_row(cols)],
        }
    }

    /// Bytes of the scales of `rows` rows; of the only one with [`Granularity::Tensor`].
    #[must_use]
    pub const fn scales_bytes(&self, rows: usize, cols: usize) -> usize {
        let count = match self.granularity {
            Granularity::Tensor => 1,
            Granularity::Block(size) => rows.div_ceil(size) * self.groups_per_row(cols),
            Granularity::Group(_) | Granularity::Channel => rows * self.groups_per_row(cols),
        };
        count * self.stored_scales().1
    }

    /// Whether zero points are packed in words along the rows: eight (int4) or four (int8) rows per word.
    #[must_use]
    pub const fn packs_zero_points(&self) -> bool {
        !self.symmetric
            && matches!(self.storage, Storage::Packed)
            && !matches!(self.granularity, Granularity::Tensor)
    }

    /// The type of the zero-point tensor; none if symmetric.
    #[must_use]
    pub const fn zero_point_type(&self) -> Option<CodeType> {
        match (self.symmetric, self.packs_zero_points()) {
            (true, _) => None,
            (false, true) => Some(CodeType::I32),
            (false, false) => Some(CodeType::I8),
        }
    }

    /// The shape of the zero-point tensor in elements of [`Scheme::zero_point_type`]; none if symmetric.
    #[must_use]
    pub fn zero_points_shape(&self, rows: usize, cols: usize) -> Option<Vec<usize>> {
        if self.symmetric {
            return None;
        }
        let mut shape = self.scales_shape(rows, cols);
        if self.packs_zero_points() {
            shape[0] = rows.div_ceil(self.bits.per_word());
        }
        Some(shape)
    }

    /// Bytes of the zero points of `rows` rows; 0 if symmetric.
    #[must_use]
    pub fn zero_points_bytes(&self, rows: usize, cols: usize) -> usize {
        let elements = self.zero_points_shape(rows, cols).map_or(0, |shape| shape.iter().product());
        elements * self.zero_point_type().map_or(0, CodeType::bytes)
    }

    /// Whether a scale for all weights stands beside those of groups. Modules that engines fuse share it.
    #[must_use]
    pub const fn has_global_scale(&self) -> bool {
        matches!(self.storage, Storage::Nvfp4)
    }

    /// The number that the rows of a tile must be a multiple of, so that its zero points begin a new word, or its rows a
    /// new block: 8, 4, the height of a block, or 1. The last tile of a tensor may be ragged.
    #[must_use]
    pub const fn row_multiple(&self) -> usize {
        match self.granularity {
            Granularity::Block(size) => size,
            _ if self.packs_zero_points() => self.bits.per_word(),
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Scheme = Scheme {
        bits: Bits::Four,
        symmetric: false,
        granularity: Granularity::Group(32),
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };

    #[test]
    fn shapes_are_those_of_the_format() {
        assert_eq!(BASE.codes_shape(10, 64), [10, 8]);
        assert_eq!(BASE.scales_shape(10, 64), [10, 2]);
        assert_eq!(BASE.zero_points_shape(10, 64), Some(vec![2, 2]));
        assert_eq!((BASE.codes_bytes(10, 64), BASE.scales_bytes(10, 64)), (320, 40));
        assert_eq!((BASE.zero_points_bytes(10, 64), BASE.row_multiple()), (16, 8));

        let channel = Scheme { bits: Bits::Eight, granularity: Granularity::Channel, ..BASE };
        assert_eq!(channel.codes_shape(5, 13), [5, 4]);
        assert_eq!(channel.zero_points_shape(5, 13), Some(vec![2, 1]));
        assert_eq!(channel.row_multiple(), 4);

        let tensor = Scheme { granularity: Granularity::Tensor, ..BASE };
        assert_eq!(tensor.scales_shape(5, 13), [1]);
        assert_eq!(tensor.zero_points_shape(5, 13), Some(vec![1]));
        assert_eq!(tensor.zero_point_type(), Some(CodeType::I8));
        assert_eq!((tensor.zero_points_bytes(5, 13), tensor.row_multiple()), (1, 1));

        let plain = Scheme { storage: Storage::Plain, ..channel };
        assert_eq!(plain.codes_shape(5, 13), [5, 13]);
        assert_eq!(plain.zero_points_shape(5, 13), Some(vec![5, 1]));
        assert_eq!((plain.zero_points_bytes(5, 13), plain.row_multiple()), (5, 1));

        let blocks = Scheme {
            bits: Bits::Eight,
            symmetric: true,
            granularity: Granularity::Block(128),
            storage: Storage::Float8,
            ..BASE
        };
        assert_eq!(blocks.codes_shape(130, 200), [130, 200]);
        assert_eq!(blocks.scales_shape(130, 200), [2, 2]);
        assert_eq!((blocks.codes_bytes(130, 200), blocks.scales_bytes(130, 200)), (26_000, 8));
        assert_eq!((blocks.row_multiple(), blocks.code_type().name()), (128, "F8_E4M3"));

        let floats = Scheme { storage: Storage::Mxfp4, ..Scheme { symmetric: true, ..BASE } };
        assert_eq!((floats.codes_shape(10, 64), floats.scales_shape(10, 64)), ([10, 32], vec![10, 2]));
        assert_eq!((floats.codes_bytes(10, 64), floats.scales_bytes(10, 64)), (320, 20));
        assert_eq!((floats.code_type().name(), floats.stored_scales()), ("U8", ("U8", 1)));

        let symmetric = Scheme { symmetric: true, ..BASE };
        assert_eq!(symmetric.zero_points_shape(5, 64), None);
        assert_eq!((symmetric.zero_points_bytes(5, 64), symmetric.row_multiple()), (0, 1));
        assert!(!BASE.divides(48) && BASE.divides(64) && channel.divides(13));
    }
}
