//! Survey of all tiles of a tensor, before one scale for all of it can be chosen.
//!
//! A survey has as many passes as the observer needs. In each, every tile gives a [`SurveyPart`]; the parts are
//! merged in tile order, so the result does not depend on threads.
//!
//! ```text
//! let mut survey = quantizer.begin_survey();
//! for _ in 0..quantizer.survey_passes() {
//!     for part in tiles.map(|tile| quantizer.survey(&survey, tile, rows)) { survey.merge(part?) }
//!     quantizer.end_pass(&mut survey);
//!     if quantizer.is_settled(&survey) { break }
//! }
//! let params = quantizer.tensor_params(&survey)?;
//! ```

use std::marker::PhantomData;

use crate::quant::float_type::{Bf16, F16, F32, Float};
use crate::quant::percentile::{Histogram, Refinement};
use crate::quant::search::{Errors, Search, add_all};
use crate::quant::simd::Job;
use crate::quant::simd::machine::Machine;
use crate::quant::{
    BadValue, BadWeight, FloatType, Granularity, Importance, Observer, Quantizer, TensorParams,
};

/// The state of a survey: the facts about a tensor known so far.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    pass: usize,
    /// The range of all weights, containing 0; later the range to be used.
    low: f32,
    high: f32,
    /// Bounds of the candidates' errors, those that may win, and their errors.
    bounds: Errors,
    left: Vec<usize>,
    errors: Vec<f64>,
    histogram: Histogram,
    refinement: Refinement,
}

/// The contribution of one tile to a [`Survey`].
#[derive(Debug, Clone)]
pub struct SurveyPart(Part);

impl SurveyPart {
    /// Of weights whose greatest magnitude is this.
    pub(super) fn of_magnitude(most: f32) -> Self {
        Self(Part::Range(0.0, most))
    }
}

/// A part that changes nothing.
impl Default for SurveyPart {
    fn default() -> Self {
        Self(Part::Range(0.0, 0.0))
    }
}

#[derive(Debug, Clone)]
enum Part {
    Range(f32, f32),
    Bounds(Errors),
    Errors(Vec<f64>),
    Histogram(Histogram),
    Refinement(Refinement),
}

impl Survey {
    /// The greatest weight that was seen.
    pub(super) fn greatest(&self) -> f32 {
        self.high
    }

    /// Adds the part of a tile. Parts of one pass are merged in tile order.
    pub fn merge(&mut self, part: SurveyPart) {
        match part.0 {
            Part::Range(low, high) => {
                self.low = self.low.min(low);
                self.high = self.high.max(high);
            }
            Part::Bounds(bounds) => self.bounds.merge(&bounds),
            Part::Errors(errors) => add_all(&mut self.errors, &errors),
            Part::Histogram(histogram) => self.histogram.merge(&histogram),
            Part::Refinement(refinement) => self.refinement.merge(&refinement),
        }
    }
}

impl Quantizer {
    /// The number of passes over all tiles before the first is quantized: 0 except for one scale per tensor. Then
    /// `minmax` needs 1. `mse` needs 3: the range, bounds of the candidates' errors, and the errors of those that may
    /// have the least. `percentile` needs 1 for 16-bit weights and 2 for F32, whose order statistics take two
    /// histograms. The last passes may turn out not to be needed ([`Quantizer::is_settled`]).
    #[must_use]
    pub const fn survey_passes(&self) -> usize {
        match (self.scheme.granularity, self.observer, self.source) {
            (Granularity::Group(_) | Granularity::Channel | Granularity::Block(_), ..) => 0,
            (_, Observer::Minmax | Observer::SignedMinmax, _)
            | (_, Observer::Percentile(_), FloatType::F16 | FloatType::Bf16) => 1,
            (_, Observer::Percentile(_), FloatType::F32) => 2,
            (_, Observer::Mse(_), _) => 3,
        }
    }

    /// A survey that has seen nothing.
    #[must_use]
    pub fn begin_survey(&self) -> Survey {
        Survey::default()
    }

    /// Looks at a tile for the pass that `so_far` is in.
    ///
    /// # Errors
    /// The first weight that is not finite.
    ///
    /// # Panics
    /// If `tile` does not have the length of `rows` rows.
    pub fn survey(&self, so_far: &Survey, tile: &[u8], rows: usize) -> Result<SurveyPart, BadWeight> {
        assert_eq!(tile.len(), rows * self.row_bytes(), "a tile is whole rows");
        let part = match self.source {
            FloatType::F32 => self.isa.run(SurveyTile::<F32>::new(self, so_far, tile)),
            FloatType::F16 => self.isa.run(SurveyTile::<F16>::new(self, so_far, tile)),
            FloatType::Bf16 => self.isa.run(SurveyTile::<Bf16>::new(self, so_far, tile)),
        };
        part.map(SurveyPart)
    }

