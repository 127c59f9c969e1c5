//! What the fuzzers of monoquant do with an input, one type a kind of file that comes from strangers.
//!
//! The same code is run by `cargo fuzz` (`fuzz_targets/`) and, over all files of `corpus/` and `regressions/`, by the tests of the
//! stable toolchain (`tests/it/corpora.rs`). An input is wrong in any way it likes: what is asked of monoquant is never to panic,
//! and what each type says beside its assertions.

mod config;
mod findings;
mod folder;
mod header;
mod index;
mod recipe;
mod record;
mod report;
mod statistics;

pub use config::Config;
pub use header::Header;
pub use index::Index;
pub use recipe::Recipe;
pub use record::Record;
pub use report::Report;
pub use statistics::Statistics;

/// A kind of file that comes from strangers.
pub trait Target {
    /// Makes what is needed once.
    fn new() -> Self;

    /// Reads an input, and does with it all that monoquant does.
    ///
    /// # Panics
    /// Where monoquant does not hold what it promises.
    fn try_on(&self, input: &[u8]);
}

/// The body of a file in `fuzz_targets/`.
#[macro_export]
macro_rules! fuzz {
    ($target:ty) => {
        use monoquant_fuzz::Target as _;

        thread_local! {
            static TARGET: $target = <$target>::new();
        }

        libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET.with(|target| target.try_on(input)));
    };
}
