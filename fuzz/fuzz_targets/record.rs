//! `cargo fuzz run record`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Record);
