//! Lanes in arrays: machines without extensions, and those whose extensions the compiler uses by itself.

use super::{DOUBLES, LANES, Machine, f16_to_f32, look_up_bytes, take_out};

/// A machine without extensions.
pub(crate) const PORTABLE: Arrays<false> = Arrays;

/// NEON, which all machines of its architecture have.
pub(crate) const NEON: Arrays<true> = Arrays;

/// Lanes in arrays, for the compiler to put into registers.
#[derive(Clone, Copy)]
pub(crate) struct Arrays<const FUSED: bool>;

/// A lane for a lane.
#[inline(always)]
fn each(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// a · b + c, rounded once, without the instruction.
///
/// The product is exact in f64. The sum there is rounded to odd: if it is not exact, to that neighbour whose last bit is 1. The
/// 29 bits more than those of f32 then tell on which side of a middle the exact sum lies, so that rounding it again gives its nearest
/// f32 (Boldo and Melquiond, IEEE Trans. Comput. 57, 2008).
#[inline(always)]
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The rounding error of the sum, exactly (Knuth); NaN if the sum is not finite.
    let part = sum - product;
    let lack = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    // A lack of the other sign: the sum has been rounded up in size.
    let shorter = bits - ((bits ^ lack.to_bits()) >> 63);
    let odd = if lack.abs() > 0.0 { f64::from_bits(shorter | 1) } else { sum };
    odd as f32
}

/// All lanes together, by halves.
#[inline(always)]
fn fold(a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = f(a[i], a[i + 8]);
    }
    for i in 0..4 {
        four[i] = f(eight[i], eight[i + 4]);
    }
    f(f(four[0], four[2]), f(four[1], four[3]))
}

impl<const FUSED: bool> Machine for Arrays<FUSED> {
    const FMA: bool = FUSED;

    const ONE_PASS: bool = false;

    type Lanes = [f32; LANES];

    type Doubles = [f64; DOUBLES];

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        *from
    }

    #[inline(always)]
    fn store(self, x: Self::Lanes, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        let mut out = c;
        for i in 0..LANES {
            out[i] = if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] };
        }
        out
    }

    #[inline(always)]
    fn fused(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        let mut out = c;
        for i in 0..LANES {
            out[i] = if FUSED { a[i].mul_add(b[i], c[i]) } else { fused(a[i], b[i], c[i]) };
        }
        out
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64; DOUBLES]) -> Self::Doubles {
        *from
    }

    #[inline(always)]
    fn store_doubles(self, x: Self::Doubles, to: &mut [f64; DOUBLES]) {
        *to = x;
    }

    #[inline(always)]
    fn splat_double(self, x: f64) -> Self::Doubles {
        [x; DOUBLES]
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: Self::Doubles, b: Self::Doubles, c: Self::Doubles) -> Self::Doubles {
        let mut out = c;
        for i in 0..DOUBLES {
            out[i] = if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] };
        }
        out
    }

    #[inline(always)]
    fn abs(self, a: Self::Lanes) -> Self::Lanes {
        each(a, a, |a, _| a.abs())
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn replace_equal(self, a: Self::Lanes, b: Self::Lanes, other: Self::Lanes) -> (Self::Lanes, u32) {
        let (mut out, mut count) = (a, 0);
        for i in 0..LANES {
            count += u32::from(a[i] == b[i]);
            out[i] = if a[i] == b[i] { other[i] } else { a[i] };
        }
        (out, count)
    }

    #[inline(always)]
    fn sum(self, a: Self::Lanes) -> f32 {
        fold(a, |a, b| a + b)
    }

    #[inline(always)]
    fn sum_rows(self, rows: &[[f32; LANES]; LANES], sums: &mut [f32; LANES]) {
        for (row, sum) in rows.iter().zip(sums) {
            *sum = self.sum(*row);
        }
    }

    #[inline(always)]
    fn max_abs(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        self.max(a, self.abs(b))
    }

    #[inline(always)]
    fn exceeds(self, a: Self::Lanes, limit: f32) -> bool {
        let mut exceeds = false;
        for x in a {
            exceeds |= x > limit;
        }
        exceeds
    }

    #[inline(always)]
    fn greatest(self, a: Self::Lanes) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn outside(self, a: Self::Lanes, low: Self::Lanes, high: Self::Lanes) -> u32 {
        let mut mask = 0;
        for i in 0..LANES {
            mask |= u32::from((a[i] < low[i]) | (a[i] > high[i])) << i;
        }
        mask
    }

    #[inline(always)]
    fn take_out(self, a: Self::Lanes, mask: u32, out: &mut [f32; LANES]) -> Self::Lanes {
        take_out(a, mask, out)
    }

    #[inline(always)]
    fn bf16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (i, pair) in from.as_chunks::<4>().0.iter().enumerate() {
            let both = u32::from_le_bytes(*pair);
            out[0][i] = f32::from_bits(both << 16);
            out[1][i] = f32::from_bits(both & 0xffff_0000);
        }
        out
    }

    #[inline(always)]
    fn f16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (i, pair) in from.as_chunks::<4>().0.iter().enumerate() {
            out[0][i] = f16_to_f32([pair[0], pair[1]]);
            out[1][i] = f16_to_f32([pair[2], pair[3]]);
        }
        out
    }

    #[inline(always)]
    fn nibble_pairs(self, table: Self::Lanes, from: &[u8; LANES]) -> [Self::Lanes; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (i, byte) in from.iter().enumerate() {
            out[0][i] = table[usize::from(byte & 15)];
            out[1][i] = table[usize::from(byte >> 4)];
        }
        out
    }

    #[inline(always)]
    fn byte_pairs(self, from: &[u8; 2 * LANES], flip: u8) -> [Self::Lanes; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (i, pair) in from.as_chunks::<2>().0.iter().enumerate() {
            out[0][i] = f32::from(pair[0] ^ flip);
            out[1][i] = f32::from(pair[1] ^ flip);
        }
        out
    }

    #[inline(always)]
    fn store_nibble_pairs(self, [first, second]: [Self::Lanes; 2], to: &mut [u8; LANES]) {
        for i in 0..LANES {
            to[i] = (first[i].to_bits() & 15 | (second[i].to_bits() & 15) << 4) as u8;
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
        look_up_bytes(table, packed, out);
    }
}
