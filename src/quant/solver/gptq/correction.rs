//! The target of rounding: weights that make good what the rounding of earlier matrices has changed.

use super::factor::{cholesky, invert};
use super::metric::mean_square;
use super::{BadMoments, finite};
use crate::quant::BadWeight;
use crate::quant::product::{View, multiply};

/// The share of the diagonal's mean that holds the target near the weights.
const DAMPING: f64 = 0.01;

/// Columns of a strip of products with a triangle, whose zeros are not multiplied.
const STRIP: usize = 512;

/// Turns weights W into the target that is rounded, given inputs x of the model that is rounded so far and x' of the
/// unquantized one: T = W + (W·E + R)·(H + λI)⁻¹, with H = mean of x xᵀ, E = mean of (x' − x) xᵀ, and, of matrices whose
/// outputs are added to a stream r, R = mean of (r' − r) xᵀ. It minimizes ‖(W x' + r') − (T x + r)‖² + λ‖T − W‖². Without E, the
/// residual that is given is W·E + R already: the mean of (W (x' − x) + r' − r) xᵀ.
///
/// Made once for all matrices with the same inputs. The target is that of GPTAQ and Qronos in closed form, with the
/// stream's error as one more term.
#[derive(Debug)]
pub struct Correction {
    columns: usize,
    /// E, if it is given.
    cross: Option<Vec<f32>>,
    /// The inverse of L, H + λI = L Lᵀ.
    inverse: Vec<f64>,
}

impl Correction {
    /// Of the second moments H [columns, columns] and the cross moments E of the same shape, if residuals do not hold what they do.
    ///
    /// # Errors
    /// If they are no moments, or none that could be used.
    ///
    /// # Panics
    /// If there are not as many numbers as the square of `columns` of each.
    pub fn new(columns: usize, moments: &[f32], cross: Option<Vec<f32>>) -> Result<Self, BadMoments> {
        let given = cross.as_deref();
        assert!(
            given.is_none_or(|given| given.len() == moments.len()),
            "cross moments are as many as moments"
        );
        let added = DAMPING * mean_square(columns, moments)?;
        if let Some(bad) = given.unwrap_or_default().iter().position(|x| !x.is_finite()) {
            return Err(BadMoments::Column(bad % columns));
        }
        let mut inverse: Vec<f64> = moments.iter().map(|x| f64::from(*x)).collect();
        (0..columns).for_each(|column| inverse[column * (columns + 1)] += added);
        cholesky(&mut inverse, columns).map_err(|_| BadMoments::Singular)?;
        invert(&mut inverse, columns);
        Ok(Self { columns, cross, inverse })
    }

    /// Replaces some rows of weights with their target. `residual` has the same rows of R, if there is one.
    ///
    /// # Errors
    /// The first weight that is not finite.
    ///
    /// # Panics
    /// If `weights` is no whole number of rows, or `residual` is not as long.
    pub fn apply(&self, weights: &mut [f32], residual: Option<&[f32]>) -> Result<(), BadWeight> {
        let columns = self.columns;
        finite(weights, columns)?;
        let rows = weights.len() / columns.max(1);
        assert_eq!(weights.len(), rows * columns, "whole rows");
        if rows == 0 {
            return Ok(());
        }
        let mut missing = residual.map_or_else(|| vec![0.0; weights.len()], <[f32]>::to_vec);
        assert_eq!(missing.len(), weights.len(), "a residual of the same rows");
        if let Some(cross) = &self.cross {
            let (left, right) = (View::rows(weights, columns), View::rows(cross, columns));
            multiply((rows, columns, columns), left, right, (&mut missing, columns), 1.0, true);
        }
        let missing: Vec<f64> = missing.into_iter().map(f64::from).collect();
        // Times L⁻ᵀ, and then times L⁻¹.
        let mut half = vec![0.0; missing.len()];
        let mut change = vec![0.0; missing.len()];
        for start in (0..columns).step_by(STRIP) {
            let end = columns.min(start + STRIP);
            let right = View::rows(&self.inverse[start * columns..], columns).turned();
            let to = (&mut half[start..], columns);
            multiply((rows, end, end - start), View::rows(&missing, columns), right, to, 1.0, false);
        }
        for start in (0..columns).step_by(STRIP) {
            let end = columns.min(start + STRIP);
            let left = View::rows(&half[start..], columns);
            let right = View::rows(&self.inverse[start * columns + start..], columns);
            let to = (&mut change[start..], columns);
            multiply((rows, columns - start, end - start), left, right, to, 1.0, false);
        }
        weights.iter_mut().zip(&change).for_each(|(weight, change)| *weight += *change as f32);
        Ok(())
    }
}
