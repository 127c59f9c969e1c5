//! Stands in for the crate `paste`, which is no longer maintained: `tokenizers` asks for this macro of it.

pub use pastey::paste;
