//! `cargo fuzz run config`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Config);
