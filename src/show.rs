//! Text output for people: plans, summaries, progress, tables, and findings as graphics, as lines and for GitHub.

#[cfg(feature = "cli")]
pub(crate) mod comparison;
#[cfg(feature = "cli")]
pub mod document;
pub(crate) mod each;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command shows a part of it"))]
pub(crate) mod files;
pub mod github;
#[cfg(feature = "cli")]
pub mod graphical;
mod help;
#[cfg(feature = "cli")]
pub(crate) mod paint;
#[cfg(feature = "cli")]
pub(crate) mod parts;
pub mod plain;
pub mod plan;
#[cfg(feature = "cli")]
pub(crate) mod progress;
#[cfg(feature = "cli")]
pub(crate) mod starter;
pub mod statistics;
#[cfg(feature = "cli")]
pub(crate) mod summary;
pub(crate) mod table;
