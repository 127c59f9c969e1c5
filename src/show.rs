//! Text output for people: plans, summaries, progress, tables, and findings as graphics, as lines and for GitHub.

pub mod each;
pub mod files;
pub mod github;
pub mod graphical;
pub mod plain;
pub mod plan;
pub mod progress;
pub mod statistics;
pub mod summary;
pub mod table;
