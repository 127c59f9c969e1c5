//! File system access: the lowest layer, below everything that reads or writes.
//!
//! Errors are `std::io::Error`s here; callers turn them into findings.
#![expect(clippy::disallowed_methods, reason = "this is where files are touched")]

pub(crate) mod disk;
pub(crate) mod exclusive;
pub mod handles;
pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod paths;
pub(crate) mod positioned;
pub(crate) mod processes;
pub(crate) mod regular;
pub(crate) mod rename;