    /// Ends a pass in which every tile was merged.
    pub fn end_pass(&self, survey: &mut Survey) {
        survey.pass += 1;
        match self.observer {
            Observer::Minmax | Observer::SignedMinmax => {}
            Observer::Mse(_) => {
                let (Some(search), range) = (&self.search, (survey.low, survey.high)) else { return };
                if survey.pass == 2 {
                    survey.left = search.may_win(&survey.bounds, range);
                }
                // With one left the result is known a pass earlier.
                if survey.pass == if survey.left.len() == 1 { 2 } else { 3 } {
                    (survey.low, survey.high) = search.winner(&survey.left, &survey.errors, range);
                }
            }
            Observer::Percentile(_) => {
                let Some(tails) = &self.tails else { return };
                if survey.pass == 1 {
                    survey.refinement = tails.begin_refinement(&survey.histogram, self.source);
                }
                if survey.pass == self.survey_passes() {
                    (survey.low, survey.high) = tails.range_of(&survey.refinement, self.source);
                }
            }
        }
    }

    /// Whether the passes that are left would change nothing.
    #[must_use]
    pub fn is_settled(&self, survey: &Survey) -> bool {
        survey.pass >= self.survey_passes() || survey.left.len() == 1
    }

    /// Scale and zero point of the tensor, after all passes or when it is settled.
    ///
    /// # Errors
    /// [`BadValue::ScaleOverflow`] if the scale is not finite.
    pub fn tensor_params(&self, survey: &Survey) -> Result<TensorParams, BadValue> {
        let (mut low, mut high) = ([survey.low], [survey.high]);
        self.rules.resolve(&mut low, &mut high);
        if high[0].is_finite() {
            Ok(TensorParams { scale: high[0], zero_point: low[0] as i8 })
        } else {
            Err(BadValue::ScaleOverflow)
        }
    }
}

struct SurveyTile<'a, T> {
    quantizer: &'a Quantizer,
    so_far: &'a Survey,
    tile: &'a [u8],
    source: PhantomData<T>,
}

impl<'a, T> SurveyTile<'a, T> {
    fn new(quantizer: &'a Quantizer, so_far: &'a Survey, tile: &'a [u8]) -> Self {
        Self { quantizer, so_far, tile, source: PhantomData }
    }
}

impl<T: Float> Job for SurveyTile<'_, T> {
    type Output = Result<Part, BadWeight>;

    #[inline(always)]
    fn run<M: Machine>(self, _: M) -> Result<Part, BadWeight> {
        let Self { quantizer, so_far, tile, .. } = self;
        let weights = T::elements(tile);
        if so_far.pass == 0 {
            let (low, high) = T::extremes(weights);
            if !(low.is_finite() && high.is_finite()) {
                let rows = weights.chunks(quantizer.cols.max(1)).enumerate();
                let bad = rows.map(|(row, weights)| (row, weights, T::magnitude(weights)));
                let mut bad = bad.filter(|(.., most)| !most.is_finite());
                if let Some((row, weights, _)) = bad.next() {
                    return Err(Quantizer::locate_bad::<T>(row, weights));
                }
            }
            return Ok(match &quantizer.tails {
                None => Part::Range(low, high),
                Some(tails) => Part::Histogram(tails.histogram::<T>(weights)),
            });
        }
        Ok(match (&quantizer.tails, &quantizer.search) {
            (Some(tails), _) => Part::Refinement(tails.refine::<T>(weights, &so_far.refinement)),
            (None, Some(search)) => quantizer.isa.run(SearchTile {
                search,
                so_far,
                tile,
                cols: quantizer.cols,
                importance: quantizer.importance.as_ref().map(Importance::columns),
            }),
            (None, None) => Part::Range(so_far.low, so_far.high),
        })
    }
}

/// The passes of a search after the first.
struct SearchTile<'a> {
    search: &'a Search,
    so_far: &'a Survey,
    tile: &'a [u8],
    cols: usize,
    importance: Option<&'a [f32]>,
}

impl Job for SearchTile<'_> {
    type Output = Part;

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Part {
        let Self { search, so_far, tile, cols, importance } = self;
        let range = (so_far.low, so_far.high);
        match so_far.left.as_slice() {
            [] => Part::Bounds(search.bound_errors(machine, tile, cols, importance, range)),
            [_] => Part::Errors(Vec::new()),
            left => Part::Errors(search.exact_errors(tile, cols, importance, range, left)),
        }
    }
}
