//! Stands in for the crate `fxhash`, which is no longer maintained: `ptr_hash`, below `tokenizers`, asks for this name of it.

pub use rustc_hash::FxHasher as FxHasher64;
