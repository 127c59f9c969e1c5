//! Weights that cannot be quantized.

/// The reason why a weight cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadValue {
    /// It is not a number.
    NotANumber,
    /// It is infinite.
    Infinite,
    /// It is finite, but the scale of its group is beyond the greatest value of the scales' type (or its difference
    /// from the group's other end beyond that of the weights').
    ScaleOverflow,
}

impl std::fmt::Display for BadValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "NaN",
            Self::Infinite => "infinite",
            Self::ScaleOverflow => "its scale overflows",
        })
    }
}

/// The first weight of a tile that cannot be quantized: the first row with one, and in it the first such column. For
/// [`BadValue::ScaleOverflow`] it is the largest weight of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadWeight {
    /// Row within the tile.
    pub row: usize,
    /// Column.
    pub col: usize,
    /// The problem.
    pub what: BadValue,
}
