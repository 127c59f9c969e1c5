//! Observers: the rules that choose the range of a group.

use super::Scheme;

/// The rule that chooses the range that codes cover.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Observer {
    /// From the least to the greatest weight.
    Minmax,
    /// As [`Observer::Minmax`] with scales that may be negative: the least code, of which there is one more than of the
    /// greatest, stands for the weight that is furthest from 0.
    SignedMinmax,
    /// The shrunk range with the least error.
    Mse(Mse),
    /// The range that keeps this percentage of the values unclipped: of |w| if symmetric, of each tail otherwise. By
    /// linear interpolation between order statistics. llm-compressor has no such observer.
    Percentile(f64),
}

impl Observer {
    /// Whether ranges are searched for, and so depend on the importance of each column.
    #[must_use]
    pub const fn searches(&self) -> bool {
        matches!(self, Self::Mse(_))
    }

    /// Whether scales may be negative, if there are no zero points.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        matches!(self, Self::SignedMinmax | Self::Mse(Mse { signed: true, .. }))
    }

    /// Whether it gives matrices of a scheme negative scales. Zero points move a range as well, and one scale for a whole
    /// tensor keeps its sign.
    pub(super) const fn turns(&self, scheme: &Scheme) -> bool {
        self.is_signed() && scheme.symmetric && !scheme.is_per_tensor()
    }
}

/// The search of [`Observer::Mse`], as llm-compressor's `memoryless_mse` observer does it, without its early stop.
///
/// Candidates are p = 1 − i/grid for i in 0 .. ⌊maxshrink·grid⌋, the widest first. If there is none, the candidate is
/// the whole range. Both ends are multiplied by p and rounded to the weights' type. The candidate with the least
/// Σ|dequantized − w|^norm over the group wins; among equals, the widest. (The early stop of llm-compressor covers a
/// whole tensor and changed nothing in any case examined.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mse {
    /// How far the range is shrunk at most, as a share of it.
    pub maxshrink: f64,
    /// Steps for a shrink of 1.
    pub grid: f64,
    /// The exponent of the error.
    pub norm: f64,
    /// Whether the last candidate, i = ⌊maxshrink·grid⌋, is tried as well.
    pub last: bool,
    /// Whether each candidate is tried with a negative scale as well: the positive ones win among equals.
    pub signed: bool,
}

impl Default for Mse {
    /// The values of llm-compressor: 20 candidates from 1.00 to 0.81, exponent 2.4.
    fn default() -> Self {
        Self { maxshrink: 0.2, grid: 100.0, norm: 2.4, last: false, signed: false }
    }
}

impl Mse {
    /// The search of llm-compressor's `imatrix_mse` observer: 20 candidates from 1.00 to 0.05, exponent 3.
    #[must_use]
    pub const fn imatrix() -> Self {
        Self { maxshrink: 0.95, grid: 20.0, norm: 3.0, last: true, signed: false }
    }

    /// The factors of the range that are tried, in order. Never empty.
    #[must_use]
    pub fn factors(&self) -> Vec<f32> {
        // `as` truncates, as llm-compressor's int() does, and turns NaN into 0.
        let steps = ((self.maxshrink * self.grid) as usize).clamp(1, 100_000) + usize::from(self.last);
        (0..steps).map(|i| (1.0 - i as f64 / self.grid) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_search_has_twenty_factors() {
        let factors = Mse::default().factors();
        assert_eq!(factors.len(), 20);
        assert_eq!((factors[0], factors[1], factors[19]), (1.0, 0.99, 0.81));
    }

    #[test]
    fn the_search_of_the_peer_for_statistics_is_wide_and_coarse() {
        let factors = Mse::imatrix().factors();
        assert_eq!(factors.len(), 20);
        assert_eq!((factors[0], factors[1], factors[19]), (1.0, 0.95, 0.05));
    }

    #[test]
    fn the_number_of_factors_is_truncated() {
        let mse = |maxshrink| Mse { maxshrink, ..Mse::default() }.factors().len();
        // 0.29 · 100 is a little below 29 in double precision.
        assert_eq!(mse(0.29), 28);
        assert_eq!(mse(0.0), 1);
        assert_eq!(mse(f64::NAN), 1);
        assert_eq!(mse(1.0), 100);
    }
}
