//! Formats: how a matrix is stored, how tensors lie in files, and where files are read from.
//!
//! Each of these is a trait in a file of its own, with one file per implementation in the folder beside it. They speak of
//! names, types, shapes and ranges of bytes, and know no model and no plan.

pub(crate) mod container;
pub(crate) mod dtype;
pub(crate) mod encoding;
pub mod source;

pub use dtype::Dtype;
