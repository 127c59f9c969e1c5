//! The slow twin: the same steps as the formulas read, in F64, one number after another. For tests.

use crate::quant::Scheme;

/// Rows of numbers.
pub(super) type Matrix = Vec<Vec<f64>>;

/// Rows on their way: codes, and the scale and zero point of each group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    pub(super) scheme: Scheme,
    pub(super) codes: Matrix,
    pub(super) scales: Matrix,
    pub(super) zeros: Matrix,
}

/// Rows of so many numbers each.
pub(super) fn matrix(values: &[f32], columns: usize) -> Matrix {
    values.chunks(columns).map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

pub(super) fn turned(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let b = turned(b);
    a.iter().map(|row| b.iter().map(|column| dot(row, column)).collect()).collect()
}

/// H + share · mean of its diagonal · I.
pub(super) fn damped(h: &Matrix, share: f64) -> Matrix {
    let mean = (0..h.len()).map(|i| h[i][i]).sum::<f64>() / h.len() as f64;
    let mut out = h.clone();
    (0..h.len()).for_each(|i| out[i][i] += share * mean);
    out
}

/// Gauss and Jordan; pivots of a positive definite matrix are on the diagonal.
pub(super) fn inverse(a: &Matrix) -> Matrix {
    let n = a.len();
    let mut a = a.clone();
    let mut out: Matrix = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for i in 0..n {
        let pivot = a[i][i];
        a[i].iter_mut().chain(&mut out[i]).for_each(|x| *x /= pivot);
        for k in (0..n).filter(|k| *k != i) {
            let factor = a[k][i];
            for j in 0..n {
                a[k][j] -= factor * a[i][j];
                out[k][j] -= factor * out[i][j];
            }
        }
    }
    out
}

/// W + (W·E + R)·(H + λI)⁻¹.
pub(super) fn target(w: &Matrix, h: &Matrix, e: &Matrix, r: Option<&Matrix>) -> Matrix {
    let mut missing = product(w, e);
    for (row, r) in missing.iter_mut().zip(r.into_iter().flatten()) {
        row.iter_mut().zip(r).for_each(|(x, r)| *x += r);
    }
    let mut out = product(&missing, &inverse(&damped(h, 0.01)));
    for (row, w) in out.iter_mut().zip(w) {
        row.iter_mut().zip(w).for_each(|(x, w)| *x += w);
    }
    out
}

impl Rows {
    pub(super) fn code(&self, value: f64) -> f64 {
        let bits = self.scheme.bits;
        value.round_ties_even().clamp(f64::from(bits.qmin()), f64::from(bits.qmax()))
    }

    pub(super) fn group(&self, column: usize) -> usize {
        column / self.scheme.group_cols(self.codes[0].len())
    }

    pub(super) fn value(&self, row: usize, column: usize) -> f64 {
        let group = self.group(column);
        (self.codes[row][column] - self.zeros[row][group]) * self.scales[row][group]
    }

    /// What a row stands for, less the target.
    pub(super) fn errors(&self, t: &Matrix, row: usize) -> Vec<f64> {
        t[row].iter().enumerate().map(|(j, t)| self.value(row, j) - t).collect()
    }

    /// tr(D H Dᵀ).
    pub(super) fn error(&self, t: &Matrix, h: &Matrix) -> f64 {
        let d: Matrix = (0..t.len()).map(|i| self.errors(t, i)).collect();
        product(&d, h).iter().zip(&d).map(|(a, b)| dot(a, b)).sum()
    }

    /// The grids with the least error, columns counting by `weights`; and the nearest codes.
    pub(super) fn search(scheme: Scheme, is_signed: bool, t: &Matrix, weights: &[f64]) -> Self {
        let (rows, columns) = (t.len(), t[0].len());
        let (size, count) = (scheme.group_cols(columns), scheme.groups_per_row(columns));
        let epsilon = f64::from(scheme.scale_type.epsilon());
        let mut out = Self {
            scheme,
            codes: vec![vec![0.0; columns]; rows],
            scales: vec![vec![epsilon; count]; rows],
            zeros: vec![vec![0.0; count]; rows],
        };
        let (qmin, steps) = (f64::from(scheme.bits.qmin()), f64::from(scheme.bits.steps()));
        for (i, row) in t.iter().enumerate() {
            for g in 0..count {
                let range = g * size..(g + 1) * size;
                let (values, weights) = (&row[range.clone()], &weights[range]);
                let low = values.iter().copied().fold(0.0, f64::min);
                let high = values.iter().copied().fold(0.0, f64::max);
                if low == high {
                    continue;
                }
                let mut least = f64::INFINITY;
                for k in 0..61 {
                    let share = 0.5 + 0.01 * f64::from(k);
                    let width = if scheme.symmetric { 2.0 * high.max(-low) } else { high - low };
                    let scale = f64::from(scheme.scale_type.round((share * width / steps) as f32));
                    let zero = out.code(qmin - share * low / scale);
                    let zeros = if scheme.symmetric { vec![0.0] } else { vec![zero, zero - 1.0, zero + 1.0] };
                    let turned = is_signed.then_some((-scale, 0.0));
                    for (scale, zero) in zeros.into_iter().map(|zero| (scale, zero)).chain(turned) {
                        let zero = out.code(zero);
                        let error = |x: &f64| x - scale * (out.code(x / scale + zero) - zero);
                        let sum: f64 =
                            values.iter().zip(weights).map(|(x, weight)| weight * error(x) * error(x)).sum();
                        if sum < least {
                            (least, out.scales[i][g], out.zeros[i][g]) = (sum, scale, zero);
                        }
                    }
                }
            }
        }
        for (i, row) in t.iter().enumerate() {
            for (j, x) in row.iter().enumerate() {
                let g = out.group(j);
                out.codes[i][j] = out.code(x / out.scales[i][g] + out.zeros[i][g]);
            }
        }
        out
    }

    /// Error feedback by the inverse of what is left: no factor, one column after another.
    pub(super) fn feed_back(&mut self, t: &Matrix, h: &Matrix) {
        let mut columns: Vec<usize> = (0..h.len()).collect();
        columns.sort_by(|a, b| h[*b][*b].total_cmp(&h[*a][*a]));
        let mut left = t.clone();
        for at in 0..columns.len() {
            let open = &columns[at..];
            // The first row of the inverse of the moments of the columns that are left.
            let part: Matrix =
                open.iter().map(|i| open.iter().map(|j| h[*i][*j]).collect::<Vec<_>>()).collect();
            let first = inverse(&part).swap_remove(0);
            let (column, group) = (columns[at], self.group(columns[at]));
            for (i, left) in left.iter_mut().enumerate() {
                self.codes[i][column] =
                    self.code(left[column] / self.scales[i][group] + self.zeros[i][group]);
                let error = (left[column] - self.value(i, column)) / first[0];
                for (other, factor) in open.iter().zip(&first).skip(1) {
                    left[*other] -= error * factor;
                }
            }
        }
    }

    /// Up to four rounds of two fits of the scales and ten sweeps over the codes.
    pub(super) fn descend(&mut self, t: &Matrix, h: &Matrix) {
        for _ in 0..4 {
            let mut changes = 0;
            for _ in 0..2 {
                changes += self.fit(t, h);
            }
            for _ in 0..10 {
                let moved = self.sweep(t, h);
                changes += moved;
                if moved == 0 {
                    break;
                }
            }
            if changes == 0 {
                break;
            }
        }
    }

    fn fit(&mut self, t: &Matrix, h: &Matrix) -> usize {
        let mut changes = 0;
        let size = self.scheme.group_cols(h.len());
        for i in 0..t.len() {
            for g in 0..self.scales[i].len() {
                let range = g * size..(g + 1) * size;
                let levels: Vec<f64> = (0..h.len())
                    .map(|j| if range.contains(&j) { self.codes[i][j] - self.zeros[i][g] } else { 0.0 })
                    .collect();
                let of_levels = product(&vec![levels.clone()], h).swap_remove(0);
                let curvature = dot(&of_levels, &levels);
                let slope = dot(&of_levels, &self.errors(t, i));
                let old = self.scales[i][g];
                if curvature <= 0.0 {
                    continue;
                }
                let new = f64::from(self.scheme.scale_type.round((old - slope / curvature) as f32));
                let step = new - old;
                if new * old > 0.0 && step * slope + 0.5 * step * step * curvature < 0.0 {
                    self.scales[i][g] = new;
                    changes += 1;
                }
            }
        }
        changes
    }

    fn sweep(&mut self, t: &Matrix, h: &Matrix) -> usize {
        let mut changes = 0;
        for i in 0..t.len() {
            for (j, h) in h.iter().enumerate() {
                let slope = dot(&self.errors(t, i), h);
                let scale = self.scales[i][self.group(j)];
                let new = self.code(self.codes[i][j] - slope / (h[j] * scale));
                let step = (new - self.codes[i][j]) * scale;
                if step * slope + 0.5 * h[j] * step * step < 0.0 {
                    self.codes[i][j] = new;
                    changes += 1;
                }
            }
        }
        changes
    }
}
