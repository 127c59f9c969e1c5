//! Text output for people: plans, summaries, progress, tables, and findings as graphics, as lines and for GitHub.

pub(crate) mod each;
pub(crate) mod files;
pub mod github;
#[cfg(feature = "cli")]
pub mod graphical;
mod help;
pub mod plain;
pub mod plan;
#[cfg(feature = "cli")]
pub(crate) mod progress;
pub mod statistics;
pub(crate) mod summary;
pub(crate) mod table;
