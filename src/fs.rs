//! File system access: the lowest layer, below everything that reads or writes.
//!
//! Errors are `std::io::Error`s here; callers turn them into findings.
#![expect(clippy::disallowed_methods, reason = "this is where files are touched")]

pub mod disk;
pub mod exclusive;
pub mod handles;
pub mod identity;
pub mod limits;
pub mod paths;
pub mod positioned;
pub mod processes;
pub mod regular;
pub mod rename;
