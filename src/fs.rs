//! The file system, as this program uses it: the floor below everything that reads or writes.
//!
//! Errors are `std::io::Error`s here; callers make findings of them.

pub mod disk;
pub mod exclusive;
pub mod handles;
pub mod limits;
pub mod regular;
