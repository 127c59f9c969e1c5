//! Sixteen lanes of f32, and the few operations on them that kernels are written with.
//!
//! Every instruction set has the same lanes, and so gives the same bits: one register, two, or an array.
//!
//! Longer than 500 lines because each instruction set answers the same list of operations, and the lists are read side by side.

/// Lanes of all sums.
pub(crate) const LANES: usize = 16;

/// The same of f64.
pub(crate) const DOUBLES: usize = 8;

/// An instruction set as a type. Code that holds a value runs on a machine that has the set, and is compiled for it.
pub(crate) trait Machine: Copy {
    /// Whether fused multiply-add is an instruction; only approximations whose errors are bounded, and what is
    /// exact, may use it, because it changes bits.
    const FMA: bool;

    /// Whether there are registers enough to quantize and to measure in one pass: else two passes are faster. Tests
    /// hold both to the same results on every machine.
    const ONE_PASS: bool;

    /// Sixteen f32.
    type Lanes: Copy;

    /// Eight f64.
    type Doubles: Copy;

    /// From memory.
    fn load(self, from: &[f32; LANES]) -> Self::Lanes;

    /// To memory.
    fn store(self, x: Self::Lanes, to: &mut [f32; LANES]);

    /// The same in every lane.
    fn splat(self, x: f32) -> Self::Lanes;

    /// a + b.
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a − b.
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a · b.
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a · b + c, rounded once if [`Machine::FMA`], else twice.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// a · b + c, rounded once on every machine: slow if the machine has no such instruction.
    fn fused(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// From memory.
    fn load_doubles(self, from: &[f64; DOUBLES]) -> Self::Doubles;

    /// To memory.
    fn store_doubles(self, x: Self::Doubles, to: &mut [f64; DOUBLES]);

    /// The same in every lane.
    fn splat_double(self, x: f64) -> Self::Doubles;

    /// [`Machine::mul_add`] of f64.
    fn mul_add_doubles(self, a: Self::Doubles, b: Self::Doubles, c: Self::Doubles) -> Self::Doubles;

    /// |a|.
    fn abs(self, a: Self::Lanes) -> Self::Lanes;

    /// a if a > b, else b.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a if a < b, else b.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// `other` in the lanes with a = b, a in the rest; and the number of lanes that are equal.
    fn replace_equal(self, a: Self::Lanes, b: Self::Lanes, other: Self::Lanes) -> (Self::Lanes, u32);

    /// The sum of all lanes, by halves: of lanes i and i + 8, i and i + 4, i and i + 2, i and i + 1.
    fn sum(self, a: Self::Lanes) -> f32;

    /// [`Machine::sum`] of each row, in little more time than for two rows.
    fn sum_rows(self, rows: &[[f32; LANES]; LANES], sums: &mut [f32; LANES]);

    /// The greater of a ≥ 0 and |b|, of numbers.
    fn max_abs(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// Whether any lane is above `limit`.
    fn exceeds(self, a: Self::Lanes, limit: f32) -> bool;

    /// The greatest lane, of numbers.
    fn greatest(self, a: Self::Lanes) -> f32;

    /// Which lanes are below those of `low` or above those of `high`: a bit each, the first one lowest.
    fn outside(self, a: Self::Lanes, low: Self::Lanes, high: Self::Lanes) -> u32;

    /// a with 0 in the lanes that have a bit in `mask`. Those lanes are put first into `out`, in their order; the
    /// elements after them are unspecified.
    fn take_out(self, a: Self::Lanes, mask: u32, out: &mut [f32; LANES]) -> Self::Lanes;

    /// The 32 bfloat16 numbers of some bytes: those at even places, and those at odd ones.
    fn bf16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2];

    /// The same of numbers in half precision.
    fn f16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2];

