//! Formats: how a matrix is stored, how tensors lie in files, and where files are read from.
//!
//! Each of these is a trait in a file of its own, with one file per implementation in the folder beside it.

pub mod container;
pub mod encoding;
pub mod source;
