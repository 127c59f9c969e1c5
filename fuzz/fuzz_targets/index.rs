//! `cargo fuzz run index`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Index);
