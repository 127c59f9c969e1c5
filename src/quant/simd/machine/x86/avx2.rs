//! Lanes in the registers of AVX2.

use std::arch::x86_64::*;

use super::Avx2;
use crate::quant::simd::machine::{DOUBLES, LANES, Machine, look_up_bytes, take_out};

impl Machine for Avx2 {
    const FMA: bool = true;

    const ONE_PASS: bool = false;

    type Lanes = [__m256; 2];

    type Doubles = [__m256d; 2];

    on_halves! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        mul_add(a, b, c) = _mm256_fmadd_ps;
        fused(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: `self` proves AVX2; `from` has 16 elements.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, x: Self::Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX2; `to` has 16 elements.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64; DOUBLES]) -> Self::Doubles {
        // SAFETY: `self` proves AVX2 and FMA; `from` has 8 elements.
        unsafe { [_mm256_loadu_pd(from.as_ptr()), _mm256_loadu_pd(from.as_ptr().add(4))] }
    }

    #[inline(always)]
    fn store_doubles(self, x: Self::Doubles, to: &mut [f64; DOUBLES]) {
        // SAFETY: `self` proves AVX2 and FMA; `to` has 8 elements.
        unsafe {
            _mm256_storeu_pd(to.as_mut_ptr(), x[0]);
            _mm256_storeu_pd(to.as_mut_ptr().add(4), x[1]);
        }
    }

    #[inline(always)]
    fn splat_double(self, x: f64) -> Self::Doubles {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { [_mm256_set1_pd(x); 2] }
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: Self::Doubles, b: Self::Doubles, c: Self::Doubles) -> Self::Doubles {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { [_mm256_fmadd_pd(a[0], b[0], c[0]), _mm256_fmadd_pd(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn abs(self, a: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }

    #[inline(always)]
    fn replace_equal(self, a: Self::Lanes, b: Self::Lanes, other: Self::Lanes) -> (Self::Lanes, u32) {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (low, high) =
                (_mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1]));
            let lanes = [_mm256_blendv_ps(a[0], other[0], low), _mm256_blendv_ps(a[1], other[1], high)];
            (lanes, _mm256_movemask_ps(low).count_ones() + _mm256_movemask_ps(high).count_ones())
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::Lanes) -> f32 {
        // SAFETY: `self` proves AVX2.
        unsafe { sum_of_eight(_mm256_add_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn sum_rows(self, rows: &[[f32; LANES]; LANES], sums: &mut [f32; LANES]) {
        let (first, second) = sums.split_at_mut(8);
        for (rows, sums) in rows.as_chunks::<8>().0.iter().zip([first, second]) {
            // SAFETY: `self` proves AVX2; there are 8 sums.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum_rows_avx2(rows)) };
        }
    }

    #[inline(always)]
    fn max_abs(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        self.max(a, self.abs(b))
    }

    #[inline(always)]
    fn exceeds(self, a: Self::Lanes, limit: f32) -> bool {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            let (low, high) =
                (_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], limit), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], limit));
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        }
    }

    #[inline(always)]
    fn greatest(self, a: Self::Lanes) -> f32 {
        // SAFETY: `self` proves AVX2.
        unsafe { greatest_of_eight(_mm256_max_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn outside(self, a: Self::Lanes, low: Self::Lanes, high: Self::Lanes) -> u32 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let below =
                [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], low[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], low[1])];
            let above =
                [_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], high[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], high[1])];
            let first = _mm256_movemask_ps(_mm256_or_ps(below[0], above[0]));
            let second = _mm256_movemask_ps(_mm256_or_ps(below[1], above[1]));
            (first | second << 8) as u32
        }
    }

    #[inline(always)]
    fn take_out(self, a: Self::Lanes, mask: u32, out: &mut [f32; LANES]) -> Self::Lanes {
        if mask == 0 {
            return a;
        }
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        self.load(&take_out(lanes, mask, out))
    }

    #[inline(always)]
    fn bf16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX2; `from` has 64 bytes.
        unsafe {
            let halves = [0, 32].map(|at| _mm256_loadu_si256(from.as_ptr().add(at).cast()));
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            [
                halves.map(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))),
                halves.map(|half| _mm256_castsi256_ps(_mm256_and_si256(half, upper))),
            ]
        }
    }

    #[inline(always)]
    fn f16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX2 and F16C; `from` has 64 bytes.
        unsafe {
            let a = _mm256_loadu_si256(from.as_ptr().cast());
            let b = _mm256_loadu_si256(from.as_ptr().add(32).cast());
            let low = _mm256_set1_epi32(0xffff);
            [
                widen_words_avx2(_mm256_and_si256(a, low), _mm256_and_si256(b, low)),
                widen_words_avx2(_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b)),
            ]
        }
    }

    #[inline(always)]
    fn nibble_pairs(self, table: Self::Lanes, from: &[u8; LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX2; `from` has 16 bytes.
        unsafe {
            let bytes = [0, 8].map(|at| _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().add(at).cast())));
            [
                bytes.map(|bytes| entries_avx2(table, bytes)),
                bytes.map(|bytes| entries_avx2(table, _mm256_srli_epi32::<4>(bytes))),
            ]
        }
    }

    #[inline(always)]
    fn byte_pairs(self, from: &[u8; 2 * LANES], flip: u8) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX2; `from` has 32 bytes.
        unsafe {
            let bytes = _mm256_loadu_si256(from.as_ptr().cast());
            let bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(flip as i8));
            let pairs = [
                _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bytes)),
                _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(bytes)),
            ];
            let low = _mm256_set1_epi32(255);
            [
                [
                    _mm256_cvtepi32_ps(_mm256_and_si256(pairs[0], low)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(pairs[1], low)),
                ],
                [
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<8>(pairs[0])),
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<8>(pairs[1])),
                ],
            ]
        }
    }

    #[inline(always)]
    fn store_nibble_pairs(self, [first, second]: [Self::Lanes; 2], to: &mut [u8; LANES]) {
        // SAFETY: `self` proves AVX2; `to` has 16 bytes.
        unsafe {
            let (a, b) = (join_nibbles_avx2(first[0], second[0]), join_nibbles_avx2(first[1], second[1]));
            // By halves of registers: 4 of a, 4 of b, twice.
            let words = _mm256_packus_epi32(a, b);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
        // SAFETY: `self` proves AVX2.
        unsafe { look_up_avx2(table, packed, out) }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn sum_of_eight(a: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The sums of eight rows of sixteen: at each step half as many registers, each with lanes of twice as many rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sum_rows_avx2(rows: &[[f32; LANES]; 8]) -> __m256 {
    let mut eights = [_mm256_setzero_ps(); 8];
    for (eight, row) in eights.iter_mut().zip(rows) {
        // SAFETY: a row has 16 elements.
        *eight =
            unsafe { _mm256_add_ps(_mm256_loadu_ps(row.as_ptr()), _mm256_loadu_ps(row.as_ptr().add(8))) };
    }
    let mut fours = [_mm256_setzero_ps(); 4];
    for (i, four) in fours.iter_mut().enumerate() {
        let (a, b) = (eights[i], eights[i + 4]);
        *four = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
    }
    let mut twos = [_mm256_setzero_ps(); 2];
    for (i, two) in twos.iter_mut().enumerate() {
        let (a, b) = (_mm256_castps_pd(fours[2 * i]), _mm256_castps_pd(fours[2 * i + 1]));
        let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        *two = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
    }
    let [a, b] = twos;
    _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn greatest_of_eight(a: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// The entries of a table that the low 4 bits of some numbers name.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn entries_avx2([low, high]: [__m256; 2], index: __m256i) -> __m256 {
    // The permutations look at the low 3 bits; the fourth, moved to the sign, chooses between them.
    let (below, above) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
    _mm256_blendv_ps(below, above, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
}

/// Numbers in half precision, each in the lower half of 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen_words_avx2(a: __m256i, b: __m256i) -> [__m256; 2] {
    // By halves of registers: 4 of a, 4 of b, twice.
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b));
    [_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(words))]
}

/// The low nibbles of two bit patterns in the low byte.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn join_nibbles_avx2(first: __m256, second: __m256) -> __m256i {
    let low = _mm256_set1_epi32(15);
    let first = _mm256_and_si256(_mm256_castps_si256(first), low);
    let second = _mm256_and_si256(_mm256_castps_si256(second), low);
    _mm256_or_si256(first, _mm256_slli_epi32::<4>(second))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn look_up_avx2(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    // SAFETY: each load reads 8 of the 16 entries.
    let table_lanes = unsafe { [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))] };
    let (whole, rest) = out.as_chunks_mut::<8>();
    let (words, last) = packed.split_at(whole.len() * 4);
    for (out, &word) in whole.iter_mut().zip(words.as_chunks::<4>().0) {
        let index = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from_le_bytes(word)), shifts);
        // SAFETY: `out` has 8 elements.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), entries_avx2(table_lanes, index)) };
    }
    look_up_bytes(table, last, rest);
}
