//! The slow twin of rounding with the metric of the outputs. For tests.

use super::super::slow::{Matrix, Rows, dot, inverse, product, turned};

/// Places by falling diagonal.
fn order(m: &Matrix) -> Vec<usize> {
    let mut out: Vec<usize> = (0..m.len()).collect();
    out.sort_by(|a, b| m[*b][*b].total_cmp(&m[*a][*a]));
    out
}

/// The upper factor U of the inverse, Uᵀ U, with rows and columns in an order.
fn factor(m: &Matrix, order: &[usize]) -> Matrix {
    let part: Matrix = order.iter().map(|i| order.iter().map(|j| m[*i][*j]).collect()).collect();
    let inverse = inverse(&part);
    let mut lower = vec![vec![0.0; m.len()]; m.len()];
    for i in 0..m.len() {
        for j in 0..=i {
            let rest = inverse[i][j] - dot(&lower[i][..j], &lower[j][..j]);
            lower[i][j] = if i == j { rest.sqrt() } else { rest / lower[j][j] };
        }
    }
    turned(&lower)
}

impl Rows {
    /// tr(G D H Dᵀ).
    pub(super) fn harm(&self, t: &Matrix, h: &Matrix, g: &Matrix) -> f64 {
        let d = self.all_errors(t);
        product(&product(g, &d), h).iter().zip(&d).map(|(a, b)| dot(a, b)).sum()
    }

    fn all_errors(&self, t: &Matrix) -> Matrix {
        (0..t.len()).map(|row| self.errors(t, row)).collect()
    }

    /// Error feedback on both sides, as its formula reads, row by row or column by column.
    pub(super) fn feed_back_both(&mut self, t: &Matrix, h: &Matrix, g: &Matrix, by_columns: bool) {
        let (rows, columns) = (order(g), order(h));
        let (u, v) = (factor(g, &rows), factor(h, &columns));
        let mut e = vec![vec![0.0; columns.len()]; rows.len()];
        let mut places: Vec<_> =
            (0..rows.len()).flat_map(|i| (0..columns.len()).map(move |j| (i, j))).collect();
        if by_columns {
            places.sort_by_key(|(i, j)| (*j, *i));
        }
        for (i, j) in places {
            let (row, column) = (rows[i], columns[j]);
            let passed: f64 =
                (0..=i).map(|k| u[k][i] * (0..=j).map(|l| e[k][l] * v[l][j]).sum::<f64>()).sum();
            let value = t[row][column] - passed;
            let group = self.group(column);
            self.codes[row][column] = self.code(value / self.scales[row][group] + self.zeros[row][group]);
            e[i][j] = (value - self.value(row, column)) / (u[i][i] * v[j][j]);
        }
    }

    /// The same codes with fewer sums: a row by columns, and then what it passes on to the rows that are left.
    pub(super) fn feed_back_by_rows(&mut self, t: &Matrix, h: &Matrix, g: &Matrix) {
        let (rows, columns) = (order(g), order(h));
        let (u, v) = (factor(g, &rows), factor(h, &columns));
        let mut left: Matrix =
            rows.iter().map(|row| columns.iter().map(|column| t[*row][*column]).collect()).collect();
        for i in 0..rows.len() {
            let mut own = left[i].clone();
            let mut passed = vec![0.0; columns.len()];
            for (j, &column) in columns.iter().enumerate() {
                let (row, group) = (rows[i], self.group(column));
                self.codes[row][column] =
                    self.code(own[j] / self.scales[row][group] + self.zeros[row][group]);
                let error = (own[j] - self.value(row, column)) / (u[i][i] * v[j][j]);
                for k in j..columns.len() {
                    own[k] -= u[i][i] * error * v[j][k];
                    passed[k] += error * v[j][k];
                }
            }
            for k in i + 1..rows.len() {
                left[k].iter_mut().zip(&passed).for_each(|(left, passed)| *left -= u[i][k] * passed);
            }
        }
    }

    /// Up to three rounds of a fit of the scales and four sweeps over the codes.
    pub(super) fn descend_both(&mut self, t: &Matrix, h: &Matrix, g: &Matrix) {
        for _ in 0..3 {
            let mut changes = self.fit_both(t, h, g);
            for _ in 0..4 {
                let moved = self.sweep_both(t, h, g);
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

    fn fit_both(&mut self, t: &Matrix, h: &Matrix, g: &Matrix) -> usize {
        let mut changes = 0;
        let size = self.scheme.group_cols(h.len());
        for (i, g) in g.iter().enumerate() {
            for group in 0..self.scales[i].len() {
                let levels: Vec<f64> = (0..h.len())
                    .map(|j| if j / size == group { self.codes[i][j] - self.zeros[i][group] } else { 0.0 })
                    .collect();
                let of_levels = product(&vec![levels.clone()], h).swap_remove(0);
                let curvature = g[i] * dot(&of_levels, &levels);
                let row = product(&vec![g.clone()], &self.all_errors(t)).swap_remove(0);
                let slope = dot(&of_levels, &row);
                let old = self.scales[i][group];
                if curvature <= 0.0 {
                    continue;
                }
                let new = f64::from(self.scheme.scale_type.round((old - slope / curvature) as f32));
                let step = new - old;
                if new * old > 0.0 && step * slope + 0.5 * step * step * curvature < 0.0 {
                    self.scales[i][group] = new;
                    changes += 1;
                }
            }
        }
        changes
    }

    fn sweep_both(&mut self, t: &Matrix, h: &Matrix, g: &Matrix) -> usize {
        let mut changes = 0;
        for (j, h) in h.iter().enumerate() {
            for (i, g) in g.iter().enumerate() {
                let column: Vec<f64> = self.all_errors(t).iter().map(|d| dot(d, h)).collect();
                let (slope, curvature) = (dot(g, &column), g[i] * h[j]);
                let scale = self.scales[i][self.group(j)];
                let new = self.code(self.codes[i][j] - slope / (curvature * scale));
                let step = (new - self.codes[i][j]) * scale;
                if step * slope + 0.5 * curvature * step * step < 0.0 {
                    self.codes[i][j] = new;
                    changes += 1;
                }
            }
        }
        changes
    }
}
