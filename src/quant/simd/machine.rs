//! Sixteen lanes of f32, and the few operations on them that kernels are written with.
//!
//! Every instruction set has the same lanes, and so gives the same bits: one register, two, or an array.
//!
//! Longer than 500 lines because each instruction set answers the same list of operations, and the lists are read side by side.

mod arrays;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the intrinsics of AVX2 and AVX-512 are unsafe functions")]
pub(crate) mod x86;

#[cfg(test)]
pub(crate) use arrays::Arrays;
pub(crate) use arrays::{NEON, PORTABLE};

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

    /// Rows become columns: lane j of row i comes to lane i of row j. Useful with [`Machine::ONE_PASS`].
    #[inline(always)]
    fn turn(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES] {
        let rows = rows.map(|row| {
            let mut lanes = [0.0; LANES];
            self.store(row, &mut lanes);
            lanes
        });
        std::array::from_fn(|column| self.load(&rows.map(|row| row[column])))
    }

    /// [`Machine::turn`] of f64.
    #[inline(always)]
    fn turn_doubles(self, rows: [Self::Doubles; DOUBLES]) -> [Self::Doubles; DOUBLES] {
        let rows = rows.map(|row| {
            let mut lanes = [0.0; DOUBLES];
            self.store_doubles(row, &mut lanes);
            lanes
        });
        std::array::from_fn(|column| self.load_doubles(&rows.map(|row| row[column])))
    }

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

#[inline(always)]
fn look_up_bytes(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    for (out, &byte) in out.chunks_mut(2).zip(packed) {
        out[0] = table[usize::from(byte & 15)];
        if let Some(second) = out.get_mut(1) {
            *second = table[usize::from(byte >> 4)];
        }
    }
}

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
mod tests;