    /// The entries of `table` selected by the low nibbles of the lanes' bit patterns. Useful with
    /// [`Machine::ONE_PASS`].
    #[inline(always)]
    fn entries(self, table: Self::Lanes, names: Self::Lanes) -> Self::Lanes {
        let [mut entries, mut lanes] = [[0.0; LANES]; 2];
        self.store(table, &mut entries);
        self.store(names, &mut lanes);
        self.load(&lanes.map(|name| entries[(name.to_bits() & 15) as usize]))
    }

    /// The entries of `table` that the low nibbles of some bytes name, and those that the high ones do.
    fn nibble_pairs(self, table: Self::Lanes, from: &[u8; LANES]) -> [Self::Lanes; 2];

    /// The bytes at even places, and those at odd ones, after an exclusive or with `flip`.
    fn byte_pairs(self, from: &[u8; 2 * LANES], flip: u8) -> [Self::Lanes; 2];

    /// The low nibbles of the bit patterns of lanes: of the first into those of some bytes, of the second into the high
    /// ones.
    fn store_nibble_pairs(self, pairs: [Self::Lanes; 2], to: &mut [u8; LANES]);

    /// The low bytes of the lanes' bit patterns: those of the first at even places, those of the second at odd ones.
    /// Useful with [`Machine::ONE_PASS`].
    #[inline(always)]
    fn store_byte_pairs(self, pairs: [Self::Lanes; 2], to: &mut [u8; 2 * LANES]) {
        let [first, second] = pairs.map(|pair| {
            let mut lanes = [0.0; LANES];
            self.store(pair, &mut lanes);
            lanes
        });
        for (i, pair) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *pair = [first[i].to_bits() as u8, second[i].to_bits() as u8];
        }
    }

    /// `out[i]` = the entry of `table` that nibble i of `packed` names, low nibbles first. `packed` must hold
    /// that many.
    fn look_up(self, table: &[f32; 16], packed: &[u8], out: &mut [f32]);
}

