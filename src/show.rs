//! Text output for people: plans, summaries, progress, tables, and findings as graphics, as lines and for GitHub.

pub mod each;
pub mod files;
pub mod github;
#[cfg(feature = "cli")]
pub mod graphical;
mod help;
pub mod plain;
pub mod plan;
#[cfg(feature = "cli")]
pub mod progress;
pub mod statistics;
pub mod summary;
pub mod table;
