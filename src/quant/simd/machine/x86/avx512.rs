//! Lanes in the registers of AVX-512.

use std::arch::x86_64::*;

use super::Avx512;
use super::avx2::{greatest_of_eight, sum_of_eight};
use crate::quant::simd::machine::{DOUBLES, LANES, Machine, look_up_bytes};

impl Machine for Avx512 {
    const FMA: bool = true;

    const ONE_PASS: bool = true;

    type Lanes = __m512;

    type Doubles = __m512d;

    on_whole! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        mul_add(a, b, c) = _mm512_fmadd_ps;
        fused(a, b, c) = _mm512_fmadd_ps;
        abs(a) = _mm512_abs_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: `self` proves AVX-512; `from` has 16 elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: Self::Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512; `to` has 16 elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Lanes {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64; DOUBLES]) -> Self::Doubles {
        // SAFETY: `self` proves AVX-512; `from` has 8 elements.
        unsafe { _mm512_loadu_pd(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_doubles(self, x: Self::Doubles, to: &mut [f64; DOUBLES]) {
        // SAFETY: `self` proves AVX-512; `to` has 8 elements.
        unsafe {
            _mm512_storeu_pd(to.as_mut_ptr(), x);
        }
    }

    #[inline(always)]
    fn splat_double(self, x: f64) -> Self::Doubles {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_pd(x) }
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: Self::Doubles, b: Self::Doubles, c: Self::Doubles) -> Self::Doubles {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_pd(a, b, c) }
    }

    #[inline(always)]
    fn replace_equal(self, a: Self::Lanes, b: Self::Lanes, other: Self::Lanes) -> (Self::Lanes, u32) {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
            (_mm512_mask_blend_ps(equal, a, other), equal.count_ones())
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::Lanes) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))) }
    }

    #[inline(always)]
    fn sum_rows(self, rows: &[[f32; LANES]; LANES], sums: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512; there are 16 sums.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum_rows_avx512(rows)) }
    }

    #[inline(always)]
    fn turn(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES] {
        // SAFETY: `self` proves AVX-512.
        unsafe { turn_avx512(rows) }
    }

    #[inline(always)]
    fn turn_doubles(self, rows: [Self::Doubles; DOUBLES]) -> [Self::Doubles; DOUBLES] {
        // SAFETY: `self` proves AVX-512.
        unsafe { turn_doubles_avx512(rows) }
    }

    #[inline(always)]
    fn max_abs(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // The greater of absolute values, with the sign cleared.
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_range_ps::<0b1011>(a, b) }
    }

    #[inline(always)]
    fn exceeds(self, a: Self::Lanes, limit: f32) -> bool {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, _mm512_set1_ps(limit)) != 0 }
    }

    #[inline(always)]
    fn greatest(self, a: Self::Lanes) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { greatest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))) }
    }

    #[inline(always)]
    fn outside(self, a: Self::Lanes, low: Self::Lanes, high: Self::Lanes) -> u32 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, low);
            u32::from(below | _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, high))
        }
    }

    #[inline(always)]
    fn take_out(self, a: Self::Lanes, mask: u32, out: &mut [f32; LANES]) -> Self::Lanes {
        let mask = mask as u16;
        // SAFETY: `self` proves AVX-512; `out` has 16 elements.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_maskz_compress_ps(mask, a));
            _mm512_maskz_mov_ps(!mask, a)
        }
    }

    #[inline(always)]
    fn bf16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX-512; `from` has 64 bytes.
        unsafe {
            let both = _mm512_loadu_si512(from.as_ptr().cast());
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)),
                _mm512_castsi512_ps(_mm512_and_si512(both, upper)),
            ]
        }
    }

    #[inline(always)]
    fn f16_pairs(self, from: &[u8; 4 * LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX-512; `from` has 64 bytes.
        unsafe {
            let both = _mm512_loadu_si512(from.as_ptr().cast());
            [
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both)),
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(both))),
            ]
        }
    }

    #[inline(always)]
    fn entries(self, table: Self::Lanes, names: Self::Lanes) -> Self::Lanes {
        // The permutation looks at the low 4 bits.
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(names), table) }
    }

    #[inline(always)]
    fn nibble_pairs(self, table: Self::Lanes, from: &[u8; LANES]) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX-512; `from` has 16 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            // The permutation of the entries looks at the low 4 bits.
            [_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table)]
        }
    }

    #[inline(always)]
    fn byte_pairs(self, from: &[u8; 2 * LANES], flip: u8) -> [Self::Lanes; 2] {
        // SAFETY: `self` proves AVX-512; `from` has 32 bytes.
        unsafe {
            let bytes = _mm256_loadu_si256(from.as_ptr().cast());
            let pairs = _mm512_cvtepu16_epi32(_mm256_xor_si256(bytes, _mm256_set1_epi8(flip as i8)));
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(255))),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<8>(pairs)),
            ]
        }
    }

    #[inline(always)]
    fn store_nibble_pairs(self, [first, second]: [Self::Lanes; 2], to: &mut [u8; LANES]) {
        // SAFETY: `self` proves AVX-512; `to` has 16 bytes.
        unsafe {
            let shifted = _mm512_slli_epi32::<4>(_mm512_castps_si512(second));
            // For each bit: the first's if the third's is 1, else the second's.
            let both = _mm512_ternarylogic_epi32::<0b1110_0100>(
                _mm512_castps_si512(first),
                shifted,
                _mm512_set1_epi32(15),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(both));
        }
    }

    #[inline(always)]
    fn store_byte_pairs(self, [first, second]: [Self::Lanes; 2], to: &mut [u8; 2 * LANES]) {
        // SAFETY: `self` proves AVX-512; `to` has 32 bytes.
        unsafe {
            let shifted = _mm512_slli_epi32::<8>(_mm512_castps_si512(second));
            // For each bit: the first's if the third's is 1, else the second's.
            let both = _mm512_ternarylogic_epi32::<0b1110_0100>(
                _mm512_castps_si512(first),
                shifted,
                _mm512_set1_epi32(255),
            );
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(both));
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
        // SAFETY: `self` proves AVX-512.
        unsafe { look_up_avx512(table, packed, out) }
    }
}

