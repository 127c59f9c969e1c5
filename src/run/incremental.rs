//! Incremental runs: records of finished work, and reuse of the results of earlier runs.

pub mod hashes;
pub mod previous;
pub mod record;
pub mod reuse;
pub mod take_over;