/// The first elements of a buffer that begin at the start of a cache line: no load of a whole register then touches
/// two lines.
pub(crate) fn on_lines(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len + LANES - 1, 0.0);
    let skip = buffer.as_ptr().align_offset(size_of::<[f32; LANES]>()).min(LANES - 1);
    &mut buffer[skip..skip + len]
}

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
fn fused(a: f32, b: f32, c: f32) -> f32 {
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

/// [`Machine::take_out`], a lane at a time.
#[inline(always)]
fn take_out(mut a: [f32; LANES], mask: u32, out: &mut [f32; LANES]) -> [f32; LANES] {
    if mask == 0 {
        return a;
    }
    let mut count = 0;
    for (i, lane) in a.iter_mut().enumerate() {
        let is_out = mask >> i & 1 != 0;
        // Without a branch: the next one takes the place of one that stays.
        out[count] = *lane;
        count += usize::from(is_out);
        *lane = if is_out { 0.0 } else { *lane };
    }
    a
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

#[inline(always)]
fn look_up_bytes(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    for (out, &byte) in out.chunks_mut(2).zip(packed) {
        out[0] = table[usize::from(byte & 15)];
        if let Some(second) = out.get_mut(1) {
            *second = table[usize::from(byte >> 4)];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the intrinsics of AVX2 and AVX-512 are unsafe functions")]
pub(crate) mod x86;

/// The value of an F16 number, little-endian.
#[inline(always)]
pub(crate) fn f16_to_f32(raw: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(raw));
    // The mantissa moves by 13 bits; a product with 2^112 corrects the bias and normalises subnormals, exactly.
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Isa;
    use crate::quant::simd::Job;
    use crate::quant::test_weights::{Numbers, gaussian};

    #[test]
    fn fused_sums_without_the_instruction_are_those_with_it() {
        let mut numbers = Numbers(3);
        let mut number = |spread: u32| {
            let (bits, exponent) = (numbers.next(), 127 - spread / 2);
            f32::from_bits(bits as u32 & 0x807f_ffff | (exponent + (bits >> 40) as u32 % spread) << 23)
        };
        for i in 0..300_000 {
            let spread = [4, 30, 60, 250][i % 4];
            let (a, b, mut c) = (number(spread), number(spread), number(spread));
            // Sums in the middle between two neighbours, or next to it, and sums of which nothing is left.
            match i % 7 {
                0 => c = -a * b,
                1 => c = a * b * 3.0 * 2f32.powi(22),
                2 => c = a * b * 2f32.powi(-24),
                _ => {}
            }
            let (found, want) = (fused(a, b, c), a.mul_add(b, c));
            assert!(found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()), "{a} {b} {c}");
        }
    }

    struct LookUp<'a>(&'a [f32; 16], &'a [u8], &'a mut [f32]);

    impl Job for LookUp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<M: Machine>(self, machine: M) {
            machine.look_up(self.0, self.1, self.2);
        }
    }

    #[test]
    fn nibbles_name_entries_low_ones_first() {
        let table = std::array::from_fn(|i| i as f32 - 8.5);
        let packed: Vec<u8> = (0..40u32).map(|i| (i * 37 + 11) as u8).collect();
        for isa in Isa::available() {
            for count in 0..=80 {
                let mut out = vec![0.0; count];
                isa.run(LookUp(&table, &packed, &mut out));
                for (i, &found) in out.iter().enumerate() {
                    assert_eq!(found, table[usize::from(packed[i / 2] >> (i % 2 * 4) & 15)]);
                }
            }
        }
    }

    /// Numbers, bytes and nibbles of some bytes, in pairs.
    struct Pairs<'a>(&'a [f32; 16], &'a [u8; 64]);

    impl Job for Pairs<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<M: Machine>(self, m: M) -> Self::Output {
            let mut nibbles = [0; LANES];
            nibbles.copy_from_slice(&self.1[..LANES]);
            let [a, b] = m.bf16_pairs(self.1);
            let [c, d] = m.nibble_pairs(m.load(self.0), &nibbles);
            let mut bytes = [0; 2 * LANES];
            bytes.copy_from_slice(&self.1[..2 * LANES]);
            let [e, f] = m.byte_pairs(&bytes, 0x80);
            let [g, h] = m.f16_pairs(self.1);
            let mut bits = Vec::new();
            m.store_nibble_pairs([a, f], &mut nibbles);
            bits.extend(nibbles.map(u32::from));
            m.store_byte_pairs([c, m.mul(f, m.splat(f32::from_bits(1)))], &mut bytes);
            bits.extend(bytes.map(u32::from));
            let i = m.entries(m.load(self.0), m.mul(f, m.splat(f32::from_bits(1))));
            for x in [a, b, c, d, e, f, g, h, i] {
                let mut out = [0.0; LANES];
                m.store(x, &mut out);
                bits.extend(out.map(f32::to_bits));
            }
            bits
        }
    }

    #[test]
    fn pairs_are_even_and_odd_places() {
        let mut bytes = [0; 64];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (i * 37 + 11) as u8;
        }
        let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
        let number = |i: usize| u32::from(bytes[2 * i]) << 16 | u32::from(bytes[2 * i + 1]) << 24;
        let nibble = |i: usize| table[usize::from(bytes[i / 2] >> (i % 2 * 4) & 15)].to_bits();
        let of =
            |f: &dyn Fn(usize) -> u32, first: usize| (0..LANES).map(|i| f(2 * i + first)).collect::<Vec<_>>();
        let byte = |i: usize| f32::from(bytes[i] ^ 0x80).to_bits();
        let half = |i: usize| f32::from(half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])).to_bits();
        let joined = (0..LANES).map(|i| number(2 * i) & 15 | (byte(2 * i + 1) & 15) << 4).collect();
        let bytes_in_pairs =
            (0..LANES).flat_map(|i| [nibble(2 * i) & 255, u32::from(bytes[2 * i + 1] ^ 0x80)]);
        let want = [
            joined,
            bytes_in_pairs.collect(),
            of(&number, 0),
            of(&number, 1),
            of(&nibble, 0),
            of(&nibble, 1),
            of(&byte, 0),
            of(&byte, 1),
            of(&half, 0),
            of(&half, 1),
            of(&|i| table[usize::from(bytes[i] & 15)].to_bits(), 1),
        ]
        .concat();
        for isa in Isa::available() {
            assert_eq!(isa.run(Pairs(&table, &bytes)), want, "{}", isa.name());
        }
    }

    /// Every operation on lanes, on inputs with equal and special values; NaN as one bit pattern.
    struct All([[f32; LANES]; 3]);

    impl Job for All {
        type Output = (Vec<u32>, Vec<u32>);

        #[inline(always)]
        fn run<M: Machine>(self, m: M) -> Self::Output {
            let [a, b, c] = self.0.map(|lanes| m.load(&lanes));
            let (replaced, equal) = m.replace_equal(a, b, c);
            let lanes = [
                m.add(a, b),
                m.sub(a, b),
                m.mul(a, b),
                m.fused(a, b, c),
                m.abs(a),
                m.max(a, b),
                m.min(a, b),
                m.splat(self.0[0][0]),
                replaced,
            ];
            let mut bits = Vec::new();
            for x in lanes {
                let mut out = [0.0; LANES];
                m.store(x, &mut out);
                bits.extend(out.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
            }
            bits.extend([m.sum(c).to_bits(), m.greatest(c).to_bits(), equal]);
            let (mut rows, mut sums) = ([[0.0; LANES]; LANES], [0.0; LANES]);
            for (i, row) in rows.iter_mut().enumerate() {
                m.store(m.mul(c, m.splat(i as f32 - 4.3)), row);
            }
            m.sum_rows(&rows, &mut sums);
            for (row, sum) in rows.iter().zip(&sums) {
                assert_eq!(m.sum(m.load(row)).to_bits(), sum.to_bits());
            }
            bits.extend(sums.map(f32::to_bits));
            let limits = [0.5, 1.0, 2.0, 9.0, f32::INFINITY, f32::NAN];
            bits.extend(limits.map(|limit| u32::from(m.exceeds(a, limit))));
            bits.extend(limits.map(|limit| u32::from(m.exceeds(c, limit))));
            let (low, high) = (m.splat(-0.5), m.max(b, m.splat(-0.5)));
            let mask = m.outside(a, low, high);
            let (mut out, mut kept) = ([0.0; LANES], [0.0; LANES]);
            m.store(m.take_out(c, mask, &mut out), &mut kept);
            bits.push(mask);
            bits.extend(kept.map(f32::to_bits));
            bits.extend(out[..mask.count_ones() as usize].iter().map(|x| x.to_bits()));
            let mut most = [0.0; LANES];
            m.store(m.max_abs(m.abs(m.mul(c, c)), c), &mut most);
            bits.extend(most.map(f32::to_bits));
            let mut fused = [0.0; LANES];
            m.store(m.mul_add(a, b, c), &mut fused);
            let near = |i: usize| {
                let want = self.0[0][i] * self.0[1][i] + self.0[2][i];
                u32::from(want.is_nan() || want == fused[i] || (want - fused[i]).abs() < 1e-5)
            };
            (bits, (0..LANES).map(near).collect())
        }
    }

    #[test]
    fn lanes_are_the_same_on_every_instruction_set() {
        for seed in 0..50 {
            let mut inputs = [0, 1, 2].map(|i| {
                let mut lanes = [0.0; LANES];
                lanes.copy_from_slice(&gaussian(LANES, 3 * seed + i));
                lanes
            });
            if seed % 2 == 1 {
                inputs[0][seed as usize % 16] = inputs[1][seed as usize % 16];
                inputs[0][(seed as usize + 3) % 16] = f32::NAN;
                inputs[1][(seed as usize + 5) % 16] = f32::INFINITY;
                inputs[2][(seed as usize + 7) % 16] = 0.0;
            }
            let (want, _) = All(inputs).run(PORTABLE);
            for isa in Isa::available() {
                let (found, near) = isa.run(All(inputs));
                assert_eq!(found, want, "{}", isa.name());
                assert_eq!(near, [1; LANES], "{}", isa.name());
            }
        }
    }
}
