//! `cargo fuzz run header`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Header);