/// [`sum_rows_avx2`] of sixteen rows.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn sum_rows_avx512(rows: &[[f32; LANES]; LANES]) -> __m512 {
    let mut eights = [_mm512_setzero_ps(); 8];
    for (i, eight) in eights.iter_mut().enumerate() {
        // Rows 0 and 4, 1 and 5, 2 and 6, 3 and 7, 8 and 12, …
        let row = i / 4 * 8 + i % 4;
        let (a, b) = (rows[row].as_ptr(), rows[row + 4].as_ptr());
        // SAFETY: a row has 16 elements. The halves are combined while they are loaded, which costs no shuffle.
        let (low, high) = unsafe {
            let half = |at: *const f32| _mm512_castps256_ps512(_mm256_loadu_ps(at));
            (
                _mm512_insertf32x8::<1>(half(a), _mm256_loadu_ps(b)),
                _mm512_insertf32x8::<1>(half(a.add(8)), _mm256_loadu_ps(b.add(8))),
            )
        };
        *eight = _mm512_add_ps(low, high);
    }
    let mut fours = [_mm512_setzero_ps(); 4];
    for (i, four) in fours.iter_mut().enumerate() {
        let (a, b) = (eights[i], eights[i + 4]);
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        *four = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
    }
    let mut twos = [_mm512_setzero_ps(); 2];
    for (i, two) in twos.iter_mut().enumerate() {
        let (a, b) = (_mm512_castps_pd(fours[2 * i]), _mm512_castps_pd(fours[2 * i + 1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        *two = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let [a, b] = twos;
    _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn look_up_avx512(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    let word_of_lane = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    // SAFETY: the load reads the 16 entries.
    let entries = unsafe { _mm512_loadu_ps(table.as_ptr()) };
    let (whole, rest) = out.as_chunks_mut::<16>();
    let (words, last) = packed.split_at(whole.len() * 8);
    for (out, &pair) in whole.iter_mut().zip(words.as_chunks::<8>().0) {
        let pair = _mm512_set1_epi64(i64::from_le_bytes(pair));
        // The permutation of the entries looks at the low 4 bits.
        let index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of_lane, pair), shifts);
        // SAFETY: `out` has 16 elements.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(index, entries)) };
    }
    look_up_bytes(table, last, rest);
}

/// Rows become columns: pairs of lanes first, then pairs of these, then quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_avx512(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Of rows i to i + 3: columns j, 4 + j, 8 + j and 12 + j, a quarter each.
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        let (a, b) = (_mm512_castps_pd(pairs[i]), _mm512_castps_pd(pairs[i + 1]));
        let (c, d) = (_mm512_castps_pd(pairs[i + 2]), _mm512_castps_pd(pairs[i + 3]));
        fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    let mut out = rows;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        // Quarters 0 and 2, and 1 and 3.
        let (even, later_even) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
        let (odd, later_odd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
        out[j] = _mm512_shuffle_f32x4::<0x88>(even, later_even);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, later_odd);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, later_even);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, later_odd);
    }
    out
}

/// Rows become columns: pairs of lanes first, then quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_doubles_avx512(rows: [__m512d; DOUBLES]) -> [__m512d; DOUBLES] {
    // Of two rows: columns j, 2 + j, 4 + j and 6 + j, a quarter each.
    let mut pairs = rows;
    for i in (0..DOUBLES).step_by(2) {
        pairs[i] = _mm512_unpacklo_pd(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_pd(rows[i], rows[i + 1]);
    }
    let mut out = rows;
    for j in 0..2 {
        let (a, b, c, d) = (pairs[j], pairs[2 + j], pairs[4 + j], pairs[6 + j]);
        // Quarters 0 and 2, and 1 and 3.
        let (even, later_even) = (_mm512_shuffle_f64x2::<0x88>(a, b), _mm512_shuffle_f64x2::<0x88>(c, d));
        let (odd, later_odd) = (_mm512_shuffle_f64x2::<0xdd>(a, b), _mm512_shuffle_f64x2::<0xdd>(c, d));
        out[j] = _mm512_shuffle_f64x2::<0x88>(even, later_even);
        out[2 + j] = _mm512_shuffle_f64x2::<0x88>(odd, later_odd);
        out[4 + j] = _mm512_shuffle_f64x2::<0xdd>(even, later_even);
        out[6 + j] = _mm512_shuffle_f64x2::<0xdd>(odd, later_odd);
    }
    out
}
