//! `cargo fuzz run report`

#![no_main]

monoquant_fuzz::fuzz!(monoquant_fuzz::Report);
