//! Instruction sets: one lane-friendly source compiled for each, chosen at run time.
//!
//! Kernels are plain Rust in `#[inline(always)]` functions. `Isa::run` calls them from a function that is compiled
//! for an instruction set. They are inlined into it, so the compiler's vectoriser may use that set. Loops that the
//! vectoriser does not handle well are written with the operations of `Machine`.

pub(crate) mod machine;
use crate::quant::simd::machine::Machine;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// The instructions that every machine of the target architecture has.
    Portable,
    /// x86-64 with AVX2, FMA, F16C and POPCNT.
    Avx2,
    /// The same with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AArch64 with NEON, which all of them have: the same code as portable.
    Neon,
}

/// Work that is compiled for each instruction set. `run` and all it calls must be `#[inline(always)]`; closures
/// cannot be, so only small ones may do work.
pub(crate) trait Job {
    /// The result of the job.
    type Output;

    /// Does it.
    fn run<M: Machine>(self, machine: M) -> Self::Output;
}

impl Isa {
    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if Self::Avx2.is_available() {
            Self::Avx2
        } else if Self::Neon.is_available() {
            Self::Neon
        } else {
            Self::Portable
        }
    }

    /// All that there are, slowest first.
    pub(crate) const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// All that this machine has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
                    && std::arch::is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Its name: `portable`, `avx2`, `avx512`, `neon`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// The instruction set of that name, whether or not this machine has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon].into_iter().find(|isa| isa.name() == name)
    }

    /// Does a job with this instruction set; with the portable one if the machine lacks it.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the machine has what these functions are compiled for")]
        {
            if self == Self::Avx512 && self.is_available() {
                // SAFETY: the features that the function is compiled for were just found on this machine.
                return unsafe { machine::x86::run_avx512(job) };
            }
            if self == Self::Avx2 && self.is_available() {
                // SAFETY: as above.
                return unsafe { machine::x86::run_avx2(job) };
            }
        }
        if self == Self::Neon && self.is_available() {
            return job.run(machine::NEON);
        }
        job.run(machine::PORTABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_round_and_the_best_is_available() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Neon] {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("sse9"), None);
        assert!(Isa::available().contains(&Isa::detect()));
        assert!(Isa::available().contains(&Isa::Portable));
    }
}
