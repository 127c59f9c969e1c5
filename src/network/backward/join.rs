//! The way back of steps that only move columns, and of the short convolution.

use super::super::op::Slot;
use super::Gradients;

/// Puts the parts of rows together again; of parts that nothing depends on the gradient is 0. Rows may be those of tokens or
/// of experts.
pub(super) fn split_back(
    gradients: &mut Gradients,
    from: Slot,
    to: &[(Slot, usize)],
    period: usize,
    width: usize,
) {
    let parts: Vec<_> = to.iter().map(|(slot, part)| (gradients.take(*slot), *part)).collect();
    let known = parts.iter().find_map(|(data, part)| Some(data.as_ref()?.1.len() / part));
    let Some(periods) = known else { return };
    let mut out = vec![0.0; periods * period];
    let mut start = 0;
    for (data, part) in parts {
        if let Some((_, data)) = data {
            for (out, data) in out.chunks_exact_mut(period).zip(data.chunks_exact(part)) {
                out[start..start + part].copy_from_slice(data);
            }
        }
        start += part;
    }
    gradients.add(from, width, out);
}

/// Takes the columns of two sides apart; each side is its slot, whether all heads share it, and its width.
pub(super) fn join_back(gradients: &mut Gradients, sides: [(Slot, bool, usize); 2], to: Slot, heads: usize) {
    let Some((width, data)) = gradients.take(to) else { return };
    let mut start = 0;
    for (slot, is_shared, own) in sides {
        let part = if is_shared { own } else { own / heads };
        let mut out = vec![0.0; data.len() / width * own];
        for (out, row) in out.chunks_exact_mut(own).zip(data.chunks_exact(width)) {
            for (head, row) in row.chunks_exact(width / heads).enumerate() {
                let at = if is_shared { 0 } else { head * part };
                let row = &row[start..start + part];
                out[at..at + part].iter_mut().zip(row).for_each(|(out, x)| *out += x);
            }
        }
        start += part;
        gradients.add(slot, own, out);
    }
}

/// Puts even and odd columns together again.
pub(super) fn deal_back(gradients: &mut Gradients, from: Slot, even: Slot, odd: Slot) {
    let sides = [gradients.take(even), gradients.take(odd)];
    let Some((half, count)) = sides.iter().flatten().map(|(width, data)| (*width, data.len())).next() else {
        return;
    };
    let mut out = vec![0.0; 2 * count];
    for (side, data) in sides.into_iter().enumerate() {
        for (pair, x) in out.chunks_exact_mut(2).zip(data.into_iter().flat_map(|(_, data)| data)) {
            pair[side] = x;
        }
    }
    gradients.add(from, 2 * half, out);
}

/// A causal convolution of each column, backwards in time.
pub(super) fn convolve_back(gradients: &[f32], columns: usize, weight: &[f32], width: usize) -> Vec<f32> {
    let tokens = gradients.len() / columns;
    let mut out = vec![0.0; gradients.len()];
    for token in 0..tokens {
        let gradients = &gradients[token * columns..(token + 1) * columns];
        for tap in 0..width.min(token + 1) {
            let out = &mut out[(token - tap) * columns..(token - tap + 1) * columns];
            for (column, (out, gradient)) in out.iter_mut().zip(gradients).enumerate() {
                *out += gradient * weight[column * width + width - 1 - tap];
            }
        }
    }
    out
}
