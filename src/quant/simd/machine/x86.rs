//! Lanes in the registers of AVX2 and of AVX-512.

use crate::quant::simd::Job;

/// Does a job with AVX2, FMA, F16C and POPCNT.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(in crate::quant) fn run_avx2<J: Job>(job: J) -> J::Output {
    job.run(Avx2(()))
}

/// Does a job with AVX-512 F, BW, DQ and VL, and with what [`run_avx2`] needs.
#[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::quant) fn run_avx512<J: Job>(job: J) -> J::Output {
    job.run(Avx512(()))
}

/// Made by [`run_avx2`] alone: while there is a value, the machine has what that function is compiled for.
#[derive(Clone, Copy)]
struct Avx2(());

/// Made by [`run_avx512`] alone, as [`Avx2`].
#[derive(Clone, Copy)]
struct Avx512(());

/// Methods that are one intrinsic on both registers of the lanes.
macro_rules! on_halves {
    ($($name:ident($($a:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($a: Self::Lanes),+) -> Self::Lanes {
            // SAFETY: `self` proves AVX2 and FMA.
            unsafe { [$intrinsic($($a[0]),+), $intrinsic($($a[1]),+)] }
        }
    )+};
}

/// Methods that are one intrinsic.
macro_rules! on_whole {
    ($($name:ident($($a:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($a: Self::Lanes),+) -> Self::Lanes {
            // SAFETY: `self` proves AVX-512.
            unsafe { $intrinsic($($a),+) }
        }
    )+};
}

mod avx2;
mod avx512;
