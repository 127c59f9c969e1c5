//! Publishing: the output directory, staged beside its place and published with one rename.

pub(crate) mod exchange;
pub(crate) mod files;
pub(crate) mod flush;
pub mod hidden;
pub(crate) mod lock;
pub mod occupant;
pub(crate) mod staging;
#[cfg(feature = "cloud")]
pub(crate) mod store;

pub use crate::publish::staging::Staging;
