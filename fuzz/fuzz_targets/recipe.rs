//! `cargo fuzz run recipe`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Recipe);
