//! Incremental runs: records of finished work, and reuse of the results of earlier runs.

pub(crate) mod hashes;
pub(crate) mod previous;
pub(crate) mod record;
pub(crate) mod reuse;
pub(crate) mod take_over;
