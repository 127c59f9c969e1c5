//! What is left behind: the output directory, staged beside its place and published with one rename.

pub mod compressed_tensors;
pub mod config;
pub mod disk;
pub mod files;
pub mod flush;
pub mod lock;
pub mod occupant;
pub mod publish;
pub mod siblings;
pub mod staging;

pub use staging::Staging;

/// The resolved recipe in an output directory.
pub const RECIPE_FILE_NAME: &str = "monoquant-recipe.yaml";
