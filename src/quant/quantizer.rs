//! Quantizers: a scheme and an observer for matrices of one width, and their buffers.

use super::params::Rules;
use super::percentile::Tails;
use super::search::Search;
use super::simd::machine::LANES;
use super::{FloatType, Importance, Isa, Observer, Scheme};

/// The bytes of some rows of the output tensors, exactly as they go into the file.
///
/// With [`super::Granularity::Tensor`] every tile carries the same one scale and zero point: the caller writes them once, from
/// any tile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantized {
    /// Packed I32 words, I8 codes, or floats.
    pub codes: Vec<u8>,
    /// In the type of [`Scheme::stored_scales`].
    pub scales: Vec<u8>,
    /// I32 words packed along the rows, or I8; empty if symmetric.
    pub zero_points: Vec<u8>,
    /// The scale for all weights, in F32; empty if there is none.
    pub global_scale: Vec<u8>,
}

/// The role of a tensor that belongs to a stored matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The weights themselves, as they are in the source (decoded, if the source is scaled FP8).
    Weights,
    /// Codes.
    Codes,
    /// Scales.
    Scales,
    /// Zero points.
    ZeroPoints,
    /// The scale for all weights.
    GlobalScale,
    /// The shape of the unpacked weights.
    Shape,
    /// Quantized weights as floating-point numbers.
    Dequantized,
}

impl Quantized {
    /// The bytes for a part of the stored matrix; empty for a role that no solver fills.
    #[must_use]
    pub fn part(&self, role: Role) -> &[u8] {
        match role {
            Role::Codes => &self.codes,
            Role::Scales => &self.scales,
            Role::ZeroPoints => &self.zero_points,
            Role::GlobalScale => &self.global_scale,
            Role::Weights | Role::Shape | Role::Dequantized => &[],
        }
    }

    /// The same bytes, borrowed.
    #[must_use]
    pub fn view(&self) -> QuantizedView<'_> {
        let Self { codes, scales, zero_points, global_scale } = self;
        QuantizedView { codes, scales, zero_points, global_scale }
    }
}

/// Borrowed bytes of some rows of the output tensors; see [`Quantized`].
#[derive(Debug, Clone, Copy)]
pub struct QuantizedView<'a> {
    /// Packed I32 words, I8 codes, or floats.
    pub codes: &'a [u8],
    /// In the type of [`Scheme::stored_scales`].
    pub scales: &'a [u8],
    /// I32 words packed along the rows, or I8; empty if symmetric.
    pub zero_points: &'a [u8],
    /// The scale for all weights, in F32; empty if there is none.
    pub global_scale: &'a [u8],
}

/// Buffers that are reused from tile to tile. One per thread; any quantizer may use it.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The codes of a row, one per byte, with room for the last word.
    pub(super) codes: Vec<u8>,
    /// For each group of a row: the low end of its range, then its zero point.
    pub(super) low: Vec<f32>,
    /// For each group of a row: the high end of its range, then its scale.
    pub(super) high: Vec<f32>,
    /// For each group of a row: the greatest |w|.
    pub(super) most: Vec<f32>,
    /// The zero points of a tile.
    pub(super) zero_points: Vec<i8>,
    /// The weights of a group.
    pub(super) weights: Vec<f32>,
    /// The order keys of a group.
    pub(super) keys: Vec<u32>,
    /// Weights and dequantized weights of some columns.
    pub(super) segment: Box<super::measure::segment::Segment>,
    /// Buffers of the range search for one group.
    pub(super) search: super::search::SearchScratch,
}

/// Quantizes the tiles of one tensor, or of all tensors alike. Cheap to make, shared between threads.
#[derive(Debug, Clone)]
pub struct Quantizer {
    pub(super) scheme: Scheme,
    pub(super) observer: Observer,
    pub(super) source: FloatType,
    pub(super) cols: usize,
    pub(super) isa: Isa,
    pub(super) rules: Rules,
    /// Whether scales may be negative.
    pub(super) turns: bool,
    pub(super) search: Option<Search>,
    pub(super) tails: Option<Tails>,
    pub(super) importance: Option<Importance>,
}

impl Quantizer {
    /// A quantizer for matrices of `cols` columns whose weights are stored as `source`.
    ///
    /// # Panics
    /// If the scheme's groups do not divide `cols` ([`Scheme::divides`]): a plan checks that. If it has floats, which are
    /// for [`super::Float8`] and [`super::Float4`].
    #[must_use]
    pub fn new(scheme: Scheme, observer: Observer, source: FloatType, cols: usize, isa: Isa) -> Self {
        assert!(scheme.divides(cols), "a plan must not let a group size through that does not divide a row");
        assert!(!scheme.storage.is_float(), "integers are made here");
        let rules = Rules::new(&scheme, source).of(&observer, &scheme);
        let turns = observer.turns(&scheme);
        let search = match observer {
            Observer::Mse(mse) => Some(Search::new(mse, rules)),
            Observer::Minmax | Observer::SignedMinmax | Observer::Percentile(_) => None,
        };
        let tails = match observer {
            Observer::Percentile(percent) => Some(Tails::new(percent, scheme.symmetric)),
            Observer::Minmax | Observer::SignedMinmax | Observer::Mse(_) => None,
        };
        Self { scheme, observer, source, cols, isa, rules, turns, search, tails, importance: None }
    }

    /// The same quantizer with the importance of the columns, used in the search of `mse` and in the measurements.
    ///
    /// # Panics
    /// If there is not one number for each column: a plan checks that.
    #[must_use]
    pub fn weighted(self, importance: Importance) -> Self {
        assert_eq!(importance.columns().len(), self.cols, "a plan must not let other statistics through");
        Self { importance: Some(importance), ..self }
    }

    /// The scheme it was made with.
    #[must_use]
    pub const fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Whether the weights and codes of a row can be read from their bytes 32 at a time, split into those at even
    /// places and those at odd ones.
    pub(super) const fn in_pairs(&self) -> bool {
        let group_cols = self.scheme.group_cols(self.cols);
        self.source.bytes() == 2 && group_cols > 0 && group_cols.is_multiple_of(2 * LANES)
    }

    /// Bytes of a source row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.cols * self.source.bytes()
    }
}
