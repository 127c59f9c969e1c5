//! Incremental runs: records of finished work, and results of earlier runs that are used again.

pub mod hashes;
pub mod previous;
pub mod record;
pub mod reuse;
pub mod take_over;
