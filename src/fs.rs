//! File system access: the lowest layer, below everything that reads or writes.
//!
//! Errors are `std::io::Error`s here; callers turn them into findings.

pub mod disk;
pub mod exclusive;
pub mod handles;
pub mod identity;
pub mod limits;
pub mod positioned;
pub mod regular;
