//! The power |x|^p in f64, lane-friendly and the same on every machine.
//!
//! The system's `pow` differs between platforms and cannot be vectorised. The search for a range needs the same
//! results everywhere and vectorised code. x^p = 2^(p·log2 x): the logarithm by its series in (m − 1) / (m + 1), the
//! exponential by Taylor's. The relative error is below 1e-12 for results from 1e-300 to 1e300, which the tests check
//! against the system's function.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E};

/// x^p for x ≥ 0 and p > 0. 0 gives 0, results below 2^-1022 give 0, above 2^1023 infinity. NaN gives anything. A subnormal x counts as
/// some number between 2^-1023 and 2^-1022: errors of f32 weights are never so small.
#[inline(always)]
pub(crate) fn power(x: f64, p: f64) -> f64 {
    // x = 2^k · m with m in √½ … √2.
    let shifted = x.to_bits().wrapping_add(1f64.to_bits() - FRAC_1_SQRT_2.to_bits());
    let biased = shifted >> 52;
    let m = f64::from_bits(x.to_bits().wrapping_sub(biased << 52).wrapping_add(1023 << 52));
    // An integer below 2^52 as the mantissa of a number from 2^52 on: a conversion that every instruction set has.
    let k = f64::from_bits(biased | 0x4330_0000_0000_0000) - (4_503_599_627_370_496.0 + 1023.0);
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * s2 + 1.0 / odd;
    }
    let y = p * (k + 2.0 * LOG2_E * s * series);
    let y = if y > -1100.0 { y } else { -1100.0 };
    let y = if y < 1100.0 { y } else { 1100.0 };
    // 2^y = 2^n · e^(f·ln 2) with |f| ≤ ½; the sum leaves n in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let shifted = y + MAGIC;
    let f = (y - (shifted - MAGIC)) * LN_2;
    let mut e = 1.0;
    for i in [13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        e = e * (f * (1.0 / i)) + 1.0;
    }
    let scaled = f64::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 52));
    let finite = if y < 1023.0 { scaled } else { f64::INFINITY };
    if y < -1022.0 || x == 0.0 { 0.0 } else { finite }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_agree_with_the_system() {
        let mut worst = 0f64;
        for p in [0.5, 1.0, 2.0, 2.4, 3.0, 8.0] {
            for i in 0..40_000 {
                let x = 2f64.powf(f64::from(i - 20_000) * 0.0123);
                let want = x.powf(p);
                if want > 1e-300 && want < 1e300 {
                    worst = worst.max((power(x, p) / want - 1.0).abs());
                }
            }
        }
        assert!(worst < 1e-12, "{worst:e}");
    }

    #[test]
    fn ends_of_the_range_are_zero_and_infinity() {
        assert_eq!(power(0.0, 2.4), 0.0);
        assert_eq!(power(1e-200, 8.0), 0.0);
        assert_eq!(power(1e200, 8.0), f64::INFINITY);
        assert_eq!(power(1.0, 2.4), 1.0);
        let [least, most] = [2f64.powi(-1022) / 2.0, f64::MIN_POSITIVE].map(|x| x.powf(0.5));
        for subnormal in [1, 1 << 20, 1 << 51, (1 << 52) - 1].map(f64::from_bits) {
            let found = power(subnormal, 0.5);
            assert!((least * 0.999..most * 1.001).contains(&found), "{subnormal:e} {found:e}");
        }
    }
}
