//! Publishing: the output directory, staged beside its place and published with one rename.

pub mod exchange;
pub mod files;
pub mod flush;
pub mod hidden;
pub mod lock;
pub mod occupant;
pub mod staging;

pub use crate::publish::staging::Staging;
