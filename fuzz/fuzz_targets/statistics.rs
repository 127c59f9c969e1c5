//! `cargo fuzz run statistics`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Statistics);
